"""MNIST and Fashion-MNIST: idx files in torchvision's layout, gzip or not. Used by ign, ittt, conceptor,
ccconv, rosetta, flexpredict and sempyramid.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from paperkit import UserError
from paperkit.data.root import Known, Root, find
from paperkit.data.sets import ArraySet, Facts

_GARMENTS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_PREFIX = {"train": "train", "test": "t10k"}
_PUBLISHED = {"train": 60_000, "test": 10_000}


def _download(name: str, root: Path) -> None:
    from torchvision import datasets  # here: importing torchvision takes seconds

    getattr(datasets, name)(root, download=True)


MNIST = Known(
    "MNIST",
    "the four files MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, gzip or not,",
    "12 MB",
    "LeCun, Cortes and Burges",
    "CC BY-SA 3.0 (LeCun, Cortes)",
    tuple(str(d) for d in range(10)),
    _PUBLISHED,
    lambda root: _download("MNIST", root),
)
FASHION = Known(
    "FashionMNIST",
    "the four files FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, gzip or not,",
    "31 MB",
    "Zalando Research",
    "MIT (Zalando)",
    _GARMENTS,
    _PUBLISHED,
    lambda root: _download("FashionMNIST", root),
)


def open_idx_set(known: Known, split: str, root: Root = None, download: bool = False) -> ArraySet:
    """Open MNIST or a set of the same layout; `split` is "train" or "test".

    Raises `UserError` when it is missing, or when a file is cut short, damaged or disagrees with its partner.
    """
    if split not in _PREFIX:
        raise UserError(f"{known.name} has the splits train and test, not {split!r}")
    stem = f"{known.name}/raw/{_PREFIX[split]}"
    image_file = _find(known, root, f"{stem}-images-idx3-ubyte", download)
    label_file = _find(known, root, f"{stem}-labels-idx1-ubyte", download)
    pixels, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if len(pixels) != len(labels):
        raise UserError(
            f"{image_file} holds {len(pixels):,} images, {label_file} holds {len(labels):,} labels"
        )
    if len(labels) and labels.max() >= len(known.classes):
        raise UserError(
            f"{label_file} holds the label {labels.max()}; the last class is {len(known.classes) - 1}"
        )
    facts = Facts(known.name, known.licence, split).counted(len(labels), known.published.get(split))
    return ArraySet(facts, pixels[:, None], labels.astype(np.int64), known.classes)


def _find(known: Known, root: Root, place: str, download: bool) -> Path:
    return find(known, root, [place, f"{place}.gz"], download)


def read_idx(path: Path, ndim: int) -> UInt8[np.ndarray, "..."]:
    """Read an idx file of unsigned bytes with `ndim` axes: magic number, sizes, then exactly the bytes they
    say.

    Raises `UserError` with the file's name when it cannot be read, is another format, or has too few or too
    many bytes; a gzip file's checksum is verified.
    """
    data = _read_bytes(path)
    start = 4 + 4 * ndim
    if len(data) < start or data[:4] != bytes((0, 0, 8, ndim)):
        raise UserError(
            f"{path} is no idx file of bytes with {ndim} axes (it begins with {data[:4].hex(' ')})"
        )
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", ndim, offset=4))
    expected, found = math.prod(shape), len(data) - start
    if found != expected:
        wrong = "is cut short" if found < expected else "has bytes too many"
        raise UserError(f"{path} {wrong}: it declares {shape}, {expected:,} bytes, and holds {found:,}")
    return np.frombuffer(bytearray(data), np.uint8, offset=start).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except EOFError as error:
        raise UserError(f"{path} is cut short: the gzip stream has no end") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
