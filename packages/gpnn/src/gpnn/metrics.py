"""Figures of outputs against their source (spec 8.2). Used by `evaluate` and `reproduce`.

symbol  meaning (X source, Y output; D mean squared difference of 7x7 patches)
nat     mean over patches of X's left half of min D to its right half: X's own patch distance without copying
R       mean over patches of Y of min D to X, over nat: realism, 0 = every patch is in the source
C       mean over patches of X of min D to Y, over nat: completeness, 0 = every patch of the source is in Y
G       mean absolute gradient, output over source: sharpness. R alone cannot see blur
M       mean absolute gradient of Y's patches over that of their nearest patches of X: matched sharpness. G
        falls where an output shows less of what is contrasty in the source, M does not
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Float64, Int64
from paperkit import UserError
from paperkit.metrics import fid
from paperkit.nearest import Patches, nearest
from paperkit.run import load_weights
from torch import Tensor
from torch.nn import functional as F

PATCH, NEAR = 7, 2
WEIGHTS = "weights/squeezenet1_0_deepcomp.safetensors"


def natural_distance(x: Float[Tensor, "c h w"]) -> float:
    """nat. Raises `UserError` for an image narrower than two patches."""
    half = x.shape[2] // 2
    if half < PATCH:
        raise UserError(f"an image of {x.shape[2]} columns is too narrow to compare its halves")
    # A constant image has nat = 0; the floor is far below one grey level.
    return max(1e-9, float(_least(x[:, :, :half], x[:, :, half:]).mean()))


def _least(a: Tensor, b: Tensor) -> Tensor:
    return nearest(Patches(a.contiguous(), PATCH), Patches(b.contiguous(), PATCH)).distance


def realism(y: Float[Tensor, "c h w"], x: Float[Tensor, "c s t"]) -> float:
    """R: 0 where every patch of y is in x; lower is better."""
    return float(_least(y, x).mean()) / natural_distance(x)


def realism_and_stay(
    y: Float[Tensor, "c h w"], x: Float[Tensor, "c h w"], natural: float
) -> tuple[float, float]:
    """R and `stay` by one search, where nat is known."""
    found = nearest(Patches(y, PATCH), Patches(x, PATCH))
    return float(found.distance.mean()) / natural, _near(found.index, y, x, NEAR)


def completeness(y: Float[Tensor, "c h w"], x: Float[Tensor, "c s t"]) -> float:
    """C: 0 where every patch of x is in y; lower is better."""
    return float(_least(x, y).mean()) / natural_distance(x)


def stay(y: Float[Tensor, "c h w"], x: Float[Tensor, "c h w"], near: int = NEAR) -> float:
    """Share of y's patches whose nearest source patch lies within `near` pixels of its place: 1 = copy."""
    return _near(nearest(Patches(y, PATCH), Patches(x, PATCH)).index, y, x, near)


def _near(index: Tensor, y: Tensor, x: Tensor, near: int) -> float:
    rows, columns = y.shape[1] - PATCH + 1, y.shape[2] - PATCH + 1
    place, width = torch.arange(rows * columns, device=y.device), x.shape[2] - PATCH + 1
    down = (index // width - place // columns).abs()
    right = (index % width - place % columns).abs()
    return float(((down <= near) & (right <= near)).double().mean())


def sharpness(y: Float[Tensor, "c h w"], x: Float[Tensor, "c s t"]) -> float:
    """G: 1 = as sharp as the source."""
    return _gradient(y) / max(_gradient(x), 1e-12)


def matched_sharpness(
    y: Float[Tensor, "c h w"], x: Float[Tensor, "c s t"], index: Int64[Tensor, " n"]
) -> float:
    """M: 1 = each patch as sharp as the source patch that it is nearest to; `index` names those."""
    of_y, of_x = (_patch_gradients(image) for image in (y, x))
    return float(of_y.mean() / of_x[index].mean().clamp(min=1e-12))


def _patch_gradients(x: Float[Tensor, "c h w"]) -> Float64[Tensor, " n"]:
    """Mean absolute gradient within each patch."""
    down, right = (x.double().diff(dim=axis).abs().mean(0)[None] for axis in (1, 2))
    parts = [
        F.avg_pool2d(down, (PATCH - 1, PATCH), 1).flatten(),
        F.avg_pool2d(right, (PATCH, PATCH - 1), 1).flatten(),
    ]
    return (parts[0] + parts[1]) / 2


def _gradient(x: Tensor) -> float:
    return float(x.diff(dim=1).abs().mean() + x.diff(dim=2).abs().mean())


def diversity(samples: Sequence[Float[Tensor, "c h w"]], x: Float[Tensor, "c h w"]) -> float:
    """Per-pixel standard deviation of grey over samples, averaged, over the source's (SinGAN)."""
    grey = torch.stack([sample.mean(0) for sample in samples])
    if len(grey) < 2:
        raise UserError("diversity needs at least two samples")
    return float(grey.std(0, correction=0).mean() / x.mean(0).std(correction=0).clamp(min=1e-12))


def figures(y: Float[Tensor, "c h w"], x: Float[Tensor, "c s t"]) -> dict[str, float]:
    """All figures of one output; `stay` where the sizes are equal."""
    found = nearest(Patches(y, PATCH), Patches(x, PATCH))
    row = {
        "realism": float(found.distance.mean()) / natural_distance(x),
        "completeness": completeness(y, x),
        "sharpness": sharpness(y, x),
        "matched_sharpness": matched_sharpness(y, x, found.index),
    }
    return {**row, "stay": _near(found.index, y, x, NEAR)} if x.shape == y.shape else row


class SqueezeNetFrechet:
    """Fréchet distance of two images over SqueezeNet features, every position a sample. Not SIFID.

    SIFID takes Inception's 192 channels; here they are the 128 of the second fire module of SqueezeNet 1.0.
    Raises `UserError` where the weights are missing.
    """

    def __init__(self, root: Path) -> None:
        from torchvision.models import squeezenet1_0

        if not (root / WEIGHTS).exists():
            raise UserError(
                f"the feature network's weights are missing: put SqueezeNet 1.0 (torchvision's key names, "
                f"safetensors) at {root / WEIGHTS}"
            )
        net = squeezenet1_0(weights=None)
        net.load_state_dict(load_weights(root / WEIGHTS))
        self.features = net.features[:5].eval().requires_grad_(False)

    def __call__(self, a: Float[Tensor, "3 h w"], b: Float[Tensor, "3 s t"]) -> float:
        """Fréchet distance; 0 for equal images."""
        return fid(self._rows(a), self._rows(b))

    def spread(self, x: Float[Tensor, "3 h w"]) -> float:
        """Variance of an image's features, all channels together: the unit of its distances."""
        return max(1e-12, float(self._rows(x).double().var(0).sum()))

    def _rows(self, x: Tensor) -> Float[Tensor, "n d"]:
        mean = torch.tensor([0.485, 0.456, 0.406], device=x.device)[:, None, None]
        std = torch.tensor([0.229, 0.224, 0.225], device=x.device)[:, None, None]
        features = self.features.to(x.device)(((x.float() - mean) / std)[None])[0]
        return features.flatten(1).T


# ---- Controls: what a figure must tell from a good output (spec 8.2)


def blurred(x: Float[Tensor, "c h w"], ratio: float = 0.5) -> Float[Tensor, "c h w"]:
    """The source, shrunk and enlarged."""
    from paperkit.resize import resize

    return resize(resize(x, scale=ratio), size=(x.shape[1], x.shape[2]))


def shuffled(x: Float[Tensor, "c h w"], seed: int = 0, tile: int = 8) -> Float[Tensor, "c h w"]:
    """The source in tiles of 8x8 pixels put back at random (cropped to whole tiles)."""
    from einops import rearrange

    rows, columns = x.shape[1] // tile, x.shape[2] // tile
    tiles = rearrange(x[:, : rows * tile, : columns * tile], "c (a h) (b w) -> (a b) c h w", h=tile, w=tile)
    order = torch.randperm(len(tiles), generator=torch.Generator().manual_seed(seed)).to(x.device)
    return rearrange(tiles[order], "(a b) c h w -> c (a h) (b w)", a=rows)
