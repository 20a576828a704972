"""A linter for misalignment: how far each layer's grid has drifted from the centre-aligned one.

`align(model, size)` runs the model once on the meta device (no arithmetic is done) and follows the frame of
every feature map through all operations: where its pixels lie in the input image. The frame of reference is
the image's centre, the one that resizing, flips and global coordinates use.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float
from paperkit import UserError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ccconv.conversion import blank
from ccconv.layer import CCConv

aten = torch.ops.aten


@dataclass(frozen=True)
class Frame:
    """Where a feature map's pixels lie on one axis of the network's input."""

    drift: Fraction
    """Delta: how far its grid's centre is from the input's, in input pixels; positive is right, down."""
    step: Fraction
    """Input pixels between its pixels."""


@dataclass(frozen=True)
class Row:
    """One operation that changes the grid, or a place where two grids meet that disagree."""

    layer: str
    kind: str
    size: tuple[int, ...]
    """Lengths of its output."""
    local: tuple[Fraction, ...]
    """delta of this operation alone, in its input's pixels."""
    drift: tuple[Fraction, ...]
    """Delta from the image to its output, in image pixels."""
    step: tuple[Fraction, ...]

    @property
    def cells(self) -> float:
        """The largest drift in pixels of the output."""
        return max(abs(float(d / s)) for d, s in zip(self.drift, self.step, strict=True))


@torch.no_grad()
def align(model: nn.Module, size: int | Sequence[int], channels: int | None = None) -> list[Row]:
    """Every operation that resizes, in order, with its own and the accumulated drift; and bad meetings.

    Raises `UserError` when the model cannot be run on the meta device at that size.
    """
    ghost = copy.deepcopy(model).to("meta").eval()
    x = blank(ghost, size, channels).to("meta")
    tracker = _Tracker(ghost, x)
    try:
        with tracker:
            ghost(x)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the model does not run at size {size}: {text}") from error
    return tracker.rows


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [f"{'layer':34}{'kind':14}{'size':>10}{'own':>12}{'total, px':>14}{'in cells':>10}"]
    for row in rows:
        size = "x".join(map(str, row.size))
        lines.append(
            f"{row.layer[-33:]:34}{row.kind:14}{size:>10}{_text(row.local):>12}{_text(row.drift):>14}"
            f"{row.cells:>10.3f}"
        )
    worst = max((row.cells for row in rows), default=0.0)
    return "\n".join([*lines, f"largest drift: {worst:.3f} of an output pixel"])


def _text(values: Sequence[Fraction]) -> str:
    numbers = [f"{float(v):+g}" if v else "0" for v in values]
    return numbers[0] if len(set(numbers)) == 1 else ",".join(numbers)


# ---- Following frames ------------------------------------------------------------------------------------

Move = tuple[list[Fraction], list[Fraction]]
"""Per axis: delta in input pixels, and the factor of the step."""


def strided(lengths: Sequence[int], sizes: Sequence[int], kernel, stride, padding, dilation) -> Move:
    """delta = (k - 2p - N + t (n - 1)) / 2, which is -rho/2 in floor mode and holds in ceil mode too."""
    local = [
        Fraction(d * (k - 1) + 1 - 2 * p - length + t * (n - 1), 2)
        for length, n, k, t, p, d in zip(lengths, sizes, kernel, stride, padding, dilation, strict=True)
    ]
    return local, [Fraction(t) for t in stride]


def _convolution(x: Tensor, y: Tensor, args: Sequence[Any]) -> Move:
    weight, stride, padding, dilation, transposed, output_padding = (args[i] for i in (1, 3, 4, 5, 6, 7))
    axes = x.ndim - 2
    stride, padding, dilation = (_each(v, axes) for v in (stride, padding, dilation))
    if transposed:
        local = [Fraction(q, 2 * t) for q, t in zip(_each(output_padding, axes), stride, strict=True)]
        return local, [Fraction(1, t) for t in stride]
    return strided(x.shape[2:], y.shape[2:], weight.shape[2:], stride, padding, dilation)


def _pool(x: Tensor, y: Tensor, args: Sequence[Any]) -> Move:
    axes = x.ndim - 2
    kernel = _each(args[1], axes)
    stride = _each(args[2], axes) if len(args) > 2 and args[2] else kernel
    padding = _each(args[3], axes) if len(args) > 3 else [0] * axes
    return strided(x.shape[2:], y.shape[2:], kernel, stride, padding, [1] * axes)


def _max_pool(x: Tensor, y: Tensor, args: Sequence[Any]) -> Move:
    axes = x.ndim - 2
    kernel = _each(args[1], axes)
    stride = _each(args[2], axes) if len(args) > 2 and args[2] else kernel
    padding = _each(args[3], axes) if len(args) > 3 else [0] * axes
    dilation = _each(args[4], axes) if len(args) > 4 else [1] * axes
    return strided(x.shape[2:], y.shape[2:], kernel, stride, padding, dilation)


def _upsample(x: Tensor, y: Tensor, args: Sequence[Any]) -> Move:
    corners = len(args) > 2 and args[2] is True
    given = [v for v in _scales(args) if v is not None]
    local, step = [], []
    for axis, (length, n) in enumerate(zip(x.shape[2:], y.shape[2:], strict=True)):
        if corners and n > 1 and length > 1:
            s, delta = Fraction(n - 1, length - 1), Fraction(0)
        else:
            s = Fraction(n, length)
            if len(given) == x.ndim - 2:
                s = Fraction(given[axis]).limit_denominator(4096)
            delta = (n - s * length) / (2 * s)
        local.append(delta)
        step.append(1 / s)
    return local, step


def _scales(args: Sequence[Any]) -> list[float | None]:
    """Scale factors that F.interpolate hands on, in either form of its overloads."""
    found: list[float | None] = []
    for value in args[2:]:
        if isinstance(value, float):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [v for v in value if isinstance(v, float)]
    return found


def _resized(x: Tensor, y: Tensor, args: Sequence[Any]) -> Move:
    del args
    pairs = list(zip(x.shape[2:], y.shape[2:], strict=True))
    return [Fraction(0)] * len(pairs), [Fraction(length, n) for length, n in pairs]


def _padded(x: Tensor, y: Tensor, args: Sequence[Any]) -> Move:
    axes = x.ndim - 2
    pads = [*args[1], *[0] * (2 * axes)][: 2 * axes]
    local = [Fraction(pads[2 * i + 1] - pads[2 * i], 2) for i in reversed(range(axes))]
    return local, [Fraction(1)] * axes


RULES: dict[str, tuple[str, Callable[[Tensor, Tensor, Sequence[Any]], Move]]] = {
    "convolution": ("conv", _convolution),
    "max_pool2d_with_indices": ("max pool", _max_pool),
    "max_pool3d_with_indices": ("max pool", _max_pool),
    "avg_pool2d": ("mean pool", _pool),
    "avg_pool3d": ("mean pool", _pool),
    "_adaptive_avg_pool2d": ("adaptive pool", _resized),
    "constant_pad_nd": ("pad", _padded),
    "reflection_pad2d": ("pad", _padded),
    "replication_pad2d": ("pad", _padded),
    **{
        f"{aa}upsample_{mode}": ("interpolate", _upsample)
        for aa in ("", "_")
        for mode in (
            "nearest1d", "nearest2d", "nearest3d", "nearest_exact2d", "linear1d", "bilinear2d", "trilinear3d",
            "bicubic2d", "bilinear2d_aa", "bicubic2d_aa",
        )
    },
}  # fmt: skip
"""Operations that move the grid. All others keep it where the lengths stay the same."""


class _Tracker(TorchDispatchMode):
    def __init__(self, model: nn.Module, x: Float[Tensor, "1 c *n"]):
        super().__init__()
        self.rows: list[Row] = []
        self.stack: list[str] = [""]
        self.inside = 0
        self.frames: dict[int, tuple[Tensor, tuple[Frame, ...]]] = {}
        self.start(x)
        for name, module in model.named_modules():
            module.register_forward_pre_hook(self._enter(name))
            module.register_forward_hook(self._leave())

    def start(self, x: Tensor) -> None:
        self._set(x, tuple(Frame(Fraction(0), Fraction(1)) for _ in x.shape[2:]))

    def _set(self, x: Tensor, frame: tuple[Frame, ...]) -> None:
        self.frames[id(x)] = (x, frame)  # holding x keeps its id its own

    def frame(self, x: Any) -> tuple[Frame, ...] | None:
        held = self.frames.get(id(x))
        return held[1] if held is not None and held[0] is x else None

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple) -> None:
            self.stack.append(name)
            self.inside += isinstance(module, CCConv)

        return hook

    def _leave(self) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple, y: Any) -> None:
            if isinstance(module, CCConv):
                self.inside -= 1
                _, _, offset = module.own(inputs[0].shape[2:], None, None, None)
                local = [Fraction(v) for v in _each(offset or 0, module.dimensions)]
                own = module.scale if module.size is None else None
                sizes = zip(inputs[0].shape[2:], y.shape[2:], strict=True)
                step = (
                    [Fraction(length, n) for length, n in sizes]
                    if own is None
                    else [1 / Fraction(s) for s in _each(own, module.dimensions)]
                )
                self._move(inputs[0], y, "CCConv", (local, step))
            self.stack.pop()

        return hook

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not self.inside:
            self._follow(function.overloadpacket.__name__, args, kwargs or {}, out)
        return out

    def _follow(self, name: str, args: Sequence[Any], kwargs: dict, out: Any) -> None:
        y = out[0] if isinstance(out, tuple | list) and out else out
        if not isinstance(y, Tensor):
            return
        inputs = [a for arg in args for a in (arg if isinstance(arg, list | tuple) else [arg])]
        known = [(x, f) for x in inputs if isinstance(x, Tensor) and (f := self.frame(x)) is not None]
        if not known:
            return
        if name in RULES:
            kind, rule = RULES[name]
            x = known[0][0]
            move = rule(x, y, [*args, *kwargs.values()])
            if kind in ("conv", "pad") and not any(move[0]) and all(s == 1 for s in move[1]):
                self._set(y, known[0][1])
            else:
                self._move(x, y, kind, move)
            return
        same = [
            f for x, f in known if x.ndim == y.ndim and x.shape[2:] == y.shape[2:] and len(f) == y.ndim - 2
        ]
        if not same:
            return
        self._set(y, same[0])
        if any(f != same[0] for f in same[1:]):
            other = next(f for f in same[1:] if f != same[0])
            gap = tuple(b.drift - a.drift for a, b in zip(same[0], other, strict=True))
            step = tuple(f.step for f in same[0])
            self.rows.append(Row(self.stack[-1], "meeting", tuple(y.shape[2:]), gap, gap, step))

    def _move(self, x: Tensor, y: Tensor, kind: str, move: Move) -> None:
        frame = self.frame(x)
        if frame is None:
            return
        local, factor = move
        new = tuple(
            Frame(f.drift + f.step * d, f.step * s) for f, d, s in zip(frame, local, factor, strict=True)
        )
        self._set(y, new)
        drift, step = tuple(f.drift for f in new), tuple(f.step for f in new)
        self.rows.append(Row(self.stack[-1], kind, tuple(y.shape[2:]), tuple(local), drift, step))


def _each(value: Any, axes: int) -> list:
    values = list(value) if isinstance(value, list | tuple | torch.Size) else [value]
    return values * axes if len(values) == 1 else values
