"""CIFAR-10-C and ImageNet-C from their published files. Used by whoever has them instead of `corruptions`.

Both are by Hendrycks and Dietterich (arXiv 1903.12261): 15 corruptions at five severities.
"""

import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from paperkit import UserError, suggest
from paperkit.data import ArraySet, Facts, ImageSet, open_set

from ittt.corruptions import FAMILIES, NAMES

PUBLISHED = dict(
    zip(
        NAMES,
        (
            "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
            "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
            "jpeg_compression",
        ),
        strict=True,
    )
)  # fmt: skip
"""What the published files and folders are called."""
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_EACH = 10_000
"""Images of CIFAR-10-C at each severity."""


def open_cifar_c(folder: str | os.PathLike[str], name: str, severity: int) -> ArraySet:
    """10,000 images of CIFAR-10-C (32 px, colour) from a folder of its .npy files.

    Raises `UserError` for an unknown corruption or severity, and a file that is missing, damaged or of
    another shape.
    """
    published = _checked(name, severity)
    pixels = _array(Path(folder), published, (5 * _EACH, 32, 32, 3))
    labels = _array(Path(folder), "labels", (5 * _EACH,))
    if labels.max() > 9:
        raise UserError(f"{Path(folder) / 'labels.npy'} holds the label {labels.max()}: not within 0..9")
    rows = slice((severity - 1) * _EACH, severity * _EACH)
    facts = Facts(f"CIFAR-10-C {published} {severity}", "CC BY 4.0 (Hendrycks and Dietterich)", "test")
    images = np.ascontiguousarray(pixels[rows].transpose(0, 3, 1, 2))
    return ArraySet(facts, images, labels[rows].astype(np.int64), _CIFAR)


def open_imagenet_c(folder: str | os.PathLike[str], name: str, severity: int) -> ImageSet:
    """ImageNet-C from its folders <corruption>/<severity>/<wnid>, below noise, blur, ... or not.

    Labels count the class folders in alphabetical order, which for all 1,000 is ImageNet's own. Raises
    `UserError` for an unknown corruption or severity, and where the folder or its classes are missing.
    """
    published = _checked(name, severity)
    family = next(family for family, names in FAMILIES.items() if name in names)
    places = [Path(folder) / published, Path(folder) / family / published]
    found = next((place / str(severity) for place in places if (place / str(severity)).is_dir()), None)
    if found is None:
        raise UserError(
            f"{folder} has neither {published}/{severity} nor {family}/{published}/{severity}: "
            "put the unpacked folders of ImageNet-C there"
        )
    opened = open_set(found, "all")
    if not opened.classes:
        raise UserError(f"{found} is not laid out as ImageNet-C: it needs class folders")
    return opened


def _checked(name: str, severity: int) -> str:
    """The published name of a corruption."""
    if name not in PUBLISHED:
        raise UserError(f"no corruption {name!r}{suggest(name, PUBLISHED)}; there are {', '.join(PUBLISHED)}")
    if severity not in range(1, 6):
        raise UserError(f"published severities go from 1 to 5, not {severity}")
    return PUBLISHED[name]


def _array(folder: Path, name: str, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    """A published .npy file, mapped, not read."""
    path = folder / f"{name}.npy"
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: put the .npy files of CIFAR-10-C there") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    if found.shape != shape or found.dtype != np.uint8:
        raise UserError(f"{path} holds {found.dtype} of {found.shape}, not uint8 of {shape}")
    return found
