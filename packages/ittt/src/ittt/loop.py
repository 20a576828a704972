"""The loop that trains the networks of every task: steps, and in between tests, lines and checkpoints."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from paperkit import parallel
from paperkit.run import Run
from torch import Tensor


@runtime_checkable
class Pace(Protocol):
    """What every training configuration says of its loop."""

    @property
    def batch(self) -> int: ...
    @property
    def log_every(self) -> int: ...
    @property
    def test_every(self) -> int: ...
    @property
    def save_every(self) -> int: ...
    @property
    def keep(self) -> int: ...


def go_through(
    run: Run,
    config: Pace,
    optimiser: torch.optim.Optimizer,
    start: int,
    steps: int,
    take: Callable[[int], dict[str, float]],
    examine: Callable[[], dict[str, float]],
    weights: Callable[[], Mapping[str, Mapping[str, Tensor]]],
    what: str,
) -> None:
    """Take the steps start + 1 to `steps` of a run.

    `take(step)` makes one and returns its losses by name, `examine()` further figures, `weights()` what a
    checkpoint keeps; `what` is the word for the samples that are counted per second.
    """
    with run.guard():
        seen, since = 0, time.monotonic()
        for step in run.steps(start, steps):
            found = take(step)
            seen += config.batch

            # Once in a while: a test, a line, a checkpoint.
            telling, testing, saving = (
                step % every == 0 or step == steps
                for every in (config.log_every, config.test_every, config.save_every)
            )
            if testing:
                found |= examine()
            if telling or testing:
                run.log(step, **found)
                speed = seen / max(time.monotonic() - since, 1e-9)
                told = "  ".join(f"{name} {value:.4g}" for name, value in found.items())
                run.say(f"{step}/{steps}  {told}  {speed:,.0f} {what}/s  {run.eta(step, steps, start)}")
            if saving or run.last:
                run.save(step, weights(), {"optimiser": optimiser.state_dict()}, config.keep)


def descend(
    optimiser: torch.optim.Optimizer,
    losses: Mapping[str, Float[Tensor, ""]],
    check: Callable[..., None],
) -> dict[str, float]:
    """One step down the sum of the losses, over all processes; their values by name.

    `check(*values)` raises before the step where one of them is not finite.
    """
    optimiser.zero_grad(set_to_none=True)
    torch.stack([*losses.values()]).sum().backward()
    parallel.average_gradients([p for group in optimiser.param_groups for p in group["params"]])
    values = parallel.average(torch.stack([loss.detach() for loss in losses.values()])).tolist()
    check(*values)
    optimiser.step()
    return dict(zip(losses, values, strict=True))


def decay(optimiser: torch.optim.Optimizer, lr: float, step: int, steps: int) -> None:
    """The learning rate of a step (the first is 1): from `lr` to 0 along a cosine."""
    for group in optimiser.param_groups:
        group["lr"] = lr * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
