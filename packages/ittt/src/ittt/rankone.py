"""One step for one input: the adapted layers need not be made.

For a linear layer with input a and output gradient d the weight's gradient is d a^T, and the first step of
a fresh Adam is lr g / (|g| + eps) = lr sign(d) sign(a)^T up to eps: again of rank one. The adapted layer is
then the trained one minus lr sign(d) (sign(a) . a' + 1) on its new input a'. So every input gets weights of
its own at the cost of two batched passes, without any copy. Not in the paper.

A convolution is linear in its unfolded input, but its gradient is a sum over positions and of higher rank:
there the step is made, one matrix per input, without the optimiser's moments and without autograd's copies.
The affine weights of norms (batch norm with stored statistics) are few, and theirs is made as well.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from paperkit import UserError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ittt import method
from ittt.adapt import Pass, Trace
from ittt.inputs import Batch
from ittt.model import ITTT
from ittt.settings import Settings

EPS = 1e-8
"""Adam's."""


class RankOne(NamedTuple):
    """The change of a linear layer for each input: weight -= left right^T, bias -= shift."""

    left: Float[Tensor, "b out"]
    right: Float[Tensor, "b in"]
    shift: Float[Tensor, "b out"]

    def square(self) -> Float[Tensor, " b"]:
        """Squared norm of the change."""
        outer = self.left.square().sum(1) * self.right.square().sum(1)
        return outer + self.shift.square().sum(1)

    def scaled(self, share: Float[Tensor, " b"]) -> "RankOne":
        """The change times a number for each input."""
        return RankOne(self.left * share[:, None], self.right, self.shift * share[:, None])

    def apply(self, layer: nn.Module, h: Tensor, a: Tensor) -> Float[Tensor, "b out"]:
        """The layer's adapted output from its trained one h and its input a."""
        return h - self.left * (self.right * a).sum(1, keepdim=True) - self.shift


class Unfolded(NamedTuple):
    """The change of a convolution for each input: weight (as a matrix) -= matrix, bias -= shift."""

    matrix: Float[Tensor, "b out columns"]
    shift: Float[Tensor, "b out"]

    def square(self) -> Float[Tensor, " b"]:
        """Squared norm of the change."""
        return self.matrix.square().sum((1, 2)) + self.shift.square().sum(1)

    def scaled(self, share: Float[Tensor, " b"]) -> "Unfolded":
        """The change times a number for each input."""
        return Unfolded(self.matrix * share[:, None, None], self.shift * share[:, None])

    def apply(self, layer: nn.Module, h: Tensor, a: Tensor) -> Float[Tensor, "b out h w"]:
        """The layer's adapted output from its trained one h and its input a."""
        assert isinstance(layer, nn.Conv2d)
        change = self.matrix @ unfolded(layer, a) + self.shift[:, :, None]
        return h - change.view_as(h)


class Scaled(NamedTuple):
    """The change of a norm's affine weights for each input: weight -= scale, bias -= shift."""

    scale: Float[Tensor, "b *c"]
    shift: Float[Tensor, "b *c"]

    def square(self) -> Float[Tensor, " b"]:
        """Squared norm of the change."""
        return self.scale.flatten(1).square().sum(1) + self.shift.flatten(1).square().sum(1)

    def scaled(self, share: Float[Tensor, " b"]) -> "Scaled":
        """The change times a number for each input."""
        wide = share.view(-1, *[1] * (self.scale.ndim - 1))
        return Scaled(self.scale * wide, self.shift * wide)

    def apply(self, layer: nn.Module, h: Tensor, a: Tensor) -> Tensor:
        """The layer's adapted output from its trained one h and its input a."""
        ones = [1] * (h.ndim - self.scale.ndim)
        shape = [len(h), *ones, *self.scale.shape[1:]] if isinstance(layer, nn.LayerNorm) else None
        shape = shape or [*self.scale.shape, *ones]
        return h - self.scale.view(shape) * normalised(layer, a) - self.shift.view(shape)


Update = RankOne | Unfolded | Scaled


def adapt_rank_one(source: ITTT, x: Batch, names: Sequence[str], settings: Settings) -> Trace:
    """One optimiser step for each input on its own, as `adapt` with copies makes it (linear: Adam's eps = 0).

    Raises `UserError` unless every adapted weight belongs to a linear layer, plain 2-d convolution or norm
    that is called once per application, a linear one on (b, in).
    """
    layers = adapted_layers(source, names)

    # 1. One pass as it is: inputs and output gradients of the layers.
    with torch.enable_grad():
        with tapped(layers) as taps:
            first = source(x)
        y0, second_pass = source.from_output(first), source.resumed(x)
        second = second_pass(y0 if settings.through_anchor else y0.detach())
        gaps = source.task.gap(first, second)
        calls = {name: _only(name, layers[name], found) for name, found in taps.items()}
        gradients = torch.autograd.grad(gaps.sum(), [h for _, h in calls.values()])
    before = Pass((second if settings.score == "second" else first).detach(), gaps.detach())

    # 2. The step of each layer and input, within the trust region.
    updates = {
        name: update(layers[name], a, gradient, names, name, settings)
        for (name, (a, _)), gradient in zip(calls.items(), gradients, strict=True)
    }
    moved = torch.stack([step.square() for step in updates.values()]).sum(0).sqrt()
    if settings.trust:
        radius = settings.trust * method.norm([p for n, p in source.named_parameters() if n in names])
        share = (radius / moved.clamp_min(torch.finfo(moved.dtype).tiny)).clamp_max(1)
        updates, moved = {name: step.scaled(share) for name, step in updates.items()}, moved * share

    # 3. The adapted first application, and the frozen second one.
    with torch.no_grad():
        with shifted(layers, updates):
            first = source(x)
        second = second_pass(source.from_output(first))
        after = Pass(second if settings.score == "second" else first, source.task.gap(first, second))
    taken = torch.ones(len(gaps), dtype=torch.long, device=gaps.device)
    worse = ~(after.gaps <= before.gaps) if settings.rollback else torch.zeros_like(taken).bool()
    return Trace(before, after.where(~worse, before), taken * ~worse, moved * ~worse, worse)


def update(
    layer: nn.Module, a: Tensor, d: Tensor, names: Sequence[str], name: str, settings: Settings
) -> Update:
    """The first step of SGD or of a fresh Adam on a layer with input a and output gradient d."""
    weight, bias = (settings.lr * (f"{name}.{part}" in names) for part in ("weight", "bias"))
    adam = settings.optimiser == "adam"
    if isinstance(layer, nn.Linear):
        left, right = (d.sign(), a.sign()) if adam else (d, a)
        return RankOne(left * weight, right, left * bias)
    if isinstance(layer, nn.Conv2d):
        d = d.flatten(2)
        gradients = d @ unfolded(layer, a).transpose(1, 2), d.sum(2)
    else:
        gradients = _over_positions(layer, d * normalised(layer, a)), _over_positions(layer, d)
    if adam:
        gradients = [gradient / (gradient.abs() + EPS) for gradient in gradients]
    first, shift = gradients
    return (Unfolded if isinstance(layer, nn.Conv2d) else Scaled)(first * weight, shift * bias)


def normalised(layer: nn.Module, a: Tensor) -> Tensor:
    """A norm's output before its affine weights."""
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(a, layer.num_groups, eps=layer.eps)
    assert isinstance(layer, _BatchNorm)
    return F.batch_norm(a, layer.running_mean, layer.running_var, eps=layer.eps)


def _over_positions(layer: nn.Module, values: Tensor) -> Tensor:
    """Sum over the axes along which the affine weights are the same, the samples' left out."""
    own = len(layer.normalized_shape) if isinstance(layer, nn.LayerNorm) else 0
    axes = tuple(range(1, values.ndim - own)) if own else tuple(range(2, values.ndim))
    return values.sum(axes) if axes else values


def unfolded(layer: nn.Conv2d, a: Float[Tensor, "b c h w"]) -> Float[Tensor, "b columns positions"]:
    """The patches that the convolution sees, one per output position."""
    padding = 0 if layer.padding == "valid" else layer.padding
    assert not isinstance(padding, str)
    words: Any = (layer.kernel_size, layer.dilation, padding, layer.stride)
    return F.unfold(a, *words)


# ---- the layers --------------------------------------------------------------------------------------------


def adapted_layers(source: ITTT, names: Sequence[str]) -> dict[str, nn.Module]:
    """The layers that own the named parameters. Raises `UserError` for one of another kind."""
    kinds = dict(source.named_modules())
    found: dict[str, nn.Module] = {}
    for name in names:
        owner = name.rpartition(".")[0]
        layer = kinds[owner]
        if not _known(layer):
            raise UserError(
                "method='rank-one' adapts linear layers, plain 2-d convolutions and norms only and "
                f"{name} is of a {type(layer).__name__}: choose parameters='head', or method='stacked'"
            )
        found[owner] = layer
        weight = source.get_parameter(name)
        if sum(weight is other for module in kinds.values() for other in module._parameters.values()) > 1:
            raise UserError(f"method='rank-one': {name} is shared by two layers; use method='stacked'")
    return found


def _known(layer: nn.Module) -> bool:
    """Whether it is a layer whose first step has a form here."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and layer.padding != "same"
    if isinstance(layer, _BatchNorm):
        return layer.running_mean is not None
    return isinstance(layer, nn.Linear | nn.LayerNorm | nn.GroupNorm)


@contextmanager
def tapped(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Inside, each layer's (input, output) of every call is noted; outputs carry gradient."""
    taps: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}

    def note(name: str):
        def hook(_layer: nn.Module, given: tuple[Tensor, ...], h: Tensor) -> Tensor:
            h = h if h.requires_grad else h.requires_grad_()
            taps[name].append((given[0].detach(), h))
            return h.clone()  # what follows may change it in place

        return hook

    handles = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def shifted(layers: dict[str, nn.Module], updates: dict[str, Update]) -> Iterator[None]:
    """Inside, each layer answers as if every input had its own adapted weights."""

    def change(name: str):
        return lambda layer, given, h: updates[name].apply(layer, h, given[0])

    handles = [layer.register_forward_hook(change(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _only(name: str, layer: nn.Module, calls: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The only call of a layer, a linear one's on (b, in)."""
    fits = len(calls) == 1 and (calls[0][0].ndim == 2 or not isinstance(layer, nn.Linear))
    if not fits:
        shapes = ", ".join(str(tuple(given.shape)) for given, _ in calls) or "none"
        raise UserError(
            f"method='rank-one' needs layer {name!r} called once, a linear one on (b, in), its calls were: "
            f"{shapes}; use method='stacked'"
        )
    return calls[0]
