"""The command `ign`: its verbs as data. Imports no torch."""

from collections.abc import Sequence

from paperkit import cli
from paperkit.cli import Paper, Verb

from ign import config

PAPER = Paper(
    name="ign",
    title="Idempotent Generative Network",
    arxiv="2311.01462",
    verbs={
        "train": Verb(
            "Train f on a data set; without flags, on real 8x8 digits in about a minute.",
            "ign.train:train",
            config.TrainConfig,
            config.TRAIN,
            default="small",
            runs=True,
            describe="ign.train:describe",
        ),
        "generate": Verb("New images from noise.", "ign.generate:generate", config.GenerateConfig),
        "interpolate": Verb(
            "Paths from sample to sample, linear and spherical in noise space.",
            "ign.explore:interpolate",
            config.InterpolateConfig,
        ),
        "arithmetic": Verb(
            "Samples with an attribute added in noise space: thick minus thin, 7 minus 1.",
            "ign.explore:arithmetic",
            config.ArithmeticConfig,
        ),
        "project": Verb(
            "Images onto the learned manifold, corrupted ones too.",
            "ign.project:project",
            config.ProjectConfig,
        ),
        "drift": Verb(
            "How far images lie off the learned manifold: a score for being out of distribution.",
            "ign.project:drift",
            config.DriftConfig,
        ),
        "evaluate": Verb(
            "Figures of a trained network against held-out data.",
            "ign.evaluate:evaluate",
            config.EvaluateConfig,
        ),
        "theorem": Verb(
            "Play and draw the convergence theorem, in about a minute.",
            "ign.theorem:playground",
            config.TheoremConfig,
        ),
        "report": Verb(
            "One self-contained HTML page about a run.", "ign.evaluate:report", config.ReportConfig
        ),
        "reproduce": Verb(
            "Run a claim of the README again and write its result file.",
            "ign.reproduce:reproduce",
            config.ReproduceConfig,
        ),
        "bench": Verb(
            "Time a benchmark again and write its result file.", "ign.bench:bench", config.BenchConfig
        ),
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(PAPER, argv)
