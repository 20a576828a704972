"""A stand-in for aerial photographs of roads that is always at hand: digits' strokes painted over textures.

Tiles to learn from show scikit-image's brick, shifted ones its gravel and grass; strokes are those of
scikit-learn's digits. Used by `roads`.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from paperkit import rng
from paperkit.data import digits, photograph
from paperkit.images import to_float
from paperkit.resize import resize
from torch import Tensor

SIDE, DIGIT = 64, 32
"""Pixels of a tile, and of each of its four digits."""
TRAIN, OTHERS = "brick", ("gravel", "grass")


def strokes(
    texture: str, split: str, n: int, seed: int
) -> tuple[Float[Tensor, "n 3 64 64"], Bool[Tensor, "n 1 64 64"]]:
    """(tiles in [0, 1], masks): two by two digits over crops of a texture, in a random tone."""
    draw = rng.generator(seed, 0, f"strokes {texture} {split}")
    pictures = (digits(split)[0] + 1) / 2
    chosen = torch.randint(len(pictures), (n, 2, 2), generator=draw)
    large = resize(pictures, size=DIGIT)
    painted = rearrange(large[chosen], "n r c 1 h w -> n 1 (r h) (c w)").clamp(0, 1)
    ground = to_float(photograph(texture), 0.0, 1.0)
    corners = [torch.randint(side - SIDE + 1, (n,), generator=draw).tolist() for side in ground.shape[1:]]
    crops = torch.stack([ground[:, i : i + SIDE, j : j + SIDE] for i, j in zip(*corners, strict=True)])
    tone = 0.5 + 0.3 * torch.rand(n, 1, 1, 1, generator=draw)
    cover = 0.8 * (painted / 0.6).clamp_max(1)
    return crops * (1 - cover) + tone * cover, painted > 0.5
