"""The configuration of `ittt train` on a set of images, and its presets. Imports no torch."""

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from paperkit import UserError, at_least, suggest

from ittt.settings import Settings

SETS = ("digits", "mnist", "fashionmnist", "cifar10")
"""Sets of images that `ittt train --data` takes; digits are embedded, the others lie below the data root."""


CORRUPTIONS = (
    "gaussian", "shot", "impulse", "defocus", "glass", "motion", "zoom", "snow", "frost", "fog", "brightness",
    "contrast", "elastic", "pixelate", "jpeg",
)  # fmt: skip
"""Names of the corruptions, as `corruptions` has them."""


def is_images(data: str) -> bool:
    """Whether a name given to --data is one of `SETS`, however it is written (Fashion-MNIST)."""
    return _key(data) in SETS


def _key(data: str) -> str:
    return re.sub("[-_ ]", "", data).lower()


@dataclass(frozen=True)
class ImageConfig:
    """A network for images that can be fed its own prediction, and its adaptation to corrupted ones."""

    data: str = "mnist"
    """digits (8 px, embedded), mnist, fashionmnist or cifar10."""
    train: int = 10_000
    """Training images, a fixed draw; fewer where the set has fewer."""
    held_out: int = 500
    """More training images that are never trained on: for calibration and the no-harm rule."""
    test: int = 1_000
    """Test images, a fixed draw."""

    net: Literal["small", "resnet18"] = "small"
    """Three convs and a linear layer, or a ResNet-18 with a stem for small images."""
    norm: Literal["none", "group", "batch"] = "batch"
    """What normalises its activations."""
    neutral: str = "uniform"
    """Value of the signal when no label is known: a number, uniform (1 / classes) or learned."""
    presence: bool = False
    """Feed a further channel that says whether a label is known (not in the paper)."""
    smoothing: float = 0.0
    """Share of a one-hot label spread over all classes before it is fed back."""

    restate: bool = True
    """After training, store batch-norm statistics of f(x, 0) alone: two passes leave a mixture that fits
    neither."""

    epochs: int = 5
    """Passes over the training images."""
    batch: int = 64
    """Images per step."""
    lr: float = 2e-3
    """Adam's learning rate at the beginning; it falls to 0 along a cosine."""
    seed: int = 0
    """Seed of weights and order."""

    adapt: Settings = field(default_factory=lambda: Settings(steps=2))
    """How a test batch is adapted to."""
    adapt_batch: int = 64
    """Test images that are adapted to together; 0 = all."""
    no_harm: bool = True
    """Lower the learning rate of --adapt until no held-out image turns wrong by it, to 0 if need be."""
    corruptions: tuple[str, ...] = ("gaussian", "defocus", "fog", "contrast", "jpeg")
    """Corruptions of the test images to print errors for at the end."""
    severity: int = 5
    """Their severity, 1 to 5."""

    log_every: int = 50
    """Steps between lines of metrics."""
    test_every: int = 250
    """Steps between tests on held-out images."""
    save_every: int = 250
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""

    def __post_init__(self):
        at_least(
            1, train=self.train, held_out=self.held_out, test=self.test, epochs=self.epochs, batch=self.batch,
            severity=self.severity, log_every=self.log_every, test_every=self.test_every,
            save_every=self.save_every, keep=self.keep,
        )  # fmt: skip
        at_least(0, seed=self.seed, adapt_batch=self.adapt_batch)
        if not is_images(self.data):
            raise UserError(f"--data {self.data} is no set of images: choose from {', '.join(SETS)}")
        if not self.lr > 0:
            raise UserError(f"--lr must be positive, not {self.lr}")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"--smoothing is a share from 0 to below 1, not {self.smoothing:g}")
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                known = ", ".join(CORRUPTIONS)
                raise UserError(f"--corruptions {name}{suggest(name, CORRUPTIONS)}: choose from {known}")
        if self.severity > 5:
            raise UserError(f"--severity goes from 1 to 5, not {self.severity}")
        if self.adapt.norm != "eval" and self.norm != "batch":
            raise UserError(f"--adapt.norm {self.adapt.norm} needs --norm batch: leave it at eval")

    @property
    def set_name(self) -> str:
        """The name as `SETS` has it."""
        return _key(self.data)


SMALL = ImageConfig()
IMAGES = {
    "smoke": (
        replace(
            SMALL, train=256, held_out=64, test=64, epochs=1, log_every=1, test_every=2, save_every=2,
            corruptions=("gaussian",), adapt=Settings(steps=1),
        ),
        "the same path in seconds, errors of no meaning",
    ),
    "small": (
        SMALL,
        "10,000 images, a minute on a laptop CPU; errors over corruptions: --data mnist, fashionmnist, "
        "cifar10 or digits",
    ),
    "paper": (
        replace(
            SMALL, data="cifar10", train=49_500, test=10_000, net="resnet18", epochs=80, batch=128, lr=1e-3,
            corruptions=CORRUPTIONS,
            adapt=Settings(steps=1, norm="batch", rollback=False), adapt_batch=128,
            no_harm=False,
        ),
        "CIFAR-10, a ResNet-18 for 80 epochs, 15 corruptions at severity 5: hours on a GPU; not run here",
    ),
}  # fmt: skip
