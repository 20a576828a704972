"""The continuous convolution layer: its grid, its windows, and the layer as one plain sum (arXiv 2006.11120).

symbol  meaning                                                          source
N, n    input and output length of one axis
s       scale, outputs per input; need not be n/N                        abstract: any size, any scale
u(j)    j/s + (N-1)/2 - (n-1)/(2s) + delta: output j in input pixels     grids share their centre;
                                                                         the paper's, says ResizeRight
delta   grid offset in input pixels, 0 unless asked; positive reads further right
w       support of the kernel in input pixels where s >= 1
r       min(s, 1) with antialiasing, else 1: the stretch of the kernel
d       r (i - u(j)): where f is evaluated for input pixel i; on whole numbers f *is* a conv's weight
f       R^D -> R^(out x in/groups), the continuous kernel
y       y[o, j] = b_o + sum_i sum_c r^D f_oc(r (i - u(j))) x[c, i] over |i - u(j)| <= w/(2r)

Note: the paper's body could not be read. What is not in its abstract or in a summary of it is our reading,
listed in the README. Windows and offsets are exact rationals: with rounding, a pixel on the edge of a window
would be kept or lost by chance, and a learned f need not vanish there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float64, Int64
from paperkit import UserError
from paperkit.resize import Number, exact, fold_border, output_length
from torch import Tensor

BORDERS = ("zeros", "replicate", "reflect", "symmetric", "circular", "renormalize")
"""What lies outside: as nn.Conv2d's padding modes, the mirror that repeats the edge, or nothing at all."""


# ---- Grid, windows ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Grid:
    """One axis: which input pixels each output reads, and at which offsets; phases are listed once.

    Output j has phase j mod len(offset); outputs of one phase are `period` apart and read windows `stride`
    input pixels apart.
    """

    length: int
    """N."""
    size: int
    """n."""
    scale: Fraction
    """s."""
    stretch: Fraction
    """r."""
    left: Int64[np.ndarray, " n"]
    """First input pixel of each output's window; below 0 where the window leaves the axis."""
    offset: Float64[np.ndarray, "m t"]
    """d of each phase and tap: the exact rational, rounded once."""
    inside: Bool[np.ndarray, "m t"]
    """Whether the tap lies in the window."""
    period: int
    stride: int

    @property
    def phases(self) -> int:
        """How many different kernels this axis needs."""
        return len(self.offset)

    @property
    def taps(self) -> int:
        """Slots of a window."""
        return self.offset.shape[1]

    @property
    def groups(self) -> int:
        """Outputs of one phase, the last group counted whole."""
        return -(-self.size // self.phases)

    @property
    def positions(self) -> Int64[np.ndarray, "n t"]:
        """Input pixel of every output's every slot; outside the axis at the borders."""
        return self.left[:, None] + np.arange(self.taps)


@lru_cache(maxsize=512)
def grid(
    length: int,
    size: int,
    scale: Fraction,
    support: Fraction,
    antialias: bool = True,
    offset: Fraction = Fraction(0),
    closed: bool = True,
) -> Grid:
    """Windows |i - u(j)| <= w/(2r) of one axis in whole numbers; `closed=False` drops the right edge.

    The window is closed because an odd w meets the edge at phase 1/2 (every aligned halving of an even
    length): a half-open one would keep one of two mirrored taps. A box kernel needs the half-open one.
    """
    r = min(scale, Fraction(1)) if antialias else Fraction(1)
    half = support / (2 * r)
    step = 1 / scale
    first = Fraction(length - 1, 2) - (size - 1) * step / 2 + offset  # u(0)
    unit = math.lcm(first.denominator, step.denominator, half.denominator)
    start, move, reach = (int(value * unit) for value in (first, step, half))
    u = [start + move * j for j in range(size)]
    left = [-((reach - position) // unit) for position in u]  # ceil(u - half)
    phases = min(scale.numerator, size)
    slots = 2 * reach // unit + 1
    distance = [[(left[p] + t) * unit - u[p] for t in range(slots)] for p in range(phases)]
    inside = np.array([[d <= reach if closed else d < reach for d in row] for row in distance])
    used = int(inside.any(0).sum())
    values = [[float(r * Fraction(d, unit)) for d in row[:used]] for row in distance]
    return Grid(
        length, size, scale, r, np.array(left), np.array(values).reshape(phases, used), inside[:, :used],
        scale.numerator, scale.denominator,
    )  # fmt: skip


def resolve(
    lengths: Sequence[int],
    size: int | Sequence[int] | None,
    scale: Number | Sequence[Number] | None,
    offset: Number | Sequence[Number] | None = None,
) -> list[tuple[int, Fraction, Fraction]]:
    """(n, s, delta) of each axis: `scale` alone gives n = ceil(s N), `size` alone s = n/N, neither n = N.

    Raises `UserError` for sizes, scales or offsets that make no sense.
    """
    axes = len(lengths)
    sizes, scales = _each("size", size, axes), _each("scale", scale, axes)
    offsets = _each("offset", 0 if offset is None else offset, axes)
    result = []
    for length, n, s, delta in zip(lengths, sizes, scales, offsets, strict=True):
        if n is not None and (isinstance(n, bool | float) or int(n) < 1):
            raise UserError(f"size must be whole numbers of at least 1, got {size}")
        if not isinstance(delta, int | float | Fraction) or not math.isfinite(delta):
            raise UserError(f"offset must be finite numbers of input pixels, got {offset}")
        if length < 1:
            raise UserError(f"an axis of the input is empty: lengths {list(lengths)}")
        chosen = length if n is None and s is None else output_length(length, s) if n is None else int(n)
        result.append((chosen, Fraction(chosen, length) if s is None else exact(s), _rational(delta)))
    return result


def _each(name: str, value: object, axes: int) -> list:
    values = list(value) if isinstance(value, Sequence) else [value] * axes
    if len(values) != axes:
        raise UserError(
            f"{name} has {len(values)} entries for {axes} axes: give one number or one for each axis"
        )
    return values


def _rational(value: Number) -> Fraction:
    return exact(value) if value > 0 else -exact(-value) if value < 0 else Fraction(0)


def check_reach(g: Grid) -> None:
    """Raise `UserError` when an output's window holds no input pixel: size and scale contradict."""
    last = (g.size - 1) % g.phases
    right = int(g.left[-1]) + int(np.flatnonzero(g.inside[last])[0])
    reach = int(g.left[0]) + int(np.flatnonzero(g.inside[0])[-1])
    if reach < 0 or right >= g.length:
        raise UserError(
            f"size {g.size} and scale {float(g.scale):g} contradict on an axis of {g.length}: the outermost "
            f"outputs would read no input pixel; drop one of the two"
        )


def fold(index: Int64[np.ndarray, "*n"], length: int, border: str) -> Int64[np.ndarray, "*n"]:
    """Positions moved into the axis by a border mode, as often as needed.

    Raises `UserError` for `reflect` on an axis of one pixel, which has nothing to mirror.
    """
    if border == "circular":
        return index % length
    if border == "reflect":
        if length == 1:
            raise UserError(
                'padding_mode="reflect" needs an axis of two pixels or more: use "replicate" or "symmetric"'
            )
        index = index % (2 * length - 2)
        return np.where(index < length, index, 2 * length - 2 - index)
    mirror = "reflect" if border == "symmetric" else border
    return fold_border(index.reshape(1, -1), length, mirror).reshape(index.shape)


# ---- One-dimensional bases -------------------------------------------------------------------------------


def bspline(x: Float64[np.ndarray, "*n"]) -> Float64[np.ndarray, "*n"]:
    """The cubic B-spline (support 4): twice differentiable, but it blurs; sum over whole shifts is 1."""
    x = np.abs(x)
    near = 2 / 3 - x * x + x**3 / 2
    return np.where(x <= 1, near, np.where(x < 2, (2 - x) ** 3 / 6, 0.0))


def control_points(
    d: Float64[np.ndarray, "*n"], count: int, kernel: Callable[[np.ndarray], np.ndarray], step: float = 1.0
) -> Float64[np.ndarray, "*n a"]:
    """kernel(d - m step) for `count` control points m centred on 0; 0 beyond the kernel's support of 4."""
    m = (np.arange(count) - (count - 1) / 2) * step
    x = d[..., None] - m
    return np.where(np.abs(x) <= 2, kernel(x), 0.0)


def hann(d: Float64[np.ndarray, "*n"], support: float) -> Float64[np.ndarray, "*n"]:
    """cos^2(pi d / w): 1 in the middle, 0 at the edge of the window, so that y is continuous in s and u."""
    return np.cos(np.pi * d / support) ** 2


# ---- The layer, plainly ----------------------------------------------------------------------------------


def naive(
    x: Float[Tensor, "b c *n"],
    grids: Sequence[Grid],
    kernel: Callable[[Float[Tensor, "*m d"]], Float[Tensor, "*m o i"]],
    bias: Float[Tensor, " o"] | None = None,
    groups: int = 1,
    border: str = "zeros",
    weight: Callable[[int, Float[Tensor, "j t"]], Float[Tensor, "j t"]] | None = None,
) -> Float[Tensor, "b o *m"]:
    """The definition: unfold every window, evaluate f at every offset, one einsum. The oracle of every path.

    `kernel` maps offsets (..., D) to weights (..., out, in/groups); `weight(axis, d)` is a scalar factor of
    one axis (a taper). `renormalize` drops outside taps and rescales by the scalar factor's full sum.
    """
    axes = len(grids)
    phase = [torch.arange(g.size) % g.phases for g in grids]
    offsets = [torch.from_numpy(g.offset)[p].to(x) for g, p in zip(grids, phase, strict=True)]
    factor = []
    for axis, (g, p) in enumerate(zip(grids, phase, strict=True)):
        keep = torch.from_numpy(g.inside)[p].to(x)
        factor.append(keep * float(g.stretch) * (1 if weight is None else weight(axis, offsets[axis])))
    window = x
    for axis, g in enumerate(grids):
        position = g.positions
        outside = torch.from_numpy((position < 0) | (position >= g.length))
        index = torch.from_numpy(fold(position, g.length, border))
        window = window[(slice(None),) * (2 + 2 * axis) + (index,)]
        if border in ("zeros", "renormalize"):
            shape = (*index.shape, *[1] * (axes - 1 - axis))
            window = window.masked_fill(outside.reshape(shape), 0.0)
        if border == "renormalize":
            full, kept = factor[axis].sum(1), factor[axis].masked_fill(outside, 0.0).sum(1)
            factor[axis] = factor[axis] * (full / kept)[:, None]
    j, t = "pqr"[:axes], "tuv"[:axes]
    layout = "".join(a + b for a, b in zip(j, t, strict=True))  # ptqu...
    mesh = torch.broadcast_tensors(*[_place(d, axis, axes) for axis, d in enumerate(offsets)])
    f = kernel(torch.stack(mesh, -1))
    f = rearrange(f, "... (g o) i -> ... g o i", g=groups)
    window = rearrange(window, "b (g i) ... -> b g i ...", g=groups)
    for axis, values in enumerate(factor):
        f = f * _place(values, axis, axes)[..., None, None, None]
    y = torch.einsum(f"bgi{layout},{layout}goi->bgo{j}", window, f)
    y = rearrange(y, "b g o ... -> b (g o) ...")
    return y if bias is None else y + bias.reshape(-1, *[1] * axes)


def _place(d: Tensor, axis: int, axes: int) -> Tensor:
    shape = [1] * (2 * axes)
    shape[2 * axis : 2 * axis + 2] = d.shape
    return d.reshape(shape)


# ---- Misalignment of today's layers ----------------------------------------------------------------------


def conv_drift(length: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> Fraction:
    """delta = -rho/2 input pixels of a strided conv or pooling against the centre-aligned grid of s = 1/t.

    rho = (N + 2p - k) mod t is what the floor throws away; k is the dilated extent.
    """
    extent = dilation * (kernel - 1) + 1
    return -Fraction((length + 2 * padding - extent) % stride, 2)


def transposed_drift(stride: int, output_padding: int) -> Fraction:
    """delta = +q/(2t) input pixels of a transposed conv: its outputs read too far right by that."""
    return Fraction(output_padding, 2 * stride)


def conv_size(length: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Output length of a strided conv or pooling (floor mode)."""
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
