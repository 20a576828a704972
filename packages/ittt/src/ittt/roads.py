"""Roads in aerial photographs (section 4.4, spec E8): tiles, shifts, a small U-Net, training.

The mask that was predicted is fed back as a fourth channel, as probabilities; -1 everywhere where none is
known. The paper trains on one set and tests on another, in levels by the network's own error; here sensor
noise and haze of four levels are put on tiles of images that were not learned, by generators that see no
mask. The set of photographs does not say where each was taken, so that no region can be kept apart. The claim
is in `road_claim`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from paperkit import UserError, parallel, rng
from paperkit import images as pictures
from paperkit.data import batch_indices, open_pairs, permutation
from paperkit.resize import resize
from torch import Tensor, nn
from torch.nn import functional as F

from ittt.adapt import Adapter
from ittt.images import Standard, batches
from ittt.model import ITTT
from ittt.road_metrics import scores
from ittt.settings import Settings
from ittt.strokes import OTHERS, TRAIN, strokes
from ittt.task_config import RoadsConfig
from ittt.task_loop import Loss, Work

TILE, SIDE_OF_IMAGE = 128, 256
"""Pixels of an aerial tile, and the side that images of this set are brought to: four tiles each."""
AERIAL = 400
"""Pixels of such an image's side as it comes."""
PER_IMAGE = (SIDE_OF_IMAGE // TILE) ** 2
PIXELS = 5
"""The paper's tolerance, in pixels of an image as it comes."""
NEUTRAL = -1.0
WIDTHS = (16, 32, 48)


# ---- data --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiles:
    """Images in [0, 1], and where roads are. Tiles of one image stand side by side."""

    x: Float[Tensor, "n 3 s s"]
    y: Bool[Tensor, "n 1 s s"]

    def __getitem__(self, part: slice) -> "Tiles":
        return Tiles(self.x[part], self.y[part])


@dataclass(frozen=True)
class Parts:
    """Tiles to learn from, held out of these, and to test on; and test tiles of other grounds, by name."""

    name: str
    scale: float
    """Pixels of a tile per pixel of an image as it comes."""
    tolerance: float
    """In pixels of a tile."""
    learned: Tiles
    clean: Tiles
    test: Tiles
    others: dict[str, Tiles]


def load(config: RoadsConfig) -> Parts:
    """The tiles of a configuration; the same draw for every seed."""
    open_ = _strokes if config.data == "strokes" else _aerial
    return open_(config.train, config.held_out, config.test)


@cache
def _aerial(train: int, held_out: int, test: int) -> Parts:
    (learned, scale), (tested, _) = _cut("train"), _cut("test")
    kept, count = min(train, len(learned.x) - held_out), min(test, len(tested.x))
    if kept < 1:
        raise UserError(f"--held-out {held_out} leaves no tile of {len(learned.x)} to learn from")
    name = f"aerial-roads, {kept} training and {count} test tiles of {TILE} px, {PER_IMAGE} per image"
    parts = learned[:kept], learned[len(learned.x) - held_out :], tested[:count]
    return Parts(name, scale, PIXELS * scale, *parts, {})


def _cut(split: str) -> tuple[Tiles, float]:
    """(tiles of a split in random order of the images, tile pixels per pixel of an image as it comes)."""
    images, masks = open_pairs(split).tensor()
    order = torch.from_numpy(permutation(len(images), 0, "roads"))
    small = [resize(part[order].float(), size=SIDE_OF_IMAGE) for part in (images, masks)]  # antialiased
    x, y = (tiled(part, TILE) for part in ((small[0] / 255).clamp(0, 1), small[1]))
    return Tiles(x, y > 0.5), SIDE_OF_IMAGE / images.shape[-1]


def tiled(images: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "m c s s"]:
    """The images cut into tiles row by row; what a side lacks to whole tiles repeats its last pixels."""
    height, width = (-length % side for length in images.shape[2:])
    whole = F.pad(images, (0, width, 0, height), mode="replicate")
    return rearrange(whole, "n c (r h) (k w) -> (n r k) c h w", h=side, w=side)


def untiled(tiles: Float[Tensor, "m c s s"], height: int, width: int) -> Float[Tensor, "c h w"]:
    """One image that `tiled` has cut."""
    rows = -(-height // tiles.shape[-1])
    return rearrange(tiles, "(r k) c h w -> c (r h) (k w)", r=rows)[:, :height, :width]


@cache
def _strokes(train: int, held_out: int, test: int) -> Parts:
    x, y = strokes(TRAIN, "train", train + held_out, 0)
    others = {name: Tiles(*strokes(name, "test", test, 0)) for name in OTHERS}
    name = f"digits' strokes over {TRAIN} (a stand-in for aerial photographs), {train} training tiles"
    learned, tested = Tiles(x, y), Tiles(*strokes(TRAIN, "test", test, 0))
    # Of as large a share of the side as on aerial tiles.
    tolerance = PIXELS * SIDE_OF_IMAGE / AERIAL * x.shape[-1] / TILE
    return Parts(name, 1.0, tolerance, learned[:train], learned[train:], tested, others)


# ---- shifts ------------------------------------------------------------------------------------------------


NOISE = ((0.01, 0.02), (0.02, 0.04), (0.04, 0.06), (0.08, 0.10))
"""Sensor noise: variance per unit of light (shot noise), and a deviation always there (read noise)."""
HAZE = (0.1, 0.2, 0.3, 0.4)
"""Optical depth of the haze where it is of mean thickness: of the light of a point exp(-depth) is left.

At first 0.25 to 1: a network of seed 100, not adapted, marked no road at all from 0.5 on."""
AIR = 0.9
"""The colour of haze."""
KINDS, LEVELS = ("noise", "haze"), (1, 2, 3, 4)


def shift(x: Float[Tensor, "n 3 s s"], kind: str, level: int, seed: int) -> Float[Tensor, "n 3 s s"]:
    """The tiles under sensor noise or haze, clipped to [0, 1]; level 0 leaves them as they are."""
    if kind not in KINDS or level not in (0, *LEVELS):
        raise UserError(f"shifts are {' and '.join(KINDS)} of levels 0 to {LEVELS[-1]}, not {kind} {level}")
    if level == 0:
        return x
    if kind == "noise":
        light, always = NOISE[level - 1]
        noise = rng.normal(tuple(x.shape), seed, level, "sensor noise").to(x)
        return (x + (light * x + always**2).sqrt() * noise).clamp(0, 1)
    thickness = rng.normal((len(x), 1, 4, 4), seed, level, "haze").to(x)
    smooth = F.interpolate(thickness, x.shape[2:], mode="bicubic", align_corners=True)
    left = (-HAZE[level - 1] * (1 + 0.3 * smooth).clamp(0.2, 2)).exp()
    return x * left + AIR * (1 - left)


# ---- network and training ----------------------------------------------------------------------------------


class Block(nn.Sequential):
    """Two convs with batch norm and ReLU."""

    def __init__(self, before: int, width: int):
        super().__init__(
            nn.Conv2d(before, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip


class UNet(nn.Module):
    """A small U-Net: a stem that strides by 4, two halvings, the way back with skips, 16 logits per position.

    The stem and the last rearrangement save two levels, which would take most of the time; roads are some
    twenty pixels wide.
    """

    def __init__(self, like: Float[Tensor, "n 3 s s"], signal: int = 1):
        super().__init__()
        first, *later = WIDTHS
        self.standard = Standard(like, signal)
        self.stem = nn.Sequential(
            nn.Conv2d(3 + signal, first, 8, 4, 2, bias=False), nn.BatchNorm2d(first), nn.ReLU(),
            Block(first, first),
        )  # fmt: skip
        pairs = list(zip(WIDTHS, later, strict=False))
        self.down = nn.ModuleList([Block(before, width) for before, width in pairs])
        self.up = nn.ModuleList([Block(before + width, before) for before, width in reversed(pairs)])
        self.head = nn.Conv2d(first, 16, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        """Logits of the mask. Raises `UserError` for a side that is no multiple of 16."""
        if x.shape[2] % 16 or x.shape[3] % 16:
            raise UserError(f"tiles must have sides that 16 divides, not {tuple(x.shape[2:])}")
        h = self.stem(self.standard(x))
        skips = []
        for block in self.down:
            skips.append(h)
            h = block(F.max_pool2d(h, 2))
        for block in self.up:
            h = block(torch.cat([F.interpolate(h, scale_factor=2.0), skips.pop()], 1))
        return F.pixel_shuffle(self.head(h), 4)


def build(config: RoadsConfig, parts: Parts) -> ITTT:
    """f at step 0."""
    rng.seed_everything(config.seed, "roads")
    return ITTT(UNet(parts.learned.x), "channel", task="binary", neutral=NEUTRAL, presence=False)


def plain_twin(config: RoadsConfig, parts: Parts) -> UNet:
    """The same layers without the signal's channel, at step 0."""
    rng.seed_everything(config.seed, "plain roads")
    return UNet(parts.learned.x, 0)


def shown(config: RoadsConfig, tiles: Tiles, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """(tiles, masks, which are fed none) of this process at a step; all turned by quarters and mirrored."""
    rows = torch.from_numpy(batch_indices(len(tiles.x), config.batch, config.seed, step - 1))
    draw = rng.generator(config.seed, step, "roads")
    turns, mirrored = torch.randint(0, 4, (2,), generator=draw).tolist()
    masked = torch.rand(len(rows), generator=draw) < config.mask
    x, y = (torch.rot90(part[rows], turns, (2, 3)) for part in (tiles.x, tiles.y))
    x, y = (x.flip(3), y.flip(3)) if mirrored % 2 else (x, y)
    return parallel.shard(x), parallel.shard(y), parallel.shard(masked)


def loss(config: RoadsConfig, net: ITTT, parts: Parts) -> Loss:
    """One pass per batch, each tile fed its mask or none.

    In two passes (Eq. 2) batch norm would store statistics that fit neither f(x, y) nor f(x, 0): on aerial
    tiles such a network, asked with them, marked no road at all.
    """
    device = net.neutral.device

    def of(step: int) -> Tensor:
        x, y, masked = (part.to(device) for part in shown(config, parts.learned, step))
        return net.loss(x, y, masked)

    return of


def plain_loss(config: RoadsConfig, net: nn.Module, parts: Parts) -> Loss:
    """The twin's, on the same tiles."""

    def of(step: int) -> Tensor:
        x, y, _ = shown(config, parts.learned, step)
        return F.binary_cross_entropy_with_logits(net(x), y.float())

    return of


def length(config: RoadsConfig, parts: Parts) -> int:
    """Steps in all: whole batches of each epoch."""
    return config.epochs * max(1, len(parts.learned.x) // config.batch)


# ---- the verbs ---------------------------------------------------------------------------------------------


class RoadWork(Work):
    """The tiles of a configuration and the network that learns from them."""

    metric = "quality in per cent"
    best = 100.0
    shown = (("noise", 2), ("noise", 4), ("haze", 2), ("haze", 4))
    """The shifts of the tests."""

    def __init__(self, config: RoadsConfig):
        self.config, self.parts = config, load(config)
        self.data, self.steps = self.parts.name, length(config, self.parts)
        self.net = build(config, self.parts)
        self.network = f"U-Net of widths {'-'.join(map(str, WIDTHS))}"
        self.clean = (self.parts.clean.x, self.parts.clean.y)
        self._loss = loss(config, self.net, self.parts)

    def loss(self, step: int) -> Float[Tensor, ""]:
        return self._loss(step)

    def score(self, prediction: Tensor, y: Tensor) -> Float[Tensor, " n"]:
        return scores(prediction > 0, y, self.parts.tolerance).quality

    def tests(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Clean, under noise and haze, and over other grounds where the set has them."""
        test = self.parts.test
        found = {"clean": (test.x, test.y)} | {
            f"{kind} {level}": (shift(test.x, kind, level, self.config.seed), test.y)
            for kind, level in self.shown
        }
        return found | {name: (tiles.x, tiles.y) for name, tiles in self.parts.others.items()}

    def drawn(self) -> tuple[list[str], dict[str, Tensor]]:
        """(conditions, rows of a picture): the first test tile of each, adapted to in its batch.

        The gap is the difference of the probabilities of both applications before adaptation, per pixel, in
        units of its largest value.
        """
        settings = self.config.adapt
        adapter = self.net.adapter(settings, self.calibration(settings))
        found: dict[str, list[Tensor]] = {}
        for x, y in self.tests().values():
            one = adapter(x[: self.config.adapt_batch])
            first = one.before[:1].sigmoid()
            second = self.net(x[:1], self.net.from_output(one.before[:1])).sigmoid()
            columns = {
                "input": x[0], "road": y[0].float(), "before": (one.before[0] > 0).float(),
                "after": (one.prediction[0] > 0).float(), "gap": (second - first)[0].abs(),
            }  # fmt: skip
            for name, image in columns.items():
                found.setdefault(name, []).append(image.expand(3, -1, -1))
        rows = {name: torch.stack(tiles) for name, tiles in found.items()}
        rows["gap"] = rows["gap"] / rows["gap"].max().clamp_min(1e-9)
        return list(self.tests()), rows

    def adapt(self, folder: Path, out: Path, size: int, settings: Settings) -> list[dict[str, Any]]:
        """A mask of every image, of its own size, as PNG in a folder named after `out`; one row for each.

        An image is brought to the resolution that was learned and cut into tiles, which are adapted to in
        batches of `size` (0: all of an image).
        """
        found = pictures.read_folder(folder)
        if len({Path(name).stem for name in found}) < len(found):
            raise UserError(f"{folder}: give each image a name of its own without the ending")
        adapter, masks, rows = self.net.adapter(settings, self.calibration(settings)), {}, []
        for name in pictures.natural_order(found):
            masks[name], row = self.one(adapter, found[name], size)
            rows.append({"image": name, **row})
        place = out.with_name(f"{out.stem}-masks")
        for name, mask in masks.items():
            pictures.write(place / f"{Path(name).stem}.png", mask, 0.0, 1.0)
        print(f"{place}: {len(masks)} masks")
        return rows

    def one(self, adapter: Adapter, image: Tensor, size: int) -> tuple[Tensor, dict[str, Any]]:
        """(mask of 0 and 1, what is told of it) of one uint8 image."""
        side, scale = self.parts.learned.x.shape[-1], self.parts.scale
        size_there = [max(1, round(length * scale)) for length in image.shape[1:]]
        small = (resize(image.float(), size=size_there) / 255).clamp(0, 1)
        x = tiled(small[None], side)
        found = [adapter(part) for part in batches(x, size or len(x))]
        maps = (torch.cat([getattr(one, name) for one in found]) for name in ("prediction", "before"))
        after, before = (self.whole(logits, small.shape[1:], image.shape[1:]) for logits in maps)
        facts: list[dict[str, Any]] = [fact for one in found for fact in one.rows()]
        count = len(facts)
        return after, {
            "tiles": count, "road": float(after.mean()), "road_before": float(before.mean()),
            "gap_before": sum(fact["gap_before"] for fact in facts) / count,
            "gap_after": sum(fact["gap_after"] for fact in facts) / count,
            "abstain": any(fact["abstain"] for fact in facts),
            "rolled_back": any(fact["rolled_back"] for fact in facts),
        }  # fmt: skip

    def whole(self, logits: Tensor, small: Sequence[int], full: Sequence[int]) -> Float[Tensor, "1 h w"]:
        """The mask of an image in its own size, from the logits of its tiles."""
        shares = untiled(logits, *small).sigmoid()
        return (resize(shares, size=tuple(full), kernel="linear") > 0.5).float()
