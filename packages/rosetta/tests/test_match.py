"""Rules and chains against brute force, ties included; the i.i.d. line; what nulls keep; p and q."""

import itertools

import pytest
import torch
from rosetta import method, nulls
from rosetta.maps import Maps
from rosetta.match import BINS, Rule, summarise
from rosetta.method import Chain, best_buddies, chains, edges, expected_buddies, expected_chains
from rosetta.similarity import Tile, table


def coarse(rows: int, columns: int, seed: int, levels: int = 4) -> torch.Tensor:
    """A table full of ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-levels, levels, (rows, columns), generator=generator).double() / levels


def cut(scores: torch.Tensor, size: int, seed: int = 0) -> list[Tile]:
    """The table in tiles, in random order."""
    rows, columns = (torch.arange(n).split(size) for n in scores.shape)
    found = [Tile(r, c, scores[r[:, None], c]) for r in rows for c in columns]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    return [found[i] for i in order]


@pytest.mark.parametrize("size", [3, 7, 100])
@pytest.mark.parametrize("rule", [Rule(1), Rule(2), Rule(1, 5), Rule(3)], ids=str)
def test_tiles_in_any_order_give_the_pairs_of_the_whole_table(size, rule):
    scores = coarse(19, 23, seed=size)
    found = summarise(cut(scores, size), 19, 23, k=5).part(rule)
    wanted = best_buddies(scores, rule.k, rule.back)
    assert found.pairs == set(map(tuple, wanted.nonzero().tolist()))
    assert torch.equal(found.scores, scores[found.rows, found.columns])


def test_of_equal_scores_the_lower_index_wins():
    found = summarise([Tile(torch.arange(2), torch.arange(3), torch.zeros(2, 3).double())], 2, 3, k=2)
    assert found.rows.partners.tolist() == [[0, 1], [0, 1]]
    assert found.part(Rule(1)).pairs == {(0, 0)}


def test_units_that_no_tile_held_have_no_partner():
    tile = Tile(torch.tensor([1, 3]), torch.tensor([0, 2]), torch.tensor([[0.5, 0.1], [0.2, 0.9]]).double())
    found = summarise([tile], 4, 4, k=3)
    assert found.part(Rule(2)).pairs == {(1, 0), (1, 2), (3, 0), (3, 2)}
    assert found.rows.partners[0].tolist() == [-1, -1, -1]
    assert found.hubs == 2
    assert found.largest == pytest.approx(0.9)
    assert found.mean_best == pytest.approx(0.7)


def test_quantile_is_that_of_the_table_rounded_up_to_a_bin():
    scores = torch.rand(200, 300, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    found = summarise(cut(scores, 64), 200, 300, k=1)
    for share in (0.5, 0.999):
        exact = float(scores.flatten().quantile(share))
        assert exact <= found.quantile(share) <= exact + 2 * 2 / BINS


# ---- chains


def brute_force(tables: dict, rule: str, models: int, k: int) -> list[Chain]:
    """Every tuple of units, tried."""
    sizes = [tables[0, 1].shape[0], *(tables[0, j].shape[1] for j in range(1, models))]
    buddies = {pair: best_buddies(scores, k) for pair, scores in tables.items()}
    best: dict[int, Chain] = {}
    for units in itertools.product(*map(range, sizes)):
        pairs = sorted(edges(rule, models), key=lambda p: p[1])
        if not all(buddies[i, j][units[i], units[j]] for i, j in pairs):
            continue
        chain = Chain(units, tuple(float(tables[i, j][units[i], units[j]]) for i, j in pairs))
        held = best.get(units[0])
        if held is None or (-chain.weakest, -sum(chain.scores), units) < (
            -held.weakest, -sum(held.scores), held.units
        ):  # fmt: skip
            best[units[0]] = chain
    return sorted(best.values(), key=lambda c: (-c.weakest, c.units))


@pytest.mark.parametrize("rule", ["star", "clique", "cycle"])
@pytest.mark.parametrize("k", [1, 3])
def test_chains_equal_brute_force(rule, k):
    generator = torch.Generator().manual_seed(k)
    sizes = [9, 8, 7, 6]
    tables = {
        (i, j): torch.rand(sizes[i], sizes[j], generator=generator).double()
        for i, j in itertools.combinations(range(4), 2)
    }
    for i, j in tables:  # a few that agree everywhere
        tables[i, j][range(3), range(3)] += torch.tensor([1.0, 2.0, 1.5]).double()
    partners = {
        pair: summarise(cut(scores, 4), *scores.shape, k=k).part(Rule(k)).partners
        for pair, scores in tables.items()
    }
    found = chains(partners, rule, 4)
    wanted = brute_force(tables, rule, 4, k)
    assert [c.units for c in found] == [c.units for c in wanted]
    assert [sorted(c.scores) for c in found] == [sorted(c.scores) for c in wanted]
    assert len(found) >= 3
    assert all(len(c.scores) == len(edges(rule, 4)) for c in found)


def test_clique_and_cycle_are_stars_that_agree_further():
    assert edges("star", 4) == ((0, 1), (0, 2), (0, 3))
    assert edges("cycle", 4) == ((0, 1), (1, 2), (2, 3), (0, 3))
    assert edges("clique", 3) == ((0, 1), (0, 2), (1, 2))
    assert edges("cycle", 2) == edges("star", 2) == edges("clique", 2) == ((0, 1),)
    star = {(0, 1): {5: {2: 0.9}}, (0, 2): {5: {4: 0.8}}, (1, 2): {}}
    assert chains(star, "star", 3) == [Chain((5, 2, 4), (0.9, 0.8))]
    assert chains(star, "clique", 3) == chains(star, "cycle", 3) == []
    assert chains({}, "star", 3) == []


# ---- the i.i.d. line


@pytest.mark.parametrize(("k", "back"), [(1, 1), (1, 5), (2, 2), (3, 1)])
def test_count_under_noise_is_the_formula(k, back):
    da, db, draws = 30, 45, 300
    generator = torch.Generator().manual_seed(k)
    counts = torch.tensor([
        float(best_buddies(torch.rand(da, db, generator=generator).double(), k, back).sum())
        for _ in range(draws)
    ])  # fmt: skip
    error = float(counts.std()) / draws**0.5
    assert abs(float(counts.mean()) - expected_buddies(da, db, k, back)) < 3.5 * error


def test_closed_forms_of_the_formula():
    assert expected_buddies(23296, 3840) == pytest.approx(23296 * 3840 / (23296 + 3840 - 1), rel=1e-9)
    # the released rule, and five models around BigGAN-deep: the figures of spec 5
    da, db, n = 23296, 3840, 5
    missed = 1.0
    for i in range(n):
        missed *= (da - 1 - i) / (da + db - 1 - i)
    assert expected_buddies(da, db, 1, n) == pytest.approx(da * (1 - missed), rel=1e-9)
    five = [3840, 3840, 3840, 36864, 36864]
    assert round(expected_buddies(23296, 3840)) == 3297
    assert round(expected_buddies(23296, 36864)) == 14275
    assert round(expected_chains(23296, five)) == 25
    assert round(expected_chains(23296, five, 1, 5)) == 3481
    assert expected_buddies(1, 1) == pytest.approx(1.0)


# ---- nulls


def some_maps(images: int = 40) -> Maps:
    generator = torch.Generator().manual_seed(3)
    shapes = [(4, 6, 6), (3, 3, 3), (2, 6, 6)]
    return Maps("m", ["a", "b", "c"], [torch.randn(images, *s, generator=generator) for s in shapes])


def test_images_null_moves_whole_images_of_all_layers_together():
    maps = some_maps()
    found = nulls.disturbed(maps, "images", draw=0)
    order = found.data[0].order
    assert order.sort().values.tolist() == list(range(40))
    for before, after in zip(maps.data, found.data, strict=True):
        assert torch.equal(after[slice(5, 9)], before[order[5:9]])
    again = nulls.disturbed(maps, "images", draw=0)
    assert torch.equal(again.data[2][:], found.data[2][:])
    assert not torch.equal(nulls.disturbed(maps, "images", draw=1).data[2][:], found.data[2][:])


def test_positions_null_keeps_the_values_of_a_unit_and_layers_of_one_grid_together():
    maps = some_maps()
    found = nulls.disturbed(maps, "positions", draw=0)
    for before, after in zip(maps.data, found.data, strict=True):
        values = after[slice(None)].transpose(0, 1).flatten(1)
        assert torch.equal(values.sort(1).values, before.transpose(0, 1).flatten(1).sort(1).values)
        assert torch.equal(after[slice(7, 9)], after[slice(None)][7:9])
    within, moved = table(maps, maps), table(found, found)
    assert float((within[:4, 7:] - moved[:4, 7:]).abs().max()) < 1e-6  # the layers a and c moved alike
    assert float((within[:4, 4:7] - moved[:4, 4:7]).abs().max()) > 0.01  # b has another grid


def test_shift_null_rolls_each_image_by_its_own_share():
    maps = some_maps()
    found = nulls.disturbed(maps, "shift", draw=0)
    assert torch.allclose(found.data[0][:].mean((2, 3)), maps.data[0].mean((2, 3)), atol=1e-6)
    share = found.data[0].shares[11]
    assert torch.equal(found.data[1].shares[11], share)
    for before, after in zip(maps.data, found.data, strict=True):
        step = (share * before.shape[2]).long().tolist()
        assert torch.equal(after[slice(11, 12)][0], before[11].roll(step, (1, 2)))


def test_rotation_null_keeps_distances_and_changes_the_basis():
    maps = some_maps()
    found = nulls.disturbed(maps, "rotation", draw=0)
    for before, after in zip(maps.data, found.data, strict=True):
        x, y = before.transpose(0, 1).flatten(1), after[slice(None)].transpose(0, 1).flatten(1)
        torch.testing.assert_close(x.T @ x, y.T @ y, atol=1e-4, rtol=0)
        assert float((x - y).abs().max()) > 0.1


def test_family_wise_p_counts_the_draws_that_reach_a_score():
    scores = torch.tensor([0.9, 0.5, 0.1]).double()
    assert nulls.family_wise_p(scores, [0.2, 0.5, 0.3]).tolist() == [0.25, 0.5, 1.0]


def test_false_discovery_rate_is_null_over_found_and_monotone():
    scores = torch.tensor([0.1, 0.9, 0.5, 0.5, 0.3]).double()
    null = [torch.tensor([0.5, 0.2]).double(), torch.tensor([0.05]).double()]
    # at 0.9: (1+0)/2/1; at 0.5: (1+1)/2/3; at 0.3: 1/4; at 0.1: 1.5/5
    wanted = [0.3, 0.25, 0.25, 0.25, 0.25]
    assert nulls.false_discovery_rate(scores, null).tolist() == pytest.approx(wanted)
    assert nulls.false_discovery_rate(scores[:0], null).tolist() == []


def test_under_noise_q_is_rarely_small():
    generator = torch.Generator().manual_seed(0)
    wrong = 0
    for _ in range(100):
        draws = torch.randn(20, 30, generator=generator).double()
        wrong += bool((nulls.false_discovery_rate(draws[0], list(draws[1:])) < 0.1).any())
    assert wrong <= 10


def test_jaccard():
    assert nulls.jaccard({(1, 2), (3, 4)}, {(1, 2), (5, 6)}) == pytest.approx(1 / 3)
    assert nulls.jaccard(set(), set()) == 0.0


def test_expected_chains_of_noise_by_simulation():
    generator = torch.Generator().manual_seed(1)
    sizes, draws, total = (20, 15, 10), 400, 0
    for _ in range(draws):
        tables = [torch.rand(20, n, generator=generator).double() for n in sizes[1:]]
        matched = [best_buddies(t).any(1) for t in tables]
        total += int((matched[0] & matched[1]).sum())
    assert total / draws == pytest.approx(expected_chains(20, sizes[1:]), rel=0.1)


def test_method_correlation_of_a_constant_is_zero():
    x = torch.stack([torch.ones(5), torch.arange(5.0)]).double()
    assert method.correlations(x, x).tolist() == [[0.0, 0.0], [0.0, pytest.approx(1.0)]]
