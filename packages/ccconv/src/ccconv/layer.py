"""CCConv1d/2d/3d: nn.Conv's signature, and a forward that takes any size, scale or offset."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float
from paperkit import UserError
from paperkit.resize import KERNELS, Number, output_length
from torch import Tensor, nn

from ccconv import baked, method, paths
from ccconv.axis import CARDINAL, Geometry, Plan, plan, total, windows
from ccconv.baked import Baked
from ccconv.kernels import FixedKernel, Kernel, MLPKernel, PointKernel

Size = int | Sequence[int] | None
Scale = Number | Sequence[Number] | None
KINDS = ("mlp", "interp", "bspline", *KERNELS)
CACHED, MOST = 8, 2**22
"""Size pairs whose sampled kernels a layer in evaluation mode keeps, and the most numbers of one of them."""


class CCConv(nn.Module):
    """The layer in `dimensions` axes; see `CCConv2d`."""

    dimensions = 0

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        *,
        scale: Scale = None,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        kernel: str = "interp",
        antialias: bool = True,
        spacing: str = "input",
        window: str = "none",
        flat: bool = False,
        hidden: int = 24,
        path: str = "auto",
        recompute: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        sizes = [kernel_size] * self.dimensions if isinstance(kernel_size, int) else list(kernel_size)
        self.geometry = Geometry(kernel, tuple(sizes), antialias, spacing, window, flat, padding_mode)
        _check(self.dimensions, self.geometry, in_channels, out_channels, groups, path)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.scale, self.path, self.recompute, self.hidden = scale, path, recompute, hidden
        self.size: Size = None
        """Output size of calls that name none; see `hidden_sizes`."""
        self.offset: Scale = None
        """Grid offset of calls that name none, in input pixels."""
        self.excess: tuple[int, ...] | None = None
        """Pixels by which the output is longer than ceil(s N): what a conv's own padding makes of it."""
        self.kernel = self._kernel(hidden)
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias and kernel not in KERNELS else None
        self._baked: dict[tuple[int, int], tuple[Plan, Any, Tensor]] = {}
        if device is not None or dtype is not None:
            self.to(device=device, dtype=dtype)
        self._reset_bias()

    def _kernel(self, hidden: int) -> Kernel:
        kind, sizes = self.geometry.kernel, self.geometry.kernel_size
        if kind == "mlp":
            return MLPKernel(self.out_channels, self.in_channels // self.groups, sizes, hidden)
        if kind in KERNELS:
            return FixedKernel(self.out_channels, kind, self.dimensions)
        return PointKernel(self.out_channels, self.in_channels // self.groups, sizes, kind)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, at the variance of nn.Conv's."""
        self.kernel.reset_parameters()
        self._reset_bias()

    def _reset_bias(self) -> None:
        if self.bias is not None:
            fan_in = self.in_channels // self.groups
            for k in self.geometry.kernel_size:
                fan_in *= k
            nn.init.uniform_(self.bias, -(fan_in**-0.5), fan_in**-0.5)

    def plan(
        self, x: Float[Tensor, "b c *n"], size: Size = None, scale: Scale = None, offset: Scale = None
    ) -> Plan:
        """The windows of one call; cached by sizes."""
        return _plan(self.geometry, *self._call(x, size, scale, offset))

    def _call(
        self, x: Tensor, size: Size, scale: Scale, offset: Scale
    ) -> tuple[Any, Any, Any, Any, Any, Any]:
        lengths = tuple([_index(n) for n in x.shape[2:]])
        size, scale, offset = self.own(lengths, size, scale, offset)
        return lengths, _hashable(size), _hashable(scale), _hashable(offset), x.dtype, x.device

    def own(
        self, lengths: Sequence[int], size: Size, scale: Scale, offset: Scale
    ) -> tuple[Size, Scale, Scale]:
        """Size, scale and offset of a call, with the layer's own where it names none."""
        if size is None and scale is None:
            size, scale = self.size, self.scale if self.size is None else None
            if self.excess is not None and size is None and scale is not None:
                scales = [scale] * len(lengths) if isinstance(scale, int | float | Fraction) else scale
                wanted = zip(lengths, scales, self.excess, strict=True)
                size = [output_length(length, s) + more for length, s, more in wanted]
        return size, scale, self.offset if offset is None else offset

    def _channels(self) -> tuple[int, int, int]:
        return self.in_channels, self.out_channels, self.groups

    def forward(
        self, x: Float[Tensor, "b c *n"], size: Size = None, scale: Scale = None, offset: Scale = None
    ) -> Float[Tensor, "b o *m"]:
        """The layer at an output size, a scale, or both; with neither, at the layer's own scale (1).

        `offset` moves the output grid by input pixels (positive reads further right or down). Raises
        `UserError` for a wrong input, and for sizes that make no sense.
        """
        self._check_input(x)
        if torch.compiler.is_exporting():
            raise UserError(
                "a CCConv layer is exported baked: layer.bake(input_size, size=...) is a plain conv"
            )
        compiling = torch.compiler.is_compiling()
        call = self._call(x, size, scale, offset)
        made, path = _plan(self.geometry, *call), self.path
        grad = torch.is_grad_enabled()
        kept = not (self.training or compiling or grad) and self._few(made)
        if path == "auto":
            batch = 8 if compiling else len(x)
            mode = "kept" if kept else "training" if grad else "forward"
            path = _choose(self.geometry, *call, batch, self._channels(), self.hidden, mode)
        if kept and path != "separable":  # which samples no kernels
            return self._from_cache(x, made, path)
        recompute = self.recompute and grad and not compiling
        return paths.apply(x, made, self.kernel, self.geometry, self.bias, self.groups, path, recompute)

    def _check_input(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise UserError(f"CCConv works on floating-point values, got {x.dtype}: convert first")
        if x.ndim != self.dimensions + 2:
            raise UserError(
                f"CCConv{self.dimensions}d needs {self.dimensions + 2} axes, got {tuple(x.shape)}"
            )
        if x.shape[1] != self.in_channels:
            raise UserError(f"this layer takes {self.in_channels} channels, got {x.shape[1]}")

    def _few(self, made: Plan) -> bool:
        """Whether all sampled kernels of a call are few enough to keep."""
        pairs = self.out_channels * self.in_channels // self.groups
        return pairs * total([axis.phases * axis.taps for axis in made.axes]) <= MOST

    def _from_cache(self, x: Tensor, made: Plan, path: str) -> Tensor:
        """Inference: kernels once sampled are kept per size pair until a parameter changes."""
        stamp = [(p._version, p.data_ptr()) for p in self.kernel.parameters()]
        groups = self.groups if path == "gather" else 0
        held = self._baked.get((id(made), groups))
        if held is None or held[0] is not made or held[1] != stamp:
            while len(self._baked) >= CACHED:
                self._baked.pop(next(iter(self._baked)))
            samples = [axis.samples for axis in made.axes]
            held = made, stamp, self.kernel.weights(samples, self.geometry, groups)
            self._baked[id(made), groups] = held
        gains = [axis.gain for axis in made.axes if axis.gain is not None]
        gain = paths.outer(gains) if gains else None
        return baked.run(x, list(made.axes), held[2], self.bias, self.groups, path, gain)

    def bake(
        self,
        input_size: int | Sequence[int],
        size: Size = None,
        scale: Scale = None,
        offset: Scale = None,
    ) -> Baked:
        """This layer at one size pair as a module of plain convs: for torch.export, ONNX and other runtimes.

        Raises `UserError` where the sizes share so few factors that no such form is small (256 phases).
        """
        lengths = [input_size] * self.dimensions if isinstance(input_size, int) else list(input_size)
        if len(lengths) != self.dimensions or min(lengths) < 1:
            raise UserError(f"input_size needs {self.dimensions} positive entries, got {input_size}")
        x = next(iter([*self.parameters(), self.kernel.mix]))
        made = self.plan(x.new_empty(0, self.in_channels, *lengths), size, scale, offset)
        found = paths.cost(made, self.geometry, 1, self._channels(), self.hidden, "kept")
        found = {name: found[name] for name in ("single", "polyphase") if name in found}
        if not found:
            count = [axis.phases for axis in made.axes]
            raise UserError(
                f"baking {lengths} -> {list(made.sizes)} needs {count} kernels an axis: choose sizes with a "
                f"common factor, or give a simple scale as well"
            )
        with torch.no_grad():
            weight = self.kernel.weights([axis.samples for axis in made.axes], self.geometry)
        path = min(found, key=lambda name: found[name])
        return Baked(made, weight, self.bias, self.groups, path)

    def oracle(
        self, x: Float[Tensor, "b c *n"], size: Size = None, scale: Scale = None, offset: Scale = None
    ) -> Float[Tensor, "b o *m"]:
        """The same by `method.naive`: slow, for tests; not for `flat`, output spacing, fixed kernels."""

        def taper(axis: int, d: Tensor) -> Tensor:
            w = float(self.geometry.support(axis, Fraction(1)))
            return torch.cos(torch.pi * d / w) ** 2 if self.geometry.window == "hann" else torch.ones_like(d)

        wanted = method.resolve(x.shape[2:], *self.own(x.shape[2:], size, scale, offset))
        grids = [windows(self.geometry, axis, x.shape[2 + axis], *each) for axis, each in enumerate(wanted)]
        border = self.geometry.border
        return method.naive(x, grids, self.kernel, self.bias, self.groups, border, taper)

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        g = self.geometry
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={g.kernel_size}, kernel={g.kernel!r}"
        return text if self.scale is None else f"{text}, scale={self.scale}"


class CCConv1d(CCConv):
    """`CCConv2d` over one axis: (b, c, n)."""

    dimensions = 1


class CCConv2d(CCConv):
    """A convolution whose kernel is a continuous function: call it with any output size.

    `CCConv2d(64, 64, 3)(x, size=(25, 31))`. Arguments as nn.Conv2d's; `scale` is the layer's own when a call
    gives none. `kernel`: `interp` (control points under a cardinal cubic: a conv's own parameters), `mlp`
    (the paper's network), `bspline`, or a fixed `cubic`, `linear`, `box`, `lanczos2`, `lanczos3` per channel.
    `antialias` stretches the kernel where s < 1; without it s = 1/2 is a stride-2 conv. `window="hann"` makes
    the output continuous in the scale; `flat` keeps constants constant (no checkerboard).
    Raises `UserError` for arguments that do not fit together.
    """

    dimensions = 2


class CCConv3d(CCConv):
    """`CCConv2d` over three axes: (b, c, t, h, w)."""

    dimensions = 3


LAYERS = {1: CCConv1d, 2: CCConv2d, 3: CCConv3d}


# ---- Constants of a call: made outside the graph of a compiler -------------------------------------------


def constant(function: Any) -> Any:
    """Mark a function whose result a compiler may take as it is.

    As `torch.compiler.assume_constant_result`, which imports the whole compiler: seconds, used or not.
    """
    function._dynamo_marked_constant = True
    return function


@constant
def _plan(
    geometry: Geometry, lengths: Any, size: Any, scale: Any, offset: Any, dtype: Any, device: Any
) -> Plan:
    return plan(geometry, lengths, size, scale, offset, dtype, device)


@constant
def _choose(
    geometry: Geometry, lengths: Any, size: Any, scale: Any, offset: Any, dtype: Any, device: Any,
    batch: int, channels: Any, hidden: int, mode: Any,
) -> str:  # fmt: skip
    made = plan(geometry, lengths, size, scale, offset, dtype, device)
    return paths.choose(made, geometry, batch, channels, hidden, mode)


def _index(n: int) -> int:
    return n.__index__()  # a symbolic size of a compiler becomes the number that it stands for


def _hashable(value: Any) -> Any:
    if isinstance(value, list | tuple | torch.Size):
        return tuple([_hashable(each) for each in value])
    if type(value) is float:
        return value.__float__()
    return value.__index__() if type(value) is int else value


def _check(dimensions: int, g: Geometry, in_channels: int, out_channels: int, groups: int, path: str) -> None:
    """Raise `UserError` for arguments of a layer that do not fit together."""
    if not dimensions:
        raise UserError("use CCConv1d, CCConv2d or CCConv3d")
    sizes = list(g.kernel_size)
    if len(sizes) != dimensions or any(not isinstance(k, int) or k < 1 for k in sizes):
        raise UserError(f"kernel_size needs {dimensions} whole numbers of at least 1, got {sizes}")
    if min(in_channels, out_channels, groups) < 1 or in_channels % groups or out_channels % groups:
        raise UserError(f"{in_channels} and {out_channels} channels do not divide into {groups} groups")
    for name, value, known in (
        ("padding_mode", g.border, method.BORDERS),
        ("kernel", g.kernel, KINDS),
        ("spacing", g.spacing, ("input", "output")),
        ("window", g.window, ("none", "hann")),
        ("path", path, ("auto", *paths.PATHS)),
    ):
        if value not in known:
            raise UserError(f"{name}={value!r} is not one of {', '.join(known)}")
    if g.spacing == "output" and g.kernel not in CARDINAL:
        raise UserError('spacing="output" is for kernel="interp" or "bspline"')
    if g.kernel in KERNELS and not in_channels == out_channels == groups:
        raise UserError(f"kernel={g.kernel!r} resamples each channel: in_channels = out_channels = groups")
    if g.kernel in KERNELS and g.window != "none":
        raise UserError(f"kernel={g.kernel!r} has its own window: leave window out")
    if g.flat and g.window != "none" and g.kernel != "mlp":
        raise UserError('flat=True with window="hann" is for kernel="mlp": leave one of them out')
