"""Clips by name: the embedded stand-in clip, the real ones below PAPERKIT_DATA, files and folders.

Used by the verbs, `reproduce` and the tests.
"""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from paperkit import UserError
from paperkit.data import photograph
from paperkit.data.clips import list_videos, open_frames
from paperkit.resize import resize
from torch import Tensor
from torch.nn import functional as F

from vgpnn import video
from vgpnn.video import RATE, Clip

STAND_IN = "stand-in"
FRAMES = 16
COINS = (
    # of scikit-image's photograph "coins": column, row, radius; then tint, start and speed in the frame
    ((334, 44, 28), (1.10, 0.90, 0.55), (0.12, 0.30), (0.030, 0.012)),
    ((348, 187, 31), (1.00, 0.98, 0.95), (0.95, 0.78), (-0.042, -0.006)),
    ((46, 260, 27), (1.05, 0.70, 0.50), (0.30, 1.05), (0.018, -0.045)),
)
"""Three coins that glide over the table: places and speeds in shares of width and height, per frame."""


@cache
def stand_in(frames: int = FRAMES, height: int = 72, width: int = 128) -> UInt8[Tensor, "t 3 h w"]:
    """The stand-in clip: no film, but real pixels that move as a film's do.

    The camera moves along an arc over scikit-image's photograph "coffee" (a window of 2/3 of its width, 0.6
    of its free way over `FRAMES` frames), while three coins of the photograph "coins", tinted, glide over the
    table at speeds of their own; the light breathes by 4 %.
    """
    table = resize(
        photograph("coffee").float() / 255, size=(round(1.5 * height * 400 / 337.5), round(1.5 * width))
    )
    shown = torch.stack([_frame(table, t, height, width) for t in range(frames)])
    return (shown.clamp(0, 1) * 255).round().to(torch.uint8)


def _frame(table: Tensor, t: int, height: int, width: int) -> Tensor:
    way = t / (FRAMES - 1)
    room = table.shape[1] - height - 4, table.shape[2] - width - 4
    top = 2 + room[0] * (0.5 + 0.3 * math.sin(math.pi * way))
    left = 2 + room[1] * (0.2 + 0.6 * way)
    scene = _crop(table, top, left, height, width)
    for coin in COINS:
        scene = _lay(scene, coin, t)
    return scene * (1 + 0.04 * math.sin(2 * math.pi * way))


def _crop(image: Tensor, top: float, left: float, height: int, width: int) -> Tensor:
    """A window at a place between pixels, cubic."""
    rows = (torch.arange(height) + top) / (image.shape[1] - 1) * 2 - 1
    columns = (torch.arange(width) + left) / (image.shape[2] - 1) * 2 - 1
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
    return F.grid_sample(image[None], grid[None], "bicubic", align_corners=True)[0]


def _lay(scene: Tensor, coin: tuple, t: int) -> Tensor:
    (column, row, radius), tint, start, speed = coin
    height, width = scene.shape[1:]
    side = max(5, round(0.30 * height * radius / 28))
    photo = photograph("coins")[:, row - radius : row + radius, column - radius : column + radius]
    disc = resize(photo.float() / 255, size=(side, side)) * torch.tensor(tint)[:, None, None]
    x, y = (start[0] + speed[0] * t) * width, (start[1] + speed[1] * t) * height
    across = torch.arange(width)[None, :] - x
    down = torch.arange(height)[:, None] - y
    grid = torch.stack([across.expand(height, width), down.expand(height, width)], -1) / (side / 2)
    painted = F.grid_sample(disc[None], grid[None], "bilinear", align_corners=False)[0]
    cover = ((side / 2 - (across**2 + down**2).sqrt()) + 0.5).clamp(0, 1)
    return scene * (1 - cover) + painted * cover


def open_clip(name: str) -> Clip:
    """A clip: a file or folder, "stand-in", or a name below PAPERKIT_DATA/videos.

    Names there: "airballoons", or an mp4 by its path or stem ("fish_gt", or "fish" for the real clip of a
    benchmark). Raises `UserError` for a name that is nothing, or several things.
    """
    if not name:
        raise UserError(f"no clip given: name a video file, a folder of frames, or {STAND_IN}")
    if name == STAND_IN:
        return Clip(stand_in(), RATE, STAND_IN)
    if Path(name).exists() or Path(name).suffix in video.SUFFIXES:
        return video.read(name)
    if name == "airballoons":
        return Clip(open_frames(name), RATE, name)
    try:
        known = list_videos()
    except UserError:
        raise UserError(
            f"no clip {name}: name a video file, a folder of frames, or {STAND_IN}; other names need "
            "PAPERKIT_DATA"
        ) from None
    fitting = [path for key, path in known.items() if name in (key, path.stem, path.stem.removesuffix("_gt"))]
    if len(fitting) != 1:
        what = "no clip" if not fitting else f"{len(fitting)} clips named"
        raise UserError(
            f"{what} {name}: name a video file, a folder of frames, {STAND_IN}, or one of videos/"
        )
    found = video.read(fitting[0])
    return Clip(found.frames, found.rate, name, found.notices)


def prepare(clip: Clip, frames: int = 0, start: int = 0, side: int = 0) -> Clip:
    """A part of a clip: `frames` from `start` on (0: all), its shorter side shrunk to `side` (0: no)."""
    total, height, width = clip.shape
    if start >= total:
        raise UserError(
            f"{clip.name} has {total} frames: the first cannot be number {start} (counted from 0)"
        )
    chosen = clip.frames[start : start + frames] if frames else clip.frames[start:]
    if side and min(height, width) > side:
        size = [max(1, round(n * side / min(height, width))) for n in (height, width)]
        chosen = video.to_frames(resize(video.to_unit(chosen), size=size))
    return Clip(chosen, clip.rate, clip.name, clip.notices)


# ---- The clips of `reproduce`

CLIPS = ("airballoons", "fish", "flamingo", "lionking4", "birds")
"""Real clips: three of the HP-VAE-GAN set, one of the SinGAN-GIF set, and the released PNG clip."""


def real(name: str, side: int) -> Float[Tensor, "3 t h w"]:
    """Up to 13 frames of a real clip at a shorter side, in [-1, 1]."""
    return video.to_unit(prepare(open_clip(name), 13, 0, side).frames)


def described(names: Sequence[str], side: int) -> str:
    """These clips in a record's words."""
    return f"{', '.join(names)}: up to 13 frames, shorter side {side}"
