"""What is known of clean inputs, and the thresholds that follow from it: gating and abstention."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from paperkit import UserError
from torch import Tensor

from ittt.method import conformal, quantile
from ittt.settings import Settings


@dataclass(frozen=True)
class Calibration:
    """The gaps of held-out clean inputs, before any adaptation."""

    gaps: Float[Tensor, " n"]

    def __post_init__(self):
        if not len(self.gaps) or not bool(torch.isfinite(self.gaps).all()):
            raise UserError("calibration needs gaps that are finite numbers, and at least one")

    def gate(self, share: float) -> float:
        """The gap up to which inputs are left alone: the `share`-quantile of clean gaps."""
        return quantile(self.gaps, share)

    def limit(self, share: float) -> float:
        """The gap above which inputs are refused: of new clean ones at most `share` are."""
        return conformal(self.gaps, share)


def thresholds(settings: Settings, calibration: Calibration | None) -> tuple[float | None, float | None]:
    """(gate, limit of abstention), None where the settings do without. Raises without a calibration."""
    if not settings.gate and not settings.abstain:
        return None, None
    if calibration is None:
        name = "gate" if settings.gate else "abstain"
        raise UserError(f"{name} compares with clean gaps: give calibration=net.calibrate([clean inputs])")
    gate = calibration.gate(settings.gate) if settings.gate else None
    return gate, calibration.limit(settings.abstain) if settings.abstain else None


def above(gaps: Float[Tensor, " b"], threshold: float | None) -> Bool[Tensor, " b"]:
    """Which gaps exceed the threshold; all of them where there is none."""
    return torch.ones_like(gaps, dtype=torch.bool) if threshold is None else gaps > threshold
