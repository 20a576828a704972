"""Labelled images of one configuration, and batches of them at any size."""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float, Int64, UInt8
from paperkit import UserError, data, images, parallel, rng
from torch import Tensor
from torch.nn import functional as F

from ccconv.config import TrainConfig
from ccconv.functional import resize


@dataclass(frozen=True)
class Images:
    """All images of a split with their labels, and what they are called in results."""

    pixels: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    classes: int
    name: str

    def at(
        self, size: int, rows: Int64[Tensor, " b"] | None = None, margin: int = 0
    ) -> Float[Tensor, "b c n n"]:
        """Images of a side in [0, 1], black beyond `margin`; `rows` by default all of them."""
        pixels = self.pixels if rows is None else self.pixels[rows]
        x = F.pad(images.to_float(pixels, 0.0, 1.0), (margin,) * 4)
        return resize(x, size, border="renormalize")


def load(config: TrainConfig, split: str = "train") -> Images:
    """The images of a split as `config` names and draws them. Raises `UserError` where labels are missing."""
    opened = data.open_set(
        config.data, cast(Literal["train", "test"], split), download=config.download
    )  # fmt: skip
    if split == "train" and config.limit:
        opened = opened.subset(config.limit, seed=0)
    if int(opened.labels.min()) < 0:
        raise UserError(f"{opened} has no labels: a classifier needs one folder for each class")
    pixels, labels = opened.tensor(size=config.crop or None, grey=config.grey)
    return Images(pixels, labels, max(len(opened.classes), int(labels.max()) + 1), str(opened))


def batch(
    images_: Images, config: TrainConfig, step: int
) -> tuple[Float[Tensor, "b c n n"], Int64[Tensor, " b"]]:
    """This process's part of the batch of a step (from 1), at the size that the step draws."""
    rows = torch.from_numpy(data.batch_indices(len(images_.pixels), config.batch, config.seed, step - 1))
    rows = parallel.shard(rows)
    return images_.at(side(config, step), rows, config.margin), images_.labels[rows]


def side(config: TrainConfig, step: int) -> int:
    """The image side of a step, by (seed, step)."""
    if not config.draw:
        return config.size
    place = torch.randint(len(config.draw), (1,), generator=rng.generator(config.seed, step, "size"))
    return config.draw[int(place)]


def maps(config: TrainConfig, step: int) -> tuple[int, ...] | None:
    """The sides of the feature maps of a step, by (seed, step); None: the network's own."""
    if not config.loose:
        return None
    share = torch.rand(len(config.maps), generator=rng.generator(config.seed, step, "maps"))
    factor = 1 + config.loose * (2 * share - 1)
    return tuple(max(1, round(n * each)) for n, each in zip(config.maps, factor.tolist(), strict=True))
