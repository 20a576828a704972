"""How a network is adapted at test time: one frozen dataclass, checked. Imports no torch."""

from dataclasses import dataclass
from typing import Any, Literal

from paperkit import UserError


@dataclass(frozen=True)
class Settings:
    """What happens to one test batch. The defaults are the paper's method with the safe choices on."""

    steps: int = 2
    """Optimiser steps per batch (the paper: typically 1 to 3)."""
    lr: float = 1e-3
    """Learning rate; never tune it on shifted labels."""
    optimiser: Literal["adam", "sgd", "momentum"] = "adam"
    """adam moves every weight by about lr, however small the gap; sgd moves in proportion to it."""
    parameters: str = "all"
    """What is adapted: all, norm, head, encoder, or patterns of names (a, b.*)."""

    anchor: Literal["frozen", "ema", "none"] = "frozen"
    """The second application F: frozen (Eq. 6), a moving average of f (Eq. 7), none = f itself (Eq. 5)."""
    decay: float = 0.999
    """Share of its old weights that an ema anchor keeps at each step."""
    through_anchor: bool = True
    """Let the gradient flow through F's input (Eq. 6); F's weights never move either way."""
    reset: bool = True
    """Start each batch from the trained weights; off = online."""
    carry_state: bool = False
    """Keep the optimiser's moments from batch to batch (as the public notebooks do)."""

    score: Literal["first", "second", "second-adapted"] = "first"
    """Which application is the prediction: f(x, 0), F(x, f(x, 0)), or f fed with its own prediction."""
    timing: Literal["after", "before"] = "after"
    """Predict after the last step; before = before it (only to replay the CIFAR notebook)."""
    norm: Literal["eval", "batch", "batch-frozen"] = "eval"
    """Batch norm: stored statistics; the batch's; or the batch's while adapting, with its affine frozen."""

    per: Literal["batch", "instance"] = "batch"
    """One set of weights for the whole batch, or one for each input, as in batches of one."""
    method: Literal["stacked", "rank-one", "loop"] = "stacked"
    """How instances are adapted: copies side by side, the shortcut for one step of linear layers, convs
    and norms, or one after another (graphs always are)."""
    chunk: int = 64
    """Instances whose copies are in memory at a time."""

    gate: float = 0.0
    """Leave inputs alone whose gap is below this quantile of clean gaps (0.95); 0 = off."""
    trust: float = 0.0
    """Never move further from the trained weights than this share of their norm; 0 = off."""
    early_stop: bool = False
    """Stop at the first step after which the gap did not fall, and take that step back."""
    rollback: bool = True
    """Undo an adaptation that made the gap grow, or not finite."""
    choose: Literal["adapted", "lower-gap"] = "adapted"
    """Which prediction of an input is given: the adapted one, or the one of the lower gap."""
    abstain: float = 0.0
    """Refuse inputs so that this share of clean ones is refused (split conformal); 0 = never."""
    guard: float = 0.0
    """Online: return to the trained weights when further away than this share of their norm; 0 = off."""
    detect: float = 0.0
    """Online: return to the trained weights before a batch whose gap stands out by so many deviations."""
    measure: bool = True
    """Measure the gap after adaptation: one more application of F."""

    control: Literal["none", "shuffled", "random"] = "none"
    """A control instead: F is fed another input's prediction, or each step goes in a random direction."""
    seed: int = 0
    """Seed of the random directions."""

    def __post_init__(self):
        self._check_numbers()
        for wrong, text in self._contradictions():
            if wrong:
                raise UserError(text)

    @classmethod
    def online(cls, **changes: Any) -> "Settings":
        """For a stream: nothing is reset, F is a slow average (Eq. 7), and a guard watches for collapse.

        The paper gives no values; faster averages and larger steps collapse.
        """
        return cls(**{"reset": False, "anchor": "ema", "lr": 1e-4, "guard": 0.03, **changes})

    def _check_numbers(self) -> None:
        if self.steps < 0 or self.chunk < 1:
            raise UserError(f"steps must not be negative ({self.steps}) and chunk at least 1 ({self.chunk})")
        if not 0 <= self.lr < float("inf"):
            raise UserError(f"lr must be a number from 0 on, not {self.lr}")
        for name in ("decay", "gate", "abstain"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise UserError(f"{name} is a share from 0 to 1, not {value:g}")
        for name in ("trust", "guard", "detect"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must not be negative: {getattr(self, name):g}")

    def _contradictions(self) -> list[tuple[bool, str]]:
        judged = self.rollback or self.early_stop or self.choose == "lower-gap"
        instance, shortcut = self.per == "instance", self.method == "rank-one"
        return [
            (self.timing == "before" and self.steps < 1, "timing='before' needs a step: set steps to 1"),
            (
                (self.timing == "before" or not self.measure) and judged,
                "rollback, early_stop and choose='lower-gap' compare gaps before and after: "
                "they need timing='after' and measure=True",
            ),
            (
                self.early_stop and self.norm == "batch-frozen",
                "early_stop cannot compare gaps of norm='batch-frozen', whose last pass has other statistics",
            ),
            (
                self.early_stop and self.carry_state,
                "early_stop takes a step back but not the moments of carry_state: leave one of them out",
            ),
            (
                instance and (not self.reset or self.carry_state),
                "per='instance' starts each input from the trained weights: leave reset on, carry_state off",
            ),
            (
                instance and self.norm != "eval",
                f"per='instance' has no batch statistics: set norm to 'eval', not {self.norm!r}",
            ),
            (
                instance and self.control == "shuffled",
                "control='shuffled' needs other inputs in the batch: set per to 'batch'",
            ),
            (
                shortcut and (not instance or self.steps != 1 or self.anchor != "frozen"),
                "method='rank-one' is for per='instance', steps=1 and anchor='frozen'",
            ),
            (
                shortcut and (self.optimiser == "momentum" or self.control != "none" or self.early_stop),
                "method='rank-one' knows adam and sgd, no control and no early_stop",
            ),
            (
                shortcut and (self.timing == "before" or self.score == "second-adapted"),
                "method='rank-one' predicts after its step, by the first or the frozen second application",
            ),
            (
                (self.guard > 0 or self.detect > 0) and self.reset,
                "guard and detect watch weights that are carried: set reset to False",
            ),
        ]
