"""Every task as a function: what it keeps, what it must not copy, and bad input."""

import math
from dataclasses import replace

import pytest
import torch
from gpnn import metrics, provenance, tasks
from gpnn.method import Output, Source
from gpnn.session import read_image
from paperkit import UserError

FAST = {"steps": 2, "coarse_steps": 1}


@pytest.fixture(scope="module")
def coffee():
    return read_image("coffee", 48)


def fast(task, sizes, **changes):
    return replace(tasks.defaults(task, sizes), **{**FAST, **changes})


def shape(x):
    return x.shape[1], x.shape[2]


# ---- generate, texture


def test_samples_are_fixed_by_seed_and_number(coffee):
    settings = fast("generate", [shape(coffee)])
    a = tasks.generate(coffee, 3, 1, None, None, settings)
    b = tasks.generate(coffee, 2, 1, None, None, settings)
    assert torch.equal(a[1].image, b[1].image)
    assert not torch.equal(a[0].image, a[1].image)
    other = tasks.generate(coffee, 1, 2, None, None, settings)[0]
    assert not torch.equal(a[0].image, other.image)


def test_no_noise_stays_and_much_noise_leaves(coffee):
    settings = fast("generate", [shape(coffee)], keys="switch")
    still = tasks.generate(coffee, 1, 0, None, tasks.Noise("absolute", 0.0), settings)[0]
    assert torch.equal(still.image, coffee)
    assert provenance.same_place(still) == 1
    left = tasks.generate(coffee, 1, 0, None, tasks.Noise("relative", 128.0), settings)[0]
    assert provenance.same_place(left) < 0.5


def test_auto_noise_leaves_the_coarse_layout(coffee):
    settings = fast("generate", [shape(coffee)])
    coarse = Source.of(coffee, settings).sharp(settings.levels)[0]
    multiple = tasks.leaving_multiple(coarse, 7, 0)
    spread = float(coarse.std())
    assert 4 <= multiple <= 256
    assert math.log2(multiple) == int(math.log2(multiple))
    stayed = tasks.coarse_stay(coarse, multiple / 2 * spread, 7, 0)
    assert tasks.coarse_stay(coarse, multiple * spread, 7, 0) < stayed
    assert tasks.coarse_stay(coarse, 0.0, 7, 0) == 1


def test_outputs_of_another_size(coffee):
    settings = fast("generate", [shape(coffee), (40, 60)])
    assert shape(tasks.generate(coffee, 1, 0, (40, 60), None, settings)[0].image) == (40, 60)
    assert shape(
        tasks.texture(coffee, (44, 30), 1, 0, fast("texture", [shape(coffee), (44, 30)]))[0].image
    ) == (
        44,
        30,
    )


# ---- retarget


def test_retarget_keeps_patches_where_resizing_does_not(coffee):
    size = (32, 30)
    settings = fast("retarget", [shape(coffee), size])
    y = tasks.retarget(coffee, size, False, settings).image
    assert shape(y) == size
    plain = tasks.resize(coffee, size=size)
    assert metrics.realism(y, coffee) < metrics.realism(plain, coffee)
    assert metrics.completeness(y, coffee) < metrics.completeness(plain, coffee)


def test_gradual_sizes():
    assert tasks.gradual_sizes((100, 100), (100, 100)) == [(100, 100)]
    assert tasks.gradual_sizes((100, 100), (100, 81)) == [(100, 90), (100, 81)]
    way = tasks.gradual_sizes((50, 100), (60, 200))
    assert way[-1] == (60, 200)
    assert len(way) == math.floor(math.log(2) / math.log(1.2))
    assert way == sorted(way)


@pytest.mark.parametrize("ratios", [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_ratios_that_make_no_sense(ratios):
    with pytest.raises(UserError, match="positive"):
        tasks.target_size((10, 10), ratios)


# ---- edit, reshuffle


def test_place_crops_moves_copies_and_erases():
    x = torch.arange(36.0).view(1, 6, 6) / 36
    copied = tasks.place_crops(x, [((0, 0, 2, 2), (4, 4))])
    assert torch.equal(copied[:, 4:, 4:], x[:, :2, :2])
    assert torch.equal(copied[:, :2, :2], x[:, :2, :2])
    moved = tasks.place_crops(x, [((0, 0, 2, 2), (4, 4))], erase=True)
    assert torch.equal(moved[:, 4:, 4:], x[:, :2, :2])
    assert len(moved[:, :2, :2].unique()) == 1


@pytest.mark.parametrize(
    "crop", [((5, 0, 2, 2), (0, 0)), ((0, 0, 2, 2), (0, 5)), ((-1, 0, 2, 2), (0, 0)), ((0, 0, 0, 2), (0, 0))]
)
def test_boxes_outside_the_image(crop):
    with pytest.raises(UserError, match="inside"):
        tasks.place_crops(torch.zeros(1, 6, 6), [crop])


def test_an_edit_comes_from_the_unedited_image(coffee):
    box = ((4, 4, 10, 12), (18, 28))
    crude = tasks.place_crops(coffee, [box], erase=True)
    y = tasks.edit(coffee, crude, fast("edit", [shape(coffee)], levels=2)).image
    assert metrics.realism(y, coffee) < metrics.realism(crude, coffee) / 3
    same = tasks.reshuffle(coffee, [box], True, fast("edit", [shape(coffee)], levels=2)).image
    assert torch.equal(same, y)


def test_depth_follows_the_size_of_the_change():
    assert [tasks.levels_to_shrink(side, 7, 0.75) for side in (7, 14, 35, 44, 100, 10_000)] == [
        1,
        3,
        6,
        7,
        9,
        9,
    ]
    changed = torch.zeros(40, 40, dtype=torch.bool)
    assert tasks.change_side(changed) == 0
    changed[2:4, 2:4] = changed[10:22, 5:35] = True
    assert tasks.change_side(changed) == 12


# ---- analogy, collage


def test_analogy_has_the_structures_size_and_the_sources_patches(coffee):
    structure = read_image("chelsea", 40)
    settings = fast("analogy", [shape(coffee), shape(structure)], levels=3)
    y = tasks.analogy(coffee, structure, settings).image
    assert y.shape == structure.shape
    assert metrics.realism(y, coffee) < metrics.realism(structure, coffee) / 2


def test_collage_takes_from_every_source_and_tells_how_much(coffee):
    parts = [coffee, read_image("chelsea", 44)]
    output = tasks.collage(parts, 2, fast("collage", [(29, 44), (29, 44)], levels=1))
    given = provenance.shares(output, 2)
    assert sum(given) == pytest.approx(1)
    assert min(given) > 0.1
    height = min(x.shape[1] for x in parts)
    row = sum(round(x.shape[2] * height / x.shape[1]) for x in parts)
    assert shape(output.image) == (height, round(row * 0.81))


# ---- inpaint


@pytest.fixture(scope="module")
def holed():
    x = read_image("gravel", 48)
    hole = torch.zeros(48, 48, dtype=torch.bool)
    hole[18:28, 20:31] = True
    return x, hole


def test_outside_the_hole_nothing_changes_and_its_colour_does_not_spread(holed):
    x, hole = holed
    red = torch.tensor([1.0, 0, 0])[:, None, None]
    painted = torch.where(hole, red, x)
    output = tasks.inpaint(painted, hole, settings=fast("inpaint", [(48, 48)], levels=2))
    assert torch.equal(output.image[:, ~hole], x[:, ~hole])
    inside = output.image[:, hole]
    assert float((inside[0] - inside[1]).abs().max()) < 1e-4  # gravel is grey: no red came in


def test_the_released_rule_lets_the_colour_in(holed):
    x, hole = holed
    painted = torch.where(hole, torch.tensor([1.0, 0, 0])[:, None, None], x)
    settings = fast("inpaint", [(48, 48)], levels=2, keys="blurred")
    strict = tasks.inpaint(painted, hole, settings=settings)
    official = tasks.inpaint(painted, hole, parity=True, settings=settings)
    assert not torch.equal(strict.image, official.image)
    assert float((official.image - x)[:, ~hole].abs().max()) == 0


def test_holes_that_make_no_sense(holed):
    x, hole = holed
    with pytest.raises(UserError, match="nothing"):
        tasks.inpaint(x, torch.zeros_like(hole))
    with pytest.raises(UserError, match="whole image"):
        tasks.inpaint(x, torch.ones_like(hole))
    with pytest.raises(UserError, match="equal sizes"):
        tasks.inpaint(x, hole[:40])


# ---- input


def test_unit_takes_whole_numbers_by_their_type():
    assert float(tasks.unit(torch.full((3, 8, 8), 255, dtype=torch.uint8)).max()) == 1
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        tasks.unit(torch.full((3, 8, 8), 255.0))
    with pytest.raises(UserError, match="channels"):
        tasks.unit(torch.zeros(5, 8, 8))
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        tasks.unit(torch.full((3, 8, 8), math.nan))


def test_tiny_images_are_refused():
    with pytest.raises(UserError, match="smaller than a 7x7 patch"):
        tasks.generate(torch.rand(3, 5, 5))


def test_sizes_that_do_not_fit(coffee):
    with pytest.raises(UserError, match="equal sizes"):
        tasks.edit(coffee, coffee[:, :20])
    with pytest.raises(UserError, match="channels"):
        tasks.analogy(coffee, coffee[:1])
    with pytest.raises(UserError, match="two images"):
        tasks.collage([coffee])
    with pytest.raises(UserError, match="nothing to move"):
        tasks.reshuffle(coffee, [])


# ---- provenance and figures


def test_pixel_places_of_a_copy_are_the_pixels_own():
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(8), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], -1)
    copy = Output(torch.zeros(3, 12, 14), places, torch.zeros(6, 8).double())
    found = provenance.pixel_places(copy)
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(14), indexing="ij")
    assert torch.equal(found, torch.stack([torch.zeros_like(rows), rows, columns], -1))
    assert provenance.same_place(copy) == 1
    torch.testing.assert_close(provenance.colours(found, [(12, 14)]), provenance.legend((12, 14)))


def test_places_name_the_patch_that_was_copied(coffee):
    """With one step at level 0 and no overlap, the middle pixel of a patch is that of its place."""
    settings = replace(fast("generate", [shape(coffee)]), levels=0, coarse_steps=1)
    y = tasks.generate(coffee, 1, 0, None, tasks.Noise("absolute", 0.0), settings)[0]
    found = provenance.pixel_places(y)
    assert torch.equal(coffee[:, found[..., 1], found[..., 2]], y.image)


def test_matched_sharpness_sees_blur_and_not_what_is_shown():
    """A calm part of a picture is less sharp than the whole, patch by patch as sharp; its blur is not."""
    x = read_image("rocket", 64)
    calm = x[:, :24, :30]
    found = metrics.figures(calm, x)
    assert found["sharpness"] < 0.9
    assert found["matched_sharpness"] == pytest.approx(1)
    assert metrics.figures(metrics.blurred(calm), x)["matched_sharpness"] < 0.9


def test_matched_sharpness_by_hand():
    x = torch.zeros(1, 7, 16)
    x[..., 8:] = torch.arange(8.0)
    y = torch.zeros(1, 7, 7)
    y[...] = torch.arange(7.0) / 2
    # One patch of y: steps of 1/2 to the right, none down; patch 9 of x: steps of 1, patch 0: none.
    assert metrics.matched_sharpness(y, x, torch.tensor([9])) == pytest.approx(0.5)
    assert metrics.matched_sharpness(y, x, torch.tensor([0])) > 1e10


def test_figures_of_the_source_and_of_controls(coffee):
    x = read_image("brick", 48)
    same = metrics.figures(x, x)
    assert same == {"realism": 0, "completeness": 0, "sharpness": 1, "matched_sharpness": 1, "stay": 1}
    assert metrics.sharpness(metrics.blurred(x), x) < 0.9
    assert metrics.realism(metrics.shuffled(x), x) > 0.1
    assert metrics.shuffled(x).flatten(1).sort(1).values.equal(x.flatten(1).sort(1).values)
    assert metrics.diversity([x, x], x) == 0
    with pytest.raises(UserError, match="two samples"):
        metrics.diversity([x], x)
    with pytest.raises(UserError, match="narrow"):
        metrics.natural_distance(x[:, :, :10])
