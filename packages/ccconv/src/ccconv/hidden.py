"""Sizes inside a network, chosen at inference: by name, by a FLOP budget, or several at once and averaged."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from paperkit import UserError, suggest
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ccconv import paths
from ccconv.conversion import blank
from ccconv.layer import CCConv, Size

Sizes = Mapping[str, int | Sequence[int]]


def continuous(model: nn.Module) -> dict[str, CCConv]:
    """The continuous layers of a model by name, in the order of their definition."""
    return {name: module for name, module in model.named_modules() if isinstance(module, CCConv)}


@contextlib.contextmanager
def hidden_sizes(model: nn.Module, sizes: Sizes) -> Iterator[nn.Module]:
    """Inside, the named layers give these output sizes. Raises `UserError` for an unknown name."""
    layers = continuous(model)
    for name in sizes:
        if name not in layers:
            raise UserError(f"{name!r} is no continuous layer of the model{suggest(name, layers)}")
    before: dict[str, Size] = {name: layers[name].size for name in sizes}
    try:
        for name, size in sizes.items():
            layers[name].size = size if isinstance(size, int) else tuple(size)
        yield model
    finally:
        for name, size in before.items():
            layers[name].size = size


class ScaleEnsemble(nn.Module):
    """One trained network run through several chains of hidden sizes, its outputs averaged.

    Each chain names layers and their output sizes; all must end in outputs of one shape.
    """

    def __init__(self, model: nn.Module, chains: Sequence[Sizes]):
        super().__init__()
        if not chains:
            raise UserError("a scale ensemble needs at least one chain of sizes")
        self.model, self.chains = model, tuple(dict(chain) for chain in chains)

    def forward(self, x: Float[Tensor, "b c *n"]) -> Float[Tensor, "b ..."]:
        """The mean output. Raises `UserError` when the chains end in different shapes."""
        outputs = []
        for chain in self.chains:
            with hidden_sizes(self.model, chain):
                outputs.append(self.model(x))
        if len({y.shape for y in outputs}) > 1:
            shapes = [tuple(y.shape) for y in outputs]
            raise UserError(f"the chains end in different shapes {shapes}: give them the same last size")
        return torch.stack(outputs).mean(0)


@torch.no_grad()
def flops(model: nn.Module, size: int | Sequence[int], channels: int | None = None) -> int:
    """Multiplications and additions of one image (convs and matrix products), counted without doing them.

    Continuous layers are counted by the path that multiplies least, which may not be the fastest.
    """
    ghost = copy.deepcopy(model).to("meta").eval()

    def hook(layer: CCConv, inputs: tuple, call: dict[str, Any]) -> None:
        made, counts = layer.plan(*inputs, **call), (layer.in_channels, layer.out_channels, layer.groups)
        layer.path = paths.leanest(made, layer.geometry, counts, layer.hidden)

    for layer in continuous(ghost).values():
        layer.register_forward_pre_hook(hook, with_kwargs=True)
    with FlopCounterMode(display=False) as counter:
        ghost(blank(ghost, size, channels).to("meta"))
    return counter.get_total_flops()


@torch.no_grad()
def sizes_for_budget(
    model: nn.Module,
    size: int | Sequence[int],
    budget: float,
    keep: Sequence[str] = (),
    channels: int | None = None,
) -> dict[str, tuple[int, ...]]:
    """Hidden sizes within a share `budget` of the model's own FLOPs at an input size (1 = as it is).

    All continuous layers that change the size shrink or grow by one factor, except those in `keep` and those
    that give the last one's size (a block's shortcut must fit its main path). Raises `UserError` when no
    factor in [1/8, 4] fits the budget, or no layer is free.
    """
    if not budget > 0:
        raise UserError(f"budget must be positive, got {budget}")
    ghost = copy.deepcopy(model).to("meta").eval()
    own = _output_sizes(ghost, size, channels)
    last = own[list(own)[-1]][1] if own else None
    free = {n: out for n, (into, out) in own.items() if into != out and out != last and n not in keep}
    if not free:
        raise UserError("the model has no continuous layer whose size is free")
    limit = budget * flops(ghost, size, channels)

    def sized(factor: float) -> dict[str, tuple[int, ...]]:
        return {name: tuple(max(1, round(n * factor)) for n in out) for name, out in free.items()}

    def fits(factor: float) -> bool:
        with hidden_sizes(ghost, sized(factor)):
            return flops(ghost, size, channels) <= limit

    low, high = 1 / 8, 4.0
    if not fits(low):
        raise UserError(f"a budget of {budget:g} cannot be met by smaller hidden sizes alone")
    for _ in range(12):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if fits(middle) else (low, middle)
    return sized(low)


def _output_sizes(
    model: nn.Module, size: int | Sequence[int], channels: int | None
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    found: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    handles = []
    for name, module in continuous(model).items():

        def hook(_module: nn.Module, inputs: tuple, y: Tensor, name: str = name) -> None:
            found[name] = tuple(inputs[0].shape[2:]), tuple(y.shape[2:])

        handles.append(module.register_forward_hook(hook))
    try:
        model(blank(model, size, channels).to("meta"))
    finally:
        for handle in handles:
            handle.remove()
    return found
