"""Every application as a problem for `method.solve`, and as a function from videos to outputs.

Used by the command line and as the library. Videos are (3, t, h, w) in [-1, 1], or uint8 frames
(t, 3, h, w). Where a task enters the algorithm (spec section 3):

task      guess at level 0                     r_T, r_S    coarsest  patch  J    alpha   guides
generate  x_0 + noise at the output's size     .87, .82    3, 15     3,7,7  5    inf
loop      the same, time wraps around          .87, .82    9, 15     3,7,7  5    inf
retarget  level 0, enlarged step by step       .87, .82    3, 15-40  3,7,7  5    inf
inpaint   level 0 of the painted source        .87, .82    by hole   3,7,7  5    inf
analogy   the content's guide alone            .9,  .9     3, 20     3,5,5  1    0.0044  quantised motion
sketch    level 0 of the sketch                .78, .78    5, 35     3,5,5  3,1  0.0044

alpha counts mean squares: the released code's 1 on sums over 3x5x5 RGB patches is 1 / 225.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from paperkit import UserError
from paperkit.resize import resize
from torch import Tensor

from vgpnn.method import Guides, Output, Problem, noise, passes, rule_of_thumb, solve
from vgpnn.pyramid import Settings, Shape, Source, scales, shape_of, shrink
from vgpnn.search import Schedule
from vgpnn.video import to_unit

Task = Literal["generate", "loop", "retarget", "inpaint", "analogy", "sketch"]

FIFTEEN = Schedule(jumps=(8, 4, 1) * 5, radii=(1, 1, 1) * 5)
"""PatchMatch of the analogies (spec 2.6)."""
ALPHA = 1 / 225
DEFAULTS: dict[str, Settings] = {
    "generate": Settings(),
    "loop": Settings(least_frames=9),  # in 3 frames there is one patch in time: all would become alike
    "retarget": Settings(least_side=40, coarse_steps=5),
    "inpaint": Settings(),  # more searches at the coarsest level wash the cue out, and fill no better
    "analogy": Settings(
        ratio_time=0.9, ratio_space=0.9, least_side=20, patch=(3, 5, 5), steps=1, alpha=ALPHA,
        schedule=FIFTEEN,
    ),
    "sketch": Settings(
        ratio_time=0.78, ratio_space=0.78, least_frames=5, least_side=35, patch=(3, 5, 5), steps=3,
        coarse_steps=3, last_steps=1, alpha=ALPHA, schedule=FIFTEEN,
    ),
}  # fmt: skip
STEP = 1.05
"""Retargeting enlarges the coarsest level by no more than this ratio at a time."""
HOLE_PATCHES = 1.5
"""At the coarsest level of inpainting a hole is about so many patches wide."""


def unit(video: Shaped[Tensor, "a b h w"]) -> Float[Tensor, "c t h w"]:
    """A video in [-1, 1]: uint8 frames (t, c, h, w) are turned, floats (c, t, h, w) are checked."""
    if video.ndim != 4:
        raise UserError(f"a video is (3, t, h, w) floats or (t, 3, h, w) uint8, got {tuple(video.shape)}")
    if video.dtype == torch.uint8:
        return to_unit(video)
    if not video.is_floating_point() or video.shape[0] not in (1, 3):
        raise UserError(f"a video of floats is (1 or 3, t, h, w), got {video.dtype} {tuple(video.shape)}")
    low, high = float(video.min()), float(video.max())
    if not (low >= -1.01 and high <= 1.01):
        raise UserError(f"values must lie in [-1, 1], these in [{low:g}, {high:g}]")
    return video


def settings_for(task: Task, shape: Shape, out: Shape | None = None) -> Settings:
    """The task's settings; minimal sizes never above what the clip or the output has.

    Retargeting keeps the layout by a larger coarsest level: 40 pixels at 360 rows (the released command), in
    proportion below, at least 15.
    """
    base = DEFAULTS[task]
    if task == "retarget":
        base = replace(base, least_side=min(base.least_side, max(15, round(min(shape[1:]) / 9))))
    sides = [min(shape[1:]), *([min(out[1:])] if out else [])]
    frames = [shape[0], *([out[0]] if out else [])]
    least = max(min(base.least_side, *sides), max(base.patch[1:]))
    return replace(base, least_side=least, least_frames=max(min(base.least_frames, *frames), base.patch[0]))


def scaled_shape(shape: Shape, ratios: tuple[float, float, float]) -> Shape:
    """Shape at ratios (length, height, width), rounded to whole frames and pixels."""
    if not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
        raise UserError(f"ratios must be positive numbers, not {ratios}")
    t, h, w = (max(1, round(n * ratio)) for n, ratio in zip(shape, ratios, strict=True))
    return t, h, w


def _coarse(y: Tensor, source: Source, problem_shape: Shape, settings: Settings) -> Tensor:
    """Level 0 of a video of the output's shape."""
    scale = source.scales[0]
    return shrink(y, scale, scale.of(problem_shape, settings.patch))


def _fit(x: Tensor, shape: Shape) -> Tensor:
    return x if shape_of(x) == shape else resize(x, size=shape, axes=(1, 2, 3))


# ---- Generation


@dataclass(frozen=True)
class Noise:
    """What is added at the coarsest level."""

    kind: Literal["voxel", "still", "auto"] = "voxel"
    """Drawn for each voxel; for each pixel, the same in all frames; or by the paper's rule of thumb."""
    amount: float = 5.0
    """Standard deviation; not used by auto."""

    def __post_init__(self):
        if not (math.isfinite(self.amount) and self.amount >= 0):
            raise UserError(f"the noise must be a number from 0 on, not {self.amount}")

    def sigma(self, coarse: Float[Tensor, "c t h w"], patch: Shape) -> float:
        """The standard deviation for this coarsest level."""
        return rule_of_thumb(coarse, patch) if self.kind == "auto" else self.amount


def generation(
    video: Shaped[Tensor, "a b h w"],
    samples: int | Sequence[int] = 1,
    seed: int = 0,
    shape: Shape | None = None,
    noise_of: Noise | None = None,
    settings: Settings | None = None,
    loop: bool = False,
) -> Problem:
    """Samples drawn from noise; `samples`: how many, or their numbers. One is the same in any company."""
    x, drawn = unit(video), noise_of or Noise()
    shape = shape or shape_of(x)
    numbers = list(range(samples)) if isinstance(samples, int) else list(samples)
    if not numbers or min(numbers) < 0:
        raise UserError(f"at least one sample is needed, with numbers from 0 on, not {numbers}")
    settings = settings or settings_for("generate", shape_of(x))
    source = Source.of(x, settings)
    start = _coarse(_fit(x, shape), source, shape, settings)
    sigma = drawn.sigma(source.sharp(0)[0], settings.patch)
    size = (start.shape[0], *shape_of(start))
    guesses = [
        start + noise(size, sigma, seed, k, drawn.kind == "still").to(start) if sigma else start.clone()
        for k in numbers
    ]
    return Problem(source, guesses, shape, settings, numbers, seed, loop=loop)


def generate(
    video: Shaped[Tensor, "a b h w"],
    samples: int | Sequence[int] = 1,
    seed: int = 0,
    shape: Shape | None = None,
    noise_of: Noise | None = None,
    settings: Settings | None = None,
) -> list[Output]:
    """Different videos with the patches of one (spec 3.1). `shape`: frames, height, width of the outputs."""
    return solve(generation(video, samples, seed, shape, noise_of, settings))


def loop(
    video: Shaped[Tensor, "a b h w"],
    samples: int | Sequence[int] = 1,
    seed: int = 0,
    frames: int = 0,
    noise_of: Noise | None = None,
    settings: Settings | None = None,
) -> list[Output]:
    """Videos whose last frame leads into the first; without noise the clip itself, its seam grown over."""
    return solve(looping(video, samples, seed, frames, noise_of, settings))


def looping(
    video: Shaped[Tensor, "a b h w"],
    samples: int | Sequence[int] = 1,
    seed: int = 0,
    frames: int = 0,
    noise_of: Noise | None = None,
    settings: Settings | None = None,
) -> Problem:
    """The problem of `loop`."""
    x = unit(video)
    shape = (frames or x.shape[1], *shape_of(x)[1:])
    settings = settings or settings_for("loop", shape_of(x), shape)
    return generation(x, samples, seed, shape, noise_of or Noise("voxel", 0.0), settings, loop=True)


# ---- Other sizes and lengths


def retargeting(
    video: Shaped[Tensor, "a b h w"], shape: Shape, seed: int = 0, settings: Settings | None = None
) -> Problem:
    """The problem of `retarget`."""
    x = unit(video)
    settings = settings or settings_for("retarget", shape_of(x), shape)
    source = Source.of(x, settings)
    problem = Problem(source, [x], shape, settings, [0], seed)
    problem.check()
    return replace(problem, guesses=[_gradually(problem, x)])


def _gradually(problem: Problem, x: Tensor) -> Tensor:
    """The coarsest level at its output size. What shrinks does so at once, what grows does in small steps:
    after each it is made of patches again, as a shape stretched at once (a period) can pass for another.
    """
    source, settings = problem.source, problem.settings
    t, h, w = (min(a, b) for a, b in zip(shape_of(x), problem.shape, strict=True))
    start = t, h, w
    ratios = [b / a for a, b in zip(start, problem.shape, strict=True)]
    steps = math.ceil(math.log(max(ratios)) / math.log(STEP))
    y = _coarse(_fit(x, start), source, start, settings)
    for k in range(1, steps):
        t, h, w = (round(n * r ** (k / steps)) for n, r in zip(start, ratios, strict=True))
        part = replace(problem, shape=(t, h, w))
        if part.shape_at(0) != shape_of(y):
            part = replace(part, guesses=[_fit(y, part.shape_at(0))])
            y = next(passes(part, stop=0)).videos[0]
    return _fit(y, problem.shape_at(0))


def retarget(
    video: Shaped[Tensor, "a b h w"], shape: Shape, seed: int = 0, settings: Settings | None = None
) -> Output:
    """The video at another size or length, its patches and pace kept (spec 3.2)."""
    return solve(retargeting(video, shape, seed, settings))[0]


# ---- Holes


def inpainting(
    video: Shaped[Tensor, "a b h w"],
    hole: Bool[Tensor, "t h w"],
    composite: bool = True,
    avoid: Bool[Tensor, "t h w"] | None = None,
    seed: int = 0,
    settings: Settings | None = None,
) -> Problem:
    """The problem of `inpaint`."""
    x = unit(video)
    for what, mask in (("mask", hole), ("mask of what to avoid", avoid)):
        if mask is not None and tuple(mask.shape) != shape_of(x):
            raise UserError(
                f"the {what} is {tuple(mask.shape)}, the clip {shape_of(x)}: give equal lengths and sizes"
            )
    refuse_hole(hole)
    settings = settings or settings_for_hole(shape_of(x), hole)
    source = Source.of(x, settings, ~hole)
    guess = _coarse(x, source, shape_of(x), settings)
    known = (source, hole) if composite else None
    return Problem(source, [guess], shape_of(x), settings, [0], seed, known=known, exclude=avoid)


def refuse_hole(hole: Bool[Tensor, "t h w"]) -> None:
    """Raise `UserError` for a hole that is nothing or everything."""
    if not hole.any() or hole.all():
        what = "nothing" if not hole.any() else "the whole clip"
        raise UserError(f"the mask marks {what} as hole: white marks what is to be filled, black what stays")


def settings_for_hole(shape: Shape, hole: Bool[Tensor, "t h w"]) -> Settings:
    """The coarsest level such that the hole is HOLE_PATCHES patches wide there (spec 3.4)."""
    refuse_hole(hole)
    base = settings_for("inpaint", shape)
    rows, columns = hole.any(0).any(1).nonzero()[:, 0], hole.any(0).any(0).nonzero()[:, 0]
    wide = max(1, min(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1)
    side = round(min(shape[1:]) * min(1.0, HOLE_PATCHES * base.patch[1] / wide))
    return replace(base, least_side=max(base.least_side, min(side, min(shape[1:]))))


def inpaint(
    video: Shaped[Tensor, "a b h w"],
    hole: Bool[Tensor, "t h w"],
    composite: bool = True,
    avoid: Bool[Tensor, "t h w"] | None = None,
    seed: int = 0,
    settings: Settings | None = None,
) -> Output:
    """Fill a hole (True) whose painted colour says with what (spec 3.4).

    `composite` puts voxels outside the hole back after every step, bit for bit; `avoid` marks what must not
    be copied from. Raises `UserError` for a hole that is empty or everything, and where no key is left.
    """
    return solve(inpainting(video, hole, composite, avoid, seed, settings))[0]


def without_cue(x: Float[Tensor, "c t h w"], hole: Bool[Tensor, "t h w"]) -> Float[Tensor, "c t h w"]:
    """Paint a hole with what surrounds it: diffusion by repeated means of the known neighbours."""
    from torch.nn.functional import avg_pool3d

    y, known = torch.where(hole, 0, x)[None], (~hole)[None, None].to(x)
    while float(known.min()) == 0:
        share = avg_pool3d(known, 3, 1, 1)
        mean = avg_pool3d(y * known, 3, 1, 1) / share.clamp(min=1e-6)
        y = torch.where(known > 0, y, torch.where(share > 0, mean, 0))
        known = ((known > 0) | (share > 0)).to(x)
    return y[0]


# ---- Two clips


def analogies(
    content: Shaped[Tensor, "a b h w"],
    style: Shaped[Tensor, "d e _ _"],
    content_guide: Float[Tensor, "g t h w"],
    style_guide: Float[Tensor, "k _ _ _"],
    seed: int = 0,
    weight: float = 1.0,
    until: float = 0.5,
    settings: Settings | None = None,
) -> Problem:
    """The problem of `analogy`."""
    a, b = unit(content), unit(style)
    for name, guide, x in (("content", content_guide, a), ("style", style_guide, b)):
        if shape_of(guide) != shape_of(x):
            raise UserError(
                f"the {name}'s guide is {shape_of(guide)}, the clip {shape_of(x)}: give equal ones"
            )
    if content_guide.shape[0] != style_guide.shape[0]:
        raise UserError("the guides differ in their number of channels: give equal numbers")
    settings = settings or settings_for("analogy", shape_of(a), shape_of(b))
    source = _source_by(a, b, settings)
    guides = Guides(content_guide, style_guide, weight, until)
    guess = _coarse(a, source, shape_of(a), settings)  # not seen: the first query is the guide alone
    return Problem(source, [guess], shape_of(a), settings, [0], seed, guides=guides)


def analogy(
    content: Shaped[Tensor, "a b h w"],
    style: Shaped[Tensor, "d e _ _"],
    content_guide: Float[Tensor, "g t h w"],
    style_guide: Float[Tensor, "k _ _ _"],
    seed: int = 0,
    weight: float = 1.0,
    until: float = 0.5,
    settings: Settings | None = None,
) -> Output:
    """The layout and motion of `content` in the look of `style` (spec 3.3); guides: `vgpnn.guidance`."""
    return solve(analogies(content, style, content_guide, style_guide, seed, weight, until, settings))[0]


def sketches(
    sketch: Shaped[Tensor, "a b h w"],
    style: Shaped[Tensor, "d e _ _"],
    seed: int = 0,
    settings: Settings | None = None,
) -> Problem:
    """The problem of `sketch`."""
    a, b = unit(sketch), unit(style)
    settings = settings or settings_for("sketch", shape_of(a), shape_of(b))
    source = _source_by(a, b, settings)
    guess = _coarse(a.expand(b.shape[0], -1, -1, -1), source, shape_of(a), settings)
    return Problem(source, [guess], shape_of(a), settings, [0], seed)


def sketch(
    sketch: Shaped[Tensor, "a b h w"],
    style: Shaped[Tensor, "d e _ _"],
    seed: int = 0,
    settings: Settings | None = None,
) -> Output:
    """A moving sketch in the look of `style`: the sketch is the query of the coarsest level as it is."""
    return solve(sketches(sketch, style, seed, settings))[0]


def _source_by(content: Tensor, style: Tensor, settings: Settings) -> Source:
    """The style's pyramid by the content's scales (spec 3.3)."""
    levels = scales(shape_of(content), settings)
    least = levels[0].of(shape_of(style))
    if any(n < p for n, p in zip(least, settings.patch, strict=True)):
        raise UserError(
            f"the style is {'x'.join(map(str, least))} at the coarsest level, smaller than a patch of "
            f"{'x'.join(map(str, settings.patch))}: give a longer or larger style, or a larger coarsest level"
        )
    return Source(levels, style)
