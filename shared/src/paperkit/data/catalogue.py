"""The image sets that have a name, and how each is opened. Used by every paper through `open_set`."""

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from paperkit import UserError
from paperkit.data.celeba import open_celeba
from paperkit.data.cifar import open_cifar10
from paperkit.data.embedded import open_digits, open_faces, open_photographs
from paperkit.data.folders import licence_of, open_flat, open_images
from paperkit.data.idx import FASHION, MNIST, open_idx_set
from paperkit.data.root import Known, Root, data_root, exists, find
from paperkit.data.sets import Facts, FileSet, ImageSet

Split = Literal["train", "val", "test", "all"]
Opener = Callable[[str, Root, bool], ImageSet]

TINY = Known(
    "tiny-imagenet",
    "tiny-imagenet/train.zip and val.zip with class folders",
    "50 to 240 MB",
    "Stanford CS231n",
    "ImageNet terms, research use",
    published={"train": 100_000, "test": 10_000, "val": 10_000},
)
IMAGENET = Known(
    "imagenet",
    "imagenet/train and imagenet/val with class folders",
    "145 GB",
    "image-net.org (registration)",
    "ImageNet terms, research use",
    published={"train": 1_281_167, "test": 50_000, "val": 50_000},
)
PLACES = Known(
    "places365",
    "places365_standard/train and places365_standard/val with class folders",
    "25 GB",
    "MIT CSAIL",
    "Places terms, research use",
    published={"train": 1_803_460, "test": 36_500, "val": 36_500},
)
SAMPLE = Known(
    "imagenet-sample",
    "imagenet-sample/images.zip, one <wnid>_<name>.jpg per class,",
    "21 MB",
    "EliSchwartz/imagenet-sample-images",
    "ImageNet terms, research use",
)
UTKFACE = Known(
    "utkface",
    "utkface/images.zip of <age>_<gender>_<race>_<number>.jpg",
    "18 MB",
    "the UTKFace project",
    "non-commercial research only",
)
_SR = ("the SelfExSR project", "research use")
_SINGLE = ("the GPDM project", "of its repository, research use")
FLAT = {
    "sr/Set5": Known("Set5", "sr/Set5 with five PNG files", "1 MB", *_SR),
    "sr/Set14": Known("Set14", "sr/Set14 with fourteen PNG files", "5 MB", *_SR),
    "single-images/SIGD16": Known("SIGD16", "single-images/SIGD16 with sixteen files", "1 MB", *_SINGLE),
    "single-images/Places50": Known("Places50", "single-images/Places50 with fifty files", "2 MB", *_SINGLE),
}


def open_set(
    name_or_path: str | os.PathLike[str], split: Split = "train", root: Root = None, download: bool = False
) -> ImageSet:
    """Open a set of images by name, or any folder, zip or tar of images by path (also relative to the root).

    Names: digits, photographs, lfw-subset (always there); MNIST, FashionMNIST, cifar10, celeba,
    tiny-imagenet, imagenet, imagenet-sample, places365, utkface, Set5, Set14, SIGD16, Places50 (by file below
    the root). A name goes before a folder of that name (then write ./name). Items are (uint8 image (c, h, w),
    label). "test" is the published test split, or the validation split where the test labels are not public.
    `download` fetches a missing MNIST, FashionMNIST or cifar10. Raises `UserError`, one line, for a set that
    is missing, cut short or damaged, or has no such split.
    """
    name = os.fspath(name_or_path)
    if not isinstance(name_or_path, os.PathLike):
        if opener := _OPENERS.get(_key(name)):
            return opener(split, root, download)
        if other := _ELSEWHERE.get(_key(name)):
            raise UserError(f"{name} is no set of labelled images: open it with paperkit.data.{other}")
    path = Path(name).expanduser()
    if not exists(path) and not path.is_absolute():
        path = data_root(root) / name
    if not exists(path):
        raise _unknown(name)
    return open_images(path, split, Facts(_path_name(path), licence_of(path)))


def _key(name: str) -> str:
    return re.sub("[-_ ]", "", name).lower()


def _path_name(path: Path) -> str:
    """A path's last folder or file name without the archive's endings: no machine's paths in results."""
    return re.sub(r"\.(zip|tar|tgz|txz)(\.\w+)?$", "", path.resolve().name, flags=re.IGNORECASE)


def _unknown(name: str) -> UserError:
    near = difflib.get_close_matches(_key(name), _OPENERS, n=1)
    hint = f"did you mean {NAMES[near[0]]}?" if near else f"names are {', '.join(NAMES.values())}"
    return UserError(f"no data set and no folder or archive {name!r}: {hint}")


def _open_folder(known: Known, places: list[str], split: str, root: Root, download: bool) -> ImageSet:
    path = find(known, root, places, download)
    opened = open_images(path, split, Facts(known.name, known.licence))
    if not opened.classes:
        raise UserError(f"{path} is not laid out as {known.name}: it needs class folders")
    opened.facts = opened.facts.counted(len(opened), known.published.get(split))
    return opened


def _open_tiny(split: str, root: Root, download: bool) -> ImageSet:
    """All 200 classes are Tiny-ImageNet; a part of them has their number in its name."""
    places = ["tiny-imagenet", "tiny-imagenet-200", "tiny-imagenet-200.zip"]
    opened = _open_folder(TINY, places, split, root, download)
    if len(opened.classes) != 200:
        note = f"{opened.note}; {len(opened.classes)} of 200 classes"
        opened.facts = replace(
            opened.facts, name=f"{TINY.name}-{len(opened.classes)}", stand_in=True, note=note
        )
    return opened


def _open_one_folder(known: Known, place: str, split: str, root: Root, download: bool) -> FileSet:
    return open_flat(find(known, root, [place], download), split, Facts(known.name, known.licence))


def _open_sample(split: str, root: Root, download: bool) -> ImageSet:
    """One image per ImageNet class in the order of WordNet ids: its position is the class index."""
    opened = _open_one_folder(SAMPLE, "imagenet-sample", split, root, download)
    stems = [PurePosixPath(name).stem for name in opened.names]
    if stems != sorted(stems, key=lambda stem: stem.split("_")[0]) or len(stems) != 1000:
        raise UserError(
            f"imagenet-sample needs one image for each of 1,000 classes, and holds {len(stems):,}"
        )
    classes = [stem.partition("_")[2].replace("_", " ") for stem in stems]
    return opened.relabelled(np.arange(1000, dtype=np.int64), classes)


def _open_utkface(split: str, root: Root, download: bool) -> ImageSet:
    """The label is the age in years, the first number of the file name."""
    opened = _open_one_folder(UTKFACE, "utkface", split, root, download)
    ages = [PurePosixPath(name).name.split("_", 1)[0] for name in opened.names]
    wrong = [name for name, age in zip(opened.names, ages, strict=True) if not age.isdecimal()]
    if wrong:
        raise UserError(
            f"utkface: {wrong[0]} does not begin with an age (<age>_<gender>_<race>_<number>.jpg)"
        )
    return opened.relabelled(np.array([int(age) for age in ages], np.int64), ())


_NAMED: dict[str, Opener] = {
    "digits": lambda split, root, download: open_digits(split),
    "photographs": lambda split, root, download: open_photographs(split),
    "lfw-subset": lambda split, root, download: open_faces(split),
    "MNIST": partial(open_idx_set, MNIST),
    "FashionMNIST": partial(open_idx_set, FASHION),
    "cifar10": open_cifar10,
    "celeba": open_celeba,
    "tiny-imagenet": _open_tiny,
    "imagenet": partial(_open_folder, IMAGENET, ["imagenet"]),
    "places365": partial(_open_folder, PLACES, ["places365_standard", "places365"]),
    "imagenet-sample": _open_sample,
    "utkface": _open_utkface,
    **{known.name: partial(_open_one_folder, known, place) for place, known in FLAT.items()},
}
_ELSEWHERE = {
    "aerialroads": "open_pairs",
    "videos": "open_frames or list_videos",
    "uci": "open_table",
    "diabetes": "open_table",
}
NAMES = {_key(name): name for name in _NAMED}
_OPENERS = {_key(name): opener for name, opener in _NAMED.items()}
