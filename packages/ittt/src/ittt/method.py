"""The equations of "IT3: Idempotent Test-Time Training" (Durasov et al., ICML 2025, arXiv 2410.04201).

| symbol   | here              | meaning                                                | source      |
|----------|-------------------|--------------------------------------------------------|-------------|
| x, y     | `x`, `target`     | an input and its label                                 | section 3   |
| 0        | signal `None`     | the neutral signal: no label is known                  | section 3.1 |
| f_theta  | `net`, `Copies.f` | the network (x, signal) -> prediction that is adapted  | section 3.1 |
| Theta    | `source`          | the weights after training                             | section 3.2 |
| F        | `anchor`          | the second application: weights that no gradient moves | Eq. 6       |
| y0       | `first`           | f(x, 0)                                                | section 3.2 |
| y1       | `second`          | F(x, y0)                                               | section 3.2 |
| gap      | `gap_of_...`      | norm of y1 - y0: how far f is from idempotent at x     | Eqs. 3, 6   |
| L_train  | `ITTT.loss`       | loss(f(x, y), y) + loss(f(x, 0), y)                    | Eq. 2       |
| L_IT3    | `mean_of`         | mean gap of a test batch; only y0's weights move       | Eq. 6       |
| L_online | `follow`          | the same with F a moving average of f                  | Eq. 7       |

The paper leaves the norm open. Here a gap is the mean over a sample's outputs; for classes it is a divergence
of the two predicted distributions, summed over classes and averaged over positions.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from paperkit import UserError
from torch import Tensor

Gap = Literal["l1", "l2", "l1-prob", "l2-prob", "js", "kl", "legacy-js"]
GAPS: tuple[str, ...] = get_args(Gap)
PLAIN = ("l1", "l2")
"""Gaps of numbers; all others compare distributions."""


# ---- the gap, Eqs. 3 and 6 ---------------------------------------------------------------------------------


def gap_of_values(
    first: Float[Tensor, "b *k"], second: Float[Tensor, "b *k"], kind: str
) -> Float[Tensor, " b"]:
    """|y1 - y0| of each sample: mean absolute (l1) or squared (l2) difference over its outputs."""
    difference = (second - first).reshape(len(first), -1)
    return difference.abs().mean(1) if kind == "l1" else difference.square().mean(1)


def gap_of_distributions(
    first: Float[Tensor, "b k *space"], second: Float[Tensor, "b k *space"], kind: str
) -> Float[Tensor, " b"]:
    """Divergence of two predictions, given as log-probabilities over axis 1; mean over the other axes.

    js is the Jensen-Shannon divergence, in [0, log 2]. legacy-js is what the public notebooks call so: half
    KL(m | p) + half KL(m | q), with the arguments the other way round. kl is KL(y1 | y0).
    """
    p, q = first.exp(), second.exp()
    middle = torch.logaddexp(first, second) - math.log(2)
    terms = {
        "l1-prob": lambda: (q - p).abs(),
        "l2-prob": lambda: (q - p).square(),
        "kl": lambda: q * (second - first),
        "js": lambda: (p * (first - middle) + q * (second - middle)) / 2,
        "legacy-js": lambda: middle.exp() * (middle - (first + second) / 2),
    }
    # Rounding may leave a divergence a hair below zero.
    return terms[kind]().sum(1).clamp_min(0).reshape(len(first), -1).mean(1)


# ---- weights: moving average and trust region --------------------------------------------------------------
# `views` are tensors (n, ...) of n copies of a network's weights; `source` the same without the first axis.


@torch.no_grad()
def follow(anchor: Sequence[Tensor], views: Sequence[Tensor], decay: float) -> None:
    """F <- decay F + (1 - decay) f, in place (Eq. 7); decay 1 leaves F as it is, decay 0 makes it f."""
    if anchor:
        torch._foreach_lerp_(list(anchor), list(views), 1 - decay)


@torch.no_grad()
def distance(views: Sequence[Tensor], source: Sequence[Tensor]) -> Float[Tensor, " n"]:
    """|theta - Theta| of each copy, over all its weights (2-norm)."""
    parts = [(v - s).square().flatten(1).sum(1) for v, s in zip(views, source, strict=True)]
    return torch.stack(parts).sum(0).sqrt()


@torch.no_grad()
def norm(source: Sequence[Tensor]) -> float:
    """|Theta| (2-norm)."""
    return float(torch.stack(torch._foreach_norm(list(source))).square().sum().sqrt())


@torch.no_grad()
def project(views: Sequence[Tensor], source: Sequence[Tensor], radius: float | Float[Tensor, " n"]) -> None:
    """Bring each copy that is further than `radius` from Theta back onto the sphere around it, in place."""
    share = (radius / distance(views, source).clamp_min(torch.finfo(source[0].dtype).tiny)).clamp_max(1)
    for view, origin in zip(views, source, strict=True):
        wide = share.view(-1, *[1] * (view.ndim - 1))
        view.copy_(torch.where(wide < 1, origin + (view - origin) * wide, view))


# ---- calibration on clean inputs ---------------------------------------------------------------------------


def quantile(gaps: Float[Tensor, " n"], share: float) -> float:
    """The empirical quantile of clean gaps below which an input is left alone (no interpolation)."""
    return float(gaps.sort().values[min(len(gaps) - 1, max(0, math.ceil(share * len(gaps)) - 1))])


def conformal(gaps: Float[Tensor, " n"], share: float) -> float:
    """The split-conformal threshold: of inputs exchangeable with these n ones, at most `share` exceed it.

    It is the ceil((n + 1)(1 - share))-th smallest gap. Raises `UserError` when n is too small for `share`.
    """
    rank = math.ceil((len(gaps) + 1) * (1 - share) - 1e-9)
    if rank > len(gaps):
        needed = math.ceil(1 / share - 1e-9) - 1
        raise UserError(
            f"abstain={share:g} needs at least {needed} clean inputs for calibration, got {len(gaps)}"
        )
    return float(gaps.sort().values[max(rank, 1) - 1])


def mean_of(gaps: Float[Tensor, " b"], weight: Bool[Tensor, " b"] | None, copies: int) -> Float[Tensor, " n"]:
    """The loss of each copy: the mean gap of its samples (Eq. 6), or of those that `weight` names."""
    if weight is None:
        return gaps.view(copies, -1).mean(1)
    each = weight.view(copies, -1)
    return (gaps.view(copies, -1) * each).sum(1) / each.sum(1).clamp_min(1)
