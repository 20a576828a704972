"""Airfoils and the stand-in for cars as tasks of the claims over every task.

Their shift is one of labels: shapes better than any learned from (see `graph_claims`).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial

from jaxtyping import Float
from paperkit import UserError
from torch import Tensor

from ittt import airfoils, bodies, graph_data, graphs, inject, loop, meshes, model
from ittt import task as task_module
from ittt.graph_claims import PAPER
from ittt.graph_claims import RECIPES as WHOLE
from ittt.graph_config import GraphConfig
from ittt.kept import kept
from ittt.protocol import Task, Trial
from ittt.train import row_error

RECIPES: dict[str, GraphConfig] = {
    "airfoils": replace(WHOLE["airfoils"], shapes=1_000, test=100),
    "cars": replace(WHOLE["cars"], shapes=500, test=100),
}
"""Fewer shapes than the claims `airfoils` and `cars` have: here every safeguard is tried on them."""
BATCHES: dict[str, tuple[int, ...]] = {"airfoils": (16, 4), "cars": (4, 2)}
"""The paper's largest batch, and a smaller one."""
MODULES = (graphs, graph_data, airfoils, bodies, meshes, inject, loop, model, task_module)
"""What decides their networks' weights."""
SEEDS = 5
"""At most so many networks of a task, as for images."""
INSIDE, OUTSIDE = "inside", "outside"
"""The levels: shapes from the range that is learned from, and beyond it."""


def tasks() -> list[Task]:
    """Those of the two sets whose shapes can be made here (airfoils need an extra of the package)."""
    return [graph_task(name) for name in RECIPES if _at_hand(name)]


def _at_hand(name: str) -> bool:
    try:
        graphs.load(RECIPES[name])
    except UserError:
        return False
    return True


def graph_task(name: str) -> Task:
    """One set of shapes."""
    shapes, parts = graphs.load(RECIPES[name])
    return Task(
        name=name, group=name, data=f"{shapes.name}; {graphs.words_of_parts(parts)}",
        trials=partial(trials, name), error=partial(missed, shapes.unit), unit="of the label",
        clean=INSIDE, shifted=(OUTSIDE,), anchor=(), sizes=BATCHES[name], settings=PAPER,
        stand_in=shapes.stand_in,
    )  # fmt: skip


def missed(
    unit: float, predictions: Float[Tensor, "b 1"], labels: Float[Tensor, "b 1"]
) -> Float[Tensor, " b"]:
    """Absolute error of each shape in the labels' own units."""
    return unit * row_error(predictions, labels)


def trials(name: str, seeds: int) -> Sequence[Trial]:
    """Networks of the seeds 0, 1, … (at most `SEEDS`) and their shapes."""
    return [trial(name, seed) for seed in range(min(seeds, SEEDS))]


@cache
def trial(name: str, seed: int) -> Trial:
    """A network of this set, trained by its recipe."""
    config = replace(RECIPES[name], seed=seed)
    trained = graphs.restored(kept(config, name, MODULES, graphs.train))
    shapes, parts = graphs.load(config)
    clean, inside, outside = (
        (shapes.batch(rows), shapes.y[rows]) for rows in (parts.clean, parts.inside, parts.outside)
    )
    return Trial(trained.net, trained.plain, clean, {INSIDE: inside, OUTSIDE: outside})
