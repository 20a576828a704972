"""Which layers of a network hold units with maps, found by type and proved by one run; their recording.

Transformers: the input of every block's last linear layer of the MLP, which narrows (the hidden layer of a
plain MLP, the gated product of a SwiGLU). Convolutional networks: the outputs of their stages, else the last
map of each size. Tokens become a grid by the size that the patch embedding gave; class and register tokens
are dropped.
"""

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from paperkit import UserError, suggest
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rosetta.maps import Grid, Maps

STAGE = re.compile(
    r"(.*\.)?(layer\d+|stages?[._]?\d+|blocks\.\d+|features\.\d+|(down|up)_blocks\.\d+|mid_block)"
)
"""Names that the outputs of a convolutional network's stages go by (torchvision, timm, transformers,
diffusers)."""
NARROWS = 1.5
"""An MLP's last linear layer has so many times more inputs than outputs, at least."""
Call = Callable[[nn.Module, Tensor], Any]


@dataclass(frozen=True)
class Site:
    """A place where maps are read: of a module its output, or its input tokens."""

    name: str
    tokens: bool
    channels: int
    grid: Grid
    prefix: int = 0
    """Tokens before those of the image."""


@dataclass
class Network:
    """A network with what it takes to run it on images and to read it."""

    name: str
    module: nn.Module
    sites: list[Site] = field(default_factory=list)
    prepare: Callable[[Float[Tensor, "b c h w"]], Tensor] = lambda x: x
    """From images in [-1, 1] to the network's input."""
    call: Call = lambda module, x: module(x)
    margin: int = 0
    """Pixels at each side of a map that lie outside the image (StyleGAN3, StyleGAN-XL: 10)."""


# ---- Finding the layers ------------------------------------------------------------------------------------


def discover(network: Network, example: Tensor, layers: Sequence[str] = ()) -> None:
    """Fill `network.sites` from one run on an example batch of images (or codes).

    `layers` are module names or patterns, in place of the rules; a leading "<" reads a module's input. Raises
    `UserError` for a pattern that matches nothing (with the nearest name) and for a network without maps.
    """
    seen = _dry_run(network, example)
    found = _named(network, seen, layers) if layers else _by_rule(network.module, seen)
    if not found:
        raise UserError(
            f"{network.name} has no layer with spatial maps among its {len(seen.outputs)}: "
            "name some with --layers"
        )
    network.sites = [_cropped(site, network) for site in found]


@dataclass
class _Seen:
    """Shapes of one dry run, in the order of the modules' calls."""

    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    patches: Grid | None = None


def _dry_run(network: Network, example: Tensor) -> _Seen:
    seen = _Seen()

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        given, made = _tensor(inputs), _tensor(output)
        if given is not None:
            seen.inputs[name] = tuple(given.shape)
        if made is not None:
            seen.outputs[name] = tuple(made.shape)
            if seen.patches is None and _embeds_patches(module):
                seen.patches = (made.shape[2], made.shape[3])

    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: note(name, m, i, o))
        for name, module in network.module.named_modules()
    ]
    try:
        with torch.no_grad():
            network.call(network.module, network.prepare(example))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _tensor(value: Any) -> Tensor | None:
    """The first tensor of a module's input or output."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next((found for part in value if (found := _tensor(part)) is not None), None)
    return _tensor(vars(value)) if hasattr(value, "sample") else None


def _embeds_patches(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.stride == module.kernel_size and module.stride[0] > 1


def _by_rule(module: nn.Module, seen: _Seen) -> list[Site]:
    mlps = [
        site
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
        and re.search(r"\.\d+\.", name)  # of a block, one of many
        and part.in_features >= NARROWS * part.out_features
        and (site := _token_site(name, seen)) is not None
    ]
    if mlps:
        return mlps
    named = [name for name in seen.outputs if STAGE.fullmatch(name)]
    outer = [name for name in named if not any(name.startswith(f"{other}.") for other in named)]
    return [site for name in outer if (site := _map_site(name, seen))] or _last_of_each_size(seen)


def _last_of_each_size(seen: _Seen) -> list[Site]:
    last: dict[Grid, Site] = {}
    for name in seen.outputs:
        if name and (site := _map_site(name, seen)):
            last[site.grid] = site
    return list(last.values())


def _map_site(name: str, seen: _Seen) -> Site | None:
    shape = seen.outputs.get(name, ())
    if len(shape) != 4 or shape[2] * shape[3] < 2:
        return None
    return Site(name, False, shape[1], (shape[2], shape[3]))


def _token_site(name: str, seen: _Seen) -> Site | None:
    shape = seen.inputs.get(name, ())
    if len(shape) != 3 or seen.patches is None:
        return None
    prefix = shape[1] - seen.patches[0] * seen.patches[1]
    return None if prefix < 0 else Site(name, True, shape[2], seen.patches, prefix)


def _named(network: Network, seen: _Seen, layers: Sequence[str]) -> list[Site]:
    found: dict[str, Site] = {}
    for pattern in layers:
        tokens, words = pattern.startswith("<"), pattern.lstrip("<")
        names = fnmatch.filter(seen.outputs, words)
        if not names:
            raise UserError(f"{network.name} has no layer {words}{suggest(words, seen.outputs)}")
        sites = [(_token_site if tokens else _map_site)(name, seen) for name in names]
        found |= {site.name: site for site in sites if site is not None}
        if not any(sites):
            shape = (seen.inputs if tokens else seen.outputs).get(names[0], ())
            raise UserError(f"{network.name}, layer {names[0]}: no spatial maps, its shape is {shape}")
    return list(found.values())


def _cropped(site: Site, network: Network) -> Site:
    height, width = (side - 2 * network.margin for side in site.grid)
    if height < 1 or width < 1:
        raise UserError(
            f"{network.name}, layer {site.name}: nothing is left of {site.grid} without the margin"
        )
    return Site(site.name, site.tokens, site.channels, (height, width), site.prefix)


# ---- Reading them ------------------------------------------------------------------------------------------


@contextmanager
def reading(network: Network, gradients: bool = False) -> Iterator[dict[str, Tensor]]:
    """A dict that holds the maps of every site, (b, c, h, w), after each run; with `gradients` not
    detached."""
    found: dict[str, Tensor] = {}
    modules = dict(network.module.named_modules())

    def keep(site: Site, value: Any) -> None:
        made = _tensor(value)
        assert made is not None
        maps = _as_maps(made, site, network)
        found[site.name] = maps if gradients else maps.detach()

    def attached(site: Site) -> RemovableHandle:
        module = modules[site.name]
        if site.tokens:
            return module.register_forward_pre_hook(lambda _, given: keep(site, given))
        return module.register_forward_hook(lambda _, given, made: keep(site, made))

    handles = [attached(site) for site in network.sites]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _as_maps(value: Tensor, site: Site, network: Network) -> Float[Tensor, "b c h w"]:
    margin = network.margin
    if site.tokens:
        height, width = (side + 2 * margin for side in site.grid)
        value = rearrange(value[:, site.prefix :], "b (h w) c -> b c h w", h=height, w=width)
    inside = value[:, :, margin : value.shape[2] - margin, margin : value.shape[3] - margin]
    if inside.shape[1:] != (site.channels, *site.grid):
        shapes = f"{tuple(inside.shape[1:])} instead of {(site.channels, *site.grid)}"
        raise UserError(f"{network.name}, layer {site.name}: maps of shape {shapes}: images of one size only")
    return inside.float()


@torch.no_grad()
def record(network: Network, inputs: Float[Tensor, "n ..."], batch: int = 64) -> Maps:
    """The maps of every site on all inputs, in memory; the network in evaluation mode."""
    network.module.eval()
    parts: dict[str, list[Tensor]] = {site.name: [] for site in network.sites}
    with reading(network) as found:
        for x in inputs.split(batch):
            network.call(network.module, network.prepare(x))
            for name, maps in found.items():
                parts[name].append(maps.cpu())
    return Maps(network.name, list(parts), [torch.cat(maps) for maps in parts.values()])


def facts(network: Network) -> list[str]:
    """A line for each layer: name, units, grid, and what was dropped."""
    return [
        f"{site.name}: {site.channels} units, {site.grid[0]}x{site.grid[1]}"
        + (f", {site.prefix} tokens before the image's" if site.prefix else "")
        for site in network.sites
    ]
