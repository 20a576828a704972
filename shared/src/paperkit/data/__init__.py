"""Data sets by name, and never a download that was not asked for. Used by every paper.

`open_set("MNIST", "train")` gives an `ImageSet`: items (uint8 image (c, h, w), label), `.tensor()` for all,
`.subset(n, seed)` for a random draw. `digits()` gives floats in [-1, 1]. `open_table`, `open_pairs` and
`open_frames` open what is no set of labelled images. `batch_indices` and `Loader` give batches by (seed,
step).

Images are uint8, 0..255; `paperkit.images.to_float` makes them floats in [-1, 1].
"""

from paperkit.data.batches import Loader, batch_indices, permutation
from paperkit.data.catalogue import NAMES, Split, open_set
from paperkit.data.clips import Clip, list_clips, list_videos, open_frames
from paperkit.data.embedded import digits, photograph
from paperkit.data.pairs import PairSet, open_pairs
from paperkit.data.root import data_root
from paperkit.data.sets import UNLABELLED, ArraySet, Facts, FileSet, ImageSet
from paperkit.data.tables import UCI, Table, TableSplit, open_table

__all__ = [
    "NAMES",
    "UCI",
    "UNLABELLED",
    "ArraySet",
    "Clip",
    "Facts",
    "FileSet",
    "ImageSet",
    "Loader",
    "PairSet",
    "Split",
    "Table",
    "TableSplit",
    "batch_indices",
    "data_root",
    "digits",
    "list_clips",
    "list_videos",
    "open_frames",
    "open_pairs",
    "open_set",
    "open_table",
    "permutation",
    "photograph",
]
