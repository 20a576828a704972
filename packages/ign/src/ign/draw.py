"""Pictures of `ign theorem`: curves over rounds, densities and drift maps in the plane.

Drawn with Pillow at three times the size and reduced, so that lines are smooth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, QUIET, FAINT = (45, 45, 45), (125, 125, 125), (232, 232, 232)
MAGMA = ((0, 0, 4), (59, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))
MAKO = ((11, 4, 5), (53, 38, 77), (52, 89, 143), (53, 155, 170), (144, 216, 180), (236, 250, 232))
Colour = tuple[int, int, int]

# ---- curves ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """Values over rounds 1, 2, … of several instances: drawn as the median in the band of them all."""

    label: str
    colour: Colour
    values: Float[np.ndarray, "t b"]
    ends: bool
    """Whether the curve comes to rest at its last round, which is marked by a dot."""


@dataclass(frozen=True)
class Panel:
    """One chart with logarithmic axes; `bound` is a dashed level."""

    title: str
    remarks: tuple[str, str]
    curves: Sequence[Curve]
    bound: float | None = None


SCALE, WIDE, HIGH = 3, 380, 400
LEFT, RIGHT, TOP, BOTTOM = 54, 24, 84, 50


def charts(panels: Sequence[Panel], rounds: int, low: float, ylabel: str) -> UInt8[Tensor, "3 h w"]:
    """Charts side by side over rounds 1 … `rounds`, each with values from `low` to 1, both logarithmic."""
    sheet = Image.new("RGB", (len(panels) * WIDE * SCALE, HIGH * SCALE), "white")
    for i, panel in enumerate(panels):
        _Chart(sheet, i * WIDE, rounds, low).draw(panel, ylabel if i == 0 else "")
    small = sheet.resize((len(panels) * WIDE, HIGH), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()


class _Chart:
    def __init__(self, sheet: Image.Image, left: int, rounds: int, low: float):
        self.sheet, self.left, self.rounds, self.low = sheet, left, rounds, low
        self.pen = ImageDraw.Draw(sheet, "RGBA")

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where (round, value) stands, in pixels of the large sheet."""
        across = math.log(max(x, 1)) / math.log(self.rounds)
        up = math.log(max(y, self.low) / self.low) / -math.log(self.low)
        width, height = WIDE - LEFT - RIGHT, HIGH - TOP - BOTTOM
        return (self.left + LEFT + across * width) * SCALE, (TOP + (1 - up) * height) * SCALE

    def text(self, x: float, y: float, words: str, ink: Colour, size: int, anchor: str = "ls") -> None:
        self.pen.text((x, y), words, ink, ImageFont.load_default(size * SCALE), anchor=anchor)

    def draw(self, panel: Panel, ylabel: str) -> None:
        self._axes(ylabel)
        head = (self.left + LEFT) * SCALE
        self.text(head, 25 * SCALE, panel.title, INK, 17)
        for line, remark in enumerate(panel.remarks):
            self.text(head, (45 + 16 * line) * SCALE, remark, QUIET, 12)
        if panel.bound:
            self._bound(panel.bound)
        for curve in panel.curves:
            self._curve(curve)

    def _axes(self, ylabel: str) -> None:
        for power in range(round(math.log10(self.rounds)) + 1):
            x, y = self.at(10**power, self.low)
            self.pen.line([(x, y), self.at(10**power, 1)], FAINT, SCALE)
            self.text(x, y + 18 * SCALE, f"{10**power:,}", QUIET, 11, "ms")
        for power in range(math.ceil(math.log10(self.low)), 1):
            x, y = self.at(1, 10.0**power)
            self.pen.line([(x, y), self.at(self.rounds, 10.0**power)], FAINT, SCALE)
            self.text(x - 6 * SCALE, y + 4 * SCALE, f"{10.0**power:g}", QUIET, 11, "rs")
        x, y = self.at(self.rounds, self.low)
        self.text(x, y + 36 * SCALE, "rounds", QUIET, 11, "rs")
        self.text((self.left + LEFT) * SCALE, y + 36 * SCALE, ylabel, QUIET, 11)

    def _bound(self, level: float) -> None:
        (x, y), (end, _) = self.at(1, level), self.at(self.rounds, level)
        while x < end:
            self.pen.line([(x, y), (min(x + 5 * SCALE, end), y)], INK, SCALE)
            x += 9 * SCALE

    def _curve(self, curve: Curve) -> None:
        last = len(curve.values)
        at = np.unique(np.geomspace(1, last, 300).round().astype(int))
        chosen = np.sort(curve.values[at - 1], 1)
        low, middle, high = chosen[:, 0], np.median(chosen, 1), chosen[:, -1]

        def path(values: Float[np.ndarray, " t"]) -> list[tuple[float, float]]:
            return [self.at(x, y) for x, y in zip(at.tolist(), values.tolist(), strict=True)]

        self.pen.polygon([*path(high), *reversed(path(low))], (*curve.colour, 45))
        points = path(middle)
        self.pen.line(points, curve.colour, 2 * SCALE, joint="curve")
        x, y = points[-1]
        if curve.ends:
            self.pen.circle((x, y), 4 * SCALE, curve.colour)
        self.text(x, y + (20 if curve.ends else -9) * SCALE, curve.label, curve.colour, 12, "rs")


# ---- the plane ---------------------------------------------------------------------------------------------


def density(points: Float[Tensor, "n 2"], side: int = 200, reach: float = 1.1) -> UInt8[Tensor, "3 s s"]:
    """Where points of the square [-reach, reach]^2 lie: bright = many, on a logarithmic scale."""
    cell = ((points + reach) / (2 * reach) * side).floor().long()
    inside = ((cell >= 0) & (cell < side)).all(1)
    x, y = cell[inside].unbind(1)
    # Rows run downwards in a picture, the second coordinate upwards.
    count = torch.bincount((side - 1 - y) * side + x, minlength=side * side).float().view(1, 1, side, side)
    kernel = torch.tensor([0.25, 0.5, 0.25])
    soft = torch.nn.functional.conv2d(count, (kernel[:, None] * kernel)[None, None], padding=1)[0, 0]
    even = len(points) / side**2
    return colours((soft / even).log1p() / math.log1p(200), MAGMA)


def drift_map(drift: Float[Tensor, "s s"], low: float = 1e-5, high: float = 1.0) -> UInt8[Tensor, "3 s s"]:
    """Drift on `plane`'s points: bright = still (`low` and below), dark = far (`high`), logarithmic."""
    return colours((drift.clamp_min(low) / high).log() / math.log(low / high), MAKO)


def plane(side: int = 200, reach: float = 1.1) -> Float[Tensor, "s s 2"]:
    """The centres of a picture's pixels, rows from the top."""
    ticks = ((torch.arange(side) + 0.5) / side * 2 - 1) * reach
    y, x = torch.meshgrid(ticks.flip(0), ticks, indexing="ij")
    return torch.stack([x, y], -1)


def colours(value: Float[Tensor, "h w"], stops: Sequence[Colour]) -> UInt8[Tensor, "3 h w"]:
    """Colours of values in [0, 1], linear between evenly spaced stops."""
    table = torch.tensor(stops, dtype=torch.float32)
    place = value.clamp(0, 1) * (len(stops) - 1)
    below = place.floor().long().clamp_max(len(stops) - 2)
    mixed = torch.lerp(table[below], table[below + 1], (place - below)[..., None])
    return rearrange(mixed.round().to(torch.uint8), "h w c -> c h w").contiguous()
