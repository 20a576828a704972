"""What a network predicts, and how a prediction or a label becomes the signal that is fed back.

Used by `ITTT`. A signal is the label as numbers: scaled values, or probabilities over classes.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from paperkit import UserError
from torch import Tensor
from torch.nn import functional as F

from ittt.method import GAPS, PLAIN, gap_of_distributions, gap_of_values

Kind = Literal["regression", "classes", "binary"]


class Regression:
    """Numbers: signal y / `scale`, mean squared error, gap in the units of y (l1 by default)."""

    def __init__(self, gap: str = "auto", scale: float = 1.0):
        self.gap_kind, self.scale = "l1" if gap == "auto" else gap, scale

    def from_output(self, output: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        return _with_axis(output) / self.scale

    def from_target(self, target: Tensor, outputs: int) -> Float[Tensor, "b ..."]:
        return _with_axis(target) / self.scale

    def loss(self, output: Float[Tensor, "b ..."], target: Float[Tensor, "b ..."]) -> Float[Tensor, ""]:
        if output.shape != target.shape:
            raise UserError(
                f"targets have shape {_shape(target)} and predictions {_shape(output)}: make them one"
            )
        return F.mse_loss(output, target)

    def gap(self, first: Float[Tensor, "b ..."], second: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        return gap_of_values(first, second, self.gap_kind)


class Classes:
    """Logits over axis 1: signal softmax (never the argmax) or one-hot, cross-entropy, gap js by default.

    `smoothing` spreads that share of a one-hot label over all classes, so that labels and predictions look
    alike.
    """

    def __init__(self, gap: str = "auto", smoothing: float = 0.0):
        self.gap_kind, self.smoothing = "js" if gap == "auto" else gap, smoothing

    def from_output(self, output: Float[Tensor, "b k ..."]) -> Float[Tensor, "b k ..."]:
        return output.softmax(1)

    def from_target(self, target: Tensor, outputs: int) -> Float[Tensor, "b k ..."]:
        hot = F.one_hot(target.long(), outputs).movedim(-1, 1).to(torch.get_default_dtype())
        return hot * (1 - self.smoothing) + self.smoothing / outputs

    def loss(self, output: Float[Tensor, "b k ..."], target: Tensor) -> Float[Tensor, ""]:
        return F.cross_entropy(output, target)

    def gap(self, first: Float[Tensor, "b k ..."], second: Float[Tensor, "b k ..."]) -> Float[Tensor, " b"]:
        if self.gap_kind in PLAIN:
            return gap_of_values(first, second, self.gap_kind)
        return gap_of_distributions(first.log_softmax(1), second.log_softmax(1), self.gap_kind)


class Binary:
    """Logits of independent yes-or-no outputs (masks): signal sigmoid or 0/1, cross-entropy, gap js."""

    def __init__(self, gap: str = "auto", smoothing: float = 0.0):
        self.gap_kind, self.smoothing = "js" if gap == "auto" else gap, smoothing

    def from_output(self, output: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        return _with_axis(output).sigmoid()

    def from_target(self, target: Tensor, outputs: int) -> Float[Tensor, "b ..."]:
        hot = _with_axis(target).to(torch.get_default_dtype())
        return hot * (1 - self.smoothing) + self.smoothing / 2

    def loss(self, output: Float[Tensor, "b ..."], target: Tensor) -> Float[Tensor, ""]:
        if output.shape != target.shape:
            raise UserError(
                f"targets have shape {_shape(target)} and predictions {_shape(output)}: make them one"
            )
        return F.binary_cross_entropy_with_logits(output, target.to(output.dtype))

    def gap(self, first: Float[Tensor, "b ..."], second: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
        if self.gap_kind in PLAIN:
            return gap_of_values(first, second, self.gap_kind)
        p, q = (F.logsigmoid(torch.stack([logits, -logits], 1)) for logits in (first, second))
        return gap_of_distributions(p, q, self.gap_kind)


Task = Regression | Classes | Binary
"""from_output and from_target make signals; loss is for training (Eq. 2); gap compares two predictions."""


def task_of(kind: str, gap: str, scale: float, smoothing: float) -> Task:
    """The task by name. Raises `UserError` for an unknown name, gap, scale or smoothing."""
    if gap not in ("auto", *GAPS):
        raise UserError(f"gap={gap!r}: choose from auto, {', '.join(GAPS)}")
    if kind == "regression" and gap not in ("auto", *PLAIN):
        raise UserError(f"gap={gap!r} compares distributions; for task='regression' choose l1 or l2")
    if not scale > 0 or not 0 <= smoothing < 1:
        raise UserError(f"scale must be positive ({scale:g}) and smoothing in [0, 1) ({smoothing:g})")
    if kind == "regression":
        return Regression(gap, scale)
    if kind in ("classes", "binary"):
        return (Classes if kind == "classes" else Binary)(gap, smoothing)
    raise UserError(f"task={kind!r}: choose from {', '.join(get_args(Kind))}")


def _with_axis(values: Tensor) -> Tensor:
    """(b,) as (b, 1): one output."""
    return values[:, None] if values.ndim == 1 else values


def _shape(values: Tensor) -> str:
    return str(tuple(values.shape))
