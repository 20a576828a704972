"""Which source voxel each output voxel came from: as a video, as arrays, and as a copy detector.

Used by the verbs, `metrics` and `reproduce`.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vgpnn.method import Output
from vgpnn.pyramid import Shape


def voxel_places(output: Output, loop: bool = False) -> Int64[Tensor, "t h w 3"]:
    """(frame, row, column) of each output voxel, by the patch that has it nearest to its middle."""
    grid = output.places.shape[:3]
    shape = output.video.shape[1:]
    place = output.places.device
    axes, steps = [], []
    for axis in range(3):
        patch = shape[axis] - grid[axis] + 1 if not (loop and axis == 0) else 1
        at = torch.arange(shape[axis], device=place)
        near = (at - patch // 2).clamp(0, grid[axis] - 1)
        axes.append(near)
        steps.append(at - near)
    found = output.places[axes[0]][:, axes[1]][:, :, axes[2]].clone()
    found[..., 0] += steps[0][:, None, None]
    found[..., 1] += steps[1][:, None]
    found[..., 2] += steps[2]
    return found


def colours(places: Int64[Tensor, "t h w 3"], shape: Shape) -> Float[Tensor, "3 t h w"]:
    """Places as colours in [-1, 1]: red grows downwards in the source, green to the right, blue in time."""
    most = torch.tensor([max(1, n - 1) for n in shape], device=places.device)
    share = (places / most).clamp(0, 1)
    return torch.stack([share[..., 1], share[..., 2], share[..., 0]]).float() * 2 - 1


def same_place(output: Output, near: int = 1) -> float:
    """Share of patches taken from within `near` voxels of their own place: 1 = a copy."""
    grid = output.places.shape[:3]
    close = torch.ones(grid, dtype=torch.bool, device=output.places.device)
    for axis in range(3):
        view = [1, 1, 1]
        view[axis] = -1
        own = torch.arange(grid[axis], device=close.device).view(view)
        close &= (output.places[..., axis] - own).abs() <= near
    return float(close.double().mean())
