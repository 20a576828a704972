"""The claim `controlled` (E6): how much is the method, how much the augmentation, how much the sampler.

{deterministic, stochastic} x {crops, crops with flips, grey and blur} x {official, unbiased masks}, all with
the same budget, tiny and on a CPU: the comparison that the paper does not have, at a size that settles
nothing about ImageNet.
"""

import itertools
from dataclasses import replace
from typing import Any

from paperkit import results

from flexpredict.config import CIFAR10, NetConfig, TrainConfig
from flexpredict.learns import ARMS, NSR
from flexpredict.networks import Figures, probed

SEEDS = 3
"""At most so many."""
RECIPES = {"crop": "ijepa", "crop and photometric": "stop"}
SAMPLERS = ("unbiased", "official")
BASE = replace(
    CIFAR10, size=32, limit=5000, workers=0, batch=32, steps=600, warmup=60, probe_every=300, save_every=600,
    net=NetConfig(patch=4, width=48, depth=2, predictor_width=32),
)  # fmt: skip
LEAST = 4
"""Patches that a block or context must exceed under the official sampler, on 8x8."""

Key = tuple[str, str, str]


def recipe(key: Key, seed: int) -> TrainConfig:
    """The configuration of one network."""
    method, augmentation, sampler = key
    masks = replace(BASE.masks, sampler=sampler)
    if sampler == "official":
        masks = replace(masks, context_scale=(0.85, 1.0), least=LEAST)
    return replace(BASE, seed=seed, position=ARMS[method], recipe=RECIPES[augmentation], masks=masks)


def claim(seeds: int) -> dict[str, Any]:
    """The grid, and the effect of each factor over the others and the seeds."""
    keys: list[Key] = list(itertools.product(ARMS, RECIPES, SAMPLERS))
    found = {key: [probed(recipe(key, s)) for s in range(min(seeds, SEEDS))] for key in keys}
    base, ours = (found[name, "crop", "unbiased"] for name in ("deterministic", "stochastic"))
    return {
        "claim": "How much is the method, how much the augmentation, how much the mask sampler (tiny, on a"
        " CPU)",
        "source": "house comparison (spec 8, E6); the paper sets StoP with both against I-JEPA with crops",
        "preset": "none", "data": "CIFAR-10, 5,000 of 50,000; probes on these and 2,000 test",
        "metric": "top1_20nn_test", "unit": "%", "better": "higher", "ours": _values(ours, "knn"),
        "against": ("deterministic, crop, unbiased", _values(base, "knn")),
        "arms": {
            f"{', '.join(key)}, {name}": _values(rows, name)
            for key, rows in found.items() for name in ("ridge", "knn", "rankme")
        } | {f"{', '.join(key)}, target variance": [row["variance"] for row in rows]
             for key, rows in found.items()}
        | {f"random weights, {name}": [row["random weights"][name] for row in base]
           for name in ("ridge", "knn")},
        "criterion": "reported only (statistic: least variance of targets between images, above 0)",
        "statistic": min(row["variance"] for rows in found.values() for row in rows), "threshold": 0.0,
        "details": {
            "effects": {name: effects(found, name) for name in ("ridge", "knn")}, "steps": BASE.steps,
            "batch": BASE.batch, "noise to position energy": NSR,
        },
    }  # fmt: skip


def effects(found: dict[Key, list[Figures]], name: str) -> dict[str, dict[str, float]]:
    """Mean difference that each factor makes, paired over the other factors and the seeds."""
    told = {}
    for factor, (low, high) in enumerate((tuple(ARMS), tuple(RECIPES), SAMPLERS)):
        pairs = [
            (a, b)
            for key in found
            if key[factor] == high
            for a, b in zip(
                _values(found[key], name), _values(found[_with(key, factor, low)], name), strict=True
            )
        ]
        each = results.paired([a for a, _ in pairs], [b for _, b in pairs])
        told[f"{high} over {low}"] = {
            "mean": each.mean, "se": each.se, "low": each.low, "high": each.high, "pairs": each.n,
        }  # fmt: skip
    return told


def _with(key: Key, factor: int, value: str) -> Key:
    changed = [*key]
    changed[factor] = value
    return changed[0], changed[1], changed[2]


def _values(rows: list[Figures], name: str) -> list[float]:
    return [row["trained"][name] for row in rows]
