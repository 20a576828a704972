"""The continuous kernels f: a small network (the paper's), control points under a cardinal cubic, or fixed.

All have one interface: `kernel(d)` evaluates f at offsets, `kernel.weights(axes)` samples a layer's kernels,
one per phase, antialiasing factor and window included.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from paperkit.resize import KERNELS
from torch import Tensor, nn

from ccconv import method
from ccconv.axis import CARDINAL, Geometry, Samples

PHASE, TAP, BASIS = "pqr", "tuv", "xyz"
"""Letters of the axes in einsum."""


class MLPKernel(nn.Module):
    """f(d) = A phi(d) + a with phi a two-layer network of width H on sines and cosines of d.

    Frequencies reach half a cycle per input pixel. A and a are one parameter `mix`, the last column being a.
    At initialisation the kernel sampled on whole numbers has the variance of nn.Conv's weights.
    """

    def __init__(self, out_channels: int, in_channels: int, kernel_size: Sequence[int], hidden: int = 24):
        super().__init__()
        self.kernel_size = tuple(kernel_size)
        self.inputs = nn.Linear(2 * sum(self.kernel_size), hidden)
        self.middle = nn.Linear(hidden, hidden)
        self.mix = nn.Parameter(torch.empty(out_channels, in_channels, hidden + 1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the network anew and rescale its last layer."""
        self.inputs.reset_parameters()
        self.middle.reset_parameters()
        self.mix.normal_()
        self.mix[..., -1] = 0
        fan_in = self.mix.shape[1] * math.prod(self.kernel_size)
        sampled = self(self.whole_numbers())
        self.mix *= 1 / math.sqrt(3 * fan_in) / sampled.square().mean().sqrt().clamp_min(1e-12)

    def whole_numbers(self) -> Float[Tensor, "*k d"]:
        """The offsets at which an ordinary conv of this size would sample f."""
        axes = [torch.arange(k).to(self.mix) - (k - 1) / 2 for k in self.kernel_size]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)

    def phi(self, d: Float[Tensor, "*m d"]) -> Float[Tensor, "*m h"]:
        """The H features of an offset, and a 1."""
        waves = []
        for axis, w in enumerate(self.kernel_size):
            angle = d[..., axis, None] * (torch.arange(1, w + 1).to(d) * (math.pi / w))
            waves += [angle.sin(), angle.cos()]
        act = nn.functional.silu
        hidden = act(self.middle(act(self.inputs(torch.cat(waves, -1)))))
        return torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1)

    def forward(self, d: Float[Tensor, "*m d"]) -> Float[Tensor, "*m o i"]:
        """f at offsets."""
        return torch.einsum("...h,oih->...oi", self.phi(d), self.mix)

    def features(self, axes: Sequence[Samples], flat: bool, window: str) -> Float[Tensor, "*mt h"]:
        """phi at every (phases..., taps...), times the taper; with `flat` every phase sums to the same."""
        count = len(axes)
        spread = [_spread(axis.offset, number, count) for number, axis in enumerate(axes)]
        phi = self.phi(torch.stack(torch.broadcast_tensors(*spread), -1))
        taper = _outer([axis.taper for axis in axes])
        values = phi * taper[..., None]
        if not flat:
            return values
        taps = tuple(range(count, 2 * count))
        target = self.phi(self.whole_numbers())
        if window == "hann":
            for axis, w in enumerate(self.kernel_size):
                d = torch.arange(w).to(phi) - (w - 1) / 2
                shape = [1] * (count + 1)
                shape[axis] = w
                target = target * (torch.cos(math.pi * d / w) ** 2).reshape(shape)
        missing = target.sum(tuple(range(count))) - values.sum(taps, keepdim=True)
        inside = (taper != 0).to(phi)[..., None]
        return values + inside * missing / inside.sum(taps, keepdim=True)

    def weights(self, axes: Sequence[Samples], geometry: Geometry, groups: int = 0) -> Float[Tensor, "..."]:
        """The sampled kernels; see `laid_out`."""
        p, t = PHASE[: len(axes)], TAP[: len(axes)]
        features = self.features(axes, geometry.flat, geometry.window)
        return laid_out(f"{p}{t}h", [features], "h", self.mix, len(axes), groups)


class PointKernel(nn.Module):
    """f(d) = sum_m K_m prod_axes c(d - m): control points under a cubic (`interp`) or B-spline (`bspline`).

    K has exactly the shape of a conv's weight. With `interp` f(whole numbers) = K.
    """

    def __init__(self, out_channels: int, in_channels: int, kernel_size: Sequence[int], kind: str):
        super().__init__()
        self.kernel_size, self.kind = tuple(kernel_size), kind
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *self.kernel_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As nn.Conv's weights."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    @property
    def mix(self) -> Tensor:
        """The parameter that is linear in the output."""
        return self.weight

    def forward(self, d: Float[Tensor, "*m d"]) -> Float[Tensor, "*m o i"]:
        """f at offsets (control points one input pixel apart); not differentiable in d."""
        values = d.detach().double().cpu().numpy()
        bases = [
            torch.from_numpy(method.control_points(values[..., axis], k, CARDINAL[self.kind])).to(d)
            for axis, k in enumerate(self.kernel_size)
        ]
        b = BASIS[: len(bases)]
        return torch.einsum(f"{','.join(f'...{x}' for x in b)},oi{b}->...oi", *bases, self.weight)

    def weights(self, axes: Sequence[Samples], geometry: Geometry, groups: int = 0) -> Float[Tensor, "..."]:
        """The sampled kernels; see `laid_out`."""
        return sample_points([_basis(axis) for axis in axes], self.weight, groups)


class FixedKernel(nn.Module):
    """f = diag(one fixed kernel): every channel resampled alike, nothing learned."""

    def __init__(self, channels: int, kind: str, dimensions: int):
        super().__init__()
        self.kind = kind
        self.weight: Tensor
        self.register_buffer("weight", torch.ones(channels, 1, *[1] * dimensions), persistent=False)

    @property
    def mix(self) -> Tensor:
        """Ones."""
        return self.weight

    def reset_parameters(self) -> None:
        """Nothing to draw."""

    def forward(self, d: Float[Tensor, "*m d"]) -> Float[Tensor, "*m o i"]:
        """f at offsets."""
        half = KERNELS[self.kind][1] / 2
        values = d.detach().double().cpu().numpy()
        value = KERNELS[self.kind][0](values) * (abs(values) <= half)
        value = torch.from_numpy(value).to(d).prod(-1)[..., None, None]
        return value.expand(*d.shape[:-1], len(self.weight), 1)

    def weights(self, axes: Sequence[Samples], geometry: Geometry, groups: int = 0) -> Float[Tensor, "..."]:
        """The sampled kernels; see `laid_out`."""
        return sample_points([_basis(axis) for axis in axes], self.weight, groups)


Kernel = MLPKernel | PointKernel | FixedKernel


def sample_points(bases: Sequence[Tensor], weight: Tensor, groups: int = 0) -> Tensor:
    """sum over control points of weight times the product of the axes' bases; see `laid_out`."""
    count = len(bases)
    p, t, b = PHASE[:count], TAP[:count], BASIS[:count]
    inputs = ",".join(f"{x}{y}{z}" for x, y, z in zip(p, t, b, strict=True))
    return laid_out(inputs, bases, b, weight, count, groups)


def laid_out(
    inputs: str, values: Sequence[Tensor], sums: str, weight: Tensor, count: int, groups: int
) -> Tensor:
    """The sum over `sums` as kernels (phases..., out, in, taps...), as convs take them.

    With `groups`: (phases..., groups, taps..., in, out of a group), as the path `gather` multiplies them.
    """
    p, t = PHASE[:count], TAP[:count]
    if not groups:
        return torch.einsum(f"{inputs},oi{sums}->{p}oi{t}", *values, weight).contiguous()
    weight = weight.unflatten(0, (groups, -1))
    return torch.einsum(f"{inputs},goi{sums}->{p}g{t}io", *values, weight).contiguous()


def _basis(axis: Samples) -> Tensor:
    assert axis.basis is not None
    return axis.basis


def _spread(values: Float[Tensor, "m t"], number: int, count: int) -> Tensor:
    """(m, t) as one axis of (phases..., taps...)."""
    shape = [1] * (2 * count)
    shape[number], shape[count + number] = values.shape
    return values.reshape(shape)


def _outer(values: Sequence[Tensor]) -> Tensor:
    result = _spread(values[0], 0, len(values))
    for number in range(1, len(values)):
        result = result * _spread(values[number], number, len(values))
    return result
