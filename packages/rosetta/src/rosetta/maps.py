"""Activation maps of one network on the probe images: an array per layer, units counted through."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from paperkit import UserError
from torch import Tensor

from rosetta.moments import Moments

Grid = tuple[int, int]
"""Height and width of a map."""
DEAD = 1e-6
"""A unit is dead when its deviation is below this share of the layer's median."""


@runtime_checkable
class Array(Protocol):
    """What holds the maps of a layer, (images, channels, height, width): a tensor, in memory or mapped from a
    file, or a view of one that is computed when it is read."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, images: slice, /) -> Tensor: ...


@dataclass(frozen=True)
class Block:
    """Units that are computed together: parts of layers of one grid."""

    grid: Grid
    pieces: tuple[tuple[int, int, int], ...]
    """(layer, first channel, end) of each part."""
    units: Int64[Tensor, "d"]
    """Their numbers in the model."""


@dataclass(frozen=True)
class Stats:
    """Of every unit at its native grid, over all images and pixels."""

    mean: Float64[Tensor, "d"]
    std: Float64[Tensor, "d"]
    dead: Bool[Tensor, "d"]


class Maps:
    """The maps of `model`, layer by layer; `alive` are the units that take part (dead ones do not)."""

    def __init__(self, model: str, names: Sequence[str], data: Sequence[Array]):
        if not data:
            raise UserError(f"{model} has no layer with spatial maps: name some with --layers")
        if len({x.shape[0] for x in data}) > 1:
            raise UserError(f"{model}: the layers hold maps of different numbers of images")
        self.model, self.names, self.data = model, tuple(names), tuple(data)
        self.channels = tuple(int(x.shape[1]) for x in data)
        self.grids = tuple((int(x.shape[2]), int(x.shape[3])) for x in data)
        self.offsets = (0, *accumulate(self.channels))
        self.alive = torch.ones(self.offsets[-1], dtype=torch.bool)
        self._stats: Stats | None = None

    @property
    def images(self) -> int:
        """How many images (on this process)."""
        return int(self.data[0].shape[0])

    @property
    def units(self) -> int:
        """How many units, dead ones too."""
        return self.offsets[-1]

    @property
    def living(self) -> int:
        """How many take part."""
        return int(self.alive.sum())

    def place(self, unit: int) -> tuple[int, int]:
        """(layer, channel) of a unit's number."""
        layer = next(i for i, end in enumerate(self.offsets[1:]) if unit < end)
        return layer, unit - self.offsets[layer]

    def name(self, unit: int) -> str:
        """As printed: `layer/channel`."""
        layer, channel = self.place(unit)
        return f"{self.names[layer]}/{channel}"

    def with_data(self, data: Sequence[Array]) -> "Maps":
        """The same units over other arrays."""
        changed = Maps(self.model, self.names, data)
        changed.alive = self.alive
        return changed

    def part(self, images: slice) -> "Maps":
        """The maps of some of the images."""
        return self.with_data([x[images] for x in self.data])

    def blocks(self, width: int) -> list[Block]:
        """All layers in blocks of one grid and at most `width` units."""
        found, open_ = [], dict[Grid, list[tuple[int, int, int]]]()
        room = dict.fromkeys(self.grids, width)
        for layer, grid in enumerate(self.grids):
            first = 0
            while first < self.channels[layer]:
                end = min(first + room[grid], self.channels[layer])
                open_.setdefault(grid, []).append((layer, first, end))
                room[grid] -= end - first
                first = end
                if not room[grid]:
                    found.append(self._block(grid, open_.pop(grid)))
                    room[grid] = width
        return found + [self._block(grid, pieces) for grid, pieces in open_.items()]

    def _block(self, grid: Grid, pieces: list[tuple[int, int, int]]) -> Block:
        units = [torch.arange(first, end) + self.offsets[layer] for layer, first, end in pieces]
        return Block(grid, tuple(pieces), torch.cat(units))

    def read(self, block: Block, images: slice) -> Float[Tensor, "b d h w"]:
        """The block's maps on some images, as float32 unless they are kept in float64."""
        parts = [self.data[layer][images][:, first:end] for layer, first, end in block.pieces]
        x = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        return x if x.dtype == torch.float64 else x.float()

    def measure(self, chunk: int = 64) -> Stats:
        """Statistics of every unit over the images of all processes; marks dead ones in `alive`. Looks once.

        Raises `UserError` with the model and layer of an activation that is not finite.
        """
        if self._stats is not None:
            return self._stats
        layers = [self._moments(layer, chunk) for layer in range(len(self.names))]
        deviations = [moments.variance.sqrt() for moments in layers]
        dead = torch.cat([std <= DEAD * std.median() for std in deviations])
        self.alive = ~dead
        self._stats = Stats(torch.cat([moments.mean for moments in layers]), torch.cat(deviations), dead)
        return self._stats

    def _moments(self, layer: int, chunk: int) -> Moments:
        pieces = [slice(start, start + chunk) for start in range(0, self.images, chunk)]
        total = self._moments_of(layer, pieces[0])
        for piece in pieces[1:]:
            total.merge(self._moments_of(layer, piece))
        total.reduce()
        return total

    def _moments_of(self, layer: int, images: slice) -> Moments:
        x = self.data[layer][images].double().transpose(0, 1).flatten(1)
        if not bool(torch.isfinite(x).all()):
            raise UserError(
                f"{self.model}, layer {self.names[layer]}: activations that are not finite on images "
                f"{images.start} to {images.stop - 1}; leave the layer out with --layers"
            )
        return Moments.of(x)
