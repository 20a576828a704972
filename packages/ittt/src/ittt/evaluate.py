"""`ittt evaluate`: every method that applies to a trained table network, over levels and batch sizes.

Runs of `--task` and on images are told apart and left to `tasks` and `image_verbs`.
"""

from pathlib import Path

import torch
from paperkit.run import write_json

from ittt import data, image_verbs, tasks
from ittt.baselines import Predict, method
from ittt.config import EvaluateConfig
from ittt.data import Rows
from ittt.settings import Settings
from ittt.train import Trained, calibrated, load, mean_error


def evaluate(config: EvaluateConfig) -> Path:
    """Print errors by method, level and batch size, and write evaluation.json into the run folder."""
    if tasks.is_task_run(config.run):
        return tasks.evaluate(config)
    if image_verbs.is_image_run(config.run):
        return image_verbs.evaluate(config)
    trained = load(config.run)
    rows = data.load(trained.config)
    found: dict[str, dict[str, dict[str, float]]] = {}
    print(f"mean absolute error on the test rows of {trained.config.data}, in standard deviations")
    print(f"{'batch  missing entries':24}" + "".join(f"{100 * level:8g} %" for level in config.levels))
    for size in config.batches:
        found[str(size)] = {}
        for name in config.methods:
            if name == "shuffled" and (size == 1 or len(rows.x_test) % size == 1):
                continue  # a batch of one has no other row
            predict = methods(trained, name, config.adapt)
            figures = {
                f"{level:g}": error(predict, rows, level, size, config.draws) for level in config.levels
            }
            found[str(size)][name] = figures
            print(f"{size:5}  {name:17}" + "".join(f"{value:10.4f}" for value in figures.values()))
    gaps = {f"{level:g}": gap(trained, rows, level, config.draws) for level in config.levels}
    print(f"{'mean gap':24}" + "".join(f"{value:10.4f}" for value in gaps.values()))
    path = trained.folder / "evaluation.json"
    write_json(path, {"draws": config.draws, "data": rows.name, "mae": found, "gap": gaps})
    return path


def methods(trained: Trained, name: str, settings: Settings) -> Predict:
    """A method on the run's network."""
    calibration = calibrated(trained) if settings.gate or settings.abstain else None
    return method(name, trained.net, settings, plain=trained.plain, calibration=calibration)


def error(predict: Predict, rows: Rows, level: float, size: int, draws: int) -> float:
    """Mean absolute error over `draws` draws of missing entries; the last batch may be smaller."""
    found = []
    for draw in range(draws):
        x = data.drop(rows.x_test, level, draw)
        found.append(mean_error(torch.cat([predict(part) for part in x.split(size)]), rows.y_test))
    return sum(found) / draws


def gap(trained: Trained, rows: Rows, level: float, draws: int) -> float:
    """Mean gap of the network without adaptation."""
    parts = [trained.net.gap(data.drop(rows.x_test, level, draw)).mean() for draw in range(draws)]
    return float(torch.stack(parts).mean())
