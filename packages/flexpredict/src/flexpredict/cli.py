"""The command `flexpredict`: its verbs as data. Imports no torch."""

from collections.abc import Sequence

from paperkit import cli
from paperkit.cli import Paper, Verb

from flexpredict import config

PAPER = Paper(
    name="flexpredict",
    title="StoP / FlexPredict: stochastic positions in masked image modelling",
    arxiv="2308.00566",
    verbs={
        "train": Verb(
            "Train an encoder by predicting hidden patches; without flags, on real 8x8 digits in minutes.",
            "flexpredict.train:train",
            config.TrainConfig,
            config.TRAIN,
            default="small",
            runs=True,
            describe="flexpredict.train:describe",
        ),
        "evaluate": Verb(
            "Probes of a frozen encoder: linear heads, nearest neighbours, a part of the labels.",
            "flexpredict.evaluate:evaluate",
            config.EvaluateConfig,
        ),
        "inspect": Verb(
            "What a checkpoint file holds, whatever its name says.",
            "flexpredict.verbs:inspect",
            config.InspectConfig,
        ),
        "convert": Verb(
            "A checkpoint in the layout of StoP and I-JEPA, V-JEPA, VISSL or transformers.",
            "flexpredict.verbs:convert",
            config.ConvertConfig,
        ),
        "reproduce": Verb(
            "Run claims of the README again and write their result files.",
            "flexpredict.reproduce:reproduce",
            config.ReproduceConfig,
        ),
        "bench": Verb(
            "Time benchmarks again and write their files.", "flexpredict.bench:bench", config.BenchConfig
        ),
        "report": Verb(
            "One self-contained HTML page about a run.", "flexpredict.verbs:write_report", config.ReportConfig
        ),
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(PAPER, argv)
