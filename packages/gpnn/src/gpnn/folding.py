"""The fold's inner loops, compiled by numba. Used by `method.fold` on the CPU: the same sums in one order.

At the sizes of a laptop's pictures torch's p^2 indexed reads and writes cost more than the search.
"""

import inspect

import numba
import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from paperkit.threads import parallel
from torch import Tensor

ROWS = 24
"""Of the output that a thread takes at a time."""


def compiled(function):
    """numba's compiler; unwrapped, as the tests' type checker wraps every function."""
    return numba.njit(nogil=True, cache=True)(inspect.unwrap(function))


@compiled
def _fold(flat, width, origin, weight, out, start, stop):
    """Rows start .. stop of the weighted mean, as differences from the first patch that covers a pixel."""
    channels, _, across = out.shape
    gh, gw = origin.shape
    patch = weight.shape[0]
    base, total = np.empty((channels, across), out.dtype), np.empty((channels, across), out.dtype)
    share = np.empty(across, out.dtype)
    for y in range(start, stop):
        top = min(y, gh - 1)
        for x in range(across):
            left = min(x, gw - 1)
            place = origin[top, left] + (y - top) * width + x - left
            for c in range(channels):
                base[c, x] = flat[c, place]
        total[:], share[:] = 0, 0
        for u in range(max(0, y - gh + 1), min(patch, y + 1)):
            row = origin[y - u]
            for v in range(patch):
                w, step = weight[u, v], u * width + v
                for j in range(gw):
                    share[j + v] += w
                for c in range(channels):
                    for j in range(gw):
                        total[c, j + v] += w * (flat[c, row[j] + step] - base[c, j + v])
        for c in range(channels):
            for x in range(across):
                out[c, y, x] = base[c, x] + total[c, x] / share[x]


def fold_compiled(
    values: Float[Tensor, "c h w"], field: Int64[Tensor, "gh gw"], weights: Float64[Tensor, "p"]
) -> Float[Tensor, "c s t"]:
    """The weighted mean of overlapping patches, as `method.fold`: bit for bit what its torch form gives."""
    c, _, width = values.shape
    patch, columns = len(weights), width - len(weights) + 1
    gh, gw = field.shape
    out = values.new_empty(c, gh + patch - 1, gw + patch - 1)
    weight = (weights[:, None] * weights).to(values.dtype)
    origin = field // columns * width + field % columns
    flat = values.detach().contiguous().flatten(1)
    arrays = flat.numpy(), width, origin.numpy(), weight.numpy(), out.numpy()
    parallel(out.shape[1], ROWS, torch.get_num_threads(), lambda start, stop: _fold(*arrays, start, stop))
    return out


def can_compile(values: Tensor) -> bool:
    """Whether numba reads this tensor as it is."""
    return values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
