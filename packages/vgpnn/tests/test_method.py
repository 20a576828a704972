"""The method against a slow float64 reference of one step and of the whole pass, and its invariants."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from paperkit import UserError
from paperkit.resize import resize
from vgpnn import clips
from vgpnn.folding import fold, fold_compiled, fold_torch, vote_weights
from vgpnn.method import (
    Problem,
    finer_field,
    grid_of,
    index_of,
    noise,
    outputs,
    passes,
    places_of,
    rule_of_thumb,
    solve,
)
from vgpnn.pyramid import Settings, Source, enlarge_loop, scales, shape_of, shrink
from vgpnn.search import Schedule
from vgpnn.video import to_unit

P = (3, 5, 5)
SMALL = Settings(
    ratio_time=0.8,
    ratio_space=0.7,
    least_frames=4,
    least_side=9,
    patch=P,
    steps=3,
    big_patch=P,
    search="exact",
)


def clip(frames: int = 5, height: int = 12, width: int = 15) -> torch.Tensor:
    """The stand-in clip, small, float64 in [-1, 1]."""
    x = to_unit(clips.stand_in())[:, :frames].double()
    return resize(x, size=(height, width)).clamp(-1, 1)


# ---- the reference: lists of patches, all pairs, float64


def all_patches(x, p):
    _, t, h, w = x.shape
    starts = itertools.product(range(t - p[0] + 1), range(h - p[1] + 1), range(w - p[2] + 1))
    return [x[:, a : a + p[0], b : b + p[1], c : c + p[2]] for a, b, c in starts]


def slow_vote(patches, shape, p, kind="median", around=False):
    """Votes gathered in lists; `around`: frames wrap."""
    votes: dict[tuple[int, int, int], list] = {}
    grid = shape[0] if around else shape[0] - p[0] + 1, shape[1] - p[1] + 1, shape[2] - p[2] + 1
    at = iter(patches)
    g = [[math.exp(-(u**2) / (2 * 1.7**2)) for u in torch.linspace(-1, 1, n).double().tolist()] for n in p]
    for start in itertools.product(*map(range, grid)):
        patch = next(at)
        for o in itertools.product(*map(range, p)):
            where = ((start[0] + o[0]) % shape[0], start[1] + o[1], start[2] + o[2])
            weight = g[0][o[0]] * g[1][o[1]] * g[2][o[2]] if kind == "gaussian" else 1.0
            votes.setdefault(where, []).append((patch[:, o[0], o[1], o[2]], weight))
    y = torch.zeros(patches[0].shape[0], *shape, dtype=patches[0].dtype)
    for where, found in votes.items():
        values = torch.stack([value for value, _ in found])
        weights = torch.tensor([weight for _, weight in found], dtype=values.dtype)[:, None]
        y[:, where[0], where[1], where[2]] = (
            values.sort(0).values[(len(values) - 1) // 2]
            if kind == "median"
            else (values * weights).sum(0) / weights.sum()
        )
    return y


def slow_step(y, keys, values, p, alpha=math.inf, valid=None, kind="median", around=False):
    """Spec 2.4, steps 2 to 4, as they stand there; the video and the chosen keys."""
    wide = torch.cat([y, y[:, : p[0] - 1]], 1) if around else y
    q = torch.stack([patch.flatten() for patch in all_patches(wide, p)])
    k = torch.stack([patch.flatten() for patch in all_patches(keys, p)])
    d = torch.stack([(row - k).square().mean(1) for row in q])
    s = d if math.isinf(alpha) else d / (alpha + d.min(0).values)
    if valid is not None:
        s = torch.where(valid, s, math.inf)
    best = s.argmin(1)  # the first of equals
    chosen = all_patches(values, p)
    return slow_vote([chosen[j] for j in best.tolist()], shape_of(y), p, kind, around), best


def slow_pass(x, guess, shape, settings):
    """Spec 2.4 for one source without a mask."""
    levels = scales(shape_of(x), settings)
    images = [resize(x, scale=s.axes, size=s.of(shape_of(x)), axes=(1, 2, 3)) for s in levels]
    y = guess
    for n, scale in enumerate(levels):
        keys = images[n]
        if n:
            factors = scale.over(levels[n - 1])
            y = resize(y, scale=factors, size=scale.of(shape, settings.patch), axes=(1, 2, 3))
            keys = resize(images[n - 1], scale=factors, size=shape_of(images[n]), axes=(1, 2, 3))
        for step in range(settings.coarse_steps if n == 0 else settings.steps):
            y, _ = slow_step(y, keys if step == 0 else images[n], images[n], settings.patch, settings.alpha)
    return y


# ---- pyramid (spec 2.2)


@pytest.mark.parametrize(
    ("shape", "ratios", "least", "count", "coarsest"),
    [
        ((13, 144, 256), (0.87, 0.82), (3, 15), 13, (3, 15, 26)),
        ((13, 144, 256), (0.85, 0.85), (3, 15), 15, (3, 15, 26)),
        ((50, 1080, 1920), (0.87, 0.82), (3, 15), 23, (3, 15, 27)),
        ((30, 256, 456), (0.9, 0.9), (3, 20), 26, (3, 20, 35)),
    ],
)
def test_level_counts(shape, ratios, least, count, coarsest):
    settings = Settings(
        ratio_time=ratios[0], ratio_space=ratios[1], least_frames=least[0], least_side=least[1]
    )
    levels = scales(shape, settings)
    assert len(levels) == count
    assert levels[0].of(shape) == coarsest
    assert levels[-1].of(shape) == shape


def test_keys_of_every_level():
    levels = scales((13, 144, 256), Settings())
    keys = [math.prod(grid_of(s.of((13, 144, 256)), (3, 7, 7))) for s in levels]
    assert keys == [
        180, 253, 840, 1406, 3384, 5220, 10944, 21360, 39600, 70448, 121576, 230520, 379500,
    ]  # fmt: skip


def test_an_axis_at_its_minimum_is_frozen():
    levels = scales((30, 40, 60), Settings(least_side=20))
    sides = [s.of((30, 40, 60))[1] for s in levels]
    frames = [s.of((30, 40, 60))[0] for s in levels]
    assert sides[-5:] == [20, 23, 27, 33, 40]
    assert set(sides[:-4]) == {20}
    assert frames == sorted(frames)
    assert frames[0] == 3


def test_a_clip_below_the_minimum_is_refused():
    for shape in ((2, 40, 40), (5, 14, 40)):
        with pytest.raises(UserError, match="below the coarsest level"):
            scales(shape, Settings())


@pytest.mark.parametrize(
    "wrong",
    [
        {"ratio_time": 1.0}, {"ratio_space": 0.0}, {"alpha": 0.0}, {"alpha": math.nan}, {"steps": 0},
        {"patch": (0, 3, 3)}, {"patch": (5, 7, 7)}, {"least_side": 6},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(wrong):
    with pytest.raises(UserError):
        Settings(**wrong)


def test_big_levels_have_one_step_and_a_smaller_patch():
    paper, code = Settings(), Settings(patch_limit=7_500_000)
    assert paper.steps_at(5, 9, (13, 144, 256)) == 5
    assert paper.steps_at(0, 9, (3, 15, 26)) == 1
    assert paper.steps_at(8, 9, (13, 480, 640)) == 1
    assert paper.patch_at((13, 480, 640)) == (3, 5, 5)
    assert code.patch_at((13, 480, 640)) == (3, 7, 7)
    assert code.patch_at((13, 720, 1280)) == (3, 5, 5)
    assert [Settings(last_steps=1).steps_at(n, 9, (9, 9, 9)) for n in range(9)] == [1, 5, 5, 5, 5, 5, 5, 1, 1]


def test_a_short_output_still_holds_a_patch():
    """15 frames to 8 with a coarsest level of 3: the released code stops here (spec 6, defect 1)."""
    x = clip(15, 10, 12).float()
    settings = replace(SMALL, least_frames=3, steps=1)
    source = Source.of(x, settings)
    guess = shrink(x[:, :8], source.scales[0], source.scales[0].of((8, 10, 12), P))
    problem = Problem(source, [guess], (8, 10, 12), settings)
    assert min(problem.shape_at(n)[0] for n in range(problem.levels)) == 3
    assert shape_of(solve(problem)[0].video) == (8, 10, 12)


# ---- votes


@pytest.mark.parametrize("kind", ["median", "mean", "gaussian"])
@pytest.mark.parametrize("patch", [(1, 1, 1), (2, 3, 2), (3, 5, 5)])
def test_vote_equals_reference(kind, patch):
    draw = torch.Generator().manual_seed(sum(patch))
    values = torch.rand(2, 5, 9, 8, generator=draw).double()
    grid = (4, 4, 6)
    field = torch.randint(math.prod(grid_of((5, 9, 8), patch)), grid, generator=draw)
    field[1:3] = field[1, 0, 0] + torch.arange(6)  # a smooth part: the same voxels again and again
    field = field.clamp(max=math.prod(grid_of((5, 9, 8), patch)) - 1)
    chosen = all_patches(values, patch)
    shape = tuple(g + p - 1 for g, p in zip(grid, patch, strict=True))
    expected = slow_vote([chosen[j] for j in field.flatten().tolist()], shape, patch, kind)
    for y in (
        fold_compiled(values, field, patch, kind),
        fold_torch(values, field, patch, kind),
        fold_torch(values, field, patch, kind, memory=1),
    ):
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["median", "mean", "gaussian"])
def test_both_votes_give_the_same_bits(kind):
    draw = torch.Generator().manual_seed(0)
    values = torch.rand(3, 6, 12, 14, generator=draw)
    field = torch.randint(math.prod(grid_of((6, 12, 14), P)), (4, 7, 9), generator=draw)
    assert torch.equal(fold_compiled(values, field, P, kind), fold_torch(values, field, P, kind))


def test_vote_of_the_own_patches_is_exact():
    x = clip().float()
    grid = grid_of(shape_of(x), (3, 7, 7))
    own = torch.arange(math.prod(grid)).view(grid)
    for kind in ("median", "mean", "gaussian"):
        assert torch.equal(fold(x, own, (3, 7, 7), kind), x)


def test_weight_of_a_corner():
    weights = vote_weights((3, 7, 7), "gaussian")
    assert float(weights[0, 0, 0] / weights[1, 3, 3]) == pytest.approx(math.exp(-1.5 / 1.7**2))


# ---- steps and passes


@pytest.mark.parametrize(("alpha", "coarse_steps"), [(math.inf, 2), (0.0044, 1)])
def test_whole_pass_equals_reference(alpha, coarse_steps):
    x = clip()
    settings = replace(SMALL, alpha=alpha, coarse_steps=coarse_steps, steps=2)
    source = Source.of(x, settings)
    start = source.sharp(0)[0]
    guess = start + noise((3, *shape_of(start)), 0.5, 3, 0).double()
    ours = solve(Problem(source, [guess], shape_of(x), settings))[0]
    torch.testing.assert_close(ours.video, slow_pass(x, guess, shape_of(x), settings), rtol=0, atol=1e-12)


def test_another_output_shape_equals_reference():
    x = clip()
    shape = (5, 11, 20)
    source = Source.of(x, SMALL)
    scale = source.scales[0]
    guess = shrink(resize(x, size=shape, axes=(1, 2, 3)), scale, scale.of(shape, P))
    ours = solve(Problem(source, [guess], shape, SMALL))[0]
    torch.testing.assert_close(ours.video, slow_pass(x, guess, shape, SMALL), rtol=0, atol=1e-12)


def test_without_noise_the_input_comes_back_bit_for_bit():
    x = clip(8, 18, 24).float()
    for vote in ("median", "mean"):
        settings = replace(SMALL, vote=vote)
        source = Source.of(x, settings)
        y = solve(Problem(source, [source.sharp(0)[0]], shape_of(x), settings))[0]
        assert torch.equal(y.video, x)
        assert float(y.distance.max()) == 0


def test_a_mask_keeps_its_patches_out():
    """One level: nothing of the hole is copied, and the reference chooses the same keys."""
    x = clip(4, 11, 12)
    settings = replace(SMALL, least_frames=4, least_side=11, coarse_steps=1)
    hole = torch.zeros(4, 11, 12, dtype=torch.bool)
    hole[:, 4:6, 5:7] = True
    source = Source.of(x, settings, ~hole)
    valid = torch.tensor([bool(patch.all()) for patch in all_patches(~hole[None], P)])
    guess = x.flip(3)
    ours = solve(Problem(source, [guess], shape_of(x), settings))[0]
    expected, best = slow_step(guess, x, x, P, valid=valid)
    assert torch.equal(index_of(ours.places, grid_of(shape_of(x), P)).flatten(), best)
    torch.testing.assert_close(ours.video, expected, rtol=0, atol=1e-12)


def test_a_loop_equals_reference_and_wraps():
    x = clip(5, 9, 11)
    settings = replace(SMALL, least_frames=5, coarse_steps=1)
    source = Source.of(x, settings)
    guess = x.roll(2, 1)
    ours = solve(Problem(source, [guess], shape_of(x), settings, loop=True))[0]
    expected, _ = slow_step(guess, x, x, P, around=True)
    torch.testing.assert_close(ours.video, expected, rtol=0, atol=1e-12)


def test_enlarging_a_loop_knows_no_first_frame():
    x = clip(5, 6, 7)
    factors = (Fraction(7, 5), Fraction(3, 2), Fraction(3, 2))
    one = enlarge_loop(x, factors, (10, 9, 11))
    other = enlarge_loop(x.roll(1, 1), factors, (10, 9, 11))
    torch.testing.assert_close(one.roll(2, 1), other, rtol=0, atol=1e-12)
    still = x[:, :1].expand(-1, 5, -1, -1).contiguous()
    flat = enlarge_loop(still, factors, (10, 9, 11))
    torch.testing.assert_close(flat[:, :1].expand_as(flat), flat, rtol=0, atol=1e-12)


def test_a_mask_that_leaves_no_key_is_refused():
    x = clip()
    hole = torch.zeros(shape_of(x), dtype=torch.bool)
    hole[:, 4:8] = True
    source = Source.of(x, SMALL, ~hole)
    with pytest.raises(UserError, match="smaller hole"):
        solve(Problem(source, [source.sharp(0)[0]], shape_of(x), SMALL))


def test_state_after_any_level_goes_on_to_the_same_video():
    x = clip().float()
    settings = replace(SMALL, search="patchmatch", schedule=Schedule((2, 1), (1, 1)), alpha=0.01)
    source = Source.of(x, settings)
    start = source.sharp(0)[0]
    guesses = [start + noise((3, *shape_of(start)), 2.0, 0, k) for k in (0, 1)]
    problem = Problem(source, guesses, shape_of(x), settings, [0, 1])
    states = list(passes(problem))
    for state in states[:-1]:
        again = list(passes(problem, state))[-1]
        for a, b in zip(outputs(problem, again), outputs(problem, states[-1]), strict=True):
            assert torch.equal(a.video, b.video)
            assert torch.equal(a.places, b.places)
    alone = solve(replace(problem, guesses=guesses[1:], numbers=[1]))[0]
    assert torch.equal(alone.video, states[-1].videos[1])


# ---- fields


def test_places_and_numbers():
    grid = (3, 4, 5)
    number = torch.arange(60).view(3, 4, 5)
    assert torch.equal(index_of(places_of(number, grid), grid), number)
    assert places_of(torch.tensor(27), grid).tolist() == [1, 1, 2]
    assert int(index_of(torch.tensor([9, -1, 2]), grid)) == 42


def test_a_finer_field_keeps_displacements():
    """The identity stays the identity, and a shift by one becomes a shift by the factor."""
    factors = (Fraction(1), Fraction(2), Fraction(2))
    coarse, fine = (2, 6, 6), (2, 12, 12)
    own = torch.arange(72).view(coarse)
    assert torch.equal(finer_field(own, coarse, fine, fine, factors), torch.arange(288).view(fine))
    moved = index_of(places_of(own, coarse) + torch.tensor([0, 1, 0]), coarse)
    shift = (
        places_of(finer_field(moved, coarse, fine, fine, factors), fine)[:, :9]
        - places_of(torch.arange(288).view(fine), fine)[:, :9]
    )
    assert torch.equal(shift, torch.tensor([0, 2, 0]).expand_as(shift))


# ---- noise


def test_noise_is_addressed_by_seed_and_sample():
    shape = (3, 4, 5, 6)
    assert torch.equal(noise(shape, 2.0, 1, 2), noise(shape, 2.0, 1, 2))
    assert not torch.equal(noise(shape, 2.0, 1, 2), noise(shape, 2.0, 1, 3))
    still = noise(shape, 1.0, 0, 0, still=True)
    assert torch.equal(still[:, :1].expand_as(still), still)
    assert float(noise((3, 20, 20, 20), 5.0, 0, 0).std()) == pytest.approx(5, rel=0.02)


def test_rule_of_thumb_by_hand():
    """Three patches of one voxel: 0, 1, 3 have nearest others at 1, 1, 2."""
    x = torch.tensor([0.0, 1.0, 3.0]).view(1, 1, 1, 3)
    assert rule_of_thumb(x, (1, 1, 1)) == pytest.approx(4 / 3)
    assert rule_of_thumb(x[..., :1], (1, 1, 1)) == 0
