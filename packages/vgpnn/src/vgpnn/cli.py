"""The command `vgpnn`: its verbs as data. Imports no torch."""

from collections.abc import Sequence

from paperkit import cli
from paperkit.cli import Paper, Verb

from vgpnn import config


def _task(name: str, help: str, kind: type, **more) -> Verb:
    return Verb(help, f"vgpnn.commands:{name}", kind, runs=True, describe="vgpnn.commands:describe", **more)


PAPER = Paper(
    name="vgpnn",
    title="Diverse Generation from a Single Video Made Possible",
    arxiv="2109.08591",
    verbs={
        "generate": _task(
            "generate",
            "Different clips with the patches of one.",
            config.GenerateConfig,
            presets=config.GENERATE,
            default="small",
        ),
        "retarget": _task(
            "retarget", "The clip at another size or length, its patches kept.", config.RetargetConfig
        ),
        "inpaint": _task("inpaint", "Fill a hole; its colour says with what.", config.InpaintConfig),
        "analogy": _task(
            "analogy", "The layout and motion of one clip in the look of another.", config.AnalogyConfig
        ),
        "sketch": _task("sketch", "A moving sketch in the look of a clip.", config.SketchConfig),
        "loop": _task("loop", "Clips whose last frame leads into the first.", config.LoopConfig),
        "preview": _task("preview", "Coarse samples to choose from.", config.PreviewConfig),
        "finish": Verb(
            "The chosen samples of a preview, at full size.",
            "vgpnn.commands:finish",
            config.FinishConfig,
            runs=True,
        ),
        "evaluate": Verb(
            "Figures of a run's outputs against its input.", "vgpnn.evaluate:evaluate", config.EvaluateConfig
        ),
        "report": Verb(
            "One self-contained HTML page of a run.", "vgpnn.evaluate:report", config.ReportConfig
        ),
        "reproduce": Verb(
            "Run a claim of the README again and write its result file.",
            "vgpnn.reproduce:reproduce",
            config.ReproduceConfig,
        ),
        "bench": Verb("Time and memory of the searches.", "vgpnn.bench:bench", config.BenchConfig),
    },
    absent={
        "train": "there is nothing to train, patches are looked up: uv run --package vgpnn vgpnn generate"
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return cli.main(PAPER, argv)
