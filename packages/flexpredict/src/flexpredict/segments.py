"""J and F: how well a mask fits the true one, by area and by outline (DAVIS; Perazzi et al. 2016).

Written from the definition: F matches outlines within 0.8 % of the image's diagonal, both ways.
"""

import math

import numpy as np
from jaxtyping import Bool, Int
from scipy.ndimage import binary_dilation

TOLERANCE = 0.008
"""Part of the image's diagonal within which outlines match."""
Mask = Bool[np.ndarray, "h w"]


def jaccard(found: Mask, true: Mask) -> float:
    """J: common area over joint area; 1 where both are empty."""
    joint = int((found | true).sum())
    return int((found & true).sum()) / joint if joint else 1.0


def outline(mask: Mask) -> Mask:
    """Pixels that differ from the one to the right, below, or both."""
    wide = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (wide[:-1, :-1] != wide[:-1, 1:]) | (wide[:-1, :-1] != wide[1:, :-1]) | (
        wide[:-1, :-1] != wide[1:, 1:]
    )  # fmt: skip


def outline_score(found: Mask, true: Mask) -> float:
    """F: harmonic mean of the parts of the found and of the true outline that lie near the other.

    1 where neither has an outline, 0 where one has.
    """
    ours, theirs = outline(found), outline(true)
    if not ours.any() or not theirs.any():
        return float(not ours.any() and not theirs.any())
    near = disk(math.ceil(TOLERANCE * math.hypot(*found.shape)))
    precision = float((ours & binary_dilation(theirs, near)).sum() / ours.sum())
    recall = float((theirs & binary_dilation(ours, near)).sum() / theirs.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def disk(radius: int) -> Mask:
    """Offsets within a radius, as a square picture."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return x * x + y * y <= radius * radius


def clip_scores(found: Int[np.ndarray, "t h w"], true: Int[np.ndarray, "t h w"]) -> tuple[float, float]:
    """(J, F) in % of a clip: means over objects and frames, without the first and the last, as DAVIS does."""
    objects = [int(label) for label in np.unique(true[0]) if label]
    inner = range(1, len(true) - 1)
    pairs = [(found[t] == label, true[t] == label) for label in objects for t in inner]
    j = float(np.mean([jaccard(*pair) for pair in pairs]))
    f = float(np.mean([outline_score(*pair) for pair in pairs]))
    return 100 * j, 100 * f
