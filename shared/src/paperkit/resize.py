"""Exact antialiased resampling of arrays and tensors, any number of axes, by scale and/or size.

Used by gpnn, vgpnn, ccconv and sempyramid.

symbol  meaning                                                      source
N, n    input and output length of one axis
s       scale, outputs per input; need not be n/N                    ccconv spec 2.1
r       min(s, 1) with antialiasing, else 1: stretch of the kernel   ccconv spec 2.2, ResizeRight
u(j)    j/s + (N-1)/2 - (n-1)/(2s): output centre j in input pixels  ccconv spec 2.2: grids share their centre
f       kernel of support w on the half-open window [-w/2, w/2)
W(j,i)  r f(r (i - u(j))), then each row divided by its sum

Window and offset i - u(j) come from exact rationals, so that no window is wrong where u(j) +- w/(2r) is an
integer; only the kernel's value is a floating-point number (float64).
"""

import math
import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from paperkit import UserError

Kernel = Literal["cubic", "linear", "box", "lanczos2", "lanczos3"]
Border = Literal["zeros", "replicate", "reflect", "renormalize"]
Number = int | float | Fraction
Array = TypeVar("Array", np.ndarray, Tensor)

BLOCK = 64
"""Output rows per banded block: a block of the resampling matrix is about BLOCK by BLOCK/s + taps."""


# ---- Kernels f(x) on |x| <= w/2; the window is cut by `taps`, not here


def cubic(x: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Keys' cubic convolution with a = -1/2 (support 4)."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, far)


def linear(x: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Triangle (support 2)."""
    return 1 - np.abs(x)


def box(x: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Mean of the pixels whose centres lie in the window (support 1)."""
    return np.ones_like(x)


def lanczos2(x: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Sinc windowed by a twice wider sinc (support 4)."""
    return np.sinc(x) * np.sinc(x / 2)


def lanczos3(x: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Sinc windowed by a three times wider sinc (support 6)."""
    return np.sinc(x) * np.sinc(x / 3)


KERNELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "cubic": (cubic, 4),
    "linear": (linear, 2),
    "box": (box, 1),
    "lanczos2": (lanczos2, 4),
    "lanczos3": (lanczos3, 6),
}
BORDERS = ("zeros", "replicate", "reflect", "renormalize")


# ---- Grid and windows, exact


def exact(scale: Number) -> Fraction:
    """The scale as a rational: a float within 1e-12 of a fraction of denominator <= 4096 is that fraction."""
    if not (math.isfinite(scale) and scale > 0):
        raise UserError(f"scale must be a positive number, got {scale}")
    value = Fraction(scale)
    simple = value.limit_denominator(4096)
    return simple if abs(value - simple) <= Fraction(1, 10**12) * value else value


def output_length(length: int, scale: Number) -> int:
    """n = ceil(s N - 1e-9), the length that a scale alone gives (ccconv spec 7.7)."""
    return max(1, math.ceil(exact(scale) * length - Fraction(1, 10**9)))


class Taps(NamedTuple):
    """The window of each output: input positions (may lie outside the axis) and their weights."""

    position: Int64[np.ndarray, "n k"]
    """Input pixel i of tap k; below 0 and from N on where the window leaves the axis."""
    offset: Float64[np.ndarray, "n k"]
    """r (i - u(j)): where the kernel is evaluated, the exact rational rounded once."""
    weight: Float64[np.ndarray, "n k"]
    """r f(offset), 0 outside the half-open window; not divided by its sum."""


@lru_cache(maxsize=256)
def taps(
    length: int,
    size: int,
    scale: Fraction,
    kernel: Kernel | str | Callable[[np.ndarray], np.ndarray] = "cubic",
    antialias: bool = True,
    support: int | None = None,
) -> Taps:
    """Windows and weights of one axis of N = `length` inputs and n = `size` outputs at exact scale s.

    `kernel` is a name, or a function of the offset together with its `support` w in input pixels at s >= 1.
    The window is the half-open one, i in [u - w/2r, u + w/2r). The arrays are cached and read-only.
    """
    function, width = (kernel, support) if callable(kernel) else KERNELS[kernel]
    if width is None:
        raise UserError("a kernel given as a function needs its support: taps(..., support=w)")
    r = min(scale, Fraction(1)) if antialias else Fraction(1)
    half = Fraction(width) / (2 * r)
    first = Fraction(length - 1, 2) - Fraction(size - 1) / (2 * scale)  # u(0)
    count = math.ceil(2 * half)  # integers in a half-open interval of this length, at most
    left = np.empty(size, np.int64)
    offset = np.empty((size, count))
    inside = np.empty((size, count), bool)
    for j in range(size):
        u = first + j / scale
        start = math.ceil(u - half)
        left[j] = start
        for k in range(count):
            distance = start + k - u
            offset[j, k] = r * distance
            inside[j, k] = distance < half
    weight = np.where(inside, float(r) * function(offset), 0.0)
    result = Taps(left[:, None] + np.arange(count), offset, weight)
    for array in result:
        array.setflags(write=False)
    return result


# ---- Borders, and the resampling matrix in banded blocks


def fold_border(index: Int64[np.ndarray, "n k"], length: int, border: str) -> Int64[np.ndarray, "n k"]:
    """Move positions into the axis: to the nearest pixel, or by half-sample mirrors as often as needed."""
    if border == "reflect":
        index = index % (2 * length)
        return np.where(index < length, index, 2 * length - 1 - index)
    return index.clip(0, length - 1)


def normalized_taps(
    length: int, size: int, scale: Fraction, kernel: str, border: str, antialias: bool
) -> tuple[Int64[np.ndarray, "n k"], Float64[np.ndarray, "n k"]]:
    """Positions inside the axis, and weights that sum to one (over the inside only for `renormalize`).

    Raises `UserError` when `renormalize` meets a window without any input pixel.
    """
    index, _, weight = taps(length, size, scale, kernel, antialias)
    inside = (index >= 0) & (index < length)
    if border == "renormalize":
        weight = np.where(inside, weight, 0.0)
    total = weight.sum(1, keepdims=True)
    if (np.abs(total) < 1e-9).any():
        raise UserError(
            f"size {size} at scale {float(scale):g} reaches beyond an axis of {length}: windows without any "
            'input; use border="reflect" or "replicate", or a smaller size'
        )
    if border == "zeros":
        weight = np.where(inside, weight, 0.0)
    return fold_border(index, length, border), weight / total


class Block(NamedTuple):
    """Rows of the resampling matrix that read inputs start .. start + matrix.shape[1]."""

    start: int
    matrix: Tensor


@lru_cache(maxsize=256)
def blocks(
    length: int,
    size: int,
    scale: Fraction,
    kernel: str,
    border: str,
    antialias: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Block, ...]:
    """The resampling matrix of one axis as dense blocks of BLOCK rows: its size is linear in n."""
    index, weight = normalized_taps(length, size, scale, kernel, border, antialias)
    result = []
    # Cached tensors must serve autograd later even where the first call ran under inference_mode.
    with torch.inference_mode(False):
        for row in range(0, size, BLOCK):
            where, values = index[row : row + BLOCK], weight[row : row + BLOCK]
            start, stop = int(where.min()), int(where.max()) + 1
            matrix = np.zeros((len(where), stop - start))
            np.add.at(matrix, (np.arange(len(where))[:, None], where - start), values)
            result.append(Block(start, torch.from_numpy(matrix).to(device, dtype)))
    return tuple(result)


def resize_axis(x: Tensor, axis: int, matrices: Sequence[Block]) -> Tensor:
    """Apply the banded matrix along one axis."""
    if axis == x.ndim - 1:
        return torch.cat([x.narrow(-1, m.start, m.matrix.shape[1]) @ m.matrix.mT for m in matrices], -1)
    rows = x.movedim(axis, -2)
    rows = torch.cat([m.matrix @ rows.narrow(-2, m.start, m.matrix.shape[1]) for m in matrices], -2)
    return rows.movedim(-2, axis)


# ---- The public function


def resize(
    x: Array,
    scale: Number | Sequence[Number] | None = None,
    size: int | Sequence[int] | None = None,
    axes: Sequence[int] | None = None,
    kernel: Kernel | str = "cubic",
    antialias: bool = True,
    border: Border | str = "reflect",
) -> Array:
    """Resample chosen axes (default: the last two) of an array or tensor; the result has its type and dtype.

    `scale` alone gives n = ceil(s N); `size` alone gives s = n/N, that is half-pixel centres; both may be
    given, then the grid keeps its centre and steps by exactly 1/s (ccconv spec 2.2). One number serves every
    axis. `antialias` stretches the kernel by 1/s where s < 1. Borders: `zeros` and `replicate` pad;
    `reflect` is the half-sample mirror (edge pixel repeated); `renormalize` drops what lies outside and
    divides by the rest, as Pillow and `F.interpolate(antialias=True)` do. Float64 is computed in float64,
    half precision in float32. Differentiable to any order.
    Raises `UserError` for sizes, scales, axes or dtypes that make no sense.
    """
    if isinstance(x, np.ndarray):
        # A copy where torch cannot share the memory: negative strides, read-only, foreign byte order.
        tensor = torch.from_numpy(np.require(x, x.dtype.newbyteorder("="), ["C", "W"]))
        return resize(tensor, scale, size, axes, kernel, antialias, border).numpy()
    if not x.is_floating_point():
        raise UserError(f"resize works on floating-point values, got {x.dtype}: convert first, e.g. x / 255")
    if kernel not in KERNELS or border not in BORDERS:
        raise UserError(
            f"unknown kernel or border: {kernel!r}, {border!r}; use {list(KERNELS)}, {list(BORDERS)}"
        )
    plan = _plan(x.shape, scale, size, axes)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.to(dtype)
    for axis, s, n in plan:
        if s == 1 and n == y.shape[axis]:
            continue
        matrices = blocks(y.shape[axis], n, s, kernel, border, antialias, dtype, y.device)
        y = resize_axis(y, axis, matrices)
    return y.to(x.dtype).contiguous()


def _plan(
    shape: Sequence[int],
    scale: Number | Sequence[Number] | None,
    size: int | Sequence[int] | None,
    axes: Sequence[int] | None,
) -> list[tuple[int, Fraction, int]]:
    """(axis, scale, size) of each axis, the one that shrinks most first: fewer numbers for the others."""
    if scale is None and size is None:
        raise UserError("give scale, size or both")
    axes = (-2, -1) if axes is None else axes
    if any(not -len(shape) <= axis < len(shape) for axis in axes):
        raise UserError(
            f"axes {list(axes)} do not exist in shape {list(shape)}: name the axes to resize, axes=(...)"
        )
    axes = [axis % len(shape) for axis in axes]
    if len(set(axes)) != len(axes):
        raise UserError(f"an axis is named twice: {axes}")
    lengths = [shape[axis] for axis in axes]
    if 0 in lengths:
        raise UserError(f"an axis to resize is empty: shape {list(shape)}")
    scales = _per_axis("scale", scale, len(axes))
    sizes = _per_axis("size", size, len(axes))
    if any(n is not None and operator.index(n) < 1 for n in sizes):
        raise UserError(f"size must be positive whole numbers, got {size}")
    plan = []
    for axis, length, s, n in zip(axes, lengths, scales, sizes, strict=True):
        chosen = output_length(length, s) if n is None else n
        plan.append((axis, Fraction(chosen, length) if s is None else exact(s), chosen))
    return sorted(plan, key=lambda entry: entry[1])


def _per_axis(name: str, value: Any, count: int) -> list[Any]:
    values = [value] * count if value is None or isinstance(value, int | float | Fraction) else list(value)
    if len(values) != count:
        raise UserError(
            f"{name} has {len(values)} entries for {count} axes: give one number, or one for each axis"
        )
    return values
