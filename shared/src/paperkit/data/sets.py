"""What every image set is: length, items, name, classes, licence, random draws. Used by every paper."""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from paperkit import UserError, images
from paperkit.data.batches import permutation
from paperkit.data.sources import Source

_CHUNK = 64  # images that a thread decodes before it asks for more
UNLABELLED = -1
"""The label of an image that has none (a flat folder)."""


@dataclass(frozen=True)
class Facts:
    """What results and reports say of a set."""

    name: str
    """What stands in results: `MNIST`, `cifar10-jpeg`."""
    licence: str
    split: str = "all"
    stand_in: bool = False
    """True where the images are not those that the published name means; `note` says how they differ."""
    note: str = ""

    def counted(self, found: int, published: int | None) -> "Facts":
        """The same, or a stand-in where not as many images were found as were published."""
        if published is None or found == published:
            return self
        note = f"{found:,} of the published {published:,} images"
        return replace(self, stand_in=True, note=f"{self.note}; {note}" if self.note else note)


_Set = TypeVar("_Set", bound="ImageSet")  # typing.Self is unknown to beartype on single methods


class ImageSet(Dataset[tuple[Tensor, int]], ABC):
    """A set of labelled images; item i is (uint8 image (c, h, w), label).

    Copies made by `subset` and `holdout` share the images. Safe under threads and under worker processes.
    """

    def __init__(self, facts: Facts, labels: Int64[np.ndarray, "n"], classes: Sequence[str]):
        self.facts = facts
        self.classes = tuple(classes)
        """Names of the labels 0, 1, ...; empty where labels are numbers (ages) or missing."""
        self.total = len(labels)
        """How many images the split has before any draw."""
        self._labels = labels
        self._index = np.arange(len(labels))

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def split(self) -> str:
        return self.facts.split

    @property
    def licence(self) -> str:
        return self.facts.licence

    @property
    def stand_in(self) -> bool:
        return self.facts.stand_in

    @property
    def note(self) -> str:
        return self.facts.note

    @property
    def labels(self) -> Int64[Tensor, "n"]:
        """All labels, in order."""
        return torch.from_numpy(self._labels[self._index])

    def __str__(self) -> str:
        """As results say it: `MNIST, 10,000 of 60,000`."""
        return f"{self.name}, {len(self):,}" + (f" of {self.total:,}" if len(self) < self.total else "")

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> tuple[UInt8[Tensor, "c h w"], int]:
        position = int(self._index[i])
        return self._image(position), int(self._labels[position])

    @abstractmethod
    def _image(self, position: int) -> UInt8[Tensor, "c h w"]:
        """The image at a position of the whole set."""

    def subset(self: _Set, n: int, seed: int = 0) -> _Set:
        """Draw `n` images without repeats, in random order; the same ones for the same seed.

        A smaller draw is the beginning of a larger one. Raises `UserError` when there are fewer than `n`.
        """
        images.check_positive(n=n)
        if n > len(self):
            raise UserError(f"{self} has no {n:,} images: ask for at most {len(self):,}")
        return self._at(permutation(len(self), seed, "subset")[:n])

    def holdout(self: _Set, n: int, seed: int = 0) -> tuple[_Set, _Set]:
        """Split at random into (the rest, `n` held-out images), the same ones for the same seed."""
        images.check_positive(n=n)
        if n >= len(self):
            raise UserError(f"cannot hold out {n:,} images of {self}: nothing would be left")
        order = permutation(len(self), seed, "holdout")
        return self._at(np.sort(order[n:])), self._at(np.sort(order[:n]))

    def _at(self: _Set, positions: Int64[np.ndarray, "n"]) -> _Set:
        part = copy.copy(self)
        part._index = self._index[positions]
        return part

    def tensor(
        self, limit: int | None = None, size: int | None = None, grey: bool = False, seed: int = 0
    ) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, "n"]]:
        """Load the images into one tensor, with their labels.

        `limit` draws that many at random by `seed` (files are often sorted by class: the first n would be one
        class). `size` resizes the shorter side and crops the centre. Raises `UserError` for images of several
        sizes when no `size` is given, and whatever reading a damaged file raises.
        """
        part = self if limit is None else self.subset(limit, seed)
        if size is not None:
            images.check_positive(size=size)
        return part._stack(size, grey), part.labels

    def _stack(self, size: int | None, grey: bool) -> UInt8[Tensor, "n c h w"]:
        first = images.fit(self[0][0], size, grey)
        stacked = torch.empty((len(self), *first.shape), dtype=torch.uint8)

        def load(start: int) -> None:
            for i in range(start, min(start + _CHUNK, len(self))):
                image = images.fit(self[i][0], size, grey)
                if image.shape != first.shape:
                    shapes = f"{tuple(first.shape)} and {tuple(image.shape)}"
                    raise UserError(f"the images of {self.name} differ in size ({shapes}): give a size")
                stacked[i] = image

        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:  # decoding releases the lock
            list(pool.map(load, range(0, len(self), _CHUNK)))
        return stacked


class ArraySet(ImageSet):
    """A set that lies in memory as one uint8 array (n, c, h, w)."""

    def __init__(
        self,
        facts: Facts,
        pixels: UInt8[np.ndarray, "n c h w"],
        labels: Int64[np.ndarray, "n"],
        classes: Sequence[str],
    ):
        super().__init__(facts, labels, classes)
        self._pixels = torch.from_numpy(pixels)

    def _image(self, position: int) -> UInt8[Tensor, "c h w"]:
        return self._pixels[position]

    def _stack(self, size: int | None, grey: bool) -> UInt8[Tensor, "n c h w"]:
        return images.fit(self._pixels[torch.from_numpy(self._index)], size, grey)


class FileSet(ImageSet):
    """A set of image files in a folder or an archive, decoded when asked for."""

    def __init__(
        self,
        facts: Facts,
        source: Source,
        names: Sequence[str],
        labels: Int64[np.ndarray, "n"],
        classes: Sequence[str],
        mode: images.Mode = "rgb",
    ):
        super().__init__(facts, labels, classes)
        self._source = source
        self._names = tuple(names)
        self._mode: images.Mode = mode

    @property
    def names(self) -> tuple[str, ...]:
        """The file name of every image, in order."""
        return tuple(self._names[i] for i in self._index)

    def relabelled(self, labels: Int64[np.ndarray, "n"], classes: Sequence[str]) -> "FileSet":
        """The same images with other labels."""
        changed = copy.copy(self)
        ImageSet.__init__(changed, self.facts, labels, classes)
        return changed

    def _image(self, position: int) -> UInt8[Tensor, "c h w"]:
        name = self._names[position]
        return images.decode(self._source.read(name), f"{self._source.path}: {name}", self._mode)
