"""Test time: the adaptation loop (section 3.2, Eqs. 5 to 7) and the `Adapter` that runs it batch after batch.

The loop is one function over `Copies`, so that a batch that shares its weights and inputs that have their own
go through the same lines.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from paperkit import UserError
from torch import Tensor

from ittt import inputs, method
from ittt.copies import Copies, Shared, Stack
from ittt.guard import Calibration, Watch, above, thresholds
from ittt.inputs import Batch
from ittt.method import mean_of
from ittt.model import ITTT
from ittt.settings import Settings
from ittt.weights import chosen, forget, has_batch_norm


class Pass(NamedTuple):
    """Both applications at one state of the weights."""

    prediction: Float[Tensor, "b ..."]
    """What is scored."""
    gaps: Float[Tensor, " b"]

    def where(self, mask: Bool[Tensor, " b"], other: "Pass") -> "Pass":
        """This pass for the samples of the mask, the other one for the rest."""
        if bool(mask.all()):
            return self
        wide = mask.view(-1, *[1] * (self.prediction.ndim - 1))
        return Pass(
            torch.where(wide, self.prediction, other.prediction), torch.where(mask, self.gaps, other.gaps)
        )


class Trace(NamedTuple):
    """What the loop did, sample by sample."""

    before: Pass
    after: Pass
    steps: Int64[Tensor, " b"]
    moved: Float[Tensor, " b"]
    rolled_back: Bool[Tensor, " b"]


@dataclass(frozen=True)
class Adapted:
    """One batch's predictions, sample by sample, with what adaptation did to them."""

    prediction: Float[Tensor, "b ..."]
    """The prediction to use."""
    before: Float[Tensor, "b ..."]
    """The same network's without adaptation to this batch."""
    gap_before: Float[Tensor, " b"]
    gap_after: Float[Tensor, " b"]
    """Gap of the adapted prediction; not a number where it was not measured."""
    adapted: Bool[Tensor, " b"]
    """Whether `prediction` is the adapted one: not gated, not rolled back, not of the higher gap."""
    steps: Int64[Tensor, " b"]
    """Optimiser steps taken and kept."""
    moved: Float[Tensor, " b"]
    """|theta - Theta| of its copy of the weights after the batch."""
    rolled_back: Bool[Tensor, " b"]
    """Whether the gap grew and the weights were put back."""
    abstain: Bool[Tensor, " b"]
    """Whether the gap before is above the conformal limit: better not to trust the prediction.

    The promised share of clean inputs is that of the trained weights, that is with `reset`."""
    returned: bool = False
    """Whether the guard had put an online stream back to the trained weights."""
    shifted: bool = False
    """Whether the batch's gap stood out, and the stream began anew with it."""

    def rows(self) -> list[dict[str, Any]]:
        """One dict of plain numbers per sample, without the predictions."""
        columns = {
            part.name: getattr(self, part.name).tolist()
            for part in fields(self)
            if part.name not in ("prediction", "before", "returned", "shifted")
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


# ---- the loop ----------------------------------------------------------------------------------------------


def look(
    copies: Copies, x: Batch, settings: Settings, *, adapting: bool = False, measure: bool = True
) -> Pass:
    """y0 = f(x, 0), y1 = F(x, y0), and the gap between them; with gradient while adapting."""
    net = copies.source
    with copies.statistics(settings, adapting), torch.set_grad_enabled(adapting):
        first = copies.f(x)
        if not measure and settings.score == "first":
            return Pass(first, torch.full((len(first),), torch.nan).to(first))
        fed = net.from_output(first)
        y0 = copies.shuffled(fed) if settings.control == "shuffled" else fed
        second = copies.F(x, y0 if settings.through_anchor else y0.detach())
        gaps = net.task.gap(first, second)
        prediction = second if settings.score == "second" else first
        if settings.score == "second-adapted":
            with torch.no_grad():
                prediction = copies.f(x, fed)
    return Pass(prediction.detach(), gaps)


def adapt(
    copies: Copies,
    x: Batch,
    settings: Settings,
    weight: Bool[Tensor, " b"] | None = None,
    tags: Sequence[str] = ("",),
) -> Trace:
    """Settings.steps times: y0 = f(x, 0), y1 = F(x, y0), a step on the gap (Eq. 6); then predict.

    `weight` says which samples count in a shared loss; `tags` name the copies in the control of random
    directions. A pass at the new weights is both the next step's forward pass and the check of the last one.
    """
    n = copies.n
    copies.begin(x, settings)
    start = None if settings.reset else copies.snapshot()
    carried = copy.deepcopy(copies.optimiser.state_dict()) if settings.carry_state else None
    before = look(copies, x, settings) if settings.norm == "batch-frozen" else None
    active = torch.ones(n, dtype=torch.bool, device=copies.leaves[0].device)
    taken = torch.zeros(n, dtype=torch.long, device=active.device)
    after, previous = None, []
    best = torch.full((n,), torch.inf).to(copies.leaves[0])
    for step in range(settings.steps + 1):
        last = step == settings.steps
        if last and settings.timing == "before":
            break

        # 1. Both applications at the present weights.
        found = look(copies, x, settings, adapting=not last, measure=settings.measure or not last)
        loss = mean_of(found.gaps, weight, n)
        if not last:
            loss.sum().backward()  # now, as copies that stop are put back in place
        found, reached = Pass(found.prediction, found.gaps.detach()), loss.detach()

        # 2. A step after which the gap did not fall is taken back, and the copy rests.
        before = before or found
        if settings.early_stop and after is not None:
            better = active & (reached < best)
            copies.restore(active & ~better, previous)
            taken -= (active & ~better).long()
            active = better
            found = found.where(_of_samples(active, found.gaps), after)
        after = found
        if settings.early_stop:
            best = torch.where(active, reached, best)
        if last or (settings.early_stop and not bool(active.any())):
            copies.clear()
            break

        # 3. The next step.
        previous = _advance(copies, settings, active, step, tags)
        taken += active.long()
    copies.resumed = None
    assert before is not None
    assert after is not None

    # 4. An adaptation that made the gap grow, or no number of it, is undone.
    worse = torch.zeros_like(active)
    if settings.rollback:
        worse = ~(mean_of(after.gaps, weight, n) <= mean_of(before.gaps, weight, n))
        copies.restore(worse, start)
        if carried is not None and bool(worse.any()):
            copies.optimiser.load_state_dict(carried)
        after, taken = after.where(~_of_samples(worse, after.gaps), before), taken * ~worse
    shared = [_of_samples(part, after.gaps) for part in (taken, copies.distance(), worse)]
    return Trace(before, after, *shared)


def _of_samples(values: Shaped[Tensor, " n"], gaps: Float[Tensor, " b"]) -> Shaped[Tensor, " b"]:
    """What is known of each copy, for each of its samples."""
    return values.repeat_interleave(len(gaps) // len(values))


def _advance(
    copies: Copies, settings: Settings, active: Bool[Tensor, " n"], step: int, tags: Sequence[str]
) -> list[Tensor]:
    """One step of the active copies within the trust region, F after them; returns where they stood."""
    careful = settings.early_stop or settings.control == "random"
    previous = copies.snapshot() if careful else []
    copies.step()
    if settings.control == "random":
        copies.scramble(previous, settings.seed, step, tags)
    if settings.trust:
        method.project(copies.views, copies.origin, settings.trust * copies.length())
    if settings.early_stop:
        copies.restore(~active, previous)
    method.follow(copies.anchor_views, copies.views, settings.decay)
    return previous


# ---- batch after batch -------------------------------------------------------------------------------------


class Adapter:
    """Adapts a snapshot of an `ITTT` to one batch after another, without labels.

    `adapter(x)` gives an `Adapted`. The given network is never changed; `adapter.net` is a network with the
    weights of the last batch (not of instances). Raises `UserError` for settings that the network does not
    allow (batch statistics without batch norm), for gate or abstain without a calibration, and for bad
    batches (`inputs.checked`).
    """

    def __init__(self, net: ITTT, settings: Settings, calibration: Calibration | None = None):
        if settings.norm != "eval" and not has_batch_norm(net):
            raise UserError(f"norm={settings.norm!r}: the network has no batch norm; leave norm at 'eval'")
        self.settings, self.names = settings, chosen(net, settings)
        self.gate, self.limit = thresholds(settings, calibration)
        with torch.inference_mode(False):
            self.source = copy.deepcopy(net).eval().requires_grad_(False)
            self.net = copy.deepcopy(self.source)
            kept = {"frozen": self.source, "none": self.net}
            self.anchor = kept[settings.anchor] if settings.anchor in kept else copy.deepcopy(self.source)
            self.shared = Shared(self.source, self.net, self.anchor, self.names, settings)
        self.watch = Watch(settings.detect)
        self.batches = 0
        """Batches adapted to so far."""

    def reset(self) -> None:
        """Back to the trained weights, bit for bit, buffers too."""
        self.shared.reset(self.settings.carry_state)

    def __call__(self, x: Batch) -> Adapted:
        """Adapt to a batch and predict it. Raises `UserError` for labels and other bad input."""
        with torch.inference_mode(False), torch.enable_grad():  # whatever the caller has switched off
            return self._call(inputs.unlabelled(inputs.trackable(self._checked(x))))

    def _call(self, x: Batch) -> Adapted:
        if self.settings.reset:
            self.reset()
        elif not self.settings.carry_state:
            forget(self.shared.optimiser)
        scored = "batch" if self.settings.norm == "batch" else "eval"
        shifted = bool(self.settings.detect) and self.watch.stands_out(
            float(self.source.gap(x, scored).mean())
        )
        if shifted:
            self.shared.reset(keep_state=False)
        trace, chosen_ = self._gated(x)
        returned = bool(
            self.settings.guard
            and float(self.shared.distance()) > self.settings.guard * method.norm(self.shared.origin)
        )
        if returned:
            self.shared.reset(keep_state=False)
            trace, chosen_ = self._gated(x)
        self.batches += 1
        return replace(self._result(trace, chosen_), returned=returned, shifted=shifted)

    def _checked(self, x: Batch) -> Batch:
        x = inputs.checked(x, self.source.key)
        if inputs.size(x) == 1 and (self.settings.norm != "eval" or self.settings.control == "shuffled"):
            what = f"norm={self.settings.norm!r}" if self.settings.norm != "eval" else "control='shuffled'"
            raise UserError(f"{what} needs at least two samples in a batch, got one")
        return x

    def _gated(self, x: Batch) -> tuple[Trace, Bool[Tensor, " b"]]:
        """(trace, which samples were adapted to): all, or those whose gap is above the gate."""
        if self.gate is None:
            trace = self._adapted(x)
            return trace, torch.ones_like(trace.rolled_back)
        first = self._first_look(x)
        if len(first.gaps) != inputs.size(x):
            raise UserError("gate leaves out whole graphs: it needs one prediction per graph, not per node")
        chosen_ = above(first.gaps, self.gate)
        zeros = torch.zeros_like(chosen_)
        rested = self.shared.distance().expand(len(zeros))
        idle = Trace(first, first, zeros.long(), rested, zeros)
        if not bool(chosen_.any()):
            return idle, chosen_
        if self.settings.norm != "eval":  # the others take part in the batch's statistics
            trace = self._adapted(x, chosen_)
            return _choose(chosen_, trace, idle), chosen_
        rows = chosen_.nonzero()[:, 0]
        return _spread(self._adapted(inputs.take(x, rows)), rows, idle), chosen_

    def _first_look(self, x: Batch) -> Pass:
        try:
            self.shared.begin(x, self.settings)
            return look(self.shared, x, self.settings)
        except RuntimeError as error:
            raise _misfit(x, self.source.key, error) from error
        finally:
            self.shared.resumed = None

    def _adapted(self, x: Batch, weight: Bool[Tensor, " b"] | None = None) -> Trace:
        try:
            if self.settings.per == "batch":
                return adapt(self.shared, x, self.settings, weight, (f"{self.batches} 0",))
            if self.settings.method == "loop" or inputs.is_graph(x):
                return _joined([self._alone(x, row) for row in range(inputs.size(x))])
            return _joined([self._within_memory(x, rows) for rows in self._chunks(x)])
        except RuntimeError as error:
            raise _misfit(x, self.source.key, error) from error

    def _chunks(self, x: Batch) -> Sequence[Int64[Tensor, " m"]]:
        return torch.arange(inputs.size(x)).split(self.settings.chunk)

    def _alone(self, x: Batch, row: int) -> Trace:
        self.reset()
        part = inputs.take(x, torch.tensor([row]))
        return adapt(self.shared, part, self.settings, tags=(f"{self.batches} {row}",))

    def _within_memory(self, x: Batch, rows: Int64[Tensor, " m"]) -> Trace:
        """Copies side by side; halves one after another where memory is too small for all."""
        try:
            return self._side_by_side(x, rows)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        torch.cuda.empty_cache()
        return _joined([self._within_memory(x, half) for half in rows.chunk(2)])

    def _side_by_side(self, x: Batch, rows: Int64[Tensor, " m"]) -> Trace:
        part = inputs.take(x, rows)
        if self.settings.method == "rank-one":
            from ittt.rankone import adapt_rank_one

            return adapt_rank_one(self.source, part, self.names, self.settings)
        copies = Stack(self.source, len(rows), self.names, self.settings)
        tags = [f"{self.batches} {row}" for row in rows.tolist()]
        try:
            return adapt(copies, part, self.settings, tags=tags)
        except RuntimeError as error:
            if "vmap" not in str(error) or isinstance(error, torch.OutOfMemoryError):
                raise
            text = str(error).splitlines()[0]
            raise UserError(f"the network does not run side by side, use method='loop': {text}") from error

    def _result(self, trace: Trace, chosen_: Bool[Tensor, " b"]) -> Adapted:
        before, after = trace.before, trace.after
        adapted = chosen_ & ~trace.rolled_back
        if self.settings.choose == "lower-gap":
            adapted &= after.gaps <= before.gaps
        final = after.where(adapted, before)
        return Adapted(
            final.prediction, before.prediction, before.gaps, final.gaps, adapted, trace.steps * adapted,
            trace.moved, trace.rolled_back,
            above(before.gaps, torch.inf if self.limit is None else self.limit),
        )  # fmt: skip

    # ---- a stream that is stopped and goes on

    def state_dict(self) -> dict[str, Any]:
        """The adapted weights, a moving anchor's and the optimiser's state; for `load_state_dict`."""
        return {
            "net": self.net.state_dict(),
            "anchor": self.anchor.state_dict() if self.shared.anchor_views else {},
            "optimiser": self.shared.optimiser.state_dict(),
            "batches": self.batches,
            "gaps": self.watch.gaps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.net.load_state_dict(state["net"])
        if self.shared.anchor_views:
            self.anchor.load_state_dict(state["anchor"])
        self.shared.optimiser.load_state_dict(state["optimiser"])
        self.batches, self.watch.gaps = state["batches"], state["gaps"]


# ---- the parts of a batch ----------------------------------------------------------------------------------


def _choose(mask: Bool[Tensor, " b"], trace: Trace, idle: Trace) -> Trace:
    """The trace where the mask is set, the idle one elsewhere."""
    pairs = zip(trace[2:], idle[2:], strict=True)
    return Trace(
        idle.before, trace.after.where(mask, idle.after), *(torch.where(mask, a, b) for a, b in pairs)
    )


def _spread(part: Trace, rows: Int64[Tensor, " m"], idle: Trace) -> Trace:
    """The trace of some rows among the idle others."""

    def put(values: Tensor, into: Tensor) -> Tensor:
        into = into.clone()
        into[rows] = values
        return into

    after = Pass(*(put(a, b) for a, b in zip(part.after, idle.after, strict=True)))
    return Trace(idle.before, after, *(put(a, b) for a, b in zip(part[2:], idle[2:], strict=True)))


def _joined(parts: Sequence[Trace]) -> Trace:
    """Traces of parts of a batch, one after another."""
    return Trace(
        _joined_passes([part.before for part in parts]),
        _joined_passes([part.after for part in parts]),
        torch.cat([part.steps for part in parts]),
        torch.cat([part.moved for part in parts]),
        torch.cat([part.rolled_back for part in parts]),
    )


def _joined_passes(parts: Sequence[Pass]) -> Pass:
    return Pass(torch.cat([part.prediction for part in parts]), torch.cat([part.gaps for part in parts]))


def _misfit(x: Batch, key: str, error: RuntimeError) -> Exception:
    """A `UserError` where the network does not take inputs of this shape, else the error itself."""
    text = str(error).splitlines()[0]
    if isinstance(error, torch.OutOfMemoryError) or not any(
        word in text for word in ("shape", "size", "channels", "dimension")
    ):
        return error
    shape = tuple(inputs.main_tensor(x, key).shape)
    return UserError(f"the network does not take inputs of shape {shape} with the signal: {text}")
