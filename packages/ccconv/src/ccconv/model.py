"""Small classifiers whose layers resize: continuous ones, and the twins that they are compared with.

Used by `train` and the learned experiments. All kinds have the same depth, widths and norms; with `interp`
the continuous one has exactly the parameters of the others.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ccconv.config import TrainConfig, strides
from ccconv.hidden import flops
from ccconv.layer import CCConv2d


def resized(x: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b c n n"]:
    """Antialiased cubic resize as people write it today."""
    if tuple(x.shape[2:]) == (size, size):
        return x
    return F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False)


class Blur(nn.Module):
    """Binomial 3x3 filter, then every t-th pixel (Zhang 2019, "Making convolutional networks shift-invariant
    again")."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.channels, self.stride = channels, stride
        row = torch.tensor([0.25, 0.5, 0.25])
        self.filter: Tensor
        self.register_buffer(
            "filter", (row[:, None] * row).expand(channels, 1, 3, 3).clone(), persistent=False
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c n m"]:
        """The blurred and thinned map."""
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        return F.conv2d(x, self.filter, stride=self.stride, groups=self.channels)


class Block(nn.Module):
    """One layer that resizes, a norm over the whole map, a ReLU."""

    def __init__(self, kind: str, kernel: str, inputs: int, outputs: int, size: int, stride: int):
        super().__init__()
        self.kind, self.size = kind, size
        if kind == "cc":
            self.conv = CCConv2d(inputs, outputs, 3, kernel=kernel)
            self.conv.size = size  # what `hidden_sizes` changes
        else:
            self.conv = nn.Conv2d(inputs, outputs, 3, stride if kind == "strided" else 1, 1)
        self.norm = nn.GroupNorm(1, outputs)  # batch statistics would depend on the size
        self.blur = Blur(outputs, stride) if kind == "blur" and stride > 1 else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"], size: int | None = None) -> Float[Tensor, "b o n m"]:
        """The map of side `size` (by default the layer's own); strided kinds give what they give."""
        if self.kind == "cc":
            y = self.conv(x, size) if size else self.conv(x)
        elif self.kind == "resize-conv":
            y = self.conv(resized(x, size or self.size))
        elif self.kind == "conv-resize":
            y = resized(self.conv(x), size or self.size)
        else:
            y = self.conv(x)
        return self.blur(F.relu(self.norm(y)))


class Classifier(nn.Module):
    """Blocks, the mean over the last map, a linear layer."""

    def __init__(self, config: TrainConfig, channels: int, classes: int):
        super().__init__()
        widths = [channels, *config.widths]
        steps = (
            strides(config.size, config.maps)
            if config.layer in ("strided", "blur")
            else [1] * len(config.maps)
        )
        self.blocks = nn.ModuleList(
            Block(config.layer, config.kernel, i, o, n, t)
            for i, o, n, t in zip(widths, config.widths, config.maps, steps, strict=False)
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Float[Tensor, "b c h w"], maps: Sequence[int] | None = None) -> Float[Tensor, "b k"]:
        """Logits; `maps` are the sides of the feature maps, by default the trained ones."""
        for number, block in enumerate(self.blocks):
            x = block(x, maps[number] if maps else None)
        return self.head(x.mean((2, 3)))


def parameters(net: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(parameter.numel() for parameter in net.parameters())


def cost(net: nn.Module, size: int) -> int:
    """Multiplications and additions for one image of a side."""
    return flops(net, size)


def matched(config: TrainConfig, wanted: int, channels: int, classes: int) -> TrainConfig:
    """The configuration with its widths scaled to come nearest to a number of parameters."""
    base = config.widths
    found = {}
    for share in (n / 16 for n in range(8, 65)):
        wider = replace(config, widths=tuple(max(1, round(w * share)) for w in base))
        found[wider] = abs(parameters(Classifier(wider, channels, classes)) - wanted)
    return min(found, key=lambda each: found[each])
