"""Configurations of every verb; their docstrings are the `--help`. Imports no torch."""

from dataclasses import dataclass

from paperkit import UserError
from tyro.conf import Positional


@dataclass(frozen=True)
class AlignConfig:
    """How far each layer's grid has drifted from the centre-aligned one."""

    model: Positional[str]
    """A network of torchvision by name (resnet18, vgg11, …); its weights do not matter."""
    size: int = 224
    """Side of the input in pixels."""
    sweep: int = 0
    """Print the total drift at this many sizes from `size` on, instead of every layer's."""

    def __post_init__(self):
        if self.size < 1:
            raise UserError(f"--size must be at least 1, not {self.size}")
        if self.sweep < 0:
            raise UserError(f"--sweep must not be negative: {self.sweep}")


@dataclass(frozen=True)
class PictureConfig:
    """One filter sampled at three scales, as a picture."""

    out: str = "kernel.png"
    """PNG file to write."""
    kernel: str = "interp"
    """interp, bspline or mlp."""
    seed: int = 4
    """Seed of the filter."""

    def __post_init__(self):
        if self.kernel not in ("interp", "bspline", "mlp"):
            raise UserError(f"--kernel must be interp, bspline or mlp, not {self.kernel}")
        if self.seed < 0:
            raise UserError(f"--seed must not be negative: {self.seed}")


@dataclass(frozen=True)
class ReproduceConfig:
    """A claim of the README, run again."""

    id: Positional[str] = "all"
    """Result file to write, or all."""
    out: str = ""
    """Folder for the JSON; by default the package's results folder."""
