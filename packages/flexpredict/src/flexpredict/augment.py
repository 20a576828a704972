"""The two augmentation recipes, addressed by (seed, step, row): I-JEPA's crops, and StoP's changes of them.

Note: StoP's configuration also names a colour jitter of strength 0, which changes nothing and is left out.
"""

import math

import numpy as np
import torch
from jaxtyping import UInt8
from paperkit import images, rng
from PIL import Image, ImageFilter
from torch import Tensor

AREA = (0.3, 1.0)
"""Share of the image that a crop covers."""
ASPECT = (3 / 4, 4 / 3)
FLIP, GREY, BLUR = 0.5, 0.2, 0.5
"""How often StoP's recipe mirrors, greys and blurs."""
RADIUS = (0.1, 2.0)
"""Of the blur, in pixels of the crop (Pillow's Gaussian)."""


def augmented(
    image: UInt8[Tensor, "c h w"], recipe: str, size: int, seed: int, step: int, row: int
) -> UInt8[Tensor, "3 s s"]:
    """A crop of side `size` in colour; the recipe "stop" may mirror, grey and blur it."""
    draw = torch.rand(40, generator=rng.generator(seed, step, f"crop {row}"), dtype=torch.float64).tolist()
    picture = images.to_pil(image).convert("RGB")
    picture = picture.crop(crop_box(picture.size, draw[:32]))
    picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    if recipe == "stop":
        picture = _photometric(picture, draw[32:])
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def crop_box(size: tuple[int, int], draw: list[float]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random crop: the first of eight tries that fits, else the centre.

    Area uniform in AREA, aspect log-uniform in ASPECT, place uniform; four numbers of `draw` for each try.
    """
    width, height = size
    for i in range(0, len(draw), 4):
        area = width * height * (AREA[0] + draw[i] * (AREA[1] - AREA[0]))
        low, high = (math.log(edge) for edge in ASPECT)
        aspect = math.exp(low + draw[i + 1] * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw[i + 2] * (width - w + 1)), int(draw[i + 3] * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * ASPECT[1]))
    h = min(height, round(width / ASPECT[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _photometric(picture: Image.Image, draw: list[float]) -> Image.Image:
    if draw[0] < FLIP:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if draw[1] < GREY:
        picture = picture.convert("L").convert("RGB")
    if draw[2] < BLUR:
        radius = RADIUS[0] + draw[3] * (RADIUS[1] - RADIUS[0])
        picture = picture.filter(ImageFilter.GaussianBlur(radius))
    return picture
