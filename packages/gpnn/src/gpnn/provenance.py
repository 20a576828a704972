"""Which source pixel each output pixel came from: as a picture, as arrays, and as a copy detector.

Used by the verbs, `metrics` and `reproduce`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gpnn.method import Output

NEAR = 2
"""A patch within so many pixels of its own place has not moved."""


def pixel_places(output: Output, patch: int = 7) -> Int64[Tensor, "h w 3"]:
    """(source, row, column) of each output pixel, by the patch that has it nearest to its middle."""
    gh, gw, _ = output.places.shape
    height, width = gh + patch - 1, gw + patch - 1
    place = output.places.device
    row, column = torch.arange(height, device=place), torch.arange(width, device=place)
    i, j = (row - patch // 2).clamp(0, gh - 1), (column - patch // 2).clamp(0, gw - 1)
    places = output.places[i][:, j].clone()
    places[..., 1] += (row - i)[:, None]
    places[..., 2] += column - j
    return places


def same_place(output: Output) -> float:
    """Share of patches taken from their own place in the (only) source: 1 = a copy."""
    gh, gw, _ = output.places.shape
    row = (output.places[..., 1] - torch.arange(gh, device=output.places.device)[:, None]).abs()
    column = (output.places[..., 2] - torch.arange(gw, device=output.places.device)).abs()
    return float(((row <= NEAR) & (column <= NEAR)).double().mean())


def shares(output: Output, sources: int) -> list[float]:
    """Share of the output's patches that each source gave."""
    counts = torch.bincount(output.places[..., 0].flatten(), minlength=sources)
    return (counts.double() / counts.sum()).tolist()


def colours(places: Int64[Tensor, "h w 3"], sizes: Sequence[tuple[int, int]]) -> Float[Tensor, "3 h w"]:
    """Places as colours: red grows downwards in the source, green to the right; blue tells the source."""
    height = torch.tensor([h for h, _ in sizes], device=places.device)[places[..., 0]]
    width = torch.tensor([w for _, w in sizes], device=places.device)[places[..., 0]]
    red, green = places[..., 1] / (height - 1).clamp(min=1), places[..., 2] / (width - 1).clamp(min=1)
    blue = 0.35 + 0.65 * places[..., 0] / max(1, len(sizes) - 1) if len(sizes) > 1 else 0.35 + 0 * red
    return torch.stack([red, green, blue]).float()


def legend(size: tuple[int, int]) -> Float[Tensor, "3 h w"]:
    """The colours of a source's own places."""
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return colours(torch.stack([torch.zeros_like(rows), rows, columns], -1), [size])
