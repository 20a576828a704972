"""Where the fed-back signal enters a network: as more inputs, or added at a layer by a branch of its own.

Used by `ITTT`. Concatenated to the input (the paper's form) the signal needs a network built for more inputs:
`extra_inputs`. A pretrained network is retrofitted with a branch that starts at zero, so that f(x, 0) equals
it bit for bit until it is trained.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from paperkit import UserError, suggest
from torch import Tensor, nn

from ittt import inputs
from ittt.inputs import Batch

Place = Literal["concat", "channel", "node", "feature"]
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def extra_inputs(outputs: int = 1, presence: bool = False) -> int:
    """How many more inputs (columns, channels, node features) the network needs for the signal."""
    return outputs + presence


class Injected(nn.Module):
    """A layer of the network plus the branch: layer(...) + branch(signal)."""

    def __init__(self, layer: nn.Module, branch: nn.Module):
        super().__init__()
        self.layer, self.branch = layer, branch
        self.signal: Tensor | None = None

    def forward(self, *words, **named):  # whatever the wrapped layer takes
        h = self.layer(*words, **named)
        if self.signal is None:
            raise UserError("a retrofitted layer was called outside ITTT: call the ITTT, not its model")
        return self.with_signal(h, self.signal)

    def with_signal(self, h: Tensor, signal: Tensor) -> Tensor:
        """The layer's output h plus the branch's."""
        added = self.branch(signal)
        ones = [1] * (h.ndim - added.ndim)
        if ones and _features_last(self.layer, h, added.shape[-1]):
            return h + added.view(len(added), *ones, -1)
        return h + added.view(*added.shape, *ones)


class Injection(nn.Module, ABC):
    """Calls the model on (x, signal); one per place."""

    def __init__(self, key: str = ""):
        super().__init__()
        self.key = key

    @abstractmethod
    def forward(self, model: nn.Module, x: Batch, signal: Float[Tensor, "b k ..."]) -> Tensor:
        """The model's output, with the signal let in."""

    def resumed(self, model: nn.Module, x: Batch) -> Callable[[Tensor], Tensor]:
        """signal -> the model's output, for weights that stay: what comes before the signal is done once."""
        return partial(self, model, x)


class Concat(Injection):
    """Tables: the signal as further columns."""

    def forward(self, model: nn.Module, x: Batch, signal: Float[Tensor, "b k ..."]) -> Tensor:
        values = inputs.main_tensor(x, self.key)
        _needs_vector(signal, "concat")
        if values.ndim > 2:  # tokens, time steps: the signal at each
            signal = signal.view(len(signal), *[1] * (values.ndim - 2), -1).expand(*values.shape[:-1], -1)
        return model(inputs.replaced(x, torch.cat([values, signal], -1), self.key))


class Channel(Injection):
    """Images: the signal as further channels, the same everywhere or a map of the image's size."""

    def forward(self, model: nn.Module, x: Batch, signal: Float[Tensor, "b k ..."]) -> Tensor:
        values = inputs.main_tensor(x, self.key)
        widened = torch.cat([values, as_map(signal, values)], 1)
        return model(inputs.replaced(x, widened, self.key))


class Node(Injection):
    """Graphs: the signal as further features of every node (one signal per graph, or per node)."""

    def forward(self, model: nn.Module, x: Batch, signal: Float[Tensor, "b k ..."]) -> Tensor:
        return model(inputs.replaced(x, torch.cat([x.x, on_nodes(signal, x)], -1)))


class NodeBranch(Injection):
    """Graphs, retrofitted: a linear map of the signal, zero at first, added to the node features."""

    def __init__(self, signal: int, features: int):
        super().__init__()
        self.branch = zeroed(nn.Linear(signal, features, bias=False))

    def forward(self, model: nn.Module, x: Batch, signal: Float[Tensor, "b k ..."]) -> Tensor:
        return model(inputs.replaced(x, x.x + self.branch(on_nodes(signal, x))))


class Branch(Injection):
    """A branch at a layer inside the model (`Injected`, already in its place)."""

    def __init__(self, target: Injected, mapped: bool, key: str = ""):
        super().__init__(key)
        # In a tuple, so that the layer's weights are the model's only.
        self.target, self.mapped = (target,), mapped

    def forward(self, model: nn.Module, x: Batch, signal: Float[Tensor, "b k ..."]) -> Tensor:
        target = self.target[0]
        values = inputs.main_tensor(x, self.key)
        target.signal = as_map(signal, values) if self.mapped else signal
        try:
            return model(x)
        finally:
            target.signal = None  # it may hold a graph, and copies of the network are made

    def resumed(self, model: nn.Module, x: Batch) -> Callable[[Tensor], Tensor]:
        parts, target = list(model.children()), self.target[0]
        if not isinstance(model, nn.Sequential) or not any(part is target for part in parts):
            return super().resumed(model, x)
        place = next(i for i, part in enumerate(parts) if part is target)
        values, h = inputs.main_tensor(x, self.key), x
        with torch.no_grad():
            for part in (*parts[:place], target.layer):
                h = part(h)

        def rest(signal: Float[Tensor, "b k ..."]) -> Tensor:
            signal = as_map(signal, values) if self.mapped else signal
            out = target.with_signal(h, signal)
            for part in parts[place + 1 :]:
                out = part(out)
            return out

        return rest


# ---- making one --------------------------------------------------------------------------------------------


def injection(
    model: nn.Module, place: str, signal: int, layer: str, key: str, width: int, retrofit: bool
) -> tuple[nn.Module, Injection]:
    """The model (with a branch in it where one is needed) and what feeds it.

    `signal` is the number of signal channels, `width` the size of the layer's output where it cannot be read
    off the layer. Raises `UserError` for an unknown place or layer, and for a width that is not known.
    """
    if place not in ("concat", "channel", "node", "feature"):
        raise UserError(f"inject={place!r}: choose from concat, channel, node, feature")
    if place == "feature" and not layer:
        raise UserError(f"inject='feature' needs layer=: one of {_listed(model)}")
    if place == "feature":
        return _at_layer(model, layer, _vector_branch(model, layer, signal, width, retrofit), False, key)
    if not retrofit:
        return model, {"concat": Concat, "channel": Channel, "node": Node}[place](key)
    if place == "node":
        return model, NodeBranch(signal, width or _first_width(model))
    kinds = CONVS if place == "channel" else (nn.Linear,)
    layer = layer or _first(model, kinds)
    found = _layer(model, layer)
    if not isinstance(found, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"layer {layer!r} is a {type(found).__name__}; inject={place!r} needs a {names}")
    return _at_layer(model, layer, _like(found, signal), place == "channel", key)


def _at_layer(
    model: nn.Module, layer: str, branch: nn.Module, mapped: bool, key: str
) -> tuple[nn.Module, Injection]:
    """The model with `branch` beside the named layer."""
    injected = Injected(_layer(model, layer), branch)
    if not layer:
        return injected, Branch(injected, mapped, key)
    parent, _, name = layer.rpartition(".")
    model.get_submodule(parent).register_module(name, injected)
    return model, Branch(injected, mapped, key)


def _like(layer: nn.Module, signal: int) -> nn.Module:
    """A branch of the layer's own kind, zero, for `signal` inputs: the layer's missing columns."""
    like = next(layer.parameters())
    if isinstance(layer, nn.Linear):
        return zeroed(nn.Linear(signal, layer.out_features, bias=False)).to(like)
    assert isinstance(layer, CONVS)
    kind: type = next(conv for conv in CONVS if isinstance(layer, conv))
    conv = kind(
        signal, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        bias=False, padding_mode=layer.padding_mode,
    )  # fmt: skip
    return zeroed(conv).to(like)


def _vector_branch(model: nn.Module, layer: str, signal: int, width: int, retrofit: bool) -> nn.Module:
    """Linear (retrofit: zero), or Linear and LeakyReLU as the public CIFAR code has it."""
    width = width or _out_width(_layer(model, layer))
    if not width:
        raise UserError(f"the width of layer {layer!r} cannot be read off it: give it by width=")
    like = next(model.parameters())
    if retrofit:
        return zeroed(nn.Linear(signal, width, bias=False)).to(like)
    return nn.Sequential(nn.Linear(signal, width), nn.LeakyReLU()).to(like)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with all weights zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def as_map(signal: Float[Tensor, "b k ..."], values: Tensor) -> Tensor:
    """The signal as maps of the image's size. Raises `UserError` for maps of another size."""
    space = values.shape[2:]
    if signal.ndim == 2:
        return signal.view(*signal.shape, *[1] * len(space)).expand(*signal.shape, *space)
    if signal.shape[2:] != space:
        raise UserError(
            f"predictions of size {tuple(signal.shape[2:])} cannot be fed back as channels of images of size "
            f"{tuple(space)}"
        )
    return signal


def on_nodes(signal: Float[Tensor, "b k ..."], x: Batch) -> Float[Tensor, "nodes k"]:
    """One signal per graph spread over its nodes; one per node as it is."""
    if signal.ndim != 2:
        raise UserError(f"a signal of shape {tuple(signal.shape)} cannot be fed back to nodes")
    per_node = len(signal) == len(x.x) and len(signal) != inputs.size(x)
    return signal if per_node else signal[inputs.node_rows(x)]


def _needs_vector(signal: Tensor, place: str) -> None:
    if signal.ndim != 2:
        raise UserError(
            f"a signal of shape {tuple(signal.shape)} cannot be fed back by inject={place!r}: "
            "use 'channel', or a network whose output is (b, k)"
        )


# ---- finding layers ----------------------------------------------------------------------------------------


def _layer(model: nn.Module, name: str) -> nn.Module:
    known = dict(model.named_modules())
    if name not in known:
        raise UserError(f"the network has no layer {name!r}{suggest(name, known)}: one of {_listed(model)}")
    return known[name]


def _listed(model: nn.Module, most: int = 40) -> str:
    names = [name for name, _ in model.named_modules() if name]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _first(model: nn.Module, kinds: tuple[type, ...]) -> str:
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            return name
    raise UserError(
        f"the network has no {' or '.join(kind.__name__ for kind in kinds)}: name a layer of it by layer="
    )


def _features_last(layer: nn.Module, h: Tensor, width: int) -> bool:
    """Whether a layer's features are the last axis of its output (tokens), not axis 1 (maps)."""
    for module in reversed(list(layer.modules())):
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding):
            return True
        if isinstance(module, CONVS) or "BatchNorm" in type(module).__name__:
            return False
    return h.shape[1] != width


def _out_width(layer: nn.Module) -> int:
    """Channels of a layer's output, by what its last part says of itself; 0 when none says."""
    for module in reversed(list(layer.modules())):
        for name in ("out_features", "out_channels", "num_features"):
            if isinstance(found := getattr(module, name, None), int):
                return found
    return 0


def _first_width(model: nn.Module) -> int:
    """Node features that the network takes, by what its first layer says of itself."""
    for module in model.modules():
        for name in ("in_channels", "in_features"):
            if isinstance(found := getattr(module, name, None), int):
                return found
    raise UserError("the number of node features cannot be read off the network: give it by width=")
