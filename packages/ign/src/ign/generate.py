"""A trained f as an object: sample, project, measure the drift. And the verbs `generate` and `project`."""

import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from paperkit import UserError, images
from paperkit.device import choose
from paperkit.run import atomic, checkpoints, fill, find, from_json, load_checkpoint, read_json
from torch import Tensor

from ign import data
from ign.config import GenerateConfig, ProjectConfig, TrainConfig
from ign.method import Metric, Noise, applications, drift
from ign.model import Network
from ign.train import network

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
        folder = find("ign", run)
        config = from_json(TrainConfig, read_json(folder / "config.json"), str(folder / "config.json"))
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
        if n < 1:
            raise UserError(f"n must be at least 1, not {n}")
        return self.noise(data.white(self.noise, n, seed, 0, "sample").to(self.device))

    def sample(self, n: int, k: int = 1, seed: int = 0) -> Float[Tensor, "n c h w"]:
        """`n` new images: f applied `k` times to noise fixed by the seed."""
        return self.apply(self.source(n, seed), k, "z")

    def project(self, x: Float[Tensor, "n c h w"], k: int = 1) -> Float[Tensor, "n c h w"]:
        """f applied `k` times to images: their projections onto the learned manifold."""
        if tuple(x.shape[1:]) != self.shape:
            raise UserError(f"images of shape {tuple(x.shape[1:])} do not fit this network's {self.shape}")
        return self.apply(x, k, "x")

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


# ---- verbs -----------------------------------------------------------------------------------------------


def generate(config: GenerateConfig) -> Path:
    """`ign generate`: grid.png, rows.png (z and its applications side by side) and samples.npz."""
    ign = IGN.load(config.run, config.device)
    samples = ign.sample(config.n, config.k, config.seed).cpu()
    out = Path(config.out)
    images.write(out / "grid.png", images.grid(samples))
    few = ign.source(min(config.n, 12), config.seed)
    strips = {"z": (few / 3).clamp(-1, 1).cpu()}
    for k, caption in enumerate(("f(z)", "f(f(z))", "f(f(f(z)))"), start=1):
        strips[caption] = ign.apply(few, k, "z").cpu()
    images.write(out / "rows.png", images.rows(strips))
    with atomic(out / "samples.npz") as stream:
        np.savez_compressed(stream, samples=images.to_uint8(samples).numpy(), seed=config.seed, k=config.k)
    print(f"{config.n} images, f applied {config.k} time(s): {out / 'grid.png'}, rows.png, samples.npz")
    return out


def project(config: ProjectConfig) -> Path:
    """`ign project`: every input image through f, as PNG, and rows.png with input and applications."""
    ign = IGN.load(config.run, config.device)
    channels, height, width = ign.shape
    named = _inputs(Path(config.input))
    side = height if height == width else None
    fitted = [images.fit(image, side, grey=channels == 1) for image in named.values()]
    x = images.to_float(torch.stack(fitted))
    if channels == 3 and x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    projected = ign.project(x, config.k).cpu()
    out = Path(config.out)
    for name, image in zip(named, projected, strict=True):
        images.write(out / Path(name).with_suffix(".png"), image)
    shown = slice(0, 12)
    strips = {"x": x[shown], "f(x)": ign.project(x[shown]).cpu(), "f(f(x))": ign.project(x[shown], 2).cpu()}
    images.write(out / "rows.png", images.rows(strips))
    drifts = ign.drift(x)
    print(f"{len(x)} images projected into {out} (see rows.png); drift {drifts.mean():.4f} on average")
    return out


def _inputs(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise UserError(f"{path} does not exist: name an image file or a folder of images")
    return images.read_folder(path) if path.is_dir() else {path.name: images.read(path)}
