"""`ITTT`: a network that can be fed its own prediction; how it is trained, and how far from idempotent it is.

    net = ITTT(model, inject="concat", outputs=1)          # model takes extra_inputs(1) more columns
    net.loss(x, y).backward()                              # ZigZag training, Eq. 2
    net(x)                                                 # f(x, 0)
    net.gap(x)                                             # |f(x, f(x, 0)) - f(x, 0)| of each sample
    net.adapter(Settings(steps=2))(x).prediction           # test time, Eq. 6

Used by everything here.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from paperkit import UserError
from torch import Tensor, nn
from torch.nn import functional as F

from ittt import inputs
from ittt.guard import Calibration
from ittt.inject import injection
from ittt.inputs import Batch
from ittt.settings import Settings
from ittt.task import task_of
from ittt.weights import batch_statistics

if TYPE_CHECKING:
    from ittt.adapt import Adapter


class ITTT(nn.Module):
    """A network f(x, signal) made of a model and a place where the signal enters (section 3.1).

    `inject`: "concat" (further columns), "channel" (further image channels), "node" (further node features):
    the model must take `extra_inputs(outputs, presence)` more of them. "feature": a branch added to the
    output of `layer`. With `retrofit` the model is a pretrained one that takes x alone: a zero-initialised
    branch enters at its first layer (or at `layer`), and f(x, 0) equals it exactly before fine-tuning. The
    model is changed in place.

    `outputs`: length of axis 1 of a prediction. `task`: "regression", "classes" (logits) or "binary" (logits
    of masks). `neutral`: the value of the signal when no label is known, a number, "uniform" (1 / outputs) or
    "learned"; with `presence` a further channel says whether one is. `gap`: l1, l2, and for classes l1-prob,
    l2-prob, js, kl, legacy-js; auto = l1 or js. `scale` divides values that are fed back, `smoothing` smooths
    one-hot labels. `key` names the input proper in a dict; `width` is the size of `layer`'s output (or of a
    node's features) where it cannot be read off. Raises `UserError` for what does not fit together.
    """

    def __init__(
        self,
        model: nn.Module,
        inject: str = "concat",
        *,
        outputs: int = 1,
        task: str = "regression",
        neutral: float | str = 0.0,
        presence: bool = False,
        gap: str = "auto",
        scale: float = 1.0,
        smoothing: float = 0.0,
        layer: str = "",
        key: str = "",
        width: int = 0,
        retrofit: bool = False,
    ):
        super().__init__()
        if outputs < 1:
            raise UserError(f"outputs must be at least 1, not {outputs}")
        self.task = task_of(task, gap, scale, smoothing)
        self.outputs, self.presence, self.key = outputs, presence, key
        self.model, self.injection = injection(model, inject, outputs + presence, layer, key, width, retrofit)
        like = next(model.parameters(), torch.empty(0))
        value = torch.full((outputs,), _neutral(neutral, outputs), dtype=like.dtype, device=like.device)
        if neutral == "learned":
            self.neutral = nn.Parameter(value)
        else:
            self.register_buffer("neutral", value)

    # ---- f

    def forward(self, x: Batch, signal: Float[Tensor, "b ..."] | None = None) -> Float[Tensor, "..."]:
        """f(x, signal), or f(x, 0) where `signal` is None; signals come from `from_output`, `from_target`."""
        return self.injection(self.model, inputs.unlabelled(x), self.encoded(x, signal))

    def resumed(self, x: Batch) -> Callable[[Tensor], Tensor]:
        """signal -> f(x, signal) for weights and statistics that stay as they are.

        Where the signal enters a layer of an `nn.Sequential`, what comes before it is computed once, now.
        """
        call = self.injection.resumed(self.model, inputs.unlabelled(x))
        return lambda signal: call(self.encoded(x, signal))

    def from_output(self, output: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """The signal of a prediction: values / scale, softmax or sigmoid. Raises `UserError` on its shape."""
        signal = self.task.from_output(output)
        if signal.ndim < 2 or signal.shape[1] != self.outputs:
            raise UserError(
                f"the network's output of shape {tuple(output.shape)} cannot be fed back: with "
                f"outputs={self.outputs} it must be (b, {self.outputs}, ...)"
            )
        return signal

    def from_target(self, target: Tensor) -> Float[Tensor, "b ..."]:
        """The signal of a label: values / scale, one-hot or 0/1."""
        return self.task.from_target(target, self.outputs)

    def encoded(
        self,
        x: Batch,
        signal: Float[Tensor, "b ..."] | None,
        known: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b ..."]:
        """The signal channels (b, outputs + presence, ...): neutral where no label is `known`."""
        if signal is None:
            neutral = F.pad(self.neutral, (0, 1)) if self.presence else self.neutral
            return neutral.expand(inputs.size(x), -1)
        signal = signal.to(self.neutral)
        if known is None:
            return F.pad(signal, (*[0, 0] * (signal.ndim - 2), 0, 1), value=1.0) if self.presence else signal
        place = known.view(-1, *[1] * (signal.ndim - 1))
        neutral = self.neutral.view(1, -1, *[1] * (signal.ndim - 2))
        bit = torch.ones_like(signal[:, :1]) * place
        signal = torch.where(place, signal, neutral)
        return torch.cat([signal, bit], 1) if self.presence else signal

    # ---- training, Eq. 2

    def loss(
        self,
        x: Batch,
        target: Tensor,
        mask: float | Bool[Tensor, " b"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """The ZigZag loss: loss(f(x, y), y) + loss(f(x, 0), y), in two passes (Eq. 2).

        With `mask` in one pass: each sample is fed the neutral signal with that probability, else its label
        (the public airfoils and age code); `generator` (CPU) draws which. Or `mask` says which are.
        """
        signal = self.from_target(target)
        if mask is None:
            return self.task.loss(self(x, signal), target) + self.task.loss(self(x), target)
        if not isinstance(mask, Tensor):
            if not 0 <= mask <= 1:
                raise UserError(f"mask is a probability, not {mask:g}")
            mask = torch.rand(len(target), generator=generator) < mask
        known = ~mask.to(signal.device)
        output = self.injection(self.model, inputs.unlabelled(x), self.encoded(x, signal, known))
        return self.task.loss(output, target)

    # ---- how far from idempotent, and what to do about it

    @torch.no_grad()
    def gap(self, x: Batch, norm: str = "eval") -> Float[Tensor, " b"]:
        """|f(x, f(x, 0)) - f(x, 0)| of each sample, in evaluation mode: large where errors are likely.

        With `norm` "batch", under the batch's own statistics.
        """
        was = [module.training for module in self.modules()]
        self.eval()
        with batch_statistics(self) if norm == "batch" else nullcontext():
            first = self(x)
            second = self(x, self.from_output(first))
        for module, training in zip(self.modules(), was, strict=True):
            module.training = training
        return self.task.gap(first, second)

    def calibrate(self, batches: Sequence[Batch], norm: str = "eval") -> Calibration:
        """The gaps of held-out clean inputs, for gating and abstention; labels are not needed.

        `norm` is "batch" where the adapter's is. Raises `UserError` without inputs.
        """
        if not batches:
            raise UserError("calibration needs clean inputs: give at least one batch")
        return Calibration(torch.cat([self.gap(inputs.checked(x, self.key), norm) for x in batches]), norm)

    def adapter(self, settings: Settings | None = None, calibration: Calibration | None = None) -> "Adapter":
        """An `Adapter` of a snapshot of these weights; the network itself is never changed by it."""
        from ittt.adapt import Adapter

        return Adapter(self, settings or Settings(), calibration)


def _neutral(neutral: float | str, outputs: int) -> float:
    if neutral in ("uniform", "learned"):
        return 1 / outputs if neutral == "uniform" else 0.0
    if isinstance(neutral, str):
        raise UserError(f"neutral={neutral!r}: give a number, 'uniform' or 'learned'")
    return float(neutral)
