"""The weights that are adapted: one copy that a batch shares, or one for each of its inputs.

Used by the loop in `adapt`, which sees either through the same few members: `n` copies, `views` (their
adapted weights as tensors (n, ...), on the memory that the optimiser moves), `origin` (Theta), f and F.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from paperkit import rng
from torch import Tensor
from torch.func import functional_call, vmap

from ittt import method
from ittt.inputs import Batch, each
from ittt.model import ITTT
from ittt.settings import Settings
from ittt.weights import batch_statistics, copy_into, forget, gathered, optimiser_of


class Copies(ABC):
    """n copies of the adapted weights; subclasses say what f and F are."""

    n: int
    names: Sequence[str]
    leaves: Sequence[Tensor]
    views: Sequence[Tensor]
    origin: Sequence[Tensor]
    anchor_views: Sequence[Tensor]
    optimiser: torch.optim.Optimizer
    source: ITTT
    resumed: Callable[[Tensor], Tensor] | None = None

    @abstractmethod
    def f(self, x: Batch, signal: Tensor | None = None) -> Tensor:
        """f_theta(x, signal)."""

    @abstractmethod
    def F(self, x: Batch, signal: Tensor) -> Tensor:
        """The second application."""

    def begin(self, x: Batch, settings: Settings) -> None:
        """A batch begins: what F needs of it whatever it is fed is computed once, if F does not change."""
        still = settings.anchor == "frozen" and settings.norm == "eval"
        self.resumed = self.source.resumed(x) if still else None

    def statistics(self, settings: Settings, adapting: bool) -> contextlib.AbstractContextManager[None]:
        """Batch norm's statistics while adapting, or while scoring."""
        return contextlib.nullcontext()

    def snapshot(self) -> list[Tensor]:
        """A copy of the weights and of a moving anchor's."""
        return [view.clone() for view in (*self.views, *self.anchor_views)]

    @torch.no_grad()
    def restore(self, which: Bool[Tensor, " n"], snapshot: Sequence[Tensor] | None) -> None:
        """Put the chosen copies back to a snapshot (None: to Theta)."""
        if not bool(which.any()):
            return
        if snapshot is None:
            snapshot = [tensor[None] for tensor in self.origin] * (2 if self.anchor_views else 1)
        for view, old in zip((*self.views, *self.anchor_views), snapshot, strict=True):
            view.copy_(torch.where(which.view(-1, *[1] * (view.ndim - 1)), old, view))

    def step(self) -> None:
        """One optimiser step on the gradients that stand in the leaves; they are cleared."""
        self.optimiser.step()
        self.clear()

    def clear(self) -> None:
        """Forget the gradients."""
        self.optimiser.zero_grad(set_to_none=True)

    @torch.no_grad()
    def scramble(self, previous: Sequence[Tensor], seed: int, step: int, tags: Sequence[str]) -> None:
        """Turn the step since `previous` into a random direction, of the same length for every tensor."""
        for name, view, old in zip(self.names, self.views, previous, strict=False):
            shape = tuple(view.shape[1:])
            noise = torch.stack([rng.normal(shape, seed, step, f"{tag} {name}") for tag in tags]).to(view)
            length = (view - old).flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
            view.copy_(old + noise * length.view(-1, *[1] * len(shape)))

    def shuffled(self, signal: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Each sample's signal given to another one of its batch."""
        return signal.roll(1, 0)

    def length(self) -> float | Float[Tensor, " n"]:
        """|Theta|."""
        return method.norm(self.origin)

    def distance(self) -> Float[Tensor, " n"]:
        """How far each copy is from Theta."""
        return method.distance(self.views, self.origin)


class Shared(Copies):
    """One copy for all inputs: `net` is f, `anchor` is F (`net` itself, a frozen or a moving network)."""

    n = 1

    def __init__(self, source: ITTT, net: ITTT, anchor: ITTT, names: Sequence[str], settings: Settings):
        self.source, self.net, self.anchor, self.names = source, net, anchor, names
        own, trained, moving = (dict(each.named_parameters()) for each in (net, source, anchor))
        net.requires_grad_(False)
        self.leaves = [own[name].requires_grad_() for name in names]
        self.whole = gathered(self.leaves)
        self.gradients = [whole.grad for whole in self.whole if whole.grad is not None]
        self.trained = [whole.detach().clone() for whole in self.whole]
        self.views = [leaf.detach()[None] for leaf in self.leaves]
        self.origin = [trained[name] for name in names]
        follows = anchor is not net and anchor is not source
        self.anchor_views = [moving[name].detach()[None] for name in names] if follows else []
        self.buffers = list(net.buffers()), list(source.buffers())
        self.optimiser = optimiser_of(self.whole, settings)

    def f(self, x: Batch, signal: Tensor | None = None) -> Tensor:
        return self.net(x, signal)

    def F(self, x: Batch, signal: Tensor) -> Tensor:
        return self.resumed(signal) if self.resumed else self.anchor(x, signal)

    def statistics(self, settings: Settings, adapting: bool) -> contextlib.AbstractContextManager[None]:
        if settings.norm == "batch" or (settings.norm == "batch-frozen" and adapting):
            return batch_statistics(self.net, self.anchor)
        return contextlib.nullcontext()

    @torch.no_grad()
    def clear(self) -> None:
        torch._foreach_zero_(self.gradients)

    @torch.no_grad()
    def distance(self) -> Float[Tensor, " n"]:
        return method.distance([whole[None] for whole in self.whole], self.trained)

    def reset(self, keep_state: bool) -> None:
        """Back to Theta, buffers too; the optimiser forgets its moments unless they are kept."""
        copy_into(self.whole, self.trained)
        copy_into([view[0] for view in self.anchor_views], self.origin)
        copy_into(*self.buffers)
        if not keep_state:
            forget(self.optimiser)


class Stack(Copies):
    """A copy for each input, side by side: f by vmap over stacked weights, F in one plain call.

    16 bytes per weight and copy with Adam. Networks that mix the samples of a batch have no place here.
    """

    def __init__(self, source: ITTT, n: int, names: Sequence[str], settings: Settings):
        self.source, self.n, self.names, self.kind = source, n, names, settings.anchor
        trained = dict(source.named_parameters())
        self.origin = [trained[name] for name in names]
        self.leaves = [w.detach().expand(n, *w.shape).clone().requires_grad_() for w in self.origin]
        self.views = [leaf.detach() for leaf in self.leaves]
        self.anchor_views = [view.clone() for view in self.views] if self.kind == "ema" else []
        self.optimiser = optimiser_of(self.leaves, settings)

    def f(self, x: Batch, signal: Tensor | None = None) -> Tensor:
        return self._each(self.leaves, x, signal)

    def F(self, x: Batch, signal: Tensor) -> Tensor:
        if self.kind == "frozen":
            return self.resumed(signal) if self.resumed else self.source(x, signal)
        return self._each(self.leaves if self.kind == "none" else self.anchor_views, x, signal)

    def _each(self, weights: Sequence[Tensor], x: Batch, signal: Tensor | None) -> Tensor:
        own, one = dict(zip(self.names, weights, strict=True)), partial(_one, self.source)
        return vmap(one, in_dims=(0, 0, None if signal is None else 0))(own, x, signal)


def _one(net: ITTT, own: dict[str, Tensor], row: Batch, fed: Tensor | None) -> Tensor:
    alone = (each(row, _as_batch), None if fed is None else fed[None])
    return functional_call(net, own, alone)[0]


def _as_batch(row: Tensor) -> Tensor:
    return row[None]
