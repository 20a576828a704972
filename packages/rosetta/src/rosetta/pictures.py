"""Pictures of chains: probe images with the maps of every network's unit laid over them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64, UInt8
from paperkit import images
from torch import Tensor

from rosetta.maps import Maps
from rosetta.method import Chain

SHOWN = 6
"""Images of a chain."""
STRENGTH = 0.65
"""How much of an overlay is heat where a unit answers most."""


def unit_maps(maps: Maps, unit: int, chosen: Int64[Tensor, "t"] | None = None) -> Float[Tensor, "t h w"]:
    """A unit's maps on some images (all where None), less its mean and over its deviation on all."""
    layer, channel = maps.place(unit)
    x = maps.data[layer][slice(None)][:, channel].double()
    x = (x - x.mean()) / x.std().clamp(min=1e-12)
    return (x if chosen is None else x[chosen]).float()


def best_images(zoo: Sequence[Maps], chain: Chain, count: int = SHOWN) -> Int64[Tensor, "t"]:
    """The images on which the chain's maps agree most strongly: largest mean product of neighbours."""
    maps = [unit_maps(m, u) for m, u in zip(zoo, chain.units, strict=True)]
    side = max(max(x.shape[1:]) for x in maps)
    same = [F.interpolate(x[:, None], (side, side), mode="bilinear", align_corners=False) for x in maps]
    product = sum((same[0] * other).mean((1, 2, 3)) for other in same[1:])
    assert isinstance(product, Tensor)
    return product.argsort(descending=True, stable=True)[:count]


def overlay(
    picture: UInt8[Tensor, "t c s s2"], maps: Float[Tensor, "t h w"], scale: int
) -> UInt8[Tensor, "t 3 i j"]:
    """Images, made grey and enlarged, with heat where the maps are above their mean."""
    size = [side * scale for side in picture.shape[2:]]
    grey = images.enlarge(picture, scale).float().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    heat = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False).clamp(min=0)
    heat = heat / heat.flatten(1).amax(1).clamp(min=1e-6)[:, None, None, None]
    colour = grey.new_tensor([255.0, 106.0, 0.0])[:, None, None]
    share = STRENGTH * heat
    return ((0.75 * grey + 20) * (1 - share) + colour * share).round().clamp(0, 255).to(torch.uint8)


def strip(
    probes: Float[Tensor, "n c s s2"], zoo: Sequence[Maps], chain: Chain, count: int = SHOWN
) -> UInt8[Tensor, "3 gh gw"]:
    """One chain: a row of images, then a row of overlays for each network."""
    chosen, scale = best_images(zoo, chain, count), enlargement(probes)
    picture = images.to_uint8(probes[chosen])
    plain = images.enlarge(picture, scale)
    rows = [plain.expand(-1, 3, -1, -1)]
    rows += [overlay(picture, unit_maps(m, u, chosen), scale) for m, u in zip(zoo, chain.units, strict=True)]
    return images.grid(torch.cat(rows), columns=len(chosen), scale=1)


def enlargement(probes: Float[Tensor, "n c s s2"], least: int = 56) -> int:
    """By how much small images are enlarged."""
    return max(1, -(-least // min(probes.shape[2:])))


def sheet(
    probes: Float[Tensor, "n c s s2"], zoo: Sequence[Maps], found: Sequence[Chain], images_each: int = 3
) -> UInt8[Tensor, "3 ph pw"]:
    """Several chains, one a row: for each network the overlays of the images on which all agree."""
    heads = ["image", *(maps.model for maps in zoo)]
    labelled = {}
    for number, chain in enumerate(found, 1):
        chosen, scale = best_images(zoo, chain, images_each), enlargement(probes)
        picture = images.to_uint8(probes[chosen])
        groups = [images.enlarge(picture, scale).expand(-1, 3, -1, -1)]
        groups += [
            overlay(picture, unit_maps(m, u, chosen), scale) for m, u in zip(zoo, chain.units, strict=True)
        ]
        wide = [rearrange(F.pad(group, (1, 1), value=255), "t c h w -> c h (t w)") for group in groups]
        labelled[f"{number}: r {chain.weakest:.2f}"] = torch.stack(wide)
    return images.rows(labelled, scale=1, heads=heads)
