"""The configuration of `ittt train` on graphs, airfoils and cars, and its presets. Imports no torch."""

from dataclasses import dataclass, field, replace
from typing import Literal

from paperkit import UserError, at_least
from tyro.conf import Positional

from ittt.settings import Settings

TASKS = ("airfoils", "cars")
"""Tasks on graphs that `ittt train --task` takes."""


@dataclass(frozen=True)
class GraphConfig:
    """A network for graphs that can be fed its own prediction, beside a plain twin, and its adaptation."""

    task: Literal["airfoils", "cars"] = "airfoils"
    """airfoils (drawn, lift-to-drag by NeuralFoil) or cars (meshes with their drag)."""
    folder: str = ""
    """Cars: folder of meshes (.obj, .ply, .stl, .off) and a drag.csv; without one, bodies of revolution whose
    drag is a formula's stand in for cars."""
    shapes: int = 2_000
    """Airfoils or bodies that are drawn."""
    nodes: int = 1_000
    """Cars: vertices of a mesh are merged until there are no more than these."""
    outside: float = 0.05
    """Share of shapes kept out of training: airfoils of the highest ratio, cars of the lowest drag."""
    held_out: int = 100
    """Other shapes that are never trained on: for calibration and the no-harm rule."""
    test: int = 200
    """Other shapes to test on, from the range that is trained on."""

    layers: int = 8
    """Graph convolutions (GMMConv)."""
    channels: int = 32
    """Their width."""
    kernels: int = 2
    """Gaussians of each."""
    neutral: float = 0.0
    """Value of the signal when no label is known; labels are near 1."""
    presence: bool = False
    """Feed a further node feature that says whether a label is known."""
    mask: float | None = 0.75
    """Train in one pass, the neutral signal at this probability (the public code); None = in two (Eq. 2)."""

    epochs: int = 20
    """Passes over the shapes that are learned from."""
    batch: int = 32
    """Shapes per step."""
    lr: float = 3e-3
    """Adam's learning rate at the beginning; it falls to 0 along a cosine."""
    seed: int = 0
    """Seed of the parts, of weights and order."""

    adapt: Settings = field(default_factory=lambda: Settings(steps=1, lr=2e-4))
    """How a test batch is adapted to."""
    adapt_batch: int = 16
    """Test shapes that are adapted to together; 0 = all."""
    no_harm: bool = True
    """Lower the learning rate of --adapt until held-out shapes show harm of at most 1 %, to 0 if need be."""

    log_every: int = 50
    """Steps between lines of metrics."""
    test_every: int = 250
    """Steps between tests on held-out shapes."""
    save_every: int = 250
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""

    def __post_init__(self):
        at_least(
            1, shapes=self.shapes, nodes=self.nodes, held_out=self.held_out, test=self.test,
            layers=self.layers, channels=self.channels, kernels=self.kernels, epochs=self.epochs,
            batch=self.batch, log_every=self.log_every, test_every=self.test_every,
            save_every=self.save_every, keep=self.keep,
        )  # fmt: skip
        at_least(0, seed=self.seed, adapt_batch=self.adapt_batch)
        if self.folder and self.task != "cars":
            raise UserError("--folder is for --task cars: airfoils are drawn")
        if not 0 < self.outside < 1:
            raise UserError(f"--outside is a share between 0 and 1, not {self.outside:g}")
        if not self.lr > 0:
            raise UserError(f"--lr must be positive, not {self.lr}")
        if self.mask is not None and not 0 <= self.mask <= 1:
            raise UserError(f"--mask is a probability, not {self.mask:g}")
        if self.adapt.norm != "eval":
            raise UserError("--adapt.norm: these networks have no batch norm; leave it at eval")


@dataclass(frozen=True)
class GraphAdaptConfig:
    """A folder of shapes → predictions, gaps and what adaptation did, shape by shape."""

    shapes: Positional[str]
    """Folder of outlines (.dat, Selig's order) with a run on airfoils, of meshes with a run on cars."""
    run: str = "latest"
    """Run folder of a network trained on airfoils or cars, or latest."""
    out: str = "adapted.csv"
    """CSV or JSON file to write."""
    batch: int = 16
    """Shapes that are adapted to together; 0 = all."""
    adapt: Settings = field(default_factory=lambda: Settings(steps=1, lr=2e-4, abstain=0.1))
    """How."""
    no_harm: bool = True
    """Lower the learning rate of --adapt until the run's held-out shapes show a harm of at most 1 %."""

    def __post_init__(self):
        at_least(0, batch=self.batch)
        if not self.out.endswith((".csv", ".json")):
            raise UserError(f"--out {self.out} must end in .csv or .json")


@dataclass(frozen=True)
class GraphEvaluateConfig:
    """Errors of a trained network inside and outside the range it was trained on, by every method."""

    run: str = "latest"
    """Run folder of a network trained on airfoils or cars, or latest."""
    batches: tuple[int, ...] = (1, 4, 16)
    """Test shapes that are adapted to together."""
    methods: tuple[str, ...] = ("plain", "none", "it3", "un-frozen", "shuffled", "random")
    """Methods, none = without adaptation; shuffled needs other shapes and is left out at batches of one."""
    adapt: Settings = field(default_factory=lambda: Settings(steps=1, lr=2e-4))
    """How the methods adapt."""

    def __post_init__(self):
        if not self.batches or min(self.batches) < 1 or not self.methods:
            raise UserError("--batches and --methods need one entry or more, batches of at least 1")


AIRFOIL = GraphConfig()
AIRFOILS = {
    "smoke": (
        replace(
            AIRFOIL, shapes=120, outside=0.1, held_out=12, test=16, layers=3, channels=8, epochs=2, batch=16,
            log_every=2, test_every=4, save_every=4,
        ),
        "the same path in half a minute, most of it NeuralFoil's start; errors of no meaning",
    ),
    "small": (AIRFOIL, "2,000 airfoils, eight convolutions: minutes of one core"),
    "paper": (
        replace(AIRFOIL, layers=25, batch=128, lr=1e-3, no_harm=False),
        "25 convolutions (section 4.5); labels are NeuralFoil's, not XFoil's; not run here",
    ),
}  # fmt: skip

CAR = replace(AIRFOIL, task="cars", shapes=800, outside=0.1, adapt_batch=4)
CARS = {
    "smoke": (
        replace(AIRFOILS["smoke"][0], task="cars", adapt_batch=4),
        "the same path in seconds, on bodies of revolution that stand in for cars",
    ),
    "small": (CAR, "800 bodies of revolution that stand in for cars, or --folder: minutes of one core"),
    "paper": (
        replace(CAR, layers=35, epochs=100, lr=1e-3, nodes=4_000, no_harm=False),
        "35 convolutions, 100 epochs (section 4.5), for --folder: hours on a GPU; not run here",
    ),
}
