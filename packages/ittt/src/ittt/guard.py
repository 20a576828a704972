"""What is known of clean inputs, and what follows from it: gating, abstention, a harmless learning rate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from paperkit import UserError
from torch import Tensor

from ittt.inputs import Batch
from ittt.method import conformal, quantile
from ittt.settings import Settings

if TYPE_CHECKING:
    from ittt.model import ITTT


@dataclass(frozen=True)
class Calibration:
    """The gaps of held-out clean inputs, before any adaptation."""

    gaps: Float[Tensor, " n"]
    norm: str = "eval"
    """The statistics of batch norm under which they were measured: eval or batch."""

    def __post_init__(self):
        if not len(self.gaps) or not bool(torch.isfinite(self.gaps).all()):
            raise UserError("calibration needs gaps that are finite numbers, and at least one")

    def gate(self, share: float) -> float:
        """The gap up to which inputs are left alone: the `share`-quantile of clean gaps."""
        return quantile(self.gaps, share)

    def limit(self, share: float) -> float:
        """The gap above which inputs are refused: of new clean ones at most `share` are."""
        return conformal(self.gaps, share)


class Watch:
    """Mean gaps of a stream's batches, by the trained weights; tells an abrupt shift from a slow one.

    After `least` batches one stands out when its gap is above their mean by `threshold` standard deviations
    of a batch's gap (at least a hundredth of the mean); the count then begins anew.
    """

    def __init__(self, threshold: float, least: int = 5):
        self.threshold, self.least = threshold, least
        self.gaps: list[float] = []

    def stands_out(self, gap: float) -> bool:
        """Take in one more batch."""
        known = torch.tensor(self.gaps, dtype=torch.float64)
        found = False
        if len(known) >= self.least:
            deviation = max(float(known.std()), 0.01 * float(known.mean()))
            found = gap > float(known.mean()) + self.threshold * deviation
        self.gaps = [gap] if found else [*self.gaps[-999:], gap]
        return found


def harmless_lr(
    net: "ITTT",
    batches: Sequence[tuple[Batch, Tensor]],
    settings: Settings,
    error: Callable[[Tensor, Tensor], Float[Tensor, " b"]],
    grid: Sequence[float] = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5),
    most: float = 0.01,
) -> float:
    """The largest learning rate of the grid that raises the error on clean batches by at most `most`.

    `batches` are (inputs, labels) of the training distribution, `error(predictions, labels)` one number per
    sample; shifted labels are never needed. 0.0 where every rate of the grid harms more.
    """
    if not batches:
        raise UserError("the no-harm rule needs clean labelled inputs: give at least one batch")
    before = None
    for lr in sorted(grid, reverse=True):
        adapter = net.adapter(replace(settings, lr=lr))
        found = [(adapter(x), labels) for x, labels in batches]
        after = torch.cat([error(one.prediction, labels) for one, labels in found]).mean()
        if before is None:
            before = torch.cat([error(one.before, labels) for one, labels in found]).mean()
        if float(after) <= (1 + most) * float(before):
            return lr
    return 0.0


def thresholds(settings: Settings, calibration: Calibration | None) -> tuple[float | None, float | None]:
    """(gate, limit of abstention), None where the settings do without. Raises without a calibration."""
    if not settings.gate and not settings.abstain:
        return None, None
    if calibration is None:
        name = "gate" if settings.gate else "abstain"
        raise UserError(f"{name} compares with clean gaps: give calibration=net.calibrate([clean inputs])")
    scored = "batch" if settings.norm == "batch" else "eval"
    if calibration.norm != scored:
        raise UserError(
            f"norm={settings.norm!r} needs gaps measured alike: net.calibrate([...], norm={scored!r})"
        )
    gate = calibration.gate(settings.gate) if settings.gate else None
    return gate, calibration.limit(settings.abstain) if settings.abstain else None


def above(gaps: Float[Tensor, " b"], threshold: float | None) -> Bool[Tensor, " b"]:
    """Which gaps exceed the threshold; all of them where there is none."""
    return torch.ones_like(gaps, dtype=torch.bool) if threshold is None else gaps > threshold
