"""The claim `propagation`: masks travel through clips better by trained features than by random ones.

Clips are made of real photographs, with known masks; the encoders are those of `learns-cifar10`, on frames
four times as large as the images that they were trained on.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from paperkit import results
from paperkit.run import checkpoints, load_checkpoint
from torch import Tensor

from flexpredict import data
from flexpredict.checkpoints import read
from flexpredict.clips import Clip, clip, photographs
from flexpredict.data import Scale
from flexpredict.learns import ARMS, CIFAR, CIFAR_SEEDS
from flexpredict.networks import network
from flexpredict.propagation import frame_features, hard_labels, pixel_features, propagate, soft_labels
from flexpredict.segments import clip_scores
from flexpredict.step import first_state

CLIPS = range(1000, 1030)
"""Numbers of the clips; others were for trying out."""
WAYS = ("trained", "random weights")


def claim(seeds: int) -> dict[str, Any]:
    """Mean of J and F of every network, of its random weights, and of raw pixels."""
    seeds = min(seeds, CIFAR_SEEDS)
    rows = {name: [network_scores(name, seed) for seed in range(seeds)] for name in ARMS}
    pixels = pixel_scores()
    values = {(name, way): [row[way]["J&F"] for row in rows[name]] for name in ARMS for way in WAYS}
    margins = {}
    for name in ARMS:
        gain = results.paired(values[name, "trained"], values[name, "random weights"])
        margins[f"{name}: over random weights, standard errors above 2"] = gain.t - 2
        margins[f"{name}: over raw pixels, points"] = sum(values[name, "trained"]) / seeds - pixels["J&F"]
    return {
        "claim": "Trained features carry masks through clips better than random weights and raw pixels",
        "source": "Table 3 (DAVIS there; house criterion)", "preset": "tiny_cifar10",
        "data": f"{len(CLIPS)} clips of embedded photographs, motion and masks made up; networks of"
        " learns-cifar10",
        "metric": "j_and_f", "unit": "%", "better": "higher", "ours": values["stochastic", "trained"],
        "against": ("random weights", values["stochastic", "random weights"]),
        "arms": {
            **{f"{name}, {way}, {key}": [row[way][key] for row in rows[name]]
               for name in ARMS for way in WAYS for key in ("J", "F", "J&F")},
            **{f"raw pixels, {key}": [value] for key, value in pixels.items()},
        },
        "criterion": "in both arms: above random weights by > 2 standard errors over seeds, and above raw"
        " pixels in the mean (statistic: smallest margin)",
        "statistic": min(margins.values()), "threshold": 0.0, "details": {"margins": margins},
        "explanation": _why(margins),
    }  # fmt: skip


def network_scores(arm: str, seed: int) -> dict[str, dict[str, float]]:
    """J, F and their mean over all clips, of a network and of its random weights."""
    config = replace(CIFAR, seed=seed, position=ARMS[arm])
    folder = network(config)
    scale = scale_of(folder)
    initial = first_state(config, data.open_source(replace(config, limit=8)).shape)[1]
    trained = read(folder).encoder("target", config.net.heads)
    found = {}
    for way, encoder in (("trained", trained), ("random weights", initial)):
        features = [frame_features(encoder, _scaled(scale, each)) for each in _clips()]
        found[way] = scores(features, config.net.patch)
    return found


def pixel_scores() -> dict[str, float]:
    """The same of raw pixels, centred by their mean colour."""
    patch = CIFAR.net.patch
    return scores([pixel_features(each.frames - 0.5, patch) for each in _clips()], patch)


def scores(features: list[Tensor], patch: int) -> dict[str, float]:
    """Mean J, F and J&F in % over all clips."""
    pairs = []
    for each, own in zip(_clips(), features, strict=True):
        first = soft_labels(each.masks[0], (own.shape[1], own.shape[2]), 1)
        soft = propagate(own, first)
        size = (each.masks.shape[1], each.masks.shape[2])
        found = torch.stack([hard_labels(frame, patch, size) for frame in soft])
        pairs.append(clip_scores(found.numpy(), each.masks.numpy()))
    j, f = (sum(pair[i] for pair in pairs) / len(pairs) for i in (0, 1))
    return {"J": j, "F": f, "J&F": (j + f) / 2}


@cache
def _clips() -> list[Clip]:
    pictures = photographs()
    return [clip(pictures, number) for number in CLIPS]


def scale_of(folder: Path) -> Scale:
    """Mean and deviation of the pixels that a run was trained on."""
    kept = load_checkpoint(checkpoints(folder)[-1])[0]["scale"]
    return Scale(kept["mean"], kept["std"])


def _scaled(scale: Scale, each: Clip) -> Tensor:
    return scale((each.frames * 255).round().to(torch.uint8))


def _why(margins: dict[str, float]) -> str:
    broken = [f"{name}: {margin:.2f}" for name, margin in margins.items() if margin < 0]
    return f"Not met: {'; '.join(broken)}." if broken else ""
