"""Configurations and presets of every verb; their docstrings are the `--help`. Imports no torch."""

from dataclasses import dataclass, replace
from typing import Literal

from paperkit import UserError, at_least
from tyro.conf import Positional

Corruption = Literal["noise", "grey", "sketch", "mask", "patches", "blur"]


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

    jitter: float = 0.0
    """Deviation of the noise added to training images, which are then clipped to [-1, 1]."""
    jitter_target: Literal["noisy", "clean"] = "noisy"
    """What a noisy image is to be reconstructed as: itself, or the image without noise."""

    net: Literal["mlp", "hybrid", "dcgan", "unet"] = "mlp"
    """Network: fully connected; convolutions with a fully connected middle; DCGAN (the paper's); U-Net."""
    width: int = 256
    """Units (mlp) or channels after the first layer."""
    code: int = 16
    """Numbers in the bottleneck."""
    norm: Literal["batch", "group", "none"] = "batch"
    """Normalisation layers."""
    statistics: Literal["split", "common"] = "split"
    """What batch norm uses after training: statistics of its own for x, z and f(z), estimated when training
    ends; or the ordinary running ones, in which all three mixed (momentum 0.1)."""
    dropout: float = 0.0
    """Share of hidden units (whole channels in convolutions) that are dropped in training."""
    init: Literal["default", "dcgan"] = "default"
    """Initial weights: the framework's, or N(0, 0.02)."""

    rec: float = 1.0
    """Weight of the reconstruction loss."""
    idem: float = 1.0
    """Weight of the idempotence loss."""
    idem_ramp: int = 0
    """Steps over which the idempotence weight rises linearly from 0."""
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
    engine: Literal["auto", "naive", "shared", "joint"] = "auto"
    """How a step is computed; all give the same gradient, auto takes the fastest."""
    routing: Literal["right", "idem_to_outer", "tight_to_inner"] = "right"
    """Ablation: a deliberate error in which application a loss trains (engine naive only)."""
    alternate: bool = False
    """Two optimiser steps on each batch, as in the theorem: L_rec and L_tight, then L_idem."""

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
    """Steps between pictures, and between looks for a collapse."""
    stop_on_collapse: bool = False
    """Stop when the samples have collapsed, keeping the last checkpoint before it."""
    save_every: int = 1000
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""

    def __post_init__(self):
        for name in ("width", "code", "steps", "batch", "log_every", "sample_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        for name in ("limit", "size", "seed", "rec", "idem", "tight", "clamp", "tight_ramp",
                     "idem_ramp", "jitter"):  # fmt: skip
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} must not be negative: {getattr(self, name)}")
        if not self.lr > 0:
            raise UserError(f"--lr must be positive, not {self.lr}")
        if not 0 <= self.ema < 1:
            raise UserError(f"--ema must be in [0, 1), not {self.ema}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout must be in [0, 1), not {self.dropout}")
        if self.routing != "right" and self.engine != "naive":
            raise UserError(f"--routing {self.routing} is an ablation of --engine naive: set that too")
        if self.statistics == "common" and self.norm != "batch":
            raise UserError(f"--statistics common is about --norm batch; {self.norm} keeps no statistics")
        if self.clamp_gradient and self.reference == "z":
            raise UserError(
                "--clamp-gradient needs --reference x: with z it would reward pushing f(z) from z"
            )


SMALL = TrainConfig()
MNIST = TrainConfig(
    data="MNIST", net="hybrid", width=12, code=24, tight=0.4, tight_start=0.1, tight_ramp=1000,
    steps=12000, lr_final=1e-4,
)  # fmt: skip
TRAIN = {
    "smoke": (
        replace(SMALL, steps=60, batch=32, width=64, log_every=20, sample_every=30, save_every=20),
        "the same path in seconds, no readable digits",
    ),
    "small": (SMALL, "digits 8x8, about a minute on a laptop CPU, readable digits"),
    "listing": (
        # The paper's listing, as four public repositories hold it: 1 / 1 / 0.1, L2, Gaussian noise, no clamp.
        # One core, two minutes. The paper's figure: not read, its MNIST samples are pictures without a score.
        # Ours, seed 0: 0.89 readable at k = 1, KID 0.14 and 0.05 at k = 1 and 2, ten classes.
        replace(SMALL, tight=0.1),
        "digits 8x8 with the losses of the paper's listing, two minutes on a laptop CPU; softer digits",
    ),
    "appendix": (
        # Appendix C (its table is CelebA's): 20 / 20 / 2.5, L1, clamp 1.5, Fourier noise; the level R carries
        # gradient and is the paired datum's, as in the public CelebA codes. One core, two minutes.
        # The paper's figure: not read. Ours, seed 0: 0.90 readable, KID 0.07 and 0.06, ten classes.
        replace(
            SMALL, rec=20, idem=20, tight=2.5, metric="l1", noise="fft", clamp=1.5, clamp_gradient=True,
        ),
        "digits 8x8 with the losses of the paper's appendix C, two minutes on a laptop CPU",
    ),
    "mnist": (MNIST, "MNIST 28x28, all 60,000 images, about 15 minutes on two CPU cores"),
    "restore": (
        # For `ign project`: noisy images with clean targets in the reconstruction term, a wide code that
        # keeps which digit it is, the listing's weak outward pull. Its figures: `ign reproduce projection`.
        replace(
            MNIST, steps=6000, jitter=0.5, jitter_target="clean", code=64, tight=0.1, tight_start=-1.0,
            tight_ramp=0,
        ),
        "MNIST 28x28 to project damaged images, about 8 minutes on two CPU cores; softer samples",
    ),
    "fashion": (
        # The same recipe. The paper has no Fashion-MNIST; no figure of ours yet.
        replace(MNIST, data="FashionMNIST"),
        "Fashion-MNIST 28x28, all 60,000 images, about 15 minutes on two CPU cores",
    ),
    "cifar10": (
        # Any folder, zip or tar of colour images: the same with --data PATH --size 32 (any multiple of 4).
        # Fourier noise, as the paper's figure shows for CelebA. The paper has no CIFAR-10; no figure yet.
        replace(
            MNIST, data="cifar10", flip=True, width=48, code=128, noise="fft", batch=128, steps=40_000,
            sample_every=2000, save_every=2000,
        ),
        "CIFAR-10 32x32, 100 epochs: hours on two CPU cores, made for a GPU; no score known",
    ),
    "paper": (
        # Appendix C for CelebA as transcribed second-hand; the paper states no score (figures only).
        # 1000 epochs of 162,770 images at batch 256 are 635,000 steps: days on one GPU, hours on eight.
        # Adam 1e-4 (0.5, 0.999), DCGAN 64-128-256-512 with a code of 512, batch norm on all but the first and
        # last layer, N(0, 0.02) weights. The crop (resize, centre 64) is what the public codes do; not read.
        TrainConfig(
            data="CelebA", size=64, flip=True, net="dcgan", width=64, code=512, init="dcgan", rec=20, idem=20,
            tight=2.5, metric="l1", clamp=1.5, clamp_gradient=True, noise="fft", batch=256,
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
        at_least(1, n=self.n, k=self.k)
        at_least(0, seed=self.seed)


@dataclass(frozen=True)
class InterpolateConfig:
    """Paths between samples, along a line and along an arc in noise space."""

    run: str = "latest"
    """Run folder of a trained network, or latest."""
    n: int = 8
    """How many paths."""
    count: int = 11
    """Images on each path, both ends included."""
    seed: int = 0
    """Seed of the noise."""
    k: int = 1
    """How often f is applied."""
    out: str = "interpolated"
    """Folder for linear.png and spherical.png."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self):
        at_least(1, n=self.n, k=self.k)
        at_least(2, count=self.count)
        at_least(0, seed=self.seed)


@dataclass(frozen=True)
class ArithmeticConfig:
    """Samples with an attribute added to their noise: c + (a - b)."""

    attribute: str = "ink"
    """ink (thick minus thin), slant, breadth, or two classes of a labelled set as 7-1."""
    run: str = "latest"
    """Run folder of a trained network, or latest."""
    strength: float = 3.0
    """How far to move, in deviations of the noise."""
    samples: int = 2000
    """Samples from which the attribute's direction is found."""
    n: int = 12
    """How many samples to show."""
    seed: int = 0
    """Seed of the noise."""
    k: int = 1
    """How often f is applied."""
    out: str = "arithmetic"
    """Folder for arithmetic.png."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self):
        at_least(1, n=self.n, k=self.k)
        at_least(8, samples=self.samples)
        at_least(0, seed=self.seed)
        if not self.strength > 0:
            raise UserError(f"--strength must be positive, not {self.strength:g}: both signs are shown")


@dataclass(frozen=True)
class ProjectConfig:
    """Images onto the learned manifold, corrupted or as they are."""

    input: Positional[str] = ""
    """An image file, or a folder, zip or tar of images; with --corrupt also nothing: held-out images."""
    corrupt: Literal["", "noise", "grey", "sketch", "mask", "patches", "blur"] = ""
    """Corruption to apply first."""
    strength: float = -1.0
    """Of noise and blur: deviation; grey: share; sketch: pixels; mask: share of the side; patches: number;
    -1 = 0.15, 1, 1, 21, 0.5, 3."""
    run: str = "latest"
    """Run folder of a trained network, or latest."""
    n: int = 12
    """How many held-out images, where no files are named."""
    seed: int = 0
    """Seed of the corruption and of the choice of held-out images."""
    k: int = 1
    """How often f is applied for the files that are written."""
    out: str = "projected"
    """Folder for the projected images and rows.png."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self):
        at_least(1, n=self.n, k=self.k)
        at_least(0, seed=self.seed)
        if not (self.input or self.corrupt):
            raise UserError("name an image file or a folder of images, or --corrupt for held-out images")
        if self.strength == 0 or (self.strength < 0 and self.strength != -1):
            raise UserError(f"--strength must be positive, not {self.strength:g}")


@dataclass(frozen=True)
class DriftConfig:
    """How far images lie off the learned manifold, d(x) = D(f(x), x): an out-of-distribution score."""

    inputs: Positional[tuple[str, ...]]
    """Image files, or folders, zips or tars of images."""
    run: str = "latest"
    """Run folder of a trained network, or latest."""
    lines: int = 20
    """How many images to print, those with the most drift first; the file holds all."""
    out: str = "drift.csv"
    """Table to write."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self):
        at_least(1, lines=self.lines)
        if not self.inputs:
            raise UserError("name image files, or folders of images")


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
    peer: str = ""
    """Folder of a checkout of the other implementation, for the claim that compares with one."""
    out: str = ""
    """Folder for the JSON; by default the package's results folder."""

    def __post_init__(self):
        at_least(0, seeds=self.seeds)


@dataclass(frozen=True)
class BenchConfig:
    """A benchmark, timed again."""

    id: Positional[str] = "all"
    """Benchmark to run, or all."""
    peer: str = ""
    """Folder of a checkout of the other implementation, for benchmarks that compare with one."""
    repeats: int = 30
    """Timed repetitions of each variant, in turns."""
    threads: int = 1
    """Threads of the CPU."""
    out: str = ""
    """Folder for the JSON; by default the package's results folder."""

    def __post_init__(self):
        at_least(5, repeats=self.repeats)
        at_least(1, threads=self.threads)
