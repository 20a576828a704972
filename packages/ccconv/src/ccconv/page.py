"""Pictures: kernels as surfaces with the points where each size samples them, and accuracy over sizes.

Used by `picture`, `train` and `report`.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from paperkit import images, report
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ccconv.axis import Plan
from ccconv.config import ReportConfig, TrainConfig
from ccconv.layer import CCConv2d

SCALES = (Fraction(1, 2), Fraction(1), Fraction(3))
"""Scales at which the README's picture samples its filter."""
GAP, HEAD = 16, 44
MOST_RINGS = 700
"""Points of one size pair, above which those of all but the first kernel are single pixels."""
Offsets = list[tuple[list[float], list[float]]]
"""Sampled offsets (rows, columns) of each pair of phases."""


def one_filter(kernel: str = "interp", seed: int = 4, cell: int = 44) -> UInt8[Tensor, "3 h w"]:
    """Three panels of one filter, `cell` screen pixels to an input pixel; blue is negative, red positive."""
    torch.manual_seed(seed)
    layer = CCConv2d(1, 1, 3, kernel=kernel, dtype=torch.float64)
    if kernel == "interp":  # a filter that people know: an edge, tilted
        edge = [[-0.2, 0.6, 1.0], [-0.9, 0.0, 0.9], [-1.0, -0.6, 0.2]]
        layer.kernel.mix.data[0, 0] = torch.tensor(edge, dtype=torch.float64)
    x = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    offsets = [_offsets(layer.plan(x, scale=s)) for s in SCALES]
    heads = [
        f"s = {s}: {len(each)} kernel{'s' if len(each) > 1 else ''} of {_taps(each)}"
        for s, each in zip(SCALES, offsets, strict=True)
    ]
    return _sheet(layer, [(0, 0)], offsets, heads, cell)


def surfaces(
    layer: CCConv2d, lengths: Sequence[int], size: int, count: int = 3, cell: int = 26
) -> UInt8[Tensor, "3 h w"]:
    """The `count` strongest filters of a layer, a row each; a column for each input side, with its points.

    Filled dots belong to the first output pixel's phase, rings to the others.
    """
    layer = layer.double()
    weight = layer.kernel.mix.detach().flatten(2).norm(dim=2)
    strongest = weight.flatten().argsort(descending=True)[:count].tolist()
    pairs = [divmod(place, weight.shape[1]) for place in strongest]
    channels, double = layer.in_channels, torch.float64
    offsets = [_offsets(layer.plan(torch.zeros(1, channels, n, n, dtype=double), size=size)) for n in lengths]
    heads = [f"{n} to {size}: {len(each)} x {_taps(each)}" for n, each in zip(lengths, offsets, strict=True)]
    sheet = _sheet(layer, pairs, offsets, heads, cell)
    layer.float()
    return sheet


def _sheet(
    layer: CCConv2d,
    pairs: Sequence[tuple[int, int]],
    offsets: Sequence[Offsets],
    heads: Sequence[str],
    cell: int,
) -> UInt8[Tensor, "3 h w"]:
    """A row of panels per (output, input) channel, a column per set of sampled offsets."""
    half = float(layer.geometry.support(0, Fraction(1))) / 2
    side = int(2 * half * cell)
    d = (torch.arange(side, dtype=torch.float64) + 0.5) / cell - half
    with torch.no_grad():
        values = layer.kernel(torch.stack(torch.meshgrid(d, d, indexing="ij"), -1))
    wide = len(heads) * (side + GAP) + GAP
    sheet = Image.new("RGB", (wide, HEAD + len(pairs) * (side + GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(17 if cell > 30 else 13)
    for row, (o, i) in enumerate(pairs):
        surface = values[..., o, i]
        colours = images.to_pil(_colours(surface / surface.abs().max().clamp_min(1e-12)))
        for column, each in enumerate(offsets):
            left, top = GAP + column * (side + GAP), HEAD + row * (side + GAP)
            sheet.paste(colours, (left, top))
            for phase, (y, x) in enumerate(each):
                points = [(b, a) for a in y for b in x]
                _dots(pen, points, left + half * cell, top + half * cell, cell, phase, len(each))
    for column, head in enumerate(heads):
        pen.text((GAP + column * (side + GAP), 14), head, fill="black", font=font)
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).contiguous()


def _taps(offsets: Offsets) -> str:
    rows, columns = (max(len(each[axis]) for each in offsets) for axis in (0, 1))
    return f"{rows}x{columns}"


def _offsets(plan: Plan) -> Offsets:
    """The offsets that are read by each pair of phases of a square call."""
    samples = plan.axes[0].samples
    read = samples.taper != 0 if samples.basis is None else samples.basis.abs().sum(2) > 1e-12
    taps = [offset[kept].tolist() for offset, kept in zip(samples.offset, read, strict=True)]
    return [(a, b) for a in taps for b in taps]


def _dots(pen: ImageDraw.ImageDraw, points, x0: float, y0: float, cell: int, phase: int, phases: int) -> None:
    """Filled dots for the first phase, rings for the others; where these are many, single pixels."""
    many = phases * len(points) > MOST_RINGS
    if phase and many:
        pen.point([(x0 + x * cell, y0 + y * cell) for x, y in points], "#777777")
        return
    radius = cell / 14 if phase or many else cell / 9
    fill = "black" if phase == 0 else "white"
    for x, y in points:
        box = (x0 + x * cell - radius, y0 + y * cell - radius, x0 + x * cell + radius, y0 + y * cell + radius)
        pen.ellipse(box, fill=fill, outline="black")


def _colours(values: Float[Tensor, "h w"]) -> UInt8[Tensor, "3 h w"]:
    """-1 blue, 0 white, 1 red."""
    red, blue = torch.tensor([178.0, 24.0, 43.0]), torch.tensor([33.0, 102.0, 172.0])
    v = values.float()[None]
    end = torch.where(v > 0, red[:, None, None], blue[:, None, None])
    return (255 + (end - 255) * v.abs() * 0.85).round().to(torch.uint8)


COLOURS = ("#b2182b", "#2166ac", "#1b7837", "#762a83", "#b35806", "#555555")


def curves(
    lines: Mapping[str, Mapping[int, float]], marked: Sequence[int], across: str, up: str
) -> UInt8[Tensor, "3 h w"]:
    """Figures over whole numbers as lines with a legend; `marked` places get a thin upright line."""
    wide, high, left, top, foot = 720, 380, 64, 24, 60
    sheet = Image.new("RGB", (wide, high), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    xs = sorted({x for line in lines.values() for x in line})
    values = [y for line in lines.values() for y in line.values()]
    low, most = min(values), max(values)
    low, most = low - 0.05 * (most - low or 1), most + 0.05 * (most - low or 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across_ = (x - xs[0]) / max(xs[-1] - xs[0], 1)
        return left + across_ * (wide - left - 180), high - foot - (y - low) / (most - low) * (
            high - foot - top
        )

    for x in marked:
        pen.line((place(x, low), place(x, most)), "#dddddd")
    pen.line((place(xs[0], most), place(xs[0], low), place(xs[-1], low)), "black")
    for y in (low, (low + most) / 2, most):
        pen.text((left - 6, place(xs[0], y)[1]), f"{y:.1f}", "black", font, anchor="rm")
    for x in xs[:: max(1, len(xs) // 12)]:
        pen.text((place(x, low)[0], high - foot + 6), str(x), "black", font, anchor="ma")
    pen.text((left, high - 24), across, "black", font)
    pen.text((left, 4), up, "black", font)
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [place(x, y) for x, y in sorted(line.items())]
        pen.line(points, colour, 2)
        for x, y in points:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
        pen.text((wide - 168, top + 20 * number), name, colour, font)
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).contiguous()


def curve(found: Mapping[int, float], config: TrainConfig) -> UInt8[Tensor, "3 h w"]:
    """Accuracy over image sides; the sides of training are marked."""
    marked = config.draw or (config.size,)
    return curves(
        {config.layer: found}, marked, "image side in pixels (lines: trained at)", "% of held-out images"
    )


def write_report(config: ReportConfig) -> Path:
    """`ccconv report`: the run's page, its kernels drawn anew, with the package's claims beside it."""
    from paperkit.run import find

    from ccconv import data
    from ccconv.reproduce import claims
    from ccconv.train import SUBTITLE, TITLE, draw, load

    folder = find("ccconv", config.run)
    net, trained = load(folder)
    draw(folder, net, data.load(trained, "test"), trained)
    path = report.write(folder, TITLE, SUBTITLE, claims(), NOTES)
    print(path)
    return path


NOTES = """Kernels: each row is one filter f as a surface over its offset from the output's centre (blue
negative, red positive), the layer's strongest ones. A column is one input side: "12 to 16: 16 x 6x6" means
that there the layer reads f with 16 different sets of 6x6 points. Filled dots are the set of the first output
pixel, rings or grey pixels the others. One function serves all sizes: only the points move."""
