"""The verbs `align` and `picture`."""

from fractions import Fraction
from pathlib import Path

import torch
from jaxtyping import UInt8
from paperkit import UserError, images, suggest
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ccconv.config import AlignConfig, PictureConfig
from ccconv.drift import align, table
from ccconv.layer import CCConv2d

SCALES = (Fraction(1, 2), Fraction(1), Fraction(3))
"""Scales at which the picture samples its filter."""


def align_model(config: AlignConfig) -> None:
    """`ccconv align`: the drift of every layer of a torchvision network, or the total over sizes."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if config.model not in names:
        raise UserError(f"torchvision has no network {config.model}{suggest(config.model, names)}")
    with torch.device("meta"):
        model = torchvision.models.get_model(config.model, weights=None)
    if not config.sweep:
        print(table(align(model, config.size)))
        return
    for size in range(config.size, config.size + config.sweep):
        rows = [row for row in align(model, size) if row.kind not in ("meeting", "adaptive pool")]
        drift = float(rows[-1].drift[-1]) if rows else 0.0
        print(f"{size:6}  {drift:+8.2f} px")


def picture(config: PictureConfig) -> Path:
    """`ccconv picture`: f as a grey surface, with the points where scales 1/2, 1 and 3 sample it."""
    path = Path(config.out)
    if path.suffix.lower() != ".png":
        raise UserError(f"--out {config.out} must end in .png")
    images.write(path, draw(config.kernel, config.seed))
    print(path)
    return path


def draw(kernel: str = "interp", seed: int = 4, cell: int = 44) -> UInt8[Tensor, "3 h w"]:
    """Three panels of one filter, `cell` screen pixels to an input pixel; blue is negative, red positive."""
    torch.manual_seed(seed)
    layer = CCConv2d(1, 1, 3, kernel=kernel, dtype=torch.float64)
    if kernel == "interp":  # a filter that people know: an edge, tilted
        edge = [[-0.2, 0.6, 1.0], [-0.9, 0.0, 0.9], [-1.0, -0.6, 0.2]]
        layer.kernel.mix.data[0, 0] = torch.tensor(edge, dtype=torch.float64)
    half = float(layer.geometry.support(0, Fraction(1))) / 2
    side = int(2 * half * cell)
    d = (torch.arange(side, dtype=torch.float64) + 0.5) / cell - half
    surface = layer.kernel(torch.stack(torch.meshgrid(d, d, indexing="ij"), -1))[..., 0, 0].detach()
    colours = _colours(surface / surface.abs().max())
    gap, head = 16, 44
    sheet = Image.new("RGB", (3 * side + 4 * gap, side + head + gap), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for number, s in enumerate(SCALES):
        left = gap + number * (side + gap)
        sheet.paste(images.to_pil(colours), (left, head))
        offsets = _offsets(layer, s)
        for phase, (y, x) in enumerate(offsets):
            points = [(b, a) for a in y for b in x]
            _dots(pen, points, left + half * cell, head + half * cell, cell, phase, len(offsets))
        kinds = len(offsets)
        text = (
            f"s = {s}: {kinds} kernel{'s' if kinds > 1 else ''} of {len(offsets[0][0])}x{len(offsets[0][1])}"
        )
        pen.text((left, 14), text, fill="black", font=font)
    return images.to_uint8(torch.from_numpy(_array(sheet)), 0, 255)


def _array(sheet: Image.Image):
    import numpy as np

    return np.array(sheet, dtype=np.float32).transpose(2, 0, 1)


def _offsets(layer: CCConv2d, s: Fraction) -> list[tuple[list[float], list[float]]]:
    """The sampled offsets (rows, columns) of each pair of phases at a scale."""
    samples = layer.plan(torch.zeros(1, 1, 32, 32, dtype=torch.float64), scale=s).axes[0].samples
    read = samples.taper != 0 if samples.basis is None else samples.basis.abs().sum(2) > 1e-12
    taps = [offset[kept].tolist() for offset, kept in zip(samples.offset, read, strict=True)]
    return [(a, b) for a in taps for b in taps]


def _dots(pen: ImageDraw.ImageDraw, points, x0: float, y0: float, cell: int, phase: int, phases: int) -> None:
    """Filled dots for the first phase, rings for the others."""
    radius = 5 if phases == 1 or phase == 0 else 3
    fill = "black" if phase == 0 else "white"
    for x, y in points:
        box = (x0 + x * cell - radius, y0 + y * cell - radius, x0 + x * cell + radius, y0 + y * cell + radius)
        pen.ellipse(box, fill=fill, outline="black")


def _colours(values: Tensor) -> UInt8[Tensor, "3 h w"]:
    """-1 blue, 0 white, 1 red."""
    red, blue = torch.tensor([178.0, 24.0, 43.0]), torch.tensor([33.0, 102.0, 172.0])
    v = values.float()[None]
    end = torch.where(v > 0, red[:, None, None], blue[:, None, None])
    return (255 + (end - 255) * v.abs() * 0.85).round().to(torch.uint8)
