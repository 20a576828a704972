"""Masks carried through a clip by frozen features (DINO's protocol, the paper's appendix C.2).

Each frame's patches take the labels of the patches that they resemble, in the first frame and in the seven
before; the labels of the first frame are given.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from flexpredict.model import Encoder


@dataclass(frozen=True)
class Protocol:
    """How labels travel; the defaults are DINO's for DAVIS."""

    before: int = 7
    """Preceding frames that are asked, beside the first."""
    radius: int = 12
    """Rows and columns of patches by which a source may be away."""
    most: int = 5
    """Sources that a patch takes its labels from."""
    temperature: float = 0.1
    """Weights are exp(cosine / temperature)."""


@torch.no_grad()
def frame_features(encoder: Encoder, frames: Float[Tensor, "t c h w"]) -> Float[Tensor, "t r s d"]:
    """Last-layer tokens of each frame on its grid of patches, of length 1. Any grid: positions stretch."""
    rows = frames.shape[-2] // encoder.patch
    encoder.eval()
    tokens = torch.cat([encoder(frame[None]) for frame in frames])  # a frame at a time: attention is square
    return F.normalize(rearrange(tokens, "t (r s) d -> t r s d", r=rows), dim=-1)


def pixel_features(frames: Float[Tensor, "t c h w"], patch: int) -> Float[Tensor, "t r s d"]:
    """The pixels of each patch, of length 1: what any encoder has to beat."""
    return F.normalize(rearrange(frames, "t c (r p) (s q) -> t r s (c p q)", p=patch, q=patch), dim=-1)


def propagate(
    features: Float[Tensor, "t r s d"], first: Float[Tensor, "k r s"], protocol: Protocol | None = None
) -> Float[Tensor, "t k r s"]:
    """Soft labels of every frame, from those of the first."""
    protocol = protocol or Protocol()
    near = _near(features.shape[1], features.shape[2], protocol.radius).to(features.device)
    known = [first.flatten(1)]
    tokens = features.flatten(1, 2)
    for now in range(1, len(features)):
        sources = [0, *range(max(1, now - protocol.before), now)]
        likeness = torch.cat([tokens[now] @ tokens[source].T for source in sources], 1)
        likeness = likeness.masked_fill(~near.repeat(1, len(sources)), -torch.inf)
        best, where = likeness.topk(min(protocol.most, likeness.shape[1]), dim=1)
        weights = (best / protocol.temperature).softmax(1)
        labels = torch.cat([known[source] for source in sources], 1)
        known.append((labels[:, where] * weights).sum(-1))
    return torch.stack(known).unflatten(2, features.shape[1:3])


def _near(rows: int, columns: int, radius: int):
    """Which cells of a grid lie within `radius` rows and columns of which."""
    cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).reshape(-1, 2)
    return ((cells[:, None] - cells[None]).abs() <= radius).all(-1)


def soft_labels(mask: Int64[Tensor, "h w"], grid: tuple[int, int], objects: int) -> Float[Tensor, "k r s"]:
    """One-hot labels (0 is the background) of a first frame, one cell for each patch (nearest)."""
    small = F.interpolate(mask[None, None].float(), grid, mode="nearest")[0, 0].long()
    return F.one_hot(small, objects + 1).permute(2, 0, 1).float()


def hard_labels(soft: Float[Tensor, "k r s"], patch: int, size: tuple[int, int]) -> Int64[Tensor, "h w"]:
    """Object of each pixel: enlarged by the patch (bilinear), each channel stretched to [0, 1], the largest.

    A channel without any label stays at 0. The result is fitted to `size` (nearest).
    """
    large = F.interpolate(soft[None], scale_factor=patch, mode="bilinear", align_corners=False)[0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    stretched = torch.where(high > 0, (large - low) / (high - low).clamp_min(1e-12), 0.0)
    labels = stretched.argmax(0)
    return F.interpolate(labels[None, None].float(), size, mode="nearest")[0, 0].long()
