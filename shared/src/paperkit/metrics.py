"""Distances between two sets of features: FID, KID, precision and recall, density and coverage.

Used by ign (digits and faces), gpnn and vgpnn (patch features), conceptor (generated images) and every other
paper that compares a set of samples with a set of data. The features are given: any network, or the pixels
themselves. All arithmetic is float64 on the device of the features (on the CPU where the device has no
float64), in blocks of `CHUNK` rows, so that memory does not grow with the square of the number of samples.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paperkit import UserError

CHUNK = 2048
"""Rows per block: a block of pairs takes 8·CHUNK² bytes, 32 MiB."""

TIE = 1e-12
"""Squared distances closer than this share of the squared lengths are ties: a ball keeps its border."""


# ---------------------------------------------------------------------------------------------- FID


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,) and unbiased covariance (d, d) of a set of features, float64, and how many there were."""

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]
    n: int


def gaussian(features: Float[Tensor, "n d"]) -> Gaussian:
    """Mean and covariance (divided by n - 1) in two passes over the features.

    Raises `UserError` for fewer than two rows or for features that are not finite.
    """
    features = _checked(features, "features")
    n, d = features.shape
    mean = _mean(features)
    covariance = features.new_zeros(d, d, dtype=torch.float64)
    for block in _blocks(features):
        centred = block - mean
        covariance += centred.T @ centred
    return Gaussian(mean, covariance / (n - 1), n)


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet distance of two Gaussians, |μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½).

    Dowson and Landau 1982. The trace of the root is the sum of the singular values of
    Σ_a^½ Σ_b^½, which stays real and exact where a covariance is singular (fewer samples than dimensions).
    Raises `UserError` when the dimensions differ.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(f"features of {len(a.mean)} and {len(b.mean)} dimensions cannot be compared")
    root_a, root_b = _factor(a.covariance), _factor(b.covariance.to(a.covariance.device))
    shift = (a.mean - b.mean.to(a.mean.device)).square().sum()
    cross = torch.linalg.svdvals(root_a.T @ root_b).sum()
    return float(shift + root_a.square().sum() + root_b.square().sum() - 2 * cross)


def fid(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"]) -> float:
    """Fréchet distance of the features' Gaussians (FID, Heusel et al. 2017).

    Biased upwards for few samples: name the protocol with the figure (`fid_50k`, `fid_1k`). Raises
    `UserError` for sets that cannot be compared.
    """
    real, fake = _pair(real, fake)
    return frechet(gaussian(real), gaussian(fake))


def _factor(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d r"]:
    """A with A Aᵀ = covariance, by its eigenvectors.

    Eigenvalues below rounding are zero: their roots would add 1e-8 of the largest one each.
    """
    values, vectors = torch.linalg.eigh(covariance)
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1].clamp_min(0)
    kept = values > rounding
    return vectors[:, kept] * values[kept].sqrt()


# ---------------------------------------------------------------------------------------------- KID


class Kid(NamedTuple):
    """Mean over the subsets, their standard deviation (n - 1), how many and of which size."""

    mean: float
    std: float
    subsets: int
    size: int


def kid(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"]) -> float:
    """Unbiased squared MMD under k(x, y) = (x·y / d + 1)³ over the whole sets; may be below zero.

    Bińkowski et al. 2018; the estimator is Gretton et al. 2012, lemma 6. Raises `UserError` for
    sets that cannot be compared.
    """
    real, fake = _pair(real, fake)
    within = sum(_kernel_sum_within(x) / (len(x) * (len(x) - 1)) for x in (real, fake))
    return within - 2 * _kernel_sum(real, fake) / (len(real) * len(fake))


def kid_subsets(
    real: Float[Tensor, "n d"],
    fake: Float[Tensor, "m d"],
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 2020,
) -> Kid:
    """KID over random subsets of `size` rows drawn without replacement: the figure that papers print.

    The draws are torch-fidelity's, so the same seed gives the mean that it prints; its standard deviation
    divides by the number of subsets, ours by one less. Raises `UserError` for sets that cannot be compared
    and for subsets larger than a set.
    """
    real, fake = _pair(real, fake)
    smallest = min(len(real), len(fake))
    if subsets < 1 or not 2 <= size <= smallest:
        raise UserError(f"KID needs subsets >= 1 and 2 <= size <= {smallest}, got {subsets} of size {size}")
    draw = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        rows = [draw.choice(len(x), size, replace=False) for x in (real, fake)]
        values.append(
            kid(*(x[torch.from_numpy(r).to(x.device)] for x, r in zip((real, fake), rows, strict=True)))
        )
    return Kid(float(np.mean(values)), float(np.std(values, ddof=1)) if subsets > 1 else 0.0, subsets, size)


def _kernel(x: Float[Tensor, "a d"], y: Float[Tensor, "b d"]) -> Float[Tensor, "a b"]:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _kernel_sum(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    return math.fsum(float(_kernel(a, b).sum()) for a in _blocks(x) for b in _blocks(y))


def _kernel_sum_within(x: Float[Tensor, "n d"]) -> float:
    """Sum over all pairs of different rows; blocks off the diagonal are computed once, counted twice."""
    parts = []
    for i, a in enumerate(_blocks(x)):
        kernel = _kernel(a, a)
        parts.append(float(kernel.sum() - kernel.diagonal().sum()))
        parts += [2 * float(_kernel(a, b).sum()) for b in _blocks(x, first=i + 1)]
    return math.fsum(parts)


# ------------------------------------------------------- precision and recall, density and coverage


class PrecisionRecall(NamedTuple):
    """Share of fake samples inside the real manifold, and of real samples inside the fake one."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Mean number of real balls around a fake sample over k, and share of real balls that hold one."""

    density: float
    coverage: float


def precision_recall(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], *, k: int = 3
) -> PrecisionRecall:
    """Improved precision and recall: a manifold is the union of the closed balls to the k-th neighbour.

    Kynkäänniemi et al. 2019. Raises `UserError` for sets that cannot be compared and for a
    k that is not in 1 … n - 1.
    """
    real, fake = _centred(real, fake)
    in_real, _, in_fake = _memberships(real, fake, _radii(real, k), _radii(fake, k))
    return PrecisionRecall(float(in_real.gt(0).double().mean()), float(in_fake.double().mean()))


def density_coverage(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], *, k: int = 5
) -> DensityCoverage:
    """Density (above 1 where samples crowd the modes) and coverage of the real samples' balls.

    Naeem et al. 2020, with closed balls. Raises `UserError` for sets that cannot be
    compared and for a k that is not in 1 … n - 1.
    """
    real, fake = _centred(real, fake)
    radii = _radii(real, k)
    in_real, held, _ = _memberships(real, fake, radii, radii.new_full((len(fake),), -math.inf))
    return DensityCoverage(float(in_real.double().mean()) / k, float(held.double().mean()))


def _radii(x: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """Squared distance of each row to its k-th nearest other row."""
    if not 1 <= k < len(x):
        raise UserError(f"k is {k}: it must lie between 1 and the number of samples less one, {len(x) - 1}")
    radii = []
    for i, a in enumerate(_blocks(x)):
        best = a.new_full((len(a), k), math.inf)
        for j, b in enumerate(_blocks(x)):
            distance = _squared_distances(a, b)
            if i == j:
                distance.fill_diagonal_(math.inf)
            best = torch.cat([best, distance], 1).topk(k, largest=False).values
        radii.append(best[:, -1])
    return torch.cat(radii)


def _memberships(
    real: Float[Tensor, "n d"],
    fake: Float[Tensor, "m d"],
    real_radii: Float[Tensor, " n"],
    fake_radii: Float[Tensor, " m"],
) -> tuple[Int[Tensor, " m"], Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """Per fake sample the real balls around it; per real sample: does its ball hold a fake one, is it in one?

    A sample on a ball's border is inside whatever the rounding.
    """
    around = torch.zeros(len(fake), dtype=torch.int64, device=real.device)
    held, covered = torch.zeros(2, len(real), dtype=torch.bool, device=real.device)
    for i, a in zip(_starts(real), _blocks(real), strict=True):
        for j, b in zip(_starts(fake), _blocks(fake), strict=True):
            rows, columns = slice(i, i + len(a)), slice(j, j + len(b))
            distance = _squared_distances(a, b) - TIE * (a.square().sum(1)[:, None] + b.square().sum(1))
            inside = distance <= real_radii[rows, None]
            around[columns] += inside.sum(0)
            held[rows] |= inside.any(1)
            covered[rows] |= (distance <= fake_radii[columns]).any(1)
    return around, held, covered


def _squared_distances(x: Float[Tensor, "a d"], y: Float[Tensor, "b d"]) -> Float[Tensor, "a b"]:
    products = torch.addmm(y.square().sum(1).expand(len(x), -1), x, y.T, alpha=-2)
    return products.add_(x.square().sum(1)[:, None]).clamp_min_(0)


# ------------------------------------------------------------------------------------------- inputs


def _starts(x: Float[Tensor, "n d"]) -> range:
    return range(0, len(x), CHUNK)


def _blocks(x: Float[Tensor, "n d"], first: int = 0) -> Iterator[Float[Tensor, "c d"]]:
    """Blocks of rows in float64, from block number `first` on."""
    for start in range(first * CHUNK, len(x), CHUNK):
        yield x[start : start + CHUNK].double()


def _mean(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    return torch.stack([block.sum(0) for block in _blocks(x)]).sum(0) / len(x)


def _checked(x: Float[Tensor, "n d"], name: str) -> Float[Tensor, "n d"]:
    if x.ndim != 2 or len(x) < 2 or x.shape[1] < 1:
        raise UserError(f"{name} have shape {tuple(x.shape)}: two rows or more of at least one number needed")
    if not all(bool(block.isfinite().all()) for block in x.split(CHUNK)):
        raise UserError(f"{name} hold a value that is not finite")
    x = x.detach()
    return x.cpu() if x.device.type == "mps" else x  # Apple's GPUs have no float64


def _pair(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m e"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    real, fake = _checked(real, "the real features"), _checked(fake, "the fake features")
    if real.shape[1] != fake.shape[1]:
        raise UserError(f"features of {real.shape[1]} and {fake.shape[1]} dimensions cannot be compared")
    return real, fake.to(real.device)


def _centred(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m e"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Both sets less the real mean: distances stay, and lose fewer digits."""
    real, fake = _pair(real, fake)
    mean = _mean(real)
    return real.double() - mean, fake.double() - mean
