"""The command `ccconv`: its verbs as data. Imports no torch."""

from collections.abc import Sequence

from paperkit import cli
from paperkit.cli import Paper, Verb

from ccconv import config

PAPER = Paper(
    name="ccconv",
    title="From Discrete to Continuous Convolution Layers",
    arxiv="2006.11120",
    verbs={
        "train": Verb(
            "Train a classifier whose layers take any size; without flags, on digits in half a minute.",
            "ccconv.train:train",
            config.TrainConfig,
            config.TRAIN,
            default="small",
            runs=True,
            describe="ccconv.train:describe",
        ),
        "sr": Verb(
            "Enlarge an image by any factor, with a network trained for it once.",
            "ccconv.sr:super_resolve",
            config.SRConfig,
        ),
        "evaluate": Verb(
            "Accuracy of a trained network over image sizes and hidden sizes.",
            "ccconv.evaluate:evaluate",
            config.EvaluateConfig,
        ),
        "report": Verb(
            "One self-contained HTML page about a run, with its kernels.",
            "ccconv.page:write_report",
            config.ReportConfig,
        ),
        "align": Verb(
            "How far each layer of a network is off the image's frame.",
            "ccconv.verbs:align_model",
            config.AlignConfig,
        ),
        "picture": Verb("One filter sampled at three scales.", "ccconv.verbs:picture", config.PictureConfig),
        "reproduce": Verb(
            "Run a claim of the README again and write its result file.",
            "ccconv.reproduce:reproduce",
            config.ReproduceConfig,
        ),
        "bench": Verb(
            "Time a benchmark again and write its result file.", "ccconv.bench:bench", config.BenchConfig
        ),
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(PAPER, argv)
