"""`ittt report`: a run's page with error and gap before and after, by severity, and pictures of the inputs.

Each kind of run says what it is tested on (`Subject`); the figures are then made alike. Pictures are written
into the run folder's samples/, where the page finds them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from paperkit import images as drawing
from paperkit import report
from paperkit.run import find, read_json
from torch import Tensor

from ittt import data, graphs, images, tasks, train
from ittt.config import ReportConfig, TrainConfig
from ittt.corruptions import corrupt
from ittt.graph_config import TASKS as GRAPHS
from ittt.graph_config import GraphConfig
from ittt.guard import Calibration
from ittt.image_config import ImageConfig, is_images
from ittt.inputs import Batch
from ittt.model import ITTT
from ittt.settings import Settings
from ittt.task_config import TaskConfig

SHOWN = 256
"""Test images of each corruption and severity."""
PICTURED = 6
"""Inputs of each condition that a picture shows."""
SEVERITIES = (1, 2, 3, 4, 5)

Adapting = TrainConfig | ImageConfig | GraphConfig | TaskConfig
"""Configurations of runs: all say how to adapt, in batches of how many, and whether by the no-harm rule."""
Tests = Mapping[str, tuple[Sequence[Batch], Tensor]]
"""Condition -> batches and all their labels."""


@dataclass(frozen=True)
class Subject:
    """A run, as its page shows it."""

    net: ITTT
    settings: Settings
    rule: Callable[[Settings], Settings] | None
    """The no-harm rule on the run's clean inputs; None where the run is without it."""
    clean: Sequence[Batch]
    """For calibration, where the settings need it."""
    metric: str
    error: Callable[[Tensor, Tensor], Float[Tensor, " n"]]
    tests: Tests
    drawn: Mapping[str, UInt8[Tensor, "3 h w"]]
    """Name -> picture of the inputs, a row for each condition."""
    unit: float = 1.0
    """What a gap of 1 stands for."""


class Line(NamedTuple):
    """One condition's means."""

    error_before: float
    error_after: float
    gap_before: float
    gap_after: float


def write_report(config: ReportConfig) -> Path:
    """`ittt report`: the run's page, with its figures made and its pictures drawn anew."""
    folder = find("ittt", config.run)
    subject = subject_of(folder)
    for name, picture in subject.drawn.items():
        drawing.write(folder / "samples" / f"{name}.png", picture)
    path = report.write(folder, train.TITLE, train.SUBTITLE, notes="\n\n".join(told(subject)))
    print(path)
    return path


def told(subject: Subject) -> list[str]:
    """The figures as paragraphs: at the run's own rate, and at that of the no-harm rule where it differs."""
    parts = [text(subject, subject.settings)]
    if subject.rule is not None:
        settings = subject.rule(subject.settings)
        if not settings.lr:
            parts.append("The no-harm rule allows no step on the clean inputs of this run: not adapted.")
        elif settings.lr != subject.settings.lr:
            parts.append(text(subject, settings))
    return parts


def text(subject: Subject, settings: Settings) -> str:
    """The lines of all conditions as a table of words."""
    steps = f"{settings.steps} step{'s' if settings.steps != 1 else ''} of {settings.lr:g}"
    lines = [
        f"{subject.metric}, and gap; {steps}",
        f"{'':24}{'before':>12}{'after':>12}{'gap before':>14}{'gap after':>14}",
    ]
    for name, line in measured(subject, settings).items():
        lines.append(
            f"{name:24}{line.error_before:12.4g}{line.error_after:12.4g}"
            f"{line.gap_before:14.4g}{line.gap_after:14.4g}"
        )
    return "\n".join(lines)


def measured(subject: Subject, settings: Settings) -> dict[str, Line]:
    """Error and gap before and after, condition by condition."""
    calibration = calibrated(subject, settings) if settings.gate or settings.abstain else None
    adapter, found = subject.net.adapter(replace(settings, measure=True), calibration), {}
    for name, (batches, labels) in subject.tests.items():
        told = [adapter(x) for x in batches]
        before, after, gap_before, gap_after = (
            torch.cat([getattr(one, part) for one in told])
            for part in ("before", "prediction", "gap_before", "gap_after")
        )
        errors = (float(subject.error(values, labels).mean()) for values in (before, after))
        gaps = (subject.unit * float(gaps.mean()) for gaps in (gap_before, gap_after))
        found[name] = Line(*errors, *gaps)
    return found


def calibrated(subject: Subject, settings: Settings) -> Calibration:
    """The gaps of the run's clean inputs."""
    return subject.net.calibrate(subject.clean, "batch" if settings.norm == "batch" else "eval")


# ---- what each kind of run is tested on --------------------------------------------------------------------


def subject_of(folder: Path) -> Subject:
    """By what the run's configuration says."""
    stored = read_json(folder / "config.json")
    if stored.get("task") in GRAPHS:
        return of_graphs(folder)
    if tasks.is_task_run(folder):
        return of_task(folder)
    return of_images(folder) if is_images(str(stored.get("data", ""))) else of_table(folder)


def of_table(folder: Path) -> Subject:
    """Test rows by the share of their entries that is missing; pictured is each row as a strip of grey."""
    trained = train.load(folder)
    config, rows = trained.config, data.load(trained.config)
    shifted = {f"{100 * level:g} % missing": data.drop(rows.x_test, level, config.seed)
               for level in config.levels}  # fmt: skip
    size = config.adapt_batch or len(rows.x_test)
    strips = {name: x[:, None, None].clamp(-3, 3) / 3 for name, x in shifted.items()}
    return Subject(
        trained.net, config.adapt, _rule(config, partial(train.without_harm, trained.net, rows)),
        [rows.x_clean], "mean absolute error in standard deviations", train.row_error,
        {name: (x.split(size), rows.y_test) for name, x in shifted.items()},
        {"inputs": drawing.rows(first(strips), scale=12)},
    )  # fmt: skip


def of_images(folder: Path) -> Subject:
    """The first test images, clean and under each corruption of the run at every severity."""
    net, config = images.restored(folder)
    parts = images.load(config)
    x, y = parts.x_test[:SHOWN], parts.y_test[:SHOWN]
    shifted = {"clean": x} | {
        f"{name} {severity}": corrupt(parts.x_test, name, severity)[:SHOWN]
        for name in config.corruptions for severity in SEVERITIES
    }  # fmt: skip
    drawn = {
        name: torch.stack([x[0], *(shifted[f"{name} {severity}"][0] for severity in SEVERITIES)])
        for name in config.corruptions
    }
    heads = ["clean", *map(str, SEVERITIES)]
    return Subject(
        net, config.adapt, _rule(config, partial(images.without_harm, net, parts)), [parts.x_clean],
        "error in per cent", lambda logits, labels: 100 * images.wrong(logits, labels),
        {name: (images.batches(part, config.adapt_batch or len(part)), y) for name, part in shifted.items()},
        {"inputs": drawing.rows(drawn, heads=heads, low=0.0, high=1.0)},
    )  # fmt: skip


def of_task(folder: Path) -> Subject:
    """Faces in and out of range; road tiles clean and under every shift of the run."""
    work = tasks.restored(folder)
    config, tests = work.config, work.tests()
    return Subject(
        work.net, config.adapt, _rule(config, work.without_harm), work.clean[0].split(100), work.metric,
        work.score, {name: (images.batches(x, config.adapt_batch), y) for name, (x, y) in tests.items()},
        {"inputs": drawing.rows(first({name: x for name, (x, _) in tests.items()}), low=0.0, high=1.0)},
    )  # fmt: skip


def of_graphs(folder: Path) -> Subject:
    """Shapes from the range that is learned from, and those outside by level."""
    trained = graphs.restored(folder)
    config, (shapes, parts) = trained.config, graphs.load(trained.config)
    rows = {"inside": parts.inside} | {
        f"level {level}": parts.outside[parts.levels == level] for level in sorted(set(parts.levels.tolist()))
    }
    strips = {
        name: outlines([shapes.graphs[i].x for i in chosen[:PICTURED].tolist()])
        for name, chosen in rows.items()
    }
    size = config.adapt_batch
    return Subject(
        trained.net, config.adapt, _rule(config, partial(graphs.without_harm, trained.net, shapes, parts)),
        [shapes.batch(parts.clean)], "mean absolute error of the label",
        lambda predictions, labels: shapes.unit * train.row_error(predictions, labels),
        {
            name: ([shapes.batch(part) for part in chosen.split(size or len(chosen))], shapes.y[chosen])
            for name, chosen in rows.items()
        },
        {"inputs": drawing.rows(first(strips), low=0.0, high=1.0)},
        shapes.unit,
    )  # fmt: skip


def first(strips: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As many inputs of each condition as the smallest has, `PICTURED` at most."""
    count = min(PICTURED, *(len(inputs) for inputs in strips.values()))
    return {name: inputs[:count] for name, inputs in strips.items()}


def outlines(places: Sequence[Float[Tensor, "_ d"]], side: int = 96) -> Float[Tensor, "n 1 side side"]:
    """Nodes as dots, by their first two coordinates: the length across the picture, no side stretched."""
    sheets = torch.ones(len(places), 1, side, side)
    for sheet, nodes in zip(sheets, places, strict=True):
        low, long = nodes.amin(0), (nodes[:, 0].amax() - nodes[:, 0].amin())
        across, up = (((nodes[:, axis] - low[axis]) / long * (side - 9) + 4).long() for axis in (0, 1))
        middle = (side - int(up.max()) - 5) // 2
        sheet[0, (side - 1 - middle - up).clamp(0, side - 1), across.clamp(0, side - 1)] = 0.0
    return sheets


def _rule(
    config: Adapting, rule: Callable[[Settings, int], Settings]
) -> Callable[[Settings], Settings] | None:
    """The no-harm rule for the run's batches, where the run follows it."""
    return (lambda settings: rule(settings, config.adapt_batch)) if config.no_harm else None
