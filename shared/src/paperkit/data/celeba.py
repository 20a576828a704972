"""CelebA in torchvision's layout: aligned faces as a folder or zip, and their lists. Used by ign."""

from pathlib import Path

import numpy as np

from paperkit import UserError
from paperkit.data.root import Known, Root, find
from paperkit.data.sets import UNLABELLED, Facts, FileSet
from paperkit.data.sources import open_source
from paperkit.images import is_image, natural_order

CELEBA = Known(
    "celeba",
    "celeba/img_align_celeba (folder or .zip) and celeba/list_eval_partition.txt",
    "1.4 GB",
    "Liu, Luo, Wang and Tang, CUHK",
    "non-commercial research only",
    published={"train": 162_770, "val": 19_867, "test": 19_962, "all": 202_599},
)
_PARTITION = {"train": 0, "val": 1, "test": 2}


def open_celeba(split: str, root: Root = None, download: bool = False) -> FileSet:
    """Open CelebA, 178x218 RGB; the label is the person's number where identity_CelebA.txt is there, else -1.

    Raises `UserError` when it is missing, or when an image that the lists name is not there.
    """
    if split not in (*_PARTITION, "all"):
        raise UserError(f"celeba has the splits train, val, test and all, not {split!r}")
    place = find(CELEBA, root, ["celeba/img_align_celeba", "celeba/img_align_celeba.zip"], download)
    source = open_source(place)
    there = {name.rsplit("/", 1)[-1]: name for name in source.names() if is_image(name)}
    partition = _read_list(place.parent / "list_eval_partition.txt")
    chosen = [name for name, part in partition.items() if split == "all" or part == _PARTITION[split]]
    absent = [name for name in chosen if name not in there]
    if absent or not chosen:
        first = f", the first is {absent[0]}" if absent else ""
        raise UserError(
            f"{place} lacks {len(absent):,} of the {len(chosen):,} images of split {split!r}{first}"
        )
    identities = place.parent / "identity_CelebA.txt"
    persons = _read_list(identities) if identities.exists() else {}
    names = natural_order(chosen)
    labels = np.array([persons.get(name, UNLABELLED) for name in names], np.int64)
    return FileSet(
        Facts("celeba", CELEBA.licence, split), source, [there[name] for name in names], labels, ()
    )


def _read_list(path: Path) -> dict[str, int]:
    try:
        pairs = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {name: int(number) for name, number in pairs}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}: it belongs beside the images") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: a line is not `<file name> <number>`") from error
