"""A made-up paper for the tests of `paperkit.run`, `cli` and `parallel`: a line is fitted.

As a script it is the paper's command. `serve` reads one JSON list [argv, folder, environment] a line, runs
each in a forked process and answers [exit status as subprocess gives it, stdout, stderr]: torch is imported
once for many commands that end by signals.

The variable TOY_SEND, such as "7:INT 7:INT", sends signals to the process itself in the middle of a step;
TOY_RANK names the one process that gets them.
"""

import json
import math
import os
import signal
import sys
import tempfile
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from paperkit import UserError, cli
from paperkit.cli import Paper, Verb
from paperkit.run import Run, RunOptions
from tyro.conf import Positional


@dataclass(frozen=True)
class Inner:
    """A nested part."""

    decay: float = 0.0
    """Weight decay."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights."""

    steps: int = 24
    """Optimiser steps."""
    batch: int = 8
    """Points per step."""
    lr: float = 0.05
    """Learning rate."""
    flip: bool = False
    """A switch."""
    net: Literal["line", "curve"] = "line"
    """A choice."""
    size: tuple[int, int] = (1, 1)
    """A pair."""
    limit: int | None = None
    """A number or none."""
    inner: Inner = field(default_factory=Inner)
    """The nested part."""
    nan_at: int = 0
    """The step at which the loss is not finite."""
    save_every: int = 5
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""
    seed: int = 0
    """Seed."""

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"--steps must be at least 1, not {self.steps}")


@dataclass(frozen=True)
class ShowConfig:
    """Shows words."""

    input: Positional[str]
    """What to show."""
    n: int = 1
    """How often."""


PAPER = Paper(
    name="toy",
    title="A Line",
    arxiv="0000.00000",
    verbs={
        "train": Verb(
            "Fit the line.",
            "toy_paper:train",
            TrainConfig,
            {
                "smoke": (TrainConfig(steps=4), "an instant"),
                "small": (TrainConfig(), "a second"),
                "paper": (TrainConfig(steps=50, lr=0.01), "two seconds"),
            },
            default="small",
            runs=True,
            describe="toy_paper:describe",
        ),
        "show": Verb("Show words.", "toy_paper:show", ShowConfig),
        "break": Verb("A bug.", "toy_paper:bug", ShowConfig),
    },
    absent={"generate": "a line generates nothing: toy train"},
)


def train(config: TrainConfig, options: RunOptions | None = None, preset: str = "") -> Path:
    """Fit the line and return the run folder."""
    import torch
    from paperkit import parallel, rng
    from paperkit.device import choose

    options = options or RunOptions()
    device = choose(options.device, options.precision)
    parallel.launch(device)
    rng.seed_everything(config.seed)
    net = torch.nn.Linear(1, 1)
    optimiser = torch.optim.Adam(net.parameters(), config.lr)
    run = Run.open("toy", "A Line", config, options, preset, config.seed, device=str(device.device))
    if not run.begins(device=device):
        return run.folder
    start = run.goes_on({"net": net}, optimiser)
    with run.guard():
        for step in run.steps(start, config.steps):
            x = parallel.shard(rng.normal((config.batch, 1), config.seed, step, "x"))
            noise = parallel.shard(rng.normal((config.batch, 1), config.seed, step, "noise"))
            optimiser.zero_grad()
            loss = (net(x) - 3 * x - 1 - 0.1 * noise).square().mean()
            loss.backward()
            parallel.average_gradients(net.parameters())
            value = float(parallel.average(loss.detach()))
            send_signals(step)
            if step == config.nan_at:
                value = math.nan
            run.check(step, value)
            optimiser.step()
            run.log(step, loss=value)
            run.say(f"step {step}")
            if step % config.save_every == 0 or run.last:
                run.save(step, {"net": net.state_dict()}, {"optimiser": optimiser.state_dict()}, config.keep)
    return run.folder


def send_signals(step: int) -> None:
    """The signals that TOY_SEND asks for at this step."""
    if os.environ.get("TOY_RANK", "0") == os.environ.get("RANK", "0"):
        for word in os.environ.get("TOY_SEND", "").split():
            at, _, name = word.partition(":")
            if int(at) == step:
                os.kill(os.getpid(), signal.Signals[f"SIG{name}"])


def describe(config: TrainConfig) -> dict[str, str]:
    """What `--dry-run` adds."""
    return {"length": f"{config.steps} steps"}


def show(config: ShowConfig) -> None:
    """Print the input."""
    for _ in range(config.n):
        print(config.input)


def bug(config: ShowConfig) -> None:
    """Fail as a bug does."""
    raise ValueError(f"a bug with {config.input}")


def warm() -> None:
    """Import what a run imports, so that forks have it already."""
    import psutil  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch
    import tqdm  # noqa: F401
    from paperkit import parallel  # noqa: F401

    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.Adam([weight]).step()


def serve() -> None:
    """Run the commands that stdin asks for, each in a forked process."""
    warm()
    for line in sys.stdin:
        argv, folder, environment = json.loads(line)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
            child = os.fork()
            if not child:
                os.chdir(folder)
                os.environ.update(environment)
                os.dup2(out.fileno(), 1)
                os.dup2(error.fileno(), 2)
                code = 1
                try:
                    code = cli.main(PAPER, argv)
                except BaseException:
                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            texts = [stream.seek(0) or stream.read() for stream in (out, error)]
        print(json.dumps([status, *texts]), flush=True)


if __name__ == "__main__":
    sys.modules["toy_paper"] = sys.modules["__main__"]
    sys.exit(serve() if sys.argv[1:] == ["serve"] else cli.main(PAPER))
