"""E6, projection: corrupted test digits through f, against a denoiser. Used by `ign reproduce projection`.

The judge's accuracy tells whether a digit is still the digit it was. The recipe was chosen on the second half
of the test set (`VALIDATION`), the figures are those of the first.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from paperkit import rng
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from ign import data
from ign.baselines import Autoencoder
from ign.classifier import Judge
from ign.config import Corruption, TrainConfig
from ign.corrupt import corrupt
from ign.experiments import MNIST, Figures, Yardstick, column, remember, trained
from ign.generate import IGN

HELD_OUT, VALIDATION = slice(0, 5000), slice(5000, 10_000)
STRENGTHS: dict[Corruption, tuple[float, ...]] = {
    "noise": (0.15, 0.3, 0.5),
    "mask": (0.25, 0.375, 0.5),
    "patches": (1, 3, 6),
    "blur": (1, 2, 3),
    "sketch": (5, 9, 21),
}
"""Of the claim; for noise those of the spec."""
LOUD = (1.0, 1.5, 2.0)
"""Noise at which the judge itself fails on the corrupted image; reported beside."""
SUFFICIENT = 0.05
"""Level of McNemar's one-sided test."""
DENOISER_STEPS = 1500


def corruptions(x: Float[Tensor, "n 1 h w"]) -> dict[str, Float[Tensor, "n 1 h w"]]:
    """Every corruption at every strength, and inverted contrast, keyed kind_strength."""
    found = {
        f"{kind}_{strength:g}": corrupt(x, kind, strength)
        for kind, strengths in STRENGTHS.items()
        for strength in (*strengths, *(LOUD if kind == "noise" else ()))
    }
    return found | {"inverted_1": -x}


def mcnemar(before: Bool[Tensor, " n"], after: Bool[Tensor, " n"]) -> float:
    """Exact one-sided p that `after` is right more often than `before`, on the same images."""
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    if gained + lost == 0:
        return 1.0
    tested: Any = stats.binomtest(gained, gained + lost, alternative="greater")
    return float(tested.pvalue)


def examine(
    project: Callable[[Tensor, int], Tensor],
    x: Float[Tensor, "n 1 h w"],
    labels: Tensor,
    judge: Judge,
    kinds: tuple[str, ...] = (),
) -> Figures:
    """Accuracy before and after 1, 2, 3 applications, p of a gain, and distance to x before and after.

    Keys are figure_kind_strength; clean images are the kind "clean".
    """
    found: Figures = {}
    for name, y in ({"clean": x} | corruptions(x)).items():
        if kinds and name.split("_")[0] not in kinds:
            continue
        before = judge.probabilities(y).argmax(1) == labels
        found[f"before_{name}"] = float(before.float().mean())
        found[f"rms_before_{name}"] = _rms(y, x)
        for k in (1, 2, 3):
            projected = project(y, k)
            after = judge.probabilities(projected).argmax(1) == labels
            found[f"after{k}_{name}"] = float(after.float().mean())
            found[f"rms{k}_{name}"] = _rms(projected, x)
            if k == 1:
                found[f"p_{name}"] = mcnemar(before, after)
    return found


def _rms(y: Tensor, x: Tensor) -> float:
    return float((y - x).square().mean().sqrt())


class Restorer(Autoencoder):
    """A denoising auto-encoder for one corruption, each batch at one of its strengths."""

    kind: Corruption = "noise"

    def learn(self, x: Float[Tensor, "b c h w"], step: int, weights) -> None:
        strengths = (*STRENGTHS[self.kind], *(LOUD if self.kind == "noise" else ()))
        pick = int(torch.randint(len(strengths), (), generator=rng.generator(self.config.seed, step, "pick")))
        y = corrupt(x, self.kind, strengths[pick], self.config.seed * 1_000_000 + step)
        (self.nets[0](y, ("x",)) - x).square().mean().backward()
        self.optimisers[0].step()

    @torch.no_grad()
    def restore(self, y: Tensor, k: int) -> Tensor:
        """`k` passes, with the statistics of batches of 250."""
        for _ in range(k):
            y = torch.cat([self.averages[0](part, ("x",)) for part in y.split(250)])
        return y


def restorer(kind: Corruption, config: TrainConfig, train_set: data.Images) -> Restorer:
    """The trained denoiser of one corruption."""
    method = type(f"Restorer of {kind}", (Restorer,), {"kind": kind})(config, train_set.shape)
    for step in tqdm(range(1, DENOISER_STEPS + 1), desc=f"denoiser of {kind}", leave=False, disable=None):
        method.step(data.batch(train_set, config, step), step, DENOISER_STEPS)
    return method


def again(ign: IGN, y: Tensor, k: int) -> Tensor:
    """f applied `k` times with the statistics of data each time: f(y) is meant to be a digit."""
    for _ in range(k):
        y = ign.apply(y, 1, "x")
    return y
