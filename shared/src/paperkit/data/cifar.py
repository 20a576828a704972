"""CIFAR-10: the published pickles in torchvision's layout, or archives of class folders. Used by ittt,
flexpredict, rosetta, ccconv and sempyramid.

The published files are Python pickles, which may run code. They are opened by an unpickler that knows two
inert classes of this module in the place of NumPy's and nothing else: whatever asks for another name is
refused.
"""

import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from paperkit import UserError
from paperkit.data.folders import open_images
from paperkit.data.root import Known, Root, find
from paperkit.data.sets import ArraySet, Facts, ImageSet

_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_FOLDER = "cifar-10-batches-py"
_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


def _download(root: Path) -> None:
    from torchvision.datasets import CIFAR10, utils  # here: importing torchvision takes seconds

    # Not CIFAR10(download=True): its constructor would go on to unpickle the files.
    utils.download_and_extract_archive(CIFAR10.url, str(root), filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)


CIFAR10 = Known(
    "cifar10",
    f"the folder {_FOLDER}, or cifar10/train.tar.xz and test.tar.xz with class folders,",
    "170 MB",
    "Krizhevsky, University of Toronto",
    "research use (Krizhevsky 2009)",
    tuple(_CLASSES),
    {"train": 50_000, "test": 10_000},
    _download,
)


def open_cifar10(split: str, root: Root = None, download: bool = False) -> ImageSet:
    """Open CIFAR-10; JPEG archives are named `cifar10-jpeg` and are a stand-in for the published pixels.

    Raises `UserError` when it is missing, cut short, damaged, or a file holds anything but arrays and lists.
    """
    if split not in _BATCHES:
        raise UserError(f"cifar10 has the splits train and test, not {split!r}")
    folder = find(CIFAR10, root, [_FOLDER, f"cifar10/{_FOLDER}", "cifar10"], download)
    facts = Facts(CIFAR10.name, CIFAR10.licence, split)
    return _open_pickles(folder, facts) if folder.name == _FOLDER else _open_archives(folder, facts)


def _open_archives(folder: Path, facts: Facts) -> ImageSet:
    opened = open_images(folder, facts.split, facts, _CLASSES)
    if any(name.lower().endswith((".jpg", ".jpeg")) for name in opened.names):
        facts = replace(
            facts, name="cifar10-jpeg", stand_in=True, note="JPEG re-encoding, not the published pixels"
        )
    opened.facts = facts.counted(len(opened), CIFAR10.published[facts.split])
    return opened


def _open_pickles(folder: Path, facts: Facts) -> ArraySet:
    batches = [read_batch(folder / name) for name in _BATCHES[facts.split]]
    pixels = np.concatenate([rows for rows, _ in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([numbers for _, numbers in batches])
    facts = facts.counted(len(labels), CIFAR10.published[facts.split])
    return ArraySet(facts, pixels, labels, _CLASSES)


def read_batch(path: Path) -> tuple[UInt8[np.ndarray, "n 3072"], np.ndarray]:
    """Read one batch file: pixels as channel, row, column, and labels; `UserError` when it is bad."""
    content = _load(path)
    rows, labels = (
        (content.get(b"data"), content.get(b"labels")) if isinstance(content, dict) else (None, None)
    )
    if not isinstance(rows, _Array) or not isinstance(labels, list):
        raise UserError(f"{path} is no CIFAR-10 batch: it has no data and labels")
    try:
        pixels, numbers = rows.bytes(), np.array(labels, np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if pixels.ndim != 2 or pixels.shape[1] != 3072 or numbers.shape != (len(pixels),):
        raise UserError(f"{path} is damaged: pixels {pixels.shape} with {len(labels):,} labels")
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() <= 9:
        raise UserError(f"{path} holds the label {numbers.min()} or {numbers.max()}: not within 0..9")
    return pixels, numbers


# ---------------------------------------------------------------------------------------------------------
# Pickles without code


def _load(path: Path) -> Any:
    try:
        return _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except _Refused as error:
        raise UserError(f"{path} is refused: it asks for {error}, which no CIFAR-10 file needs") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle may raise anything; no code of the file has run
        raise UserError(f"{path} is cut short or damaged: {error or type(error).__name__}") from error


class _Refused(Exception):
    pass


class _Array:
    """Takes the place of `numpy.ndarray` and of what rebuilds one: it only keeps what it is given."""

    def __init__(self, *_: Any):
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def bytes(self) -> UInt8[np.ndarray, "..."]:
        """The array, if it is one of unsigned bytes in C order."""
        _version, shape, dtype, fortran, raw = self._state
        if not isinstance(dtype, _Dtype) or dtype.code not in (b"u1", "u1") or fortran:
            raise ValueError("its pixels are not unsigned bytes")
        return np.frombuffer(bytearray(raw), np.uint8).reshape(shape)


class _Dtype:
    """Takes the place of `numpy.dtype`."""

    def __init__(self, code: Any, *_: Any):
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass


_INERT: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = _INERT.get((module_name, global_name))
        if found is None:
            raise _Refused(f"{module_name}.{global_name}")
        return found
