"""Data for one configuration: a uint8 tensor in memory, and batches of it by step."""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float, Int64, UInt8
from paperkit import data, images, parallel, rng
from torch import Tensor

from ign.config import TrainConfig
from ign.method import Noise


@dataclass(frozen=True)
class Images:
    """All images of a split with their labels (-1 = none), and what they are called in results."""

    pixels: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    name: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def floats(self) -> Float[Tensor, "n c h w"]:
        """All images in [-1, 1]."""
        return images.to_float(self.pixels)


def load(config: TrainConfig, split: str = "train") -> Images:
    """The images of a split as `config` names, resizes and draws them. Raises `UserError` when missing."""
    part = cast(Literal["train", "test"], split)
    opened = data.open_set(config.data, part, download=config.download)
    if split == "train" and config.limit:
        opened = opened.subset(config.limit, seed=0)
    pixels, labels = opened.tensor(size=config.size or None, grey=config.grey)
    return Images(pixels, labels, str(opened))


def batch(images_: Images, config: TrainConfig, step: int) -> Float[Tensor, "b c h w"]:
    """This process's part of the data batch of a step (from 1), in [-1, 1]."""
    rows = torch.from_numpy(data.batch_indices(len(images_.pixels), config.batch, config.seed, step - 1))
    x = images.to_float(images_.pixels[parallel.shard(rows)])
    if config.flip:
        coin = torch.rand(len(rows), generator=rng.generator(config.seed, step, "flip")) < 0.5
        x = torch.where(parallel.shard(coin)[:, None, None, None], x.flip(-1), x)
    return x


def jitter(x: Float[Tensor, "b c h w"], config: TrainConfig, step: int) -> Float[Tensor, "b c h w"]:
    """The batch of a step with noise of deviation `config.jitter`, clipped to [-1, 1]."""
    if not config.jitter:
        return x
    normal = rng.normal((config.batch, *x.shape[1:]), config.seed, step, "jitter")
    return (x + config.jitter * parallel.shard(normal)).clamp(-1, 1)


def white(noise: Noise, n: int, seed: int, step: int = 0, purpose: str = "noise") -> Float[Tensor, "n k h w"]:
    """Standard normal numbers for `n` draws of source noise, fixed by (seed, step, purpose)."""
    return rng.normal((n, noise.channels, *noise.shape[1:]), seed, step, purpose)


def visible(z: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Noise for a picture: where it leaves [-1, 1] it is shown at less contrast, 3 deviations at most."""
    return (z / max(1.0, 3 * float(z.std()))).clamp(-1, 1).cpu()
