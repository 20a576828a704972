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
    },
    absent={
        "train": "ccconv has no training yet: its layers are for your own networks (from ccconv import "
        "CCConv2d); try ccconv align resnet18"
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(PAPER, argv)
