"""Units of the pivot that say the same, grouped: average linkage on 1 - r (spec 7.7).

Note: the paper groups by matches of the generator with itself; how it cuts could not be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from rosetta.maps import Maps
from rosetta.similarity import Options, table

CUTS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Correlations that groups are cut at; the largest mean silhouette decides."""
DEFAULT_CUT = 0.7


@dataclass(frozen=True)
class Clusters:
    """Group of each unit (numbered by size, from 0), the cut, and the tree as scipy's linkage rows."""

    labels: list[int]
    cut: float
    tree: list[list[float]]


def cluster(pivot: Maps, units: Sequence[int]) -> Clusters:
    """Group units of the pivot by the correlation of their maps on the probes."""
    if len(units) < 2:
        return Clusters([0] * len(units), DEFAULT_CUT, [])
    return of_similarities(similarities(pivot, units))


def similarities(pivot: Maps, units: Sequence[int]) -> Float64[Tensor, "n n"]:
    """Correlations of some units with one another."""
    data, names = [], []
    for unit in units:
        layer, channel = pivot.place(unit)
        data.append(pivot.data[layer][slice(None)][:, channel : channel + 1])
        names.append(pivot.name(unit))
    part = Maps(pivot.model, names, data)
    return table(part, part, Options())


def of_similarities(r: Float64[Tensor, "n n"]) -> Clusters:
    """Average linkage, cut where the mean silhouette is largest (at the default where none is defined)."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform
    from sklearn.metrics import silhouette_score

    distance = (1 - (r + r.T) / 2).clamp(min=0).numpy().copy()
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "average")
    best, labels = DEFAULT_CUT, fcluster(tree, 1 - DEFAULT_CUT, "distance")
    top = -np.inf
    for cut in CUTS:
        found = fcluster(tree, 1 - cut, "distance")
        if 1 < len(set(found)) < len(found):
            score = silhouette_score(distance, found, metric="precomputed")
            if score > top:
                top, best, labels = score, cut, found
    sizes = sorted(set(labels.tolist()), key=lambda c: (-int((labels == c).sum()), labels.tolist().index(c)))
    return Clusters([sizes.index(label) for label in labels.tolist()], best, tree.tolist())
