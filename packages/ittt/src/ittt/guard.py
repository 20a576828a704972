"""What is known of clean inputs, and what follows from it: gating, abstention, a harmless learning rate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
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


RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Learning rates that the no-harm rule tries, as shares of the one that the settings have."""
MOST, SURE, STIR = 0.01, 0.95, 0.05
"""The harm that it allows, as a share of the clean error; how sure it must be that harm stays below; and by
how much of the error the errors of clean inputs may change on average, for better or worse."""


def harmless(
    before: Float[Tensor, " n"], after: Float[Tensor, " n"], most: float = MOST, sure: float = SURE
) -> bool:
    """Whether errors of the same clean inputs show that their mean rose by at most `most` of what it was.

    The upper end of the one-sided interval of the mean of after - (1 + most) before must not be above 0, and
    the mean of |after - before| not above `STIR` of the error, so that what the sample missed is small too.
    Of answers that are right or wrong none may turn wrong, and the share that then still may (at n answers
    3 / n, with 95 % confidence) must be within the harm allowed: it takes many answers to show that.
    """
    if len(torch.cat([before, after]).unique()) <= 2:
        unseen = (1 - (1 - sure) ** (1 / len(before))) * float(torch.maximum(before, after).max())
        return bool((after <= before).all()) and unseen <= most * float(before.mean())
    if len(before) < 2:
        return False
    rise = (after - (1 + most) * before).double()
    width = NormalDist().inv_cdf(sure) * float(rise.std()) / len(rise) ** 0.5
    stir = float((after - before).abs().mean())
    return float(rise.mean()) + width <= 0 and stir <= STIR * float(before.mean())


def harmless_lr(
    net: "ITTT",
    batches: Sequence[tuple[Batch, Tensor]],
    settings: Settings,
    error: Callable[[Tensor, Tensor], Float[Tensor, " b"]],
    shares: Sequence[float] = RATES,
    most: float = MOST,
    sure: float = SURE,
) -> float:
    """The largest learning rate, up to that of `settings`, that clean inputs show to be `harmless`.

    `batches` are (inputs, labels) of the training distribution, in batches as they will be adapted to, and
    `error(predictions, labels)` is one number per sample; shifted labels are never needed. Rates are tried
    from the smallest up, until one fails: a fixed sequence of tests needs no correction for their number.
    0.0 where the smallest fails.
    """
    if not batches:
        raise UserError("the no-harm rule needs clean labelled inputs: give at least one batch")
    found, settings = 0.0, replace(settings, abstain=0.0)  # which changes no prediction
    scored = "batch" if settings.norm == "batch" else "eval"
    calibration = net.calibrate([x for x, _ in batches], scored) if settings.gate else None
    for lr in (share * settings.lr for share in sorted(shares)):
        adapter = net.adapter(replace(settings, lr=lr), calibration)
        pairs = [(adapter(x), labels) for x, labels in batches]
        before, after = (
            torch.cat([error(getattr(one, name), labels) for one, labels in pairs])
            for name in ("before", "prediction")
        )
        if not harmless(before, after, most, sure):
            break
        found = lr
    return found


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
