"""The command `ittt`: its verbs as data. Imports no torch."""

from collections.abc import Sequence

from paperkit import cli
from paperkit.cli import Paper, Verb

from ittt import config

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
            "A file of rows: predictions adapted to it, gaps, and what adaptation did.",
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


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(PAPER, argv)
