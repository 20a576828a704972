"""Images for one configuration: in memory or from files, augmented by (seed, step, row), standardised."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from jaxtyping import Float, Int64, UInt8
from paperkit import UserError, data, images, parallel
from paperkit.data import FileSet, ImageSet
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flexpredict.augment import augmented
from flexpredict.config import TrainConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RECIPE_SIZE = 224
"""Side of crops where a recipe is used and no size is given."""


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation per channel, of pixels in [0, 1]."""

    mean: Float[Tensor, " c"]
    std: Float[Tensor, " c"]

    def __call__(self, pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        mean, std = (part.to(pixels.device)[:, None, None] for part in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std


@dataclass(frozen=True)
class Images:
    """All images of a split in memory, with labels (-1 = none), and what they are called in results."""

    pixels: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    name: str


@dataclass(frozen=True)
class Source:
    """What a run trains on."""

    set: ImageSet
    scale: Scale
    shape: tuple[int, int, int]
    """(channels, height, width) of an image that the network sees."""
    memory: Images | None
    """All of it, where images are seen as they are."""


def open_source(config: TrainConfig, split: str = "train") -> Source:
    """The training images. Raises `UserError` for a set that is missing or not of one size."""
    opened = open_split(config, split)
    if config.recipe == "none":
        memory = load(opened, config.size, config.strict)
        channels, height, width = memory.pixels.shape[1:]
        return Source(opened, measured(memory.pixels), (channels, height, width), memory)
    size = config.size or RECIPE_SIZE
    imagenet = Scale(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD))
    return Source(opened, imagenet, (3, size, size), None)


def open_split(config: TrainConfig, split: str, download: bool | None = None) -> ImageSet:
    """One split of the configuration's set; `limit` draws of the training images alone."""
    part = cast(Literal["train", "test"], split)
    fetch = config.download if download is None else download
    opened = data.open_set(config.data, part, download=fetch)
    if opened.classes and isinstance(opened, FileSet):
        refuse_empty_folders(Path(config.data), split)
    return opened.subset(config.limit, 0) if split == "train" and config.limit else opened


def refuse_empty_folders(place: Path, split: str) -> None:
    """Raise `UserError` when a class folder of a folder of images holds none: its class would be missing."""
    top = place / split if (place / split).is_dir() else place
    for folder in sorted(top.iterdir()) if top.is_dir() else ():
        if folder.is_dir() and not any(images.is_image(file.name) for file in folder.rglob("*")):
            raise UserError(f"the class folder {folder} holds no image: fill it or remove it")


def load(opened: ImageSet, size: int = 0, strict: bool = False) -> Images:
    """All images in memory, the shorter side resized and the centre cropped to `size`.

    Broken ones are left out, counted and named; `strict` raises `UserError` at the first.
    """
    try:
        pixels, labels = opened.tensor(size=size or None)
    except UserError:
        good = [] if strict else readable(opened)
        if not 0 < len(good) < len(opened):  # not broken, but of several sizes
            raise
        pixels = torch.stack([images.fit(opened[i][0], size or None) for i in good])
        labels = opened.labels[torch.tensor(good)]
    return Images(pixels, labels, str(opened))


def readable(opened: ImageSet) -> list[int]:
    """Positions of the images that can be read; prints the others and how many they are."""
    good, broken = [], []
    for i in range(len(opened)):
        try:
            opened[i]
            good.append(i)
        except UserError as error:
            broken.append(str(error))
    for number, words in enumerate(broken, 1):
        print(f"warning   broken image {number} of {len(broken)}, left out: {words}", flush=True)
    return good


def measured(pixels: UInt8[Tensor, "n c h w"]) -> Scale:
    """Mean and standard deviation of a set's own pixels; a channel that never changes keeps its size."""
    values = pixels.transpose(0, 1).flatten(1).double() / 255
    std = values.std(1)
    return Scale(values.mean(1).float(), torch.where(std > 0, std, 1.0).float())


# ---- batches by step -------------------------------------------------------------------------------------


def batches(source: Source, config: TrainConfig, start: int) -> Iterator[Float[Tensor, "b c h w"]]:
    """This process's part of the batches of steps start+1, start+2, ..., standardised, without end."""
    rank, size = parallel.world()
    parallel.shard(torch.arange(config.batch))  # refuses a batch that does not divide
    if source.memory is not None:
        n, step = len(source.memory.pixels), start  # broken images are not among them
        while True:
            rows = torch.from_numpy(data.batch_indices(n, config.batch, config.seed, step))
            yield source.scale(source.memory.pixels[parallel.shard(rows)])
            step += 1
    crops = _Crops(source.set, config, source.shape[1])
    keys = _Keys(len(source.set), config, start, rank, size)
    loader = DataLoader(
        crops, batch_sampler=keys, num_workers=config.workers, persistent_workers=config.workers > 0
    )
    for pixels in loader:
        yield source.scale(pixels)


class _Keys:
    """(index, step, row of the global batch) of one process's images, step after step."""

    def __init__(self, n: int, config: TrainConfig, start: int, rank: int, size: int):
        self._n, self._config, self._start = n, config, start
        part = config.batch // size
        self._rows = range(rank * part, (rank + 1) * part)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        step = self._start
        while True:
            order = data.batch_indices(self._n, self._config.batch, self._config.seed, step)
            yield [(int(order[row]), step + 1, row) for row in self._rows]
            step += 1


class _Crops(Dataset[Tensor]):
    """Augmented images; an item depends on (seed, step, row) and the image alone."""

    def __init__(self, images_: ImageSet, config: TrainConfig, size: int):
        self._images, self._config, self._size = images_, config, size
        self._broken: set[str] = set()

    def __getitem__(self, key: tuple[int, int, int]) -> UInt8[Tensor, "3 h w"]:
        index, step, row = key
        image = self._good(index)
        return augmented(image, self._config.recipe, self._size, self._config.seed, step, row)

    def _good(self, index: int) -> UInt8[Tensor, "c h w"]:
        """The image, or the next one that can be read."""
        for offset in range(len(self._images)):
            try:
                return self._images[(index + offset) % len(self._images)][0]
            except UserError as error:
                if self._config.strict:
                    raise
                if str(error) not in self._broken:
                    self._broken.add(str(error))
                    print(f"warning   broken image {len(self._broken)}, left out: {error}", flush=True)
        raise UserError(f"no image of {self._images.name} can be read")
