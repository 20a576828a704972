"""A trained f as an object: sample, move in noise space, project, measure the drift. And `ign generate`."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from paperkit import UserError, images
from paperkit.device import choose
from paperkit.run import atomic, checkpoints, fill, find, from_json, load_checkpoint, read_json
from torch import Tensor

from ign import data
from ign.config import GenerateConfig, TrainConfig
from ign.method import Metric, Noise, applications, attribute, drift, move, path
from ign.model import Network, network

CHUNK = 500
"""Images per forward pass; results do not depend on it, as the norms use stored statistics."""


class IGN:
    """A trained idempotent generative network; images are float32 (n, c, h, w) in [-1, 1].

    The norms use statistics stored for each role (data, noise, outputs of f), so an image's result does not
    depend on what stands beside it in a batch.
    """

    def __init__(self, net: Network, noise: Noise, metric: Metric = "l2"):
        self.net, self.noise = net.eval().requires_grad_(False), noise
        self.metric: Metric = metric

    @classmethod
    def load(cls, run: str | os.PathLike[str] = "latest", device: str = "cpu") -> "IGN":
        """The network of a run folder's last checkpoint (`latest`: the newest run below runs/ign).

        Raises `UserError` when the folder is missing, foreign or corrupt, or has no checkpoint yet.
        """
        folder, config = find("ign", run), trained(run)
        saved = checkpoints(folder)
        if not saved:
            raise UserError(f"{folder} has no checkpoint yet: wait for its first, or train another run")
        weights, _ = load_checkpoint(saved[-1])
        if missing := {"average", "noise"} - set(weights):
            raise UserError(
                f"{saved[-1]} lacks {sorted(missing)[0]}.safetensors: the checkpoint is not whole"
            )
        shape = tuple(read_json(folder / "manifest.json").get("shape", ()))
        if len(shape) != 3:
            raise UserError(
                f"{folder / 'manifest.json'} lacks the images' shape: the run folder is not whole"
            )
        net, noise = network(config, shape), Noise(config.noise, shape)
        fill(net, weights["average"], saved[-1])
        fill(noise, weights["noise"], saved[-1])
        place = choose(device).device
        return cls(net.to(place), noise.to(place), config.metric)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of an image."""
        return self.net.shape

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.net.parameters()).device

    def source(self, n: int, seed: int = 0) -> Float[Tensor, "n c h w"]:
        """`n` draws of source noise z, fixed by the seed."""
        return self.noise(self.white(n, seed))

    def white(self, n: int, seed: int = 0) -> Float[Tensor, "n k h w"]:
        """The standard normal numbers that `n` draws of source noise are made from."""
        if n < 1:
            raise UserError(f"n must be at least 1, not {n}")
        return data.white(self.noise, n, seed, 0, "sample").to(self.device)

    def sample(self, n: int, k: int = 1, seed: int = 0) -> Float[Tensor, "n c h w"]:
        """`n` new images: f applied `k` times to noise fixed by the seed."""
        return self.apply(self.source(n, seed), k, "z")

    def decode(self, white: Float[Tensor, "n k h w"], k: int = 1) -> Float[Tensor, "n c h w"]:
        """f applied `k` times to the source noise that is made from these standard normal numbers."""
        return self.apply(self.noise(white.to(self.device)), k, "z")

    def interpolate(
        self, n: int, count: int, spherical: bool = True, k: int = 1, seed: int = 0
    ) -> Float[Tensor, "n m c h w"]:
        """`n` paths of `count` images each, from one sample to another, both ends included.

        The path runs between white numbers, so that a spherical one keeps the noise's distribution.
        """
        if count < 2:
            raise UserError(f"a path needs at least 2 images, not {count}")
        start, end = self.white(2 * n, seed).chunk(2)
        points = path(start, end, count, spherical)
        return self.decode(points.flatten(0, 1), k).unflatten(0, (n, count))

    def attribute(
        self, score: Callable[[Tensor], Tensor], n: int = 2000, share: float = 0.25, seed: int = 1
    ) -> Float[Tensor, "k h w"]:
        """The direction in white numbers along which `score` of the samples rises, of length 1.

        Mean noise of the `share` of `n` samples that score highest, minus that of the lowest (section 4: a
        minus b). `score` maps images (n, c, h, w) to (n,). Raises `UserError` when all samples score alike.
        """
        white = self.white(n, seed)
        scores = score(self.decode(white).cpu())
        if float(scores.max()) == float(scores.min()):
            raise UserError("all samples score alike: the attribute has no direction here")
        count = max(1, int(share * n))
        order = scores.argsort().to(self.device)
        return attribute(white[order[-count:]], white[order[:count]])

    def vary(
        self,
        white: Float[Tensor, "n k h w"],
        direction: Float[Tensor, "k h w"],
        strength: float,
        k: int = 1,
    ) -> Float[Tensor, "n c h w"]:
        """The samples of these numbers, moved by `strength` along an attribute's direction (c + a - b)."""
        return self.decode(move(white.to(self.device), direction, strength), k)

    def project(self, x: Float[Tensor, "n c h w"], k: int = 1) -> Float[Tensor, "n c h w"]:
        """f applied `k` times to images: their projections onto the learned manifold.

        Each time with the statistics of data: what comes of a damaged image is nearer to data than to f(z).
        """
        if tuple(x.shape[1:]) != self.shape:
            raise UserError(f"images of shape {tuple(x.shape[1:])} do not fit this network's {self.shape}")
        if k < 1:
            raise UserError(f"k must be at least 1, not {k}")
        for _ in range(k):
            x = self.apply(x, 1, "x")
        return x

    def apply(self, y: Float[Tensor, "n c h w"], k: int, role: str) -> Float[Tensor, "n c h w"]:
        """f applied `k` times, the first time with the statistics of `role` ("x" or "z")."""
        if k < 1:
            raise UserError(f"k must be at least 1, not {k}")
        parts = y.to(self.device).split(CHUNK)
        return torch.cat([applications(self.net, part, k, role)[-1] for part in parts])

    def drift(self, x: Float[Tensor, "n c h w"], role: str = "x") -> Float[Tensor, " n"]:
        """d(x) = D(f(x), x) of each image: 0 on the learned manifold, large off it."""
        return torch.cat(
            [drift(self.net, part, self.metric, role) for part in x.to(self.device).split(CHUNK)]
        )


def trained(run: str | os.PathLike[str]) -> TrainConfig:
    """The configuration that a run was trained with."""
    path = find("ign", run) / "config.json"
    return from_json(TrainConfig, read_json(path), str(path))


# ---- the verb ----------------------------------------------------------------------------------------------


def generate(config: GenerateConfig) -> Path:
    """`ign generate`: grid.png, rows.png (z and its applications side by side) and samples.npz."""
    ign = IGN.load(config.run, config.device)
    samples = ign.sample(config.n, config.k, config.seed).cpu()
    out = Path(config.out)
    images.write(out / "grid.png", images.grid(samples))
    few = ign.source(min(config.n, 12), config.seed)
    strips = {"z": data.visible(few)}
    for k, caption in enumerate(("f(z)", "f(f(z))", "f(f(f(z)))"), start=1):
        strips[caption] = ign.apply(few, k, "z").cpu()
    images.write(out / "rows.png", images.rows(strips))
    with atomic(out / "samples.npz") as stream:
        np.savez_compressed(stream, samples=images.to_uint8(samples).numpy(), seed=config.seed, k=config.k)
    times = "once" if config.k == 1 else f"{config.k} times"
    print(f"{config.n} images, f applied {times}: {out / 'grid.png'}, rows.png, samples.npz")
    return out
