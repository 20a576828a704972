"""The common protocol of all claims (spec 8): networks by seed, methods side by side, paired differences.

A `Task` is a data set with a network and its shifts; its `Trial`s are the trained networks, one per seed,
with what each is tested on. `measure` runs methods over them. Claims over every task (`across`) take what
`tasks` finds in `GROUPS`.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from paperkit import UserError, results, suggest
from torch import Tensor, nn

from ittt import inputs
from ittt.baselines import method
from ittt.guard import Calibration
from ittt.inputs import Batch
from ittt.model import ITTT
from ittt.settings import Settings

PAPER = Settings(steps=3, lr=1e-3, rollback=False, measure=False)
"""The paper's method on tables as the spec fixed it (A12), without this package's safeguards."""

GROUPS: dict[str, str] = {}
"""Tasks of the claims over every task: a group's name -> "module:function", which returns its tasks."""


@dataclass(frozen=True)
class Trial:
    """One trained network of a task, and what it is tested on."""

    net: ITTT
    plain: nn.Module | None
    """Its twin, trained without the signal."""
    clean: tuple[Batch, Tensor]
    """Held-out inputs and labels of the training distribution; labels are for the no-harm rule alone."""
    tests: Mapping[str, tuple[Batch, Tensor]]
    """By level of the shift: test inputs, and labels that only errors are computed from."""


@dataclass(frozen=True)
class Task:
    """A data set, a network and its shifts."""

    name: str
    group: str
    data: str
    """In words, with its numbers of rows or images."""
    trials: Callable[[int], Sequence[Trial]]
    """Number of seeds -> one trial for each of the seeds 0, 1, …"""
    error: Callable[[Tensor, Tensor], Float[Tensor, " b"]]
    """(predictions, labels) -> error of each sample, in `unit`."""
    unit: str
    clean: str
    """The level of `Trial.tests` without a shift."""
    shifted: tuple[str, ...]
    """Levels that claims about shifts are made of."""
    batch: int
    """Test inputs that are adapted to together."""
    settings: Settings = PAPER
    """How the method adapts here (spec A12)."""
    stand_in: bool = False


def tasks(names: Iterable[str] = ()) -> dict[str, Task]:
    """All tasks of `GROUPS` by name, or the named ones (of tasks or groups). Raises for an unknown name."""
    found: dict[str, Task] = {}
    for place in GROUPS.values():
        module, _, function = place.partition(":")
        found |= {task.name: task for task in getattr(importlib.import_module(module), function)()}
    wanted = list(names) or list(found)
    for name in wanted:
        if name not in found and name not in GROUPS:
            known = [*GROUPS, *found]
            raise UserError(f"no task {name}{suggest(name, known)}; there are {', '.join(known)}")
    return {name: task for name, task in found.items() if name in wanted or task.group in wanted}


# ---- running methods ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One row of a table of results: a method of `baselines` with its settings."""

    method: str
    settings: Settings


def ways(settings: Settings, *methods: str) -> dict[str, Way]:
    """Methods under the same settings, by their own names."""
    return {name: Way(name, settings) for name in methods}


def measure(task: Task, trial: Trial, way: Way, level: str, size: int = 0) -> float:
    """Mean error of a method on one level of a trial, in batches of `size` (0: the task's own)."""
    x, y = trial.tests[level]
    settings, size = way.settings, size or task.batch
    if size == 1 and way.method not in ("none", "plain") and settings.norm == "eval":
        # The same as batches of one, side by side.
        settings, size = replace(settings, per="instance"), inputs.size(x)
    calibration = trial.net.calibrate([trial.clean[0]]) if settings.gate or settings.abstain else None
    predict = method(way.method, trial.net, settings, plain=trial.plain, calibration=calibration)
    found = torch.cat([predict(part) for part in batches(x, size)])
    return float(task.error(found, y).mean())


def batches(x: Batch, size: int) -> list[Batch]:
    """A batch cut into parts of `size` samples; the last may be smaller."""
    return [inputs.take(x, rows) for rows in torch.arange(inputs.size(x)).split(size)]


Table = dict[str, dict[str, list[float]]]
"""Method -> level -> mean error of each seed."""


def table(
    task: Task, trials: Sequence[Trial], rows: Mapping[str, Way], levels: Sequence[str], size: int = 0
) -> Table:
    """Every method at every level, seed by seed."""
    return {
        name: {level: [measure(task, trial, way, level, size) for trial in trials] for level in levels}
        for name, way in rows.items()
    }


def calibrated(trial: Trial) -> Calibration:
    """The gaps of a trial's clean inputs."""
    return trial.net.calibrate([trial.clean[0]])


# ---- differences -------------------------------------------------------------------------------------------


def relative(after: Sequence[float], before: Sequence[float]) -> list[float]:
    """Change of an error in per cent of what it was, seed by seed; negative where it fell."""
    return [100 * (a - b) / b if b else 100 * float(a > 0) for a, b in zip(after, before, strict=True)]


def pooled(parts: Sequence[Sequence[float]]) -> list[float]:
    """The mean over parts (levels, tasks) of each seed."""
    return [sum(values) / len(values) for values in zip(*parts, strict=True)]


def facts(differences: Sequence[float]) -> dict[str, float]:
    """Mean, standard error, mean in standard errors (t) and bootstrap 95 % interval of paired differences."""
    found = results.paired(differences, [0.0] * len(differences))
    return {"mean": found.mean, "se": found.se, "t": found.t, "low": found.low, "high": found.high}
