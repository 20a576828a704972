"""Configurations and presets of every verb; their docstrings are the `--help`. Imports no torch."""

from dataclasses import dataclass, replace
from typing import Literal

from paperkit import UserError, at_least
from tyro.conf import Positional

ChainRule = Literal["star", "clique", "cycle"]


@dataclass(frozen=True)
class MatchConfig:
    """What counts as a match, and how chance is measured."""

    k: int = 1
    """Each unit of a pair must be among the other's k best."""
    back: int = 0
    """Or: the second among the first's k best, the first among this many of the second's (released code: 1
    and 5); 0 = k too."""
    threshold: Literal["max", "quantile"] = "max"
    """t*: the highest score of all permuted tables, or the highest of their 99.9 % quantiles."""
    draws: int = 19
    """Tables with one model's images permuted: threshold, p and q."""
    others: int = 3
    """Tables each with scattered positions, shifted maps, and rotated channels: counts beside ours."""
    metric: Literal["pearson", "spearman", "official"] = "pearson"
    """One correlation over all images and pixels; of ranks; the released code's mean over batches."""
    batch: int = 16
    """Images of a batch of the official metric."""
    memory: int = 512
    """Working memory of the tables, in MiB."""
    double: bool = False
    """Products in float64."""
    seed: int = 0
    """Seed of the nulls."""

    def __post_init__(self):
        at_least(1, match_k=self.k, match_draws=self.draws, match_batch=self.batch, match_memory=self.memory)
        at_least(0, match_back=self.back, match_others=self.others, match_seed=self.seed)


@dataclass(frozen=True)
class TrainConfig:
    """The small zoo, its training, and what it is mined with."""

    data: str = "digits"
    """digits (embedded), MNIST, FashionMNIST, cifar10, or a folder, zip or tar of class folders."""
    size: int = 0
    """Side in pixels to resize and crop to, a multiple of 4; 0 = as they are."""
    limit: int = 0
    """Learn from this many images, drawn at random; 0 = all."""
    probes: int = 500
    """Held-out images, and as many generated ones, that units are compared on."""
    download: bool = False
    """Fetch the data set where a public download exists."""

    classifier_steps: int = 600
    """Of CNN-A, CNN-A with another seed, and CNN-B."""
    masked_steps: int = 800
    """Of the masked autoencoder."""
    generator_steps: int = 3000
    """Of the generator and its critic."""
    batch: int = 64
    """Images per step (the masked autoencoder: twice as many)."""
    match: MatchConfig = MatchConfig()
    seed: int = 0
    """Seed of weights, order and codes."""

    log_every: int = 100
    """Steps between lines of metrics."""
    save_every: int = 1000
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""

    def __post_init__(self):
        at_least(
            1, classifier_steps=self.classifier_steps, masked_steps=self.masked_steps,
            generator_steps=self.generator_steps, batch=self.batch, log_every=self.log_every,
            save_every=self.save_every, keep=self.keep,
        )  # fmt: skip
        at_least(0, limit=self.limit, size=self.size, seed=self.seed)
        at_least(2, probes=self.probes)
        if self.size % 4:
            raise UserError(
                f"--size {self.size} does not divide by 4: try {max(8, round(self.size / 4) * 4)}"
            )


DIGITS = TrainConfig()
FASHION = replace(DIGITS, data="FashionMNIST", probes=1000)
TRAIN: dict[str, tuple[TrainConfig, str]] = {
    "smoke": (
        replace(
            DIGITS, classifier_steps=60, masked_steps=40, generator_steps=60, limit=400, probes=100,
            match=MatchConfig(draws=4, others=1), save_every=100, log_every=20,
        ),
        "the same path in seconds; the networks are hardly trained",
    ),
    "small": (DIGITS, "digits 8x8, a few minutes on two CPU cores"),
    "fashion": (FASHION, "Fashion-MNIST 28x28, spec 12.7's budgets, about 10 minutes on one core"),
    "cifar10": (replace(FASHION, data="cifar10"), "CIFAR-10 32x32; no figure yet"),
}  # fmt: skip


@dataclass(frozen=True)
class MineConfig:
    """Networks of your own, and images to compare their units on."""

    models: Positional[tuple[str, ...]] = ()
    """timm:NAME, tv:NAME, hf:ID, diffusers:ID, each with @FILE for its weights or @untrained; the pivot
    first."""
    images: str = "photographs"
    """A set by name, or a folder, zip or tar of images."""
    split: Literal["train", "test", "all"] = "train"
    """Split of the set."""
    limit: int = 500
    """Use this many images, drawn at random."""
    size: int = 224
    """Side in pixels that images are resized and cropped to before each network's own preparation."""
    layers: tuple[str, ...] = ()
    """NAME=PATTERN for the model whose name holds NAME, in place of the rules; <PATTERN reads inputs."""
    margin: tuple[str, ...] = ()
    """NAME=PIXELS to crop from each side of that model's maps."""
    batch: int = 32
    """Images per run of a network."""
    match: MatchConfig = MatchConfig()
    seed: int = 0
    """Seed of the draw of images and of untrained weights."""
    download: bool = False
    """Fetch published weights and sets that are not on this machine."""

    def __post_init__(self):
        at_least(1, limit=self.limit, size=self.size, batch=self.batch)
        at_least(0, seed=self.seed)
        if len(self.models) < 2:
            raise UserError("two networks or more are needed, the pivot first: rosetta mine timm:A tv:B")
        for flag, words in (("layers", self.layers), ("margin", self.margin)):
            for word in words:
                if "=" not in word:
                    raise UserError(f"--{flag} takes NAME=VALUE, not {word}")


@dataclass(frozen=True)
class MatchAgainConfig:
    """Another rule over the tables of a run: nothing is recorded or multiplied again."""

    run: Positional[str] = "latest"
    """Run folder, or latest."""
    k: int = 1
    """Each unit of a pair must be among the other's k best."""
    back: int = 0
    """Or the asymmetric rule (released code: --k 1 --back 5); 0 = k too."""
    threshold: Literal["max", "quantile"] = "max"
    """t*: the highest score of all permuted tables, or the highest of their 99.9 % quantiles."""
    chain: ChainRule = "star"
    """Which pairs of models a chain must match on."""
    probes: str = ""
    """Of a run of `train`: real or generated; empty = the first there is."""
    out: str = ""
    """Folder for the dictionary; empty = below the run's."""

    def __post_init__(self):
        at_least(1, k=self.k)
        at_least(0, back=self.back)


@dataclass(frozen=True)
class BrowseConfig:
    """One HTML file to look at a dictionary."""

    dictionary: Positional[str] = "latest"
    """Folder of a dictionary, or a run's, or latest."""
    out: str = ""
    """The file; empty = browser.html beside the dictionary."""


@dataclass(frozen=True)
class QueryConfig:
    """Units of a dictionary that resemble one of its units, or a drawn map."""

    dictionary: Positional[str] = "latest"
    """Folder of a dictionary, or a run's, or latest."""
    unit: str = ""
    """MODEL/LAYER/CHANNEL, as the dictionary names it."""
    map: str = ""
    """Or a picture, bright where the unit should answer, laid over --image."""
    image: int = 0
    """Number of the probe image that the map is for."""
    model: str = ""
    """Look among the units of this model only; empty = all (of a unit: all others)."""
    top: int = 10
    """How many."""

    def __post_init__(self):
        at_least(1, top=self.top)
        at_least(0, image=self.image)
        if bool(self.unit) == bool(self.map):
            raise UserError("give --unit MODEL/LAYER/CHANNEL or --map PICTURE, one of them")


@dataclass(frozen=True)
class DiffConfig:
    """What two dictionaries share and what only one has."""

    first: Positional[str]
    """Folder of a dictionary."""
    second: Positional[str]
    """Folder of another."""


@dataclass(frozen=True)
class MergeConfig:
    """Two dictionaries of one pivot and one set of probes, joined at the pivot's units."""

    first: Positional[str]
    """Folder of a dictionary."""
    second: Positional[str]
    """Folder of another."""
    out: Positional[str]
    """Folder for the joined one."""


@dataclass(frozen=True)
class ConvertConfig:
    """Tables and lists of the released codes as a dictionary."""

    file: Positional[str]
    """table.pkl (read without running anything), best_buddies.json or rosetta_anchors.json."""
    out: Positional[str]
    """Folder for the dictionary."""
    k: int = 1
    """Rule for a table: v among u's k best,"""
    back: int = 5
    """and u among this many of v's."""

    def __post_init__(self):
        at_least(1, k=self.k, back=self.back)


@dataclass(frozen=True)
class InvertConfig:
    """Codes whose images a run's networks see as they see given pictures."""

    run: Positional[str] = "latest"
    """Run folder of rosetta train, or latest."""
    picture: str = ""
    """An image file; empty = held-out images of the run's set."""
    count: int = 6
    """How many held-out images."""
    k: int = 1
    """Pairs: each unit among the other's k best, above every score of permuted images."""
    steps: int = 300
    """Steps of Adam."""
    rate: float = 0.05
    """Its peak learning rate."""
    prior: float = 0.1
    """Weight of the mean squared code."""
    pixels: float = 0.0
    """Weight of the mean squared error of pixels; 0 = the networks' maps alone."""

    def __post_init__(self):
        at_least(1, count=self.count, k=self.k, steps=self.steps)


@dataclass(frozen=True)
class EditConfig:
    """Generated images changed by changing the maps of the units that the generator shares."""

    edit: Positional[Literal["shift", "zoom", "paste", "unit", "align"]]
    """Move; enlarge; left half of one image, right half of another; one unit put in or taken out; an image
    that is seen as one of another class is."""
    run: Positional[str] = "latest"
    """Run folder of rosetta train, or latest."""
    count: int = 6
    """How many images."""
    down: float = 0.0
    """Shift: share of the side, negative = up."""
    right: float = 0.25
    """Shift: share of the side, negative = left."""
    by: float = 2.0
    """Zoom: factor; unit: deviations to raise its map by, negative = take it out."""
    unit: str = ""
    """LAYER/CHANNEL of the generator: this one in place of all that are shared."""
    k: int = 1
    """Shared units: among each other's k best, above every score of permuted images."""
    steps: int = 300
    """Steps of Adam."""
    rate: float = 0.05
    """Its peak learning rate."""
    prior: float = 0.1
    """Weight of the mean squared distance from the first code."""
    seed: int = 0
    """Seed of the codes."""

    def __post_init__(self):
        at_least(1, count=self.count, k=self.k, steps=self.steps)
        at_least(0, seed=self.seed)
        if self.edit == "unit" and not self.unit:
            raise UserError("edit unit needs --unit LAYER/CHANNEL of the generator, as in stages.1/3")
        if self.edit == "zoom" and not self.by > 0:
            raise UserError(f"--by {self.by:g}: a zoom needs a factor above 0")


@dataclass(frozen=True)
class ReportConfig:
    """One page about a run."""

    run: Positional[str] = "latest"
    """Run folder, or latest."""


@dataclass(frozen=True)
class ReproduceConfig:
    """Claims of the README, run again."""

    ids: Positional[tuple[str, ...]] = ("all",)
    """Result files to write, or all."""
    seeds: int = 0
    """How many seeds, 0, 1, ...; 0 = the claim's own number."""
    out: str = ""
    """Folder for the JSON; empty = the package's results folder."""

    def __post_init__(self):
        at_least(0, seeds=self.seeds)
