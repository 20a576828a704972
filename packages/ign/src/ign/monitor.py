"""Watching a training run for collapse, by samples and without a trained judge. Used by `ign train`."""

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ign.method import Metric, distance

LEAST_DIVERSITY = 0.3
"""Samples that differ less than this share of what data differ count as collapsed."""
STILL = 1e-5
"""So does an f that moves its samples by less than this share of the distance D between two data."""


@dataclass(frozen=True)
class Look:
    """What the samples of one step look like beside data; NaN = not looked at."""

    diversity: float = math.nan
    """Mean pairwise distance of samples over that of data; 1 = as diverse."""
    stillness: float = math.nan
    """d(f(z)) over the mean D of two data; exactly 0 is the sign of a collapse into one fixed point."""
    entropy: float = math.nan
    """Entropy of the labels of the nearest data, over that of uniform labels; NaN without labels."""

    def figures(self) -> dict[str, float]:
        """What is known, for the log."""
        return {name: value for name, value in asdict(self).items() if math.isfinite(value)}

    @property
    def warning(self) -> str:
        """Why the samples count as collapsed; empty when they do not."""
        if self.diversity < LEAST_DIVERSITY:
            return f"samples differ only {self.diversity:.2f} times as much as data"
        if self.stillness < STILL:
            return f"f leaves its samples as they are: d(f(z)) is {self.stillness:.1e} of the data's D"
        return ""


@torch.no_grad()
def look(
    samples: Float[Tensor, "n ..."],
    again: Float[Tensor, "n ..."],
    data: Float[Tensor, "m ..."],
    labels: Int64[Tensor, " m"],
    metric: Metric,
) -> Look:
    """A look at samples f(z) and f(f(z)) beside data with labels (-1 = none)."""
    spread = torch.pdist(data.flatten(1)).mean()
    scale = distance(data, data.roll(1, 0), metric).mean()
    return Look(
        float(torch.pdist(samples.flatten(1)).mean() / spread),
        float(distance(again, samples, metric).mean() / scale),
        _entropy(samples, data, labels),
    )


def _entropy(samples: Tensor, data: Tensor, labels: Tensor) -> float:
    classes = int(labels.max()) + 1
    if classes < 2:
        return math.nan
    nearest = labels[torch.cdist(samples.flatten(1), data.flatten(1)).argmin(1)]
    share = torch.bincount(nearest, minlength=classes).double() / len(samples)
    return float(-(share * share.clamp_min(1e-12).log()).sum() / math.log(classes))
