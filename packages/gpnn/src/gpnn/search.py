"""The nearest-neighbour search of one key set: exact by `paperkit.nearest`, through faiss, or approximate.

Used by `method`. A `Matcher` lives as long as a key set: it keeps what belongs to the keys (tree, norms), and
what the last search of a sample found, as a warm start. `forget` is called between samples.

kind        result                                          where
exact       float64 argmin, lowest key on ties              everywhere (`paperkit.nearest`, the best method)
pca         the same, by its PCA tree                       CPU, with numba
faiss       float32 candidates, re-scored in float64        the extra `faiss`
patchmatch  approximate; `excess` says how far off          everywhere
"""

import math
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from paperkit.nearest import Index, Nearest, Patches
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["exact", "pca", "faiss", "patchmatch"]

SLACK = 0.1
"""How far beyond the nearest key the others are known, so that a patch that moves less need no new search."""


@runtime_checkable
class Frame(Protocol):
    """What a key set gives to a search."""

    @property
    def keys(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor | None: ...


@runtime_checkable
class Matcher(Protocol):
    """A search among one key set."""

    def search(self, y: Float[Tensor, "c h w"], alpha: float, seeds: Int64[Tensor, "q"] | None) -> Nearest:
        """Nearest key of every patch of y."""
        ...

    def forget(self) -> None:
        """Start another sample."""
        ...


def matcher(frame: Frame, patch: int, kind: Kind, memory: int) -> Matcher:
    """The search of a kind. Raises `UserError` where a part that it needs is missing."""
    patches = Patches(frame.keys, patch, frame.mask)
    if kind == "faiss":
        from gpnn.approximate import Faiss

        return Faiss(patches)
    if kind == "patchmatch":
        from gpnn.approximate import PatchMatch

        return PatchMatch(patches, memory)
    return Exact(patches, memory, "tree" if kind == "pca" else "auto")


class Exact:
    """`paperkit.nearest.Index`, with the last result as seeds; patches that hardly move keep their key.

    For alpha = inf a patch keeps its nearest key as long as no other key can have come nearer. For finite
    alpha that is not known: min_i D moves with all other patches.
    """

    def __init__(self, keys: Patches, memory: int, method: str) -> None:
        self.index, self.patch, self.memory = (
            Index(keys, memory=memory, method=method),
            keys.window[0],
            memory,
        )
        self.forget()

    def forget(self) -> None:
        """Start another sample."""
        self._image: Tensor | None = None
        self._found: Nearest | None = None

    def search(self, y: Float[Tensor, "c h w"], alpha: float, seeds: Int64[Tensor, "q"] | None) -> Nearest:
        """Nearest key of every patch of y."""
        before = self._found
        if before is None or self._image is None:
            slack = 0.0 if math.isfinite(alpha) else SLACK
            found = self.index.search(Patches(y, self.patch), alpha, seeds=seeds, slack=slack)
        elif math.isfinite(alpha):
            found = self.index.search(
                Patches(y, self.patch), alpha, seeds=before.index, reverse_seeds=before.reverse
            )
        else:
            found = self._moved_only(y, before, self._image)
        self._image, self._found = y, found
        return found

    def _moved_only(self, y: Tensor, before: Nearest, image: Tensor) -> Nearest:
        moved = movement(y, image, self.patch)
        return self.index.again(Patches(y, self.patch), before, moved, SLACK)


def movement(y: Float[Tensor, "c h w"], before: Float[Tensor, "c h w"], patch: int) -> Float64[Tensor, "q"]:
    """D of each patch from what it was."""
    apart = (y.double() - before.double()).square().mean(0)[None]
    # Sums of what is not negative: exactly 0 for a patch none of whose pixels differs.
    return F.avg_pool2d(apart, patch, 1).flatten()


def rows(image: Float[Tensor, "c h w"], index: Int64[Tensor, "n"], patch: int) -> Float[Tensor, "n d"]:
    """Some patches as rows, their numbers in the order of `paperkit.nearest.Patches`."""
    view = image.unfold(1, patch, 1).unfold(2, patch, 1).permute(1, 2, 0, 3, 4)
    return view[index // view.shape[1], index % view.shape[1]].flatten(1)


def excess(
    keys: Patches, y: Float[Tensor, "c h w"], found: Nearest, alpha: float, sample: int = 256
) -> dict[str, float]:
    """How far a search is from the exact one: S / S_exact over evenly spread queries, and the misses.

    Exact S of a sample needs min_i D of every key, so for finite alpha all queries are searched; for inf only
    the sample is.
    """
    patch = keys.window[0]
    count = found.index.numel()
    some = torch.arange(0, count, max(1, count // sample), device=found.index.device)
    ours = pair_distances(y, keys.image, some, found.index[some], patch)
    if math.isfinite(alpha):
        least = Index(Patches(y, patch)).search(Patches(keys.image, patch)).distance
        ours = ours / (alpha + least[found.index[some]])
        best = Index(keys).search(Patches(y, patch), alpha)
        exact, missed = best.score[some], found.index[some] != best.index[some]
    else:
        best = Index(keys).search(rows(y, some, patch))
        exact, missed = best.distance, found.index[some] != best.index
    over = (ours + 1e-12) / (exact + 1e-12)
    return {
        "median": float(over.median()),
        "p99": float(over.quantile(0.99)),
        "missed": float(missed.double().mean()),
        "queries": float(len(some)),
    }


def pair_distances(
    a: Float[Tensor, "c h w"], b: Float[Tensor, "c s t"], i: Tensor, j: Tensor, patch: int
) -> Float[Tensor, "n"]:
    """D of patch i of a and patch j of b, in float64, some thousand pairs at a time."""
    parts = [
        (rows(a, m, patch).double() - rows(b, n, patch).double()).square().mean(1)
        for m, n in zip(i.split(4096), j.split(4096), strict=True)
    ]
    return torch.cat(parts)
