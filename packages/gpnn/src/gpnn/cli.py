"""The command `gpnn`: its verbs as data. Imports no torch."""

from collections.abc import Sequence

from paperkit import cli
from paperkit.cli import Paper, Verb

from gpnn import config


def _task(name: str, help: str, kind: type, **more) -> Verb:
    return Verb(help, f"gpnn.commands:{name}", kind, describe="gpnn.commands:describe", **more)


PAPER = Paper(
    name="gpnn",
    title="Drop the GAN: Patches Nearest Neighbors as Single Image Generative Models",
    arxiv="2103.15545",
    verbs={
        "generate": _task(
            "generate",
            "Variations of one image.",
            config.GenerateConfig,
            presets=config.GENERATE,
            default="small",
        ),
        "retarget": _task("retarget", "The image at another size, its patches kept.", config.RetargetConfig),
        "edit": _task("edit", "Make a crudely edited copy seamless.", config.EditConfig),
        "reshuffle": _task("reshuffle", "Move or repeat boxes of an image.", config.ReshuffleConfig),
        "analogy": _task("analogy", "The layout of one image in patches of another.", config.AnalogyConfig),
        "collage": _task("collage", "Several images grown into one.", config.CollageConfig),
        "inpaint": _task("inpaint", "Fill a hole; its colour says with what.", config.InpaintConfig),
        "texture": _task("texture", "A texture of any size.", config.TextureConfig),
        "batch": Verb("Variations of every image of a folder.", "gpnn.commands:batch", config.BatchConfig),
        "evaluate": Verb(
            "Figures of a run's outputs against its input.", "gpnn.evaluate:evaluate", config.EvaluateConfig
        ),
        "report": Verb("One self-contained HTML page of a run.", "gpnn.evaluate:report", config.ReportConfig),
        "reproduce": Verb(
            "Run a claim of the README again and write its result file.",
            "gpnn.reproduce:reproduce",
            config.ReproduceConfig,
        ),
        "bench": Verb(
            "Time and memory, beside another implementation.", "gpnn.bench:bench", config.BenchConfig
        ),
    },
    absent={"train": "there is nothing to train, patches are looked up: uv run --package gpnn gpnn generate"},
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(PAPER, argv)
