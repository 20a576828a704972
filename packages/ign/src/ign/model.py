"""The networks f: an encoder to a small code and a decoder back, with a norm that knows what it is fed.

One network sees three kinds of batches: data x, noise z and outputs f(z). `RoleNorm` is batch normalisation
that keeps running statistics for each kind, since one common set fits none of them.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from paperkit import UserError, parallel
from torch import Tensor, nn

from ign.config import TrainConfig
from ign.method import Roles

ROLES = ("x", "z", "fz")
Kind = Literal["mlp", "hybrid", "dcgan", "unet"]
Norm = Literal["batch", "group", "none"]
Shape = tuple[int, int, int]


class RoleNorm(nn.Module):
    """Batch normalisation over all axes but the second, with running statistics for each role.

    In training each part of the batch is normalised by its own statistics, over all processes. `split=False`
    keeps one common set of running statistics, as ordinary batch norm does, whichever batch comes along.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, features: int, split: bool = True, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(len(ROLES), features))
        self.register_buffer("var", torch.ones(len(ROLES), features))
        self.split, self.eps = split, eps
        self.momentum: float | None = None
        """Share of a training batch in the running statistics; None leaves them as they are."""

    def forward(self, h: Float[Tensor, "b c *space"], roles: Roles) -> Float[Tensor, "b c *space"]:
        if len(roles) == 1:
            return self._one(h, roles[0])
        return torch.cat(
            [self._one(part, role) for part, role in zip(h.chunk(len(roles)), roles, strict=True)]
        )

    def _one(self, h: Tensor, role: str) -> Tensor:
        index = ROLES.index(role) if self.split else 0
        mean, var = self.mean[index], self.var[index]
        if not self.training:
            return F.batch_norm(h, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        if parallel.world()[1] > 1:
            return self._synchronised(h, mean, var)
        if self.momentum is None:
            return F.batch_norm(h, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return F.batch_norm(h, mean, var, self.weight, self.bias, True, self.momentum, self.eps)

    def _synchronised(self, h: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """The same with the statistics of the global batch (equal parts on every process)."""
        size = parallel.world()[1]
        axes = [axis for axis in range(h.ndim) if axis != 1]
        shape = [1, -1] + [1] * (h.ndim - 2)
        centre = parallel.differentiable_sum(h.mean(axes)) / size
        centred = h - centre.view(shape)
        spread = parallel.differentiable_sum(centred.square().mean(axes)) / size
        if self.momentum is not None:
            count = size * h.numel() // h.shape[1]
            mean.lerp_(centre.detach(), self.momentum)
            var.lerp_(spread.detach() * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(spread + self.eps)
        return centred * scale.view(shape) + self.bias.view(shape)


class Stack(nn.ModuleList):
    """Layers in a row; norms with memory are told the role of their batch."""

    def __init__(self, *layers: nn.Module):
        super().__init__(layers)

    def forward(self, h: Tensor, roles: Roles) -> Tensor:
        for layer in self:
            h = layer(h, roles) if isinstance(layer, RoleNorm) else layer(h)
        return h


class Network(nn.Module):
    """f: data space to itself, decoder after encoder, outputs in (-1, 1)."""

    def __init__(self, shape: Shape, encoder: Stack, decoder: Stack):
        super().__init__()
        self.shape, self.encoder, self.decoder = shape, encoder, decoder

    def forward(self, h: Float[Tensor, "b c h w"], roles: Roles) -> Float[Tensor, "b c h w"]:
        """f of a batch whose equal consecutive parts have the given `roles`."""
        return self.decoder(self.encoder(h, roles), roles)

    def norms(self) -> list[RoleNorm]:
        """The norms with running statistics."""
        return [module for module in self.modules() if isinstance(module, RoleNorm)]


class UNet(Network):
    """f with skips: what the encoder saw at full and at half size stands beside what the decoder makes."""

    def __init__(self, shape: Shape, levels: list[Stack], middle: Stack, ups: list[Stack]):
        super().__init__(shape, Stack(), Stack())
        self.levels, self.middle, self.ups = nn.ModuleList(levels), middle, nn.ModuleList(ups)

    def forward(self, h: Float[Tensor, "b c h w"], roles: Roles) -> Float[Tensor, "b c h w"]:
        """f of a batch whose equal consecutive parts have the given `roles`."""
        seen = []
        for level in self.levels:
            h = level(h, roles)
            seen.append(h)
        h = self.middle(h, roles)
        for up, skip in zip(self.ups, reversed(seen), strict=True):
            h = up(torch.cat([h, skip], 1), roles)
        return h


def network(config: TrainConfig, shape: Shape) -> Network:
    """The untrained network of a configuration for images of `shape`."""
    net = build(config.net, shape, config.width, config.code, config.norm, config.init, config.dropout)
    if config.statistics == "common":
        for norm in net.norms():
            norm.split, norm.momentum = False, 0.1
    return net


def build(
    kind: Kind,
    shape: Shape,
    width: int,
    code: int,
    norm: Norm = "batch",
    init: Literal["default", "dcgan"] = "default",
    dropout: float = 0.0,
) -> Network:
    """A network by name: `width` channels (`mlp`: units) after the first layer, `code` numbers in the middle.

    `init="dcgan"` draws weights from N(0, 0.02) with zero biases; `dropout` follows every hidden activation,
    whole channels at a time where there are maps. Raises `UserError` for an image size that the network
    cannot halve as often as it must.
    """
    network = {"mlp": mlp, "hybrid": hybrid, "dcgan": dcgan, "unet": unet}[kind](shape, width, code, norm)
    if dropout:
        for stack in [module for module in network.modules() if isinstance(module, Stack)]:
            _drop(stack, dropout)
    if init == "dcgan":
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return network


def mlp(shape: Shape, width: int, code: int, norm: Norm) -> Network:
    """Two hidden layers on each side of the code; a norm on all but the first, the code and the output."""
    numbers = math.prod(shape)
    encoder = Stack(
        nn.Flatten(),
        nn.Linear(numbers, width),
        nn.LeakyReLU(0.2),
        *_linear(width, width, norm, nn.LeakyReLU(0.2)),
        nn.Linear(width, code),
    )
    decoder = Stack(
        *_linear(code, width, norm, nn.ReLU()),
        *_linear(width, width, norm, nn.ReLU()),
        nn.Linear(width, numbers),
        nn.Tanh(),
        nn.Unflatten(1, shape),
    )
    return Network(shape, encoder, decoder)


def hybrid(shape: Shape, width: int, code: int, norm: Norm) -> Network:
    """Two strided convolutions, then fully connected layers of 256 around the code; mirrored."""
    channels, height, breadth = shape
    if height % 4 or breadth % 4:
        raise UserError(f"net hybrid needs an image size divisible by 4, not {height}x{breadth}: set --size")
    inner = (2 * width, height // 4, breadth // 4)
    units, hidden = math.prod(inner), 256
    encoder = Stack(
        nn.Conv2d(channels, width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        *_conv(nn.Conv2d(width, 2 * width, 4, 2, 1, bias=norm == "none"), norm, nn.LeakyReLU(0.2)),
        nn.Flatten(),
        *_linear(units, hidden, norm, nn.LeakyReLU(0.2)),
        nn.Linear(hidden, code),
    )
    decoder = Stack(
        *_linear(code, hidden, norm, nn.ReLU()),
        *_linear(hidden, units, norm, nn.ReLU()),
        nn.Unflatten(1, inner),
        *_conv(nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=norm == "none"), norm, nn.ReLU()),
        nn.ConvTranspose2d(width, channels, 4, 2, 1),
        nn.Tanh(),
    )
    return Network(shape, encoder, decoder)


def dcgan(shape: Shape, width: int, code: int, norm: Norm) -> Network:
    """DCGAN's discriminator with a code for a head, then its generator (section 3; appendix C, Table 1).

    Each stage halves the side (kernel 4, or 3 at an odd side) until it is 4, then a valid 4x4 convolution
    makes the code; widths double from `width` to at most 8 times it.
    """
    channels, side, other = shape
    if side != other or side < 8:
        raise UserError(f"net dcgan needs square images of side >= 8, not {side}x{other}: set --size")
    sides, widths = [side], [channels]
    while sides[-1] > 4:
        sides.append((sides[-1] + 1) // 2)
        widths.append(width * min(2 ** (len(widths) - 1), 8))
    if sides[-1] != 4:
        raise UserError(f"net dcgan halves the side down to 4, {side} ends at {sides[-1]}: use 28, 32 or 64")
    kernels = [4 if size % 2 == 0 else 3 for size in sides[:-1]]
    down, up = [], []
    for stage, kernel in enumerate(kernels):
        narrow, wide = widths[stage], widths[stage + 1]
        plain = norm == "none" or stage == 0
        conv = nn.Conv2d(narrow, wide, kernel, 2, 1, bias=plain)
        back = nn.ConvTranspose2d(wide, narrow, kernel, 2, 1, bias=plain)
        down += _conv(conv, "none" if stage == 0 else norm, nn.LeakyReLU(0.2))
        up = [*_conv(back, norm, nn.ReLU()), *up] if stage else [back, nn.Tanh()]
    first = nn.ConvTranspose2d(code, widths[-1], 4, 1, 0, bias=norm == "none")
    encoder = Stack(*down, nn.Conv2d(widths[-1], code, 4, 1, 0))
    return Network(shape, encoder, Stack(*_conv(first, norm, nn.ReLU()), *up))


def unet(shape: Shape, width: int, code: int, norm: Norm) -> UNet:
    """Two halvings (`width`, 2 and 4 times as many channels), a fully connected code below them, and skips.

    Any size divisible by 4. The skips at every size let it copy what it is given: nearly idempotent, but
    samples are worse for it (a public re-implementation's figures on CelebA).
    """
    channels, height, breadth = shape
    if height % 4 or breadth % 4:
        raise UserError(f"net unet needs an image size divisible by 4, not {height}x{breadth}: set --size")
    inner, plain = (4 * width, height // 4, breadth // 4), norm == "none"
    leaky, relu = nn.LeakyReLU(0.2), nn.ReLU()
    levels = [
        Stack(nn.Conv2d(channels, width, 3, 1, 1), leaky),
        Stack(*_conv(nn.Conv2d(width, 2 * width, 4, 2, 1, bias=plain), norm, leaky)),
        Stack(*_conv(nn.Conv2d(2 * width, 4 * width, 4, 2, 1, bias=plain), norm, leaky)),
    ]
    middle = Stack(
        nn.Flatten(),
        nn.Linear(math.prod(inner), code),
        *_linear(code, math.prod(inner), norm, relu),
        nn.Unflatten(1, inner),
    )
    ups = [
        Stack(*_conv(nn.ConvTranspose2d(8 * width, 2 * width, 4, 2, 1, bias=plain), norm, relu)),
        Stack(*_conv(nn.ConvTranspose2d(4 * width, width, 4, 2, 1, bias=plain), norm, relu)),
        Stack(nn.Conv2d(2 * width, channels, 3, 1, 1), nn.Tanh()),
    ]
    return UNet(shape, levels, middle, ups)


def _drop(stack: Stack, share: float) -> None:
    """Insert dropout behind every hidden activation of a stack."""
    for index in reversed(range(len(stack))):
        if isinstance(stack[index], nn.LeakyReLU | nn.ReLU):
            before = list(stack)[max(index - 2, 0) : index]
            maps = any(isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) for layer in before)
            stack.insert(index + 1, nn.Dropout2d(share) if maps else nn.Dropout(share))


def _linear(inputs: int, outputs: int, norm: Norm, activation: nn.Module) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), *_norm(outputs, norm), activation]


def _conv(layer: nn.Module, norm: Norm, activation: nn.Module) -> list[nn.Module]:
    return [layer, *_norm(layer.out_channels, norm), activation]  # pyright: ignore[reportArgumentType]


def _norm(features: int, norm: Norm) -> list[nn.Module]:
    if norm == "batch":
        return [RoleNorm(features)]
    if norm == "group":
        return [nn.GroupNorm(math.gcd(8, features), features)]
    return []


# ---- what training needs around f --------------------------------------------------------------------------


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the trained ones: average <- decay average + (1 - decay) net."""
    for own, new in zip(average.parameters(), net.parameters(), strict=True):
        own.lerp_(new, 1.0 - decay)


@torch.no_grad()
def copy_statistics(average: nn.Module, net: nn.Module) -> None:
    """Give the averaged weights the running statistics that the trained ones have gathered."""
    for own, new in zip(average.buffers(), net.buffers(), strict=True):
        own.copy_(new)


@contextlib.contextmanager
def batch_statistics(net: Network) -> Iterator[None]:
    """Inside, each norm uses the statistics of the batch that it is given and keeps nothing; no dropout."""
    modes = {module: module.training for module in net.modules()}
    momenta = {norm: norm.momentum for norm in net.norms()}
    net.eval()
    for norm in momenta:
        norm.training, norm.momentum = True, None
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, momentum in momenta.items():
            norm.momentum = momentum


@torch.no_grad()
def estimate_statistics(net: Network, pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Set the running statistics of each role to the mean of batch statistics over (data, noise) batches.

    f(z) is fed to the third role with the batch statistics of the first application, as in training.
    """
    with batch_statistics(net):
        for count, (x, z) in enumerate(pairs, start=1):
            for norm in net.norms():
                norm.momentum = 1.0 / count
            net(x, ("x",))
            net(net(z, ("z",)), ("fz",))
