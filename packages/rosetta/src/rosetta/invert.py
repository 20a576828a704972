"""A generator's code from the maps of another network's matched units, and edits by changed maps of its own.

Works on any generator whose maps `hooks` can read and whose code can be differentiated. Maps are normalised
by the mean and deviation that their units had in mining; 0 is a unit's mean, and what an edit lays bare
becomes that.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from paperkit import UserError
from torch import Tensor

from rosetta.hooks import Network, reading
from rosetta.maps import Maps
from rosetta.method import on_common_grid

Map = Float[Tensor, "h w"]


@dataclass(frozen=True)
class Goal:
    """A unit of the generator and the normalised map it should have, with its weight among all."""

    unit: int
    map: Map
    weight: float = 1.0


@dataclass(frozen=True)
class Settings:
    """How a code is sought (spec 7.12)."""

    steps: int = 500
    rate: float = 0.05
    """Peak learning rate of Adam; up over the first 5 % of the steps, down along a cosine over the last 25
    %."""
    prior: float = 0.1
    """Weight of the mean squared distance from the code of the start."""
    pixels: float = 0.0
    """Weight of the mean squared error of pixels, where there is an image to come near to."""

    def __post_init__(self):
        if self.steps < 1 or not self.rate > 0 or self.prior < 0 or self.pixels < 0:
            raise UserError(
                "an inversion needs steps from 1 on, a positive rate, prior and pixels not negative"
            )


@dataclass(frozen=True)
class Found:
    """A code, its image, and the correlation that each goal reached."""

    code: Float[Tensor, "z"]
    image: Float[Tensor, "c s s2"]
    reached: tuple[float, ...]
    losses: tuple[float, ...]


def cosine(a: Map, b: Float[Tensor, "i j"]) -> Float[Tensor, ""]:
    """Of two normalised maps on the larger grid: their correlation about the units' means."""
    x, y = (z.flatten() for z in on_common_grid(a[None, None], b[None, None]))
    return (x @ y) / (x.norm() * y.norm()).clamp(min=1e-8)


def share_of_rate(step: int, steps: int) -> float:
    """Up over the first 5 %, down along a cosine over the last 25 % (steps count from 0)."""
    at = step / steps
    return min(1.0, (at + 1 / steps) / 0.05) * (0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - at) / 0.25)))


class Generator:
    """A generator with the statistics of its units on the probes of mining."""

    def __init__(self, network: Network, maps: Maps):
        self.network, self.maps = network, maps
        stats = maps.measure()
        self.mean, self.std = stats.mean, stats.std.clamp(min=1e-8)

    def run(self, code: Float[Tensor, "1 z"]) -> tuple[Float[Tensor, "c s s2"], Callable[[int], Map]]:
        """(image, normalised map by unit) of a code, differentiable."""
        with reading(self.network, gradients=True) as found:
            image = self.network.call(self.network.module, self.network.prepare(code))[0]
        layers = [found[name][0] for name in self.maps.names]

        def normalised(unit: int) -> Map:
            layer, channel = self.maps.place(unit)
            return (layers[layer][channel] - float(self.mean[unit])) / float(self.std[unit])

        return image, normalised


def seek(
    generator: Generator,
    start: Float[Tensor, "z"],
    goals: Sequence[Goal],
    settings: Settings | None = None,
    picture: Float[Tensor, "c s s2"] | None = None,
) -> Found:
    """The code whose maps come near to the goals: minus their weighted mean correlation, and the other terms.

    Raises `UserError` where there is nothing to come near to.
    """
    settings = settings or Settings()
    if not goals and (picture is None or not settings.pixels):
        raise UserError("no goals: the generator shares no unit with the network, and --pixels is 0")
    code = start[None].clone().requires_grad_(True)
    optimiser = torch.optim.Adam([code], settings.rate, betas=(0.9, 0.999))
    losses = []
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * share_of_rate(step, settings.steps)
        image, maps = generator.run(code)
        loss = settings.prior * (code - start).square().mean() - _agreement(maps, goals)
        if picture is not None and settings.pixels:
            loss = loss + settings.pixels * (image - picture).square().mean()
        (gradient,) = torch.autograd.grad(loss, code)
        code.grad = gradient
        optimiser.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        image, maps = generator.run(code)
        reached = tuple(float(cosine(maps(goal.unit), goal.map)) for goal in goals)
    return Found(code.detach()[0], image, reached, tuple(losses))


def _agreement(maps: Callable[[int], Map], goals: Sequence[Goal]) -> Float[Tensor, ""]:
    if not goals:
        return torch.zeros((), dtype=torch.float64)
    total = sum(goal.weight * cosine(maps(goal.unit), goal.map) for goal in goals)
    assert isinstance(total, Tensor)
    return total / sum(goal.weight for goal in goals)


# ---- Goals -------------------------------------------------------------------------------------------------


def goals_of_image(
    seen: Sequence[Maps], known: Sequence[Maps], pairs: Sequence[tuple[int, int, int]]
) -> list[Goal]:
    """Goals from one image: `seen` are the other networks' maps of it, `known` their maps of the probes.

    `pairs` are (unit of the generator, number of the network, its unit).
    """
    goals = []
    for unit, number, other in pairs:
        layer, channel = seen[number].place(other)
        stats = known[number].measure()
        x = seen[number].data[layer][slice(0, 1)][0, channel]
        goals.append(Goal(unit, (x - float(stats.mean[other])) / max(float(stats.std[other]), 1e-8)))
    return goals


def goals_of_edit(
    generator: Generator, start: Float[Tensor, "z"], units: Sequence[int], edit: Callable[[Map], Map]
) -> list[Goal]:
    """Changed copies of the maps that the generator's units have at a code."""
    with torch.no_grad():
        _, maps = generator.run(start[None])
        return [Goal(unit, edit(maps(unit))) for unit in units]


# ---- Edits of maps -----------------------------------------------------------------------------------------


def shift(down: float, right: float) -> Callable[[Map], Map]:
    """Move by shares of the map, positive down and to the right; the mean comes in."""

    def edit(x: Map) -> Map:
        height, width = x.shape
        rows, columns = round(down * height), round(right * width)
        moved = torch.zeros_like(x)
        target = (_range(rows, height), _range(columns, width))
        source = (_range(-rows, height), _range(-columns, width))
        moved[target] = x[source]
        return moved

    return edit


def _range(by: int, size: int) -> slice:
    return slice(max(0, by), size + min(0, by))


def zoom(by: float = 2.0) -> Callable[[Map], Map]:
    """Enlarge about the centre, nearest neighbours; below 1 shrink, the mean around it."""

    def edit(x: Map) -> Map:
        height, width = x.shape
        y, z = (((torch.arange(s) + 0.5 - s / 2) / by + s / 2).floor().long() for s in (height, width))
        inside = ((y >= 0) & (y < height))[:, None] & ((z >= 0) & (z < width))
        taken = x[y.clamp(0, height - 1)][:, z.clamp(0, width - 1)]
        return torch.where(inside, taken, torch.zeros_like(x))

    return edit


def raised(by: float) -> Callable[[Map], Map]:
    """Every value up by so many deviations (down where negative): a unit put in, or taken out."""
    return lambda x: x + by


def pasted(left: Sequence[Goal], right: Sequence[Goal]) -> list[Goal]:
    """Goals whose left half is one's and whose right half is the other's."""
    joined = []
    for one, other in zip(left, right, strict=True):
        middle = one.map.shape[1] // 2
        joined.append(Goal(one.unit, torch.cat([one.map[:, :middle], other.map[:, middle:]], 1), one.weight))
    return joined


def centre_of_mass(image: Float[Tensor, "c s s2"], ground: float = -1.0) -> tuple[float, float]:
    """(row, column) of what differs from the ground, as shares of the image from 0 to 1."""
    weight = (image.mean(0) - ground).clamp(min=0)
    total = weight.sum().clamp(min=1e-8)
    rows, columns = ((torch.arange(s) + 0.5) / s for s in weight.shape)
    return float(weight.sum(1) @ rows / total), float(weight.sum(0) @ columns / total)


def foreground(image: Float[Tensor, "c s s2"], ground: float = -1.0, least: float = 0.5) -> float:
    """Share of the image that differs from the ground by more than `least`."""
    return float((image.mean(0) - ground > least).float().mean())
