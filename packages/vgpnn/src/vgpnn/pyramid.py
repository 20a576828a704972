"""Settings of a pass, and the space-time pyramid of a source (spec 2.2). Used by `method` and `tasks`.

Every level is resampled from the full size; time and space shrink together, each down to its own minimum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch
from jaxtyping import Bool, Float
from paperkit import UserError
from paperkit.resize import exact, resize, taps
from torch import Tensor
from torch.nn import functional as F

from vgpnn.folding import Vote
from vgpnn.search import Kind, Schedule

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
    switch: int = 0
    """Most keys for which `auto` searches exactly; 0: `search.SWITCH`."""
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

    Levels are made when asked for, so that none but those of the present step are in memory.
    """

    scales: list[Scale]
    shown: Float[Tensor, "c t h w"]
    """x m, or x without a mask, at full size."""
    share: Float[Tensor, "1 t h w"] | None = None
    """m."""

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "c t h w"],
        settings: Settings,
        mask: Bool[Tensor, "t h w"] | None = None,
    ) -> "Source":
        """The pyramid of x; `mask` is True where x may be used."""
        m = None if mask is None else mask[None].to(x)
        return cls(scales(shape_of(x), settings), x if m is None else x * m, m)

    def shape_at(self, n: int) -> Shape:
        """Shape of level n."""
        return self.scales[n].of(shape_of(self.shown))

    def sharp(self, n: int) -> tuple[Float[Tensor, "c t h w"], Bool[Tensor, "t h w"] | None]:
        """x_n and which of its voxels may be keys."""
        return _shared(self._at(self.shown, n), None if self.share is None else self._at(self.share, n))

    def blurred(self, n: int) -> tuple[Float[Tensor, "c t h w"], Bool[Tensor, "t h w"] | None]:
        """k_n and which of its voxels may be keys: those valid at this level and at the coarser one."""
        if n == 0:
            return self.sharp(0)
        factors, shape = self.scales[n].over(self.scales[n - 1]), self.shape_at(n)
        image = enlarge(self._at(self.shown, n - 1), factors, shape)
        if self.share is None:
            return image, None
        image, mask = _shared(image, enlarge(self._at(self.share, n - 1), factors, shape))
        fine = self.sharp(n)[1]
        return image, None if mask is None or fine is None else mask & fine

    def _at(self, x: Tensor, n: int) -> Tensor:
        return shrink(x, self.scales[n], self.shape_at(n))

    def keyless(self, patches: Sequence[Shape]) -> int | None:
        """The first level without any patch that may be a key."""
        for n, patch in enumerate(patches if self.share is not None else ()):
            mask = self.blurred(n)[1]
            if mask is not None and not bool((F.max_pool3d((~mask)[None].float(), patch, 1) == 0).any()):
                return n
        return None


def shape_of(x: Tensor) -> Shape:
    """Frames, height, width of a video (c, t, h, w)."""
    return x.shape[1], x.shape[2], x.shape[3]


def _shared(image: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if weight is None:
        return image, None
    return torch.where(weight > 0.5, image / weight.clamp(min=0.5), 0), weight[0] >= VALID
