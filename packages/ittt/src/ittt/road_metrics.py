"""Correctness, completeness and quality of road masks, with a tolerance (section 4.4).

Source: Wiedemann, Heipke, Mayer and Jamet, "Empirical evaluation of automatically extracted road axes", 1998,
from memory, applied to pixels of masks as Mnih and Hinton (2010) do: a predicted pixel counts as right when a
true one lies within the tolerance, a true one as found when a predicted one does.

| here         | of                                                                        |
|--------------|---------------------------------------------------------------------------|
| correctness  | right predicted pixels / predicted pixels                                 |
| completeness | found true pixels / true pixels                                           |
| quality      | right predicted pixels / (predicted pixels + true pixels that are missed) |

Nothing of nothing is 1: a mask that predicts no road is correct, one without a road is complete.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor


class Scores(NamedTuple):
    """Of each mask, in per cent."""

    correctness: Float[Tensor, " n"]
    completeness: Float[Tensor, " n"]
    quality: Float[Tensor, " n"]


def near(mask: Bool[np.ndarray, "h w"], tolerance: float) -> Bool[np.ndarray, "h w"]:
    """Which pixels have one of the mask's at most `tolerance` pixels away (between centres)."""
    if not mask.any():
        return mask  # a distance to nothing is not defined
    return np.asarray(distance_transform_edt(~mask)) <= tolerance


def scores_of(
    predicted: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"], tolerance: float
) -> tuple[float, float, float]:
    """(correctness, completeness, quality) of one mask, from 0 to 1."""
    right = int((predicted & near(true, tolerance)).sum())
    found = int((true & near(predicted, tolerance)).sum())
    missed = int(true.sum()) - found
    return (
        _share(right, int(predicted.sum())),
        _share(found, int(true.sum())),
        _share(right, int(predicted.sum()) + missed),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def scores(predicted: Bool[Tensor, "n 1 h w"], true: Bool[Tensor, "n 1 h w"], tolerance: float) -> Scores:
    """The scores of masks, one by one."""
    pairs = zip(predicted[:, 0].cpu().numpy(), true[:, 0].cpu().numpy(), strict=True)
    rows = [scores_of(ours, theirs, tolerance) for ours, theirs in pairs]
    return Scores(*(100 * torch.tensor(column) for column in zip(*rows, strict=True)))
