"""Sets of image files: a folder, a zip or a tar, flat or in class folders, with splits or without.

Used by every paper that sees more than digits.
"""

import functools
import json
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from paperkit import UserError, images
from paperkit.data.sets import UNLABELLED, Facts, FileSet
from paperkit.data.sources import ARCHIVES, Source, open_source

_FOLDERS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
    "val": ("val", "valid", "validation"),
}
_EVERY = {folder for folders in _FOLDERS.values() for folder in folders}


def open_images(path: Path, split: str, facts: Facts, classes: Sequence[str] = ()) -> FileSet:
    """Open a folder, zip or tar of images; the first folder below the top (or below the split) is the class.

    Splits are sub-folders or archives named train, val(idation) or test; "test" takes val where there is no
    test with classes. Without splits, "train" and "all" are everything. Images in one folder, or some in
    folders and some not, have no label. Labels count the training split's classes in alphabetical order,
    unless `classes` names them. Raises `UserError` for a split that is not there, no images, a class that is
    not one of these, and a damaged archive.
    """
    parts = _parts(path)
    part = _choose(path, parts, split)
    train = next((folder for folder in _FOLDERS["train"] if folder in parts), None)
    classes = classes or (parts[train]() if train else part).classes
    part = part.with_top_for(classes)
    return FileSet(replace(facts, split=split), part.source, part.names, part.labels(classes), classes)


def open_flat(path: Path, split: str, facts: Facts) -> FileSet:
    """Open images without splits whose labels stand in their file names or do not matter."""
    part = _choose(path, _parts(path), split)
    labels = np.full(len(part.names), UNLABELLED, np.int64)
    return FileSet(replace(facts, split=split), part.source, part.names, labels, ())


# ---------------------------------------------------------------------------------------------------------
# Parts: the splits of a folder or an archive


@dataclass(frozen=True)
class _Part:
    """The images of one split: their names in a source, and the folder ("" or "a/b/") they all lie below."""

    source: Source
    names: list[str]
    top: str

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """The first folders below the top, sorted; none when an image lies in no folder."""
        inside = [name[len(self.top) :].split("/", 1) for name in self.names]
        return tuple(sorted({parts[0] for parts in inside})) if all(len(p) > 1 for p in inside) else ()

    def with_top_for(self, classes: Sequence[str]) -> "_Part":
        """The same images below the deepest folder at which all their folders are `classes`.

        An archive whose images are all of one class has that class as the folder of them all.
        """
        part = self
        while not part.classes or not {*part.classes} <= {*classes}:
            if not part.top:
                return self
            above = posixpath.dirname(part.top[:-1])
            part = replace(part, top=f"{above}/" if above else "")
        return part

    def labels(self, classes: Sequence[str]) -> np.ndarray:
        """The number in `classes` of every image's class folder; `UserError` when one is not in there."""
        foreign = sorted({*self.classes} - {*classes})
        if foreign or (classes and not self.classes):
            what = f"the class {foreign[0]!r}" if foreign else "images outside class folders"
            raise UserError(f"{self.source.path} {self.top} has {what}; the classes are {_listed(classes)}")
        if not classes:
            return np.full(len(self.names), UNLABELLED, np.int64)
        number = {name: i for i, name in enumerate(classes)}
        return np.array([number[name[len(self.top) :].split("/", 1)[0]] for name in self.names], np.int64)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6:,} more" if len(names) > 6 else "")


def _parts(path: Path) -> dict[str, Callable[[], _Part]]:
    """The splits that a folder or archive has, by folder name; one part named "" where it has none."""
    archives, folders = _look(path)
    splits = {stem: archives[stem] for stem in archives if stem in _EVERY}
    if splits:  # train.zip, test.zip: opened when asked for
        return {stem: functools.cache(functools.partial(_whole, entry)) for stem, entry in splits.items()}
    if archives and not folders:
        if len(archives) > 1:
            names = _listed([entry.name for entry in archives.values()])
            raise UserError(f"{path} holds several archives ({names}): name one of them")
        return _parts(next(iter(archives.values())))
    whole = _whole(path)
    if {*whole.classes} <= _EVERY and {*whole.classes} & {*_FOLDERS["train"]}:
        return {folder: functools.partial(_below, whole, folder) for folder in whole.classes}
    return {"": lambda: whole}


def _look(path: Path) -> tuple[dict[str, Path], list[Path]]:
    """The archives in a folder by their name up to the first dot, and its sub-folders; nothing of a file."""
    if not path.is_dir():
        return {}, []
    try:
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    archives = [entry for entry in entries if entry.name.lower().endswith(ARCHIVES) and entry.is_file()]
    return {entry.name.lower().split(".", 1)[0]: entry for entry in archives}, [
        entry for entry in entries if entry.is_dir()
    ]


def _whole(path: Path) -> _Part:
    source = open_source(path)
    names = images.natural_order(name for name in source.names() if images.is_image(name))
    if not names:
        raise UserError(f"no images in {path} (looked for {' '.join(images.SUFFIXES)})")
    shared = posixpath.commonpath([posixpath.dirname(name) for name in (min(names), max(names))])
    return _Part(source, names, f"{shared}/" if shared else "")


def _below(whole: _Part, folder: str) -> _Part:
    top = f"{whole.top}{folder}/"
    return _Part(whole.source, [name for name in whole.names if name.startswith(top)], top)


def _choose(path: Path, parts: dict[str, Callable[[], _Part]], split: str) -> _Part:
    if "" in parts:
        if split in ("train", "all"):
            return parts[""]()
        raise UserError(f"{path} has no splits: open all of it and use holdout(n), or make train and test")
    there = [folder for folder in _FOLDERS.get(split, ()) if folder in parts]
    if not there:
        raise UserError(f"{path} has no split {split!r}: it has {', '.join(sorted(parts))}")
    if len(there) == 1:
        return parts[there[0]]()
    opened = [parts[folder]() for folder in there]  # the test images of ImageNet have no labels
    return next((part for part in opened if part.classes), opened[0])


def licence_of(path: Path) -> str:
    """The licence that a MANIFEST.json in the folder (or the archive's folder) states, else "unknown"."""
    folder = path if path.is_dir() else path.parent
    try:
        manifest = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
        return str(manifest.get("licence", "unknown"))
    except (OSError, ValueError, AttributeError):
        return "unknown"
