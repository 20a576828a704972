"""scikit-learn's digits under noise (spec E2, E3): the smallest images, with a perceptron and a conv net.

Always there, and small enough for twenty seeds in a minute or two. Used by the claims over every task.
"""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from paperkit import rng
from paperkit.data import digits, permutation
from torch import Tensor, nn

from ittt.beside import Pair, train
from ittt.inject import extra_inputs
from ittt.model import ITTT
from ittt.networks import Perceptron
from ittt.protocol import FIRST, PAPER, PRESENCE, Task, Trial

CLASSES, SIGMAS = 10, (0.0, 0.5, 1.0)
"""Noise in standard deviations of the pixels: none, and two levels at which most digits can be told."""
LEVELS = tuple(f"{sigma:g}" for sigma in SIGMAS)
SETTINGS = replace(PAPER, steps=2)
"""The paper's method on images as the spec fixed it (A12)."""
EPOCHS, BATCH, CLEAN = 20, 32, 150
"""Images kept for calibration; 1,147 are learned from, 500 tested on."""


class Convs(nn.Module):
    """Two 3x3 convs, the second halving, and a linear layer: for images of 8x8."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 16, CLASSES),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "b c 8 8"]) -> Float[Tensor, "b k"]:
        return self.layers(x)


def tasks() -> list[Task]:
    """The perceptron, fed by concatenation, and the conv net, fed by channels."""
    return [task("digits mlp"), task("digits conv")]


def task(name: str) -> Task:
    """One of the two networks."""
    return Task(
        name=name, group=name, data="digits, 1,147 training and 500 test images",
        trials=partial(trials, name), error=wrong, unit="%", clean="0", shifted=LEVELS[1:],
        anchor=LEVELS[1:], sizes=(64, 8), settings=SETTINGS, beside=True,
    )  # fmt: skip


def wrong(logits: Float[Tensor, "b k"], labels: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
    """100 where the answer is another class: the mean is an error in per cent."""
    return 100.0 * (logits.argmax(1) != labels)


@cache
def trials(name: str, seeds: int) -> list[Trial]:
    """Networks of so many seeds, each trained on a part of its own, and the test images under noise."""
    used = range(FIRST, FIRST + seeds)
    parts = [rows(seed, flat=name.endswith("mlp")) for seed in used]
    x, y = (torch.stack([part[key] for part in parts]) for key in ("x", "y"))
    nets = train([build(name, seed) for seed in used], x, y, (EPOCHS,), BATCH, first=FIRST)[EPOCHS]
    return [
        Trial(net, plain, (part["x_clean"], part["y_clean"]), noisy(part["x_test"], part["y_test"], seed))
        for seed, part, (net, plain) in zip(used, parts, nets, strict=True)
    ]


def build(name: str, seed: int) -> Pair:
    """A network and its plain twin at step 0."""
    wide = extra_inputs(CLASSES, PRESENCE)
    words: dict[str, Any] = {"outputs": CLASSES, "task": "classes", "presence": PRESENCE}
    rng.seed_everything(seed)
    if name.endswith("mlp"):
        net = ITTT(Perceptron(64 + wide, (128, 64), CLASSES), "concat", **words)
        rng.seed_everything(seed, "plain")
        return net, Perceptron(64, (128, 64), CLASSES)
    net = ITTT(Convs(1 + wide), "channel", **words)
    rng.seed_everything(seed, "plain")
    return net, Convs(1)


def rows(seed: int, flat: bool) -> dict[str, Tensor]:
    """Images in standard deviations of all training pixels, with labels: to learn from, clean, to test on."""
    (x, y), (x_test, y_test) = digits("train"), digits("test")
    x, x_test = ((part - x.mean()) / x.std() for part in (x, x_test))
    if flat:
        x, x_test = x.flatten(1), x_test.flatten(1)
    order = torch.from_numpy(permutation(len(x), seed, "calibration"))
    clean, kept = order[:CLEAN].sort().values, order[CLEAN:].sort().values
    return {
        "x": x[kept], "y": y[kept], "x_clean": x[clean], "y_clean": y[clean],
        "x_test": x_test, "y_test": y_test,
    }  # fmt: skip


def noisy(x: Tensor, y: Tensor, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """By level: the images with Gaussian noise; a stronger level is more of the same noise."""
    noise = rng.normal(tuple(x.shape), seed, 0, "noise")
    return {name: (x + sigma * noise, y) for name, sigma in zip(LEVELS, SIGMAS, strict=True)}
