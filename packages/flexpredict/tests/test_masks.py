"""The samplers: the official one image by image, the facts of the released code, the promises of ours."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from flexpredict import claims, masks
from flexpredict.config import DIGITS, MAE_VITB16, STOP_VITB16, MaskConfig
from flexpredict.masks import sample
from paperkit import UserError, rng

OFFICIAL = STOP_VITB16.masks
UNBIASED = replace(OFFICIAL, sampler="unbiased", context=40)


def slow_official(config: MaskConfig, grid, batch: int, seed: int, step: int):
    """The released sampler's rules with our random numbers, one image and one cell at a time."""

    def uniform(shape, purpose):
        return torch.rand(shape, generator=rng.generator(seed, step, purpose), dtype=torch.float64).tolist()

    def cells(corner, shape):
        top, left = (int(corner[i] * (grid[i] - shape[i])) for i in (0, 1))
        rows, columns = range(top, top + shape[0]), range(left, left + shape[1])
        return [row * grid[1] + column for row in rows for column in columns]

    def shape_of(u, scale, aspect):
        area = int(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
        ratio = aspect[0] + u * (aspect[1] - aspect[0])
        sides = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        return tuple(min(side, full - 1) for side, full in zip(sides, grid, strict=True))

    u = uniform(2, "shapes")
    block, around = shape_of(u[0], config.scale, config.aspect), shape_of(u[1], config.context_scale, (1, 1))
    corners, targets, contexts = uniform((batch, config.blocks, 2), "targets"), [], []
    for row in range(batch):
        own = [cells(corner, block) for corner in corners[row]]
        targets.append(own)
        for attempt in itertools.count():
            respected = own[: max(0, config.blocks - attempt // 20)]
            corner = uniform((batch, 2), f"context {attempt}")[row]
            context = [cell for cell in cells(corner, around) if not any(cell in each for each in respected)]
            if len(context) > config.least:
                contexts.append(context)
                break
    shortest = min(map(len, contexts))
    return [context[:shortest] for context in contexts], targets


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (8, 10)])
def test_official_equals_the_slow_reference(grid):
    for step in range(4):
        found = sample(OFFICIAL, grid, 16, 3, step)
        context, targets = slow_official(OFFICIAL, grid, 16, 3, step)
        assert found.context.tolist() == context
        assert found.targets.tolist() == targets


def test_official_lets_go_of_targets_where_nothing_is_left():
    """Four blocks of 5x5 on 7x7 cover nearly all: the context then overlaps some."""
    config = replace(OFFICIAL, scale=(0.5, 0.5), aspect=(1.0, 1.0), least=6)
    for step in range(3):
        found = sample(config, (7, 7), 12, 0, step)
        assert found.context.tolist() == slow_official(config, (7, 7), 12, 0, step)[0]
        assert found.context.shape[1] > 6


def test_official_has_the_released_facts():
    small = claims.official_facts((14, 14), 0, 100)
    assert small.shapes == claims.SHAPES
    assert small.outside == 0
    assert small.kept == pytest.approx(52.5, abs=3)
    assert claims.official_facts((16, 16), 0, 100).kept == pytest.approx(71, abs=4)


def test_context_of_official_is_in_one_corner():
    """On 14x14 its block is always the same: all randomness comes from the targets."""
    shapes = {masks.context_shape(OFFICIAL, (14, 14), u) for u in (0.0, 0.3, 0.7, 1.0)}
    assert shapes == {(13, 13)}


def test_unbiased_keeps_its_promises():
    assert claims.unbiased_error(1, 150) <= 1


def test_the_check_of_mirror_images_sees_a_bias(monkeypatch):
    """The negative control: the official sampler's corners."""
    corners = masks._corners
    monkeypatch.setattr(masks, "_corners", lambda u, s, g, inclusive: corners(u, s, g, False))
    assert claims.unbiased_error(1, 150) > 1


def test_context_is_uniform_over_what_is_free():
    config, counts = DIGITS.masks, torch.zeros(16)
    for step in range(300):
        found = sample(config, (4, 4), 32, 0, step)
        counts += torch.bincount(found.context.flatten(), minlength=16)
    image = counts.reshape(4, 4) / counts.sum()
    assert float((image - image.flip(0)).abs().max()) < 0.004
    assert float((image - image.T).abs().max()) < 0.004


def test_masks_depend_on_seed_step_and_row_alone():
    for config in (UNBIASED, MAE_VITB16.masks):
        whole = sample(config, (14, 14), 12, 1, 2)
        part = sample(config, (14, 14), 12, 1, 2, slice(4, 8))
        assert torch.equal(part.context, whole.context[4:8])
        assert torch.equal(part.targets, whole.targets[4:8])
        assert not torch.equal(sample(config, (14, 14), 12, 1, 3).context, whole.context)


def test_random_hides_all_that_is_not_shown():
    found = sample(MAE_VITB16.masks, (14, 14), 5, 0, 1)
    assert found.context.shape == (5, 49)
    both = torch.cat([found.context, found.targets[:, 0]], 1).sort(1).values
    assert torch.equal(both, torch.arange(196).expand(5, -1))


@pytest.mark.parametrize(
    ("config", "grid", "text"),
    [
        (OFFICIAL, (2, 2), "larger images"),
        (UNBIASED, (6, 6), "would fit"),
        (replace(MAE_VITB16.masks, context=16), (4, 4), "at most 15"),
    ],
)
def test_grids_that_are_too_small_are_named(config, grid, text):
    with pytest.raises(UserError, match=text):
        masks.check(config, grid)


def test_what_the_message_proposes_fits():
    config = replace(OFFICIAL, least=30)
    with pytest.raises(UserError, match=r"--masks.least (\d+)") as error:
        masks.check(config, (8, 8))
    words = str(error.value).split()
    least = int(words[words.index("use") + 2].rstrip(","))
    masks.check(replace(config, least=least), (8, 8))
    assert sample(replace(config, least=least), (8, 8), 8, 0, 1).context.shape[1] > least
