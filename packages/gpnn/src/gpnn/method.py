"""Drop the GAN (arXiv 2103.15545): the equations, from one patch step to the whole coarse-to-fine pass.

symbol      meaning                                                                 source
x_n         source image at level n, 0 (full) .. N (coarsest)                       spec 2.1
k_n         its blurred copy: x_{n+1} enlarged to x_n's size; k_N = x_N             spec 2.3
y           output image of the present level                                      spec 2.1
p, d        patch side (7), numbers in a patch (channels p^2)                       spec 2.1
D_ij, S_ij  mean squared patch difference; D_ij / (alpha + min_i D_ij)              spec 2.2, steps 2, 3
j*(i)       argmin_j S_ij, lowest j on ties: the nearest-neighbour field            spec 2.2, step 4
g(u)        fold weight exp(-u^2 / (2 1.7^2)), u on p points of [-1, 1]             spec 2.2, step 5
r, T_N, T   ratio of two levels; steps at the coarsest and at every other level     spec 2.4

Used by `tasks`. The search itself is `search`, on `paperkit.nearest`. No input or output here.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from paperkit import UserError
from paperkit.resize import exact, output_length, resize
from torch import Tensor
from torch.nn import functional as F

from gpnn.folding import can_compile, fold_compiled
from gpnn.search import Kind, Matcher, matcher

Keys = Literal["blurred", "switch", "both"]
"""Which images the keys are cut from: k_n always (released code); k_n in the first step of a level and x_n
afterwards; k_n and x_n together (the published retargeting, analogy, collage and inpainting figures)."""
Fold = Literal["gaussian", "mean", "median"]

SPREAD = 1.7
"""Standard deviation of the fold's weight, in half patch sides."""
VALID = 0.999
"""A pixel serves as a key when at least this share of its resampling weight lies outside the mask."""


@dataclass(frozen=True)
class Settings:
    """What decides a coarse-to-fine pass beside its images."""

    alpha: float = math.inf
    """Completeness: S = D / (alpha + min_i D); inf = plain nearest neighbour."""
    ratio: float = 0.75
    """r: size of a level over that of the finer one."""
    levels: int = 9
    """N: how often the image is shrunk."""
    coarse_steps: int = 1
    """T_N."""
    steps: int = 10
    """T."""
    keys: Keys = "blurred"
    patch: int = 7
    """p."""
    fold: Fold = "gaussian"
    search: Kind = "exact"
    memory: int = 2**26
    """Working memory of a search, in bytes."""

    def __post_init__(self):
        if math.isnan(self.alpha) or self.alpha <= 0:
            raise UserError(f"alpha must be positive or inf, not {self.alpha}")
        if not 0.1 <= self.ratio < 1:
            raise UserError(f"the ratio of two levels must be in [0.1, 1), not {self.ratio}")
        if self.levels < 0:
            raise UserError(f"the number of levels must not be negative: {self.levels}")
        if min(self.coarse_steps, self.steps) < 1:
            raise UserError("every level needs at least one step")
        if self.patch < 1:
            raise UserError(f"the patch side must be at least 1, not {self.patch}")


# ---- Pyramid (spec 2.3)


def level_size(size: tuple[int, int], ratio: float, n: int) -> tuple[int, int]:
    """ceil(r^n H) x ceil(r^n W)."""
    scale: Fraction = exact(ratio) ** n
    return output_length(size[0], scale), output_length(size[1], scale)


def depth(size: tuple[int, int], ratio: float, smallest: int) -> int:
    """Largest N whose coarsest shorter side is at least `smallest` pixels."""
    n = 0
    while n < 64 and min(level_size(size, ratio, n + 1)) >= smallest:
        n += 1
    return n


def down(x: Float[Tensor, "c h w"], size: tuple[int, int], ratio: float) -> Float[Tensor, "c s t"]:
    """One level coarser: antialiased cubic, sampling step exactly 1/r whatever the size rounds to."""
    return resize(x, scale=exact(ratio), size=size)


def up(x: Float[Tensor, "c h w"], size: tuple[int, int], ratio: float) -> Float[Tensor, "c s t"]:
    """One level finer: cubic, sampling step exactly r."""
    return resize(x, scale=1 / exact(ratio), size=size)


def pyramid(x: Float[Tensor, "c h w"], levels: int, ratio: float) -> list[Tensor]:
    """x_0 .. x_N, each made from the one before."""
    images = [x]
    for n in range(1, levels + 1):
        images.append(down(images[-1], level_size((x.shape[1], x.shape[2]), ratio, n), ratio))
    return images


@dataclass(frozen=True)
class Source:
    """A source's pyramid; with a mask, x m and m are resampled together, so that no masked pixel leaks in.

    Level n of a masked source is (x m)_n / m_n; where m_n is below 1/2 there is no image (0).
    """

    weighted: list[Tensor]
    """(x m)_n, or x_n without a mask."""
    weight: list[Tensor] | None
    """m_n (1, h, w)."""
    ratio: float

    @classmethod
    def of(
        cls, x: Float[Tensor, "c h w"], settings: Settings, mask: Bool[Tensor, "h w"] | None = None
    ) -> "Source":
        """The pyramid of x; `mask` is True where x may be used."""
        if mask is None:
            return cls(pyramid(x, settings.levels, settings.ratio), None, settings.ratio)
        m = mask[None].to(x)
        images = pyramid(torch.where(mask, x, 0), settings.levels, settings.ratio)
        return cls(images, pyramid(m, settings.levels, settings.ratio), settings.ratio)

    def size(self, n: int) -> tuple[int, int]:
        """Height and width of level n."""
        return self.weighted[n].shape[1], self.weighted[n].shape[2]

    def sharp(self, n: int) -> tuple[Float[Tensor, "c h w"], Bool[Tensor, "h w"] | None]:
        """x_n and which of its pixels may be keys."""
        return _ratio(self.weighted[n], None if self.weight is None else self.weight[n])

    def blurred(self, n: int) -> tuple[Float[Tensor, "c h w"], Bool[Tensor, "h w"] | None]:
        """k_n and which of its pixels may be keys: those valid at this level and at the coarser one."""
        size = self.size(n)
        image = up(self.weighted[n + 1], size, self.ratio)
        if self.weight is None:
            return image, None
        image, mask = _ratio(image, up(self.weight[n + 1], size, self.ratio))
        fine = self.sharp(n)[1]
        return image, None if mask is None or fine is None else mask & fine

    def has_keys(self, levels: int, patch: int) -> bool:
        """Whether a pass of so many levels finds a valid patch at each of them."""
        return self.keyless(levels, patch) is None

    def keyless(self, levels: int, patch: int) -> int | None:
        """The coarsest level of such a pass that has no valid patch."""
        if self.weight is None:
            return None
        for n in range(levels, -1, -1):
            mask = (self.sharp(n) if n == levels else self.blurred(n))[1]
            if mask is not None and not bool((F.max_pool2d((~mask)[None].float(), patch, 1) == 0).any()):
                return n
        return None


def _ratio(image: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if weight is None:
        return image, None
    return torch.where(weight > 0.5, image / weight.clamp(min=0.5), 0), weight[0] >= VALID


# ---- Keys and values of a level


@dataclass(frozen=True)
class KeySet:
    """Keys of one step and the values at the same places: several images in one frame, masked gaps between.

    One frame instead of lists of patches: patches stay windows of an image and are never unfolded.
    """

    keys: Float[Tensor, "c h w"]
    values: Float[Tensor, "c h w"]
    mask: Bool[Tensor, "h w"] | None
    parts: tuple[tuple[int, int, int, int], ...]
    """(first row, height, width, source) of each image in the frame."""

    def grid(self, patch: int) -> tuple[int, int]:
        """Patch positions of the frame."""
        return self.keys.shape[1] - patch + 1, self.keys.shape[2] - patch + 1

    def places(self, field: Int64[Tensor, "*n"], patch: int) -> Int64[Tensor, "*n 3"]:
        """(source, row, column) of the upper left pixel of each patch."""
        width = self.grid(patch)[1]
        row, column = field // width, field % width
        source, first = torch.zeros_like(row), torch.zeros_like(row)
        for start, _, _, number in self.parts:  # ascending
            source = torch.where(row >= start, number, source)
            first = torch.where(row >= start, start, first)
        return torch.stack([source, row - first, column], -1)

    def indices(self, places: Int64[Tensor, "*n 3"], patch: int) -> Int64[Tensor, "*n"]:
        """The inverse of `places`, clamped into each image; of a source's images the first in the frame."""
        width = self.grid(patch)[1]
        index = torch.full_like(places[..., 0], -1)
        for start, rows, columns, number in reversed(self.parts):
            row = places[..., 1].clamp(0, rows - patch) + start
            column = places[..., 2].clamp(0, columns - patch)
            index = torch.where(places[..., 0] == number, row * width + column, index)
        return index


def key_set(sources: Sequence[Source], n: int, kind: Literal["blurred", "sharp", "both"]) -> KeySet:
    """Keys and values of level n over all sources."""
    images: list[tuple[Tensor, Tensor, Tensor | None, int]] = []
    for blurred in (True, False):
        if kind not in ("both", "blurred" if blurred else "sharp"):
            continue
        for number, source in enumerate(sources):
            values, _ = source.sharp(n)
            keys, mask = source.blurred(n) if blurred else source.sharp(n)
            images.append((keys, values, mask, number))
    if len(images) == 1:
        keys, values, mask, number = images[0]
        return KeySet(keys, values, mask, ((0, keys.shape[1], keys.shape[2], number),))
    # One row between two images belongs to neither: no patch across it is a key.
    height = sum(keys.shape[1] for keys, _, _, _ in images) + len(images) - 1
    width = max(keys.shape[2] for keys, _, _, _ in images)
    first = images[0][0]
    frame = first.new_zeros(2, first.shape[0], height, width)
    valid = torch.zeros(height, width, dtype=torch.bool, device=first.device)
    parts, top = [], 0
    for keys, values, mask, number in images:
        _, h, w = keys.shape
        frame[0, :, top : top + h, :w], frame[1, :, top : top + h, :w] = keys, values
        valid[top : top + h, :w] = True if mask is None else mask
        parts.append((top, h, w, number))
        top += h + 1
    return KeySet(frame[0], frame[1], valid, tuple(parts))


# ---- Fold (spec 2.2, step 5)


def fold_weights(patch: int, kind: Fold = "gaussian") -> Float64[Tensor, "p"]:
    """g(u); the weight of a pixel of a patch is g(row) g(column)."""
    u = torch.linspace(-1, 1, patch, dtype=torch.float64) if patch > 1 else torch.zeros(1).double()
    return torch.exp(-(u**2) / (2 * SPREAD**2)) if kind == "gaussian" else torch.ones_like(u)


def fold(
    values: Float[Tensor, "c h w"], field: Int64[Tensor, "gh gw"], patch: int, kind: Fold = "gaussian"
) -> Float[Tensor, "c s t"]:
    """The image whose patch i is patch field[i] of `values`; overlaps by weighted mean, mean or median.

    By gathers, patches are never unfolded. Equal contributions give exactly their value: the mean is taken of
    the differences from one of them.
    """
    if kind != "median":
        weights = fold_weights(patch, kind)
        return (fold_compiled if can_compile(values) else fold_torch)(values, field, weights)
    width = values.shape[2]
    columns = width - patch + 1
    return _median(values.flatten(1), field // columns * width + field % columns, width, patch)


def fold_torch(
    values: Float[Tensor, "c h w"], field: Int64[Tensor, "gh gw"], weights: Float64[Tensor, "p"]
) -> Float[Tensor, "c s t"]:
    """The weighted mean by p^2 gathers of torch, on any device."""
    patch = len(weights)
    c, _, width = values.shape
    gh, gw = field.shape
    flat, columns = values.flatten(1), width - patch + 1
    origin = field // columns * width + field % columns
    row, column = torch.arange(gh + patch - 1), torch.arange(gw + patch - 1)
    i, j = row.clamp(max=gh - 1).to(field.device), column.clamp(max=gw - 1).to(field.device)
    inside = (row.to(i) - i)[:, None] * width + (column.to(j) - j)
    base = flat[:, origin[i][:, j] + inside]
    total, weight = torch.zeros_like(base), torch.zeros_like(base[0])
    for u in range(patch):
        for v in range(patch):
            w = float(weights[u] * weights[v])
            here = (..., slice(u, u + gh), slice(v, v + gw))
            part = flat[:, (origin + (u * width + v)).flatten()].view(c, gh, gw)
            total[here] += w * (part - base[here])
            weight[here] += w
    return base + total / weight


def _median(flat: Tensor, origin: Tensor, width: int, patch: int) -> Tensor:
    """Lower median of the covering patches, some rows at a time."""
    gh, gw = origin.shape
    rows = []
    for row in range(gh + patch - 1):
        stack = flat.new_full((patch * patch, flat.shape[0], gw + patch - 1), math.nan)
        for u in range(patch):
            for v in range(patch):
                if 0 <= row - u < gh:
                    stack[u * patch + v, :, v : v + gw] = flat[:, origin[row - u] + (u * width + v)]
        rows.append(stack.nanmedian(0).values)
    return torch.stack(rows, 1)


# ---- One step, one level, all levels


@dataclass(frozen=True)
class Output:
    """An image and where its patches came from."""

    image: Float[Tensor, "c h w"]
    places: Int64[Tensor, "gh gw 3"]
    """(source, row, column) in the source at full size of each output patch, before the fold."""
    distance: Float64[Tensor, "gh gw"]
    """D of each output patch's query and its key in the last step."""


@dataclass(frozen=True)
class LevelFacts:
    """What a level cost, for reports."""

    level: int
    size: tuple[int, int]
    queries: int
    keys: int
    seconds: float
    distance: float
    """Mean D of the last step, over all samples."""


def pnn_step(
    y: Float[Tensor, "c h w"], among: Matcher, values: Tensor, settings: Settings, seeds: Tensor | None
) -> tuple[Float[Tensor, "c h w"], Int64[Tensor, "gh gw"], Float64[Tensor, "gh gw"]]:
    """Replace each patch of y by the value of its nearest key, and fold (spec 2.2)."""
    grid = y.shape[1] - settings.patch + 1, y.shape[2] - settings.patch + 1
    found = among.search(y, settings.alpha, seeds)
    field = found.index.view(grid)
    return fold(values, field, settings.patch, settings.fold), field, found.distance.view(grid)


def scaled_places(
    places: Int64[Tensor, "a b 3"], grid: tuple[int, int], ratio: float
) -> Int64[Tensor, "gh gw 3"]:
    """A coarser level's field on a finer grid: the same displacements, times 1/r. A warm start only."""
    rows, columns = (
        (torch.arange(n, device=places.device) * ratio).round().long().clamp(max=m - 1)
        for n, m in zip(grid, places.shape[:2], strict=True)
    )
    near = places[rows][:, columns]
    shift_row = torch.arange(grid[0], device=places.device) - (rows / ratio).round().long()
    shift_column = torch.arange(grid[1], device=places.device) - (columns / ratio).round().long()
    row = (near[..., 1] / ratio).round().long() + shift_row[:, None]
    column = (near[..., 2] / ratio).round().long() + shift_column
    return torch.stack([near[..., 0], row, column], -1)


def coarse_to_fine(
    sources: Sequence[Source],
    guesses: Sequence[Float[Tensor, "c h w"]],
    size: tuple[int, int],
    settings: Settings,
    on_level: Callable[[LevelFacts], None] | None = None,
) -> list[Output]:
    """Outputs of `size` from guesses at level N (spec 2.3); all samples share each level's keys.

    Raises `UserError` where a level is smaller than a patch or the masks leave it no key.
    """
    _check_sizes(sources, guesses, size, settings)
    images = list(guesses)
    places: list[Tensor | None] = [None] * len(images)
    outputs: list[Output] = []
    for n in range(settings.levels, -1, -1):
        since = time.monotonic()
        steps = settings.coarse_steps if n == settings.levels else settings.steps
        stages = _stages(sources, n, settings, steps)
        searches = [matcher(keys, settings.patch, settings.search, settings.memory) for keys, _ in stages]
        outputs = [
            _refine(y, before, stages, searches, settings) for y, before in zip(images, places, strict=True)
        ]
        if n:
            finer = level_size(size, settings.ratio, n - 1)
            images = [up(output.image, finer, settings.ratio) for output in outputs]
            places = [output.places for output in outputs]
        if on_level:
            distance = torch.stack([output.distance for output in outputs])
            cost, keys = time.monotonic() - since, math.prod(stages[-1][0].grid(settings.patch))
            shape = level_size(size, settings.ratio, n)
            on_level(LevelFacts(n, shape, distance[0].numel(), keys, cost, float(distance.mean())))
    return outputs


def _refine(
    y: Tensor,
    coarser: Tensor | None,
    stages: Sequence[tuple[KeySet, int]],
    searches: Sequence[Matcher],
    settings: Settings,
) -> Output:
    """All steps of one level for one sample; `coarser` is the coarser level's field, a warm start."""
    grid = y.shape[1] - settings.patch + 1, y.shape[2] - settings.patch + 1
    places = None if coarser is None else scaled_places(coarser, grid, settings.ratio)
    distance = y.new_zeros(grid, dtype=torch.float64)
    for (keys, count), among in zip(stages, searches, strict=True):
        among.forget()
        field = y.new_zeros(grid, dtype=torch.int64)
        seeds = None if places is None else keys.indices(places, settings.patch).flatten()
        for _ in range(count):
            y, field, distance = pnn_step(y, among, keys.values, settings, seeds)
        places = keys.places(field, settings.patch)
    assert places is not None  # every level has a stage
    return Output(y, places, distance)


def _stages(sources: Sequence[Source], n: int, settings: Settings, steps: int) -> list[tuple[KeySet, int]]:
    """Key sets of a level, each with its number of steps (spec 2.3, 7.1)."""
    if n == settings.levels:
        return [(key_set(sources, n, "sharp"), steps)]
    if settings.keys == "switch" and steps > 1:
        return [(key_set(sources, n, "blurred"), 1), (key_set(sources, n, "sharp"), steps - 1)]
    return [(key_set(sources, n, "both" if settings.keys == "both" else "blurred"), steps)]


def _check_sizes(
    sources: Sequence[Source], guesses: Sequence[Tensor], size: tuple[int, int], settings: Settings
) -> None:
    n, p = settings.levels, settings.patch
    coarse = level_size(size, settings.ratio, n)
    for guess in guesses:
        if (guess.shape[1], guess.shape[2]) != coarse:
            raise UserError(f"the guess is {tuple(guess.shape[1:])}, level {n} of the output is {coarse}")
    for what, (h, w) in [("output", coarse), *(("source", source.size(n)) for source in sources)]:
        if min(h, w) < p:
            raise UserError(
                f"{what} of {h}x{w} at the coarsest level is smaller than a {p}x{p} patch: use fewer levels "
                "or a larger image"
            )
    for source in sources:
        level = source.keyless(n, p)
        if level is not None:
            raise UserError(
                f"no patch of level {level} ({'x'.join(map(str, source.size(level)))}) lies outside the "
                "mask: use fewer levels or a smaller hole"
            )
