"""Configurations and presets of every verb; their docstrings are the `--help`. Imports no torch."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from paperkit import UserError, at_least
from tyro.conf import Positional


@dataclass(frozen=True)
class Common:
    """What every task takes beside its images. 0, -1 and "task" leave a choice to the task."""

    alpha: float = 0.0
    """Completeness: small keeps all of the source, inf looks at coherence alone; 0 = the task's."""
    levels: int = -1
    """How often the image is shrunk: few keep the layout, many dissolve it; -1 = by the task's rule."""
    ratio: float = 0.0
    """Size of a level over that of the finer one; 0 = the task's."""
    steps: int = 0
    """Steps per level; 0 = 10."""
    coarse_steps: int = 0
    """Steps at the coarsest level; 0 = the task's."""
    keys: Literal["task", "blurred", "switch", "both"] = "task"
    """What patches are compared with: the blurred source; blurred, then sharp; both at once."""
    patch: int = 7
    """Side of a patch in pixels."""
    fold: Literal["gaussian", "mean", "median"] = "gaussian"
    """How overlapping patches become a pixel."""
    search: Literal["exact", "pca", "faiss", "patchmatch"] = "exact"
    """exact; pca: exact, always by the PCA tree; faiss; patchmatch: approximate, says how far off."""
    memory: int = 64
    """Working memory of a search in MiB."""

    side: int = 180
    """Shrink images to this longer side in pixels; 0 = as they are (the paper's data have about 250)."""
    out: str = ""
    """Folder to write; by default runs/gpnn/<time>-<verb>."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self):
        if math.isnan(self.alpha) or self.alpha < 0:
            raise UserError(f"--alpha must be positive or inf (0: the task's), not {self.alpha}")
        if self.levels < -1:
            raise UserError(f"--levels must be 0 or more (-1: by the task's rule), not {self.levels}")
        if self.ratio and not 0.1 <= self.ratio < 1:
            raise UserError(f"--ratio must be in [0.1, 1) (0: the task's), not {self.ratio}")
        if min(self.steps, self.coarse_steps) < 0:
            raise UserError("--steps and --coarse-steps must not be negative")
        for name in ("patch", "memory"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if self.side < 0:
            raise UserError(f"--side must not be negative: {self.side}")


@dataclass(frozen=True)
class GenerateConfig(Common):
    """Variations of one image."""

    input: Positional[str] = "coffee"
    """An image file, or the name of an embedded photograph (astronaut, coffee, brick, rocket, ...)."""
    samples: int = 9
    """How many."""
    seed: int = 0
    """Seed of the noise."""
    noise: float = 0.75
    """Noise at the coarsest level (values are in [0, 1]); the authors took 0.75 and 1.25."""
    noise_kind: Literal["absolute", "relative", "auto"] = "auto"
    """absolute; relative to the coarsest level's spread; auto: as little as leaves the source's layout."""
    height: int = 0
    """Height of the outputs in pixels; 0 = the input's."""
    width: int = 0
    """Width of the outputs."""

    def __post_init__(self):
        super().__post_init__()
        at_least(1, samples=self.samples)
        if not (math.isfinite(self.noise) and self.noise >= 0) or self.seed < 0:
            raise UserError(f"--noise and --seed must not be negative: {self.noise}, {self.seed}")
        if min(self.height, self.width) < 0:
            raise UserError(f"--height and --width must not be negative: {self.height}, {self.width}")


SMALL = GenerateConfig()
GENERATE = {
    "smoke": (
        replace(SMALL, side=72, samples=2, steps=3), "two samples of 72 pixels, in seconds"
    ),
    "small": (SMALL, "nine samples of 180 pixels, about half a minute on a laptop CPU"),
    "paper": (
        replace(SMALL, side=250, samples=50, noise_kind="absolute"),
        "50 samples of 250 pixels at noise 0.75, as the authors did for SIGD16 (--noise 1.25: Places50)",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class TextureConfig(Common):
    """A texture of any size."""

    input: Positional[str] = "gravel"
    """An image file, or the name of an embedded photograph (brick, grass, gravel, ...)."""
    height: int = 240
    """Height of the output in pixels."""
    width: int = 320
    """Width of the output in pixels."""
    samples: int = 1
    """How many."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self):
        super().__post_init__()
        at_least(1, height=self.height, width=self.width, samples=self.samples)


@dataclass(frozen=True)
class RetargetConfig(Common):
    """The image at another size, its patches kept."""

    input: Positional[str] = "rocket"
    """An image file, or the name of an embedded photograph."""
    height: float = 1.0
    """Ratio of the heights, output over input."""
    width: float = 1.5
    """Ratio of the widths."""
    gradual: bool = False
    """By steps of 0.9 or 1.2, each from the one before: for large changes."""

    def __post_init__(self):
        super().__post_init__()
        if not all(math.isfinite(r) and r > 0 for r in (self.height, self.width)):
            raise UserError(f"--height and --width are positive ratios, not {self.height} and {self.width}")


@dataclass(frozen=True)
class EditConfig(Common):
    """Make a crudely edited copy seamless."""

    input: Positional[str] = ""
    """The unedited image, where patches come from."""
    edited: Positional[str] = ""
    """The edited copy, of equal size."""

    def __post_init__(self):
        super().__post_init__()
        if not self.edited:
            raise UserError("two images are needed, the input and its edited copy: gpnn edit INPUT EDITED")


@dataclass(frozen=True)
class ReshuffleConfig(Common):
    """Move or repeat boxes of an image seamlessly."""

    input: Positional[str] = "coffee"
    """An image file, or the name of an embedded photograph."""
    move: tuple[str, ...] = ()
    """Boxes and their new places, each ROW,COLUMN,HEIGHT,WIDTH,NEWROW,NEWCOLUMN, pixels after --side."""
    keep: bool = False
    """Leave the box where it was too."""


@dataclass(frozen=True)
class AnalogyConfig(Common):
    """The layout of one image in patches of another."""

    source: Positional[str] = "gravel"
    """Where patches come from."""
    structure: Positional[str] = "coffee"
    """Whose layout is kept."""
    both: bool = False
    """The other direction too."""
    search_settings: bool = False
    """Try levels 4, 6, 8, 10 and alpha 5e-2, 5e-3, 5e-4, and show them on one sheet."""


@dataclass(frozen=True)
class CollageConfig(Common):
    """Several images grown into one."""

    inputs: Positional[tuple[str, ...]] = ("coffee", "chelsea")
    """Image files, or names of embedded photographs; two or more."""
    shrinkings: int = 9
    """How often the row of images is narrowed by 0.9."""


@dataclass(frozen=True)
class InpaintConfig(Common):
    """Fill a hole; its painted colour says with what."""

    input: Positional[str] = "brick"
    """An image file, or the name of an embedded photograph."""
    mask: str = ""
    """An image of equal size, white where the hole is."""
    hole: str = ""
    """Or a box ROW,COLUMN,HEIGHT,WIDTH in pixels after --side."""
    colour: str = ""
    """Paint the hole first: RED,GREEN,BLUE of 0..255, or "mean"; default: as it is in the input."""
    whole: bool = False
    """Write the whole picture as it was synthesised, not only the hole."""
    parity: bool = False
    """Masks by the released code's rule, which lets the hole's colour into the keys."""

    def __post_init__(self):
        super().__post_init__()
        if self.mask and self.hole:
            raise UserError("--mask and --hole both say where the hole is: give one of them")


@dataclass(frozen=True)
class BatchConfig(Common):
    """Variations of every image of a folder; started again it goes on where it was."""

    folder: Positional[str] = ""
    """Folder of images."""
    samples: int = 4
    """How many of each."""
    seed: int = 0
    """Seed of the noise."""
    noise: float = 0.75
    """Noise at the coarsest level."""
    noise_kind: Literal["absolute", "relative", "auto"] = "auto"
    """As for generate."""

    def __post_init__(self):
        super().__post_init__()
        at_least(1, samples=self.samples)
        if not self.folder:
            raise UserError("a folder of images is needed: gpnn batch FOLDER")
        if not self.out:
            object.__setattr__(self, "out", "batch")


@dataclass(frozen=True)
class EvaluateConfig:
    """Figures of a run's outputs against its input."""

    run: str = "latest"
    """Run folder, or latest."""


@dataclass(frozen=True)
class ReportConfig:
    """One page about a run."""

    run: str = "latest"
    """Run folder, or latest."""


@dataclass(frozen=True)
class ReproduceConfig:
    """A claim of the README, run again."""

    id: Positional[str] = "all"
    """Result file to write, or all."""
    seeds: int = 2
    """How many seeds, 0, 1, ..."""
    side: int = 0
    """Longer side of the images in pixels; 0 = the claim's."""
    official: str = ""
    """For parity: a checkout of WeizmannVision/DropTheGAN; by default the variable GPNN_OFFICIAL."""
    out: str = ""
    """Folder for the JSON; by default the package's results folder."""

    def __post_init__(self):
        if self.seeds < 1:
            raise UserError(f"--seeds must be at least 1, not {self.seeds}")


@dataclass(frozen=True)
class BenchConfig:
    """Time and memory, beside another implementation where one is named."""

    id: Positional[str] = "all"
    """official, scale, efficient, gpu, or all that this machine can run."""
    peer: str = ""
    """Checkout of the other implementation; without it only our side is timed."""
    peer_python: str = ""
    """Its interpreter, with the libraries that it needs; default: this one."""
    repeats: int = 5
    """Timed turns of each side, at least 5; fewer of a side that has taken five minutes."""
    threads: int = 1
    """Threads of both sides."""
    out: str = ""
    """Folder for the JSON; by default the package's results folder."""
    cases: tuple[str, ...] = field(default_factory=tuple)
    """Names of single cases; none = all of the benchmark."""

    def __post_init__(self):
        if self.repeats < 5 or self.threads < 1:
            raise UserError("--repeats must be at least 5 and --threads at least 1")
