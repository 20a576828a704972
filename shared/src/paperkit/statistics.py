"""Statistics of paired runs: summary, paired difference with bootstrap and sign test, McNemar, Spearman.

Used by every paper's `reproduce` through `paperkit.results`, which offers these names as its own. Every
difference is oriented so that positive favours ours. Importing this imports neither torch nor scipy.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, SupportsFloat

import numpy as np

from paperkit import UserError

Better = Literal["higher", "lower"]
Numbers = Iterable[SupportsFloat]


def summary(values: Numbers) -> dict[str, Any]:
    """{"mean", "std", "n", "values"}; std divides by n - 1 and is 0 for one value. Raises for none."""
    numbers = _numbers(values, "values")
    std = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0
    return {"mean": float(np.mean(numbers)), "std": std, "n": len(numbers), "values": numbers.tolist()}


@dataclass(frozen=True)
class Paired:
    """Differences of pairs (one seed, one image, one split each), oriented so that positive favours ours."""

    mean: float
    """Mean difference, in the metric's unit."""
    se: float
    """Its standard error, std(ddof=1) / √n, at least the rounding error of the values."""
    t: float
    """mean / se: the statistic of "paired difference > 2 standard errors"; always finite."""
    low: float
    """Lower end of the paired bootstrap's 95 % interval of the mean (percentiles)."""
    high: float
    """Upper end."""
    sign_p: float
    """One-sided sign test: chance of at least as many wins if both were equally good; ties are dropped."""
    wins: int
    losses: int
    n: int


def paired(
    ours: Numbers,
    against: Numbers,
    better: Better = "higher",
    *,
    seed: int = 0,
    draws: int = 10_000,
) -> Paired:
    """Compare two runs of the same pairs. Raises `UserError` for fewer than two pairs or unequal lengths."""
    orientation(better)
    x, y = _pairs(ours, against, at_least=2)
    difference = x - y if better == "higher" else y - x
    rounding = np.finfo(float).eps * max(np.abs(x).max(), np.abs(y).max(), np.finfo(float).tiny)
    mean = float(difference.mean())
    se = float(max(difference.std(ddof=1) / math.sqrt(len(x)), rounding))
    low, high = _bootstrap(difference, seed, draws)
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return Paired(mean, se, mean / se, low, high, _sign_test(wins, losses), wins, losses, len(x))


class McNemar(NamedTuple):
    """Cases that only one of two classifiers gets right, and the exact two-sided p of that split."""

    only_ours: int
    only_against: int
    p: float


def mcnemar(ours_right: Numbers, against_right: Numbers) -> McNemar:
    """McNemar's test in its exact, binomial form; right is 1, wrong is 0, on the same cases in order.

    Raises `UserError` for lists of unequal length and for other values.
    """
    from scipy.stats import binomtest

    x, y = _pairs(ours_right, against_right, at_least=1)
    if not np.isin(np.concatenate([x, y]), (0.0, 1.0)).all():
        raise UserError("McNemar's test takes right (1) and wrong (0) only")
    only_ours, only_against = int((x > y).sum()), int((y > x).sum())
    split = only_ours + only_against
    return McNemar(only_ours, only_against, float(binomtest(only_ours, split).pvalue) if split else 1.0)


class Spearman(NamedTuple):
    """Rank correlation, ties averaged, and its two-sided p from the t distribution."""

    rho: float
    p: float


def spearman(x: Numbers, y: Numbers) -> Spearman:
    """Spearman's rank correlation. Raises `UserError` for fewer than three pairs or a constant side."""
    from scipy.stats import spearmanr

    a, b = _pairs(x, y, at_least=3)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        raise UserError("a rank correlation needs values that differ: one side is constant")
    found: Any = spearmanr(a, b)
    return Spearman(float(found.statistic), float(found.pvalue))


def _bootstrap(difference: np.ndarray, seed: int, draws: int) -> tuple[float, float]:
    """95 % percentile interval of the mean over resampled pairs, in blocks of at most a million numbers."""
    generator, n = np.random.default_rng(seed), len(difference)
    block = max(1, 1_000_000 // n)
    means = [
        difference[generator.integers(0, n, (min(block, draws - start), n))].mean(1)
        for start in range(0, draws, block)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def _sign_test(wins: int, losses: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses, alternative="greater").pvalue) if wins + losses else 1.0


def _numbers(values: Numbers, name: str) -> np.ndarray:
    numbers = np.array([float(v) for v in values], dtype=np.float64)
    if not len(numbers):
        raise UserError(f"{name}: no values")
    if not np.isfinite(numbers).all():
        raise UserError(f"{name} hold a value that is not finite: {numbers[~np.isfinite(numbers)][0]}")
    return numbers


def _pairs(ours: Numbers, against: Numbers, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = _numbers(ours, "ours"), _numbers(against, "against")
    if len(x) != len(y) or len(x) < at_least:
        raise UserError(f"{at_least} pairs or more needed, got {len(x)} values against {len(y)}")
    return x, y


def orientation(better: str) -> None:
    """Raise `UserError` unless `better` is "higher" or "lower"."""
    if better not in ("higher", "lower"):
        raise UserError(f'better is "higher" or "lower", not {better!r}')
