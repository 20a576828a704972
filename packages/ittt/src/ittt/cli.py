"""The command `ittt`: its verbs as data. Imports no torch."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from paperkit import UserError, cli, suggest
from paperkit.cli import Paper, Verb
from paperkit.run import find, read_json

from ittt import config, graph_config, image_config, task_config

PAPER = Paper(
    name="ittt",
    title="IT3: Idempotent Test-Time Training",
    arxiv="2410.04201",
    verbs={
        "train": Verb(
            "Train a network that can be fed its own prediction; without flags, on diabetes in seconds.",
            "ittt.train:train",
            config.TrainConfig,
            config.TRAIN,
            default="small",
            runs=True,
            describe="ittt.train:describe",
        ),
        "adapt": Verb(
            "A file of rows or a folder of images: adapted predictions, gaps, and what adaptation did.",
            "ittt.verbs:adapt_rows",
            config.AdaptConfig,
        ),
        "evaluate": Verb(
            "Errors over missing entries, by every method under one protocol.",
            "ittt.evaluate:evaluate",
            config.EvaluateConfig,
        ),
        "reproduce": Verb(
            "Run claims of the README again and write their result files.",
            "ittt.reproduce:reproduce",
            config.ReproduceConfig,
        ),
        "bench": Verb("Time benchmarks again and write their files.", "ittt.bench:bench", config.BenchConfig),
        "audit": Verb(
            "A published notebook's setting beside the corrected one, one difference at a time.",
            "ittt.audit:audit",
            config.AuditConfig,
        ),
        "picture": Verb(
            "Heat maps of steps and rates (sensitivity), or roads before and after adaptation.",
            "ittt.verbs:write_picture",
            config.PictureConfig,
        ),
        "report": Verb(
            "One page about a run: error and gap before and after by severity, and pictures of the inputs.",
            "ittt.page:write_report",
            config.ReportConfig,
        ),
    },
)


Presets = Mapping[str, tuple[Any, str]]


def training(summary: str, function: str, kind: type, presets: Presets, **others: Verb) -> Paper:
    """The same command with another `train` (`module:function`), and other verbs where they differ."""
    described = f"{function.partition(':')[0]}:describe"
    verb = Verb(summary, function, kind, presets, default="small", runs=True, describe=described)
    return replace(PAPER, verbs={**PAPER.verbs, "train": verb, **others})


GRAPHS = {
    "adapt": Verb(
        "A folder of shapes: adapted predictions, gaps, and what adaptation did.",
        "ittt.graph_verbs:adapt_shapes",
        graph_config.GraphAdaptConfig,
    ),
    "evaluate": Verb(
        "Errors inside and outside the range, by every method under one protocol.",
        "ittt.graph_verbs:evaluate",
        graph_config.GraphEvaluateConfig,
    ),
}
PAPERS = {
    "images": training(
        "Train a network for images that can be fed its own prediction, and adapt it to corrupted ones.",
        "ittt.images:train", image_config.ImageConfig, image_config.IMAGES,
    ),
    "faces": training(
        "Train a network that tells ages from faces, and adapt it to ages that it has not seen.",
        "ittt.tasks:train", task_config.FacesConfig, task_config.FACES,
    ),
    "roads": training(
        "Train a network that marks roads in aerial photographs, and adapt it to noise and haze.",
        "ittt.tasks:train", task_config.RoadsConfig, task_config.ROADS,
    ),
    "airfoils": training(
        "Train a network that tells airfoils' lift-to-drag ratio, and adapt it outside its range.",
        "ittt.graphs:train", graph_config.GraphConfig, graph_config.AIRFOILS, **GRAPHS,
    ),
    "cars": training(
        "Train a network that tells meshes' drag, and adapt it outside its range.",
        "ittt.graphs:train", graph_config.GraphConfig, graph_config.CARS, **GRAPHS,
    ),
}  # fmt: skip
"""The command where `--task`, `--data` or the run that is named says so; else it is about tables."""
TASKS = (*graph_config.TASKS, *task_config.TASKS)
"""What `--task` takes."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        paper = PAPERS.get(about(words), PAPER)
    except UserError as error:
        print(f"ittt: {error}", file=sys.stderr)
        return 2
    return cli.main(paper, words)


def about(words: Sequence[str]) -> str:
    """What the words are about, a key of `PAPERS` or "": by --task or --data, else by what run they name.

    Raises `UserError` for a task that there is not.
    """
    verb = words[0] if words else ""
    flags = {
        "train": ("--task", "--data", "--resume", "--config"),
        "adapt": ("--run",),
        "evaluate": ("--run",),
    }
    given = {flag: value for flag in flags.get(verb, ()) if (value := _value(words, flag))}
    if task := given.get("--task"):
        if task not in TASKS:
            raise UserError(f"--task {task}{suggest(task, TASKS)}: there are {', '.join(TASKS)}")
        return task
    if "--data" in given:
        return "images" if image_config.is_images(given["--data"]) else ""
    run = given.get("--resume") if verb == "train" else given.get("--run", "latest")
    try:
        if verb in flags and run:
            stored = read_json(find("ittt", run) / "config.json")
        else:
            stored = read_json(Path(given["--config"])) if "--config" in given else {}
    except (UserError, OSError):
        return ""  # the command itself says what is wrong with it
    if stored.get("task") in PAPERS:
        return str(stored["task"])
    return "images" if image_config.is_images(str(stored.get("data", ""))) else ""


def _value(words: Sequence[str], flag: str) -> str:
    """What the words give to a flag; the last one counts."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    found = [
        following if word == flag else word.partition("=")[2]
        for word, following in pairs
        if word.partition("=")[0] == flag
    ]
    return found[-1] if found else ""
