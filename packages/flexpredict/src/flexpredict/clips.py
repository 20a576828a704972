"""Clips whose masks are known: a cut-out of one photograph glides over a moving crop of another.

Real pixels, made-up motion: the object moves by fractions of a pixel, changes its size and its brightness, so
that pixels alone do not tell where it went. `filmed` makes of such a clip, whose light is steady, one whose
exposure and grain change from frame to frame, as a camera's do.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from paperkit import data, rng
from torch import Tensor
from torch.nn import functional as F

SIDE, FRAMES = 64, 12
SOURCE = 160
"""Side to which photographs are shrunk before they are cropped."""
EXPOSURE, GRAIN = 0.3, 0.04
"""Of `filmed`: most by which a frame is brighter or darker; deviation of each pixel's noise."""


@dataclass(frozen=True)
class Clip:
    """Frames in [0, 1] and the object's mask in each."""

    frames: Float[Tensor, "t 3 h w"]
    masks: Int64[Tensor, "t h w"]


def photographs() -> list[UInt8[Tensor, "3 _ _"]]:
    """The embedded colour photographs, shorter side `SOURCE`."""
    opened = data.open_set("photographs", "all")
    found = []
    for i in range(len(opened)):
        image = opened[i][0]
        if len(image) == 3 and min(image.shape[1:]) >= SOURCE:
            scale = SOURCE / min(image.shape[1:])
            small = F.interpolate(image[None].float(), scale_factor=scale, mode="area")
            found.append(small[0].round().to(torch.uint8))
    return found


def clip(pictures: list[UInt8[Tensor, "3 _ _"]], number: int) -> Clip:
    """The clip of a number: always the same."""
    draw = torch.rand(16, generator=rng.generator(number, 0, "clip"), dtype=torch.float64).tolist()
    behind = int(draw[0] * len(pictures))
    ahead = (behind + 1 + int(draw[1] * (len(pictures) - 1))) % len(pictures)
    frames, masks = [], []
    for t in range(FRAMES):
        at = t / (FRAMES - 1)
        back = _crop(pictures[behind], (draw[2], draw[3]), 1.0, (draw[4] * 0.5 * at, draw[5] * 0.5 * at))
        # The object: an ellipse of the other photograph that goes from one place to another.
        size = 0.2 + 0.15 * draw[6]
        grown = size * (1 + (draw[7] - 0.5) * 0.8 * at)
        centre = [(0.3 + 0.4 * draw[8 + i]) * (1 - at) + (0.3 + 0.4 * draw[10 + i]) * at for i in (0, 1)]
        inside, texture = _object(pictures[ahead], (draw[12], draw[13]), centre, (grown, grown * 0.7))
        light = 1 + (draw[14] - 0.5) * 0.6 * at
        frames.append(torch.where(inside, texture * light, back).clamp(0, 1))
        masks.append(inside.long())
    return Clip(torch.stack(frames), torch.stack(masks))


def filmed(steady: Clip, number: int) -> Clip:
    """The clip with its own exposure and grain in every frame: the same for the same number."""
    draw = torch.rand(len(steady.frames), generator=rng.generator(number, 0, "exposure"))
    grain = torch.randn(steady.frames.shape, generator=rng.generator(number, 0, "grain"))
    exposed = steady.frames * (1 + EXPOSURE * (2 * draw - 1))[:, None, None, None]
    return Clip((exposed + GRAIN * grain).clamp(0, 1), steady.masks)


def _places() -> Float[Tensor, "s s 2"]:
    """(x, y) of each pixel's centre in [0, 1]."""
    line = (torch.arange(SIDE) + 0.5) / SIDE
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)


def _crop(
    picture: UInt8[Tensor, "3 h w"], corner: tuple[float, float], zoom: float, shift: tuple[float, float]
) -> Float[Tensor, "3 s s"]:
    """A crop of the frame's side, bilinear at fractions of a pixel; `shift` in sides of a frame."""
    return _sample(picture, corner, _places() / zoom + torch.tensor(shift, dtype=torch.float32))


def _sample(
    picture: UInt8[Tensor, "3 h w"], corner: tuple[float, float], places: Float[Tensor, "s s 2"]
) -> Float[Tensor, "3 s s"]:
    height, width = picture.shape[1:]
    free = torch.tensor([width - 1.6 * SIDE, height - 1.6 * SIDE]).clamp_min(0)
    pixels = places * SIDE + torch.tensor(corner, dtype=torch.float32) * free
    inside = 2 * pixels / torch.tensor([width, height]) - 1
    found = F.grid_sample(
        picture[None].float() / 255, inside[None], padding_mode="reflection", align_corners=False
    )
    return found[0]


def _object(
    picture: UInt8[Tensor, "3 h w"],
    corner: tuple[float, float],
    centre: list[float],
    radii: tuple[float, float],
) -> tuple[Tensor, Float[Tensor, "3 s s"]]:
    """(mask, texture that moves and grows with it)."""
    away = (_places() - torch.tensor(centre)) / torch.tensor(radii)
    return (away.square().sum(-1) <= 1), _sample(picture, corner, 0.5 + away * 0.25)
