"""Configurations and presets of every verb; their docstrings are the `--help`. Imports no torch."""

from dataclasses import dataclass, replace
from typing import Literal

from paperkit import UserError, at_least
from tyro.conf import Positional

Layer = Literal["cc", "strided", "blur", "resize-conv", "conv-resize"]
CHOSEN = (10, 12, 16, 20, 24, 28)
"""Image sides of which training draws one per batch where sizes vary."""


@dataclass(frozen=True)
class TrainConfig:
    """A classifier whose layers resize: everything that decides its weights."""

    data: str = "digits"
    """digits (embedded), MNIST, FashionMNIST, cifar10, or a folder, zip or tar of class folders."""
    limit: int = 0
    """Use this many training images, drawn at random; 0 = all."""
    crop: int = 0
    """Side in pixels to which images are resized and cropped when read; 0 = as they are, all of one size."""
    grey: bool = False
    """Turn colour images grey."""
    margin: int = 2
    """Dark pixels added around every image before it is resized (digits have none of their own)."""
    download: bool = False
    """Fetch the data set where a public download exists."""

    layer: Layer = "cc"
    """cc (continuous), or what it is compared with: strided convs, convs and a blurred stride, an antialiased
    cubic resize before each conv, or one after it."""
    kernel: Literal["interp", "mlp", "bspline"] = "interp"
    """Kernel of the continuous layers."""
    widths: tuple[int, ...] = (12, 24, 24)
    """Channels after each layer."""
    maps: tuple[int, ...] = (16, 8, 4)
    """Side of the feature map after each layer, whatever the input's (strided, blur: at images of `size`)."""
    size: int = 16
    """Side of the images."""
    draw: tuple[int, ...] = ()
    """Sides of which one is drawn for each batch; none = always `size`."""
    loose: float = 0.0
    """Share of its side by which each feature map varies from batch to batch in training."""

    steps: int = 1000
    """Optimiser steps."""
    batch: int = 64
    """Images per step, over all processes."""
    lr: float = 5e-3
    """AdamW's learning rate at the start; it falls to 0 along a cosine."""
    decay: float = 1e-2
    """Weight decay."""
    seed: int = 0
    """Seed of weights, order and sizes."""

    log_every: int = 50
    """Steps between lines of metrics."""
    test_every: int = 200
    """Steps between tests on held-out images."""
    save_every: int = 200
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""

    def __post_init__(self):
        at_least(
            1, size=self.size, steps=self.steps, batch=self.batch, log_every=self.log_every,
            test_every=self.test_every, save_every=self.save_every, keep=self.keep,
        )  # fmt: skip
        at_least(0, limit=self.limit, crop=self.crop, margin=self.margin, seed=self.seed)
        if not self.widths or len(self.widths) != len(self.maps):
            raise UserError(
                f"--widths has {len(self.widths)} entries and --maps {len(self.maps)}: one each per layer"
            )
        if min(*self.widths, *self.maps, *self.draw, 1) < 1:
            raise UserError("--widths, --maps and --draw must be at least 1")
        if not self.lr > 0 or self.decay < 0:
            raise UserError("--lr must be positive and --decay not negative")
        if not 0 <= self.loose < 1:
            raise UserError(f"--loose must be in [0, 1), not {self.loose:g}")
        if self.layer in ("strided", "blur"):
            strides(self.size, self.maps)
            if self.loose:
                raise UserError(f"--loose is for layers of free size, --layer {self.layer} has strides")
        if self.layer != "cc" and self.kernel != "interp":
            raise UserError(f"--kernel {self.kernel} is for --layer cc: leave one of them out")


def strides(size: int, maps: tuple[int, ...]) -> list[int]:
    """The strides that make maps of these sides. Raises `UserError` where a ratio is no whole number."""
    lengths = [size, *maps]
    for before, after in zip(lengths, maps, strict=False):
        if before % after:
            raise UserError(
                f"--layer strided cannot go from {before} to {after} pixels: each side must divide the last"
            )
    return [before // after for before, after in zip(lengths, maps, strict=False)]


DIGITS = TrainConfig(draw=CHOSEN)
MNIST = replace(
    DIGITS, data="MNIST", margin=0, size=28, maps=(28, 14, 7), widths=(16, 32, 64),
    draw=(16, 20, 24, 28, 32, 36, 40), steps=3000, test_every=500, save_every=500,
)  # fmt: skip
TRAIN = {
    "smoke": (
        replace(DIGITS, steps=40, batch=32, widths=(6, 8, 8), log_every=10, test_every=20, save_every=10),
        "the same path in seconds, an accuracy of no meaning",
    ),
    "small": (DIGITS, "digits at 10 to 28 pixels, about half a minute on a laptop CPU, 98 % at most sizes"),
    "mnist": (MNIST, "MNIST at 16 to 40 pixels, some minutes on two CPU cores"),
    # The paper's recipe could not be read: there is no preset `paper`. This one is ours, not timed.
    "cifar10": (
        replace(
            MNIST, data="cifar10", size=32, maps=(32, 24, 16, 12, 8), widths=(32, 64, 64, 128, 128),
            draw=(20, 24, 28, 32, 40, 48), batch=128, steps=40_000, test_every=2000, save_every=2000,
        ),
        "CIFAR-10 through a gradual network, hours on a CPU, made for a GPU; no score known",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class EvaluateConfig:
    """Accuracy of a trained network at many image sizes, or through other hidden sizes."""

    run: str = "latest"
    """Run folder of a trained network, or latest."""
    sizes: tuple[int, ...] = (8, 9, 11, 13, 14, 16, 18, 22, 26, 29, 30, 32)
    """Sides of the images to test at."""
    maps: tuple[int, ...] = ()
    """Sides of the feature maps; by default those that the network was trained with."""
    ensemble: bool = False
    """Average five chains of hidden sizes instead of one."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self):
        if not self.sizes or min(*self.sizes, *self.maps, 1) < 1:
            raise UserError("--sizes needs one entry or more, and all entries of --sizes and --maps >= 1")
        if self.maps and self.ensemble:
            raise UserError("--maps names one chain of sizes, --ensemble uses five: leave one of them out")


@dataclass(frozen=True)
class ReportConfig:
    """One page about a run, with its kernels."""

    run: str = "latest"
    """Run folder, or latest."""


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
    seeds: int = 0
    """How many seeds, 0, 1, …; 0 = as many as the claim's own protocol says."""
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
    """Folder of a checkout of ResizeRight, for the benchmark resizeright."""
    repeats: int = 20
    """Timed repetitions of each variant, in turns; below 10 only the smallest cases are timed."""
    threads: int = 1
    """Threads of the CPU."""
    out: str = ""
    """Folder for the JSON; by default the package's results folder."""

    def __post_init__(self):
        at_least(5, repeats=self.repeats)
        at_least(1, threads=self.threads)


@dataclass(frozen=True)
class SRConfig:
    """An image enlarged by any factor, whole or not, by a network trained for it."""

    image: Positional[str] = ""
    """Image file to enlarge."""
    scale: tuple[float, ...] = (2.0,)
    """Factor, or two: rows and columns."""
    out: str = "enlarged.png"
    """PNG file to write."""
    data: str = "photographs"
    """Images to train on: the embedded photographs, or a folder, zip or tar."""
    width: int = 24
    """Channels of the encoder."""
    blocks: int = 3
    """Residual blocks of the encoder."""
    steps: int = 1000
    """Optimiser steps; the trained network is kept and used again."""
    batch: int = 8
    """Patches per step."""
    patch: int = 24
    """Side of the small patches; the large ones are 1 to 4 times as wide."""
    lr: float = 3e-3
    """Adam's learning rate at the start; it falls to 0 along a cosine."""
    save_every: int = 100
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of weights and patches."""

    def __post_init__(self):
        at_least(
            1, width=self.width, blocks=self.blocks, steps=self.steps, batch=self.batch,
            patch=self.patch, save_every=self.save_every,
        )  # fmt: skip
        at_least(0, seed=self.seed)
        if len(self.scale) not in (1, 2) or not all(0.05 <= s <= 32 for s in self.scale):
            raise UserError(f"--scale takes one or two factors from 0.05 to 32, not {self.scale}")
        if not self.lr > 0:
            raise UserError(f"--lr must be positive, not {self.lr}")
