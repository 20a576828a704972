"""The small zoo's training, one network after another; each step depends on (seed, step) alone."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from paperkit import UserError, data, images, rng
from torch import Tensor, nn

from rosetta import nets
from rosetta.config import TrainConfig
from rosetta.hooks import Network, discover

AVERAGE = 0.998
"""Momentum of the averaged generator."""
RATE = {"classifier": 3e-3, "masked": 1e-3, "generator": 5e-4}
"""Peak learning rates of Adam (classifiers and autoencoder: down to 0 along a cosine)."""


@dataclass(frozen=True)
class Source:
    """Images to learn from, and held-out ones to compare units on, in [-1, 1]."""

    name: str
    stand_in: bool
    classes: int
    seen: Float[Tensor, "n c s s"]
    labels: Int64[Tensor, "n"]
    probes: Float[Tensor, "p c s s"]
    probe_labels: Int64[Tensor, "p"]

    @property
    def shape(self) -> tuple[int, int]:
        """(channels, side)."""
        return self.seen.shape[1], self.seen.shape[2]


def open_source(config: TrainConfig) -> Source:
    """Both splits of the configured set. Raises `UserError` for a set without classes, of odd sizes, or with
    fewer held-out images than probes."""
    size = config.size or None
    known = data.open_set(config.data, "train", download=config.download)
    held = data.open_set(config.data, "test", download=config.download)
    if len(known.classes) < 2:
        raise UserError(f"{known.name} has no classes: the zoo's classifiers need a set of class folders")
    if config.probes > len(held):
        raise UserError(f"--probes {config.probes}: {held.name} holds out {len(held):,} images")
    pixels, labels = known.tensor(config.limit or None, size, seed=config.seed)
    probes, probe_labels = held.tensor(config.probes, size, seed=0)
    if pixels.shape[2] != pixels.shape[3] or pixels.shape[2] % 4:
        raise UserError(
            f"{known.name} has images of {tuple(pixels.shape[2:])}: --size 32, or another multiple of 4"
        )
    part = known.subset(config.limit, config.seed) if config.limit else known
    return Source(
        str(part), known.stand_in, len(known.classes), images.to_float(pixels), labels,
        images.to_float(probes), probe_labels,
    )  # fmt: skip


# ---- One network's training --------------------------------------------------------------------------------


class Stage(ABC):
    """A network, how long it learns, and one step of it."""

    rate, betas = RATE["classifier"], (0.9, 0.99)

    def __init__(self, name: str, modules: Mapping[str, nn.Module], steps: int, seed: int):
        self.name, self.modules, self.steps, self.seed = name, dict(modules), steps, seed
        self.optimisers = {
            key: torch.optim.Adam(module.parameters(), self.rate, betas=self.betas)
            for key, module in self.modules.items()
            if key != "average"
        }

    def step(self, source: Source, batch: int, local: int) -> dict[str, float]:
        """One update (local counts from 1); the losses."""
        index = data.batch_indices(len(source.seen), batch, self.seed, local - 1)
        device = next(next(iter(self.modules.values())).parameters()).device
        x = source.seen[torch.from_numpy(index)].to(device)
        labels = source.labels[torch.from_numpy(index)].to(device)
        return self.learn(x, labels, local)

    @abstractmethod
    def learn(self, x: Tensor, labels: Tensor, local: int) -> dict[str, float]:
        """Update on a batch."""

    def descend(self, key: str, loss: Tensor, share: float) -> None:
        """A step of one optimiser at a share of its rate."""
        optimiser = self.optimisers[key]
        for group in optimiser.param_groups:
            group["lr"] = self.rate * share
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    def cosine(self, local: int) -> float:
        """Share of the rate: 1 at the start, 0 at the end."""
        return (1 + math.cos(math.pi * (local - 1) / self.steps)) / 2


class ClassifierStage(Stage):
    """Cross entropy; with `moved`, images shifted by up to a fourteenth of their side."""

    def __init__(self, name: str, net: nn.Module, steps: int, seed: int, moved: bool = False):
        super().__init__(name, {"net": net}, steps, seed)
        self.moved = moved

    def learn(self, x: Tensor, labels: Tensor, local: int) -> dict[str, float]:
        """Update on a batch."""
        x = self._shifted(x, local) if self.moved else x
        loss = F.cross_entropy(self.modules["net"](x), labels)
        self.descend("net", loss, self.cosine(local))
        return {"loss": float(loss.detach())}

    def _shifted(self, x: Tensor, local: int) -> Tensor:
        most = max(1, x.shape[2] // 14)
        padded = F.pad(x, (most,) * 4, mode="replicate")
        chosen = torch.randint(0, 2 * most + 1, (2,), generator=rng.generator(self.seed, local, "shift"))
        top, left = chosen.tolist()
        return padded[:, :, top : top + x.shape[2], left : left + x.shape[3]]


class MaskedStage(Stage):
    """Pixels of three quarters of the patches from the rest."""

    rate = RATE["masked"]

    def learn(self, x: Tensor, labels: Tensor, local: int) -> dict[str, float]:
        """Update on a batch."""
        net = self.modules["net"]
        assert isinstance(net, nets.MaskedAutoencoder)
        noise = torch.rand(len(x), net.tokens, generator=rng.generator(self.seed, local, "mask"))
        loss = net.loss(x, noise.argsort(1).to(x.device))
        self.descend("net", loss, self.cosine(local))
        return {"loss": float(loss.detach())}


class GeneratorStage(Stage):
    """Hinge losses; the averaged generator is the one that is mined."""

    rate, betas = RATE["generator"], (0.5, 0.99)

    def learn(self, x: Tensor, labels: Tensor, local: int) -> dict[str, float]:
        """Update the critic, then the generator on the same codes, then the average."""
        net, critic, average = (self.modules[key] for key in ("net", "critic", "average"))
        code = rng.normal((len(x), nets.CODE), self.seed, local, "code").to(x.device)
        made = net(code)
        told = F.relu(1 - critic(x)).mean() + F.relu(1 + critic(made.detach())).mean()
        self.descend("critic", told, 1.0)
        loss = -critic(made).mean()
        self.descend("net", loss, 1.0)
        with torch.no_grad():
            for kept, value in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
                if kept.is_floating_point():
                    kept.lerp_(value, 1 - max(0.0, min(AVERAGE, 1 - 1 / local)))
        return {"loss": float(loss.detach()), "critic": float(told.detach())}


# ---- The zoo -----------------------------------------------------------------------------------------------

MEMBERS = ("CNN-A", "CNN-B", "MAE", "CNN-A again")
"""Networks that look at images, the pivot first; the last is the first with another seed."""
GENERATOR = "generator"


def stages(config: TrainConfig, channels: int, side: int, classes: int) -> list[Stage]:
    """The zoo's networks, fresh, with what trains them."""
    rng.seed_everything(config.seed, "zoo")
    seed, steps = config.seed, config.classifier_steps
    fresh = partial(nets.Generator, channels, side)
    generator, average = fresh(), fresh().requires_grad_(False)
    average.load_state_dict(generator.state_dict())
    parts = {"net": generator, "critic": nets.Critic(channels, side), "average": average}
    return [
        ClassifierStage(MEMBERS[0], nets.ClassifierA(channels, classes), steps, seed),
        ClassifierStage(MEMBERS[1], nets.ClassifierB(channels, classes), steps, seed + 10_000, moved=True),
        MaskedStage(
            MEMBERS[2], {"net": nets.MaskedAutoencoder(channels, side)}, config.masked_steps, seed + 20_000
        ),
        ClassifierStage(MEMBERS[3], nets.ClassifierA(channels, classes), steps, seed + 30_000),
        GeneratorStage(GENERATOR, parts, config.generator_steps, seed + 40_000),
    ]


def network(stage: Stage, example: Tensor) -> Network:
    """A trained (or fresh) network, ready to be read; `example` are a few of its inputs."""
    module = stage.modules.get("average", stage.modules["net"])
    found = Network(stage.name, module.eval())
    device = next(module.parameters()).device
    found.prepare = lambda x: x.to(device)
    discover(found, example)
    return found


@torch.no_grad()
def generated(stage: Stage, count: int, seed: int) -> tuple[Float[Tensor, "n z"], Float[Tensor, "n c s s"]]:
    """(codes, images) of the averaged generator."""
    module = stage.modules["average"].eval()
    device = next(module.parameters()).device
    codes = rng.normal((count, nets.CODE), seed, 0, "probes")
    return codes, torch.cat([module(part.to(device)).cpu() for part in codes.split(256)])


@torch.no_grad()
def accuracy(stage: Stage, source: Source) -> float:
    """Share of the probes that a classifier gets right."""
    module = stage.modules["net"].eval()
    device = next(module.parameters()).device
    right = [
        (module(x.to(device)).argmax(1).cpu() == y).float()
        for x, y in zip(source.probes.split(256), source.probe_labels.split(256), strict=True)
    ]
    return float(torch.cat(right).mean())


@torch.no_grad()
def masked_error(stage: Stage, source: Source) -> float:
    """Mean squared error of hidden patches of the probes."""
    net = stage.modules["net"].eval()
    assert isinstance(net, nets.MaskedAutoencoder)
    device = next(net.parameters()).device
    noise = torch.rand(len(source.probes), net.tokens, generator=rng.generator(0, 0, "probe mask"))
    return float(net.loss(source.probes.to(device), noise.argsort(1).to(device)))


def at(found: Sequence[Stage], step: int) -> tuple[Stage, int]:
    """(stage, its own step) of a step counted through them all, from 1."""
    for stage in found:
        if step <= stage.steps:
            return stage, step
        step -= stage.steps
    raise ValueError(f"step {step} is beyond the last stage")
