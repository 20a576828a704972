"""The equations: positions, noise, closed forms, schedules; all against slow references in float64."""

import math

import pytest
import torch
from flexpredict import diagnostics, method, theory, theory_claim
from flexpredict.claims import covariance_errors
from flexpredict.method import StochasticPosition
from paperkit import UserError
from torch import nn

torch.manual_seed(0)
DOUBLE = torch.float64
PROJECT = nn.Linear(12, 8).double()


def position(**words) -> StochasticPosition:
    return StochasticPosition((3, 5), 8, 12, **words).double()


PLACES = torch.tensor([[[0, 7], [14, 3]], [[1, 2], [8, 8]]])


def normal_for(module: StochasticPosition) -> torch.Tensor:
    return torch.randn(2, *module.noise_shape(2, 2), dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


# ---- psi


def test_sincos_is_the_formula_channel_by_channel():
    found = method.sincos_grid(2, 3, 8).double()
    for row in range(2):
        for column in range(3):
            slow = []
            for coordinate in (column, row):
                angles = [coordinate / 10_000 ** (i / 2) for i in range(2)]
                slow += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(
                found[3 * row + column], torch.tensor(slow, dtype=DOUBLE), atol=1e-6, rtol=0
            )


def test_position_has_half_its_width_as_energy():
    psi = method.sincos_grid(14, 14, 384)
    torch.testing.assert_close(psi.square().sum(1), torch.full((196,), 192.0))


def test_width_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="divide by 4"):
        method.sincos_grid(2, 2, 10)


# ---- psi^ = psi + A n


def test_tied_noise_passes_the_weight_and_not_the_bias():
    module = position(std=0.3)
    normal = normal_for(module)
    found = module(PLACES, PROJECT, normal)
    for b in range(2):
        for m in range(2):
            for t in range(2):
                slow = module.psi[PLACES[b, m, t]] + 0.3 * PROJECT.weight @ normal[b, m, t]
                torch.testing.assert_close(found[b, m, t], slow)


def test_mode_official_adds_the_bias_with_and_without_noise():
    module, paper = position(mode="official"), position()
    normal = normal_for(module)
    torch.testing.assert_close(module(PLACES, PROJECT, normal), paper(PLACES, PROJECT, normal) + PROJECT.bias)
    module.std = 0.0
    torch.testing.assert_close(module(PLACES, PROJECT, normal), module.psi[PLACES] + PROJECT.bias)


def test_other_sources():
    fixed, untied, jitter = (position(source=name, std=0.5) for name in ("fixed", "untied", "coordinate"))
    psi = fixed.psi[PLACES]
    normal = normal_for(fixed)
    torch.testing.assert_close(fixed(PLACES, PROJECT, normal), psi + 0.5 * normal)
    normal = normal_for(untied)
    torch.testing.assert_close(untied(PLACES, PROJECT, normal), psi + 0.5 * normal @ untied.own.weight.T)
    normal = normal_for(jitter)
    moved = torch.stack([PLACES // 5, PLACES % 5], -1).double() + 0.5 * normal
    torch.testing.assert_close(jitter(PLACES, PROJECT, normal), method.sincos(moved, 8))
    assert torch.equal(position(source="none")(PLACES, PROJECT), psi)


def test_scope_block_moves_all_tokens_of_a_block_alike():
    module = position(scope="block")
    off = module(PLACES, PROJECT, normal_for(module)) - module.psi[PLACES]
    torch.testing.assert_close(off[:, :, 0], off[:, :, 1])
    assert not torch.allclose(off[:, 0], off[:, 1])


def test_noise_is_off_in_evaluation_unless_given():
    module = position().eval()
    assert torch.equal(module(PLACES, PROJECT), module.psi[PLACES])
    assert not torch.equal(module(PLACES, PROJECT, normal_for(module)), module.psi[PLACES])
    assert not torch.equal(module.train()(PLACES, PROJECT), module.psi[PLACES])


def test_official_knows_tied_noise_only():
    with pytest.raises(UserError, match="mode paper"):
        position(mode="official", source="untied")


def test_covariance_and_independence_of_drawn_noise():
    ratios = covariance_errors(0, 20_000)
    assert max(ratios.values()) <= 1, ratios


def test_a_variance_taken_for_a_deviation_is_noticed(monkeypatch):
    """The negative control of the covariance check: std 0.25 read as variance."""
    monkeypatch.setattr(method, "covariance", lambda a, std: std * a @ a.T)
    assert covariance_errors(0, 20_000)["covariance"] > 1


def test_keyed_noise_belongs_to_its_row():
    whole = method.keyed_normal(range(6), (2, 3), 5, 9)
    assert torch.equal(method.keyed_normal([4, 1], (2, 3), 5, 9), whole[[4, 1]])
    assert not torch.equal(method.keyed_normal(range(6), (2, 3), 5, 10), whole)


def test_noise_to_signal_of_the_published_sizes():
    """Spec 2: 0.038 for ViT-B at initialisation and std 0.25."""
    a = torch.randn(384, 768, generator=torch.Generator().manual_seed(0)) * 0.02
    assert float(method.noise_to_signal(a, 0.25)) == pytest.approx(0.0385, abs=0.001)
    assert float(method.noise_to_signal(a, method.std_for(0.1, a))) == pytest.approx(0.1, rel=1e-5)


# ---- loss, EMA, schedules


def test_loss_is_smooth_l1_of_layer_normed_features():
    features = torch.randn(2, 6, 4, dtype=DOUBLE)
    wanted = method.target(features)
    slow = (features - features.mean(-1, keepdim=True)) / (
        features.var(-1, keepdim=True, unbiased=False) + 1e-5
    ).sqrt()
    torch.testing.assert_close(wanted, slow)
    places = torch.tensor([[[0, 5]], [[3, 3]]])
    hidden = method.gather(wanted, places)
    assert torch.equal(hidden[1, 0, 0], wanted[1, 3])
    guess = hidden + torch.tensor([0.5, -2.0, 0.0, 3.0])
    assert float(method.prediction_loss(guess, hidden)) == pytest.approx((0.125 + 1.5 + 0 + 2.5) / 4)


def test_average_is_a_running_mean():
    online, average = nn.Linear(3, 2), nn.Linear(3, 2)
    before = [p.clone() for p in average.parameters()]
    method.update_average(average, online, 0.9)
    for now, old, new in zip(average.parameters(), before, online.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * new)
    method.update_average(average, online, 0.0)
    torch.testing.assert_close(average.weight, online.weight)


def test_schedules_at_their_ends():
    rate = [method.learning_rate(step, 100, 10, 2e-4, 8e-4, 1e-4) for step in range(1, 101)]
    assert rate[0] == pytest.approx(2e-4 + 6e-4 / 10)
    assert rate[9] == pytest.approx(8e-4)
    assert rate[-1] == pytest.approx(1e-4)
    assert rate[54] == pytest.approx((8e-4 + 1e-4) / 2)
    assert method.cosine(0, 10, 0.04, 0.4) == pytest.approx(0.04)
    assert method.cosine(10, 10, 0.04, 0.4) == pytest.approx(0.4)
    assert method.momentum(1, 100, 0.996, 1.0) == 0.996
    assert method.momentum(100, 100, 0.996, 1.0) == pytest.approx(0.99996)


# ---- closed forms


@pytest.mark.parametrize("name", [name for name in theory_claim.CHECKS if "Bayes" not in name])
def test_closed_forms(name):
    check, bound = theory_claim.CHECKS[name]
    assert check(7) <= bound


def test_posterior_is_bayes_rule_written_out():
    psi, a = torch.randn(4, 3, dtype=DOUBLE), torch.randn(3, 3, dtype=DOUBLE)
    sigma = a @ a.T + torch.eye(3, dtype=DOUBLE)
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=DOUBLE)
    r = torch.randn(5, 3, dtype=DOUBLE)
    law = [torch.distributions.MultivariateNormal(x, sigma) for x in psi]
    joint = torch.stack([p * each.log_prob(r).exp() for p, each in zip(prior, law, strict=True)], 1)
    torch.testing.assert_close(theory.posterior(r, psi, sigma, prior), joint / joint.sum(1, keepdim=True))


def test_posterior_without_noise_is_certain():
    psi = method.sincos_grid(2, 2, 8).double()
    found = theory.posterior(psi, psi, torch.zeros(8, 8, dtype=DOUBLE))
    torch.testing.assert_close(found, torch.eye(4, dtype=DOUBLE))


# ---- diagnostics


def test_rankme_counts_equal_directions():
    x = torch.linalg.qr(torch.randn(50, 6, dtype=DOUBLE)).Q
    assert diagnostics.rankme(x, centred=False) == pytest.approx(6, abs=1e-3)
    assert diagnostics.rankme(x[:, :1] @ torch.ones(1, 6, dtype=DOUBLE)) == pytest.approx(1, abs=1e-3)


def test_target_variance_between_images():
    x = torch.randn(40, 5, 7)
    found = diagnostics.target_variance(diagnostics.moments(x))
    torch.testing.assert_close(found, x.var(0, unbiased=False).mean())
    alike = diagnostics.moments(x[:1].expand(9, -1, -1))
    assert float(diagnostics.target_variance(alike)) == pytest.approx(0, abs=1e-6)
