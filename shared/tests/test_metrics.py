"""The figures against torch-fidelity, closed forms and slow transcriptions in float64."""

import math

import jaxtyping
import pytest
import torch
from paperkit import UserError, metrics
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.image import FrechetInceptionDistance, KernelInceptionDistance

FIGURES = [metrics.fid, metrics.kid, metrics.precision_recall, metrics.density_coverage]


def features(n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Correlated, skewed features of n samples: nothing isotropic that would hide a transposed matrix."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64) / d**0.5
    return torch.randn(n, d, generator=generator, dtype=torch.float64).add(0.3).relu() @ mix * scale + shift


@pytest.fixture(params=[3, 64, 2048], ids=lambda rows: f"blocks of {rows}")
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "CHUNK", request.param)


# FID


@pytest.mark.usefixtures("_chunk")
def test_fid_is_that_of_torch_fidelity() -> None:
    real, fake = features(300, 16, 0), features(250, 16, 1, shift=0.1, scale=1.2)
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(real), fid_features_to_statistics(fake), verbose=False
    )["frechet_inception_distance"]
    assert metrics.fid(real, fake) == pytest.approx(theirs, rel=1e-10)


class Given(torch.nn.Module):
    """A feature extractor for torchmetrics whose features are its input."""

    num_features = 16

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all extracted features")
def test_fid_and_kid_are_those_of_torchmetrics() -> None:
    real, fake = features(300, 16, 0), features(250, 16, 1, shift=0.1, scale=1.2)
    their_fid = FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    their_kid = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=250)
    for theirs in (their_fid, their_kid):
        theirs.update(real[:250], real=True)
        theirs.update(fake, real=False)
    assert metrics.fid(real[:250], fake) == pytest.approx(float(their_fid.compute()), rel=1e-9)
    assert metrics.kid(real[:250], fake) == pytest.approx(float(their_kid.compute()[0]), rel=1e-5)


def test_frechet_of_commuting_gaussians_has_a_closed_form() -> None:
    q = torch.linalg.qr(features(6, 6, 3))[0]
    a, b = torch.arange(1.0, 7).double(), torch.tensor([5, 0, 2, 0.5, 9, 1e-6]).double()
    mean = features(2, 6, 4)
    expected = float((mean[0] - mean[1]).square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    ours = metrics.frechet(
        metrics.Gaussian(mean[0], q * a @ q.T, 10), metrics.Gaussian(mean[1], q * b @ q.T, 10)
    )
    assert ours == pytest.approx(expected, rel=1e-12)


def test_frechet_on_a_line() -> None:
    def line(mean: float, std: float) -> metrics.Gaussian:
        return metrics.Gaussian(torch.tensor([mean]).double(), torch.tensor([[std**2]]).double(), 2)

    assert metrics.frechet(line(1, 3), line(-1, 5)) == pytest.approx(2**2 + 2**2, rel=1e-14)


def test_fid_of_a_set_with_itself_is_zero_with_fewer_samples_than_dimensions() -> None:
    x = features(20, 64, 5)
    assert abs(metrics.fid(x, x)) < 1e-12 * float(x.square().sum())
    assert abs(metrics.fid(x, x.flip(0))) < 1e-12 * float(x.square().sum())


def test_fid_does_not_lose_digits_to_a_large_mean() -> None:
    real, fake = features(200, 8, 6), features(200, 8, 7)
    assert metrics.fid(real + 1e6, fake + 1e6) == pytest.approx(metrics.fid(real, fake), rel=1e-7)


def test_fid_of_single_precision_features_is_computed_in_double() -> None:
    real, fake = features(200, 8, 6).float(), features(200, 8, 7).float()
    assert metrics.fid(real, fake) == metrics.fid(real.double(), fake.double())


# KID


def slow_mmd(x: Tensor, y: Tensor) -> float:
    """Gretton's unbiased estimator, term by term."""
    d = x.shape[1]
    xx = [(float(a @ b) / d + 1) ** 3 for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    yy = [(float(a @ b) / d + 1) ** 3 for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    xy = [(float(a @ b) / d + 1) ** 3 for a in x for b in y]
    return math.fsum(xx) / len(xx) + math.fsum(yy) / len(yy) - 2 * math.fsum(xy) / len(xy)


@pytest.mark.usefixtures("_chunk")
def test_kid_is_the_unbiased_estimator_for_sets_of_different_size() -> None:
    real, fake = features(31, 5, 0), features(23, 5, 1, shift=0.2)
    assert metrics.kid(real, fake) == pytest.approx(slow_mmd(real, fake), rel=1e-11)


def test_kid_over_subsets_is_that_of_torch_fidelity_for_the_same_seed() -> None:
    real, fake = features(120, 7, 0), features(90, 7, 1, shift=0.1)
    theirs = kid_features_to_metric(
        real, fake, kid_subsets=12, kid_subset_size=40, rng_seed=7, kid_kernel="poly",
        kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, verbose=False,
    )  # fmt: skip
    ours = metrics.kid_subsets(real, fake, subsets=12, size=40, seed=7)
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)
    assert ours.std * (11 / 12) ** 0.5 == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)
    assert (ours.subsets, ours.size) == (12, 40)


def test_kid_over_one_subset_of_everything_is_the_whole_estimate() -> None:
    real, fake = features(40, 4, 0), features(40, 4, 1, shift=0.3)
    ours = metrics.kid_subsets(real, fake, subsets=1, size=40, seed=0)
    assert ours.mean == pytest.approx(metrics.kid(real, fake), rel=1e-10)
    assert ours.std == 0.0


def test_kid_of_one_distribution_is_zero_on_average_and_a_shift_is_seen() -> None:
    values = torch.tensor([metrics.kid(features(60, 4, s), features(60, 4, 1000 + s)) for s in range(200)])
    error = float(values.std() / 200**0.5)
    assert abs(float(values.mean())) < 3 * error
    assert float(values.min()) < 0 < float(values.max())
    assert metrics.kid(features(60, 4, 0), features(60, 4, 1, shift=1.0)) > 10 * float(values.std())


def test_kid_expectation_for_a_shifted_gaussian() -> None:
    """On a line, x ~ N(0, 1) and y ~ N(1, 1): E k = E (xy + 1)³ = 1 + 3 μμ' + 3 m₂m₂' + m₃m₃'."""
    expected = (1 + 0 + 3 * 1 + 0) + (1 + 3 + 3 * 4 + 16) - 2 * (1 + 0 + 3 * 2 + 0)
    generator = torch.Generator().manual_seed(0)
    draws = [
        metrics.kid(
            torch.randn(100, 1, generator=generator).double(),
            torch.randn(100, 1, generator=generator).double() + 1,
        )
        for _ in range(200)
    ]
    values = torch.tensor(draws)
    assert abs(float(values.mean()) - expected) < 3 * float(values.std()) / 200**0.5


# precision and recall, density and coverage


def slow_balls(centres: Tensor, points: Tensor, k: int) -> Tensor:
    """(n, m): is point m in the closed ball of centre n that reaches its k-th neighbour?"""
    radii = [
        sorted(math.dist(a, b) for j, b in enumerate(centres) if j != i)[k - 1] for i, a in enumerate(centres)
    ]
    return torch.tensor([[math.dist(a, p) <= r for p in points] for a, r in zip(centres, radii, strict=True)])


@pytest.mark.usefixtures("_chunk")
def test_precision_and_recall_are_those_of_torch_fidelity() -> None:
    real, fake = features(150, 5, 0), features(110, 5, 1, shift=0.3, scale=0.7)
    theirs = prc_features_to_metric(
        fake, real, prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=False, verbose=False
    )
    ours = metrics.precision_recall(real, fake, k=3)
    assert ours.precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours.recall == pytest.approx(theirs["recall"], abs=1e-6)
    assert 0.05 < ours.recall < ours.precision < 1, "the case must separate the two"


@pytest.mark.usefixtures("_chunk")
@pytest.mark.parametrize("k", [1, 5, 59])
def test_density_and_coverage_are_those_of_the_definition(k: int) -> None:
    real, fake = features(60, 4, 0), features(45, 4, 1, shift=0.2, scale=0.8)
    balls = slow_balls(real, fake, k)
    ours = metrics.density_coverage(real, fake, k=k)
    assert ours.density == pytest.approx(float(balls.double().sum(0).mean()) / k, rel=1e-12)
    assert ours.coverage == pytest.approx(float(balls.any(1).double().mean()), rel=1e-12)


def test_coverage_of_one_distribution_has_its_expected_value() -> None:
    """Naeem et al. 2020: E coverage = 1 - Π_{i<k} (n-1-i) / (n+m-1-i) when both sets have one law."""
    n, m, k = 80, 60, 5
    expected = 1 - math.prod((n - 1 - i) / (n + m - 1 - i) for i in range(k))
    values = torch.tensor([
        metrics.density_coverage(features(n, 3, s), features(m, 3, 500 + s), k=k) for s in range(100)
    ])  # fmt: skip
    error = values.std(0) / 100**0.5
    assert abs(float(values[:, 1].mean()) - expected) < 3 * float(error[1])
    assert abs(float(values[:, 0].mean()) - 1) < 3 * float(error[0]) + 1 / n


def test_copies_of_the_real_samples_are_inside_and_far_samples_outside() -> None:
    real = features(50, 6, 0)
    assert metrics.precision_recall(real, real.clone()) == (1.0, 1.0)
    assert metrics.precision_recall(real, real + 1e3) == (0.0, 0.0)
    assert metrics.density_coverage(real, real + 1e3) == (0.0, 0.0)
    assert metrics.density_coverage(real, real.clone()).coverage == 1.0


def test_a_point_on_the_border_is_inside_whatever_the_rounding() -> None:
    """Repeated samples make balls of radius zero far from the origin; copies still lie in them."""
    real = features(5, 30, 0).repeat_interleave(4, 0) * 1e4 + 1e5
    assert metrics.precision_recall(real, real[::4].repeat(2, 1).contiguous(), k=1) == (1.0, 1.0)


def test_collapse_keeps_precision_and_loses_recall() -> None:
    real = features(200, 4, 0)
    fake = real[:1] + 1e-3 * features(100, 4, 1)
    ours = metrics.precision_recall(real, fake)
    assert ours.precision > 0.9 > 0.1 > ours.recall
    assert metrics.density_coverage(real, fake).coverage < 0.1


# size and bad input


def test_memory_stays_far_below_one_matrix_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that any operation makes, for 1,500 rows against 1,200."""
    monkeypatch.setattr(metrics, "CHUNK", 128)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            made = [t for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)]
            largest = max([largest, *(t.numel() for t in made)])
            return out

    real, fake = features(1500, 3, 0), features(1200, 3, 1)
    with Watch():
        for figure in FIGURES:
            figure(real, fake)
    assert 128 * 128 <= largest <= 128 * (128 + 5) < 1500 * 1200 / 100


@pytest.fixture
def _unchecked() -> object:
    """The shapes are checked by the annotations under pytest only; a user meets the code's own words."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.__name__)
@pytest.mark.usefixtures("_unchecked")
def test_sets_that_cannot_be_compared(figure) -> None:
    real = features(30, 4, 0)
    broken = features(30, 4, 1)
    broken[3, 2] = math.nan
    with pytest.raises(UserError, match="4 and 5 dimensions"):
        figure(real, features(30, 5, 1))
    with pytest.raises(UserError, match="two rows or more"):
        figure(real, features(1, 4, 1))
    with pytest.raises(UserError, match="two rows or more"):
        figure(real, features(30, 4, 1).flatten())
    with pytest.raises(UserError, match="fake features hold a value that is not finite"):
        figure(real, broken)


@pytest.mark.parametrize("k", [0, -1, 30, 100])
def test_neighbours_that_do_not_exist(k: int) -> None:
    real = features(30, 4, 0)
    for figure in (metrics.precision_recall, metrics.density_coverage):
        with pytest.raises(UserError, match=f"k is {k}"):
            figure(real, real, k=k)


@pytest.mark.parametrize(("subsets", "size"), [(0, 10), (5, 1), (5, 31), (-1, 10)])
def test_subsets_that_do_not_exist(subsets: int, size: int) -> None:
    with pytest.raises(UserError, match="subsets"):
        metrics.kid_subsets(features(30, 4, 0), features(40, 4, 1), subsets=subsets, size=size)
