"""Configurations and presets of every verb; their docstrings are the `--help`. Imports no torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from paperkit import UserError, at_least
from tyro.conf import Positional

Layout = Literal["stop", "vjepa", "vissl", "transformers"]


@dataclass(frozen=True)
class NetConfig:
    """Sizes of the encoder and the predictor."""

    patch: int = 2
    """Side of a patch in pixels."""
    width: int = 64
    """Features of a token in the encoder."""
    depth: int = 2
    """Blocks of the encoder."""
    heads: int = 4
    """Attention heads of the encoder."""
    predictor_width: int = 32
    """Features of a token in the predictor."""
    predictor_depth: int = 2
    """Blocks of the predictor."""
    predictor_heads: int = 4
    """Attention heads of the predictor."""
    init: Literal["xavier", "official", "rescaled"] = "xavier"
    """Initial weights: Xavier with a patch embedding as loud as the position; N(0, 0.02); that with the last
    layers of block l divided by sqrt(2 l)."""

    def __post_init__(self):
        at_least(1, **{f"net_{name}": value for name, value in vars(self).items() if name != "init"})
        for name, width, heads in (
            ("width", self.width, self.heads),
            ("predictor-width", self.predictor_width, self.predictor_heads),
        ):
            if width % 4:
                raise UserError(
                    f"--net.{name} {width} does not divide by 4, as sine-cosine positions need: "
                    f"try {width + 4 - width % 4}"
                )
            if width % heads:
                raise UserError(
                    f"--net.{name} {width} does not divide by {heads} heads: "
                    f"try {width - width % heads or heads}"
                )


@dataclass(frozen=True)
class PositionConfig:
    """The positions of masked tokens."""

    source: Literal["tied", "untied", "fixed", "coordinate", "none"] = "tied"
    """Where their noise comes from: the context projection (the paper), a matrix of its own (collapses), the
    identity, jittered coordinates, or nowhere (I-JEPA)."""
    noise: float = 0.15
    """How much noise, in the unit of --position.unit."""
    unit: Literal["std", "variance", "nsr"] = "nsr"
    """Standard deviation (what the released code's "var" is), variance, or the initial ratio of noise to
    position energy, which alone compares across sizes."""
    scope: Literal["token", "block"] = "token"
    """One draw for each masked token, or one for all of a block."""
    mode: Literal["paper", "official"] = "paper"
    """official: noise through the projection's bias, no mask token, as in the released code."""
    tokens: Literal["masked", "context", "both"] = "masked"
    """Whose positions are noisy; all but masked (the method) are there for the paper's Table 7."""

    def __post_init__(self):
        if not self.noise >= 0:
            raise UserError(f"--position.noise must be a number that is not negative: {self.noise:g}")
        if self.mode == "official" and self.source not in ("tied", "none"):
            raise UserError(
                f"--position.mode official knows the sources tied and none, not {self.source}: use mode paper"
            )
        if self.mode == "official" and self.tokens != "masked":
            raise UserError(
                f"--position.mode official has no noise on {self.tokens} tokens, as the released code has "
                "none: use mode paper"
            )
        if self.unit == "nsr" and self.source == "coordinate":
            raise UserError(
                "--position.unit nsr says nothing of jittered coordinates: give std or variance, in patches"
            )


@dataclass(frozen=True)
class MaskConfig:
    """Which patches are visible and which are predicted."""

    sampler: Literal["unbiased", "official", "random"] = "unbiased"
    """unbiased: new work; official: as released, with its bias to the top left; random: MAE's."""
    blocks: int = 2
    """Target blocks for each image."""
    scale: tuple[float, float] = (0.25, 0.25)
    """Area of a target block as a share of the grid: least and most."""
    aspect: tuple[float, float] = (1.0, 1.0)
    """Rows over columns of a target block: least and most."""
    context_scale: tuple[float, float] = (1.0, 1.0)
    """Area of the block that the context is cut from."""
    context: int = 8
    """Context patches to keep (unbiased and random; official keeps what its shortest image has)."""
    least: int = 10
    """Patches that a block or context must exceed (official)."""

    def __post_init__(self):
        at_least(1, masks_blocks=self.blocks, masks_context=self.context)
        at_least(0, masks_least=self.least)
        for name in ("scale", "context_scale", "aspect"):
            low, high = getattr(self, name)
            top = float("inf") if name == "aspect" else 1.0
            if not 0 < low <= high <= top:
                flag = f"--masks.{name.replace('_', '-')}"
                raise UserError(
                    f"{flag} {low:g} {high:g}: give two numbers above 0, at most {top:g}, in order"
                )


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the trained weights."""

    data: str = "digits"
    """digits (embedded), MNIST, cifar10, tiny-imagenet, imagenet, or a folder, zip or tar of images."""
    limit: int = 0
    """Use this many images, drawn at random; 0 = all."""
    size: int = 0
    """Side in pixels to resize and crop to; 0 = as they are."""
    recipe: Literal["none", "ijepa", "stop"] = "none"
    """Augmentation: none; random resized crops; crops with flips, grey and blur."""
    strict: bool = False
    """Stop at a broken image; otherwise the next good one takes its place, and it is counted and named."""
    download: bool = False
    """Fetch the data set where a public download exists."""
    weights: str = ""
    """Checkpoint file to start from, of any layout that `inspect` reads."""
    workers: int = 0
    """Background processes that read and augment images (with a recipe only)."""

    objective: Literal["features", "pixels"] = "features"
    """What is predicted: an averaged encoder's features (I-JEPA), or normalised pixels (MAE)."""
    net: NetConfig = NetConfig()
    position: PositionConfig = PositionConfig()
    masks: MaskConfig = MaskConfig()

    steps: int = 2400
    """Optimiser steps."""
    batch: int = 64
    """Images per step, over all processes."""
    accumulate: int = 1
    """Parts that a process cuts its images of a step into, to save memory: one update for all of them."""
    lr: float = 4e-3
    """Peak learning rate of AdamW."""
    lr_start: float = 0.0
    """Learning rate at the start of the warm-up."""
    lr_final: float = 4e-4
    """Learning rate at the end."""
    warmup: int = 240
    """Steps of linear warm-up."""
    freeze: int = 0
    """Step at which the schedules of learning rate and decay stand still; 0 = never."""
    decay: float = 0.04
    """Weight decay at the start; none on biases and norms."""
    decay_final: float = 0.04
    """Weight decay at the end (a cosine)."""
    decay_projection: bool = True
    """Whether A decays too; without, a shrinking A tells of the noise alone."""
    ema: tuple[float, float] = (0.99, 1.0)
    """Momentum of the averaged encoder, at the start and at the end. (0, 0) = the encoder itself."""
    seed: int = 0
    """Seed of weights, order, crops, masks and noise."""

    log_every: int = 100
    """Steps between lines of metrics."""
    probe_every: int = 800
    """Steps between probes of the averaged encoder."""
    save_every: int = 800
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""

    def __post_init__(self):
        at_least(
            1, steps=self.steps, batch=self.batch, log_every=self.log_every, probe_every=self.probe_every,
            save_every=self.save_every, keep=self.keep, accumulate=self.accumulate,
        )  # fmt: skip
        at_least(
            0, limit=self.limit, size=self.size, seed=self.seed, workers=self.workers, warmup=self.warmup,
            freeze=self.freeze,
        )  # fmt: skip
        if not self.lr > 0:
            raise UserError(f"--lr must be positive, not {self.lr:g}")
        for name in ("lr_start", "lr_final", "decay", "decay_final"):
            if not getattr(self, name) >= 0:
                raise UserError(f"--{name.replace('_', '-')} must not be negative: {getattr(self, name):g}")
        if self.warmup > self.steps:
            raise UserError(f"--warmup {self.warmup} is longer than --steps {self.steps}")
        if not all(0 <= m <= 1 for m in self.ema):
            raise UserError(f"--ema {self.ema[0]:g} {self.ema[1]:g}: both must be in [0, 1]")
        if self.size % self.net.patch:
            lower = self.size - self.size % self.net.patch
            raise UserError(
                f"--size {self.size} does not divide by --net.patch {self.net.patch}: "
                f"try {lower or self.net.patch}"
            )


DIGITS = TrainConfig()
"""Spec 14.6: measured there by a pilot of one thread; 1,600 steps were enough for the claim `learns`."""
_TINY = MaskConfig(blocks=3, scale=(0.15, 0.2), aspect=(0.75, 1.5), context=16)
CIFAR10 = replace(
    DIGITS,
    data="cifar10",
    net=NetConfig(patch=4, width=64, depth=3, predictor_width=32),
    masks=_TINY, lr=2e-3, lr_final=2e-4, steps=4000, warmup=400, probe_every=1000, save_every=1000,
)  # fmt: skip
MNIST = replace(
    CIFAR10, data="MNIST", net=NetConfig(patch=4, width=96, depth=4, predictor_width=64),
    masks=replace(_TINY, context=14),
)  # fmt: skip
TINY_IMAGENET = replace(
    CIFAR10, data="tiny-imagenet", size=64, recipe="ijepa", workers=4,
    net=NetConfig(8, 192, 6, 6, 96, 3, 6), batch=128,
)  # fmt: skip

EPOCH = 1_281_167 // 2048
"""Steps of ImageNet-1k at the published batch."""
STOP_VITB16 = TrainConfig(
    data="imagenet", size=224, recipe="stop", workers=8, batch=2048,
    net=NetConfig(16, 768, 12, 12, 384, 6, 12, "official"),
    position=PositionConfig("tied", 0.25, "std"),
    masks=MaskConfig("official", 4, (0.15, 0.2), (0.75, 1.5), (0.85, 1.0)),
    steps=600 * EPOCH, warmup=15 * EPOCH, lr=8e-4, lr_start=2e-4, lr_final=1e-4, decay=0.04, decay_final=0.4,
    ema=(0.996, 1.0), log_every=100, probe_every=100 * EPOCH, save_every=EPOCH,
)  # fmt: skip
STOP_VITL16 = replace(STOP_VITB16, net=NetConfig(16, 1024, 24, 16, 384, 12, 16, "official"))
STOP_VITH14 = replace(
    STOP_VITB16,
    net=NetConfig(14, 1280, 32, 16, 384, 12, 16, "official"),
    position=PositionConfig("tied", 0.2, "std"),
    steps=300 * EPOCH, warmup=40 * EPOCH, lr=1e-3, lr_final=1e-6, freeze=250 * EPOCH,
)  # fmt: skip
IJEPA_VITH14 = replace(STOP_VITH14, recipe="ijepa", position=PositionConfig("none", 0.0, "std"), freeze=0)
MAE_VITB16 = replace(
    STOP_VITB16, recipe="ijepa", objective="pixels", position=PositionConfig("none", 0.0, "std"),
    masks=MaskConfig("random", 1, context=49), ema=(0.0, 0.0),
    net=NetConfig(16, 768, 12, 12, 512, 8, 16, "official"),
)  # fmt: skip
"""The twin, not MAE's own recipe (its learning rate, decay and class token differ)."""

TRAIN: dict[str, tuple[TrainConfig, str]] = {
    "smoke": (
        replace(DIGITS, steps=60, warmup=6, log_every=20, probe_every=60, save_every=20, limit=300),
        "the same path in seconds; learns nothing that a probe would see",
    ),
    "small": (DIGITS, "digits 8x8, a few minutes on one CPU core; better than random weights by 20-NN"),
    "tiny_mnist": (MNIST, "MNIST 28x28, about an hour on one CPU core; no figure yet"),
    "tiny_cifar10": (CIFAR10, "CIFAR-10 32x32, about 15 minutes on one CPU core; no figure yet"),
    "tiny_imagenet": (TINY_IMAGENET, "Tiny-ImageNet 64x64, hours on a CPU, made for a GPU; no figure yet"),
    # The paper's Tables 9 to 12; 100 % probe on ImageNet, last layer (Table 1), not run here.
    "stop_vitb16": (STOP_VITB16, "ImageNet, 600 epochs, 8 GPUs for days; paper: 72.6 % (Table 1); not run"),
    "stop_vitl16": (STOP_VITL16, "ImageNet, 600 epochs, 32 GPUs for days; paper: 77.1 % (Table 1); not run"),
    "stop_vith14": (STOP_VITH14, "ImageNet, 300 epochs, 32 GPUs for days; paper: 79.0 % (Table 1); not run"),
    "ijepa_vith14": (IJEPA_VITH14, "the same without noise and photometric augmentation; 78.2 % (Table 1)"),
    "mae_vitb16": (MAE_VITB16, "the pixel-predicting twin of stop_vitb16; not MAE's own recipe; not run"),
    "paper": (STOP_VITB16, "stop_vitb16"),
}


@dataclass(frozen=True)
class EvaluateConfig:
    """Probes of a frozen encoder."""

    weights: Positional[str] = "latest"
    """Run folder, latest, or a checkpoint file of any layout that `inspect` reads."""
    probe: Literal["all", "linear", "knn", "logistic", "davis"] = "all"
    """linear: heads over {last, last four layers} x {batch norm, none} x learning rates, chosen on held-out
    training images; knn: 20 nearest; logistic: on a part of the labels; davis: masks carried
    through the clips of the folder --data, scored by J and F (no part of all)."""
    data: str = ""
    """Set to probe on, with splits train and test, also clevr-count and clevr-dist; empty = the run's."""
    size: int = 0
    """Side in pixels to resize and crop to; 0 = that of the encoder's grid."""
    share: float = 0.01
    """Part of the training labels that the logistic probe sees, at least one image of each class."""
    strength: float = 0.0025
    """Penalty of the logistic probe, over the number of images (the released command's)."""
    test_statistics: bool = False
    """Standardise test features by their own statistics, as the released code does, for logistic."""
    epochs: int = 28
    """Epochs of the linear heads (the paper's for ViT-B and ViT-L)."""
    limit: int = 0
    """Use this many training images, drawn at random (davis: the first clips); 0 = all."""
    batch: int = 256
    """Images per forward pass, and per step of the heads."""
    seed: int = 0
    """Seed of draws and heads."""
    heads: int = 0
    """Attention heads of a checkpoint file whose width is none of the published ones."""
    out: str = ""
    """JSON file to write; by default evaluation.json in the run folder, or evaluation.json here."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self):
        at_least(1, epochs=self.epochs, batch=self.batch)
        at_least(0, size=self.size, limit=self.limit, seed=self.seed, heads=self.heads)
        if not 0 < self.share <= 1:
            raise UserError(f"--share must be in (0, 1], not {self.share:g}")
        if not self.strength > 0:
            raise UserError(f"--strength must be positive, not {self.strength:g}")


@dataclass(frozen=True)
class InspectConfig:
    """What a checkpoint file holds."""

    file: Positional[str]
    """A .pth, .pth.tar, .pt or .safetensors file, or a run folder."""
    part: Literal["target", "context"] = "target"
    """Which encoder to look at: the averaged one, or the one that was trained."""


@dataclass(frozen=True)
class ConvertConfig:
    """A checkpoint in another layout."""

    file: Positional[str]
    """A .pth, .pth.tar, .pt or .safetensors file, or a run folder."""
    out: Positional[str]
    """File to write, .safetensors or .pth; the layout stop needs .pth (it is nested)."""
    layout: Layout = "transformers"
    """stop (also I-JEPA's), vjepa, vissl, transformers."""
    part: Literal["target", "context"] = "target"
    """Which encoder becomes the only one, in layouts that hold one."""
    heads: int = 0
    """Attention heads, where the width is none of the published ones (transformers only)."""

    def __post_init__(self):
        suffix = Path(self.out).suffix
        nested = self.layout != "transformers"
        wanted = (".pth", ".pt", ".tar") if nested else (".safetensors", ".pth", ".pt")
        if suffix not in wanted:
            raise UserError(f"{self.out}: the layout {self.layout} goes into {' or '.join(wanted)}")


@dataclass(frozen=True)
class ReproduceConfig:
    """Claims of the README, run again."""

    ids: Positional[tuple[str, ...]] = ("all",)
    """Result files to write, or all."""
    seeds: int = 0
    """How many seeds, 0, 1, ...; 0 = as many as the claim's own protocol says."""
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
    """Folder of a checkout of facebookresearch/ijepa, for the benchmark that compares with it."""
    repeats: int = 10
    """Timed steps of each side, in turns."""
    batch: int = 8
    """Images per step."""
    threads: int = 2
    """Threads of the CPU."""
    device: str = "cpu"
    """cpu, cuda or cuda:1."""
    out: str = ""
    """Folder for the JSON; by default the package's results folder."""

    def __post_init__(self):
        at_least(5, repeats=self.repeats)
        at_least(1, threads=self.threads, batch=self.batch)


@dataclass(frozen=True)
class ReportConfig:
    """One page about a run."""

    run: str = "latest"
    """Run folder, or latest."""
