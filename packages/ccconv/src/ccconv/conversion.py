"""Networks that exist already: convs into continuous ones with the same outputs, then any size.

`from_conv` for one layer, `convert` for a model of torchvision, timm or one's own.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float
from paperkit import UserError
from torch import Tensor, nn

from ccconv import method
from ccconv.kernels import MLPKernel, PointKernel
from ccconv.layer import LAYERS, CCConv

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def from_conv(
    conv: nn.Module,
    size: int | Sequence[int] | None = None,
    *,
    kernel: str = "interp",
    antialias: bool = False,
    hidden: int = 24,
) -> CCConv:
    """A continuous layer with a conv's weights: identical outputs at input `size`, then any size.

    `size` is the input size that the conv was trained at; only layers with a stride need it. The drift
    delta = -rho/2 that the conv has there becomes a constant grid offset, so that the drift no longer depends
    on the input's parity. `kernel="interp"` is exact; `mlp` solves for its last layer by least squares and
    tells the largest error in `layer.residual`. With `antialias` the outputs are smoother, not identical.
    Raises `UserError` for what has no such form: dilation, transposed convs, other modules.
    """
    if not isinstance(conv, CONVS):
        raise UserError(f"{type(conv).__name__} cannot be converted: only nn.Conv1d, nn.Conv2d and nn.Conv3d")
    if any(d != 1 for d in conv.dilation):
        raise UserError(
            f"dilation {tuple(conv.dilation)} cannot be converted: a continuous kernel has no gaps"
        )
    kernels = [int(k) for k in conv.kernel_size]
    layer = LAYERS[len(kernels)](
        conv.in_channels, conv.out_channels, kernels, groups=conv.groups, bias=conv.bias is not None,
        padding_mode=conv.padding_mode, kernel=kernel, antialias=antialias, hidden=hidden,
        device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip
    layer.residual = fill(layer, conv.weight, conv.bias)
    place(layer, kernels, [int(t) for t in conv.stride], paddings(conv), size)
    return layer.train(conv.training)


def paddings(conv: Any) -> list[int]:
    """A conv's padding as numbers. Raises `UserError` where "same" pads unevenly."""
    if conv.padding == "valid":
        return [0] * len(conv.kernel_size)
    if conv.padding == "same":
        if any(k % 2 == 0 for k in conv.kernel_size):
            raise UserError('padding="same" of an even kernel is uneven: it cannot be converted')
        return [(k - 1) // 2 for k in conv.kernel_size]
    return [int(p) for p in conv.padding]


@torch.no_grad()
def fill(layer: CCConv, weight: Tensor, bias: Tensor | None) -> float:
    """Give a layer a conv's weights; returns the largest error of a weight (0 for `interp`)."""
    if layer.bias is not None and bias is not None:
        layer.bias.copy_(bias)
    kernel = layer.kernel
    if isinstance(kernel, PointKernel) and kernel.kind == "interp":
        kernel.weight.copy_(weight)
        return 0.0
    if not isinstance(kernel, MLPKernel):
        raise UserError(f"a {layer.geometry.kernel} kernel cannot take a conv's weights: use interp or mlp")
    d = kernel.whole_numbers().flatten(0, -2)
    features, wanted = kernel.phi(d).double(), weight.flatten(2).double()
    solved = torch.einsum("oik,hk->oih", wanted, torch.linalg.pinv(features))
    kernel.mix.copy_(solved)
    return float((torch.einsum("oih,kh->oik", solved, features) - wanted).abs().max())


def place(
    layer: CCConv,
    kernels: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    size: int | Sequence[int] | None,
) -> None:
    """Set a layer's own scale, offset and excess to those of a strided conv at input `size`."""
    sizes = [size] * len(kernels) if isinstance(size, int) or size is None else list(size)
    if len(sizes) != len(kernels):
        raise UserError(f"size needs {len(kernels)} entries, got {sizes}")
    offsets, excess = [], []
    for k, t, p, length in zip(kernels, strides, padding, sizes, strict=True):
        if length is None and t > 1:
            raise UserError(
                "a strided conv needs the input size that it was trained at: from_conv(conv, size)"
            )
        known = length if length is not None else k + 2 * p + 1
        offsets.append(method.conv_drift(known, k, t, p))
        excess.append(method.conv_size(known, k, t, p) - -(-known // t))
    layer.scale = tuple(Fraction(1, t) for t in strides)
    layer.offset = tuple(offsets) if any(offsets) else None
    layer.excess = tuple(excess) if any(excess) else None


@dataclass
class Converted:
    """A converted copy of a model, and what became of each layer with a stride."""

    model: nn.Module
    converted: list[str] = field(default_factory=list)
    """Names of the layers that are continuous now."""
    left: dict[str, str] = field(default_factory=dict)
    """Layers left as they were, and why."""

    def __str__(self) -> str:
        lines = [f"{name}: converted" for name in self.converted]
        return "\n".join(lines + [f"{name}: left, {why}" for name, why in self.left.items()])


def convert(
    model: nn.Module,
    size: int | Sequence[int],
    *,
    channels: int | None = None,
    everything: bool = False,
    antialias: bool = False,
) -> Converted:
    """A copy of `model` whose strided convs are continuous; its outputs at input `size` are the same.

    Convs of stride 1 stay as they are unless `everything`: they resize nothing. A layer that cannot be
    converted is named in `left` with the reason and stays as it was. `channels` is the input's, by default
    that of the first conv. Raises `UserError` when the model has no conv, or does not run at that size.
    """
    model = copy.deepcopy(model)
    lengths = trace(model, size, channels)
    result = Converted(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            result.left[name] = "a transposed conv's kernel is sampled finer than one input pixel"
        elif _resizing_pool(module):
            result.left[name] = f"{type(module).__name__} has no kernel to make continuous"
        if not isinstance(module, CONVS) or not (everything or any(t != 1 for t in module.stride)):
            continue
        try:
            if name not in lengths:
                raise UserError("the forward pass does not call it")
            if len(lengths[name]) != 1:
                raise UserError("it is called at more than one size")
            continuous = from_conv(module, next(iter(lengths[name])), antialias=antialias)
            if type(module) not in CONVS:
                raise UserError(f"{type(module).__name__} is a conv with a forward pass of its own")
        except UserError as error:
            result.left[name] = str(error)
            continue
        for same, other in list(model.named_modules(remove_duplicate=False)):
            if other is module:  # under every name that it has
                _replace(model, same, continuous)
        result.converted.append(name)
    return result


def _resizing_pool(module: nn.Module) -> bool:
    if not isinstance(
        module, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
    ):
        return False
    stride = module.stride
    return any(t != 1 for t in (stride if isinstance(stride, tuple) else (stride,)))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def blank(model: nn.Module, size: int | Sequence[int], channels: int | None) -> Float[Tensor, "1 c *n"]:
    """A batch of one zero image that fits the model's first conv."""
    first = next((m for m in model.modules() if isinstance(m, (*CONVS, CCConv))), None)
    if first is None:
        raise UserError("the model has no convolution")
    dimensions = first.dimensions if isinstance(first, CCConv) else len(first.kernel_size)
    lengths = [size] * dimensions if isinstance(size, int) else list(size)
    if len(lengths) != dimensions or min(lengths) < 1:
        raise UserError(f"size needs {dimensions} positive entries, got {size}")
    weight = next(model.parameters())
    return weight.new_zeros(1, channels or first.in_channels, *lengths)


@torch.no_grad()
def trace(
    model: nn.Module, size: int | Sequence[int], channels: int | None = None
) -> dict[str, set[tuple[int, ...]]]:
    """Input lengths of every conv in a forward pass at `size`: name -> the sizes that it met.

    Raises `UserError` when the model does not run at that size.
    """
    found: dict[str, set[tuple[int, ...]]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (*CONVS, CCConv)):

            def hook(_module: nn.Module, inputs: tuple, name: str = name) -> None:
                found.setdefault(name, set()).add(tuple(inputs[0].shape[2:]))

            handles.append(module.register_forward_pre_hook(hook))
    modes = [(module, module.training) for module in model.modules()]
    x = blank(model, size, channels)
    try:
        model.eval()(x)
    except (RuntimeError, AssertionError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"the model does not run at size {size}: {text}") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return found
