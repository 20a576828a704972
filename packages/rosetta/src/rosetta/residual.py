"""Maps without what the pixels alone explain: the unit's spatial template, brightness, edges (spec 12.3).

Random filters of one picture also agree, as all of them see light and edges. What is left after a regression
on these is closer to what was learned.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from rosetta.maps import Array, Grid, Maps

SCALES = (1, 2, 4, 8)
"""Brightness is averaged over windows of so many 32nds of the side."""


def template_free(maps: Maps) -> Maps:
    """Each unit without its mean map over the images."""
    return maps.with_data([_without_template(x) for x in maps.data])


def pixel_residual(maps: Maps, pixels: Float[Tensor, "n c h w"]) -> Maps:
    """What is left of each unit's maps, template taken off, after least squares on `design` of the images."""
    designs = {grid: design(pixels, grid) for grid in set(maps.grids)}
    return maps.with_data([
        regressed(_without_template(x), designs[grid])
        for x, grid in zip(maps.data, maps.grids, strict=True)
    ])  # fmt: skip


def _without_template(x: Array) -> Float[Tensor, "n c h w"]:
    everything = x[slice(None)].float()
    return everything - everything.mean(0)


def design(pixels: Float[Tensor, "n c h w"], grid: Grid) -> Float64[Tensor, "n p i j"]:
    """Brightness at four scales and strength of the gradient, on a grid, without their own templates."""
    grey = pixels.double().mean(1, keepdim=True)
    side = min(grey.shape[2:])
    parts = [_blurred(grey, max(1, round(side * scale / 32))) for scale in SCALES]
    down, across = torch.gradient(grey, dim=(2, 3))
    parts.append((down.square() + across.square()).sqrt())
    found = F.adaptive_avg_pool2d(torch.cat(parts, 1), grid)
    return found - found.mean(0)


def _blurred(x: Float[Tensor, "n 1 h w"], window: int) -> Float[Tensor, "n 1 h w"]:
    """The mean over a square of about `window` pixels (an odd number), borders repeated."""
    half = window // 2
    return F.avg_pool2d(F.pad(x, (half,) * 4, mode="replicate"), 2 * half + 1, 1)


def regressed(x: Float[Tensor, "n c h w"], by: Float64[Tensor, "n p h w"]) -> Float[Tensor, "n c h w"]:
    """x without its least-squares fit by the predictors, one fit for each channel over images and pixels."""
    y, z = (part.double().transpose(0, 1).flatten(1) for part in (x, by))
    weights = torch.linalg.lstsq(z @ z.T, z @ y.T, driver="gelsd").solution
    return x - torch.einsum("npij,pc->ncij", by, weights).to(x.dtype)


def explained(maps: Maps, rest: Maps) -> Sequence[float]:
    """Share of each layer's variance (template taken off) that the regression took away."""
    pairs = zip(template_free(maps).data, rest.data, strict=True)
    return [
        1 - float(after[slice(None)].square().sum() / before[slice(None)].square().sum())
        for before, after in pairs
    ]
