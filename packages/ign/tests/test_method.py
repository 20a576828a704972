"""The equations: closed forms, which gradient goes where, clamp bounds, noise moments."""

import copy

import pytest
import torch
from ign.method import (
    Naive,
    Noise,
    Objective,
    Shared,
    applications,
    attribute,
    distance,
    drift,
    move,
    path,
    self_conjugate,
    single_graph,
    smooth_clamp,
    tightness,
)
from ign.model import build
from torch import nn


class Scale(nn.Module):
    """f(y) = w y: every loss and gradient has a closed form."""

    def __init__(self, w: float):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, y, roles):
        return self.w * y


def engines(net):
    return [Naive(net, copy.deepcopy(net)), Shared(net), Shared(net, joint=True)]


def batch(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=draw, dtype=torch.float64) * 2 - 1
    return x, torch.randn(shape, generator=draw, dtype=torch.float64)


def gradient(net, fill):
    net.zero_grad()
    fill()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        # d(x) = (w-1)^2 x^2; d/dw = 2 (w-1) x^2
        (Objective(1, 0, 0), lambda w, x, z: 2 * (w - 1) * x.square().mean()),
        # h = w z moves, the outer w is frozen: d/dw (w'-1)^2 w^2 z^2 = 2 (w-1)^2 w z^2
        (Objective(0, 1, 0), lambda w, x, z: 2 * (w - 1) ** 2 * w * z.square().mean()),
        # h is frozen, the outer w moves: d/dw -(w-1)^2 h^2 = -2 (w-1) w^2 z^2
        (Objective(0, 0, 1), lambda w, x, z: -2 * (w - 1) * w**2 * z.square().mean()),
    ],
    ids=["rec", "idem", "tight"],
)
def test_each_loss_trains_its_own_application_only(which, objective, expected):
    x, z = batch(5, 1, 2, 2)
    net = Scale(0.7)
    found = gradient(net, lambda: engines(net)[which].step(x, z, objective))
    torch.testing.assert_close(found[0], expected(0.7, x, z), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("routing", "objective", "expected"),
    [
        # The outer w moves too: d/dw (w-1)^2 w^2 z^2 = 2 (w-1) w^2 z^2 + 2 (w-1)^2 w z^2
        (
            "idem_to_outer", Objective(0, 1, 0),
            lambda w, z: (2 * (w - 1) * w**2 + 2 * (w - 1) ** 2 * w) * z.square().mean(),
        ),
        # The inner w moves too, the sign is L_tight's.
        (
            "tight_to_inner", Objective(0, 0, 1),
            lambda w, z: -(2 * (w - 1) * w**2 + 2 * (w - 1) ** 2 * w) * z.square().mean(),
        ),
        # A wrong routing of one loss leaves the others right.
        ("idem_to_outer", Objective(0, 0, 1), lambda w, z: -2 * (w - 1) * w**2 * z.square().mean()),
        ("tight_to_inner", Objective(0, 1, 0), lambda w, z: 2 * (w - 1) ** 2 * w * z.square().mean()),
    ],
)  # fmt: skip
def test_wrong_routings_of_the_ablation(routing, objective, expected):
    x, z = batch(5, 1, 2, 2)
    net = Scale(0.7)
    naive = Naive(net, copy.deepcopy(net), routing)
    found = gradient(net, lambda: naive.step(x, z, objective))
    torch.testing.assert_close(found[0], expected(0.7, z), rtol=1e-12, atol=0)


@pytest.mark.parametrize("which", range(3))
def test_players_share_out_the_losses(which):
    """A: rec and tight; B: idem. Their gradients at one point add up to the joint one."""
    x, z = batch(5, 1, 2, 2)
    net, objective = Scale(0.7), Objective(2.0, 3.0, 0.4)
    a, b = objective.players()
    assert (a.rec, a.idem, a.tight) == (2.0, 0.0, 0.4)
    assert (b.rec, b.idem, b.tight) == (0.0, 3.0, 0.0)
    apart = [gradient(net, lambda p=p: engines(net)[which].step(x, z, p)) for p in (a, b)]
    whole = gradient(net, lambda: engines(net)[which].step(x, z, objective))
    torch.testing.assert_close(apart[0] + apart[1], whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(apart[1][0], 6 * (0.7 - 1) ** 2 * 0.7 * z.square().mean())


@pytest.mark.parametrize("which", range(3))
def test_reconstruction_of_another_target(which):
    """D(w x, t): d/dw = 2 x (w x - t)."""
    x, z = batch(5, 1, 2, 2)
    target = batch(5, 1, 2, 2, seed=1)[0]
    net = Scale(0.7)
    found = gradient(net, lambda: engines(net)[which].step(x, z, Objective(1, 0, 0), target))
    torch.testing.assert_close(found[0], (2 * x * (0.7 * x - target)).mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(
    "objective",
    [
        Objective(),
        Objective(tight=0.0),
        Objective(20, 20, 2.5, "l1"),
        Objective(clamp=1.5),
        Objective(clamp=1.5, clamp_gradient=True),
        Objective(clamp=0.5, reference="z"),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_engines_give_one_gradient(norm, objective, dtype, tolerance):
    torch.manual_seed(0)
    net = build("dcgan", (2, 8, 8), 4, 5, norm).to(dtype)
    x, z = (part.to(dtype) for part in batch(6, 2, 8, 8))
    values = [engine.step(x, z, objective) for engine in engines(net)]
    naive, shared, joint = (
        gradient(net, lambda engine=engine: engine.step(x, z, objective)) for engine in engines(net)
    )
    assert (shared - naive).norm() <= tolerance * naive.norm()
    assert (joint - naive).norm() <= tolerance * naive.norm()
    for value in values[1:]:
        torch.testing.assert_close(value.total(objective), values[0].total(objective), rtol=tolerance, atol=0)
    if not objective.clamp:
        oracle = gradient(net, lambda: single_graph(net, x, z, objective).backward())
        assert (naive - oracle).norm() <= tolerance * oracle.norm()


def test_frozen_copy_gets_no_gradient_and_is_refreshed():
    net = Scale(0.7)
    naive = Naive(net, copy.deepcopy(net))
    x, z = batch(3, 1, 2, 2)
    with torch.no_grad():
        net.w.fill_(0.4)
    naive.step(x, z, Objective())
    assert naive.frozen.w.grad is None
    assert float(naive.frozen.w) == pytest.approx(0.4)


def test_idempotent_maps_cost_nothing():
    """f = identity: all losses 0. A constant f: L_idem and L_tight are 0, L_rec is not."""
    x, z = batch(4, 1, 3, 3)
    identity = Shared(Scale(1.0)).step(x, z, Objective())
    assert (identity.rec, identity.idem, identity.tight) == (0, 0, 0)
    constant = Shared(Scale(0.0)).step(x, z, Objective())
    assert (constant.idem, constant.tight) == (0, 0)
    assert constant.rec == pytest.approx(float(x.square().mean()))


def test_loss_does_not_depend_on_batch_order_without_batch_norm():
    torch.manual_seed(0)
    net = build("mlp", (1, 4, 4), 8, 3, "group").double()
    x, z = batch(6, 1, 4, 4)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    objective = Objective(clamp=1.5)
    one = Shared(net).step(x, z, objective).total(objective)
    other = Shared(net).step(x[order], z[order], objective).total(objective)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_distance_means_over_elements():
    a, b = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]])
    assert distance(a, b, "l1").tolist() == [2.0]
    assert distance(a, b, "l2").tolist() == [5.0]


def test_clamp_is_the_identity_near_zero_and_bounded():
    level = torch.full((4,), 0.3, dtype=torch.float64)
    loss = torch.tensor([-1e-4, 1e-4, -50.0, 50.0], dtype=torch.float64)
    clamped = smooth_clamp(loss, level, 1.5)
    torch.testing.assert_close(clamped[:2], loss[:2], rtol=1e-6, atol=0)
    torch.testing.assert_close(clamped[2:], torch.tensor([-0.45, 0.45], dtype=torch.float64))
    free = torch.linspace(-3, 3, 7, dtype=torch.float64)
    assert bool((smooth_clamp(free, level[:1].expand(7), 1.5).abs() <= 0.45).all())


def test_clamp_of_a_perfect_reconstruction_is_zero_not_nan():
    assert smooth_clamp(torch.tensor([0.2]), torch.tensor([0.0]), 1.5).item() == pytest.approx(0.0)


def test_tightness_is_outward():
    outward, level = torch.tensor([0.2]), torch.tensor([1.0])
    assert tightness(outward, level, Objective()).item() == pytest.approx(-0.2)
    assert -1.5 <= tightness(outward * 1e3, level, Objective(clamp=1.5)).item() < -1.4


def test_clamp_level_from_noise_carries_no_gradient():
    with pytest.raises(ValueError, match="reference x"):
        Objective(clamp=1.5, reference="z", clamp_gradient=True)


def test_applications_and_drift():
    net = Scale(0.5)
    y = torch.full((2, 1, 1, 1), 8.0, dtype=torch.float64)
    assert [each.flatten()[0].item() for each in applications(net, y, 3)] == [4.0, 2.0, 1.0]
    assert drift(net, y).tolist() == [16.0, 16.0]


# ---- moving in noise space


def test_a_straight_path_is_even_and_ends_where_it_should():
    a, b = batch(3, 2, 4, 4)
    points = path(a, b, 5)
    assert points.shape == (3, 5, 2, 4, 4)
    torch.testing.assert_close(points[:, 2], (a + b) / 2)
    torch.testing.assert_close(points[:, 0], a)
    torch.testing.assert_close(points[:, -1], b)


def test_an_arc_keeps_length_and_turns_evenly():
    a, b = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([[0.0, 2.0]]).double()
    angle = torch.linspace(0, torch.pi / 2, 4).double()
    expected = 2 * torch.stack([angle.cos(), angle.sin()], 1)[None]
    torch.testing.assert_close(path(a, b, 4, spherical=True), expected)


def test_an_arc_between_equal_points_stays_there():
    a = batch(2, 1, 3, 3)[1]
    torch.testing.assert_close(path(a, a, 3, spherical=True)[:, 1], a, rtol=1e-3, atol=0)


def test_middle_of_a_path_between_noises():
    a, b = torch.randn(2, 4000, 16, generator=torch.Generator().manual_seed(0)).double()
    assert float(path(a, b, 3)[:, 1].var()) == pytest.approx(0.5, rel=0.03)
    assert float(path(a, b, 3, spherical=True)[:, 1].var()) == pytest.approx(1.0, rel=0.03)


def test_attribute_is_the_unit_difference_of_means():
    having = torch.tensor([[3.0, 1.0], [5.0, 1.0]])
    lacking = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, -6.0]])
    assert attribute(having, lacking).tolist() == pytest.approx([0.8, 0.6])


def test_moving_keeps_the_length_of_the_noise():
    z = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    moved = move(z, torch.tensor([0.0, 1.0]), 1e6)
    torch.testing.assert_close(moved, torch.tensor([[0.0, 5.0], [0.0, 2.0]]), rtol=0, atol=1e-4)
    torch.testing.assert_close(move(z, torch.tensor([0.0, 1.0]), 0.0), z)


# ---- noise


def smooth_images(n=4000, side=8):
    """Random fields with a spectrum far from white and a mean, float64."""
    white = torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kernel = torch.exp(-torch.arange(side, dtype=torch.float64))
    spectrum = torch.fft.fft2(white) * torch.fft.fft2(kernel[:, None] * kernel[None])
    return torch.fft.ifft2(spectrum).real + 0.3


@pytest.mark.parametrize(("kind", "ratio"), [("fft", 0.5), ("fft_hermitian", 1.0)])
def test_power_of_fourier_noise_per_frequency(kind, ratio):
    """The real part halves the fluctuation off the self-conjugate bins; the Hermitian variant keeps it."""
    data = smooth_images()
    noise = Noise(kind, (1, 8, 8)).fit(data.float().split(1000))
    white = torch.randn(20_000, noise.channels, 8, 8, generator=torch.Generator().manual_seed(2))
    power = torch.fft.fft2(noise(white).double()).abs().square().mean(0)
    mean = torch.fft.fft2(data).mean(0).abs().square()
    found = (power - mean) / (torch.fft.fft2(data).abs().square().mean(0) - mean)
    own = self_conjugate((1, 8, 8))
    assert int(own.sum()) == 4
    assert found[~own].mean().item() == pytest.approx(ratio, rel=0.02)
    assert found[own].mean().item() == pytest.approx(1.0, rel=0.02)
    assert found[~own].min() > ratio * 0.85
    assert found[~own].max() < ratio * 1.15


def test_fourier_noise_has_the_data_mean():
    data = smooth_images()
    noise = Noise("fft_hermitian", (1, 8, 8)).fit([data.float()])
    white = torch.randn(20_000, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(noise(white).double().mean(0), data.mean(0), rtol=0, atol=0.05)


def test_gaussian_noise_is_what_it_is_given():
    noise = Noise("gaussian", (3, 4, 4)).fit([])
    white = torch.randn(2, 3, 4, 4)
    assert noise.channels == 3
    assert noise(white) is white
