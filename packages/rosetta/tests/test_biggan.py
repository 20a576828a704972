"""BigGAN-deep's generator: units, sizes and names of the published one on the meta device; its equations."""

import pytest
import torch
import torch.nn.functional as F
from paperkit import UserError
from rosetta import biggan
from rosetta.biggan import BLOCKS, CODE, SEEN, BigGAN, ConditionalNorm
from rosetta.hooks import discover, record
from safetensors.torch import save_file

TINY = ((16, 16, False), (16, 8, True), *[(8, 8, False)] * 6, (8, 1, True))


@pytest.fixture(scope="module")
def full() -> BigGAN:
    """Of the real size, without memory."""
    with torch.device("meta"):
        return BigGAN().eval()


def tiny(seed: int = 0) -> BigGAN:
    """Nine small blocks, so that attention stands before the last."""
    torch.manual_seed(seed)
    module = BigGAN(TINY, width=4)
    with torch.no_grad():
        for _ in range(5):  # the singular vectors of fresh weights are random until they have been iterated
            module(torch.randn(1, CODE), 0)
    return module.eval()


def test_units_and_grids_are_those_of_the_spec(full):
    network = biggan.network(full)
    with torch.device("meta"):
        discover(network, torch.zeros(1, CODE), ["*conv*"])
        assert len(network.sites) == 53
        assert sum(site.channels for site in network.sites) == 23_296
        assert [network.sites[i].grid[0] for i in (0, -1)] == [4, 256]
        discover(network, torch.zeros(1, CODE), SEEN)
    assert sum(site.channels for site in network.sites) == 23_296 - 128


def test_parameters_by_arithmetic(full):
    def block(before: int, after: int) -> int:
        inner = before // 4
        norms = 2 * 2 * CODE * (before + 3 * inner)
        return norms + before * inner + 2 * 9 * inner**2 + inner * after + 3 * inner + after

    sizes = [(128 * a, 128 * b) for a, b, _ in BLOCKS[256]]
    attention = 512 * (64 + 64 + 256) + 256 * 512 + 1
    wanted = 1000 * CODE + (2 * CODE + 1) * 16 * 2048 + sum(block(*size) for size in sizes) + attention
    wanted += 2 * 128 + 9 * 128 * 128 + 128
    assert sum(p.numel() for p in full.parameters()) == wanted


def test_names_of_the_published_file(full):
    names = set(full.state_dict())
    layer = "generator.layers.0"
    spectral = {"weight_orig", "weight_u", "weight_v"}
    own = {name for name in names if name.startswith(f"{layer}.")}
    assert own == {
        *(f"{layer}.bn_{n}.{part}" for n in range(4) for part in ("running_means", "running_vars")),
        *(f"{layer}.bn_{n}.{p}.{w}" for n in range(4) for p in ("scale", "offset") for w in spectral),
        *(f"{layer}.conv_{n}.{w}" for n in range(4) for w in spectral | {"bias"}),
    }
    outside = {name for name in names if not name.startswith("generator.layers.")}
    assert outside == {
        "embeddings.weight",
        *(f"generator.gen_z.{w}" for w in spectral | {"bias"}),
        *(f"generator.bn.{w}" for w in ("running_means", "running_vars", "weight", "bias")),
        *(f"generator.conv_to_rgb.{w}" for w in spectral | {"bias"}),
    }
    attention = {name for name in names if name.startswith("generator.layers.8.")}
    parts = ("theta", "phi", "g", "o_conv")
    assert attention == {
        "generator.layers.8.gamma",
        *(f"generator.layers.8.snconv1x1_{p}.{w}" for p in parts for w in spectral),
    }
    assert len(full.generator.layers) == 13


def test_statistics_of_a_truncation():
    norm = ConditionalNorm(3, 4).eval()
    norm.running_means += torch.arange(51.0)[:, None]
    norm.running_vars.fill_(1 - 1e-4)
    x = torch.zeros(1, 3, 2, 2)
    assert float(norm.normalised(x, 1.0)[0, 0, 0, 0]) == pytest.approx(-50)
    assert float(norm.normalised(x, 0.5)[0, 0, 0, 0]) == pytest.approx(-25, abs=1e-4)
    # A quarter above level 20 is taken as a quarter of 20 and three of 21, as released.
    assert float(norm.normalised(x, 0.405)[0, 0, 0, 0]) == pytest.approx(-20.75, abs=1e-3)
    condition = torch.randn(2, 4)
    scale, offset = (part(condition)[:, :, None, None] for part in (norm.scale, norm.offset))
    made = norm(torch.ones(2, 3, 2, 2), condition, 1.0)
    torch.testing.assert_close(made, -49 * (1 + scale).expand_as(made) + offset)


def test_a_block_adds_what_it_was_given_without_the_dropped_channels():
    module = tiny()
    block, inner = module.generator.layers[1], {}
    block.conv_3.register_forward_hook(lambda m, i, made: inner.update(made=made))
    x = torch.randn(1, 64, 3, 3)
    with torch.no_grad():
        made = block(x, torch.randn(1, 2 * CODE), 1.0)
    assert torch.equal(made, inner["made"] + F.interpolate(x[:, :32], scale_factor=2.0))


def test_attention_is_softmax_over_a_coarser_grid():
    layer = tiny().generator.layers[8]
    torch.nn.init.ones_(layer.gamma)
    x = torch.randn(1, 32, 4, 4)
    theta, phi, g, last = (getattr(layer, f"snconv1x1_{name}") for name in ("theta", "phi", "g", "o_conv"))
    with torch.no_grad():
        keys, values = F.max_pool2d(phi(x), 2), F.max_pool2d(g(x), 2)
        seen = torch.zeros(1, 16, 4, 4)
        for i in range(4):
            for j in range(4):
                weight = (theta(x)[0, :, i, j] @ keys[0].flatten(1)).softmax(0)
                seen[0, :, i, j] = values[0].flatten(1) @ weight
        torch.testing.assert_close(layer(x), x + last(seen), atol=1e-5, rtol=1e-4)


def test_weights_of_a_file_fill_it_and_its_maps_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(biggan, "WIDTH", 4)
    monkeypatch.setitem(biggan.BLOCKS, 16, TINY)
    monkeypatch.setattr(biggan, "BigGAN", lambda blocks: BigGAN(blocks, 4))
    wanted = tiny(1)
    save_file({k: v.contiguous() for k, v in wanted.state_dict().items()}, tmp_path / "weights.safetensors")
    loaded = biggan.load(tmp_path / "weights.safetensors", 16)
    codes = biggan.codes(3, torch.Generator().manual_seed(0))
    assert float(codes.abs().max()) <= 1
    with torch.no_grad():
        assert torch.equal(loaded(codes, 5, 0.4), wanted(codes, 5, 0.4))
        assert loaded(codes, 5).shape == (3, 3, 16, 16)
        assert not torch.equal(loaded(codes, 5), loaded(codes, 6))
    network = biggan.network(loaded, 5)
    discover(network, codes[:1], SEEN)
    assert record(network, codes).images == 3
    for label, truncation in ((1000, 1.0), (5, 0.0)):
        with pytest.raises(UserError, match="BigGAN draws classes 0 to 999"):
            loaded(codes, label, truncation)
