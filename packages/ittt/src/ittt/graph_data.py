"""Shapes as graphs with a number each, and their parts: the best ones are kept out of training.

Used by the tasks whose inputs are graphs.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from paperkit import UserError
from paperkit.data import permutation
from torch import Tensor

from ittt.inputs import Batch


def quiet() -> warnings.catch_warnings:
    """For the import of torch-geometric, which still calls torch.jit.script."""
    return warnings.catch_warnings(action="ignore")


with quiet():
    from torch_geometric.data import Batch as Together
    from torch_geometric.data import Data

LEVELS = 4
"""Parts of the shapes kept out of training, by how far out they are (section 4.5)."""


@dataclass(frozen=True)
class Parts:
    """Which shapes are learned from, held out of these, and tested on, inside the range and outside."""

    learned: Int64[Tensor, " n"]
    clean: Int64[Tensor, " c"]
    inside: Int64[Tensor, " i"]
    outside: Int64[Tensor, " o"]
    """In an order that has nothing to do with labels: batches of these are adapted to."""
    levels: Int64[Tensor, " o"]
    """How far out each of `outside` is, 1 to `LEVELS`, as many of each."""


@dataclass(frozen=True)
class Shapes:
    """Graphs without labels, and apart from them their labels, in units of `unit`."""

    name: str
    graphs: list[Data]
    y: Float[Tensor, "n 1"]
    unit: float
    """What a label of 1 stands for."""
    high_is_outside: bool
    """Whether the largest labels are kept out of training, or the smallest."""
    size: float = 1.0
    """What a distance of 1 between nodes stands for."""
    stand_in: bool = False

    @classmethod
    def of(
        cls, name: str, graphs: list[Data], labels: Sequence[float], unit: float, *,
        high_is_outside: bool, size: float = 1.0, stand_in: bool = False,
    ) -> "Shapes":  # fmt: skip
        """From labels in their own units."""
        y = torch.tensor(labels, dtype=torch.float64)[:, None] / unit
        return cls(name, graphs, y.float(), unit, high_is_outside, size, stand_in)

    def parts(self, seed: int, share: float, held_out: int, test: int) -> Parts:
        """The share of best labels outside, the rest drawn by `seed`. Raises `UserError` for too few."""
        order = self.y[:, 0].argsort(descending=not self.high_is_outside, stable=True)
        count = round(share * len(order))
        near, far = order[: len(order) - count], order[len(order) - count :]
        if count < LEVELS or len(near) <= held_out + test:
            raise UserError(
                f"{len(order)} shapes leave {count} outside and {len(near) - held_out - test} to learn from: "
                "give more, or lower --held-out and --test or raise --outside"
            )
        near = near[torch.from_numpy(permutation(len(near), seed, "parts"))]
        clean, inside, learned = near.split([held_out, test, len(near) - held_out - test])
        mixed = torch.from_numpy(permutation(count, 0, "outside"))
        return Parts(learned, clean, inside, far[mixed], mixed * LEVELS // count + 1)

    def batch(self, rows: Int64[Tensor, " m"]) -> Batch:
        """The graphs at `rows` as one batch."""
        return together([self.graphs[i] for i in rows.tolist()])


def together(graphs: Sequence[Data]) -> Batch:
    """Graphs as one batch."""
    return Together.from_data_list(list(graphs))


def graph_of(places: Float[np.ndarray, "n d"], edges: Int64[np.ndarray, "2 e"]) -> Data:
    """A graph whose nodes know their place, and whose edges know where they lead.

    Edges carry the step from end to end within -1 to 1 of the graph's longest one, moved to 0 to 1 (the
    Cartesian attributes of the public code). Raises `UserError` for a graph without edges.
    """
    if not edges.size:
        raise UserError("a graph has no edges: nothing could pass between its nodes")
    source, target = edges
    steps = places[source] - places[target]
    attributes = steps / (2 * np.abs(steps).max()) + 0.5
    return Data(
        x=torch.from_numpy(places).float(), edge_index=torch.from_numpy(edges),
        edge_attr=torch.from_numpy(attributes).float(),
    )  # fmt: skip


def ring(count: int) -> Int64[np.ndarray, "2 e"]:
    """Edges of a ring of nodes, there and back."""
    one = np.arange(count)
    return both_ways(np.stack([one, (one + 1) % count]))


def both_ways(edges: Int64[np.ndarray, "2 e"]) -> Int64[np.ndarray, "2 f"]:
    """The edges and their reverses, each once, none from a node to itself."""
    edges = edges[:, edges[0] != edges[1]]
    return np.unique(np.concatenate([edges, edges[::-1]], 1), axis=1)
