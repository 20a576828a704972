"""Real data that is always there: it ships inside scikit-learn and scikit-image, nothing is downloaded.

Used by every paper's `small` and `smoke` presets and by tests.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from paperkit import UserError, images
from paperkit.data.batches import permutation
from paperkit.data.sets import UNLABELLED, ArraySet, Facts, FileSet
from paperkit.data.sources import FolderSource

DIGITS_TEST = 500
"""How many of the 1,797 digits are held out, drawn at random once and for all."""


def digits(split: str = "all") -> tuple[Float[Tensor, "n 1 8 8"], Int64[Tensor, "n"]]:
    """The UCI handwritten digits of scikit-learn as float32 in [-1, 1], with their labels.

    The raw pixels are whole numbers k from 0 (ground) to 16 (ink) and become k / 8 - 1, which float32 holds
    exactly. `split` is "train" (1,297), "test" (500) or "all" (1,797, in the order of the file).
    """
    raw, labels = _raw_digits(split)
    return torch.from_numpy(raw / 8 - 1).float()[:, None], torch.from_numpy(labels)


def _raw_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # here: importing scikit-learn takes seconds

    pixels, labels = load_digits(return_X_y=True)
    pixels, labels = pixels.reshape(-1, 8, 8), np.asarray(labels).astype(np.int64)
    order = permutation(len(labels), 0, "digits")
    parts = {"train": np.sort(order[DIGITS_TEST:]), "test": np.sort(order[:DIGITS_TEST])}
    if split not in (*parts, "all"):
        raise UserError(f"digits has the splits train, test and all, not {split!r}")
    chosen = parts.get(split, slice(None))
    return pixels[chosen], labels[chosen]


def open_digits(split: str) -> ArraySet:
    """The digits as an image set: a raw pixel k of 0..16 becomes round(k * 255 / 16)."""
    raw, labels = _raw_digits(split)
    pixels = np.round(raw * (255 / 16)).astype(np.uint8)[:, None]
    facts = Facts("digits", "CC BY 4.0 (Alpaydin and Kaynak, UCI repository)", split)
    return ArraySet(facts, pixels, labels, [str(d) for d in range(10)])


PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
    "gravel.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
"""Photographs in scikit-image's wheel whose pages there call them CC0 or free of known restrictions."""


def _shipped() -> Path:
    import skimage.data  # here: the folder is all that is needed of it

    return Path(skimage.data.__file__).parent


def open_photographs(split: str) -> FileSet:
    """The photographs of scikit-image, 300 to 1411 pixels a side, without labels; there is no test split."""
    _no_splits("photographs", split)
    facts = Facts("photographs", "CC0 or no known copyright restrictions (scikit-image)")
    source, labels = FolderSource(_shipped()), np.full(len(PHOTOGRAPHS), UNLABELLED, np.int64)
    return FileSet(facts, source, PHOTOGRAPHS, labels, ())


def photograph(name: str = "astronaut") -> UInt8[Tensor, "3 h w"]:
    """One of scikit-image's photographs by name, in colour (grey ones with three equal channels)."""
    files = {file.rsplit(".", 1)[0]: file for file in PHOTOGRAPHS}
    if name not in files:
        raise UserError(f"no photograph {name!r}: there are {', '.join(files)}")
    return images.read(_shipped() / files[name])


def open_faces(split: str) -> ArraySet:
    """scikit-image's 200 grey crops of LFW, 25x25: label 1 for 100 faces, 0 for 100 pieces of background."""
    _no_splits("lfw-subset", split)
    path = _shipped() / "lfw_subset.npy"
    try:
        crops = np.load(path)  # floats in [0, 1]
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    labels = np.repeat(np.array([1, 0], np.int64), 100)
    facts = Facts("lfw-subset", "as Labeled Faces in the Wild, research use")
    return ArraySet(facts, np.round(crops * 255).astype(np.uint8)[:, None], labels, ["background", "face"])


def _no_splits(name: str, split: str) -> None:
    if split not in ("train", "all"):
        raise UserError(f"{name} has no splits: open all of it and use holdout(n)")
