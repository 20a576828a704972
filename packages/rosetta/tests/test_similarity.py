"""The fast route against the equations of `method`, in float64: every grid, memory, metric and batch."""

import pytest
import torch
from paperkit import UserError
from rosetta import method
from rosetta.maps import Maps
from rosetta.moments import CrossMoments, Moments
from rosetta.similarity import Options, centred, interpolation, prepare, table, tiles

EXACT = Options(double=True)


def maps(name: str, shapes: list[tuple[int, int, int]], images: int = 12, seed: int = 0) -> Maps:
    generator = torch.Generator().manual_seed(seed)
    data = [torch.randn(images, *shape, generator=generator, dtype=torch.float64) + 3 for shape in shapes]
    return Maps(name, [f"layer{i}" for i in range(len(data))], data)


A = maps("a", [(3, 8, 8), (2, 4, 4), (2, 5, 7)], seed=1)
B = maps("b", [(4, 4, 4), (3, 7, 5), (2, 8, 8), (2, 1, 1)], seed=2)


def oracle(a: Maps, b: Maps, similarity=method.similarity) -> torch.Tensor:
    return torch.cat([torch.cat([similarity(x[:], y[:]) for y in b.data], 1) for x in a.data])


@pytest.mark.parametrize("memory", [1, 512])
def test_every_pair_of_grids_equals_explicit_resizing(memory):
    found = table(A, B, Options(double=True, memory=memory))
    torch.testing.assert_close(found, oracle(A, B), atol=1e-12, rtol=0)


def test_float32_products_are_close():
    assert float((table(A, B) - oracle(A, B)).abs().max()) < 1e-6


def test_spearman_equals_scipy():
    from scipy.stats import spearmanr

    found = table(A, B, Options("spearman"))
    torch.testing.assert_close(found, oracle(A, B, method.rank_similarity), atol=1e-12, rtol=0)
    x, y = method.on_common_grid(A.data[0][:], B.data[1][:])
    assert float(found[0, 4]) == pytest.approx(float(spearmanr(x[0], y[0]).statistic), abs=1e-12)


def test_ranks_share_ties():
    x = torch.tensor([[0.0, 0.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    assert method.ranks(x).tolist() == [[2.0, 2.0, 5.0, 4.0, 2.0]]


@pytest.mark.parametrize("batch", [3, 6])
def test_official_metric_has_the_released_order_of_operations(batch):
    found = table(A, B, Options("official", batch=batch, double=True))
    wanted = oracle(A, B, lambda x, y: method.official_similarity(x, y, batch))
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def test_official_metric_depends_on_the_batch_and_the_global_one_does_not():
    trend = maps("trend", [(3, 4, 4)], seed=3)
    trend.data[0].add_(torch.arange(12)[:, None, None, None])  # batches of different means
    official = [table(trend, B, Options("official", batch=b)) for b in (2, 12)]
    assert float((official[0] - official[1]).abs().max()) > 0.05
    small = Options(double=True, memory=1)
    assert float((table(trend, B, small) - table(trend, B, EXACT)).abs().max()) < 1e-12


def test_permuting_channels_permutes_the_table():
    order = torch.randperm(3, generator=torch.Generator().manual_seed(0))
    shuffled = A.with_data([A.data[0][:, order], *A.data[1:]])
    assert torch.equal(table(shuffled, B, EXACT)[:3], table(A, B, EXACT)[:3][order])


def test_adjoint_identity():
    generator = torch.Generator().manual_seed(0)
    for small, large in ((4, 8), (5, 7), (28, 36), (1, 6)):
        u = interpolation(small, large)
        x, y = torch.randn(2, large, generator=generator, dtype=torch.float64), torch.randn(small).double()
        torch.testing.assert_close(x @ (u @ y), (x @ u) @ y)
        resized = torch.nn.functional.interpolate(y[None, None], large, mode="linear", align_corners=False)
        torch.testing.assert_close(u @ y, resized[0, 0])
        assert float((u.sum(1) - 1).abs().max()) < 1e-12  # constants stay, so a shift can be undone


def test_means_of_resized_maps_are_those_of_explicit_resizing():
    x = B.data[1][:]
    found = prepare(*centred(x, double=True), (8, 8)).moments
    resized = method.resized(x, 8, 8).transpose(0, 1).flatten(1)
    wanted = Moments.of(resized)
    torch.testing.assert_close(found.mean, wanted.mean)
    torch.testing.assert_close(found.squares, wanted.squares)


def test_a_mean_of_ten_thousand_deviations_costs_no_digits():
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(1000, 1, 32, 32, generator=generator)  # a million samples
    x = torch.cat([shared, shared + torch.randn(shared.shape, generator=generator)], 1) + 1e4
    y = (shared + 0.5 * torch.randn(shared.shape, generator=generator)) - 1e4
    found = table(Maps("x", ["l"], [x]), Maps("y", ["l"], [y]), Options(memory=64))
    assert float((found - method.similarity(x, y)).abs().max()) < 1e-5


def test_merging_in_any_order_gives_the_same_moments():
    generator = torch.Generator().manual_seed(0)
    pieces = [torch.randn(2, 3, n, generator=generator, dtype=torch.float64) + 1e4 for n in (5, 1, 9, 4)]

    def crossed(order):
        total = None
        for i in order:
            x, y = pieces[i]
            a, b = Moments.of(x), Moments.of(y)
            products = (x - a.mean[:, None]) @ (y - b.mean[:, None]).T
            piece = CrossMoments(a, b, products)
            total = piece if total is None else (total.merge(piece), total)[1]
        return total

    one, other = crossed([0, 1, 2, 3]), crossed([3, 1, 0, 2])
    x, y = torch.cat(pieces, -1)
    torch.testing.assert_close(one.correlation(), other.correlation(), atol=1e-10, rtol=0)
    torch.testing.assert_close(one.correlation(), method.correlations(x, y), atol=1e-10, rtol=0)


def test_dead_units_are_found_and_left_out():
    a = A.with_data([A.data[0].clone(), *A.data[1:]])
    a.data[0][:, 1] = 7.0
    stats = a.measure()
    assert stats.dead.nonzero().flatten().tolist() == [1]
    assert float(stats.mean[1]) == 7.0
    assert 1 not in torch.cat([tile.rows for tile in tiles(a, B, EXACT)]).tolist()
    alive = a.alive.nonzero().flatten()
    torch.testing.assert_close(table(a, B, EXACT)[alive], oracle(a, B)[alive], atol=1e-12, rtol=0)


def test_activations_that_are_not_finite_are_named():
    bad = A.with_data([*A.data[:2], A.data[2].clone()])
    bad.data[2][5, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="a, layer layer2: activations that are not finite on images 4 to 7"):
        bad.measure(chunk=4)


def test_a_memory_too_small_says_how_much_is_needed():
    wide = Maps("wide", ["l"], [torch.zeros(2, 32, 256, 256)])
    with pytest.raises(UserError, match=r"--memory 1 does not hold one tile of wide x wide: give \d+"):
        next(tiles(wide, wide, Options(memory=1)))


def test_different_probes_are_refused():
    with pytest.raises(UserError, match="a and b saw different probes, 12 and 5 images"):
        table(A, B.part(slice(0, 5)))
    with pytest.raises(UserError, match="12 images do not divide by 5"):
        table(A, B, Options("official", batch=5))


def test_blocks_hold_every_unit_once():
    for width in (1, 2, 5, 100):
        blocks = B.blocks(width)
        units = torch.cat([block.units for block in blocks])
        assert sorted(units.tolist()) == list(range(B.units))
        assert max(len(block.units) for block in blocks) <= width
        for block in blocks:
            wanted = torch.stack([B.data[B.place(u)[0]][:, B.place(u)[1]] for u in block.units.tolist()], 1)
            assert torch.equal(B.read(block, slice(None)), wanted)
