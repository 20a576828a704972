"""The small zoo that is trained on the spot: two classifiers, a masked autoencoder, an upsampling generator.

Sizes follow spec 12.1. Spatial layers of the first two and of the generator are `stages`, the hidden layer
of a transformer's MLP feeds `fc2`: the rules of `hooks` find them as they find those of published networks.
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

CODE = 64
"""Numbers that an image is generated from."""


class ClassifierA(nn.Module):
    """Three convolutions with batch norm, ReLU and max pooling: 24, 48 and 96 units."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        widths = (channels, 24, 48, 96)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
            for i, o in itertools.pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        for number, stage in enumerate(self.stages):
            x = stage(F.max_pool2d(x, 2) if number else x)
        return self.head(x.mean((2, 3)))


class Residual(nn.Module):
    """x + two convolutions with group norm, then GELU."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return F.gelu(x + self.body(x))


class ClassifierB(nn.Module):
    """Strided stem and residual blocks with group norm and GELU: 32, 32, 56 and 56 units."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.stages = nn.ModuleList([
            nn.Sequential(nn.Conv2d(channels, 32, 5, 2, 2), nn.GroupNorm(8, 32), nn.GELU()),
            Residual(32),
            nn.Sequential(nn.Conv2d(32, 56, 3, 2, 1), nn.GroupNorm(8, 56), nn.GELU()),
            Residual(56),
        ])  # fmt: skip
        self.head = nn.Linear(56, classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


# ---- Masked autoencoder ------------------------------------------------------------------------------------


class Mlp(nn.Module):
    """Two linear layers; the hidden one, after GELU, holds the units."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h t d -> b t (h d)"))


class Layer(nn.Module):
    """A transformer block, norms first."""

    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MaskedAutoencoder(nn.Module):
    """Four blocks on a quarter of the patches, one block to fill in the rest; all patches are seen in
    mining."""

    def __init__(self, channels: int, size: int, width: int = 64, depth: int = 4):
        super().__init__()
        self.patch = patch_of(size)
        self.tokens = (size // self.patch) ** 2
        self.embed = nn.Conv2d(channels, width, self.patch, self.patch)
        self.positions = nn.Parameter(0.02 * torch.randn(self.tokens, width))
        self.blocks = nn.ModuleList(Layer(width) for _ in range(depth))
        self.norm, self.decoder = nn.LayerNorm(width), Layer(width)
        self.hidden = nn.Parameter(0.02 * torch.randn(width))
        self.places = nn.Parameter(0.02 * torch.randn(self.tokens, width))
        self.pixels = nn.Linear(width, channels * self.patch**2)

    def forward(
        self, x: Float[Tensor, "b c h w"], kept: Int64[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b t d"]:
        """Features of the kept tokens, of all where None."""
        tokens = rearrange(self.embed(x), "b d h w -> b (h w) d") + self.positions
        if kept is not None:
            tokens = tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def loss(self, x: Float[Tensor, "b c h w"], order: Int64[Tensor, "b t"]) -> Float[Tensor, ""]:
        """Mean squared error of the patches that the last three quarters of `order` name."""
        count = max(1, self.tokens // 4)
        kept, hidden = order[:, :count], order[:, count:]
        seen = self(x, kept)
        full = self.hidden.expand(len(x), self.tokens, -1).scatter(
            1, kept[..., None].expand(-1, -1, seen.shape[2]), seen
        )
        predicted = self.pixels(self.decoder(full + self.places))
        wanted = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
        error = (predicted - wanted).square().mean(2)
        return error.gather(1, hidden).mean()


def patch_of(size: int) -> int:
    """Side of a patch: an eighth of the image, rounded to what divides it (8: 2, 28 and 32: 4)."""
    return 2 if size < 16 else 4


# ---- Generator ---------------------------------------------------------------------------------------------


class Generator(nn.Module):
    """From a code to an image by nearest-neighbour upsampling and convolution: 64, 32 and 16 units.

    Upsampling in place of transposed convolution leaves no checkerboard units (spec 12.7).
    """

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.side = size // 4
        self.start = nn.Linear(CODE, 64 * self.side**2)
        self.stages = nn.ModuleList([
            nn.Sequential(nn.BatchNorm2d(64), nn.ReLU()), _grown(64, 32), _grown(32, 16)
        ])  # fmt: skip
        self.image = nn.Conv2d(16, channels, 3, padding=1)

    def forward(self, code: Float[Tensor, "b z"]) -> Float[Tensor, "b c h w"]:
        x = rearrange(self.start(code), "b (c h w) -> b c h w", h=self.side, w=self.side)
        for stage in self.stages:
            x = stage(x)
        return torch.tanh(self.image(x))


def _grown(width: int, to: int) -> nn.Sequential:
    up = nn.Upsample(scale_factor=2, mode="nearest")
    return nn.Sequential(up, nn.Conv2d(width, to, 3, padding=1, bias=False), nn.BatchNorm2d(to), nn.ReLU())


class Critic(nn.Module):
    """Tells real images from generated ones; spectral norm on every layer."""

    def __init__(self, channels: int, size: int):
        super().__init__()
        norm: Callable[[nn.Module], nn.Module] = nn.utils.parametrizations.spectral_norm
        widths = (channels, 16, 32, 64)
        convolutions = [
            norm(nn.Conv2d(i, o, 4 if number else 3, 2 if number else 1, 1))
            for number, (i, o) in enumerate(itertools.pairwise(widths))
        ]
        self.body = nn.Sequential(*(part for conv in convolutions for part in (conv, nn.LeakyReLU(0.2))))
        self.head = norm(nn.Linear(64 * (size // 4) ** 2, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
        return self.head(self.body(x).flatten(1)).squeeze(1)
