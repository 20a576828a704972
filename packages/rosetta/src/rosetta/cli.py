"""The command `rosetta`: its verbs as data. Imports no torch."""

from collections.abc import Sequence

from paperkit import cli
from paperkit.cli import Paper, Verb

from rosetta import config

PAPER = Paper(
    name="rosetta",
    title="Rosetta neurons: the units that different networks share",
    arxiv="2306.09346",
    verbs={
        "train": Verb(
            "Train a small zoo on the spot and mine what its networks share; on real digits in minutes.",
            "rosetta.train:train",
            config.TrainConfig,
            config.TRAIN,
            default="small",
            runs=True,
            describe="rosetta.train:describe",
        ),
        "mine": Verb(
            "Mine networks of your own (timm, torchvision, transformers, diffusers, files) on images.",
            "rosetta.own:mine",
            config.MineConfig,
            runs=True,
            describe="rosetta.own:describe",
        ),
        "match": Verb(
            "Another rule or chain over the tables of a run.",
            "rosetta.verbs:match",
            config.MatchAgainConfig,
        ),
        "browse": Verb("One HTML file to look at a dictionary.", "rosetta.verbs:browse", config.BrowseConfig),
        "query": Verb(
            "Which units resemble this unit, or this map.", "rosetta.verbs:query", config.QueryConfig
        ),
        "invert": Verb(
            "Generate what networks see in a picture, through the units that they share.",
            "rosetta.guide:invert",
            config.InvertConfig,
        ),
        "edit": Verb(
            "Shift, zoom, join, align generated images, or put a unit in or out.",
            "rosetta.guide:edit",
            config.EditConfig,
        ),
        "diff": Verb("What two dictionaries share.", "rosetta.verbs:diff", config.DiffConfig),
        "merge": Verb("Two dictionaries of one pivot as one.", "rosetta.verbs:merge", config.MergeConfig),
        "convert": Verb(
            "Tables of the released codes as a dictionary; nothing in them is executed.",
            "rosetta.verbs:convert",
            config.ConvertConfig,
        ),
        "reproduce": Verb(
            "Run claims of the README again and write their result files.",
            "rosetta.reproduce:reproduce",
            config.ReproduceConfig,
        ),
        "report": Verb(
            "One self-contained HTML page about a run.", "rosetta.verbs:write_report", config.ReportConfig
        ),
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(PAPER, argv)
