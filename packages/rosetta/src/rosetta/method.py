"""Rosetta neurons: the paper's equations, each in its slow and literal form.

symbol      meaning                                                                        where
A_u         map of unit u on image t, native size h_u x w_u                                Sec. 3.1
sim(u, v)   Pearson correlation over images and pixels, maps resized to the larger grid    Sec. 3.1
k           a pair is kept when each is among the other's k most similar units             Sec. 3.2
pivot       the model whose units head the chains (a generator in the paper)               Sec. 3.3
chain       a unit of the pivot with its partners in every other model                     Sec. 3.3

Section numbers follow the paper's order; its body could not be read here (README, "Differences from the
paper"). `similarity` and `match` compute the same fast, over blocks and without the table; the tests hold
them against this file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

EPS = 1e-5
"""What the released code adds to a deviation before it divides."""

# ---- Similarity --------------------------------------------------------------------------------------------


def resized(maps: Float[Tensor, "n d h w"], height: int, width: int) -> Float[Tensor, "n d s t"]:
    """Bilinear, corners not aligned, as both routes of the package and the released code take it."""
    return F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)


def on_common_grid(
    a: Float[Tensor, "n da ha wa"], b: Float[Tensor, "n db hb wb"]
) -> tuple[Float[Tensor, "da m"], Float[Tensor, "db m"]]:
    """Both maps on the larger grid of each axis, in float64, a row of all images and pixels for each unit."""
    height, width = max(a.shape[2], b.shape[2]), max(a.shape[3], b.shape[3])
    first, second = (resized(x.double(), height, width).transpose(0, 1).flatten(1) for x in (a, b))
    return first, second


def correlations(x: Float[Tensor, "da m"], y: Float[Tensor, "db m"]) -> Float[Tensor, "da db"]:
    """Pearson correlation of every row of x with every row of y; 0 where a row is constant."""
    x, y = (z - z.mean(1, keepdim=True) for z in (x, y))
    norms = x.norm(dim=1)[:, None] * y.norm(dim=1)
    return torch.where(norms > 0, x @ y.T / norms, 0.0)


def similarity(a: Float[Tensor, "n da ha wa"], b: Float[Tensor, "n db hb wb"]) -> Float[Tensor, "da db"]:
    """sim(u, v) of all pairs: one correlation over all images and pixels."""
    return correlations(*on_common_grid(a, b))


def rank_similarity(a: Float[Tensor, "n da ha wa"], b: Float[Tensor, "n db hb wb"]) -> Float[Tensor, "da db"]:
    """Spearman's correlation on the same samples: that of the ranks, ties averaged."""
    return correlations(*(ranks(x) for x in on_common_grid(a, b)))


def ranks(x: Float[Tensor, "d m"]) -> Float[Tensor, "d m"]:
    """Ranks 1 to m of each row, equal values sharing the mean of theirs, in float64."""
    order = x.argsort(1)
    ordered = x.gather(1, order)
    place = torch.arange(1, x.shape[1] + 1, dtype=torch.float64, device=x.device).expand_as(ordered)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    run = starts.cumsum(1) - 1
    total = torch.zeros_like(place).scatter_add_(1, run, place)
    count = torch.zeros_like(place).scatter_add_(1, run, torch.ones_like(place))
    return torch.empty_like(place).scatter_(1, order, (total / count.clamp(min=1)).gather(1, run))


def official_similarity(
    a: Float[Tensor, "n da ha wa"], b: Float[Tensor, "n db hb wb"], batch: int
) -> Float[Tensor, "da db"]:
    """What the released code computes: the mean over batches of cosines of maps normalised at native size.

    Its deviation is the root of the mean variance within batches; a resized map is not centred again; a
    cosine that is not a number counts as 0. Every batch must be whole.
    """
    normalised = [_officially_normalised(x.double(), batch) for x in (a, b)]
    total = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64)
    for part_a, part_b in zip(*(x.split(batch) for x in normalised), strict=True):
        x, y = on_common_grid(part_a, part_b)
        total += (x @ y.T / (x.square().sum(1)[:, None] * y.square().sum(1)).sqrt()).nan_to_num(0.0)
    return total / (len(a) // batch)


def _officially_normalised(x: Float[Tensor, "n d h w"], batch: int) -> Float[Tensor, "n d h w"]:
    mean = x.mean((0, 2, 3), keepdim=True)
    within = torch.stack([part.var((0, 2, 3), keepdim=True) for part in x.split(batch)])
    return (x - mean) / (within.mean(0).sqrt() + EPS)


# ---- Best buddies ------------------------------------------------------------------------------------------


def among_best(scores: Float[Tensor, "r c"], k: int) -> Bool[Tensor, "r c"]:
    """Whether a column is among the k best of its row; of equal scores the lower index is better."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    return chosen.scatter_(1, order[:, :k], True)


def best_buddies(scores: Float[Tensor, "da db"], k: int = 1, back: int = 0) -> Bool[Tensor, "da db"]:
    """Pairs of which v is among u's k best and u among v's `back` best (0: k too, the symmetric rule).

    k = 1, back = 5 is the released code's rule.
    """
    return among_best(scores, k) & among_best(scores.T, back or k).T


def expected_buddies(da: int, db: int, k: int = 1, back: int = 0) -> float:
    """Pairs that independent noise would give: the reference line, not a null.

    da db sum_{i<k, j<back} C(db-1, i) C(da-1, j) B(i+j+1, da+db-1-i-j), from integrating over the quantile
    of a pair's score. For k = 1: da db / (da + db - 1).
    """
    back, total = back or k, 0.0
    for i in range(min(k, db)):
        for j in range(min(back, da)):
            logs = _log_choose(db - 1, i) + _log_choose(da - 1, j)
            total += math.exp(logs + _log_beta(i + j + 1, da + db - 1 - i - j))
    return da * db * total


def expected_chains(pivot: int, others: Sequence[int], k: int = 1, back: int = 0) -> float:
    """Units of the pivot that would have a partner in every other model, were the tables independent noise.

    Note: exact for one partner at most per unit (k = 1); above that the expected pairs of a unit, at most 1,
    stand for its chance, an upper bound.
    """
    fractions = (min(1.0, expected_buddies(pivot, other, k, back) / pivot) for other in others)
    return pivot * math.prod(fractions)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_beta(a: int, b: int) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


# ---- Chains ------------------------------------------------------------------------------------------------

Pair = tuple[int, int]
Partners = Mapping[Pair, Mapping[int, Mapping[int, float]]]
"""{(i, j): {unit of model i: {its partner in model j: score}}} for models i < j; model 0 is the pivot."""


def edges(rule: str, models: int) -> tuple[Pair, ...]:
    """The pairs of models that a chain must match on: star around the pivot (the paper), clique, or cycle."""
    if rule == "star":
        return tuple((0, j) for j in range(1, models))
    if rule == "clique":
        return tuple((i, j) for j in range(models) for i in range(j))
    ring = [(j, j + 1) for j in range(models - 1)]
    return (*ring, (0, models - 1)) if models > 2 else tuple(ring)


@dataclass(frozen=True)
class Chain:
    """A unit of each model, the pivot's first, and the scores of the pairs that the rule asks for."""

    units: tuple[int, ...]
    scores: tuple[float, ...]

    @property
    def weakest(self) -> float:
        """The lowest score: what a chain is judged by."""
        return min(self.scores)


def chains(partners: Partners, rule: str, models: int) -> list[Chain]:
    """The chain of each unit of the pivot that has one, strongest first.

    Of several the one whose weakest link is strongest, then the one with the highest mean, then the one of
    lower indices.
    """
    wanted = edges(rule, models)
    heads = sorted(set(partners.get(wanted[0], {})))
    found = [_best(every) for head in heads if (every := _grow((head,), (), partners, wanted, models))]
    return sorted(found, key=lambda chain: (-chain.weakest, chain.units))


def _grow(
    units: tuple[int, ...],
    scores: tuple[float, ...],
    partners: Partners,
    wanted: tuple[Pair, ...],
    models: int,
) -> list[Chain]:
    """Every chain that begins with `units`."""
    j = len(units)
    if j == models:
        return [Chain(units, scores)]
    links = [partners.get(pair, {}).get(units[pair[0]], {}) for pair in wanted if pair[1] == j]
    shared = sorted(set(links[0]).intersection(*links[1:]))
    return [
        chain
        for unit in shared
        for chain in _grow(
            (*units, unit), (*scores, *(link[unit] for link in links)), partners, wanted, models
        )
    ]


def _best(found: Sequence[Chain]) -> Chain:
    return min(found, key=lambda c: (-c.weakest, -sum(c.scores), c.units))
