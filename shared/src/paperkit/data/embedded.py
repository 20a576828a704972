"""Real data that is always there: it ships inside scikit-learn and scikit-image, nothing is downloaded.

Used by every paper's `small` and `smoke` presets and by tests.
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from paperkit import UserError
from paperkit.data.batches import permutation
from paperkit.data.sets import ArraySet, Facts

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
    pixels, labels = pixels.reshape(-1, 8, 8), labels.astype(np.int64)
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
