"""What a layer needs to know about one axis of one size pair, as tensors: made once, cached, constant.

`Geometry` is what a layer fixes (kernel, borders, antialiasing); `Axis` is that at lengths N -> n.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from paperkit.resize import BLOCK, KERNELS, Block, Number, cubic
from torch import Tensor

from ccconv import method

CARDINAL = {"interp": cubic, "bspline": method.bspline}
"""Kernels with control points one input pixel apart, and the function that stands on each."""


class Geometry(NamedTuple):
    """What a layer fixes about its windows; hashable."""

    kernel: str
    """mlp, interp, bspline, or a fixed kernel's name (cubic, linear, box, lanczos2, lanczos3)."""
    kernel_size: tuple[int, ...]
    antialias: bool = True
    spacing: str = "input"
    """Distance of control points where s > 1: one pixel of the input or of the output."""
    window: str = "none"
    """none, or hann: f times a taper that is 0 at the edge."""
    flat: bool = False
    """Whether every phase's taps sum to the same number, so that a constant stays constant."""
    border: str = "zeros"

    def support(self, axis: int, scale: Fraction) -> Fraction:
        """w of an axis in input pixels where s >= 1."""
        count = self.kernel_size[axis]
        if self.kernel in CARDINAL:
            return 4 + (count - 1) * self.step(scale)
        return Fraction(KERNELS[self.kernel][1] if self.kernel in KERNELS else count)

    def step(self, scale: Fraction) -> Fraction:
        """Distance of control points in units of d."""
        return 1 / scale if self.spacing == "output" and scale > 1 else Fraction(1)

    def shared(self, scale: Fraction) -> bool:
        """Whether control points are one output apart: then the layer is a resampling followed by a conv."""
        stretch = scale if self.antialias and scale < 1 else Fraction(1)
        return self.kernel in CARDINAL and self.window == "none" and self.step(scale) / stretch * scale == 1


class Samples(NamedTuple):
    """Where a kernel is evaluated on one axis; m phases, t taps, a basis functions."""

    offset: Float[Tensor, "m t"]
    """d of phase and tap."""
    taper: Float[Tensor, "m t"]
    """r, times the window's taper; 0 outside the window."""
    basis: Float[Tensor, "m t a"] | None
    """The taper times each basis function, for kernels that are products of one-dimensional ones."""

    def phase(self, p: int) -> "Samples":
        """The samples of one phase."""
        basis = None if self.basis is None else self.basis[p : p + 1]
        return Samples(self.offset[p : p + 1], self.taper[p : p + 1], basis)


class Axis(NamedTuple):
    """The windows of one axis as whole numbers and tensors, which a compiler takes for constants."""

    length: int
    size: int
    phases: int
    taps: int
    groups: int
    """Outputs of one phase, the last group counted whole."""
    stride: int
    """Input pixels between the windows of one phase."""
    low: int
    """First input position that any window covers; may be negative."""
    high: int
    """One past the last."""
    starts: tuple[int, ...]
    """Where each phase's first window starts, counted from `low`."""
    samples: Samples
    fold: Int64[Tensor, " p"] | None
    """Input pixel of every position low .. high where the border folds; None where it is zeros."""
    reads: Int64[Tensor, " q"]
    """Positions from `low` of (phase, group, tap), for `gather`."""
    gain: Float[Tensor, " n"] | None
    """For `renormalize`: what each output is multiplied by."""

    @property
    def extent(self) -> int:
        """Pixels that all windows of one phase cover."""
        return self.stride * (self.groups - 1) + self.taps


class Plan(NamedTuple):
    """All axes of one call."""

    axes: tuple[Axis, ...]
    sizes: tuple[int, ...]
    bands: tuple["Bands", ...] | None
    """Resampling matrices of the separable path, where the kernel allows it."""
    order: tuple[int, ...]
    """Axes, the one that shrinks most first: fewer numbers for the others."""


class Bands(NamedTuple):
    """One axis of the separable path: a banded matrix before a conv or after it; the other one is empty.

    Before: its rows are output positions, or (output, control point) pairs. After: the conv runs at the
    input's resolution, on a padded axis, since sum_m K_m c(d - m) is the cubic resample of the conv by K.
    """

    before: tuple[Block, ...]
    after: tuple[Block, ...]
    rows: int
    """What the conv reads of this axis."""
    stride: int
    """The conv's."""

    @property
    def products(self) -> int:
        """Multiplications for each line along the axis."""
        return sum(block.matrix.numel() for block in (*self.before, *self.after))


@lru_cache(maxsize=128)
def plan(
    geometry: Geometry,
    lengths: tuple[int, ...],
    size: int | tuple[int, ...] | None,
    scale: Number | tuple[Number, ...] | None,
    offset: Number | tuple[Number, ...] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Plan:
    """Everything about a call that depends on sizes only. Raises `UserError` as `method.resolve` does."""
    axes, bands = [], []
    # Cached tensors must serve autograd later even where the first call ran under inference_mode.
    with torch.inference_mode(False):
        for number, (length, (n, s, delta)) in enumerate(
            zip(lengths, method.resolve(lengths, size, scale, offset), strict=True)
        ):
            g = windows(geometry, number, length, n, s, delta)
            axes.append(_axis(geometry, number, g, dtype, device))
            bands.append(_bands(geometry, number, g, delta, axes[-1]))
    separable = all(b is not None for b in bands)
    order = tuple(sorted(range(len(axes)), key=lambda number: axes[number].size / axes[number].length))
    return Plan(tuple(axes), tuple(axis.size for axis in axes), tuple(bands) if separable else None, order)


def windows(
    geometry: Geometry, axis: int, length: int, n: int, s: Fraction, delta: Fraction = Fraction(0)
) -> method.Grid:
    """The grid of one axis of a layer. Raises `UserError` when size and scale contradict."""
    support = geometry.support(axis, s)
    g = method.grid(length, n, s, support, geometry.antialias, delta, geometry.kernel != "box")
    if geometry.border in ("zeros", "renormalize"):
        method.check_reach(g)
    return g


def _axis(geometry: Geometry, number: int, g: method.Grid, dtype: torch.dtype, device: torch.device) -> Axis:
    taper, basis = _taper(geometry, number, g), _basis(geometry, number, g)
    # Slots where every kernel is 0, such as those of a cubic on whole numbers, are not read at all.
    used = np.flatnonzero((taper if basis is None else np.abs(basis).sum(2)).any(0))
    slots = slice(int(used[0]), int(used[-1]) + 1)
    taps = slots.stop - slots.start
    low, stride = int(g.left[0]) + slots.start, g.stride if g.groups > 1 else 1
    starts = tuple(int(left - g.left[0]) for left in g.left[: g.phases])
    high = low + starts[-1] + stride * (g.groups - 1) + taps
    index = None
    if geometry.border not in ("zeros", "renormalize"):
        index = torch.from_numpy(method.fold(np.arange(low, high), g.length, geometry.border)).to(device)
    steps = stride * np.arange(g.groups)[:, None] + np.arange(taps)
    reads = torch.from_numpy((np.array(starts)[:, None, None] + steps).ravel()).to(device)
    gain = _gain(g, taper if basis is None or geometry.kernel in CARDINAL else basis[..., 0], geometry)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device, dtype)

    basis = None if basis is None else tensor(basis[:, slots])
    samples = Samples(tensor(g.offset[:, slots]), tensor(taper[:, slots]), basis)
    return Axis(
        g.length, g.size, g.phases, taps, g.groups, stride, low, high, starts, samples, index, reads,
        None if gain is None else tensor(gain),
    )  # fmt: skip


def _taper(geometry: Geometry, axis: int, g: method.Grid) -> Float64[np.ndarray, "m t"]:
    factor = g.inside * float(g.stretch)
    if geometry.window == "hann":
        factor = factor * method.hann(g.offset, float(geometry.support(axis, g.scale)))
    return factor


def _basis(geometry: Geometry, axis: int, g: method.Grid) -> Float64[np.ndarray, "m t a"] | None:
    if geometry.kernel == "mlp":
        return None
    if geometry.kernel in CARDINAL:
        count, step = geometry.kernel_size[axis], float(geometry.step(g.scale))
        values = method.control_points(g.offset, count, CARDINAL[geometry.kernel], step)
    else:
        values = KERNELS[geometry.kernel][0](g.offset)[..., None]
    values = values * _taper(geometry, axis, g)[..., None]
    flat = geometry.flat or geometry.kernel in KERNELS
    return values / values.sum(1, keepdims=True) if flat else values


def _gain(
    g: method.Grid, factor: Float64[np.ndarray, "m t"], geometry: Geometry
) -> Float64[np.ndarray, " n"] | None:
    if geometry.border != "renormalize":
        return None
    position, phase = g.positions, np.arange(g.size) % g.phases
    kept = np.where((position >= 0) & (position < g.length), factor[phase], 0.0).sum(1)
    return factor[phase].sum(1) / kept


def _bands(geometry: Geometry, number: int, g: method.Grid, delta: Fraction, axis: Axis) -> Bands | None:
    """How the separable path treats an axis; None where the kernel is no product of functions of one axis."""
    basis = _basis(geometry, number, g)
    if basis is None:
        return None
    like, count = axis.samples.taper, basis.shape[-1]
    # One control point, as on an axis of its own.
    one = Geometry(geometry.kernel, (1,) * len(geometry.kernel_size), geometry.antialias, flat=geometry.flat)
    if geometry.shared(g.scale):
        # Control point m of output j is where control point 0 of output j + m stands: one row for both.
        wide = method.grid(g.length, g.size + count - 1, g.scale, Fraction(4), geometry.antialias, delta)
        blocks = _blocks(wide, _points(one, number, wide), geometry.border, like)
        return Bands(blocks, (), wide.size, 1)
    rows = axis.high - axis.low
    found = rows - count + 1
    unit = g.stretch == geometry.step(g.scale) == 1 and geometry.window == "none"
    if geometry.kernel in CARDINAL and unit and found <= g.size:
        # Pixel p of the conv stands at position low + p + (count - 1)/2; the centres of both grids differ.
        centre = axis.low + Fraction(count - 1 + found - 1, 2)
        moved = delta + Fraction(g.length - 1, 2) - centre
        narrow = method.grid(found, g.size, g.scale, Fraction(4), False, moved)
        return Bands((), _blocks(narrow, _points(one, number, narrow), "zeros", like), rows, 1)
    return Bands(_blocks(g, basis, geometry.border, like), (), g.size * count, count)


def _points(geometry: Geometry, number: int, g: method.Grid) -> Float64[np.ndarray, "m t a"]:
    basis = _basis(geometry, number, g)
    assert basis is not None
    return basis


def _blocks(
    g: method.Grid,
    weight: Float64[np.ndarray, "m t a"],
    border: str,
    like: Tensor,
) -> tuple[Block, ...]:
    position = g.positions
    values = weight[np.arange(g.size) % g.phases]  # n t a
    if border in ("zeros", "renormalize"):
        outside = (position < 0) | (position >= g.length)
        values, where = np.where(outside[..., None], 0.0, values), position.clip(0, g.length - 1)
    else:
        where = method.fold(position, g.length, border)
    count = weight.shape[-1]
    per_block = max(1, BLOCK // count)
    result = []
    for row in range(0, g.size, per_block):
        pixels, numbers = where[row : row + per_block], values[row : row + per_block]
        start, stop = int(pixels.min()), int(pixels.max()) + 1
        matrix = np.zeros((len(pixels), count, stop - start))
        rows, columns = np.arange(len(pixels))[:, None, None], np.arange(count)
        np.add.at(matrix, (rows, columns, pixels[:, :, None] - start), numbers)
        block = torch.from_numpy(matrix.reshape(-1, stop - start)).to(like)
        result.append(Block(start, block))
    return tuple(result)


def total(values: Sequence[int]) -> int:
    """Product of whole numbers."""
    result = 1
    for value in values:
        result *= value
    return result
