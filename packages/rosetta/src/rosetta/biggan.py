"""BigGAN-deep's generator (Brock et al. 2019, arXiv 1809.11096) under the names of the published PyTorch
weights.

Parameters and buffers are called as in `pytorch_pretrained_biggan`'s files, so that those fill it strictly.
The first 3 of the last layer's 128 channels are the image; the others are never seen, so `network` leaves
that layer out of the units (the released code counts it).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from paperkit import UserError
from paperkit.run import fill
from torch import Tensor, nn

from rosetta.hooks import Network
from rosetta.models import state_of

CODE, CLASSES = 128, 1000
"""Numbers of a code (a class has as many), and classes of ImageNet."""
WIDTH, EPS, LEVELS = 128, 1e-4, 51
"""Channels of a unit width; what is added to variances; truncations that have statistics, from 0 to 1."""
Block = tuple[int, int, bool]
"""Width before and after, in units of `WIDTH`, and whether the grid doubles."""
BLOCKS: dict[int, tuple[Block, ...]] = {
    128: (
        (16, 16, False), (16, 16, True), (16, 16, False), (16, 8, True), (8, 8, False), (8, 4, True),
        (4, 4, False), (4, 2, True), (2, 2, False), (2, 1, True),
    ),
    256: (
        (16, 16, False), (16, 16, True), (16, 16, False), (16, 8, True), (8, 8, False), (8, 8, True),
        (8, 8, False), (8, 4, True), (4, 4, False), (4, 2, True), (2, 2, False), (2, 1, True),
    ),
}  # fmt: skip
"""By the image's side.

Note: the list of 256 is that of the spec (12 blocks, 53 convolutions, 23,296 channels); the shipped
configuration could not be read.
"""
ATTENTION = 8
"""Self-attention stands before the block of this number."""
SEEN = ("generator.layers.*conv*",)
"""Layers whose units are mined."""


def spectral(module: nn.Module) -> nn.Module:
    """Divided by its largest singular value, whose vectors the weights bring along."""
    return nn.utils.spectral_norm(module, eps=EPS)


class Statistics(nn.Module):
    """Batch normalisation with the means and variances of the truncation that is asked for."""

    running_means: Tensor
    running_vars: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("running_means", torch.zeros(LEVELS, channels))
        self.register_buffer("running_vars", torch.ones(LEVELS, channels))

    def normalised(self, x: Float[Tensor, "b c h w"], truncation: float) -> Float[Tensor, "b c h w"]:
        """x less its mean, over its deviation.

        Note: between two levels the released code gives the lower one the share that should be the upper
        one's; kept, so that images are the published ones.
        """
        share, level = math.modf(truncation * (LEVELS - 1))
        low, high = int(level), min(int(level) + 1, LEVELS - 1)
        share = share if share > 0 else 1.0
        tables = self.running_means, self.running_vars
        mean, variance = (share * table[low] + (1 - share) * table[high] for table in tables)
        return (x - mean[:, None, None]) / (variance[:, None, None] + EPS).sqrt()


class ConditionalNorm(Statistics):
    """Its scale and offset are linear in code and class."""

    def __init__(self, channels: int, condition: int):
        super().__init__(channels)
        self.scale = spectral(nn.Linear(condition, channels, bias=False))
        self.offset = spectral(nn.Linear(condition, channels, bias=False))

    def forward(
        self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b k"], truncation: float
    ) -> Float[Tensor, "b c h w"]:
        scale, offset = (part(condition)[:, :, None, None] for part in (self.scale, self.offset))
        return self.normalised(x, truncation) * (1 + scale) + offset


class LastNorm(Statistics):
    """Its scale and offset are learned numbers."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "b c h w"], truncation: float) -> Float[Tensor, "b c h w"]:
        return self.normalised(x, truncation) * self.weight[:, None, None] + self.bias[:, None, None]


class Bottleneck(nn.Module):
    """Four convolutions through a quarter of the channels; the way around drops channels and doubles the
    grid."""

    def __init__(self, before: int, after: int, grows: bool, condition: int):
        super().__init__()
        self.after, self.grows = after, grows
        inner = before // 4
        for number, (i, o, side) in enumerate(
            [(before, inner, 1), (inner, inner, 3), (inner, inner, 3), (inner, after, 1)]
        ):
            self.add_module(f"bn_{number}", ConditionalNorm(i, condition))
            self.add_module(f"conv_{number}", spectral(nn.Conv2d(i, o, side, padding=side // 2)))

    def forward(
        self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b k"], truncation: float
    ) -> Float[Tensor, "b d i j"]:
        y = x
        for number in range(4):
            y = F.relu(self.get_submodule(f"bn_{number}")(y, condition, truncation))
            y = self._grown(y) if number == 1 else y
            y = self.get_submodule(f"conv_{number}")(y)
        return y + self._grown(x[:, : self.after])

    def _grown(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.grows else x


class SelfAttention(nn.Module):
    """Every place looks at every place of a grid of half the side; `gamma` weighs what it sees."""

    def __init__(self, channels: int):
        super().__init__()
        sizes = {
            "theta": (channels, channels // 8), "phi": (channels, channels // 8),
            "g": (channels, channels // 2), "o_conv": (channels // 2, channels),
        }  # fmt: skip
        for name, (i, o) in sizes.items():
            self.add_module(f"snconv1x1_{name}", spectral(nn.Conv2d(i, o, 1, bias=False)))
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        made = {name: self.get_submodule(f"snconv1x1_{name}") for name in ("theta", "phi", "g", "o_conv")}
        query = rearrange(made["theta"](x), "b c h w -> b (h w) c")
        key, value = (
            rearrange(F.max_pool2d(made[name](x), 2), "b c h w -> b c (h w)") for name in ("phi", "g")
        )
        seen = value @ (query @ key).softmax(-1).transpose(1, 2)
        return x + self.gamma * made["o_conv"](rearrange(seen, "b c (h w) -> b c h w", h=x.shape[2]))


class Layers(nn.Module):
    """From code and class to the image."""

    def __init__(self, blocks: Sequence[Block], width: int):
        super().__init__()
        condition = 2 * CODE
        self.gen_z = spectral(nn.Linear(condition, 4 * 4 * blocks[0][0] * width))
        layers: list[nn.Module] = []
        for number, (before, after, grows) in enumerate(blocks):
            if number == ATTENTION:
                layers.append(SelfAttention(before * width))
            layers.append(Bottleneck(before * width, after * width, grows, condition))
        self.layers = nn.ModuleList(layers)
        self.bn = LastNorm(width)
        self.conv_to_rgb = spectral(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, condition: Float[Tensor, "b k"], truncation: float) -> Float[Tensor, "b 3 s s"]:
        x = rearrange(self.gen_z(condition), "b (h w c) -> b c h w", h=4, w=4)
        for layer in self.layers:
            x = layer(x, condition, truncation) if isinstance(layer, Bottleneck) else layer(x)
        return self.conv_to_rgb(F.relu(self.bn(x, truncation)))[:, :3].tanh()


class BigGAN(nn.Module):
    """The generator with its table of classes."""

    def __init__(self, blocks: Sequence[Block] = BLOCKS[256], width: int = WIDTH):
        super().__init__()
        self.embeddings = nn.Linear(CLASSES, CODE, bias=False)
        self.generator = Layers(blocks, width)

    def forward(
        self, code: Float[Tensor, "b z"], label: int, truncation: float = 1.0
    ) -> Float[Tensor, "b 3 s s"]:
        """Images of one class, in [-1, 1]. Raises `UserError` for a class or a truncation out of range."""
        if not (0 <= label < CLASSES and 0 < truncation <= 1):
            raise UserError(
                f"BigGAN draws classes 0 to {CLASSES - 1} at a truncation above 0 and up to 1, not class "
                f"{label} at {truncation:g}"
            )
        known = self.embeddings.weight[:, label].expand(len(code), -1)
        return self.generator(torch.cat([code, known], 1), truncation)


def codes(count: int, generator: torch.Generator) -> Float[Tensor, "n z"]:
    """Standard normal numbers cut off at 1 on both sides, as the released code draws them for every model."""
    return nn.init.trunc_normal_(torch.empty(count, CODE), a=-1, b=1, generator=generator)


def load(file: Path, size: int = 256) -> BigGAN:
    """The published weights of a file, strictly. Raises `UserError` as `state_of` does."""
    module = BigGAN(BLOCKS[size])
    fill(module, state_of(file, module), file)
    return module.eval().requires_grad_(False)


def network(module: BigGAN, label: int = 207, truncation: float = 1.0) -> Network:
    """Ready to be read on codes: `discover(network, codes, SEEN)`. 207 is the released notebook's class."""
    return Network("BigGAN-deep", module, call=lambda net, code: net(code, label, truncation))
