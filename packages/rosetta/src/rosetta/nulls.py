"""What chance gives: the same mining after one model's maps were disturbed, and what follows for each match.

Best buddies arise from pure noise (`method.expected_buddies`), so no count means anything without these. Each
null keeps something (spec 8, 12.3): `images` the spatial template of a unit, `positions` only its values,
`shift` how strongly a unit answers to an image, `rotation` all but the basis of the layer.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float64, Int64
from paperkit import rng
from torch import Tensor

from rosetta.maps import Array, Maps

Kind = Literal["images", "positions", "shift", "rotation"]
KINDS: tuple[Kind, ...] = ("images", "positions", "shift", "rotation")


# ---- Disturbed maps ----------------------------------------------------------------------------------------


class _View:
    """An array that is computed from another one when it is read."""

    def __init__(self, array: Array):
        self.array, self.shape = array, tuple(array.shape)


class Reordered(_View):
    """Image t shows what image order[t] did."""

    def __init__(self, array: Array, order: Int64[Tensor, "n"]):
        super().__init__(array)
        self.order = order

    def __getitem__(self, images: slice) -> Tensor:
        return torch.stack([self.array[slice(t, t + 1)][0] for t in self.order[images].tolist()])


class Scattered(_View):
    """Every pixel of every image comes from another place of another image, the same for all channels."""

    def __init__(self, array: Array, order: Int64[Tensor, "m"]):
        super().__init__(array)
        self.order = order.view(self.shape[0], -1)

    def __getitem__(self, images: slice) -> Tensor:
        everything = rearrange(self.array[slice(None)], "n c h w -> c (n h w)")
        found = everything[:, self.order[images].flatten()]
        height, width = self.shape[2:]
        return rearrange(found, "c (n h w) -> n c h w", h=height, w=width)


class Shifted(_View):
    """Each image's maps are moved around the torus, the same share of the grid for all channels."""

    def __init__(self, array: Array, shares: Float64[Tensor, "n 2"]):
        super().__init__(array)
        self.shares = shares

    def __getitem__(self, images: slice) -> Tensor:
        grid = torch.tensor(self.shape[2:])
        steps = (self.shares[images] * grid).long().tolist()
        x = self.array[images]
        return torch.stack([maps.roll(step, (1, 2)) for maps, step in zip(x, steps, strict=True)])


class Rotated(_View):
    """The channels of a layer seen in another orthonormal basis."""

    def __init__(self, array: Array, basis: Float64[Tensor, "c c"]):
        super().__init__(array)
        self.basis = basis

    def __getitem__(self, images: slice) -> Tensor:
        x = self.array[images]
        return torch.einsum("kc,bchw->bkhw", self.basis.to(x), x)


def disturbed(maps: Maps, kind: Kind, draw: int, seed: int = 0) -> Maps:
    """The maps of a model under a null; other ones for every draw and every model."""
    generator = rng.generator(seed, draw, f"{kind} {maps.model}")
    return maps.with_data([_DISTURB[kind](maps, generator)(x) for x in maps.data])


def _by_image(maps: Maps, generator: torch.Generator) -> Callable[[Array], Array]:
    order = torch.randperm(maps.images, generator=_again(generator))
    return lambda x: Reordered(x, order)


def _by_position(maps: Maps, generator: torch.Generator) -> Callable[[Array], Array]:
    again = _again(generator)
    return lambda x: Scattered(x, torch.randperm(x.shape[0] * x.shape[2] * x.shape[3], generator=again))


def _by_shift(maps: Maps, generator: torch.Generator) -> Callable[[Array], Array]:
    shares = torch.rand(maps.images, 2, generator=_again(generator), dtype=torch.float64)
    return lambda x: Shifted(x, shares)


def _by_basis(maps: Maps, generator: torch.Generator) -> Callable[[Array], Array]:
    def turned(x: Array) -> Array:
        normal = torch.randn(x.shape[1], x.shape[1], generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(normal)
        return Rotated(x, q * r.diagonal().sign())  # uniform over rotations and reflections

    return turned


def _again(generator: torch.Generator) -> torch.Generator:
    """A copy at the same place: layers of one grid and all layers of one image move together."""
    return generator.clone_state()


_DISTURB = {"images": _by_image, "positions": _by_position, "shift": _by_shift, "rotation": _by_basis}


# ---- What follows ------------------------------------------------------------------------------------------


def family_wise_p(scores: Float64[Tensor, "m"], largest: Sequence[float]) -> Float64[Tensor, "m"]:
    """(1 + draws of which the highest score of all reaches this one) / (1 + draws)."""
    top = torch.tensor(largest, dtype=torch.float64)
    return (1 + (top[:, None] >= scores).sum(0)).double() / (1 + len(largest))


def false_discovery_rate(
    scores: Float64[Tensor, "m"], null: Sequence[Float64[Tensor, "..."]]
) -> Float64[Tensor, "m"]:
    """q: of the matches at least this strong, the share that draws of the null give on average, at most 1.

    Counts one more match in all draws together than there was, so that q is never 0 for want of draws; a
    stronger match never has a higher q.
    """
    if not len(scores):
        return scores.clone()
    order = scores.argsort(descending=True)
    ordered = scores[order]
    among = torch.cat([x.flatten() for x in null]).sort().values
    by_chance = (1 + len(among) - torch.searchsorted(among, ordered)).double() / len(null)
    found = torch.searchsorted(-ordered, -ordered, right=True).double()
    rate = (by_chance / found).clamp(max=1)
    q = torch.empty_like(scores)
    q[order] = rate.flip(0).cummin(0).values.flip(0)
    return q


def jaccard(one: set[tuple[int, ...]], other: set[tuple[int, ...]]) -> float:
    """Shared over all, 0 where both are empty."""
    return len(one & other) / len(one | other) if one | other else 0.0
