"""One step, one input, all linear: the update is a rank-one matrix and need not be made.

For a linear layer with input a and output gradient d the weight's gradient is d a^T, and the first step of
a fresh Adam is lr g / (|g| + eps) = lr sign(d) sign(a)^T up to eps: again of rank one. The adapted layer is
then the trained one minus lr sign(d) (sign(a) . a' + 1) on its new input a'. So every input gets weights of
its own at the cost of two batched passes, without any copy. Not in the paper.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from paperkit import UserError
from torch import Tensor, nn

from ittt import method
from ittt.adapt import Pass, Trace
from ittt.inputs import Batch
from ittt.model import ITTT
from ittt.settings import Settings


class Update(NamedTuple):
    """The change of one layer for each input: weight -= left right^T, bias -= shift."""

    left: Float[Tensor, "b out"]
    right: Float[Tensor, "b in"]
    shift: Float[Tensor, "b out"]

    def square(self) -> Float[Tensor, " b"]:
        """Squared norm of the change."""
        outer = self.left.square().sum(1) * self.right.square().sum(1)
        return outer + self.shift.square().sum(1)

    def scaled(self, share: Float[Tensor, " b"]) -> "Update":
        return Update(self.left * share[:, None], self.right, self.shift * share[:, None])

    def apply(self, h: Float[Tensor, "b out"], a: Float[Tensor, "b in"]) -> Float[Tensor, "b out"]:
        """The layer's adapted output from its trained one and its input."""
        return h - self.left * (self.right * a).sum(1, keepdim=True) - self.shift


def adapt_rank_one(source: ITTT, x: Batch, names: Sequence[str], settings: Settings) -> Trace:
    """One optimiser step for each input on its own, as `adapt` with copies would make it (up to Adam's eps).

    Raises `UserError` unless every adapted weight belongs to a linear layer that is called once per
    application on (b, in).
    """
    layers = linear_layers(source, names)

    # 1. One pass as it is: inputs and output gradients of the layers.
    with torch.enable_grad():
        with tapped(layers) as taps:
            first = source(x)
        y0, second_pass = source.from_output(first), source.resumed(x)
        second = second_pass(y0 if settings.through_anchor else y0.detach())
        gaps = source.task.gap(first, second)
        outputs = [_only(name, calls)[1] for name, calls in taps.items()]
        gradients = torch.autograd.grad(gaps.sum(), outputs)
    before = Pass((second if settings.score == "second" else first).detach(), gaps.detach())

    # 2. The step of each layer and input, within the trust region.
    updates = {
        name: update(calls[0][0], gradient, names, name, settings)
        for (name, calls), gradient in zip(taps.items(), gradients, strict=True)
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


def update(a: Tensor, d: Tensor, names: Sequence[str], layer: str, settings: Settings) -> Update:
    """The first step of SGD or of a fresh Adam for the gradient d a^T (bias: d)."""
    left, right = (d.sign(), a.sign()) if settings.optimiser == "adam" else (d, a)
    weight, bias = (settings.lr * (f"{layer}.{part}" in names) for part in ("weight", "bias"))
    return Update(left * weight, right, left * bias)


# ---- the layers --------------------------------------------------------------------------------------------


def linear_layers(source: ITTT, names: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers that own the named parameters. Raises `UserError` for one of another kind."""
    kinds = dict(source.named_modules())
    found = {}
    for name in names:
        owner = name.rpartition(".")[0]
        if not isinstance(layer := kinds[owner], nn.Linear):
            raise UserError(
                f"method='rank-one' adapts linear layers only and {name} is of a {type(layer).__name__}: "
                "choose parameters='head', or method='stacked'"
            )
        found[owner] = layer
    return found


@contextmanager
def tapped(layers: dict[str, nn.Linear]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
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
def shifted(layers: dict[str, nn.Linear], updates: dict[str, Update]) -> Iterator[None]:
    """Inside, each layer answers as if every input had its own adapted weights."""

    def change(name: str):
        return lambda _layer, given, h: updates[name].apply(h, given[0])

    handles = [layer.register_forward_hook(change(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _only(name: str, calls: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The only call of a layer, on (b, in)."""
    if len(calls) != 1 or calls[0][0].ndim != 2:
        shapes = ", ".join(str(tuple(given.shape)) for given, _ in calls) or "none"
        raise UserError(
            f"method='rank-one' needs layer {name!r} called once on (b, in), its calls were: {shapes}; "
            "use method='stacked'"
        )
    return calls[0]
