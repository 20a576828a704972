"""The verbs on what `--task` names: train, adapt and evaluate."""

from pathlib import Path
from typing import Any

from paperkit import UserError, images
from paperkit.run import (
    RunOptions,
    checkpoints,
    fill,
    find,
    from_json,
    load_checkpoint,
    read_json,
    write_json,
)

from ittt import task_loop
from ittt.config import AdaptConfig, EvaluateConfig, PictureConfig
from ittt.faces import FaceWork
from ittt.images import parameters
from ittt.roads import RoadWork
from ittt.task_config import TASKS, FacesConfig, RoadsConfig, TaskConfig
from ittt.task_loop import Work

METHODS = ("none", "bn", "it3", "it3-bn", "un-frozen", "shuffled", "random")
"""What `evaluate` compares unless it is told; those of `NEEDS_OTHERS` are left out at batches of one."""
NEEDS_OTHERS = ("bn", "it3-bn", "shuffled")


def work_of(config: TaskConfig) -> Work:
    """The data and the network of a configuration, at step 0."""
    return FaceWork(config) if isinstance(config, FacesConfig) else RoadWork(config)


def train(config: TaskConfig, options: RunOptions | None = None, preset: str = "") -> Path:
    """`ittt train --task …`: train, adapt to the test inputs, and return the run folder."""
    return task_loop.train(work_of(config), options or RunOptions(), preset)


def describe(config: TaskConfig) -> dict[str, str]:
    """What `--dry-run` adds: the data, the network, the length."""
    work = work_of(config)
    return {
        "data": work.data,
        "network": f"{work.network}, {parameters(work.net):,} parameters",
        "length": f"{work.steps:,} steps of {config.batch} images ({config.epochs} epochs)",
    }


def is_task_run(where: str | Path) -> bool:
    """Whether a run folder (or `latest`) was trained by --task."""
    return read_json(find("ittt", where) / "config.json").get("task") in TASKS


def restored(where: str | Path) -> Work:
    """The task of a run folder (or `latest`), its network at the last checkpoint and ready to be asked."""
    folder = find("ittt", where)
    stored = read_json(folder / "config.json")
    kind: type[TaskConfig] = FacesConfig if stored.get("task") == "faces" else RoadsConfig
    saved = checkpoints(folder)
    if not saved:
        raise UserError(f"{folder} has no checkpoint yet: go on with ittt train --resume {folder}")
    work = work_of(from_json(kind, stored, str(folder / "config.json")))
    fill(work.net, load_checkpoint(saved[-1])[0]["net"], folder)
    work.net.eval().requires_grad_(False)
    return work


def adapt(config: AdaptConfig) -> list[dict[str, Any]]:
    """`ittt adapt FOLDER`: one row for each image file; masks of roads are written as PNG."""
    folder = Path(config.rows)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: this run adapts to the image files of one")
    work, settings = restored(config.run), config.adapt
    if config.no_harm:
        settings = work.without_harm(settings, config.batch)
        print(f"no harm: learning rate {settings.lr:g}")
    return work.adapt(folder, Path(config.out), config.batch, settings)


def evaluate(config: EvaluateConfig) -> Path:
    """Print scores by method, batch size and condition, and write evaluation.json into the run folder."""
    if config.levels != EvaluateConfig().levels or config.draws != EvaluateConfig().draws:
        raise UserError("--levels and --draws are of tables: this run's conditions are fixed, leave them out")
    given = config.methods != EvaluateConfig().methods
    if given and "plain" in config.methods:
        raise UserError("--methods plain: runs of --task train no plain twin")
    work, found = restored(config.run), {}
    for size in config.batches:
        rows = {
            name: work.measured(name, task_loop.of_row(name, config.adapt), size)
            for name in (config.methods if given else METHODS)
            if size > 1 or name not in NEEDS_OTHERS
        }
        found[str(size)] = rows
        print(f"{work.metric}, batches of {size}\n{task_loop.table(rows)}")
    path = find("ittt", config.run) / "evaluation.json"
    write_json(path, {"data": work.data, "metric": work.metric, "found": found})
    return path


def picture(config: PictureConfig) -> Path:
    """`ittt picture roads`: one test tile per condition, its mask, and what adaptation did, as PNG."""
    work = restored(config.run)
    if not isinstance(work, RoadWork):
        raise UserError(f"{find('ittt', config.run)} is no run on roads: name one by --run")
    heads, rows = work.drawn()
    path = images.write(config.place, images.rows(rows, scale=2, heads=heads, low=0.0, high=1.0))
    print(path)
    return path
