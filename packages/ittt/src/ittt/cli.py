"""The command `ittt`: its verbs as data. Imports no torch."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from paperkit import UserError, cli
from paperkit.cli import Paper, Verb
from paperkit.run import find, read_json

from ittt import config, image_config

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


IMAGES = replace(
    PAPER,
    verbs={
        **PAPER.verbs,
        "train": Verb(
            "Train a network for images that can be fed its own prediction, and adapt it to corrupted ones.",
            "ittt.images:train",
            image_config.ImageConfig,
            image_config.IMAGES,
            default="small",
            runs=True,
            describe="ittt.images:describe",
        ),
    },
)
"""The same command where `--data` (or the run that is resumed) is a set of images."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return cli.main(IMAGES if about_images(words) else PAPER, words)


def about_images(words: Sequence[str]) -> bool:
    """Whether the words train on images: by --data, else by the run of --resume, else by --config."""
    if words[:1] != ["train"]:
        return False
    given = {flag: value for flag in ("--data", "--resume", "--config") if (value := _value(words, flag))}
    if "--data" in given:
        return image_config.is_images(given["--data"])
    try:
        if "--resume" in given:
            stored = read_json(find("ittt", given["--resume"]) / "config.json")
        else:
            stored = read_json(Path(given["--config"])) if "--config" in given else {}
    except (UserError, OSError):
        return False  # the command itself says what is wrong with it
    return image_config.is_images(str(stored.get("data", "")))


def _value(words: Sequence[str], flag: str) -> str:
    """What the words give to a flag; the last one counts."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    found = [
        following if word == flag else word.partition("=")[2]
        for word, following in pairs
        if word.partition("=")[0] == flag
    ]
    return found[-1] if found else ""
