"""Best buddies from tiles of the table: the k best of every row and column, merged tile by tile."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from rosetta.similarity import Tile

BINS = 4000
"""Of the histogram of all scores, from -1 to 1."""


@dataclass(frozen=True)
class Rule:
    """v must be among u's `k` best, and u among v's `back` best (0: k too)."""

    k: int = 1
    back: int = 0

    @property
    def returns(self) -> int:
        """How many of a column's best count."""
        return self.back or self.k

    def __str__(self) -> str:
        return f"mutual-{self.k}" if self.returns == self.k else f"top-{self.k}, back top-{self.back}"


class Best:
    """The k highest scores of each of `count` units and whom they are with; of equal ones the lower number.

    Tiles may come in any order. A place that nothing has taken holds -inf and -1.
    """

    def __init__(self, count: int, k: int):
        self.scores = torch.full((count, k), -torch.inf, dtype=torch.float64)
        self.partners = torch.full((count, k), -1, dtype=torch.int64)

    def take(self, units: Int64[Tensor, "r"], partners: Int64[Tensor, "c"], scores: Tensor) -> None:
        """Merge a tile in, its rows being `units`."""
        values, places = highest(scores, min(self.scores.shape[1], scores.shape[1]))
        joined = torch.cat([self.scores[units], values.cpu()], 1)
        whom = torch.cat([self.partners[units], partners[places.cpu()]], 1)
        # Two stable sorts: by number, then by score.
        order = whom.argsort(dim=1, stable=True)
        order = order.gather(1, joined.gather(1, order).argsort(dim=1, descending=True, stable=True))
        k = self.scores.shape[1]
        self.scores[units] = joined.gather(1, order)[:, :k]
        self.partners[units] = whom.gather(1, order)[:, :k]


def highest(scores: Float64[Tensor, "r c"], k: int) -> tuple[Float64[Tensor, "r k"], Int64[Tensor, "r k"]]:
    """The k highest of each row and where they stand; of equal ones the first, which `topk` does not
    promise."""
    left, values, places = scores.clone(), [], []
    for _ in range(k):
        value, place = left.max(1)
        values.append(value)
        places.append(place)
        left.scatter_(1, place[:, None], -torch.inf)
    return torch.stack(values, 1), torch.stack(places, 1)


@dataclass(frozen=True)
class Summary:
    """What is kept of a table: the best of rows and columns, and how often each score occurs."""

    rows: Best
    columns: Best
    histogram: Int64[Tensor, "bins"]

    @property
    def largest(self) -> float:
        """The highest score of the table."""
        return float(self.rows.scores.max())

    def quantile(self, share: float) -> float:
        """The score that `share` of the table do not exceed, rounded up to a bin's end."""
        part = self.histogram.cumsum(0) / self.histogram.sum()
        return float(-1 + 2 * (int((part < share).sum()) + 1) / BINS)

    @property
    def mean_best(self) -> float:
        """Mean over the rows of their highest score."""
        best = self.rows.scores[:, 0]
        return float(best[best.isfinite()].mean())

    @property
    def hubs(self) -> int:
        """How many different units are the best of some row: few of them are hubs that draw all."""
        return len(set(self.rows.partners[:, 0].tolist()) - {-1})

    def part(self, rule: Rule) -> "Matches":
        """The pairs that satisfy a rule, of at most the k that were kept."""
        among = self.columns.partners[:, : rule.returns]
        near = self.rows.partners[:, : rule.k]
        back = among[near.clamp(min=0)]  # (rows, k, returns)
        units = torch.arange(len(near))
        kept: Bool[Tensor, "r k"] = (back == units[:, None, None]).any(2) & (near >= 0)
        row, place = kept.nonzero(as_tuple=True)
        return Matches(row, near[row, place], self.rows.scores[row, place])


def summarise(tiles: Iterable[Tile], rows: int, columns: int, k: int) -> Summary:
    """Go through the tiles of a table of `rows` x `columns` units once; every one is dropped when it is
    read."""
    best_rows, best_columns = Best(rows, k), Best(columns, k)
    histogram = torch.zeros(BINS, dtype=torch.int64)
    for tile in tiles:
        best_rows.take(tile.rows, tile.columns, tile.scores)
        best_columns.take(tile.columns, tile.rows, tile.scores.T)
        bins = ((tile.scores + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
        histogram += bins.flatten().bincount(minlength=BINS).cpu()
    return Summary(best_rows, best_columns, histogram)


@dataclass(frozen=True)
class Matches:
    """Pairs of units and their scores, by the row's unit."""

    rows: Int64[Tensor, "p"]
    columns: Int64[Tensor, "p"]
    scores: Float64[Tensor, "p"]

    def __len__(self) -> int:
        return len(self.rows)

    def above(self, threshold: float) -> "Matches":
        """Those whose score exceeds the threshold."""
        kept = self.scores > threshold
        return Matches(self.rows[kept], self.columns[kept], self.scores[kept])

    @property
    def pairs(self) -> set[tuple[int, int]]:
        """The pairs without their scores."""
        return set(zip(self.rows.tolist(), self.columns.tolist(), strict=True))

    @property
    def partners(self) -> Mapping[int, Mapping[int, float]]:
        """{row's unit: {its partner: score}}."""
        found: dict[int, dict[int, float]] = {}
        triples = zip(self.rows.tolist(), self.columns.tolist(), self.scores.tolist(), strict=True)
        for row, column, score in triples:
            found.setdefault(row, {})[column] = score
        return found
