"""Configurations and presets of every verb; their docstrings are the `--help`. Imports no torch."""

from dataclasses import dataclass, replace
from typing import Literal

from paperkit import UserError
from tyro.conf import Positional


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the trained weights."""

    data: str = "digits"
    """digits (embedded), MNIST, FashionMNIST, cifar10, CelebA, or a folder, zip or tar of images."""
    limit: int = 0
    """Use this many images, drawn at random; 0 = all."""
    size: int = 0
    """Side in pixels to resize and crop to; 0 = as they are."""
    grey: bool = False
    """Turn colour images grey."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2."""
    download: bool = False
    """Fetch the data set where a public download exists."""

    net: Literal["mlp", "hybrid", "dcgan"] = "mlp"
    """Network: fully connected; convolutions with a fully connected middle; DCGAN (the paper's)."""
    width: int = 256
    """Units (mlp) or channels after the first layer."""
    code: int = 16
    """Numbers in the bottleneck."""
    norm: Literal["batch", "group", "none"] = "batch"
    """Normalisation layers; batch keeps statistics of its own for x, z and f(z)."""
    init: Literal["default", "dcgan"] = "default"
    """Initial weights: the framework's, or N(0, 0.02)."""

    rec: float = 1.0
    """Weight of the reconstruction loss."""
    idem: float = 1.0
    """Weight of the idempotence loss."""
    tight: float = 0.5
    """Weight of the tightness loss."""
    tight_start: float = -1.0
    """Weight of the tightness loss at step 1, if it is to rise linearly; -1 = no ramp."""
    tight_ramp: int = 0
    """Steps over which the tightness weight reaches its value."""
    metric: Literal["l1", "l2"] = "l2"
    """Distance D: mean absolute or mean squared difference."""
    clamp: float = 0.0
    """Bound of the tightness loss in units of its level (the paper's a); 0 = no clamp."""
    reference: Literal["x", "z"] = "x"
    """Level of the clamp: reconstruction error of the paired datum, or of the noise."""
    clamp_gradient: bool = False
    """Let the clamp's level carry gradient (reference x only)."""
    noise: Literal["gaussian", "fft", "fft_hermitian"] = "gaussian"
    """Source noise: white, or with the data's moments per frequency."""
    engine: Literal["naive", "shared", "joint"] = "shared"
    """How a step is computed; all give the same gradient."""

    steps: int = 6000
    """Optimiser steps."""
    batch: int = 64
    """Images per step, over all processes."""
    lr: float = 1e-3
    """Adam's learning rate (betas 0.5, 0.999)."""
    lr_final: float = -1.0
    """Learning rate at the last step, falling linearly from half of the run on; -1 = constant."""
    ema: float = 0.999
    """Decay of the averaged weights; 0 = none."""
    seed: int = 0
    """Seed of weights, order and noise."""

    log_every: int = 100
    """Steps between lines of metrics."""
    sample_every: int = 1000
    """Steps between pictures."""
    save_every: int = 1000
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""

    def __post_init__(self):
        for name in ("width", "code", "steps", "batch", "log_every", "sample_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        for name in ("limit", "size", "seed", "rec", "idem", "tight", "clamp", "tight_ramp"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} must not be negative: {getattr(self, name)}")
        if not self.lr > 0:
            raise UserError(f"--lr must be positive, not {self.lr}")
        if not 0 <= self.ema < 1:
            raise UserError(f"--ema must be in [0, 1), not {self.ema}")
        if self.clamp_gradient and self.reference == "z":
            raise UserError(
                "--clamp-gradient needs --reference x: with z it would reward pushing f(z) from z"
            )


SMALL = TrainConfig()
TRAIN = {
    "smoke": (
        replace(SMALL, steps=60, batch=32, width=64, log_every=20, sample_every=30, save_every=20),
        "the same path in seconds, no readable digits",
    ),
    "small": (SMALL, "digits 8x8, about a minute on a laptop CPU, readable digits"),
    "mnist": (
        TrainConfig(
            data="MNIST", net="hybrid", width=12, code=24, tight=0.4, tight_start=0.1, tight_ramp=1000,
            steps=12000, lr_final=1e-4,
        ),
        "MNIST 28x28, all 60,000 images, about 15 minutes on two CPU cores",
    ),
    "paper": (
        # Appendix C for CelebA as transcribed second-hand; the paper states no score (figures only).
        # 1000 epochs of 162,770 images at batch 256 are 635,000 steps: days on one GPU, hours on eight.
        TrainConfig(
            data="CelebA", size=64, flip=True, net="dcgan", width=64, code=512, init="dcgan", rec=20, idem=20,
            tight=2.5, metric="l1", clamp=1.5, clamp_gradient=True, noise="fft", engine="joint", batch=256,
            steps=635_000, lr=1e-4, ema=0.0, log_every=500, sample_every=5000, save_every=5000,
        ),
        "CelebA 64x64 as in appendix C, 1000 epochs: needs a GPU and days; the paper states no score",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class GenerateConfig:
    """New images from noise."""

    run: str = "latest"
    """Run folder of a trained network, or latest."""
    n: int = 64
    """How many images."""
    seed: int = 0
    """Seed of the noise."""
    k: int = 1
    """How often f is applied."""
    out: str = "generated"
    """Folder for grid.png, rows.png and samples.npz."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self):
        for name in ("n", "k"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if self.seed < 0:
            raise UserError(f"--seed must not be negative: {self.seed}")


@dataclass(frozen=True)
class ProjectConfig:
    """Images onto the learned manifold."""

    input: Positional[str]
    """An image file, or a folder, zip or tar of images."""
    run: str = "latest"
    """Run folder of a trained network, or latest."""
    k: int = 1
    """How often f is applied."""
    out: str = "projected"
    """Folder for the projected images and rows.png."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self):
        if self.k < 1:
            raise UserError(f"--k must be at least 1, not {self.k}")


@dataclass(frozen=True)
class EvaluateConfig:
    """Figures of a trained network against held-out data."""

    run: str = "latest"
    """Run folder of a trained network, or latest."""
    n: int = 1000
    """How many samples."""
    k: int = 3
    """Evaluate 1 … k applications of f."""
    seed: int = 0
    """Seed of the noise."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self):
        if self.n < 50:
            raise UserError(f"--n must be at least 50 for figures that mean something, not {self.n}")
        if self.k < 1:
            raise UserError(f"--k must be at least 1, not {self.k}")


@dataclass(frozen=True)
class ReportConfig:
    """One page about a run."""

    run: str = "latest"
    """Run folder, or latest."""


@dataclass(frozen=True)
class TheoremConfig:
    """The convergence theorem, played on a table and on a ring of Gaussians, and drawn."""

    data: Literal["ring", "moons"] = "ring"
    """Eight Gaussians on a ring, or two moons."""
    tight: float = 0.1
    """Weight of the tightness loss, over that of the reconstruction loss."""
    steps: int = 2000
    """Optimiser steps of each network."""
    instances: int = 20
    """Random instances of the game on a table."""
    seed: int = 0
    """Seed of weights, data and noise."""
    out: str = "theorem"
    """Folder for games.png, ring.png and figures.json."""

    def __post_init__(self):
        for name in ("steps", "instances"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        for name in ("tight", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} must not be negative: {getattr(self, name)}")


@dataclass(frozen=True)
class ReproduceConfig:
    """A claim of the README, run again."""

    id: Positional[str] = "all"
    """Result file to write, or all."""
    seeds: int = 0
    """How many seeds, 0, 1, …; 0 = as many as the claim's own protocol says."""
    out: str = ""
    """Folder for the JSON; by default the package's results folder."""

    def __post_init__(self):
        if self.seeds < 0:
            raise UserError(f"--seeds must not be negative: {self.seeds}")
