"""Corruptions of images that f never saw in training, to be projected back. Used by `ign project`.

Noise, grey and sketch follow the formulas of a public re-implementation of the paper's figure 5; the others
are ours. Each takes images in [-1, 1], a strength and a generator, and depends on nothing else.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from paperkit import UserError, rng
from torch import Generator, Tensor

from ign.config import Corruption

STRENGTH = {"noise": 0.15, "grey": 1.0, "sketch": 21.0, "mask": 0.5, "patches": 3.0, "blur": 1.0}
"""What is used where no strength is given; its meaning stands with each corruption."""


def corrupt(
    x: Float[Tensor, "n c h w"], kind: Corruption, strength: float | None = None, seed: int = 0
) -> Float[Tensor, "n c h w"]:
    """Images with one corruption of a strength, fixed by (kind, seed) and the number of images.

    Raises `UserError` for a strength that means nothing to this corruption.
    """
    strength = STRENGTH[kind] if strength is None else strength
    if strength <= 0:
        raise UserError(f"--strength must be positive, not {strength:g}")
    return CORRUPTIONS[kind](x, strength, rng.generator(seed, 0, f"corrupt {kind}"))


def noise(x: Tensor, deviation: float, draw: Generator) -> Tensor:
    """Gaussian noise of a deviation, not clipped."""
    return x + deviation * torch.randn(x.shape, generator=draw).to(x)


def grey(x: Tensor, share: float, draw: Generator) -> Tensor:
    """Towards the mean of the channels, all the way at 1."""
    if x.shape[1] == 1:
        raise UserError("--corrupt grey needs colour images, these are grey already")
    if share > 1:
        raise UserError(f"--strength of grey is a share of at most 1, not {share:g}")
    return torch.lerp(x, x.mean(1, keepdim=True).expand_as(x), share)


def sketch(x: Tensor, kernel: float, draw: Generator) -> Tensor:
    """Brightness over blurred brightness, g / (blur(g) + 1e-10) - 1 g the channel mean of x + 1, clipped.

    The blur's kernel has k pixels (odd, at most the image's side), its deviation is 0.3 ((k-1)/2 - 1) + 0.8.
    """
    side = min(int(kernel), *x.shape[-2:])
    radius = (side - 1) // 2
    if radius < 1:
        raise UserError(f"--strength of sketch is a kernel of at least 3 pixels, not {kernel:g}")
    bright = (x + 1).mean(1, keepdim=True)
    blurred = gaussian_blur(bright, 0.3 * (radius - 1) + 0.8, radius)
    return (bright / (blurred + 1e-10) - 1).clamp(-1, 1).expand_as(x)


def mask(x: Tensor, share: float, draw: Generator) -> Tensor:
    """One black rectangle per image at a random place, of this share of either side."""
    if share > 1:
        raise UserError(f"--strength of mask is a share of the side of at most 1, not {share:g}")
    height, width = (max(1, round(share * side)) for side in x.shape[-2:])
    return torch.where(_rectangles(x, height, width, draw), -1.0, x)


def patches(x: Tensor, count: float, draw: Generator) -> Tensor:
    """So many patches of white noise per image, each a quarter of the side high and wide."""
    height, width = (max(1, side // 4) for side in x.shape[-2:])
    for _ in range(max(1, round(count))):
        speckle = torch.randn(x.shape, generator=draw).clamp(-1, 1).to(x)
        x = torch.where(_rectangles(x, height, width, draw), speckle, x)
    return x


def blur(x: Tensor, deviation: float, draw: Generator) -> Tensor:
    """Gaussian blur of a deviation in pixels."""
    return gaussian_blur(x, deviation, min(max(1, round(3 * deviation)), min(x.shape[-2:]) - 1))


CORRUPTIONS: dict[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "noise": noise, "grey": grey, "sketch": sketch, "mask": mask, "patches": patches, "blur": blur,
}  # fmt: skip


def gaussian_blur(x: Float[Tensor, "n c h w"], deviation: float, radius: int) -> Float[Tensor, "n c h w"]:
    """Rows, then columns, with a kernel of 2 radius + 1 pixels; the image is mirrored at its border."""
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / deviation).square())
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    each = F.pad(rearrange(x, "n c h w -> (n c) 1 h w"), (radius,) * 4, mode="reflect")
    blurred = F.conv2d(F.conv2d(each, kernel), kernel.mT)
    return rearrange(blurred, "(n c) 1 h w -> n c h w", n=len(x))


def _rectangles(x: Tensor, height: int, width: int, draw: Generator) -> Tensor:
    """Which pixels lie in one rectangle per image, (n, 1, h, w)."""

    def inside(size: int, length: int) -> Tensor:
        start = torch.randint(0, size - length + 1, (len(x), 1), generator=draw)
        place = torch.arange(size)
        return (place >= start) & (place < start + length)

    rows, columns = inside(x.shape[-2], height), inside(x.shape[-1], width)
    return (rows[:, None, :, None] & columns[:, None, None, :]).to(x.device)
