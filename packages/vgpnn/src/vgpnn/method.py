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

Used by `tasks`. Searches are in `search`, votes in `folding`. No input or output here.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Float32, Int64
from paperkit import UserError, rng
from paperkit.resize import exact, resize, taps
from torch import Tensor
from torch.nn import functional as F

from vgpnn.folding import Vote, fold
from vgpnn.search import Found, Kind, Matcher, Schedule, matcher

Shape = tuple[int, int, int]
"""Frames, height, width."""

VALID = 0.999
"""A voxel serves as a key when at least this share of its resampling weight lies outside the mask."""
MOST_LEVELS = 50


@dataclass(frozen=True)
class Settings:
    """What decides a coarse-to-fine pass beside its videos."""

    ratio_time: float = 0.87
    """r_T."""
    ratio_space: float = 0.82
    """r_S."""
    least_frames: int = 3
    """Frames of the coarsest level."""
    least_side: int = 15
    """Shorter side of the coarsest level, in pixels."""
    patch: Shape = (3, 7, 7)
    steps: int = 5
    """J."""
    coarse_steps: int = 1
    """J at the coarsest level."""
    big: int = 3_000_000
    """Output voxels above which a level has one step."""
    big_patch: Shape = (3, 5, 5)
    """The patch of levels above `patch_limit` voxels."""
    patch_limit: int = 3_000_000
    last_steps: int = 0
    """J of the two finest levels, where it is not J (sketch-to-video: 1); 0: J."""
    alpha: float = math.inf
    """Completeness, in units of the mean square; inf = plain nearest neighbour."""
    vote: Vote = "median"
    search: Kind = "auto"
    schedule: Schedule = field(default_factory=Schedule)
    """Of PatchMatch."""
    memory: int = 2**27
    """Working memory of a search and of a fold, in bytes."""

    def __post_init__(self):
        for name, ratio in (("time", self.ratio_time), ("space", self.ratio_space)):
            if not 0.1 <= ratio < 1:
                raise UserError(f"the ratio of two levels in {name} must be in [0.1, 1), not {ratio}")
        if math.isnan(self.alpha) or self.alpha <= 0:
            raise UserError(f"alpha must be positive or inf, not {self.alpha}")
        if min(*self.patch, *self.big_patch) < 1:
            raise UserError(f"the sides of a patch must be at least 1, not {self.patch}")
        if min(self.steps, self.coarse_steps) < 1:
            raise UserError("every level needs at least one step")
        if self.least_frames < self.patch[0] or self.least_side < max(self.patch[1:]):
            raise UserError(
                f"the coarsest level, {self.least_frames} frames of {self.least_side} pixels, holds no "
                f"patch of {self.patch}: make it larger or the patch smaller"
            )

    def patch_at(self, shape: Shape) -> Shape:
        """The patch of an output level (spec 2.4, step 6)."""
        return self.big_patch if math.prod(shape) > self.patch_limit else self.patch

    def steps_at(self, level: int, levels: int, shape: Shape) -> int:
        """J of an output level (spec 2.4, steps 5 and 6)."""
        if math.prod(shape) > self.big:
            return 1
        if level == 0:
            return self.coarse_steps
        return self.last_steps if self.last_steps and level >= levels - 2 else self.steps


# ---- Pyramid (spec 2.2)


@dataclass(frozen=True)
class Scale:
    """A level's scales against the full size."""

    time: Fraction
    space: Fraction

    def of(self, shape: Shape, least: Shape = (1, 1, 1)) -> Shape:
        """ceil(scale x size), exact sizes protected by 1e-5; never below `least`."""
        scales = (self.time, self.space, self.space)
        sizes = [math.ceil(s * n - Fraction(1, 100_000)) for s, n in zip(scales, shape, strict=True)]
        t, h, w = (max(size, low) for size, low in zip(sizes, least, strict=True))
        return t, h, w

    def over(self, other: "Scale") -> tuple[Fraction, Fraction, Fraction]:
        """Steps of the finer level's grid in the coarser one, per axis."""
        return self.time / other.time, self.space / other.space, self.space / other.space

    @property
    def axes(self) -> tuple[Fraction, Fraction, Fraction]:
        """Per axis."""
        return self.time, self.space, self.space


def scales(shape: Shape, settings: Settings) -> list[Scale]:
    """The levels of a source, coarsest first: time and space shrink together, each down to its own minimum.

    A level that would fall under a minimum gets the scale that reaches it from the level before; from then
    on that axis is frozen. Raises `UserError` for a source below the minimum.
    """
    least, side = (settings.least_frames, settings.least_side), min(shape[1:])
    if shape[0] < least[0] or side < least[1]:
        raise UserError(
            f"a clip of {shape[0]} frames of {shape[1]}x{shape[2]} is below the coarsest level, {least[0]} "
            f"frames with a shorter side of {least[1]}: give a longer or larger clip, or a smaller minimum"
        )
    time_ratio, space_ratio = exact(settings.ratio_time), exact(settings.ratio_space)
    found = [Scale(Fraction(1), Fraction(1))]
    now = shape
    while now[0] > least[0] or min(now[1:]) > least[1]:
        if len(found) >= MOST_LEVELS:
            raise UserError(f"more than {MOST_LEVELS} levels: take smaller ratios of two levels")
        n, before = len(found), found[-1]
        scale = Scale(time_ratio**n, space_ratio**n)
        size = scale.of(shape)
        if size[0] < least[0]:
            scale = replace(scale, time=Fraction(least[0], now[0]) * before.time)
        if min(size[1:]) <= least[1]:
            scale = replace(scale, space=Fraction(least[1], min(now[1:])) * before.space)
        now = scale.of(shape)
        found.append(scale)
    return found[::-1]


def shrink(x: Float[Tensor, "c t h w"], scale: Scale, shape: Shape) -> Float[Tensor, "c _ _ _"]:
    """A level from the full size: antialiased cubic, in time too, steps of exactly 1/scale."""
    return resize(x, scale=scale.axes, size=shape, axes=(1, 2, 3))


def enlarge(
    x: Float[Tensor, "c t h w"], factors: tuple[Fraction, Fraction, Fraction], shape: Shape
) -> Float[Tensor, "c _ _ _"]:
    """The next finer level's size."""
    return resize(x, scale=factors, size=shape, axes=(1, 2, 3))


def enlarge_loop(
    x: Float[Tensor, "c t h w"], factors: tuple[Fraction, Fraction, Fraction], shape: Shape
) -> Float[Tensor, "c _ _ _"]:
    """The same for a video whose last frame is followed by its first: the time axis wraps around."""
    frames = x.shape[1]
    where = taps(frames, shape[0], Fraction(shape[0], frames))
    matrix = torch.zeros(shape[0], frames, dtype=torch.float64)
    weight = torch.from_numpy(where.weight / where.weight.sum(1, keepdims=True))
    matrix.scatter_add_(1, torch.from_numpy(where.position % frames), weight)
    y = torch.einsum("st,cthw->cshw", matrix.to(x), x)
    return resize(y, scale=factors[1:], size=shape[1:], axes=(2, 3))


@dataclass(frozen=True)
class Source:
    """A source's pyramid, coarsest first; with a mask, x m and m are resampled together, so that no masked
    voxel leaks in: level n is (x m)_n / m_n, and 0 where m_n is below 1/2.
    """

    scales: list[Scale]
    weighted: list[Tensor]
    """(x m)_n, or x_n without a mask."""
    weight: list[Tensor] | None
    """m_n (1, t, h, w)."""

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "c t h w"],
        settings: Settings,
        mask: Bool[Tensor, "t h w"] | None = None,
    ) -> "Source":
        """The pyramid of x; `mask` is True where x may be used."""
        levels = scales(shape_of(x), settings)
        m = None if mask is None else mask[None].to(x)
        shown = x if m is None else x * m
        return cls(levels, _pyramid(shown, levels), None if m is None else _pyramid(m, levels))

    def sharp(self, n: int) -> tuple[Float[Tensor, "c t h w"], Bool[Tensor, "t h w"] | None]:
        """x_n and which of its voxels may be keys."""
        return _share(self.weighted[n], None if self.weight is None else self.weight[n])

    def blurred(self, n: int) -> tuple[Float[Tensor, "c t h w"], Bool[Tensor, "t h w"] | None]:
        """k_n and which of its voxels may be keys: those valid at this level and at the coarser one."""
        if n == 0:
            return self.sharp(0)
        factors, shape = self.scales[n].over(self.scales[n - 1]), shape_of(self.weighted[n])
        image = enlarge(self.weighted[n - 1], factors, shape)
        if self.weight is None:
            return image, None
        image, mask = _share(image, enlarge(self.weight[n - 1], factors, shape))
        fine = self.sharp(n)[1]
        return image, None if mask is None or fine is None else mask & fine

    def keyless(self, patches: Sequence[Shape]) -> int | None:
        """The first level without any patch that may be a key."""
        for n, patch in enumerate(patches if self.weight is not None else ()):
            mask = self.blurred(n)[1]
            if mask is not None and not bool((F.max_pool3d((~mask)[None].float(), patch, 1) == 0).any()):
                return n
        return None


def shape_of(x: Tensor) -> Shape:
    """Frames, height, width of a video (c, t, h, w)."""
    return x.shape[1], x.shape[2], x.shape[3]


def _pyramid(x: Tensor, levels: Sequence[Scale]) -> list[Tensor]:
    return [shrink(x, scale, scale.of(shape_of(x))) for scale in levels]


def _share(image: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if weight is None:
        return image, None
    return torch.where(weight > 0.5, image / weight.clamp(min=0.5), 0), weight[0] >= VALID


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
            for side, size in zip(self.patch_at(n), shape_of(self.source.weighted[n]), strict=True):
                if side > size:
                    raise UserError(f"level {n} of the source is smaller than a patch: use a smaller patch")
        level = self.source.keyless([self.patch_at(n) for n in range(self.levels)])
        if level is not None:
            raise UserError(
                f"no patch of level {level} ({'x'.join(map(str, shape_of(self.source.weighted[level])))}) "
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


def passes(problem: Problem, state: State | None = None, stop: int | None = None) -> Iterator[State]:
    """Yield the state after each level, from the one after `state` to `stop` (default: all).

    Samples share each level's keys, and each sample is the same in any company.
    """
    problem.check()
    first = 0 if state is None else state.level + 1
    for n in range(first, problem.levels if stop is None else stop + 1):
        since = time.monotonic()
        search = _Level(problem, n)
        done = [search.refine(k, state) for k in range(len(problem.guesses))]
        videos, fields, distances = (list(each) for each in zip(*done, strict=True))
        state = State(n, videos, fields, distances, time.monotonic() - since, search.kind)
        yield state


def solve(problem: Problem, state: State | None = None) -> list[Output]:
    """All levels; the outputs of all samples."""
    *_, last = passes(problem, state)
    return outputs(problem, last)


def outputs(problem: Problem, state: State) -> list[Output]:
    """The videos of a state with the places of their patches in that level of the source."""
    patch = problem.patch_at(state.level)
    source = shape_of(problem.source.weighted[state.level])
    grid = grid_of(source, patch)
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
        rest.append(fine - (coarse * float(factor)).round().long())
    places = places_of(index, keys)[near[0]][:, near[1]][:, :, near[2]]
    scaled = (places * torch.tensor([float(f) for f in factors], device=index.device)).round().long()
    scaled[..., 0] += rest[0][:, None, None]
    scaled[..., 1] += rest[1][:, None]
    scaled[..., 2] += rest[2]
    return index_of(scaled, among)


class _Level:
    """One level's keys and values, shared by all samples."""

    def __init__(self, problem: Problem, n: int) -> None:
        self.problem, self.n, self.settings = problem, n, problem.settings
        self.shape, self.patch = problem.shape_at(n), problem.patch_at(n)
        self.values = problem.source.sharp(n)[0]
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
        keys = grid_of(shape_of(self.problem.source.weighted[self.n - 1]), patch)
        own = self.shape if not self.problem.loop else (self.shape[0] + self.patch[0] - 1, *self.shape[1:])
        return y, finer_field(before.fields[k], keys, grid_of(own, self.patch), self.grid, factors)

    def _step(self, y: Tensor, index: Tensor | None, step: int, draw: int) -> tuple[Tensor, Found]:
        """Search and vote once."""
        name, query = self._query(y, step)
        if self.problem.loop:
            query = torch.cat([query, query[:, : self.patch[0] - 1]], 1)
        found = self._search(name).search(query, self.settings.alpha, index, draw)
        y = self._vote(found.index)
        if self.problem.known is not None:
            whole, hole = self.problem.known
            y = put_back(y, whole.sharp(self.n)[0], hole_at(hole, whole.scales[self.n], self.shape))
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
            keys, mask = (self.problem.source.blurred if "blurred" in name else self.problem.source.sharp)(
                self.n
            )
            if "guide" in name and self.problem.guides is not None:
                guides, scale = self.problem.guides, self.problem.source.scales[self.n]
                guide = shrink(guides.source, scale, shape_of(keys)) * guides.weight
                keys = guide if name == "guide" else torch.cat([keys, guide])
            if self.problem.exclude is not None:
                free = ~hole_at(self.problem.exclude, self.problem.source.scales[self.n], shape_of(keys))
                mask = free if mask is None else mask & free
            queries = math.prod(grid_of(self.shape, self.patch))
            s = self.settings
            made = matcher(keys, mask, self.patch, queries, s.search, s.schedule, s.memory)
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
