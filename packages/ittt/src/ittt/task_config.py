"""Configurations of `ittt train --task faces|roads`, and their presets. Imports no torch."""

from dataclasses import dataclass, field, replace
from typing import Literal

from paperkit import UserError, at_least

from ittt.settings import Settings

TASKS = ("faces", "roads")
"""What `--task` takes."""


@dataclass(frozen=True)
class Common:
    """What both tasks have."""

    mask: float = 0.5
    """Share of the images of a step that are fed no label (the public code of faces: 0.9 and 0.5)."""
    batch: int = 64
    """Images per step."""
    lr: float = 2e-3
    """Adam's learning rate at the beginning; it falls to 0 along a cosine."""
    seed: int = 0
    """Seed of weights, order and draws."""
    no_harm: bool = True
    """Lower the learning rate of --adapt until held-out images show harm of at most 1 %, to 0 if need be."""

    log_every: int = 20
    """Steps between lines of metrics."""
    test_every: int = 100
    """Steps between tests on held-out images."""
    save_every: int = 50
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""

    def __post_init__(self):
        at_least(
            1, batch=self.batch, log_every=self.log_every, test_every=self.test_every,
            save_every=self.save_every, keep=self.keep,
        )  # fmt: skip
        at_least(0, seed=self.seed)
        if not self.lr > 0:
            raise UserError(f"--lr must be positive, not {self.lr}")
        if not 0 <= self.mask <= 1:
            raise UserError(f"--mask is a probability, not {self.mask:g}")


@dataclass(frozen=True)
class FacesConfig(Common):
    """A network that tells ages from faces and can be fed its own answer, and its adaptation."""

    task: Literal["faces", "roads"] = "faces"
    """faces: UTKFace by file, 64 pixels; ages 20 to 60 to learn from, all others to test on."""
    train: int = 3_500
    """Faces in range to learn from, a fixed draw."""
    held_out: int = 300
    """More faces in range, never trained on: for tests while training, and for calibration."""
    inside: int = 240
    """More faces in range to test on."""
    outside: int = 480
    """Faces out of range to test on."""
    epochs: int = 12
    """Passes over the training faces."""
    adapt: Settings = field(default_factory=lambda: Settings(steps=2, lr=5e-4))
    """How a test batch is adapted to."""
    adapt_batch: int = 16
    """Test faces that are adapted to together."""

    def __post_init__(self):
        super().__post_init__()
        at_least(
            1, train=self.train, held_out=self.held_out, inside=self.inside, outside=self.outside,
            epochs=self.epochs,
        )  # fmt: skip
        at_least(2, adapt_batch=self.adapt_batch)


FACES = {
    "smoke": (
        replace(
            FacesConfig(), train=128, held_out=32, inside=32, outside=32, epochs=2, batch=32, log_every=1,
            test_every=4, save_every=2, adapt=Settings(steps=1),
        ),
        "the same path in seconds, errors of no meaning",
    ),
    "small": (FacesConfig(), "UTKFace by file, a thin ResNet-18 from scratch, a few minutes of one core"),
    "paper": (
        replace(FacesConfig(), epochs=20, batch=128, lr=1e-3, no_harm=False),
        "the public code's epochs, batch and rate, on the thin network; hours on one core",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class RoadsConfig(Common):
    """A network that marks roads in aerial photographs and can be fed its own mask, and its adaptation."""

    task: Literal["faces", "roads"] = "roads"
    """roads: masks of roads, tile by tile."""
    data: Literal["strokes", "aerial-roads"] = "strokes"
    """strokes (embedded stand-in: digits' strokes over textures, 64 pixels), or aerial-roads by file (100
    images of 400 pixels, cut into tiles of 128)."""
    train: int = 288
    """Tiles to learn from; fewer where the set has fewer."""
    held_out: int = 32
    """More tiles, never trained on: for tests while training, and for calibration."""
    test: int = 80
    """Tiles to test on."""
    epochs: int = 25
    """Passes over the training tiles."""
    batch: int = 16
    """Tiles per step."""
    lr: float = 3e-3
    """Adam's learning rate at the beginning; it falls to 0 along a cosine."""

    adapt: Settings = field(default_factory=lambda: Settings(steps=2))
    """How a test batch is adapted to."""
    adapt_batch: int = 16
    """Test tiles that are adapted to together."""

    def __post_init__(self):
        super().__post_init__()
        at_least(1, train=self.train, held_out=self.held_out, test=self.test, epochs=self.epochs)
        at_least(2, adapt_batch=self.adapt_batch)


ROADS = {
    "smoke": (
        replace(
            RoadsConfig(), train=32, held_out=16, test=8, epochs=2, log_every=1, test_every=2, save_every=2,
            adapt=Settings(steps=1), adapt_batch=8,
        ),
        "the same path in seconds, scores of no meaning",
    ),
    "small": (
        RoadsConfig(),
        "digits' strokes over brick, a minute of one core; --data aerial-roads by file, minutes",
    ),
    "paper": (
        replace(RoadsConfig(), data="aerial-roads", epochs=200, no_harm=False),
        "aerial-roads by file; the paper's sets, network and settings are not released",
    ),
}  # fmt: skip

TaskConfig = FacesConfig | RoadsConfig
"""What `--task` trains."""
