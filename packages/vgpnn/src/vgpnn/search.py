"""The nearest-neighbour search of one key set: exact by `paperkit.nearest`, or weighted PatchMatch.

Used by `method`. A `Matcher` lives as long as a key set.

kind        result                                       where
exact       float64 argmin, lowest key on ties           everywhere (`paperkit.nearest`, the quickest method)
patchmatch  approximate; distances never rise in it      everywhere; memory linear in voxels
auto        exact up to a count of keys, else PatchMatch `decide`: no machine's load enters
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Float64, Int64
from paperkit import UserError
from paperkit.nearest import Index, Nearest, Patches
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["auto", "exact", "patchmatch"]
Decided = Literal["exact", "patchmatch"]
Window = tuple[int, int, int]

SLACK = 0.1
"""How far beyond the nearest key the others are known, so that a patch that moves less need no new search."""
SWITCH = {"cpu": 20_000, "cuda": 60_000, "mps": 20_000}
"""Most keys for which `auto` searches exactly, by kind of device; cuda and mps are not measured (spec 9.1).

Measured once and shipped, not at the start of a run: a clip and a seed give one video on every machine. Whose
`vgpnn bench exact` finds another cross-over sets it by `--switch`, and the run's configuration keeps it.

How long the exact search takes hangs on how near the queries are to their keys: for an ordinary sample it is
the quicker one up to some 27,000 keys (`bench exact`), but five searches of 33,000 keys took 102 s for a
loop's seam on a busy core, and PatchMatch takes about as long per key for either. Hence below the cross-over.
"""


@dataclass(frozen=True)
class Schedule:
    """What PatchMatch tries, round by round (spec 2.6)."""

    jumps: tuple[int, ...] = (8, 4, 2, 1) * 5
    """Distance of the six neighbours whose match is tried; one round each."""
    radii: tuple[int, ...] = (2, 2, 1, 1) * 5
    """Largest jitter of a round."""
    draw: Literal["uniform", "window"] = "uniform"
    """The random candidate of a round: any key, or one in a window that halves from round to round."""
    identity: bool = False
    """Where a neighbour falls outside, the key of the same place is tried, as by the released code."""

    def __post_init__(self):
        if len(self.jumps) != len(self.radii) or not self.jumps:
            raise UserError("PatchMatch needs as many radii as jumps, and at least one round")
        if min(self.jumps) < 1 or min(self.radii) < 0:
            raise UserError("jumps must be at least 1 and radii at least 0")


@dataclass(frozen=True)
class Found:
    """The key of each query patch."""

    index: Int64[Tensor, "gt gh gw"]
    distance: Float[Tensor, "gt gh gw"]
    """D: squared distance, mean over d."""


@runtime_checkable
class Matcher(Protocol):
    """A search among one key set."""

    kind: str

    def search(
        self, y: Float[Tensor, "c t h w"], alpha: float, guess: Int64[Tensor, "gt gh gw"] | None, draw: int
    ) -> Found:
        """A key for every patch of y; `guess`: of an earlier search, `draw`: key of the random numbers."""
        ...

    def forget(self) -> None:
        """Start another sample."""
        ...


def matcher(
    keys: Float[Tensor, "c t h w"],
    mask: Bool[Tensor, "t h w"] | None,
    patch: Window,
    queries: int,
    kind: Decided,
    schedule: Schedule,
    memory: int,
) -> Matcher:
    """The search of a kind among the patches of `keys` that lie wholly inside `mask`."""
    patches = Patches(keys, patch, mask)
    if kind == "exact":
        return Exact(patches, memory)
    from vgpnn.patchmatch import PatchMatch

    return PatchMatch(patches, schedule, memory)


def decide(kind: Kind, keys: int, device: str, switch: int = 0) -> Decided:
    """The search of a key set; `switch`: most keys for which `auto` is exact, 0: the device's in `SWITCH`."""
    if kind != "auto":
        return kind
    return "exact" if keys <= (switch or SWITCH.get(device, 0)) else "patchmatch"


class Exact:
    """`paperkit.nearest.Index`, with the last result as seeds; patches that hardly move keep their key.

    For alpha = inf a patch keeps its nearest key as long as no other key can have come nearer. For finite
    alpha that is not known: min_i D moves with all other patches.
    """

    kind = "exact"

    def __init__(self, keys: Patches, memory: int) -> None:
        self.index, self.patch = Index(keys, memory=memory), keys.window
        self.forget()

    def forget(self) -> None:
        """Start another sample."""
        self._video: Tensor | None = None
        self._found: Nearest | None = None

    def search(
        self,
        y: Float[Tensor, "c t h w"],
        alpha: float,
        guess: Int64[Tensor, "gt gh gw"] | None,
        draw: int = 0,
    ) -> Found:
        """Nearest key of every patch of y."""
        queries, before = Patches(y, self.patch), self._found
        seeds = None if guess is None else guess.flatten()
        if before is None or self._video is None:
            slack = 0.0 if math.isfinite(alpha) else SLACK
            found = self.index.search(queries, alpha, seeds=seeds, slack=slack)
        elif math.isfinite(alpha):
            found = self.index.search(queries, alpha, seeds=before.index, reverse_seeds=before.reverse)
        else:
            found = self.index.again(queries, before, movement(y, self._video, self.patch), SLACK)
        self._video, self._found = y, found
        return Found(found.index.view(queries.grid), found.distance.view(queries.grid))


def movement(
    y: Float[Tensor, "c t h w"], before: Float[Tensor, "c t h w"], patch: tuple[int, ...]
) -> Float64[Tensor, "q"]:
    """D of each patch from what it was."""
    apart = (y.double() - before.double()).square().mean(0)[None]
    # Sums of what is not negative: exactly 0 for a patch none of whose voxels differs.
    return F.avg_pool3d(apart, patch, 1).flatten()
