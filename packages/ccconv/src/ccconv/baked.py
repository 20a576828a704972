"""A layer at one size pair as plain convolutions: what runs anywhere."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ccconv import paths
from ccconv.axis import Plan


class Baked(nn.Module):
    """One size pair of a CCConv layer: pad, conv, reshape. Nothing in it depends on this package's maths.

    Made by `CCConv2d.bake`; exports by torch.export and ONNX. The kernels are buffers and do not train.
    """

    def __init__(self, plan: Plan, weight: Tensor, bias: Tensor | None, groups: int, path: str):
        super().__init__()
        self.plan, self.groups, self.path = plan, groups, path
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def output_size(self) -> tuple[int, ...]:
        """Lengths of the output."""
        return self.plan.sizes

    def forward(self, x: Float[Tensor, "b c *n"]) -> Float[Tensor, "b o *m"]:
        """The layer's output; x must have the lengths that it was baked for."""
        torch._assert(
            tuple(x.shape[2:]) == tuple(axis.grid.length for axis in self.plan.axes),
            "a baked layer takes the input size that it was baked for",
        )
        return self.run(x, self.plan, self.weight, self.bias, self.groups, self.path)

    @staticmethod
    def run(
        x: Tensor, plan: Plan, weight: Tensor, bias: Tensor | None, groups: int, path: str
    ) -> Float[Tensor, "b o *m"]:
        """`single` or `polyphase` with given kernels (phases..., out, in, taps...)."""
        run = paths.single_with if path == "single" else paths.polyphase_with
        gains = [axis.gain for axis in plan.axes]
        if all(gain is None for gain in gains):
            return run(x, plan.axes, weight, bias, groups)
        y = run(x, plan.axes, weight, None, groups)
        return paths.scaled(y, gains, bias)
