"""A layer at one size pair as plain convolutions: what runs anywhere."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ccconv import paths
from ccconv.axis import Axis, Plan


class Baked(nn.Module):
    """One size pair of a CCConv layer: pad, conv, reshape. Nothing in it depends on this package's maths.

    Made by `CCConv2d.bake`; exports by torch.export and ONNX. The kernels are buffers and do not train.
    """

    def __init__(self, plan: Plan, weight: Tensor, bias: Tensor | None, groups: int, path: str):
        super().__init__()
        self.groups, self.path = groups, path
        # Tensors are this module's own buffers: an exporter must find each of them once.
        self.axes = tuple(axis._replace(fold=None, gain=None) for axis in plan.axes)
        self.weight: Tensor
        self.bias: Tensor | None
        self.gain: Tensor | None
        self._keep("weight", weight)
        self._keep("bias", bias)
        for number, axis in enumerate(plan.axes):
            self._keep(f"index{number}", axis.fold)
        gains = [axis.gain for axis in plan.axes if axis.gain is not None]
        self._keep("gain", paths.outer(gains) if gains else None)

    def _keep(self, name: str, value: Tensor | None) -> None:
        """A buffer, or a plain None: torch.export (2.15, not strict) miscounts buffers that are None."""
        if value is None:
            setattr(self, name, None)
        else:
            self.register_buffer(name, value.detach().clone())

    @property
    def output_size(self) -> tuple[int, ...]:
        """Lengths of the output."""
        return tuple(axis.size for axis in self.axes)

    def forward(self, x: Float[Tensor, "b c *n"]) -> Float[Tensor, "b o *m"]:
        """The layer's output; x must have the lengths that it was baked for."""
        torch._assert(
            list(x.shape[2:]) == [axis.length for axis in self.axes],
            "a baked layer takes the input size that it was baked for",
        )
        axes = [axis._replace(fold=getattr(self, f"index{i}")) for i, axis in enumerate(self.axes)]
        return run(x, axes, self.weight, self.bias, self.groups, self.path, self.gain)


def run(
    x: Tensor,
    axes: list[Axis],
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    path: str,
    gain: Tensor | None = None,
) -> Float[Tensor, "b o *m"]:
    """`single`, `polyphase` or `gather` with given kernels, laid out as the path takes them."""
    inner = bias if gain is None else None
    if path == "gather":
        y = paths.gather_with(x, axes, weight, inner)
    else:
        path_with = paths.single_with if path == "single" else paths.polyphase_with
        y = path_with(x, axes, weight, inner, groups)
    return y if gain is None else paths.scaled(y, gain, bias)
