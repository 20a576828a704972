"""The trained image networks of all claims, one per data set, norm and seed, and the tasks made of them."""

from collections.abc import Sequence
from functools import cache, partial

from jaxtyping import Float, Int64
from paperkit import UserError, rng
from torch import Tensor

from ittt import images, inject, model
from ittt import task as task_module
from ittt.image_config import ImageConfig
from ittt.kept import kept
from ittt.model import ITTT
from ittt.protocol import PRESENCE, Task, Trial
from ittt.settings import Settings

EPOCHS = {"digits": 20, "mnist": 2, "fashionmnist": 2, "cifar10": 4}
"""Passes over at most 10,000 training images: the claims run on one CPU core."""
TEST = 1_000
NORMS = ("none", "group", "batch")
PAPER = Settings(steps=2, lr=1e-3, rollback=False, measure=False)
"""The paper's method on images as the spec fixed it (A12: 1 to 3 steps of 1e-3), without safeguards."""
NOISE = {"digits": (1.0, 1.5), "mnist": (1.0, 1.5), "fashionmnist": (1.0, 1.5), "cifar10": (0.25, 0.5)}
"""Two levels of Gaussian noise, in standard deviations of the training pixels; the public notebooks have 1.5
on MNIST and 0.5 on CIFAR-10."""


TOLD = True
"""Whether networks of the claims about images alone are told by a bit that a label is known: they were when
those ran. The claims over every task and `image_forms` have networks without it, as the paper has."""


def recipe(data: str, norm: str, seed: int, presence: bool = TOLD) -> ImageConfig:
    """The configuration of a network of the claims; batch norm stores what training left."""
    return ImageConfig(
        data=data, norm=norm, seed=seed, presence=presence, restate=False,  # pyright: ignore
        epochs=EPOCHS[data], test=TEST, held_out=500, corruptions=(),
        test_every=10_000, log_every=100, save_every=150,
    )  # fmt: skip


@cache
def network(data: str, norm: str, seed: int, presence: bool = TOLD) -> ITTT:
    """A trained network, ready to be asked; trained now where it is not kept."""
    config = recipe(data, norm, seed, presence)
    modules = (images, inject, model, task_module)
    return images.restored(kept(config, f"{data}-{norm}", modules, images.train))[0]


def at_hand(names: Sequence[str]) -> list[str]:
    """Those of the named sets that the data folder has."""
    return [name for name in names if _opens(name)]


def _opens(name: str) -> bool:
    try:
        images.load(recipe(name, "none", 0))
    except UserError:
        return False
    return True


# ---- tasks -------------------------------------------------------------------------------------------------


SHOWN = 512
"""Test images of the claims over every task."""
SEEDS = 5
"""At most so many networks of a task: claims over every task have more seeds for tables."""


def tasks() -> list[Task]:
    """MNIST and CIFAR-10 under noise, by networks without a norm and, stored statistics, with batch norm."""
    names = at_hand(("mnist", "cifar10"))
    return [noise_task(name, norm) for name in names for norm in ("none", "batch")]


def noise_task(data: str, norm: str) -> Task:
    """One set of images under two levels of noise."""
    pictures, levels = images.load(recipe(data, norm, 0)), tuple(f"{level:g}" for level in NOISE[data])
    named = {"none": "no norm", "group": "group norm", "batch": "batch norm"}[norm]
    return Task(
        name=f"{data} {named}", group=f"{data} {named}", data=f"{pictures.name} ({SHOWN} shown)",
        trials=partial(trials, data, norm), error=points, unit="%", clean="0", shifted=levels, anchor=levels,
        sizes=(64,), settings=PAPER, stand_in=pictures.stand_in,
    )  # fmt: skip


def trials(data: str, norm: str, seeds: int) -> list[Trial]:
    """Networks of the seeds 0, 1, … (at most `SEEDS`) and their test images, clean and under noise."""
    return [trial(data, norm, seed) for seed in range(min(seeds, SEEDS))]


@cache
def trial(data: str, norm: str, seed: int) -> Trial:
    pictures = images.load(recipe(data, norm, seed))
    y = pictures.y_test[:SHOWN]
    tests = {"0": (pictures.x_test[:SHOWN], y)} | {
        f"{level:g}": (noisy(pictures, level, seed)[:SHOWN], y) for level in NOISE[data]
    }
    return Trial(network(data, norm, seed, PRESENCE), None, (pictures.x_clean, pictures.y_clean), tests)


def noisy(pictures: images.Pictures, level: float, seed: int) -> Float[Tensor, "m c h w"]:
    """Test images plus Gaussian noise of `level` standard deviations of the training pixels, not clipped."""
    deviation = pictures.x.std((0, 2, 3), keepdim=True)
    noise = rng.normal(tuple(pictures.x_test.shape), seed, 0, "noise on test images")
    return pictures.x_test + level * deviation * noise


def points(logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """100 where the likeliest class is not the label, else 0: its mean is an error in per cent."""
    return 100 * images.wrong(logits, y)
