"""Batches of any kind that a network takes: a tensor, a dict of tensors, or a torch-geometric batch.

Used by `ITTT` and the adaptation loop. torch-geometric itself is not imported: its batches are known by what
they can do.
"""

import copy
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from jaxtyping import Float, Int64
from paperkit import UserError
from torch import Tensor

Batch = Any
"""A tensor (b, ...), a dict of such tensors, or a torch-geometric `Data` or `Batch`."""
LABELS = ("y", "label", "labels", "target", "targets")


def is_graph(x: Any) -> TypeGuard[Any]:
    """Whether it is a torch-geometric `Data` or `Batch`."""
    return hasattr(x, "edge_index") and hasattr(x, "to_dict")


def checked(x: Batch, key: str = "") -> Batch:
    """The same batch, looked over before it is adapted to.

    Raises `UserError` for labels (an (x, y) pair, a dict with a key of `LABELS`), for anything that is no
    batch, an empty batch, graphs without edges, and a value that is not finite (its column is named).
    """
    if isinstance(x, tuple | list):
        raise UserError("adaptation takes inputs alone, got a pair or list: labels must not come along")
    if isinstance(x, dict) and (found := [name for name in x if name in LABELS]):
        raise UserError(f"adaptation takes inputs alone: leave {found[0]!r} out of the dict")
    values = main_tensor(x, key)
    if size(x) == 0 or values.numel() == 0:
        raise UserError(f"the batch is empty: its shape is {tuple(values.shape)}")
    if is_graph(x) and x.edge_index.numel() == 0:
        raise UserError("the graphs have no edges: nothing could pass between their nodes")
    if values.is_floating_point() and not bool(torch.isfinite(values).all()):
        raise UserError(_not_finite(values))
    return x


def _not_finite(values: Float[Tensor, "b ..."]) -> str:
    """Where the first value is that is no number."""
    row, *place = (~torch.isfinite(values)).nonzero()[0].tolist()
    word = "column" if values.ndim == 2 else "position"
    at = place[0] if len(place) == 1 else tuple(place)
    return f"row {row} of the batch has {values[(row, *place)].item()} in {word} {at}: fill it in first"


def main_tensor(x: Batch, key: str = "") -> Tensor:
    """The tensor that is the input proper: the batch, its entry `key` (or the only one), a graph's `x`."""
    if isinstance(x, Tensor):
        return x
    if is_graph(x):
        return x.x
    if not isinstance(x, dict):
        raise UserError(f"a batch is a tensor, a dict of tensors or a graph batch, not {type(x).__name__}")
    return x[_key(x, key)]


def _key(x: dict[str, Tensor], key: str) -> str:
    if key in x:
        return key
    if not key and len(x) == 1:
        return next(iter(x))
    raise UserError(f"the dict has the keys {', '.join(map(repr, x))}: name the input proper by key=")


def replaced(x: Batch, values: Tensor, key: str = "") -> Batch:
    """The batch with another input proper; the given one is untouched. A graph loses its labels."""
    if isinstance(x, Tensor):
        return values
    if is_graph(x):
        x = copy.copy(x)
        if "y" in x:
            del x.y
        x.x = values
        return x
    return {**x, _key(x, key): values}


def unlabelled(x: Batch) -> Batch:
    """A graph batch without its labels, unread; any other batch as it is."""
    return replaced(x, x.x) if is_graph(x) else x


def size(x: Batch) -> int:
    """How many samples it has: rows, or graphs."""
    if is_graph(x):
        return int(getattr(x, "num_graphs", 1))
    if isinstance(x, dict):
        return len(next(iter(x.values())))
    return len(x)


def take(x: Batch, rows: Int64[Tensor, " m"]) -> Batch:
    """The samples at `rows`."""
    if is_graph(x):
        return type(x).from_data_list([x[int(row)] for row in rows]) if hasattr(x, "ptr") else x
    return each(x, lambda values: values[rows.to(values.device)])


def each(x: Batch, call: Callable[[Tensor], Tensor]) -> Batch:
    """`call` on the tensor, or on every tensor of the dict."""
    return {name: call(values) for name, values in x.items()} if isinstance(x, dict) else call(x)


def trackable(x: Batch) -> Batch:
    """The batch, copied where it was made in inference mode (autograd takes no such tensors)."""
    if is_graph(x):
        return x.clone() if x.x.is_inference() else x
    return each(x, lambda values: values.clone() if values.is_inference() else values)


def node_rows(x: Batch) -> Int64[Tensor, " nodes"]:
    """Which graph each node belongs to."""
    owner = getattr(x, "batch", None)
    return torch.zeros(len(x.x), dtype=torch.long, device=x.x.device) if owner is None else owner
