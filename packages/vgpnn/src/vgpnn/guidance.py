"""Guide channels of analogies: quantised strength of motion (spec 3.3). For `commands` and `reproduce`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from paperkit import UserError
from paperkit.resize import resize
from paperkit.run import fill, load_foreign
from torch import Tensor

Flow = Callable[[Float[Tensor, "3 h w"], Float[Tensor, "3 h w"]], Float[Tensor, "2 h w"]]
"""Optical flow from one frame to the next, in pixels; frames are in [-1, 1]."""

SAMPLE = 100_000
"""Values that the bins are fitted to, at most."""


def estimator(kind: Literal["tvl1", "ilk", "raft"], weights: str = "") -> Flow:
    """Optical flow by name. Raises `UserError` where RAFT's weights are missing."""
    return raft(weights) if kind == "raft" else classical(kind)


def classical(kind: Literal["tvl1", "ilk"]) -> Flow:
    """scikit-image's flow of the grey frames: nothing is downloaded."""

    def flow(first: Tensor, second: Tensor) -> Tensor:
        from skimage.registration import optical_flow_ilk, optical_flow_tvl1

        grey = [x.float().mean(0).cpu().numpy() for x in (first, second)]
        function: Any = optical_flow_tvl1 if kind == "tvl1" else optical_flow_ilk
        return torch.from_numpy(np.stack(function(*grey))).to(first)

    return flow


def raft(weights: str) -> Flow:
    """torchvision's RAFT from a file of its weights."""
    if not weights:
        raise UserError("--flow raft needs --weights FILE: torchvision's raft_large, .safetensors or .pth")
    state = load_foreign(Path(weights))
    from torchvision.models.optical_flow import raft_large

    net = raft_large(weights=None).eval()
    fill(net, state, weights)

    @torch.no_grad()
    def flow(first: Tensor, second: Tensor) -> Tensor:
        height, width = first.shape[1:]
        tall, wide = (max(128, -(-n // 8) * 8) for n in (height, width))  # RAFT wants multiples of 8
        pair = [
            torch.nn.functional.pad(x[None].float(), (0, wide - width, 0, tall - height), mode="replicate")
            for x in (first, second)
        ]
        return net.to(first.device)(*pair, num_flow_updates=20)[-1][0, :, :height, :width]

    return flow


def motion(x: Float[Tensor, "3 t h w"], bins: int, flow: Flow) -> Float[Tensor, "1 t h w"]:
    """One guide channel in [0, 1]: (bin / (bins - 1))^(1/4) of the flow's strength, one per frame.

    Bins are 1-d k-means clusters in ascending order, fitted to this clip: ranks are compared, not pixels per
    frame. t - 1 flows become t frames by resampling. Raises `UserError` for a single frame.
    """
    if x.shape[1] < 2:
        raise UserError("motion needs at least two frames")
    strengths = [
        flow(first, second).norm(dim=0)
        for first, second in zip(x.unbind(1)[:-1], x.unbind(1)[1:], strict=True)
    ]
    strength = resize(torch.stack(strengths)[None], size=x.shape[1], axes=(1,))[0]
    codes = quantise(strength, bins)
    return ((codes / max(1, bins - 1)) ** 0.25)[None].to(x)


def quantise(values: Float[Tensor, "t h w"], bins: int) -> Float[Tensor, "t h w"]:
    """Number of the k-means cluster of each value, clusters in ascending order."""
    from sklearn.preprocessing import KBinsDiscretizer

    flat = values.double().cpu().flatten()[:, None].numpy()
    if bins == 1 or float(flat.max() - flat.min()) < 1e-9:
        return torch.zeros_like(values)
    coder = KBinsDiscretizer(bins, encode="ordinal", strategy="kmeans")
    step = max(1, len(flat) // SAMPLE)
    coder.fit(np.sort(flat, 0)[::step])
    return torch.from_numpy(np.asarray(coder.transform(flat))).view(values.shape).to(values)
