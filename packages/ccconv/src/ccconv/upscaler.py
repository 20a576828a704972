"""Any-scale super-resolution: one encoder, and heads that give any output size.

Used by `ccconv sr` and the claim any-scale-sr. All heads add to the cubic enlargement and start at it. The
rivals follow the published descriptions: LIIF (Chen et al. 2021: an MLP per output pixel on the unfolded
features, its offset and cell, averaged over four neighbours by area) and Meta-SR (Hu et al. 2019: a network
from offset and 1/scale to one kernel per output pixel, the grid tied at the first pixel).
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from paperkit.resize import Number, exact
from torch import Tensor, nn
from torch.nn import functional as F

from ccconv.functional import resize
from ccconv.layer import CCConv2d

Pair = tuple[int, int]
Scales = tuple[Fraction, Fraction]
HEADS = ("cc", "cc interp", "liif", "meta")
MEAN, SPREAD, MISSING = 0.5, 0.25, 0.1
"""Of photographs in [0, 1], and what an enlargement of them misses, as far as a network's units go: on the
numbers as they are a first step of Adam adds more than is missing, and soon no ReLU is left alive."""


def silent(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """The layer with all weights 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Residual(nn.Module):
    """Two convs around a ReLU, added to the input (EDSR's block, which has no norm)."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The sum."""
        return x + self.second(F.relu(self.first(x)))


class CCHead(nn.Module):
    """One continuous layer to `middle` channels at the output's size, a ReLU, a 1x1 conv to colours."""

    def __init__(self, width: int, colours: int, kernel: str, middle: int = 16):
        super().__init__()
        self.conv = CCConv2d(width, middle, 3, kernel=kernel, padding_mode="replicate")
        self.mix = silent(nn.Conv2d(middle, colours, 1))

    def forward(self, f: Float[Tensor, "b c h w"], size: Pair, scale: Scales) -> Float[Tensor, "b k n m"]:
        """What is added to the enlargement, in units of `MISSING`."""
        return self.mix(F.relu(self.conv(f, size, scale)))


def projected(length: int, size: int, scale: Fraction) -> Float[Tensor, " n"]:
    """u(j) of one axis in input pixels (see `method`)."""
    j = torch.arange(size, dtype=torch.float64)
    return (j / float(scale) + (length - 1) / 2 - (size - 1) / (2 * float(scale))).float()


class LIIFHead(nn.Module):
    """An MLP per output pixel and neighbour."""

    def __init__(self, width: int, colours: int, hidden: int = 64, layers: int = 4):
        super().__init__()
        sizes = [9 * width + 4, *[hidden] * layers]
        parts: list[nn.Module] = []
        for i, o in pairwise(sizes):
            parts += [nn.Linear(i, o), nn.ReLU()]
        self.mlp = nn.Sequential(*parts, silent(nn.Linear(hidden, colours)))

    def forward(
        self, f: Float[Tensor, "b c h w"], size: Pair, scale: Scales, rows: int = 64
    ) -> Float[Tensor, "b k n m"]:
        """What is added to the enlargement, in units of `MISSING`; `rows` output rows at a time."""
        f = F.unfold(F.pad(f, (1, 1, 1, 1), mode="replicate"), 3).unflatten(2, f.shape[2:])
        y, x = (projected(f.shape[2 + a], size[a], scale[a]) for a in (0, 1))
        parts = [self._rows(f, part, x, scale) for part in y.split(rows)]
        return torch.cat(parts, 2)

    def _rows(self, f: Tensor, y: Tensor, x: Tensor, scale: Scales) -> Tensor:
        total, result = 0.0, 0.0
        cell = [torch.full((len(y), len(x)), 1 / float(s)) for s in scale]
        for dy in (0, 1):
            for dx in (0, 1):
                iy, ix = (v.floor() + d for v, d in ((y, dy), (x, dx)))
                off = torch.stack(torch.broadcast_tensors((y - iy)[:, None], (x - ix)[None]))
                # The nearer a neighbour, the larger the rectangle on its other side.
                area = ((1 - off[0].abs()) * (1 - off[1].abs())).clamp_min(0) + 1e-9
                near = _at(f, iy, ix)
                given = torch.cat([near, torch.stack([*off, *cell]).expand(len(f), -1, -1, -1)], 1)
                value = self.mlp(given.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                result, total = result + area * value, total + area
        return torch.as_tensor(result / total)


def _at(f: Float[Tensor, "b c h w"], y: Tensor, x: Tensor) -> Float[Tensor, "b c n m"]:
    """Features at whole rows y and columns x, those outside moved to the edge."""
    iy, ix = (v.long().clamp(0, n - 1) for v, n in zip((y, x), f.shape[2:], strict=True))
    return f[:, :, iy[:, None], ix]


class MetaHead(nn.Module):
    """A network that makes one 3x3 kernel per output pixel."""

    def __init__(self, width: int, colours: int, hidden: int = 64):
        super().__init__()
        self.colours = colours
        self.weights = nn.Sequential(
            nn.Linear(4, hidden), nn.ReLU(), silent(nn.Linear(hidden, 9 * width * colours))
        )

    def forward(
        self, f: Float[Tensor, "b c h w"], size: Pair, scale: Scales, rows: int = 32
    ) -> Float[Tensor, "b k n m"]:
        """What is added to the enlargement, in units of `MISSING`; `rows` output rows at a time."""
        f = F.unfold(F.pad(f, (1, 1, 1, 1), mode="replicate"), 3).unflatten(2, f.shape[2:])
        y, x = (torch.arange(n) / float(s) for n, s in zip(size, scale, strict=True))
        inverse = [1 / float(s) for s in scale]
        parts = []
        for part in y.split(rows):
            off = torch.broadcast_tensors((part - part.floor())[:, None], (x - x.floor())[None])
            given = torch.stack([*off, *(torch.full_like(off[0], v) for v in inverse)], -1)
            kernels = self.weights(given).unflatten(-1, (-1, self.colours))
            parts.append(torch.einsum("bcyx,yxck->bkyx", _at(f, part.floor(), x.floor()), kernels))
        return torch.cat(parts, 2)


class Upscaler(nn.Module):
    """Encoder at the input's size, a head at the output's."""

    def __init__(self, head: str = "cc", width: int = 24, blocks: int = 3, colours: int = 3):
        super().__init__()
        self.enter = nn.Conv2d(colours, width, 3, padding=1)
        self.blocks = nn.Sequential(*[Residual(width) for _ in range(blocks)])
        self.leave = nn.Conv2d(width, width, 3, padding=1)
        kinds: dict[str, Any] = {
            "cc": lambda: CCHead(width, colours, "mlp"),
            "cc interp": lambda: CCHead(width, colours, "interp"),
            "liif": lambda: LIIFHead(width, colours),
            "meta": lambda: MetaHead(width, colours),
        }
        self.head: nn.Module = kinds[head]()

    def features(self, x: Float[Tensor, "b k h w"]) -> Float[Tensor, "b c h w"]:
        """The encoder."""
        f = self.enter(x)
        return f + self.leave(self.blocks(f))

    def forward(self, x: Float[Tensor, "b k h w"], size: Pair, scale: Scales) -> Float[Tensor, "b k n m"]:
        """Images in [0, 1] at a size; the two grids share their centre."""
        missing = self.head(self.features((x - MEAN) / SPREAD), size, scale)
        return enlarged(x, size, scale) + MISSING * missing


def enlarged(x: Float[Tensor, "b k h w"], size: Pair, scale: Scales) -> Float[Tensor, "b k n m"]:
    """The cubic enlargement that every head adds to, and the baseline."""
    return resize(x, size, scale, border="renormalize")


def pair(scale: Number | Sequence[Number]) -> Scales:
    """(rows, columns) as exact rationals."""
    both = [scale, scale] if isinstance(scale, int | float | Fraction) else list(scale)
    return exact(both[0]), exact(both[1])


def reduced(
    image: Float[Tensor, "k h w"], scale: Scales
) -> tuple[Float[Tensor, "1 k a b"], Float[Tensor, "1 k n m"]]:
    """(small, large): the image cut at its centre to the nearest size that the scale reaches, and its
    antialiased cubic reduction."""
    small = [max(1, int(n / s)) for n, s in zip(image.shape[1:], scale, strict=True)]
    large = [min(n, round(m * s)) for n, m, s in zip(image.shape[1:], small, scale, strict=True)]
    top, left = ((n - m) // 2 for n, m in zip(image.shape[1:], large, strict=True))
    cut = image[None, :, top : top + large[0], left : left + large[1]]
    return resize(cut, small, (1 / scale[0], 1 / scale[1]), border="renormalize"), cut
