"""Training by `--task`: one step, a plain loop for the claims, and the loop of a run folder."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from paperkit import UserError, parallel, report
from paperkit.device import choose
from paperkit.run import Run, RunOptions
from torch import Tensor, nn

from ittt.baselines import method
from ittt.guard import Calibration, harmless_lr
from ittt.images import ROWS, SUBTITLE, TITLE, batches, parameters
from ittt.loop import decay, descend, go_through
from ittt.model import ITTT
from ittt.settings import Settings
from ittt.task_config import TaskConfig

Loss = Callable[[int], Float[Tensor, ""]]
"""The loss of a step, counted from 1."""


class Work(ABC):
    """What a task is made of: the data of a configuration, its network, and how the two are judged."""

    config: TaskConfig
    net: ITTT
    data: str
    """In words; a stand-in is named as such."""
    network: str
    steps: int
    clean: tuple[Tensor, Tensor]
    """Held-out inputs and labels: for tests while training; the inputs also for calibration."""
    metric: str
    """What `score` is, with its unit."""
    best: float
    """The score of a perfect prediction."""

    @abstractmethod
    def loss(self, step: int) -> Float[Tensor, ""]:
        """The training loss of a step, counted from 1."""

    @abstractmethod
    def tests(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Condition -> test inputs and labels."""

    @abstractmethod
    def score(self, prediction: Tensor, y: Tensor) -> Float[Tensor, " n"]:
        """One number for each sample."""

    @abstractmethod
    def adapt(self, folder: Path, out: Path, size: int, settings: Settings) -> list[dict[str, Any]]:
        """What comes of every image file of a folder: one row each; masks are written beside `out`."""

    def calibration(self, settings: Settings) -> Calibration | None:
        """The gaps of the held-out inputs, where the settings need them."""
        if not settings.gate and not settings.abstain:
            return None
        parts = self.clean[0].to(self.net.neutral.device).split(100)
        return self.net.calibrate(parts, "batch" if settings.norm == "batch" else "eval")

    def without_harm(self, settings: Settings, size: int) -> Settings:
        """The settings with the learning rate of the no-harm rule, for batches of `size` (0: all inputs)."""

        def error(prediction: Tensor, y: Tensor) -> Float[Tensor, " n"]:
            return (self.score(prediction.cpu(), y) - self.best).abs()

        x, y = self.clean
        parts = zip(x.to(self.net.neutral.device).split(size or len(x)), y.split(size or len(y)), strict=True)
        return replace(settings, lr=harmless_lr(self.net, list(parts), settings, error))

    def measured(self, name: str, settings: Settings, size: int) -> dict[str, float]:
        """Condition -> mean score of a method on the test inputs, in batches of `size`."""
        asked = replace(settings, norm="batch") if name == "it3-bn" else settings
        predict = method(name, self.net, settings, calibration=self.calibration(asked))
        device, found = self.net.neutral.device, {}
        for where, (x, y) in self.tests().items():
            predictions = torch.cat([predict(part) for part in batches(x.to(device), size)]).cpu()
            found[where] = float(self.score(predictions, y).mean())
        return found


def finite(*losses: float) -> None:
    """Raise `UserError` unless all of them are."""
    if not all(map(math.isfinite, losses)):
        raise UserError("the loss is not finite; try a lower --lr")


def fit(net: nn.Module, loss: Loss, steps: int, lr: float) -> None:
    """Train by Adam, without a run folder, and leave the network ready to be asked."""
    optimiser = torch.optim.Adam(net.parameters(), lr, fused=True)
    net.train()
    for step in range(1, steps + 1):
        decay(optimiser, lr, step, steps)
        descend(optimiser, {"loss": loss(step)}, finite)
    net.eval().requires_grad_(False)


def train(work: Work, options: RunOptions, preset: str = "") -> Path:
    """Train the network of a task, adapt it to its test inputs, and return the run folder.

    With `options.resume` go on with a run that stopped; the weights depend on the configuration alone. Raises
    `UserError` for bad input and when a loss is not finite.
    """
    config, net = work.config, work.net
    device = choose(options.device, options.precision)
    parallel.launch(device)
    if device.device.type == "cpu":
        torch.set_num_threads(1)  # its layers are too small to share
    net.to(device.device)
    optimiser = torch.optim.Adam(net.parameters(), config.lr)
    run = Run.open(
        "ittt", TITLE, config, options, preset, config.seed,
        device=str(device.device), precision=device.precision, parameters=parameters(net), data=work.data,
    )  # fmt: skip
    if not run.begins(
        device=device,
        data=f"{work.data}; {len(work.clean[0])} held out",
        network=f"{work.network}, {parameters(net):,} parameters",
    ):
        return run.folder

    start = run.goes_on({"net": net}, optimiser)

    def step_of(step: int) -> dict[str, float]:
        decay(optimiser, config.lr, step, work.steps)
        with device.autocast():
            loss = work.loss(step)
        return descend(optimiser, {"loss": loss}, partial(run.check, step))

    net.train()
    look = partial(examine, work)
    go_through(
        run, config, optimiser, start, work.steps, step_of, look, lambda: {"net": net.state_dict()}, "images"
    )
    if run.main:
        net.eval().requires_grad_(False)
        size, settings = config.adapt_batch, config.adapt
        if config.no_harm:
            settings = work.without_harm(settings, size)
            run.say(f"no harm   lr {settings.lr:g}")
        told = f"{work.metric}, batches of {size}\n" + table(
            {words: work.measured(name, of_row(name, settings), size) for name, words in ROWS.items()}
        )
        run.say(told)
        run.say(f"report    {report.write(run.folder, TITLE, SUBTITLE, notes=told)}")
    return run.folder


def of_row(name: str, settings: Settings) -> Settings:
    """The settings of one of `ROWS`: only the row of batch statistics has them."""
    return replace(settings, norm="eval") if name == "it3" else settings


@torch.no_grad()
def examine(work: Work) -> dict[str, float]:
    """Mean score and mean gap on the held-out inputs, in evaluation mode."""
    net, (x, y) = work.net, work.clean
    was, device = net.training, net.neutral.device
    net.eval()
    parts = [(net(part.to(device)), net.gap(part.to(device))) for part in x.split(100)]
    predictions, gaps = (torch.cat(kind).cpu() for kind in zip(*parts, strict=True))
    net.train(was)
    return {"score": float(work.score(predictions, y).mean()), "gap": float(gaps.mean())}


def table(found: dict[str, dict[str, float]]) -> str:
    """Rows of scores by condition as text."""
    names: Sequence[str] = list(next(iter(found.values())))
    width = max(11, *(len(name) + 2 for name in names))
    lines = [" " * 26 + "".join(f"{name:>{width}}" for name in names)]
    for words, values in found.items():
        lines.append(f"{words:26}" + "".join(f"{values[name]:{width}.1f}" for name in names))
    return "\n".join(lines)
