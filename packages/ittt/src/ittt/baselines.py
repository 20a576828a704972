"""Other ways to adapt, under the protocol of `Adapter`: the same reset, optimiser and time of prediction.

Used by `evaluate` and the experiments. Every method is a function from a batch to its predictions.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from paperkit import UserError, suggest
from torch import Tensor, nn

from ittt import inputs
from ittt.guard import Calibration
from ittt.inputs import Batch
from ittt.model import ITTT
from ittt.objectives import Activations, Agreement, Augment, Entropy, Marginal, Objective, Reliable, Rotation
from ittt.settings import Settings
from ittt.weights import batch_statistics, chosen, copy_into, forget, has_batch_norm, optimiser_of

Predict = Callable[[Batch], Tensor]
METHODS = (
    "none", "plain", "bn", "tent", "eta", "inner-product", "memo", "actmad", "rotation",
    "it3", "it3-bn", "un-frozen", "shuffled", "random",
)  # fmt: skip

VARIANTS: dict[str, dict[str, str]] = {
    "it3": {},
    "it3-bn": {"norm": "batch"},
    "un-frozen": {"anchor": "none"},
    "shuffled": {"control": "shuffled"},
    "random": {"control": "random"},
}
"""The paper's method and its variants: what they change in its settings."""


class Baseline:
    """A network that minimises an objective on each batch before it predicts it (none: it just predicts).

    Of the settings it follows steps, lr, optimiser, parameters, norm (eval or batch), per, reset and
    carry_state. The given network, an `ITTT` or any other, is never changed. Raises `UserError` for batch
    statistics without batch norm or of one sample, and for bad batches (`inputs.checked`).
    """

    def __init__(self, net: nn.Module, objective: Objective | None, settings: Settings):
        if settings.norm != "eval" and not has_batch_norm(net):
            raise UserError(f"norm={settings.norm!r}: the network has no batch norm; leave norm at 'eval'")
        self.objective, self.settings = objective, settings
        with torch.inference_mode(False):
            self.source = copy.deepcopy(net).eval().requires_grad_(False)
            self.net = copy.deepcopy(self.source)
            self.leaves: list[Tensor] = []
            if objective is not None:
                own, names = dict(self.net.named_parameters()), chosen(net, settings)
                self.leaves = [own[name].requires_grad_() for name in names]
                self.optimiser = optimiser_of(self.leaves, settings)
        self.state = list(self.net.state_dict().values()), list(self.source.state_dict().values())

    def reset(self) -> None:
        """Back to the trained weights, bit for bit, buffers too."""
        copy_into(*self.state)
        if self.objective is not None:
            self.objective.restart()
            if not self.settings.carry_state:
                forget(self.optimiser)

    def __call__(self, x: Batch) -> Tensor:
        """Adapt to a batch and predict it."""
        x = inputs.unlabelled(inputs.trackable(inputs.checked(x, getattr(self.net, "key", ""))))
        size = inputs.size(x)
        if self.settings.norm != "eval" and size == 1:
            raise UserError(f"norm={self.settings.norm!r} needs at least two samples in a batch, got one")
        with torch.inference_mode(False), torch.enable_grad():
            if self.settings.per == "batch":
                return self._adapted(x)
            rows = torch.arange(size).split(1)
            return torch.cat([self._adapted(inputs.take(x, row)) for row in rows])

    def _adapted(self, x: Batch) -> Tensor:
        if self.settings.reset:
            self.reset()
        elif self.objective is not None and not self.settings.carry_state:
            forget(self.optimiser)
        if self.settings.norm == "eval":
            return self._steps(x)
        with batch_statistics(self.net):
            return self._steps(x)

    def _steps(self, x: Batch) -> Tensor:
        for _ in range(self.settings.steps if self.objective is not None else 0):
            assert self.objective is not None
            loss = self.objective.loss(self.net, x)
            if loss is None:
                break
            loss.backward()
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            return self.net(x)


def method(
    name: str,
    net: ITTT,
    settings: Settings,
    *,
    plain: nn.Module | None = None,
    clean: Sequence[Batch] = (),
    augment: Augment | None = None,
    rotation: Rotation | None = None,
    calibration: Calibration | None = None,
) -> Predict:
    """One of `METHODS` on a trained network, with the steps, lr and optimiser of `settings`.

    plain: the twin that was trained without the signal, as it is. bn: the batch's statistics alone. tent,
    eta: entropy through the norms' affine weights under the batch's statistics. inner-product: torch-ttt's
    example of IT3 for classes, all weights, under the batch's statistics. memo: instances, with `augment`.
    actmad: needs `clean` batches. rotation: needs the head that was trained with the network.
    it3: as `settings` say; it3-bn: the same under the batch's statistics; un-frozen: F is f itself (Eq. 5);
    shuffled, random: the controls. A gate and abstention need the `calibration`. Raises `UserError` for an
    unknown name and for a part that is missing.
    """
    if name in VARIANTS:
        return _it3(name, net, settings, calibration)
    own = Settings(
        steps=settings.steps, lr=settings.lr, optimiser=settings.optimiser, reset=settings.reset,
        carry_state=settings.carry_state,
    )  # fmt: skip
    norms = replace(own, norm="batch" if has_batch_norm(net) else "eval", parameters="norm")
    if name in ("none", "plain"):
        return Baseline(net if name == "none" else _given(plain, name, "plain"), None, own)
    if name == "bn":
        return Baseline(net, None, replace(own, norm="batch"))
    if name in ("tent", "eta"):
        return Baseline(net, Entropy() if name == "tent" else Reliable(), norms)
    if name == "inner-product":
        return Baseline(net, Agreement(), replace(norms, parameters="all"))
    if name == "memo":
        return Baseline(net, Marginal(_given(augment, name, "augment")), replace(own, per="instance"))
    if name == "actmad":
        return Baseline(net, Activations(copy.deepcopy(net), _given(clean, name, "clean")), own)
    if name == "rotation":
        head = copy.deepcopy(_given(rotation, name, "rotation"))
        return Baseline(net, head.eval().requires_grad_(False), own)
    raise UserError(f"no method {name!r}{suggest(name, METHODS)}; the methods are {', '.join(METHODS)}")


def _it3(name: str, net: ITTT, settings: Settings, calibration: Calibration | None) -> Predict:
    """The paper's method and its variants."""
    adapter = net.adapter(replace(settings, **VARIANTS[name]), calibration)
    return lambda x: adapter(x).prediction


def _given(part: Any, name: str, word: str) -> Any:
    """The part that a method needs."""
    if part is None or (isinstance(part, Sequence) and not part):
        raise UserError(f"method {name!r} needs {word}=")
    return part
