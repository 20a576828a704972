"""Diverse generation from a single video (arXiv 2109.08591): pyramid, patch step, coarse-to-fine pass.

symbol      meaning                                                                   source
x_n         source video at level n, 0 (coarsest) .. N (full size), each from x_N     spec 2.2
k_n         x_{n-1} enlarged to the size of x_n; k_0 = x_0                            spec 2.4, step 1
y           output video of the present level                                        spec 2.1
r_T, r_S    ratio of two levels in time and in space                                  spec 2.2
(kt,kh,kw)  patch, d = channels kt kh kw numbers                                      spec 2.1
D_ij, S_ij  mean squared patch difference; D_ij / (alpha + min_i D_ij)                spec 2.4, step 2; 7.1
N(i)        argmin_j S_ij: the nearest-neighbour field                                spec 2.4, step 2
J           searches of one level; the first compares with k_n, later ones with x_n   spec 2.4, steps 1, 5
sigma       standard deviation of the noise on x_0; values are in [-1, 1]             spec 2.3

Used by `tasks`. The pyramid is in `pyramid`, searches in `search`, votes in `folding`. No input or output.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Float32, Int64
from paperkit import UserError, rng
from torch import Tensor

from vgpnn.folding import fold
from vgpnn.memory import give_back
from vgpnn.pyramid import VALID, Scale, Settings, Shape, Source, enlarge, enlarge_loop, shape_of, shrink
from vgpnn.search import Found, Matcher, decide, matcher

# ---- The problem, and what is known after a level


@dataclass(frozen=True)
class Guides:
    """More channels to compare: what the output is to follow, and the same of the source (spec 3.3).

    Query and key get them while level < int(`until` (levels - 1)); the first search of all sees them alone.
    """

    output: Float[Tensor, "g t h w"]
    source: Float[Tensor, "g _ _ _"]
    weight: float = 1.0
    until: float = 0.5

    def shown(self, level: int, levels: int) -> bool:
        """Whether this level is guided."""
        return level < int(self.until * (levels - 1)) or level == 0


@dataclass(frozen=True)
class Problem:
    """A coarse-to-fine pass: one source, guesses of the coarsest level, one output shape."""

    source: Source
    guesses: list[Tensor]
    """One for each sample, (c, t, h, w)."""
    shape: Shape
    """Of the outputs at full size."""
    settings: Settings
    numbers: list[int] = field(default_factory=lambda: [0])
    """Numbers of the samples: with `seed` they address the random numbers."""
    seed: int = 0
    guides: Guides | None = None
    known: tuple[Source, Bool[Tensor, "t h w"]] | None = None
    """A pyramid and the hole of it to fill: voxels outside are put back after every step."""
    loop: bool = False
    """The last frame is followed by the first."""
    exclude: Bool[Tensor, "t h w"] | None = None
    """Where the source must not be copied from to (True: no key), beside its own mask."""

    @property
    def levels(self) -> int:
        """How many."""
        return len(self.source.scales)

    def shape_at(self, n: int) -> Shape:
        """Output shape of level n: never smaller than a patch (spec 7.10)."""
        return self.source.scales[n].of(self.shape, self.settings.patch)

    def patch_at(self, n: int) -> Shape:
        """Patch of level n."""
        return self.settings.patch_at(self.shape_at(n))

    def check(self) -> None:
        """Raise `UserError` for what cannot be computed."""
        last = self.shape_at(self.levels - 1)
        if last != self.shape:
            raise UserError(
                f"an output of {'x'.join(map(str, self.shape))} is smaller than a patch of "
                f"{'x'.join(map(str, self.settings.patch))}: ask for a larger one"
            )
        for n in range(self.levels):
            for side, size in zip(self.patch_at(n), self.source.shape_at(n), strict=True):
                if side > size:
                    raise UserError(f"level {n} of the source is smaller than a patch: use a smaller patch")
        level = self.source.keyless([self.patch_at(n) for n in range(self.levels)])
        if level is not None:
            raise UserError(
                f"no patch of level {level} ({'x'.join(map(str, self.source.shape_at(level)))}) "
                "lies outside the mask: take a larger coarsest level (--least-side) or a smaller hole"
            )


@dataclass(frozen=True)
class State:
    """What is known after level `level`: enough to go on."""

    level: int
    videos: list[Tensor]
    fields: list[Tensor]
    """Key number of each output patch, among the patches of x_level."""
    distances: list[Tensor]
    """D of each patch in the last search."""
    seconds: float = 0.0
    search: str = ""
    """Which search was used."""


@dataclass(frozen=True)
class Output:
    """A video and where its patches came from."""

    video: Float[Tensor, "c t h w"]
    places: Int64[Tensor, "gt gh gw 3"]
    """(frame, row, column) in the source of each output patch, before the vote."""
    distance: Float[Tensor, "gt gh gw"]
    """D of each output patch's query and its key in the last search."""


# ---- One level, all levels (spec 2.4)


def passes(
    problem: Problem,
    state: State | None = None,
    stop: int | None = None,
    make: Callable[..., Matcher] = matcher,
) -> Iterator[State]:
    """Yield the state after each level, from the one after `state` to `stop` (default: all).

    Samples share each level's keys, and each sample is the same in any company. `make` makes the searches.
    """
    problem.check()
    first = 0 if state is None else state.level + 1
    for n in range(first, problem.levels if stop is None else stop + 1):
        since = time.monotonic()
        search = _Level(problem, n, make)
        done = [search.refine(k, state) for k in range(len(problem.guesses))]
        videos, fields, distances = (list(each) for each in zip(*done, strict=True))
        state = State(n, videos, fields, distances, time.monotonic() - since, search.kind)
        del search, done, videos, fields, distances
        give_back()
        yield state


def solve(problem: Problem, state: State | None = None) -> list[Output]:
    """All levels; the outputs of all samples."""
    (last,) = deque(passes(problem, state), maxlen=1)  # a list would keep every level's videos and fields
    return outputs(problem, last)


def outputs(problem: Problem, state: State) -> list[Output]:
    """The videos of a state with the places of their patches in that level of the source."""
    patch = problem.patch_at(state.level)
    grid = grid_of(problem.source.shape_at(state.level), patch)
    return [
        Output(video, places_of(index, grid), distance)
        for video, index, distance in zip(state.videos, state.fields, state.distances, strict=True)
    ]


def grid_of(shape: Shape, patch: Shape) -> Shape:
    """Patch positions."""
    t, h, w = (n - p + 1 for n, p in zip(shape, patch, strict=True))
    return t, h, w


def places_of(index: Int64[Tensor, "*n"], grid: Shape) -> Int64[Tensor, "*n 3"]:
    """(frame, row, column) of patch numbers."""
    rest = index // grid[2]
    return torch.stack([rest // grid[1], rest % grid[1], index % grid[2]], -1)


def index_of(places: Int64[Tensor, "*n 3"], grid: Shape) -> Int64[Tensor, "*n"]:
    """The inverse of `places_of`, clamped into the grid."""
    t, h, w = (places[..., axis].clamp(0, grid[axis] - 1) for axis in range(3))
    return (t * grid[1] + h) * grid[2] + w


def finer_field(
    index: Int64[Tensor, "a b c"],
    keys: Shape,
    grid: Shape,
    among: Shape,
    factors: tuple[Fraction, Fraction, Fraction],
) -> Int64[Tensor, "gt gh gw"]:
    """A coarser level's field on a finer grid: nearest patch, its displacement scaled (spec 7.11).

    The coarser field counts patches of a grid `keys`, the finer one of a grid `among`.
    """
    near, rest = [], []
    for axis, factor in enumerate(factors):
        fine = torch.arange(grid[axis], device=index.device)
        coarse = (fine / float(factor)).round().long().clamp(max=index.shape[axis] - 1)
        near.append(coarse)
        left = fine - (coarse * float(factor)).round().long()
        rest.append(left.view([-1 if a == axis else 1 for a in range(3)]))
    before = index[near[0]][:, near[1]][:, :, near[2]]
    found = torch.zeros_like(before)
    for axis, factor in enumerate(factors):  # one axis at a time: three at once are the peak of a large level
        place = before // math.prod(keys[axis + 1 :]) % keys[axis]
        place = (place * float(factor)).round().long().add_(rest[axis]).clamp_(0, among[axis] - 1)
        found.mul_(among[axis]).add_(place)
    return found


class _Level:
    """One level's keys and values, shared by all samples."""

    def __init__(self, problem: Problem, n: int, make: Callable[..., Matcher] = matcher) -> None:
        self.problem, self.n, self.settings, self.make = problem, n, problem.settings, make
        self.shape, self.patch = problem.shape_at(n), problem.patch_at(n)
        self.values, self.valid = problem.source.sharp(n)
        self.known: tuple[Tensor, Tensor] | None = None
        """What is put back after every step, and where it is not."""
        if problem.known is not None:
            whole, hole = problem.known
            self.known = whole.sharp(n)[0], hole_at(hole, whole.scales[n], self.shape)
        self.grid = grid_of(shape_of(self.values), self.patch)
        self.steps = self.settings.steps_at(n, problem.levels, self.shape)
        self.kind = ""
        self._searches: dict[str, Matcher] = {}

    def refine(self, k: int, before: State | None) -> tuple[Tensor, Tensor, Tensor]:
        """All steps of this level for sample k: its video, field and distances."""
        y, index = self._start(k, before)
        distance = y.new_zeros(1)
        for among in self._searches.values():
            among.forget()
        for step in range(self.steps):
            y, found = self._step(y, index, step, self._draw(k, step))
            index, distance = found.index, found.distance
        assert index is not None  # every level has a step
        return y, index, distance

    def _draw(self, k: int, step: int) -> int:
        """The key of a search's random numbers."""
        return rng.seed_of(self.problem.seed, self.problem.numbers[k], f"vgpnn {self.n} {step}")

    def _start(self, k: int, before: State | None) -> tuple[Tensor, Tensor | None]:
        """The query of the first step, and the coarser level's field as a guess."""
        if before is None:
            return self.problem.guesses[k], None
        levels = self.problem.source.scales
        factors = levels[self.n].over(levels[self.n - 1])
        make = enlarge_loop if self.problem.loop else enlarge
        y = make(before.videos[k], factors, self.shape)
        patch = self.problem.patch_at(self.n - 1)
        keys = grid_of(self.problem.source.shape_at(self.n - 1), patch)
        own = self.shape if not self.problem.loop else (self.shape[0] + self.patch[0] - 1, *self.shape[1:])
        return y, finer_field(before.fields[k], keys, grid_of(own, self.patch), self.grid, factors)

    def _step(self, y: Tensor, index: Tensor | None, step: int, draw: int) -> tuple[Tensor, Found]:
        """Search and vote once."""
        name, query = self._query(y, step)
        if self.problem.loop:
            query = torch.cat([query, query[:, : self.patch[0] - 1]], 1)
        found = self._search(name).search(query, self.settings.alpha, index, draw)
        y = self._vote(found.index)
        if self.known is not None:
            y = put_back(y, *self.known)
        return y, found

    def _query(self, y: Tensor, step: int) -> tuple[str, Tensor]:
        """What is compared in this step, and what the query is."""
        name = "blurred" if step == 0 else "sharp"
        guides = self.problem.guides
        if guides is None or not guides.shown(self.n, self.problem.levels):
            return name, y
        guide = shrink(guides.output, self.problem.source.scales[self.n], self.shape) * guides.weight
        if self.n == 0 and step == 0:
            return "guide", guide
        return f"{name} guided", torch.cat([y, guide])

    def _search(self, name: str) -> Matcher:
        if name not in self._searches:
            blurred = "blurred" in name
            keys, mask = self.problem.source.blurred(self.n) if blurred else (self.values, self.valid)
            if "guide" in name and self.problem.guides is not None:
                guides, scale = self.problem.guides, self.problem.source.scales[self.n]
                guide = shrink(guides.source, scale, shape_of(keys)) * guides.weight
                keys = guide if name == "guide" else torch.cat([keys, guide])
            if self.problem.exclude is not None:
                free = ~hole_at(self.problem.exclude, self.problem.source.scales[self.n], shape_of(keys))
                mask = free if mask is None else mask & free
            queries = math.prod(grid_of(self.shape, self.patch))
            s = self.settings
            kind = decide(s.search, math.prod(self.grid), keys.device.type, s.switch)
            made = self.make(keys, mask, self.patch, queries, kind, s.schedule, s.memory)
            self.kind = made.kind
            self._searches = {name: made}  # the keys of a step before are not needed again
        return self._searches[name]

    def _vote(self, index: Tensor) -> Tensor:
        if not self.problem.loop:
            return fold(self.values, index, self.patch, self.settings.vote, self.settings.memory)
        around = self.patch[0] - 1
        wide = torch.cat([index[len(index) - around :], index]) if around else index
        y = fold(self.values, wide, self.patch, self.settings.vote, self.settings.memory)
        return y[:, around : around + self.shape[0]].contiguous()


def hole_at(hole: Bool[Tensor, "t h w"], scale: Scale, shape: Shape) -> Bool[Tensor, "_ _ _"]:
    """The hole of a level: every voxel that any of the hole has a share in."""
    outside = shrink((~hole)[None].float(), scale, shape)
    return outside[0] < VALID


def put_back(
    y: Float[Tensor, "c t h w"], x: Float[Tensor, "c t h w"], hole: Bool[Tensor, "t h w"]
) -> Float[Tensor, "c t h w"]:
    """y in the hole, x elsewhere."""
    return torch.where(hole, y, x)


# ---- Noise (spec 2.3)


def noise(
    shape: tuple[int, int, int, int], sigma: float, seed: int, sample: int, still: bool = False
) -> Float32[Tensor, "c t h w"]:
    """sigma z, z standard normal per voxel and channel; `still`: the same in every frame."""
    drawn = rng.normal((shape[0], 1, *shape[2:]) if still else shape, seed, sample, "vgpnn")
    return sigma * drawn.expand(shape)


def rule_of_thumb(coarse: Float[Tensor, "c t h w"], patch: Shape) -> float:
    """Mean distance (root of the sum of squares) of a patch to its nearest other one (spec 2.3)."""
    view = coarse.unfold(1, patch[0], 1).unfold(2, patch[1], 1).unfold(3, patch[2], 1)
    rows = view.permute(1, 2, 3, 0, 4, 5, 6).flatten(0, 2).flatten(1).double()
    if len(rows) < 2:
        return 0.0
    least = []
    for start in range(0, len(rows), 256):
        part = torch.cdist(rows[start : start + 256], rows)
        part[torch.arange(len(part)), torch.arange(start, start + len(part))] = math.inf
        least.append(part.amin(1))
    return float(torch.cat(least).mean())
