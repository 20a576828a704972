"""Age from faces (section 4.3, spec E7): UTKFace at 64 pixels, trained on ages 20 to 60, tested outside.

As in the public code the age is fed back as a fourth image channel, in units of 50 years, -1 where none is
known, and the network learns in one pass, each face fed its age or none. The claim is in `face_claim`.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from paperkit import UserError, parallel, rng
from paperkit.data import batch_indices, open_set, permutation
from paperkit.images import natural_order, read_folder, to_float
from torch import Tensor, nn

from ittt.images import Standard, batches
from ittt.model import ITTT
from ittt.settings import Settings
from ittt.task_config import FacesConfig
from ittt.task_loop import Loss, Work

YEARS, NEUTRAL, RANGE = 50.0, -1.0, (20, 60)
WIDTHS = (8, 16, 32, 64)
"""A ResNet-18 eight times thinner than the published one."""


# ---- data --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Faces:
    """Images in [0, 1], and ages in units of `YEARS`."""

    x: Float[Tensor, "n 3 side side"]
    y: Float[Tensor, "n 1"]


@dataclass(frozen=True)
class Parts:
    """Faces in range to learn from, held out of these, and to test on; and faces out of range."""

    name: str
    learned: Faces
    clean: Faces
    inside: Faces
    outside: Faces


def load(config: FacesConfig) -> Parts:
    """The faces of a configuration; the same draw for every seed."""
    return _load(config.train, config.held_out, config.inside, config.outside)


@cache
def _load(train: int, held_out: int, inside: int, outside: int) -> Parts:
    found = open_set("utkface", "all")
    ages = found.labels
    fits = (ages >= RANGE[0]) & (ages <= RANGE[1])
    order = torch.from_numpy(permutation(len(ages), 0, "faces"))
    near, far = order[fits[order]], order[~fits[order]]
    for have, wanted, where in ((near, train + held_out + inside, "of"), (far, outside, "outside")):
        if len(have) < wanted:
            raise UserError(
                f"utkface has {len(have):,} faces {where} {RANGE[0]} to {RANGE[1]} years, {wanted:,} were "
                "asked for: lower --train, --held-out, --inside or --outside"
            )
    rows = *near[: train + held_out + inside].split([train, held_out, inside]), far[:outside]
    parts = [
        Faces(
            to_float(torch.stack([found[int(i)][0] for i in part]), 0.0, 1.0),
            ages[part].float()[:, None] / YEARS,
        )
        for part in rows
    ]
    name = f"UTKFace at 64 px, {train:,} faces of {RANGE[0]} to {RANGE[1]} years to learn from"
    return Parts(name, *parts)


# ---- network and training ----------------------------------------------------------------------------------


def thin_resnet(like: Float[Tensor, "n 3 h w"], signal: int = 1) -> nn.Sequential:
    """ResNet-18's blocks at `WIDTHS` behind a strided stem, mean pool and a linear layer."""
    from torchvision.models.resnet import BasicBlock  # here: importing torchvision takes seconds

    layers: list[nn.Module] = [
        Standard(like, signal),
        nn.Conv2d(3 + signal, WIDTHS[0], 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU(),
    ]  # fmt: skip
    before = WIDTHS[0]
    for width in WIDTHS:
        short = nn.Sequential(nn.Conv2d(before, width, 1, 2, bias=False), nn.BatchNorm2d(width))
        first = BasicBlock(before, width, 2, short) if width != before else BasicBlock(before, width)
        layers += [first, BasicBlock(width, width)]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1))


def build(config: FacesConfig, parts: Parts) -> ITTT:
    """f at step 0."""
    rng.seed_everything(config.seed, "faces")
    return ITTT(thin_resnet(parts.learned.x), "channel", neutral=NEUTRAL, presence=False)


def plain_twin(config: FacesConfig, parts: Parts) -> nn.Module:
    """The same layers without the signal's channel, at step 0."""
    rng.seed_everything(config.seed, "plain faces")
    return thin_resnet(parts.learned.x, 0)


def shown(config: FacesConfig, faces: Faces, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """(images, ages, which are fed no age) of this process at a step; images mirrored or not."""
    rows = torch.from_numpy(batch_indices(len(faces.x), config.batch, config.seed, step - 1))
    draws = torch.rand(2, len(rows), generator=rng.generator(config.seed, step, "faces"))
    mirrored, masked = draws[0] < 0.5, draws[1] < config.mask
    x = torch.where(mirrored.view(-1, 1, 1, 1), faces.x[rows].flip(3), faces.x[rows])
    return parallel.shard(x), parallel.shard(faces.y[rows]), parallel.shard(masked)


def loss(config: FacesConfig, net: ITTT, parts: Parts) -> Loss:
    """One pass per batch, each face fed its age or none (the public code's form)."""
    device = net.neutral.device

    def of(step: int) -> Tensor:
        x, y, masked = (part.to(device) for part in shown(config, parts.learned, step))
        return net.loss(x, y, masked)

    return of


def plain_loss(config: FacesConfig, net: nn.Module, parts: Parts) -> Loss:
    """The twin's, on the same images."""

    def of(step: int) -> Tensor:
        x, y, _ = shown(config, parts.learned, step)
        return (net(x) - y).square().mean()

    return of


def length(config: FacesConfig) -> int:
    """Steps in all: whole batches of each epoch."""
    return config.epochs * max(1, config.train // config.batch)


def years(prediction: Float[Tensor, "n 1"], y: Float[Tensor, "n 1"]) -> Float[Tensor, " n"]:
    """Absolute error of each face."""
    return YEARS * (prediction - y).abs()[:, 0]


# ---- the verbs ---------------------------------------------------------------------------------------------


class FaceWork(Work):
    """The faces of a configuration and the network that learns from them."""

    metric = "mean absolute error in years"
    best = 0.0

    def __init__(self, config: FacesConfig):
        self.config, self.parts = config, load(config)
        self.data, self.steps = self.parts.name, length(config)
        self.net = build(config, self.parts)
        self.network = f"thin ResNet-18 of widths {'-'.join(map(str, WIDTHS))}"
        self.clean = (self.parts.clean.x, self.parts.clean.y)
        self._loss = loss(config, self.net, self.parts)

    def loss(self, step: int) -> Float[Tensor, ""]:
        return self._loss(step)

    def score(self, prediction: Tensor, y: Tensor) -> Float[Tensor, " n"]:
        return years(prediction, y)

    def tests(self) -> dict[str, tuple[Tensor, Tensor]]:
        """In range, younger and older; a side without two faces is left out."""
        inside, outside = self.parts.inside, self.parts.outside
        age = outside.y[:, 0] * YEARS
        found = {"in range": (inside.x, inside.y)}
        for name, chosen in (("younger", age < RANGE[0]), ("older", age > RANGE[1])):
            if int(chosen.sum()) > 1:
                found[name] = (outside.x[chosen], outside.y[chosen])
        return found

    def adapt(self, folder: Path, out: Path, size: int, settings: Settings) -> list[dict[str, Any]]:
        """The age of every face before and after. Raises `UserError` for an image of another size."""
        found = read_folder(folder)
        names = natural_order(found)
        side = self.parts.learned.x.shape[-1]
        for name in names:
            if (shape := tuple(found[name].shape[1:])) != (side, side):
                raise UserError(
                    f"{folder / name} is {shape[1]} x {shape[0]} pixels: give faces aligned and resized to "
                    f"{side} x {side}, as in UTKFace"
                )
        x = to_float(torch.stack([found[name] for name in names]), 0.0, 1.0)
        adapter, rows = self.net.adapter(settings, self.calibration(settings)), []
        for part in batches(x, size or len(x)):
            one = adapter(part)
            ages, before = ((YEARS * values[:, 0]).tolist() for values in (one.prediction, one.before))
            for facts, age, other in zip(one.rows(), ages, before, strict=True):
                rows.append({"image": names[len(rows)], "age": age, "before": other, **facts})
        return rows
