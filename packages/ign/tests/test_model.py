"""The networks: shapes, the paper's layer table, role-wise batch norm against the framework's."""

import pytest
import torch
from ign.config import TrainConfig
from ign.model import (
    Network,
    RoleNorm,
    UNet,
    batch_statistics,
    build,
    copy_statistics,
    estimate_statistics,
    network,
    update_average,
)
from paperkit import UserError
from torch import nn


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [("mlp", (1, 8, 8)), ("mlp", (3, 5, 7)), ("hybrid", (1, 28, 28)), ("hybrid", (3, 8, 12)),
     ("dcgan", (1, 28, 28)), ("dcgan", (3, 32, 32)), ("dcgan", (3, 64, 64)), ("dcgan", (1, 8, 8)),
     ("unet", (1, 8, 8)), ("unet", (3, 12, 20))],
)  # fmt: skip
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_maps_data_space_to_itself(kind, shape, norm, dropout):
    net = build(kind, shape, 4, 6, norm, dropout=dropout)
    out = net(torch.randn(3, *shape), ("x",))
    assert out.shape == (3, *shape)
    assert out.abs().max() <= 1


def test_unet_has_the_documented_widths_and_skips():
    net = build("unet", (3, 12, 16), 8, 5)
    assert isinstance(net, UNet)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels) for m in convs] == [
        (3, 8), (8, 16), (16, 32), (64, 16), (32, 8), (16, 3),
    ]  # fmt: skip
    assert [m.out_features for m in net.modules() if isinstance(m, nn.Linear)] == [5, 32 * 3 * 4]
    assert [m.weight.numel() for m in net.norms()] == [16, 32, 32 * 3 * 4, 16, 8]


def test_unet_sees_its_input_past_the_code():
    """With the middle cut off, the output still depends on the input: through the skips."""
    torch.manual_seed(0)
    net = build("unet", (1, 8, 8), 4, 3, "none")
    nn.init.zeros_(net.middle[1].weight)
    one, other = net(torch.zeros(1, 1, 8, 8), ("x",)), net(torch.ones(1, 1, 8, 8), ("x",))
    assert float((one - other).detach().abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("kind", "whole", "single"), [("mlp", 0, 4), ("hybrid", 3, 3), ("dcgan", 3, 0), ("unet", 5, 1)]
)
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_dropout_follows_every_hidden_activation(kind, whole, single, norm):
    side = 16 if kind == "dcgan" else 8
    net = build(kind, (1, side, side), 4, 6, norm, dropout=0.3)
    hidden = [m for m in net.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]
    maps = [m for m in hidden if isinstance(m, nn.Dropout2d)]
    if kind == "dcgan":
        whole = len([m for m in net.encoder if isinstance(m, nn.LeakyReLU)]) + len(
            [m for m in net.decoder if isinstance(m, nn.ReLU)]
        )
    assert (len(maps), len(hidden) - len(maps)) == (whole, single)
    assert {m.p for m in hidden} == {0.3}


def test_paper_network_has_the_widths_of_appendix_c():
    net = build("dcgan", (3, 64, 64), 64, 512)
    convs = [m for m in net.encoder if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in convs] == [
        (3, 64), (64, 128), (128, 256), (256, 512), (512, 512),
    ]  # fmt: skip
    backs = [m for m in net.decoder if isinstance(m, nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels) for m in backs] == [
        (512, 512), (512, 256), (256, 128), (128, 64), (64, 3),
    ]  # fmt: skip
    assert {m.kernel_size for m in convs + backs} == {(4, 4)}
    # Norm on all but the first and last layer of either half.
    assert [m.weight.numel() for m in net.encoder if isinstance(m, RoleNorm)] == [128, 256, 512]
    assert [m.weight.numel() for m in net.decoder if isinstance(m, RoleNorm)] == [512, 256, 128, 64]


def test_dcgan_initialisation():
    torch.manual_seed(0)
    net = build("dcgan", (3, 64, 64), 64, 512, init="dcgan")
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert all(float(m.weight.detach().std()) == pytest.approx(0.02, rel=0.05) for m in layers)
    assert all(m.bias is None or not m.bias.any() for m in layers)


@pytest.mark.parametrize(
    ("kind", "shape", "word"),
    [
        ("hybrid", (1, 10, 10), "divisible by 4"),
        ("unet", (1, 8, 10), "divisible by 4"),
        ("dcgan", (1, 28, 32), "square"),
        ("dcgan", (1, 40, 40), "28, 32"),
    ],
)
def test_sizes_that_do_not_fit(kind, shape, word):
    with pytest.raises(UserError, match=word):
        build(kind, shape, 4, 4)


# ---- role norm


@pytest.mark.parametrize("space", [(), (5, 4)])
def test_role_norm_is_batch_norm(space):
    ours, theirs = RoleNorm(3), (nn.BatchNorm2d if space else nn.BatchNorm1d)(3)
    ours.momentum = 0.1
    for seed in range(3):
        h = torch.randn(6, 3, *space, generator=torch.Generator().manual_seed(seed)) * 2 + 1
        torch.testing.assert_close(ours(h, ("z",)), theirs(h))
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(h, ("z",)), theirs(h))
    assert not torch.equal(ours(h, ("x",)), theirs(h))


def test_roles_side_by_side_are_roles_one_by_one():
    norm = RoleNorm(3)
    x, z = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2) * 5 + 2
    for mode in (True, False):
        norm.train(mode)
        norm.mean.normal_(), norm.var.uniform_(0.5, 2)
        both = norm(torch.cat([x, z]), ("x", "z"))
        torch.testing.assert_close(both, torch.cat([norm(x, ("x",)), norm(z, ("z",))]))


def test_training_leaves_statistics_alone_unless_told():
    norm = RoleNorm(2)
    before = norm.mean.clone()
    norm(torch.randn(8, 2), ("x",))
    assert torch.equal(norm.mean, before)


def test_common_statistics_when_not_split():
    norm = RoleNorm(2, split=False)
    norm.momentum = 1.0
    norm(torch.randn(8, 2) + 3, ("fz",))
    norm.eval()
    h = torch.randn(4, 2)
    torch.testing.assert_close(norm(h, ("x",)), norm(h, ("z",)))


def test_common_statistics_are_those_of_batch_norm_in_training():
    """What `statistics: common` accumulates over x, z and f(z) is what the framework's layer does."""
    ours, theirs = network(TrainConfig(statistics="common"), (1, 4, 4)).norms()[0], nn.BatchNorm1d(256)
    assert (ours.split, ours.momentum) == (False, 0.1)
    for seed, role in enumerate(("x", "z", "fz", "x")):
        h = torch.randn(6, 256, generator=torch.Generator().manual_seed(seed)) * 2 + seed
        torch.testing.assert_close(ours(h, (role,)), theirs(h))
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(h, ("z",)), theirs(h))
    other = RoleNorm(256, split=False)
    copy_statistics(other, ours)
    assert torch.equal(other.mean, ours.mean)


def test_batch_statistics_keep_nothing_and_drop_nothing():
    net = build("mlp", (1, 4, 4), 8, 2, dropout=0.5).eval()
    for norm in net.norms():
        norm.momentum = 0.1
    x = torch.randn(6, 1, 4, 4)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with batch_statistics(net):
        inside = net(x, ("x",))
        torch.testing.assert_close(net(x, ("x",)), inside)
    assert not any(module.training for module in net.modules())
    assert {norm.momentum for norm in net.norms()} == {0.1}
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert float((inside - net(x, ("x",))).detach().abs().max()) > 1e-3


@torch.no_grad()
def test_estimated_statistics_make_eval_equal_training_on_the_same_batch():
    torch.manual_seed(0)
    net = build("mlp", (1, 4, 4), 16, 4).double()
    x, z = torch.rand(200, 1, 4, 4).double(), torch.randn(200, 1, 4, 4).double()
    estimate_statistics(net, [(x, z)])
    assert net.training
    fx, fz = net(x, ("x",)), net(z, ("z",))
    ffz = net(fz, ("fz",))
    net.eval()
    # Running variances are unbiased, batch variances are not: equal up to 1 / (2 n).
    for role, given, wanted in (("x", x, fx), ("z", z, fz), ("fz", fz, ffz)):
        assert float((net(given, (role,)) - wanted).abs().max()) < 0.02
    assert float((net(z, ("x",)) - fz).abs().max()) > 0.05


def test_average_moves_by_the_decay():
    one, other = build("mlp", (1, 4, 4), 8, 2), build("mlp", (1, 4, 4), 8, 2)
    before = [p.clone() for p in one.parameters()]
    update_average(one, other, 0.75)
    for new, old, target in zip(one.parameters(), before, other.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * target)


def test_group_norm_net_has_no_memory():
    assert isinstance(build("mlp", (1, 4, 4), 8, 2, "group"), Network)
    assert build("mlp", (1, 4, 4), 8, 2, "group").norms() == []
