"""Data sets by name, never downloaded unless asked. Used by every paper.

`open_set("MNIST", "train")` gives an `ImageSet`: items (uint8 image (c, h, w), label), and `.tensor()` for
all of it.
"""

from typing import Literal

from paperkit import UserError
from paperkit.data.batches import Loader, batch_indices
from paperkit.data.embedded import digits, open_digits
from paperkit.data.idx import FASHION, MNIST, open_idx_set
from paperkit.data.root import Root, data_root
from paperkit.data.sets import ArraySet, FileSet, ImageSet

__all__ = ["ArraySet", "FileSet", "ImageSet", "Loader", "batch_indices", "data_root", "digits", "open_set"]


def open_set(
    name: str, split: Literal["train", "test", "all"] = "train", root: Root = None, download: bool = False
) -> ImageSet:
    """Open an image set by name."""
    if name == "digits":
        return open_digits(split)
    for known in (MNIST, FASHION):
        if name.lower() == known.name.lower():
            return open_idx_set(known, split, root, download)
    raise UserError(f"no data set {name!r}")
