"""DAVIS-2017: masks carried through its clips by a frozen encoder, scored by J and F (appendix C.2).

DINO's protocol: shorter side 480, the other cut to a multiple of 64 (or of the patch where that does not
divide 64), last-layer tokens on whatever grid that makes.

Note: frames are standardised as the encoder's training images were; DINO's script has 0.228 for 0.229.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from paperkit import UserError, images
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from flexpredict.data import Scale
from flexpredict.model import Encoder
from flexpredict.propagation import frame_features, hard_labels, propagate, soft_labels
from flexpredict.segments import clip_scores

SHORT, MULTIPLE = 480, 64
LAYOUT = "JPEGImages/480p/NAME/*.jpg, Annotations/480p/NAME/*.png, ImageSets/2017/val.txt"


@dataclass(frozen=True)
class Clip:
    """Files of one clip, frame by frame."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]


def clips(folder: Path) -> list[Clip]:
    """The clips of the validation list, or all. Raises `UserError` for a folder of another layout."""
    if not (folder / "Annotations" / "480p").is_dir():
        raise UserError(f"{folder} is not DAVIS-2017: it needs {LAYOUT} (davischallenge.org, 480p)")
    listed = folder / "ImageSets" / "2017" / "val.txt"
    if listed.is_file():
        names = listed.read_text().split()
    else:
        names = sorted(path.name for path in (folder / "Annotations" / "480p").iterdir() if path.is_dir())
    if not names:
        raise UserError(f"{folder} lists no clip: it needs {LAYOUT}")
    return [_clip(folder, name) for name in names]


def _clip(folder: Path, name: str) -> Clip:
    frames = tuple(sorted((folder / "JPEGImages" / "480p" / name).glob("*.jpg")))
    masks = tuple(sorted((folder / "Annotations" / "480p" / name).glob("*.png")))
    if len(frames) < 3 or [path.stem for path in frames] != [path.stem for path in masks]:
        raise UserError(
            f"{folder}: the clip {name} has {len(frames)} frames and {len(masks)} masks; it needs three or "
            "more, each with its mask"
        )
    return Clip(name, frames, masks)


def read_mask(path: Path) -> Int[np.ndarray, "h w"]:
    """Object numbers of an indexed PNG, 0 the background. Raises `UserError` for another kind of file."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("P", "L", "1"):
                raise UserError(f"{path} is {picture.mode}, not a picture of object numbers (mode P)")
            return np.array(picture).astype(np.int64)
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def fitted(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """(height, width) of frames as the encoder sees them."""
    unit = MULTIPLE if MULTIPLE % patch == 0 else patch
    height, width = (round(side * SHORT / min(size)) for side in size)
    if height <= width:
        return height // patch * patch, width // unit * unit
    return height // unit * unit, width // patch * patch


def read_frames(clip: Clip, patch: int) -> UInt8[Tensor, "t 3 h w"]:
    """All frames at the encoder's size."""
    frames = [images.read(path) for path in clip.frames]
    size = fitted((frames[0].shape[1], frames[0].shape[2]), patch)
    resized = [
        F.interpolate(each[None].float(), size, mode="bilinear", align_corners=False) for each in frames
    ]
    return torch.cat(resized).round().clamp(0, 255).to(torch.uint8)


def scored(encoder: Encoder, scale: Scale, clip: Clip) -> tuple[float, float]:
    """(J, F) in % of one clip."""
    truth = np.stack([read_mask(path) for path in clip.masks])
    objects = int(truth[0].max())
    if not objects:
        raise UserError(f"{clip.masks[0]} marks no object: there is nothing to carry on")
    device = encoder.pos_embed.device
    frames = scale(read_frames(clip, encoder.patch).to(device))
    features = frame_features(encoder, frames)
    grid, size = (features.shape[1], features.shape[2]), (truth.shape[1], truth.shape[2])
    first = soft_labels(torch.from_numpy(truth[0]), grid, objects).to(device)
    soft = propagate(features, first)
    found = torch.stack([hard_labels(each, encoder.patch, size).cpu() for each in soft])
    return clip_scores(found.numpy(), truth)


def evaluate(encoder: Encoder, scale: Scale, folder: Path, limit: int = 0) -> dict[str, Any]:
    """J, F and their mean over the first `limit` clips (0 = all), and clip by clip; prints as it goes."""
    rows: dict[str, dict[str, float]] = {}
    for clip in clips(folder)[: limit or None]:
        j, f = scored(encoder, scale, clip)
        rows[clip.name] = {"J": j, "F": f}
        print(f"{clip.name:24} J {j:5.1f}  F {f:5.1f}", flush=True)
    mean = {key: sum(row[key] for row in rows.values()) / len(rows) for key in ("J", "F")}
    return {**mean, "J&F": (mean["J"] + mean["F"]) / 2, "clips": rows}
