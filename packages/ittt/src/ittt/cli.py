"""The command `ittt`: its verbs as data. Imports no torch."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from paperkit import UserError, cli
from paperkit.cli import Paper, Verb
from paperkit.run import find, read_json

from ittt import config, graph_config, image_config

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
            "Heat maps of steps and rates, from the result file sensitivity.",
            "ittt.sensitivity:picture",
            config.PictureConfig,
        ),
        "report": Verb(
            "One self-contained HTML page about a run.", "ittt.verbs:write_report", config.ReportConfig
        ),
    },
)


def on_images() -> Paper:
    """The same command about a set of images."""
    train = Verb(
        "Train a network for images that can be fed its own prediction, and adapt it to corrupted ones.",
        "ittt.images:train",
        image_config.ImageConfig,
        image_config.IMAGES,
        default="small",
        runs=True,
        describe="ittt.images:describe",
    )
    return replace(PAPER, verbs={**PAPER.verbs, "train": train})


def on_graphs(presets: Mapping[str, tuple[graph_config.GraphConfig, str]]) -> Paper:
    """The same command about airfoils or cars."""
    verbs = {
        "train": Verb(
            "Train a network for graphs that can be fed its own prediction, and adapt it outside its range.",
            "ittt.graphs:train",
            graph_config.GraphConfig,
            presets,
            default="small",
            runs=True,
            describe="ittt.graphs:describe",
        ),
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
    return replace(PAPER, verbs={**PAPER.verbs, **verbs})


PAPERS = {
    "images": on_images(),
    "airfoils": on_graphs(graph_config.AIRFOILS),
    "cars": on_graphs(graph_config.CARS),
}
"""The command where `--task`, `--data` or the run that is named says so; else it is about tables."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return cli.main(PAPERS.get(about(words), PAPER), words)


def about(words: Sequence[str]) -> str:
    """What the words are about, a key of `PAPERS` or "": by --task or --data, else by what run they name."""
    verb = words[0] if words else ""
    flags = {
        "train": ("--task", "--data", "--resume", "--config"),
        "adapt": ("--run",),
        "evaluate": ("--run",),
    }
    given = {flag: value for flag in flags.get(verb, ()) if (value := _value(words, flag))}
    if "--task" in given:  # an unknown one is told what there is
        return given["--task"] if given["--task"] in graph_config.TASKS else graph_config.TASKS[0]
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
