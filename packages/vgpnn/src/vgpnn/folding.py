"""The vote: every voxel from all patches that cover it, without a tensor of patches. Used by `method`.

Voxel v of the output is covered by the patches at v - o, o in the patch; each offers V[N(v - o) + o]. They
become one by the lower median, the mean, or a mean weighted by exp(-u^2 / (2 1.7^2)), u on [-1, 1] over the
patch (as in "Drop the GAN"). On the CPU numba walks over the voxels; elsewhere torch gathers, one offset at a
time, some frames at a time. Both give the same bits: one order of sums, and a median is one of its votes.
"""

import inspect
import math
from typing import Literal

import numba
import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from paperkit.threads import parallel
from torch import Tensor

Vote = Literal["median", "mean", "gaussian"]

SPREAD = 1.7
"""Standard deviation of the Gaussian weight, in half patch sides."""
ROWS = 4
"""Rows of the output that a thread takes at a time."""

Window = tuple[int, int, int]


def vote_weights(patch: Window, kind: Vote) -> Float64[Tensor, "kt kh kw"]:
    """Weight of each offset; ones for the mean."""
    if kind != "gaussian":
        return torch.ones(patch, dtype=torch.float64)
    each = []
    for side in patch:
        u = torch.linspace(-1, 1, side).double() if side > 1 else torch.zeros(1).double()
        each.append(torch.exp(-(u**2) / (2 * SPREAD**2)))
    return each[0][:, None, None] * each[1][:, None] * each[2]


def fold(
    values: Float[Tensor, "c t h w"],
    index: Int64[Tensor, "gt gh gw"],
    patch: Window,
    kind: Vote = "median",
    memory: int = 2**27,
) -> Float[Tensor, "c _ _ _"]:
    """The video whose patch i is patch index[i] of `values`; `memory` bounds torch's gathers, in bytes."""
    compiled = values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
    if compiled:
        return fold_compiled(values, index, patch, kind)
    return fold_torch(values, index, patch, kind, memory)


def _origins(index: Tensor, shape: Window, patch: Window) -> Tensor:
    """Number of the first voxel of each patch's key."""
    gh, gw = shape[1] - patch[1] + 1, shape[2] - patch[2] + 1
    rows = index // gw  # t gh + h; in place from here on, as a large level's index takes much memory
    return rows.add_((rows // gh).mul_(patch[1] - 1)).mul_(shape[2]).add_(index % gw)


# ---- torch, any device


def fold_torch(
    values: Float[Tensor, "c t h w"],
    index: Int64[Tensor, "gt gh gw"],
    patch: Window,
    kind: Vote = "median",
    memory: int = 2**27,
) -> Float[Tensor, "c _ _ _"]:
    """The vote by gathers, as many frames at a time as `memory` allows."""
    frames, height, width = (g + p - 1 for g, p in zip(index.shape, patch, strict=True))
    shape = (values.shape[1], values.shape[2], values.shape[3])
    origin, flat = _origins(index, shape, patch), values.flatten(1)
    votes = math.prod(patch) if kind == "median" else 4
    room = max(1, memory // (2 * votes * len(values) * height * width * values.element_size()))
    parts = []
    for start in range(0, frames, room):
        parts.append(_fold_frames(flat, origin, shape, patch, kind, range(start, min(frames, start + room))))
    return torch.cat(parts, 1)


def _fold_frames(flat, origin, shape, patch, kind, frames) -> Tensor:
    """Frames of the output from the patches that cover them."""
    gt, gh, gw = origin.shape
    size = len(frames), gh + patch[1] - 1, gw + patch[2] - 1
    stack = flat.new_full((math.prod(patch) if kind == "median" else 0, len(flat), *size), math.nan)
    base = _base(flat, origin, shape, patch, frames)
    total, share = torch.zeros_like(base), torch.zeros_like(base[0])
    weights = vote_weights(patch, kind).to(flat.dtype)
    number = -1
    for a in range(patch[0]):
        here = [t for t in frames if 0 <= t - a < gt]
        for b in range(patch[1]):
            for c in range(patch[2]):
                number += 1
                if not here:
                    continue
                rows = slice(here[0] - frames[0], here[-1] + 1 - frames[0])
                place = (..., rows, slice(b, b + gh), slice(c, c + gw))
                step = (a * shape[1] + b) * shape[2] + c
                part = flat[:, origin[here[0] - a : here[-1] - a + 1] + step]
                if kind == "median":
                    stack[(number, *place)] = part
                    continue
                w = weights[a, b, c]
                total[place] += w * (part - base[place])
                share[place] += w
    return stack.nanmedian(0).values if kind == "median" else base + total / share


def _base(flat, origin, shape, patch, frames) -> Tensor:
    """One vote of each voxel: a mean of differences from it is exact where all agree."""
    grid = origin.shape
    axes = [torch.arange(g + p - 1) for g, p in zip(grid, patch, strict=True)]
    axes[0] = axes[0][frames[0] : frames[-1] + 1]
    near = [axis.clamp(max=g - 1) for axis, g in zip(axes, grid, strict=True)]
    rest = [(axis - n).to(origin.device) for axis, n in zip(axes, near, strict=True)]
    step = rest[0][:, None, None] * shape[1] * shape[2] + rest[1][:, None] * shape[2] + rest[2]
    return flat[:, origin[near[0]][:, near[1]][:, :, near[2]] + step]


# ---- numba, CPU


def compiled(function):
    """numba's compiler; unwrapped, as the tests' type checker wraps every function."""
    return numba.njit(nogil=True, cache=True)(inspect.unwrap(function))


@compiled
def _median(flat, shape, origin, patch, out, start, stop):
    """Rows start .. stop (frames and rows counted together) of the lower median.

    Votes of equal source voxels are counted, not repeated: where the field is smooth only few are left.
    """
    channels, _, height, width = out.shape
    gt, gh, gw = origin.shape
    kt, kh, kw = patch
    most = kt * kh * kw
    place, count = np.empty(most, np.int64), np.empty(most, np.int64)
    value, order = np.empty(most, out.dtype), np.empty(most, np.int64)
    for row in range(start, stop):
        t, y = row // height, row % height
        for x in range(width):
            found, votes = 0, 0
            for a in range(max(0, t - gt + 1), min(kt, t + 1)):
                for b in range(max(0, y - gh + 1), min(kh, y + 1)):
                    for c in range(max(0, x - gw + 1), min(kw, x + 1)):
                        source = origin[t - a, y - b, x - c] + (a * shape[1] + b) * shape[2] + c
                        votes += 1
                        k = found - 1
                        while k >= 0 and k >= found - 12 and place[k] != source:
                            k -= 1
                        if k >= 0 and k >= found - 12:
                            count[k] += 1
                        else:
                            place[found] = source
                            count[found] = 1
                            found += 1
            middle = (votes - 1) // 2
            for channel in range(channels):
                if found == 1:
                    out[channel, t, y, x] = flat[channel, place[0]]
                    continue
                for k in range(found):
                    value[k] = flat[channel, place[k]]
                out[channel, t, y, x] = _select(value, count, order, found, middle)


@compiled
def _select(value, count, order, found, middle):
    """The vote at `middle` in ascending order, each value counted `count` times (quickselect)."""
    for k in range(found):
        order[k] = k
    low, high, before = 0, found - 1, 0
    while low < high:
        pivot = value[order[(low + high) // 2]]
        i, j = low, high
        while i <= j:
            while value[order[i]] < pivot:
                i += 1
            while value[order[j]] > pivot:
                j -= 1
            if i <= j:
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        # low..j are at most the pivot, i..high at least, what lies between equals it.
        left = 0
        for k in range(low, j + 1):
            left += count[order[k]]
        between = 0
        for k in range(j + 1, i):
            between += count[order[k]]
        if middle < before + left:
            high = j
        elif middle < before + left + between:
            return pivot
        else:
            before += left + between
            low = i
    return value[order[low]]


@compiled
def _mean(flat, shape, origin, weight, out, start, stop):
    """Rows start .. stop of the weighted mean, as differences from one vote."""
    channels, _, height, width = out.shape
    gt, gh, gw = origin.shape
    kt, kh, kw = weight.shape
    for row in range(start, stop):
        t, y = row // height, row % height
        nt, ny = min(t, gt - 1), min(y, gh - 1)
        for x in range(width):
            nx = min(x, gw - 1)
            first = origin[nt, ny, nx] + ((t - nt) * shape[1] + y - ny) * shape[2] + x - nx
            for channel in range(channels):
                base = flat[channel, first]
                total = base - base
                share = base - base
                for a in range(max(0, t - gt + 1), min(kt, t + 1)):
                    for b in range(max(0, y - gh + 1), min(kh, y + 1)):
                        for c in range(max(0, x - gw + 1), min(kw, x + 1)):
                            source = origin[t - a, y - b, x - c] + (a * shape[1] + b) * shape[2] + c
                            w = weight[a, b, c]
                            total += w * (flat[channel, source] - base)
                            share += w
                out[channel, t, y, x] = base + total / share


def fold_compiled(
    values: Float[Tensor, "c t h w"],
    index: Int64[Tensor, "gt gh gw"],
    patch: Window,
    kind: Vote = "median",
) -> Float[Tensor, "c _ _ _"]:
    """The vote voxel by voxel; nothing beside the output is kept."""
    size = [g + p - 1 for g, p in zip(index.shape, patch, strict=True)]
    out = values.new_empty(len(values), *size)
    shape = (values.shape[1], values.shape[2], values.shape[3])
    flat = values.detach().contiguous().flatten(1).numpy()
    origin = _origins(index, shape, patch).contiguous().numpy()
    if kind == "median":
        call, last = _median, patch
    else:
        call, last = _mean, vote_weights(patch, kind).to(values.dtype).numpy()

    def run(start: int, stop: int) -> None:
        call(flat, shape, origin, last, out.numpy(), start, stop)

    parallel(size[0] * size[1], ROWS, torch.get_num_threads(), run)
    return out
