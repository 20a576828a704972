"""Means, variances and cross products that are gathered in pieces and merged exactly, in float64.

Chan, Golub and LeVeque's update: pieces hold sums of squared deviations about their own mean, never sums of
squares, so that a mean of ten thousand deviations costs no digits. Pieces may be batches or processes.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float64
from paperkit import parallel
from torch import Tensor


@dataclass
class Moments:
    """Of d units: how many samples, their means, and the sums of squared deviations from them."""

    count: float
    mean: Float64[Tensor, "d"]
    squares: Float64[Tensor, "d"]

    @classmethod
    def of(cls, samples: Float64[Tensor, "d m"]) -> "Moments":
        """Of all samples at once."""
        mean = samples.mean(1)
        return cls(float(samples.shape[1]), mean, (samples - mean[:, None]).square().sum(1))

    def merge(self, other: "Moments") -> None:
        """Take in the samples of another piece."""
        count, apart = self.count + other.count, other.mean - self.mean
        self.squares = self.squares + other.squares + apart**2 * (self.count * other.count / count)
        self.mean = self.mean + apart * (other.count / count)
        self.count = count

    def reduce(self) -> Float64[Tensor, "d"]:
        """Make these the moments of all processes' samples; returns by how much the own mean was above
        theirs."""
        count = _sum(torch.tensor(self.count, dtype=torch.float64, device=self.mean.device))
        mean = _sum(self.mean * self.count) / count
        apart = self.mean - mean
        self.squares = _sum(self.squares + self.count * apart**2)
        self.count, self.mean = float(count), mean
        return apart

    @property
    def variance(self) -> Float64[Tensor, "d"]:
        """Squared deviation over the number of samples."""
        return self.squares / self.count


@dataclass
class CrossMoments:
    """Of two sets of units over the same samples: their moments, and sums of products of deviations."""

    a: Moments
    b: Moments
    products: Float64[Tensor, "da db"]

    def merge(self, other: "CrossMoments") -> None:
        """Take in the samples of another piece; the table of products is changed in place."""
        weight = self.a.count * other.a.count / (self.a.count + other.a.count)
        self.products += other.products
        self.products.addr_(other.a.mean - self.a.mean, other.b.mean - self.b.mean, alpha=weight)
        self.a.merge(other.a)
        self.b.merge(other.b)

    def reduce(self) -> None:
        """Make this the moments of the samples of all processes, on every one of them."""
        own = self.a.count
        self.products.addr_(self.a.reduce(), self.b.reduce(), alpha=own)
        self.products = _sum(self.products)

    def correlation(self) -> Float64[Tensor, "da db"]:
        """Pearson's; 0 where a unit is constant."""
        scale = self.a.squares.sqrt()[:, None] * self.b.squares.sqrt()
        return torch.where(scale > 0, self.products / scale, 0.0).clamp_(-1, 1)


def _sum(value: Tensor) -> Tensor:
    if parallel.world()[1] == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total
