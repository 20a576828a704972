"""The verbs `adapt` and `picture`."""

import csv
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from paperkit import UserError
from paperkit.run import atomic
from torch import Tensor

from ittt import data, sensitivity, tasks
from ittt.config import AdaptConfig, PictureConfig
from ittt.image_verbs import adapt_images, is_image_run
from ittt.train import calibrated, load, without_harm


def adapt_rows(config: AdaptConfig) -> Path:
    """`ittt adapt`: adapt to the rows of a file, or the images of a folder, and write what came of each."""
    if tasks.is_task_run(config.run):
        return write_found(Path(config.out), tasks.adapt(config), "images")
    if is_image_run(config.run):
        return write_found(Path(config.out), adapt_images(config), "images")
    trained = load(config.run)
    names, rows = read_rows(Path(config.rows))
    x = standardised(rows, names, trained.scale.x_mean, trained.scale.x_std, config)
    settings, needs = config.adapt, config.adapt.gate or config.adapt.abstain
    if config.no_harm:
        settings = without_harm(trained.net, data.load(trained.config), settings, config.batch)
        print(f"no harm: learning rate {settings.lr:g}")
    adapter = trained.net.adapter(settings, calibrated(trained) if needs else None)
    written: list[dict[str, Any]] = []
    for part in x.split(config.batch or len(x)):
        found = adapter(part)
        predictions, before = (
            trained.scale.units(values)[:, 0].tolist() for values in (found.prediction, found.before)
        )
        for facts, prediction, without in zip(found.rows(), predictions, before, strict=True):
            written.append({"row": len(written), "prediction": prediction, "before": without, **facts})
    return write_found(Path(config.out), written, "rows")


def write_found(path: Path, written: list[dict[str, Any]], what: str) -> Path:
    """Write the rows and say what they are."""
    write_rows(path, written)
    refused, undone = (sum(row[name] for row in written) for name in ("abstain", "rolled_back"))
    print(f"{path}: {len(written)} {what}, {refused} better not trusted, {undone} rolled back")
    return path


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """(names, cells) of a CSV file; names are numbers of columns where the first line holds none."""
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.reader(stream) if row]
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path} as CSV: {error}") from error
    if not rows:
        raise UserError(f"{path} has no rows")
    if any(cell.strip() and number(cell) is None for cell in rows[0]):
        names, rows = [cell.strip() for cell in rows[0]], rows[1:]
    else:
        names = [f"column {i + 1}" for i in range(len(rows[0]))]
    if not rows:
        raise UserError(f"{path} has a line of names and no rows")
    for count, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise UserError(f"{path}, row {count}: {len(row)} cells instead of {len(names)}")
    return names, rows


def standardised(
    rows: list[list[str]], names: list[str], mean: Tensor, std: Tensor, config: AdaptConfig
) -> Float[Tensor, "n d"]:
    """The cells as numbers in training standard deviations; empty ones refused or at the mean."""
    if len(names) != len(mean):
        raise UserError(
            f"{config.rows} has {len(names)} columns, the network takes {len(mean)}: "
            "give its features in their order, without the label"
        )
    values = torch.zeros(len(rows), len(names))
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            found = number(cell)
            if found is not None and found == found and abs(found) != float("inf"):
                values[i, j] = (found - mean[j]) / std[j]
            elif config.missing == "refuse" or (cell.strip() and found is None):
                what = f"holds {cell.strip()!r}" if cell.strip() else "is empty"
                raise UserError(
                    f"{config.rows}, row {i + 1}: {names[j]} {what}; --missing mean fills in the mean"
                )
    return values


def number(cell: str) -> float | None:
    """The cell as a number, None where it is none."""
    try:
        return float(cell)
    except ValueError:
        return None


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows as CSV, or as JSON by the file's name."""
    with atomic(path, "w") as stream:
        if path.suffix == ".json":
            stream.write(json.dumps(rows, indent=1) + "\n")
            return
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_picture(config: PictureConfig) -> Path:
    """`ittt picture`: heat maps of the sensitivity, or a run's roads."""
    return sensitivity.picture(config) if config.what == "sensitivity" else tasks.picture(config)
