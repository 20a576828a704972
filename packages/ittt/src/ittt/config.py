"""Configurations and presets of every verb; their docstrings are the `--help`. Imports no torch."""

from dataclasses import dataclass, field, replace
from typing import Literal

from paperkit import UserError, at_least
from tyro.conf import Positional

from ittt.settings import Settings

LEVELS = (0.0, 0.05, 0.1, 0.15, 0.2)
"""Shares of missing entries: no shift, and the paper's levels 1 to 4 (section 4.1)."""


@dataclass(frozen=True)
class TrainConfig:
    """A network for a table that can be fed its own prediction, beside a plain twin, and its adaptation."""

    data: str = "diabetes"
    """diabetes (embedded), or a UCI table below the data root: bostonHousing, concrete, energy, …"""
    split: int = 0
    """Which of the table's splits into training and test rows."""
    held_out: float = 0.1
    """Share of the training rows kept for calibration: they are clean and never trained on."""

    widths: tuple[int, ...] = (30, 20, 10)
    """Widths of the hidden layers."""
    neutral: float = 0.0
    """Value of the signal when no label is known, in standard deviations of the label."""
    presence: bool = False
    """Feed a further column that says whether a label is known (not in the paper; see the claim presence)."""
    mask: float | None = None
    """Train in one pass, with the neutral signal at this probability; by default in two passes (Eq. 2)."""

    steps: int = 330
    """Optimiser steps; 30 epochs of diabetes, as many as the public notebook makes."""
    batch: int = 32
    """Rows per step."""
    lr: float = 1e-3
    """Adam's learning rate in training."""
    seed: int = 0
    """Seed of weights, order and masks."""

    adapt: Settings = field(default_factory=lambda: Settings(steps=3))
    """How a test batch is adapted to."""
    adapt_batch: int = 0
    """Test rows that are adapted to together; 0 = all."""
    no_harm: bool = True
    """Lower the learning rate of --adapt until clean rows show a harm of at most 1 %, to 0 if need be."""
    levels: tuple[float, ...] = LEVELS
    """Shares of missing entries of the test rows to print errors for at the end."""

    log_every: int = 30
    """Steps between lines of metrics."""
    test_every: int = 110
    """Steps between tests on held-out rows."""
    save_every: int = 110
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""

    def __post_init__(self):
        at_least(
            1, steps=self.steps, batch=self.batch, log_every=self.log_every, test_every=self.test_every,
            save_every=self.save_every, keep=self.keep,
        )  # fmt: skip
        at_least(0, split=self.split, seed=self.seed, adapt_batch=self.adapt_batch)
        if not self.widths or min(self.widths) < 1:
            raise UserError("--widths must be at least 1 and at least one")
        if not self.lr > 0:
            raise UserError(f"--lr must be positive, not {self.lr}")
        if not 0 < self.held_out < 1:
            raise UserError(f"--held-out is a share between 0 and 1, not {self.held_out:g}")
        if self.mask is not None and not 0 <= self.mask <= 1:
            raise UserError(f"--mask is a probability, not {self.mask:g}")
        shares(self.levels)
        if self.adapt.norm != "eval":
            raise UserError("--adapt.norm: these networks have no batch norm; leave it at eval")


def shares(levels: tuple[float, ...]) -> None:
    """Raise `UserError` unless there are levels and all are shares."""
    if not levels or not all(0 <= level < 1 for level in levels):
        raise UserError("--levels needs one share from 0 to below 1, or more")


DIABETES = TrainConfig()
TRAIN = {
    "smoke": (
        replace(
            DIABETES, steps=40, log_every=10, test_every=20, save_every=10, levels=(0.0, 0.2), widths=(8, 8)
        ),
        "the same path in seconds, errors of no meaning",
    ),
    "small": (DIABETES, "diabetes, seconds on a laptop CPU; four rows of errors over missing entries"),
    "paper": (
        replace(
            DIABETES, data="bostonHousing", steps=420, neutral=50.0, adapt_batch=8,
            adapt=Settings(steps=2, lr=1e-4, rollback=False), no_harm=False,
        ),
        "Boston housing by file, as the public notebook trains and adapts it, on a random split",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class AdaptConfig:
    """A file of rows → predictions, gaps and what adaptation did, row by row."""

    rows: Positional[str]
    """CSV of the table's feature columns in their own units; a first line of names is taken as such. With a
    run on images, faces or roads: a folder of image files."""
    run: str = "latest"
    """Run folder of a trained network, or latest."""
    out: str = "adapted.csv"
    """CSV or JSON file to write; masks of roads are written into a folder beside it (adapted-masks)."""
    missing: Literal["refuse", "mean"] = "refuse"
    """Empty cells: refuse them, or fill in the training mean."""
    batch: int = 0
    """Rows or images that are adapted to together; 0 = all."""
    adapt: Settings = field(default_factory=lambda: Settings(steps=3, abstain=0.1))
    """How."""
    no_harm: bool = True
    """Lower the learning rate of --adapt until the run's clean inputs show a harm of at most 1 %."""

    def __post_init__(self):
        at_least(0, batch=self.batch)
        if not self.out.endswith((".csv", ".json")):
            raise UserError(f"--out {self.out} must end in .csv or .json")


@dataclass(frozen=True)
class EvaluateConfig:
    """Errors of a trained network on its test rows with missing entries, by every method that applies; of
    images clean and corrupted where the run is on images, of faces in and out of range, or of roads clean and
    shifted, where it is one of --task."""

    run: str = "latest"
    """Run folder of a trained network, or latest."""
    levels: tuple[float, ...] = LEVELS
    """Shares of missing entries."""
    batches: tuple[int, ...] = (1, 8, 51)
    """Test rows that are adapted to together."""
    draws: int = 5
    """Draws of the missing entries at each level."""
    methods: tuple[str, ...] = ("plain", "none", "it3", "un-frozen", "shuffled", "random")
    """Methods, none = without adaptation; shuffled needs other rows and is left out at batches of one."""
    adapt: Settings = field(default_factory=lambda: Settings(steps=3))
    """How the methods adapt."""

    def __post_init__(self):
        shares(self.levels)
        at_least(1, draws=self.draws)
        if not self.batches or min(self.batches) < 1 or not self.methods:
            raise UserError("--batches and --methods need one entry or more, batches of at least 1")


@dataclass(frozen=True)
class ReportConfig:
    """One page about a run."""

    run: str = "latest"
    """Run folder, or latest."""


@dataclass(frozen=True)
class ReproduceConfig:
    """Claims of the README, run again."""

    ids: Positional[tuple[str, ...]] = ("all",)
    """Result files to write, or all."""
    seeds: int = 0
    """How many seeds, 0, 1, …; 0 = as many as the claim's own protocol says."""
    out: str = ""
    """Folder for the JSON; by default the package's results folder."""

    def __post_init__(self):
        at_least(0, seeds=self.seeds)
        if self.seeds == 1:
            raise UserError("--seeds 1 gives no standard error: take two or more")
        if not self.ids:
            raise UserError("name a result file, or all")


@dataclass(frozen=True)
class BenchConfig:
    """Benchmarks, timed again."""

    id: Positional[str] = "all"
    """torch-ttt, loop, cost, or all."""
    cases: tuple[str, ...] = ()
    """Only these of its cases."""
    repeats: int = 50
    """Timed rounds of each side, in turns."""
    threads: int = 1
    """Threads of the CPU."""
    device: str = "cpu"
    """cpu or cuda."""
    out: str = ""
    """Folder for the JSON; by default the package's results folder."""

    def __post_init__(self):
        at_least(5, repeats=self.repeats)
        at_least(1, threads=self.threads)


@dataclass(frozen=True)
class PictureConfig:
    """The heat maps of the result file sensitivity, or test tiles of a run on roads with their masks."""

    what: Positional[Literal["sensitivity", "roads"]] = "sensitivity"
    """Which picture."""
    run: str = "latest"
    """Run folder of a network for roads, or latest."""
    out: str = ""
    """File to write; by default sensitivity.svg or roads.png."""

    def __post_init__(self):
        if not self.place.endswith(self.ending):
            raise UserError(f"--out {self.out} must end in {self.ending}")

    @property
    def ending(self) -> str:
        """What the file's name ends in."""
        return ".svg" if self.what == "sensitivity" else ".png"

    @property
    def place(self) -> str:
        """The file to write."""
        return self.out or f"{self.what}{self.ending}"


@dataclass(frozen=True)
class AuditConfig:
    """A published notebook's setting beside the corrected one."""

    notebook: Positional[Literal["boston", "mnist"]] = "boston"
    """boston (seconds) or mnist (minutes per seed; MNIST by file)."""
    data: str = "bostonHousing"
    """Table of the first: bostonHousing by file, or another one, such as diabetes, which is always there."""
    seeds: int = 5
    """How many seeds, 0, 1, …"""
    out: str = ""
    """JSON file to write; by default audit-<notebook>.json here."""

    def __post_init__(self):
        at_least(2, seeds=self.seeds)
