"""Aerial photographs with road masks, as pairs. Used by ittt."""

from pathlib import Path

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from paperkit import UserError, images
from paperkit.data.root import Known, Root, find

ROADS = Known(
    "aerial-roads",
    "aerial-roads/{train,validation}/{images,masks} with equal file stems",
    "8 MB",
    "the EPFL course CS-433",
    "course data, research use",
)
_FOLDERS = {"train": "train", "test": "validation"}


class PairSet(Dataset[tuple[Tensor, Tensor]]):
    """Images with a mask each; item i is (uint8 image (3, h, w), bool mask (1, h, w))."""

    def __init__(self, name: str, licence: str, pairs: list[tuple[Path, Path]]):
        self.name, self.licence = name, licence
        self.paths = tuple(pairs)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[UInt8[Tensor, "3 h w"], Bool[Tensor, "1 h w"]]:
        """Read pair i; the mask is true above 127. Raises `UserError` when the sizes differ."""
        image_file, mask_file = self.paths[i]
        image, mask = images.read(image_file), images.read(mask_file, "grey") > 127
        if image.shape[1:] != mask.shape[1:]:
            raise UserError(f"{mask_file} is {tuple(mask.shape[1:])}, its image is {tuple(image.shape[1:])}")
        return image, mask

    def tensor(self) -> tuple[UInt8[Tensor, "n 3 h w"], Bool[Tensor, "n 1 h w"]]:
        """All images and all masks; raises `UserError` when images differ in size."""
        pairs = [self[i] for i in range(len(self))]
        if len({image.shape for image, _ in pairs}) > 1:
            raise UserError(f"the images of {self.name} differ in size")
        return torch.stack([image for image, _ in pairs]), torch.stack([mask for _, mask in pairs])


def open_pairs(split: str = "train", root: Root = None) -> PairSet:
    """Open the "train" or "test" pairs; raises `UserError` when an image or a mask lacks its partner."""
    if split not in _FOLDERS:
        raise UserError(f"aerial-roads has the splits train and test, not {split!r}")
    folder = find(ROADS, root, [f"aerial-roads/{_FOLDERS[split]}"])
    pictures, masks = _by_stem(folder / "images"), _by_stem(folder / "masks")
    lonely = sorted(pictures.keys() ^ masks.keys())
    if lonely or not pictures:
        what = f"{lonely[0]} has no partner" if lonely else "there are no images"
        raise UserError(f"{folder} needs an image and a mask of each name: {what}")
    pairs = [(pictures[stem], masks[stem]) for stem in images.natural_order(pictures)]
    return PairSet(ROADS.name, ROADS.licence, pairs)


def _by_stem(folder: Path) -> dict[str, Path]:
    try:
        return {entry.stem: entry for entry in folder.iterdir() if images.is_image(entry.name)}
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}") from error
