"""PatchMatch: torch against numba bit for bit, monotone, free of tiles; exact search on video patches."""

import math

import pytest
import torch
from paperkit import UserError
from paperkit.nearest import Patches
from paperkit.resize import resize
from vgpnn import clips, search
from vgpnn._walk import CompiledWalk
from vgpnn.patchmatch import PatchMatch, Walk, below, bits, jitter
from vgpnn.search import Exact, Schedule, decide, matcher, movement
from vgpnn.video import to_unit

P = (3, 5, 5)
SHORT = Schedule((4, 2, 1), (2, 1, 0))


def pair(frames: int = 6, height: int = 16, width: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """The stand-in clip, small, and the same turned around with noise."""
    x = resize(to_unit(clips.stand_in())[:, :frames], size=(height, width)).clamp(-1, 1)
    return x, x.flip(3) + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def keys_of(x: torch.Tensor) -> int:
    return math.prod(Patches(x, P).grid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "schedule",
    [SHORT, Schedule((8, 3), (1, 2), identity=True), Schedule((2, 1, 1), (1, 1, 1), draw="window")],
)
def test_both_paths_give_the_same_field(dtype, masked, schedule):
    x, y = pair()
    draw = torch.Generator().manual_seed(0)
    valid = torch.rand(keys_of(x), generator=draw) > 0.4 if masked else None
    weight = torch.rand(keys_of(x), generator=draw).to(dtype) if masked else None
    ends = []
    for kind in (Walk, CompiledWalk):
        walk = kind(
            Patches(y.to(dtype), P), Patches(x.to(dtype), P), weight, valid, schedule, 2**63 + 7, 2**26
        )
        ends.append([part.clone() for part in walk.run(None)])
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])
    if valid is not None:
        assert bool(valid[ends[0][0]].all())


def test_tiles_and_threads_change_nothing():
    x, y = pair()
    ends = []
    for memory, threads in ((2**26, 1), (4096, 1), (2**26, 2)):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            kind = CompiledWalk if threads > 1 else Walk
            ends.append(kind(Patches(y, P), Patches(x, P), None, None, SHORT, 5, memory).run(None)[0])
        finally:
            torch.set_num_threads(before)
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_scores_never_rise_and_are_those_of_the_field():
    x, y = pair()
    walk = CompiledWalk(Patches(y, P), Patches(x, P), None, None, SHORT, 3, 2**26)
    walk.start(None)
    for number in range(1, 7):
        before = walk.score.clone()
        walk.round(number, 2, 1)
        assert bool((walk.score <= before).all())
    d = all_distances(y, x)
    torch.testing.assert_close(
        walk.score.double(), d.gather(1, walk.found()[:, None])[:, 0], rtol=1e-5, atol=0
    )


def all_distances(y, x):
    """D of all pairs in float64."""

    def rows(v):
        view = v.double().unfold(1, P[0], 1).unfold(2, P[1], 1).unfold(3, P[2], 1)
        return view.permute(1, 2, 3, 0, 4, 5, 6).flatten(0, 2).flatten(1)

    k = rows(x)
    return torch.stack([(row - k).square().mean(1) for row in rows(y)])


@pytest.mark.parametrize("alpha", [math.inf, 0.0044])
def test_patchmatch_comes_near_the_exact_search(alpha):
    x, _ = pair()
    y = resize(resize(x.flip(1), scale=0.7), size=(16, 20))  # an easy query, as those of finer levels are
    exact = Exact(Patches(x, P), 2**26).search(y, alpha, None)
    found = PatchMatch(Patches(x, P), Schedule(), 2**26).search(y, alpha, None, draw=1)
    d = all_distances(y, x)
    score = d if math.isinf(alpha) else d / (alpha + d.min(0).values)
    best, ours, theirs = (
        float(score.gather(1, index.flatten()[:, None]).mean())
        for index in (score.argmin(1), found.index, exact.index)
    )
    assert theirs == pytest.approx(best, rel=1e-9)
    assert best * (1 - 1e-4) <= ours <= 1.1 * best
    torch.testing.assert_close(
        found.distance.flatten().double(),
        d.gather(1, found.index.flatten()[:, None])[:, 0],
        rtol=1e-4,
        atol=1e-9,
    )


def test_the_exact_search_equals_brute_force_step_after_step():
    x, y = pair()
    among = Exact(Patches(x, P), 2**26)
    for step in range(3):
        found = among.search(y, math.inf, None)
        assert torch.equal(found.index.flatten(), all_distances(y, x).argmin(1))
        y = y.clone()
        y[:, step, 3:6] += 0.02
    among.forget()
    assert torch.equal(among.search(y, math.inf, None).index.flatten(), all_distances(y, x).argmin(1))


def test_movement_is_zero_where_nothing_moved():
    x, _ = pair()
    y = x.clone()
    y[:, 0, 0, 0] += 1
    moved = movement(y, x, P)
    assert int((moved > 0).sum()) == 1
    assert float(moved[0]) == pytest.approx(1 / 75, rel=1e-6)


def test_a_guess_that_may_not_be_a_key_is_drawn_again():
    x, y = pair()
    valid = torch.ones(keys_of(x), dtype=torch.bool)
    valid[: keys_of(x) // 2] = False
    walk = Walk(Patches(y, P), Patches(x, P), None, valid, SHORT, 1, 2**26)
    walk.start(torch.zeros(walk.count, dtype=torch.int64))
    assert bool(valid[walk.field].all())


def test_auto_counts_keys(monkeypatch):
    x, _ = pair()
    monkeypatch.setitem(search.SWITCH, "cpu", keys_of(x))
    assert decide("auto", keys_of(x), "cpu") == "exact"
    monkeypatch.setitem(search.SWITCH, "cpu", keys_of(x) - 1)
    assert decide("auto", keys_of(x), "cpu") == "patchmatch"
    assert decide("auto", keys_of(x), "cpu", switch=keys_of(x)) == "exact"
    assert decide("exact", keys_of(x), "cpu") == "exact"
    assert matcher(x, None, P, 1, "patchmatch", SHORT, 2**20).kind == "patchmatch"
    assert matcher(x, None, P, 1, "exact", SHORT, 2**20).kind == "exact"


@pytest.mark.parametrize("kind", ["exact", "patchmatch"])
def test_a_mask_without_keys_is_refused(kind):
    x, _ = pair()
    with pytest.raises(UserError, match="no key"):
        matcher(x, torch.zeros(x.shape[1:], dtype=torch.bool), P, 1, kind, SHORT, 2**20)


@pytest.mark.parametrize("wrong", [((), ()), ((1, 2), (1,)), ((0,), (1,)), ((1,), (-1,))])
def test_schedules_that_cannot_be(wrong):
    with pytest.raises(UserError):
        Schedule(*wrong)


# ---- random numbers


def test_random_numbers_are_uniform_and_unrelated():
    position = torch.arange(200_000)
    drawn = bits(123, 4, position)
    assert int(drawn.min()) >= 0
    counts = torch.bincount(below(drawn, 10), minlength=10).double()
    assert float(((counts - 20_000) ** 2 / 20_000).sum()) < 27.9  # chi-square, 9 degrees, p = 0.001
    other = bits(123, 5, position)
    both = torch.bincount(below(drawn, 4) * 4 + below(other, 4), minlength=16).double()
    assert float(((both - 12_500) ** 2 / 12_500).sum()) < 37.7  # 15 degrees
    for part in jitter(drawn, 2):
        assert sorted(part.unique().tolist()) == [-2, -1, 0, 1, 2]
        assert float(part.double().mean().abs()) < 0.02
    assert torch.equal(bits(123, 4, position[77:90]), drawn[77:90])
