"""Roads in aerial photographs (section 4.4, spec E8): tiles, shifts, a small U-Net, training.

The mask that was predicted is fed back as a fourth channel, as probabilities; -1 everywhere where none is
known. The paper trains on one set and tests on another, in levels by the network's own error; here sensor
noise and haze of four levels are put on tiles of images that were not learned, by generators that see no
mask. The set of photographs does not say where each was taken, so that no region can be kept apart. The claim
is in `road_claim`.
"""

from dataclasses import dataclass
from functools import cache

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from paperkit import UserError, parallel, rng
from paperkit.data import batch_indices, open_pairs, permutation
from paperkit.images import to_float
from paperkit.resize import resize
from torch import Tensor, nn
from torch.nn import functional as F

from ittt.images import Standard
from ittt.model import ITTT
from ittt.strokes import OTHERS, SIDE, TRAIN, strokes
from ittt.task_config import RoadsConfig
from ittt.task_loop import Loss

TILE, PER_SIDE = 128, 2
"""Pixels of a tile; tiles along an image's side, which is brought to TILE x PER_SIDE pixels."""
PIXELS = 5
"""The paper's tolerance, in pixels of an image as it comes."""
NEUTRAL = -1.0
WIDTHS = (12, 20, 28, 36)


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
    stand_in: bool
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
    name = f"aerial-roads, {kept} training and {count} test tiles of {TILE} px ({PER_SIDE**2} per image)"
    parts = learned[:kept], learned[len(learned.x) - held_out :], tested[:count]
    return Parts(name, False, PIXELS * scale, *parts, {})


def _cut(split: str) -> tuple[Tiles, float]:
    """(tiles of a split in random order of the images, tile pixels per pixel of an image as it comes)."""
    images, masks = open_pairs(split).tensor()
    order = torch.from_numpy(permutation(len(images), 0, "roads"))
    x, y = tiled(to_float(images[order], 0.0, 1.0)), tiled(masks[order].float()) > 0.5
    return Tiles(x, y), TILE * PER_SIDE / images.shape[-1]


def tiled(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "m c 128 128"]:
    """Square images resized (antialiased) and cut into tiles, `PER_SIDE` along each side."""
    if images.shape[2] != images.shape[3]:
        raise UserError(f"images of roads must be square, these are {images.shape[3]} x {images.shape[2]}")
    small = resize(images, size=TILE * PER_SIDE).clamp(0, 1)
    return rearrange(small, "n c (r h) (k w) -> (n r k) c h w", r=PER_SIDE, k=PER_SIDE)


def untiled(tiles: Float[Tensor, "m c 128 128"]) -> Float[Tensor, "n c 256 256"]:
    """The images that `tiled` cut, at its size."""
    return rearrange(tiles, "(n r k) c h w -> n c (r h) (k w)", r=PER_SIDE, k=PER_SIDE)


@cache
def _strokes(train: int, held_out: int, test: int) -> Parts:
    x, y = strokes(TRAIN, "train", train + held_out, 0)
    learned, others = Tiles(x, y), {name: Tiles(*strokes(name, "test", test, 0)) for name in OTHERS}
    name = f"digits' strokes over {TRAIN}, a stand-in for aerial photographs, {train} training tiles"
    return Parts(
        name, True, PIXELS * PER_SIDE * SIDE / 400,  # as large a share of the side as for aerial tiles
        learned[:train], learned[train:], Tiles(*strokes(TRAIN, "test", test, 0)), others,
    )  # fmt: skip


# ---- shifts ------------------------------------------------------------------------------------------------


NOISE = ((0.01, 0.02), (0.02, 0.04), (0.04, 0.06), (0.08, 0.10))
"""Sensor noise: variance per unit of light (shot noise), and a deviation always there (read noise)."""
HAZE = (0.25, 0.5, 0.75, 1.0)
"""Optical depth of the haze where it is of mean thickness: of the light of a point exp(-depth) is left."""
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
    """A small U-Net: a strided stem, three halvings, the way back with skips, four logits per position.

    The stem and the last rearrangement save a level at full size, which would take most of the time.
    """

    def __init__(self, like: Float[Tensor, "n 3 s s"], signal: int = 1):
        super().__init__()
        first, *later = WIDTHS
        self.standard = Standard(like, signal)
        self.stem = nn.Sequential(
            nn.Conv2d(3 + signal, first, 5, 2, 2, bias=False), nn.BatchNorm2d(first), nn.ReLU()
        )
        pairs = list(zip(WIDTHS, later, strict=False))
        self.down = nn.ModuleList([Block(before, width) for before, width in pairs])
        self.up = nn.ModuleList([Block(before + width, before) for before, width in reversed(pairs)])
        self.head = nn.Conv2d(first, 4, 1)

    def forward(self, x: Float[Tensor, "b c s s"]) -> Float[Tensor, "b 1 s s"]:
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
        return F.pixel_shuffle(self.head(h), 2)


def build(config: RoadsConfig, parts: Parts) -> ITTT:
    """f at step 0."""
    rng.seed_everything(config.seed, "roads")
    return ITTT(UNet(parts.learned.x), "channel", task="binary", neutral=NEUTRAL, presence=False)


def plain_twin(config: RoadsConfig, parts: Parts) -> UNet:
    """The same layers without the signal's channel, at step 0."""
    rng.seed_everything(config.seed, "plain roads")
    return UNet(parts.learned.x, 0)


def shown(config: RoadsConfig, tiles: Tiles, step: int) -> tuple[Tensor, Tensor]:
    """(tiles, masks) of this process at a step, each step's turned by quarters and mirrored together."""
    rows = parallel.shard(torch.from_numpy(batch_indices(len(tiles.x), config.batch, config.seed, step - 1)))
    turns, mirrored = torch.randint(0, 4, (2,), generator=rng.generator(config.seed, step, "turns")).tolist()
    x, y = (torch.rot90(part[rows], turns, (2, 3)) for part in (tiles.x, tiles.y))
    return (x.flip(3), y.flip(3)) if mirrored % 2 else (x, y)


def loss(config: RoadsConfig, net: ITTT, parts: Parts) -> Loss:
    """Eq. 2: one pass fed the true mask, and one fed none."""
    device = net.neutral.device

    def of(step: int) -> Tensor:
        x, y = (part.to(device) for part in shown(config, parts.learned, step))
        return net.loss(x, y)

    return of


def plain_loss(config: RoadsConfig, net: nn.Module, parts: Parts) -> Loss:
    """The twin's, on the same tiles."""

    def of(step: int) -> Tensor:
        x, y = shown(config, parts.learned, step)
        return F.binary_cross_entropy_with_logits(net(x), y.float())

    return of


def length(config: RoadsConfig, parts: Parts) -> int:
    """Steps in all: whole batches of each epoch."""
    return config.epochs * max(1, len(parts.learned.x) // config.batch)
