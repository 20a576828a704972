"""Many batches side by side, each with weights of its own, also of several networks: experiments in minutes.

`predict` gives what an `Adapter` of each network gives batch after batch, and `train` what the training of
each seed gives. Used by the claims; networks are small, of one architecture, and do not mix samples.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from paperkit import UserError, rng
from paperkit.data import batch_indices
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ittt.adapt import Trace, adapt, look
from ittt.copies import Copies
from ittt.model import ITTT
from ittt.settings import Settings
from ittt.weights import chosen, optimiser_of

Net = TypeVar("Net", bound=nn.Module)

CHUNK = 1024
"""Copies in memory at a time."""


def stacked(nets: Sequence[nn.Module]) -> dict[str, Float[Tensor, "n ..."]]:
    """Parameters and buffers of equal networks along a new first axis."""
    states = [net.state_dict() for net in nets]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def call(
    net: nn.Module, own: dict[str, Tensor], x: Float[Tensor, "n b ..."], signal: Tensor | None = None
) -> Float[Tensor, "n b ..."]:
    """Each copy's network on its own samples; `own` holds weights along a first axis."""
    return vmap(partial(_one, net))(own, *((x,) if signal is None else (x, signal)))


def _one(net: nn.Module, weights: dict[str, Tensor], *words: Tensor) -> Tensor:
    return functional_call(net, weights, words)


class Beside(Copies):
    """A copy for each of n batches of equal size, starting from the weights of the network `owner` names."""

    def __init__(self, like: ITTT, state: dict[str, Tensor], owner: Int64[Tensor, " n"], settings: Settings):
        if settings.norm != "eval":
            raise UserError(f"norm={settings.norm!r}: batches side by side have no batch statistics")
        self.source, self.n, self.kind = like, len(owner), settings.anchor
        self.names = chosen(like, settings)
        self.start = {name: values[owner] for name, values in state.items()}
        self.origin = [self.start[name] for name in self.names]
        self.leaves = [w.clone().requires_grad_() for w in self.origin]
        self.views = [leaf.detach() for leaf in self.leaves]
        self.anchor_views = [view.clone() for view in self.views] if self.kind == "ema" else []
        self.optimiser = optimiser_of(self.leaves, settings)

    def begin(self, x: Tensor, settings: Settings) -> None:
        """Nothing is computed ahead."""

    def f(self, x: Tensor, signal: Tensor | None = None) -> Tensor:
        return self._each(self.leaves, x, signal)

    def F(self, x: Tensor, signal: Tensor) -> Tensor:
        kinds = {"frozen": self.origin, "none": self.leaves, "ema": self.anchor_views}
        return self._each(kinds[self.kind], x, signal)

    def shuffled(self, signal: Tensor) -> Tensor:
        return self._grouped(signal).roll(1, 1).flatten(0, 1)

    def length(self) -> Float[Tensor, " n"]:
        return torch.stack([w.square().flatten(1).sum(1) for w in self.origin]).sum(0).sqrt()

    @torch.no_grad()
    def scramble(self, previous: Sequence[Tensor], seed: int, step: int, tags: Sequence[str]) -> None:
        """As for few copies, but by one draw for all: a generator for each takes most of the time."""
        for name, view, old in zip(self.names, self.views, previous, strict=False):
            noise = rng.normal(tuple(view.shape), seed, step, f"{tags[0]} {name}").to(view)
            length = (view - old).flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
            view.copy_(old + noise * length.view(-1, *[1] * (view.ndim - 1)))

    def restore(self, which: Bool[Tensor, " n"], snapshot: Sequence[Tensor] | None) -> None:
        """Put the chosen copies back to a snapshot (None: to Theta)."""
        super().restore(which, snapshot or [*self.origin, *(self.origin if self.anchor_views else [])])

    def _each(self, weights: Sequence[Tensor], x: Tensor, signal: Tensor | None) -> Tensor:
        own = {**self.start, **dict(zip(self.names, weights, strict=True))}
        fed = None if signal is None else self._grouped(signal)
        return call(self.source, own, self._grouped(x), fed).flatten(0, 1)

    def _grouped(self, values: Tensor) -> Tensor:
        return values.unflatten(0, (self.n, -1))


@dataclass(frozen=True)
class Found:
    """What came of every row of every network."""

    prediction: Float[Tensor, "s m ..."]
    before: Float[Tensor, "s m ..."]
    gap_before: Float[Tensor, "s m"]
    moved: Float[Tensor, "s m"]
    adapted: Bool[Tensor, "s m"]


def predict(
    nets: Sequence[ITTT],
    x: Float[Tensor, "s m ..."],
    size: int,
    settings: Settings,
    gates: Float[Tensor, " s"] | None = None,
) -> Found:
    """Each network's rows, adapted to in batches of `size`; the last of a network may be smaller.

    `gates`: the gap of each network up to which a row is left alone. Raises `UserError` for settings that
    need batches one after another.
    """
    if not settings.reset or settings.per != "batch":
        raise UserError("side by side, every batch starts from the trained weights: reset on, per='batch'")
    whole = x.shape[1] - x.shape[1] % size
    parts = [part for part in (x[:, :whole], x[:, whole:]) if part.shape[1]]
    found = [_groups(nets, part, min(size, part.shape[1]), settings, gates) for part in parts]
    names = Found.__dataclass_fields__
    return Found(**{name: torch.cat([getattr(part, name) for part in found], 1) for name in names})


def _groups(nets: Sequence[ITTT], x: Tensor, size: int, settings: Settings, gates: Tensor | None) -> Found:
    """Rows that are whole batches."""
    groups = x.unflatten(1, (-1, size)).flatten(0, 1)
    owner = torch.arange(len(nets)).repeat_interleave(x.shape[1] // size)
    state, traces = stacked(nets), []
    with torch.inference_mode(False), torch.enable_grad():
        for places in torch.arange(len(owner)).split(CHUNK):
            copies = Beside(nets[0], state, owner[places], settings)
            flat, chosen_ = groups[places].flatten(0, 1), None
            if gates is not None:
                first = look(copies, flat, settings)
                chosen_ = first.gaps > gates[owner[places]].repeat_interleave(size)
            trace = adapt(copies, flat, settings, chosen_, [str(place) for place in places.tolist()])
            traces.append(_found(trace, chosen_, settings))
    columns = [torch.cat(parts) for parts in zip(*traces, strict=True)]
    return Found(*(column.unflatten(0, (len(nets), -1)) for column in columns))


def _found(trace: Trace, chosen_: Tensor | None, settings: Settings) -> tuple[Tensor, ...]:
    before, after = trace.before, trace.after
    adapted = ~trace.rolled_back if chosen_ is None else chosen_ & ~trace.rolled_back
    if settings.choose == "lower-gap":
        adapted = adapted & (after.gaps <= before.gaps)
    return after.where(adapted, before).prediction, before.prediction, before.gaps, trace.moved, adapted


# ---- training side by side ---------------------------------------------------------------------------------

Pair = tuple[ITTT, nn.Module]
"""A network and its plain twin."""


def train(
    pairs: Sequence[Pair],
    x: Float[Tensor, "s n ..."],
    y: Shaped[Tensor, "s n ..."],
    epochs: Sequence[int],
    batch: int = 32,
    lr: float = 1e-3,
    first: int = 0,
) -> dict[int, list[Pair]]:
    """Train networks of the seeds first, first + 1, … and their twins, each on its own rows.

    As `ittt train` trains one: Adam treats each weight on its own, so that copies side by side are what they
    would be one by one. Returns the pairs as they stood after each number of `epochs`.
    """
    net, plain = pairs[0]
    own, other = (_leaves(nets) for nets in zip(*pairs, strict=True))
    optimiser = torch.optim.Adam([*own.values(), *other.values()], lr, fused=True)
    copies, per_epoch, found = range(len(pairs)), x.shape[1] // batch, {}
    rows, order = torch.arange(len(pairs))[:, None], torch.empty(0, dtype=torch.long)
    for step in range(max(epochs) * per_epoch):
        if step % per_epoch == 0:  # an epoch's order at once: a seed's is made anew when others came between
            order = torch.stack(
                [_order(x.shape[1], batch, first + k, step // per_epoch, per_epoch) for k in copies]
            )
        chosen_ = order[:, step % per_epoch]
        part, labels = x[rows, chosen_], y[rows, chosen_]
        signal = net.from_target(labels.flatten(0, 1)).unflatten(0, labels.shape[:2])
        optimiser.zero_grad(set_to_none=True)
        losses = [
            net.task.loss(output.flatten(0, 1), labels.flatten(0, 1))  # the mean over all copies
            for output in (call(net, own, part, signal), call(net, own, part), call(plain, other, part))
        ]
        (torch.stack(losses).sum() * len(pairs)).backward()  # so that each copy has its own mean
        optimiser.step()
        if (step + 1) % per_epoch == 0 and (step + 1) // per_epoch in epochs:
            found[(step + 1) // per_epoch] = [(_copy(net, own, k), _copy(plain, other, k)) for k in copies]
    return found


def _order(n: int, batch: int, seed: int, epoch: int, per_epoch: int) -> Int64[Tensor, "steps b"]:
    """The rows of every step of an epoch."""
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    return torch.stack([torch.from_numpy(batch_indices(n, batch, seed, step)) for step in steps])


def _leaves(nets: Sequence[nn.Module]) -> dict[str, Tensor]:
    names = [name for name, _ in nets[0].named_parameters()]
    state = stacked(nets)
    return {name: state[name].requires_grad_() for name in names}


def _copy(like: Net, own: dict[str, Tensor], number: int) -> Net:
    """One of the copies as a network of its own, ready to be asked."""
    net = copy.deepcopy(like)
    net.load_state_dict({name: values[number].detach() for name, values in own.items()}, strict=False)
    return net.eval().requires_grad_(False)
