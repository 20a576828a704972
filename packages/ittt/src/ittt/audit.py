"""`ittt audit`: a published notebook's setting beside the corrected one, one difference at a time.

Facts are those of nikitadurasov/ittt, exps/tabular and exps/mnist (the latter by `official`). What a reader
of the notebook's picture sees is the first row against the plain network; what adaptation does is "adapted"
against "not adapted" of the same row.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from paperkit.data import open_table
from paperkit.run import write_json
from torch import Tensor

from ittt import data
from ittt.beside import train
from ittt.config import AuditConfig, TrainConfig
from ittt.protocol import facts
from ittt.settings import Settings
from ittt.train import build, mean_error

LEVELS, BATCHES = (0.0, 0.2), (2, 5, 8)
EPOCHS = 30
PUBLISHED = {"adapted, batch 2, 0 missing": 0.264, "adapted, batch 2, 0.2 missing": 0.300,
             "adapted, batch 5, 0.2 missing": 0.274, "adapted, batch 8, 0.2 missing": 0.291}  # fmt: skip
"""Mean absolute errors in the notebook's output, in standard deviations of all labels, one seed."""


@dataclass(frozen=True)
class Replay:
    """What the tabular notebook does; a correction changes one field."""

    neutral: float = 50.0
    """Value that stands for "no label", in standard deviations: 50 is far outside the labels."""
    carry: bool = True
    """Adam's moments go from batch to batch."""
    scale: Literal["all", "training"] = "all"
    """Rows whose mean and spread standardise the table."""
    split: Literal["last", "random"] = "last"
    """The last tenth of the rows is the test set, or a random one (with training statistics)."""
    steps: int = 2
    lr: float = 1e-4

    def settings(self) -> Settings:
        """As the engine takes them."""
        return Settings(steps=self.steps, lr=self.lr, carry_state=self.carry, rollback=False, measure=False)


WAYS = {
    "the notebook": Replay(),
    "fresh Adam": Replay(carry=False),
    "neutral value 0": Replay(neutral=0.0),
    "training statistics": Replay(scale="training"),
    "random splits": Replay(split="random", scale="training"),
    "3 steps of 1e-3": Replay(steps=3, lr=1e-3),
    "all corrected": Replay(0.0, False, "training", "random", 3, 1e-3),
}


def audit(config: AuditConfig) -> Path:
    """Print what every difference is worth, and write it as JSON; returns the path."""
    torch.set_num_threads(1)
    found = boston(config.data, config.seeds) if config.notebook == "boston" else mnist(config.seeds)
    path = Path(config.out or f"audit-{config.notebook}.json")
    write_json(path, found)
    print(path)
    return path


# ---- the tabular notebook ----------------------------------------------------------------------------------


def boston(name: str, seeds: int) -> dict[str, Any]:
    """Every way on networks of the seeds 0, 1, …: mean absolute errors of the three rows, and the change."""
    print(f"{name}, {seeds} seeds: mean absolute error in standard deviations, and its change by adaptation")
    head = "".join(
        f"{f'{100 * level:g} % missing, batch {size}':>28}" for level in LEVELS for size in BATCHES
    )
    print(f"{'':22}{'plain':>8}{'not adapted':>13}{head}")
    found: dict[str, Any] = {"data": name, "seeds": seeds, "published": PUBLISHED, "ways": {}}
    for words, way in WAYS.items():
        cells = errors(name, way, seeds)
        changes = {key: facts([a - b for a, b in zip(values, cells[_base(key)], strict=True)])
                   for key, values in cells.items() if key.startswith("adapted")}  # fmt: skip
        found["ways"][words] = {"way": vars(way), "errors": cells, "changes": changes}
        print(f"{words:22}" + _row(cells, changes))
    return found


def _base(key: str) -> str:
    """The figure that an adapted one is compared with."""
    return f"not adapted, {key.rpartition(', ')[2]}"


def _row(cells: dict[str, list[float]], changes: dict[str, dict[str, float]]) -> str:
    first = [
        sum(values) / len(values) for values in (cells[f"{r}, 0 missing"] for r in ("plain", "not adapted"))
    ]
    told = [f"{change['mean']:+.3f} ± {change['se']:.3f}" for change in changes.values()]
    return f"{first[0]:8.3f}{first[1]:13.3f}" + "".join(f"{text:>28}" for text in told)


def errors(name: str, way: Replay, seeds: int) -> dict[str, list[float]]:
    """Row, batch size and share missing, in words -> error of each seed."""
    parts = [rows(name, way, seed) for seed in range(seeds)]
    configs = [TrainConfig(seed=seed, neutral=way.neutral, presence=False) for seed in range(seeds)]
    pairs = [build(config, parts[0][0].shape[1]) for config in configs]
    x, y = (torch.stack([part[number] for part in parts]) for number in (0, 1))
    found: dict[str, list[float]] = {}
    for seed, (net, plain) in enumerate(train(pairs, x, y, (EPOCHS,))[EPOCHS]):
        _, _, x_test, y_test = parts[seed]
        for level in LEVELS:
            shifted = data.drop(x_test, level, seed)
            asked = {"plain": [plain(shifted)], "not adapted": [net(shifted)]}
            for size in BATCHES:
                adapter = net.adapter(way.settings())
                asked[f"adapted, batch {size}"] = [adapter(part).prediction for part in shifted.split(size)]
            for row, answers in asked.items():
                error = mean_error(torch.cat(answers), y_test)
                found.setdefault(f"{row}, {level:g} missing", []).append(error)
    return found


def rows(name: str, way: Replay, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, y, x_test, y_test), standardised."""
    table = open_table(name)
    if way.split == "random":
        part = table.split(seed % len(table.test_rows))
        x, y, x_test, y_test = part.x_train, part.y_train, part.x_test, part.y_test
    else:
        cut = int(0.9 * len(table))
        x, y, x_test, y_test = table.x[:cut], table.y[:cut], table.x[cut:], table.y[cut:]
    whole_x, whole_y = (x, y) if way.scale == "training" else (table.x, table.y)
    spread = whole_x.std(0)
    scale = data.Scale(
        whole_x.mean(0), torch.where(spread > 0, spread, 1.0), whole_y.mean()[None], whole_y.std()[None]
    )
    labels, test_labels = (scale.y(part[:, None]).float() for part in (y, y_test))
    return scale.x(x).float(), labels, scale.x(x_test).float(), test_labels


# ---- the MNIST notebook ------------------------------------------------------------------------------------


def mnist(seeds: int) -> dict[str, Any]:
    """Errors of the replay and of each correction, with noise and clean; minutes per seed.

    The rows are those of the claim `official-mnist`, whose file is the table of causes.
    """
    official = importlib.import_module("ittt.official")
    each = [official.kept(seed) for seed in range(seeds)]
    found: dict[str, Any] = {"data": "MNIST", "seeds": seeds, "errors": {}}
    for where in ("noise", "clean"):
        print(f"error in per cent, {where}, {seeds} seeds: mean ± standard error")
        for row in each[0][where]:
            values = found["errors"][f"{row}, {where}"] = [one[where][row] for one in each]
            told = facts(values)
            print(f"  {row:34}{told['mean']:8.2f} ± {told['se']:.2f}")
    return found
