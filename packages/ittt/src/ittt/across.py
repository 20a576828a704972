"""Claims over every task: the frozen anchor, no harm on clean data, and whether the direction matters.

Each takes names of tasks or groups of `protocol.GROUPS`; without any, all of them. Tasks of one group are
pooled seed by seed, so that a group has one verdict.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ittt.protocol import Table, Task, Trial, change, facts, pooled, table, tasks, ways


def by_group(chosen: Mapping[str, Task]) -> dict[str, list[Task]]:
    """The tasks of each group."""
    found: dict[str, list[Task]] = {}
    for task in chosen.values():
        found.setdefault(task.group, []).append(task)
    return found


def named(chosen: Mapping[str, Task]) -> str:
    """The data of a record, in words."""
    return "; ".join(dict.fromkeys(task.data for task in chosen.values()))


# ---- anchor-matters (E2) -----------------------------------------------------------------------------------


def anchor_matters(seeds: int, names: Sequence[str] = ()) -> dict[str, Any]:
    """E2: error with F not frozen minus error with F frozen, in every group and at every level judged."""
    chosen = tasks(names)
    found = {name: anchors(task, task.trials(seeds)) for name, task in chosen.items()}
    cells, single = {}, {}
    for group, members in by_group(chosen).items():
        for level in members[0].anchor:
            parts = {task.name: harm(task, found[task.name], level) for task in members}
            cells[f"{group}, level {level}"] = pooled([*parts.values()])
            single |= {f"{name}, level {level}": facts(values) for name, values in parts.items()}
    verdicts = {name: facts(values) for name, values in cells.items()}
    least = min(verdicts, key=lambda name: verdicts[name]["t"])
    missed = [name for name, fact in verdicts.items() if fact["t"] < 3]
    opposite = [name for name, fact in single.items() if fact["t"] < -2]
    return {
        "claim": "Freezing the second application is what keeps adaptation from harm: un-frozen it is worse",
        "source": "section 3.2, Eq. 5 against Eq. 6; spec E2", "data": named(chosen),
        "metric": "error_unfrozen_minus_frozen", "unit": "%", "better": "higher",
        "ours": cells[least], "arms": cells,
        "criterion": "un-frozen minus frozen > 0 by > 3 standard errors in every group at every level (per "
        "cent of the error on tables, points on images; ours is the group with the least)",
        "statistic": verdicts[least]["t"], "threshold": 3.0,
        "stand_in": False,
        "explanation": f"Below three standard errors: {'; '.join(missed)}." if missed else "",
        "details": {
            "groups": verdicts, "tasks": single, "tasks_where_unfrozen_is_better_by_2_se": opposite,
            "errors": {
                name: {
                    method: {level: sum(v) / len(v) for level, v in by_level.items()}
                    for method, by_level in cells_.items()
                }
                for name, cells_ in found.items()
            },
        },
    }  # fmt: skip


def anchors(task: Task, trials: Sequence[Trial]) -> Table:
    """Errors not adapted, with F frozen and with F = f."""
    print(f"  {task.name}", flush=True)
    levels = dict.fromkeys((task.clean, *task.anchor))
    return table(task, trials, ways(task.settings, "none", "it3", "un-frozen"), list(levels))


def harm(task: Task, cells: Table, level: str) -> list[float]:
    """What not freezing F costs, seed by seed."""
    return change(task, cells["un-frozen"][level], cells["it3"][level], cells["none"][level])
