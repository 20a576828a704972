"""Every application of the paper as a function from images to outputs; images are (c, h, w) in [0, 1].

Used by the command line and as the library. Where a task enters the algorithm (spec section 3):

task       guess at level N                          keys     alpha  r     T_N/T   depth N
generate   x_N + noise                               blurred  inf    0.75  1/10    coarsest side >= 14
texture    white noise of x_N's colours, any size    blurred  5e-3   0.75  1/10    coarsest side >= 14
retarget   level N of the resized source             both     5e-3   0.8   10/10   coarsest side >= 21
edit       level N of the edited image               blurred  inf    0.75  1/10    the edit shrinks to a patch
analogy    level N of the structure image            both     5e-3   0.8   10/10   7
collage    level N of the sources side by side       both     5e-3   0.8   10/10   coarsest side >= 21
inpaint    level N of the image with painted hole    both     inf    0.75  10/10   the hole shrinks to a patch

The released code has keys "blurred" everywhere; "both", and depths by the size of the change, are what the
authors' notebooks of the published figures used (research notes, section 1.2).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Shaped
from paperkit import UserError, rng
from paperkit.resize import resize
from torch import Tensor

from gpnn.method import (
    LevelFacts,
    Output,
    Settings,
    Source,
    coarse_to_fine,
    depth,
    down,
    key_set,
    level_size,
    pyramid,
    up,
)
from gpnn.search import matcher

Task = Literal["generate", "texture", "retarget", "edit", "analogy", "collage", "inpaint"]
OnLevel = Callable[[LevelFacts], None]

DEFAULTS: dict[str, Settings] = {
    "generate": Settings(),
    "texture": Settings(alpha=5e-3),
    "retarget": Settings(alpha=5e-3, ratio=0.8, coarse_steps=10, keys="both"),
    "edit": Settings(),
    "analogy": Settings(alpha=5e-3, ratio=0.8, coarse_steps=10, keys="both"),
    "collage": Settings(alpha=5e-3, ratio=0.8, coarse_steps=10, keys="both"),
    "inpaint": Settings(coarse_steps=10, keys="both"),
}
SMALLEST = {"generate": 14, "texture": 14, "retarget": 21, "collage": 21}
"""Shorter side of the coarsest level, in pixels, where depth follows the image's size."""
DEEPEST = 9
"""Most levels where depth follows the size of an edit or a hole."""
ANALOGY_LEVELS = 7
"""The median over the authors' 49 analogies."""
SHRINK, GROW = 0.9, 1.2
"""Steps of gradual retargeting; SHRINK also of collages."""
COLLAGE_STEPS = 9
CHANGED = 0.02
"""A pixel that differs by more is part of an edit."""

Size = tuple[int, int]
Box = tuple[int, int, int, int]
"""(upper row, left column, height, width)."""


def defaults(task: Task, sizes: Sequence[Size], change: int = 0) -> Settings:
    """The settings of a task for sources and outputs of these sizes; `change`: side of an edit or hole."""
    chosen = DEFAULTS[task]
    return replace(chosen, levels=automatic_depth(task, sizes, chosen.ratio, change, chosen.patch))


def automatic_depth(task: Task, sizes: Sequence[Size], ratio: float, change: int = 0, patch: int = 7) -> int:
    """N by the task's rule; never so deep that a coarsest side falls below a patch and a half."""
    if task in SMALLEST:
        return min(depth(size, ratio, max(SMALLEST[task], patch)) for size in sizes)
    wanted = ANALOGY_LEVELS if task == "analogy" else levels_to_shrink(change, patch, ratio)
    return min(wanted, *(depth(size, ratio, math.ceil(1.5 * patch)) for size in sizes))


def levels_to_shrink(side: int, patch: int, ratio: float) -> int:
    """Levels after which a side is about a patch long, at most DEEPEST."""
    return min(DEEPEST, max(1, math.ceil(math.log(patch / max(side, 1)) / math.log(ratio))))


def unit(image: Shaped[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """An image in [0, 1]: whole numbers are divided by the largest of their type, floats are checked.

    Raises `UserError` for values outside [0, 1] and for other than 1 to 4 channels.
    """
    if image.ndim != 3 or not 1 <= image.shape[0] <= 4:
        raise UserError(f"an image is (1 to 4 channels, height, width), got {tuple(image.shape)}")
    if not image.is_floating_point():
        return image.float() / torch.iinfo(image.dtype).max
    low, high = float(image.min()), float(image.max())
    if not (low >= -0.01 and high <= 1.01):
        raise UserError(f"values must lie in [0, 1], these in [{low:g}, {high:g}]: divide by their maximum")
    return image


def _size(image: Tensor) -> Size:
    return image.shape[1], image.shape[2]


# ---- Generation


@dataclass(frozen=True)
class Noise:
    """How strong the noise at the coarsest level is."""

    kind: Literal["absolute", "relative", "auto"] = "absolute"
    """A standard deviation; a multiple of that of x_N; or the least that leaves the source's layout."""
    amount: float = 0.75
    """For auto it is not used."""

    def __post_init__(self):
        if not (math.isfinite(self.amount) and self.amount >= 0):
            raise UserError(f"the noise must be a number from 0 on, not {self.amount}")

    def sigma(self, coarse: Float[Tensor, "c h w"], patch: int, seed: int) -> float:
        """The standard deviation for this coarsest level."""
        if self.kind == "absolute":
            return self.amount
        spread = float(coarse.std())
        return spread * (self.amount if self.kind == "relative" else leaving_multiple(coarse, patch, seed))


def white(coarse: Tensor, size: Size, seed: int, sample: int) -> Float[Tensor, "c h w"]:
    """Standard normal noise per pixel and channel: the same on every device."""
    return rng.normal((coarse.shape[0], *size), seed, sample, "gpnn").to(coarse)


def coarse_stay(coarse: Float[Tensor, "c h w"], sigma: float, patch: int, seed: int) -> float:
    """Share of patches that keep their place within a pixel in one step from x_N + noise (spec 8.5)."""
    guess = coarse + sigma * white(coarse, _size(coarse), seed, 0)
    keys = key_set([Source([coarse], None, 0.5)], 0, "sharp")
    found = matcher(keys, patch, "exact", 2**26).search(guess, math.inf, None)
    return _near_share(found.index, keys.grid(patch))


def _near_share(index: Tensor, grid: Size) -> float:
    place = torch.arange(len(index), device=index.device)
    apart = torch.stack([(index // grid[1] - place // grid[1]), (index % grid[1] - place % grid[1])]).abs()
    return float((apart.amax(0) <= 1).double().mean())


def leaving_multiple(coarse: Float[Tensor, "c h w"], patch: int, seed: int) -> float:
    """Double the noise from 2 std(x_N) until the coarse layout is left, near chance; at most 256 (8.5)."""
    rows, columns = _size(coarse)
    grid = rows - patch + 1, columns - patch + 1
    drawn = torch.randint(math.prod(grid), (math.prod(grid),), generator=rng.generator(seed, 0, "chance"))
    chance, multiple = _near_share(drawn, grid), 2.0
    while multiple < 256 and coarse_stay(coarse, multiple * float(coarse.std()), patch, seed) > chance + 0.1:
        multiple *= 2
    return multiple


def generate(
    image: Shaped[Tensor, "c h w"],
    samples: int = 1,
    seed: int = 0,
    size: Size | None = None,
    noise: Noise | None = None,
    settings: Settings | None = None,
    on_level: OnLevel | None = None,
) -> list[Output]:
    """Variations of an image; sample k of a seed is the same in any company. `size`: of the outputs."""
    x = unit(image)
    size = size or _size(x)
    _check_count(samples)
    settings = settings or defaults("generate", [_size(x), size])
    noise = noise or Noise()
    source = Source.of(x, settings)
    coarse, wanted = source.sharp(settings.levels)[0], level_size(size, settings.ratio, settings.levels)
    _check_coarse(coarse, settings)
    sigma = noise.sigma(coarse, settings.patch, seed)
    start = coarse if wanted == _size(coarse) else resize(coarse, size=wanted)
    guesses = [start + sigma * white(coarse, wanted, seed, k) for k in range(samples)]
    return coarse_to_fine([source], guesses, size, settings, on_level)


def texture(
    image: Shaped[Tensor, "c h w"],
    size: Size,
    samples: int = 1,
    seed: int = 0,
    settings: Settings | None = None,
    on_level: OnLevel | None = None,
) -> list[Output]:
    """A texture of any size: from noise with the mean and spread of x_N per channel, without its layout."""
    x = unit(image)
    _check_count(samples)
    settings = settings or defaults("texture", [_size(x), size])
    source = Source.of(x, settings)
    coarse, wanted = source.sharp(settings.levels)[0], level_size(size, settings.ratio, settings.levels)
    _check_coarse(coarse, settings)
    mean, spread = coarse.mean((1, 2), keepdim=True), coarse.std((1, 2), keepdim=True)
    guesses = [mean + spread * white(coarse, wanted, seed, k) for k in range(samples)]
    return coarse_to_fine([source], guesses, size, settings, on_level)


def _check_count(samples: int) -> None:
    if samples < 1:
        raise UserError(f"at least one sample is needed, not {samples}")


def _check_coarse(coarse: Tensor, settings: Settings) -> None:
    if min(_size(coarse)) < settings.patch:
        rows, columns = _size(coarse)
        raise UserError(
            f"the image is {rows}x{columns} at the coarsest of {settings.levels} levels, smaller than a "
            f"{settings.patch}x{settings.patch} patch: use fewer levels or a larger image"
        )


# ---- Other sizes


def target_size(size: Size, ratios: tuple[float, float]) -> Size:
    """The size at ratios (height, width). Raises `UserError` for ratios that are not positive."""
    if not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
        raise UserError(f"ratios must be positive numbers, not {ratios[0]:g} and {ratios[1]:g}")
    return max(1, round(size[0] * ratios[0])), max(1, round(size[1] * ratios[1]))


def gradual_sizes(size: Size, target: Size) -> list[Size]:
    """Sizes on the way: the axis that changes most by SHRINK or GROW, the other by the matching root."""
    logs = [math.log(t / s) for s, t in zip(size, target, strict=True)]
    steps = max(math.floor(a / math.log(GROW if a > 0 else SHRINK) + 1e-9) if a else 0 for a in logs)
    way = [
        (round(size[0] * math.exp(logs[0] * k / steps)), round(size[1] * math.exp(logs[1] * k / steps)))
        for k in range(1, steps)
    ]
    return [*way, target]


def retarget(
    image: Shaped[Tensor, "c h w"],
    size: Size,
    gradual: bool = False,
    settings: Settings | None = None,
    on_level: OnLevel | None = None,
) -> Output:
    """The image at another size, its patches kept; `gradual`: by small steps, each from the one before."""
    x = unit(image)
    settings = settings or defaults("retarget", [_size(x), size])
    source = Source.of(x, settings)
    way = gradual_sizes(_size(x), size) if gradual else [size]
    y, outputs = x, []
    for each in way:
        guess = pyramid(resize(y, size=each), settings.levels, settings.ratio)[-1]
        outputs = coarse_to_fine([source], [guess], each, settings, on_level)
        y = outputs[0].image
    return outputs[0]


# ---- Edits


def place_crops(
    image: Float[Tensor, "c h w"],
    crops: Sequence[tuple[Box, tuple[int, int]]],
    erase: bool = False,
) -> Float[Tensor, "c h w"]:
    """A crude edit: copy boxes to new upper left corners; `erase` paints their old places plainly.

    Raises `UserError` for a box or a place that is not wholly inside the image.
    """
    edited = image.clone()
    height, width = _size(image)
    for (top, left, h, w), (row, column) in crops:
        for what, (a, b) in (("box", (top, left)), ("place", (row, column))):
            if min(a, b, h - 1, w - 1) < 0 or a + h > height or b + w > width:
                raise UserError(
                    f"the {what} at ({a}, {b}) of {h}x{w} leaves the {height}x{width} image: move it inside"
                )
        if erase:
            edited[:, top : top + h, left : left + w] = _border_mean(image, (top, left, h, w))
    for (top, left, h, w), (row, column) in crops:
        edited[:, row : row + h, column : column + w] = image[:, top : top + h, left : left + w]
    return edited


def _border_mean(image: Tensor, box: Box) -> Float[Tensor, "c 1 1"]:
    """Mean colour of the ring of two pixels around a box, as far as it lies in the image."""
    top, left, h, w = box
    ring = torch.zeros(_size(image), dtype=torch.bool, device=image.device)
    ring[max(0, top - 2) : top + h + 2, max(0, left - 2) : left + w + 2] = True
    ring[top : top + h, left : left + w] = False
    return image[:, ring].mean(1)[:, None, None] if ring.any() else image.mean((1, 2), keepdim=True)


def change_side(changed: Bool[Tensor, "h w"]) -> int:
    """Shorter side of the bounding box of the largest connected region that changed; 0 without any."""
    from scipy import ndimage

    regions: Any = ndimage.find_objects(ndimage.label(changed.cpu().numpy())[0])  # pyright: ignore
    boxes = [[axis.stop - axis.start for axis in region] for region in regions]
    return min(max(boxes, key=lambda box: math.prod(box))) if boxes else 0


def edit(
    image: Shaped[Tensor, "c h w"],
    edited: Shaped[Tensor, "_ _ _"],
    settings: Settings | None = None,
    on_level: OnLevel | None = None,
) -> Output:
    """Make a crude edit seamless: patches come from the unedited image alone."""
    x, y = unit(image), unit(edited)
    if x.shape != y.shape:
        raise UserError(
            f"the edited image is {tuple(y.shape)}, the source {tuple(x.shape)}: give equal sizes"
        )
    side = change_side((x - y).abs().amax(0) > CHANGED)
    settings = settings or defaults("edit", [_size(x)], side)
    guess = pyramid(y, settings.levels, settings.ratio)[-1]
    return coarse_to_fine([Source.of(x, settings)], [guess], _size(x), settings, on_level)[0]


def reshuffle(
    image: Shaped[Tensor, "c h w"],
    crops: Sequence[tuple[Box, tuple[int, int]]],
    erase: bool = True,
    settings: Settings | None = None,
    on_level: OnLevel | None = None,
) -> Output:
    """Move (or, without `erase`, repeat) boxes of an image seamlessly."""
    if not crops:
        raise UserError("nothing to move: give at least one box and its new place")
    x = unit(image)
    return edit(x, place_crops(x, crops, erase), settings, on_level)


# ---- Two and more images


def analogy(
    source: Shaped[Tensor, "c h w"],
    structure: Shaped[Tensor, "_ _ _"],
    settings: Settings | None = None,
    on_level: OnLevel | None = None,
) -> Output:
    """The layout of `structure` in patches of `source`."""
    a, b = unit(source), unit(structure)
    if a.shape[0] != b.shape[0]:
        raise UserError(f"the images have {a.shape[0]} and {b.shape[0]} channels: give equal numbers")
    settings = settings or defaults("analogy", [_size(a), _size(b)])
    guess = pyramid(b, settings.levels, settings.ratio)[-1]
    return coarse_to_fine([Source.of(a, settings)], [guess], _size(b), settings, on_level)[0]


def side_by_side(images: Sequence[Float[Tensor, "c _ _"]]) -> list[Tensor]:
    """The images at the height of the lowest, their shapes kept."""
    height = min(x.shape[1] for x in images)
    sizes = [(height, max(1, round(x.shape[2] * height / x.shape[1]))) for x in images]
    return [
        x if _size(x) == size else resize(x, size=size).clamp(0, 1)
        for x, size in zip(images, sizes, strict=True)
    ]


def collage(
    images: Sequence[Shaped[Tensor, "_ _ _"]],
    steps: int = COLLAGE_STEPS,
    settings: Settings | None = None,
    on_level: OnLevel | None = None,
) -> Output:
    """Several images grown into one: side by side, then narrowed step by step among the patches of all."""
    if len(images) < 2:
        raise UserError(f"a collage needs at least two images, got {len(images)}")
    if steps < 0:
        raise UserError(f"the number of steps must not be negative: {steps}")
    parts = [unit(x) for x in images]
    if len({x.shape[0] for x in parts}) > 1:
        raise UserError("the images differ in their number of channels: give equal numbers")
    parts = side_by_side(parts)
    y = torch.cat(parts, 2)
    height, width = _size(y)
    sizes = [(height, round(width * SHRINK**k)) for k in range(1, steps + 1)] or [(height, width)]
    settings = settings or defaults("collage", [_size(x) for x in parts] + sizes)
    sources, outputs = [Source.of(x, settings) for x in parts], []
    for size in sizes:
        guess = pyramid(resize(y, size=size), settings.levels, settings.ratio)[-1]
        outputs = coarse_to_fine(sources, [guess], size, settings, on_level)
        y = outputs[0].image
    return outputs[0]


# ---- Holes


def inpaint(
    image: Shaped[Tensor, "c h w"],
    hole: Bool[Tensor, "_ _"],
    composite: bool = True,
    parity: bool = False,
    settings: Settings | None = None,
    on_level: OnLevel | None = None,
) -> Output:
    """Fill a hole (True) whose painted colour says with what; `composite` keeps each pixel outside it.

    Keys come from outside the hole, with no trace of its colour; `parity` takes the released code's rule
    instead, which resamples image and mask apart. Raises `UserError` for a hole that is empty or everything.
    """
    x = unit(image)
    if tuple(hole.shape) != _size(x):
        raise UserError(f"the mask is {tuple(hole.shape)}, the image {_size(x)}: give equal sizes")
    if not hole.any() or hole.all():
        what = "nothing" if not hole.any() else "the whole image"
        raise UserError(f"the mask marks {what} as hole: white marks what is to be filled, black what stays")
    settings = settings or fillable(hole, defaults("inpaint", [_size(x)], change_side(hole)))
    source = official_mask(x, ~hole, settings) if parity else Source.of(x, settings, ~hole)
    guess = pyramid(x, settings.levels, settings.ratio)[-1]
    output = coarse_to_fine([source], [guess], _size(x), settings, on_level)[0]
    return replace(output, image=torch.where(hole, output.image, x)) if composite else output


def fillable(hole: Bool[Tensor, "h w"], settings: Settings) -> Settings:
    """These settings, with as many of their levels as leave a key outside the hole at each."""
    mask = Source.of(torch.zeros(1, *hole.shape, device=hole.device), settings, ~hole)
    levels = settings.levels
    while levels and not mask.has_keys(levels, settings.patch):
        levels -= 1
    return replace(settings, levels=levels)


def official_mask(x: Float[Tensor, "c h w"], valid: Bool[Tensor, "h w"], settings: Settings) -> Source:
    """The released code's masks: painted image resampled as it is, valid where m_n >= 1/2."""
    images, masks = [x], [valid[None].to(x)]
    for n in range(1, settings.levels + 1):
        size = level_size(_size(x), settings.ratio, n)
        images.append(down(images[-1], size, settings.ratio))
        masks.append(down(masks[-1], size, settings.ratio))
    return _Official(images, [(m >= 0.5).to(x) for m in masks], settings.ratio)


class _Official(Source):
    """A source whose masks say only which keys are used, level by level."""

    def sharp(self, n: int):
        """x_n and its mask."""
        assert self.weight is not None
        return self.weighted[n], self.weight[n][0] > 0

    def blurred(self, n: int):
        """k_n with x_n's mask."""
        return up(self.weighted[n + 1], self.size(n), self.ratio), self.sharp(n)[1]
