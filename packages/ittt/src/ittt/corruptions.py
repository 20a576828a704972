"""The 15 corruptions of Hendrycks and Dietterich (2019) for small images, written for batches of tensors.

    corrupt(x, "fog", 3, seed=0)                           # x: (b, c, h, w) in [0, 1]; so is the result

Source: "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (arXiv 1903.12261);
`SEVERITIES` are the values of CIFAR-10-C, as published in hendrycks/robustness at commit ca36008, file
ImageNet-C/create_c/make_cifar_c.py. They are meant for 32 pixels a side; lengths grow with the side.

Notes, where this differs from the published files:
1. frost pastes photographs that are not at hand: here a drawn pattern of ice at the published weights.
2. motion (and snow's streaks) is a one-sided Gaussian along a line, at whole pixels, after ImageMagick's
   description (from memory); zoom keeps the centre of the image where it is; elastic samples once, not twice.
3. Lengths in pixels never shrink below the published ones: an image of 28 pixels is treated as one of 32.
4. Results are floats; only jpeg rounds to 8 bits. Grey images have one channel.
5. The random draws depend on (seed, corruption) and on the batch's shape, not on the severity: the five
   severities of an image are one corruption that gets worse.
"""

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from paperkit import UserError, images, rng, suggest
from paperkit.resize import resize
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

SIDE = 32
"""The side, in pixels, that lengths in `SEVERITIES` are meant for."""
SEVERITIES: dict[str, tuple] = {
    "gaussian": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "shot": (500, 250, 100, 75, 50),  # photons of a white pixel
    "impulse": (0.01, 0.02, 0.03, 0.05, 0.07),  # share of values set to 0 or 1
    "defocus": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),  # radius, its soft edge
    "glass": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),  # blur, reach, rounds
    "motion": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),  # radius, standard deviation
    "zoom": (1.06, 1.11, 1.15, 1.20, 1.25),  # largest magnification
    "snow": (  # mean, deviation, magnification, threshold, streaks' radius and deviation, share kept
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),  # weights of image and ice
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),  # weight, decay per octave (squared)
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to the value of HSV
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic": (  # displacement, its smoothness, corners' jitter, as shares of the side
        (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03),
    ),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # share of the side that is kept
    "jpeg": (80, 65, 58, 50, 40),  # quality
}  # fmt: skip
"""Parameters at severities 1 to 5."""
NAMES = tuple(SEVERITIES)
FAMILIES = {"noise": NAMES[:3], "blur": NAMES[3:7], "weather": NAMES[7:11], "digital": NAMES[11:]}


def corrupt(x: Float[Tensor, "b c h w"], name: str, severity: int, seed: int = 0) -> Float[Tensor, "b c h w"]:
    """The images corrupted, clipped to [0, 1]; the same for the same arguments.

    Severity 0 gives the images as they are. Raises `UserError` for an unknown name or severity, for images
    that are not square, have neither one nor three channels, and for values outside [0, 1].
    """
    if name not in SEVERITIES:
        raise UserError(f"no corruption {name!r}{suggest(name, NAMES)}; there are {', '.join(NAMES)}")
    if severity not in range(6):
        raise UserError(f"severities go from 0 (as it is) to 5, not {severity}")
    if x.ndim != 4 or x.shape[1] not in (1, 3) or x.shape[2] != x.shape[3] or not x.numel():
        raise UserError(
            f"corruptions take square images (b, c, h, w) of one or three channels, not {tuple(x.shape)}"
        )
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise UserError("corruptions take images in [0, 1]: divide bytes by 255")
    if severity == 0:
        return x
    draw = rng.generator(seed, 0, f"corruption {name}")
    found = _CORRUPTIONS[name](x.cpu(), SEVERITIES[name][severity - 1], draw)
    return found.clamp(0, 1).to(x)


# ---- noise -------------------------------------------------------------------------------------------------


def _gaussian(x: Tensor, deviation: float, draw: torch.Generator) -> Tensor:
    return x + deviation * torch.randn(x.shape, generator=draw)


def _shot(x: Tensor, photons: float, draw: torch.Generator) -> Tensor:
    return torch.poisson(x * photons, draw) / photons


def _impulse(x: Tensor, share: float, draw: torch.Generator) -> Tensor:
    at = torch.rand(x.shape, generator=draw)
    return torch.where(at < share / 2, 0.0, torch.where(at > 1 - share / 2, 1.0, x))


# ---- blur --------------------------------------------------------------------------------------------------


def _defocus(x: Tensor, values: tuple[float, float], draw: torch.Generator) -> Tensor:
    radius, edge = (value * _scale(x) for value in values)
    reach = math.floor(radius)
    away = torch.arange(-reach, reach + 1.0)
    disk = (away[:, None] ** 2 + away**2 <= radius**2).float()
    return _blur(_filtered(x, disk / disk.sum()), edge, round(_scale(x)), "reflect")


def _glass(x: Tensor, values: tuple[float, int, int], draw: torch.Generator) -> Tensor:
    """Note: the published code means to exchange pixels; in effect it copies the near one, and so here."""
    blur, reach, rounds = values
    blur, reach, side = blur * _scale(x), round(reach * _scale(x)), x.shape[-1]
    x = _blur(x, blur, math.ceil(4 * blur), "replicate")
    for _ in range(rounds):
        jumps = torch.randint(-reach, reach, (2, len(x), side, side), generator=draw)
        rows, columns = (torch.arange(side).view(shape) for shape in ((-1, 1), (1, -1)))
        there = (rows + jumps[0]).clamp(0, side - 1) * side + (columns + jumps[1]).clamp(0, side - 1)
        x = x.flatten(2).gather(2, there.flatten(1)[:, None].expand(-1, x.shape[1], -1)).view(x.shape)
    return _blur(x, blur, math.ceil(4 * blur), "replicate")


def _motion(x: Tensor, values: tuple[float, float], draw: torch.Generator) -> Tensor:
    angles = (torch.rand(len(x), generator=draw) - 0.5) * math.pi / 2  # within 45 degrees of level
    return _streaked(x, *values, angles)


def _zoom(x: Tensor, most: float, draw: torch.Generator) -> Tensor:
    factors = [1 + 0.01 * i for i in range(round((most - 1) / 0.01) + 1)]
    return (x + torch.stack([_magnified(x, factor) for factor in factors]).sum(0)) / (len(factors) + 1)


# ---- weather -----------------------------------------------------------------------------------------------


def _snow(x: Tensor, values: tuple[float, ...], draw: torch.Generator) -> Tensor:
    mean, deviation, larger, threshold, radius, streak, kept = values
    flakes = _magnified(mean + deviation * torch.randn((len(x), 1, *x.shape[2:]), generator=draw), larger)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    angles = -(torch.rand(len(x), generator=draw) + 0.5) * math.pi / 2  # 45 to 135 degrees
    flakes = _streaked(flakes, radius, streak, angles)
    white = torch.maximum(x, _grey(x) * 1.5 + 0.5)
    return kept * x + (1 - kept) * white + flakes + flakes.rot90(2, (2, 3))


def _frost(x: Tensor, values: tuple[float, float], draw: torch.Generator) -> Tensor:
    """Note: drawn ice, bright needles over a pale haze, in the place of the six published photographs."""
    kept, ice = values
    needles = torch.zeros(len(x), 1, *x.shape[2:])
    for _ in range(3):  # crystals in three directions
        seeds = (torch.rand(needles.shape, generator=draw) > 0.93).float()
        angles = torch.rand(len(x), generator=draw) * 2 * math.pi
        needles = torch.maximum(needles, _streaked(seeds, 10, 5, angles) * 6)
    haze = _plasma(len(x), x.shape[-1], 1.6, draw)
    layer = 0.25 + 0.4 * haze + 0.6 * needles.clamp(0, 1) * (0.3 + 0.7 * haze)
    tint = torch.tensor([0.9, 0.97, 1.0]).view(1, 3, 1, 1) if x.shape[1] == 3 else 0.96
    return kept * x + ice * (layer * tint).clamp(0, 1)


def _fog(x: Tensor, values: tuple[float, float], draw: torch.Generator) -> Tensor:
    weight, decay = values
    most = x.amax((1, 2, 3), keepdim=True)
    return (x + weight * _plasma(len(x), x.shape[-1], decay**2, draw)) * most / (most + weight)


def _brightness(x: Tensor, more: float, draw: torch.Generator) -> Tensor:
    value = x.amax(1, keepdim=True)
    brighter = (value + more).clamp_max(1)
    # Hue and saturation hold, so that all channels grow by one factor; black becomes grey.
    return torch.where(value > 0, x * (brighter / value.clamp_min(1e-9)), brighter)


# ---- digital -----------------------------------------------------------------------------------------------


def _contrast(x: Tensor, share: float, draw: torch.Generator) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * share + mean


def _elastic(x: Tensor, values: tuple[float, float, float], draw: torch.Generator) -> Tensor:
    side = x.shape[-1]
    push, smooth, jitter = (value * side for value in values)

    # 1. A random affine map: three corners of the middle third are moved.
    middle, third = side // 2, side // 3
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    corners = middle + third * signs
    moved = corners + jitter * (2 * torch.rand(len(x), 3, 2, generator=draw) - 1)
    ones = torch.ones(len(x), 3, 1)
    back = torch.linalg.solve(torch.cat([moved, ones], 2), corners.expand(len(x), 3, 2))  # moved -> corner

    # 2. A smooth random field of displacements.
    field = 2 * torch.rand(len(x), 2, side, side, generator=draw) - 1
    field = push * _blur(field, smooth, math.ceil(3 * smooth), "reflect")

    # 3. Each pixel takes its value from where both lead.
    down, right = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    points = rearrange(torch.stack([right, down]) + field, "b k h w -> b (h w) k")
    source = torch.cat([points, torch.ones(len(x), side * side, 1)], 2) @ back
    source = rearrange(source, "b (h w) k -> b h w k", h=side) * (2 / (side - 1)) - 1
    return F.grid_sample(x, source, padding_mode="reflection", align_corners=True)


def _pixelate(x: Tensor, share: float, draw: torch.Generator) -> Tensor:
    small = resize(x, size=max(1, int(x.shape[-1] * share)), kernel="box", border="renormalize")
    return resize(small, size=x.shape[-1], kernel="box", border="renormalize")


def _jpeg(x: Tensor, quality: int, draw: torch.Generator) -> Tensor:
    found = []
    for image in x:
        stream = io.BytesIO()
        images.to_pil(image, 0.0, 1.0).save(stream, "JPEG", quality=quality)
        pixels = np.array(Image.open(stream)).reshape(*image.shape[1:], -1)
        found.append(rearrange(torch.from_numpy(pixels).float() / 255, "h w c -> c h w"))
    return torch.stack(found)


_CORRUPTIONS: dict[str, Callable[..., Tensor]] = {
    "gaussian": _gaussian, "shot": _shot, "impulse": _impulse, "defocus": _defocus, "glass": _glass,
    "motion": _motion, "zoom": _zoom, "snow": _snow, "frost": _frost, "fog": _fog,
    "brightness": _brightness, "contrast": _contrast, "elastic": _elastic, "pixelate": _pixelate,
    "jpeg": _jpeg,
}  # fmt: skip


# ---- parts -------------------------------------------------------------------------------------------------


def _scale(x: Tensor) -> float:
    """How many pixels of these images stand for one of a published image."""
    return max(1.0, x.shape[-1] / SIDE)


def _padded(x: Tensor, reach: int, border: str) -> Tensor:
    """`reach` more pixels at every edge; reflected more than once where the image is smaller."""
    while reach > 0:
        step = min(reach, x.shape[-1] - 1) if border == "reflect" else reach
        x, reach = F.pad(x, (step,) * 4, mode=border), reach - step
    return x


def _filtered(x: Tensor, kernel: Float[Tensor, "k k"]) -> Tensor:
    """The same filter on every channel, the image reflected at its edges."""
    c = x.shape[1]
    weight = kernel.expand(c, 1, *kernel.shape)
    return F.conv2d(_padded(x, len(kernel) // 2, "reflect"), weight, groups=c)


def _blur(x: Tensor, deviation: float, reach: int, border: str) -> Tensor:
    """A Gaussian of `deviation` pixels, cut off at `reach`."""
    if deviation < 1e-3 or reach < 1:
        return x
    away = torch.arange(-reach, reach + 1.0)
    line = torch.exp(-0.5 * (away / deviation) ** 2)
    line, c = line / line.sum(), x.shape[1]
    x = _padded(x, reach, border)
    x = F.conv2d(x, line.view(1, 1, 1, -1).expand(c, 1, 1, -1), groups=c)
    return F.conv2d(x, line.view(1, 1, -1, 1).expand(c, 1, -1, 1), groups=c)


def _streaked(x: Tensor, radius: float, deviation: float, angles: Float[Tensor, " b"]) -> Tensor:
    """Each image smeared to one side along its angle: pixels up to `radius` away, with a Gaussian's weights.

    Both lengths are pixels of an image of side `SIDE`.
    """
    side, scale = x.shape[-1], _scale(x)
    taps = torch.arange(math.ceil(radius * scale) * 2 + 1.0)
    weights = torch.exp(-0.5 * (taps / (deviation * scale)) ** 2)
    reach, here = len(taps), torch.arange(side) + len(taps)
    padded, one = F.pad(x, (reach,) * 4, mode="replicate"), torch.arange(len(x))[:, None, None]
    total = torch.zeros_like(x)
    for tap, weight in zip(taps, weights / weights.sum(), strict=True):
        down, right = ((tap * way(angles)).round().long() for way in (torch.sin, torch.cos))
        rows, columns = here + down[:, None], here + right[:, None]
        total += weight * padded[one, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    return total


def _magnified(x: Tensor, factor: float) -> Tensor:
    """The middle of the image, enlarged by `factor` to the whole."""
    if factor == 1:
        return x
    map_ = torch.tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]]).expand(len(x), 2, 3)
    grid = F.affine_grid(map_, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _grey(x: Tensor) -> Float[Tensor, "b 1 h w"]:
    """Luma (ITU-R BT.601)."""
    return x if x.shape[1] == 1 else (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, True)


def _plasma(b: int, side: int, decay: float, draw: torch.Generator) -> Float[Tensor, "b 1 h w"]:
    """Height maps by midpoint displacement on a torus (Fournier, Fussell and Carpenter 1982), from 0 to 1.

    The amplitude is divided by `decay` at each halving of the grid.
    """
    size = 1 << max(1, (side - 1).bit_length())
    heights = torch.zeros(b, 1, 1)
    amplitude = 1.0

    def noise() -> Tensor:
        return amplitude * (2 * torch.rand(heights.shape, generator=draw) - 1)

    while heights.shape[-1] < size:
        # 1. The middle of each square: the mean of its four corners, and noise.
        beside, below = heights.roll(-1, 2), heights.roll(-1, 1)
        squares = (heights + beside + below + beside.roll(-1, 1)) / 4 + noise()
        # 2. The middle of each edge: the mean of its two ends and the two squares beside it, and noise.
        tops = (heights + beside + squares + squares.roll(1, 1)) / 4 + noise()
        lefts = (heights + below + squares + squares.roll(1, 2)) / 4 + noise()
        even = rearrange(torch.stack([heights, tops]), "two b h w -> b h (w two)")
        odd = rearrange(torch.stack([lefts, squares]), "two b h w -> b h (w two)")
        heights, amplitude = (
            rearrange(torch.stack([even, odd]), "two b h w -> b (h two) w"),
            amplitude / decay,
        )
    low, high = heights.amin((1, 2), keepdim=True), heights.amax((1, 2), keepdim=True)
    return ((heights - low) / (high - low))[:, None, :side, :side]
