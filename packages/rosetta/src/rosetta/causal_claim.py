"""The claim `causal`, reported: what a classifier loses without the units that it shares (spec 8b).

It uses the run of `train` of each seed that the claims on inversion and edits use.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from paperkit import data, images, reproduction, rng
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rosetta import steer_claims, zoo
from rosetta.hooks import Network
from rosetta.maps import Maps
from rosetta.mining import Tables, mine, stored_tables
from rosetta.steer import open_run

HELD = 1500
"""Held-out images, none of them a probe, that accuracy is measured on."""
DRAWS = 20
"""Random sets of units beside the shared ones."""
Figures = dict[str, Any]

# ---- Ablation of units -------------------------------------------------------------------------------------


def causal(seeds: int) -> dict[str, Any]:
    """What the first classifier loses without the units that it shares."""
    found = [
        reproduction.remember("rosetta", f"causal {seed}", lambda seed=seed: causal_figures(seed))
        for seed in range(seeds)
    ]
    best = {name: [row[name]["shared"] for row in found] for name in SETS}
    return {
        "claim": "What CNN-A loses when the units that it shares with other networks answer with their mean,"
        " beside as many random ones of the same layers and as many of like activity",
        "source": "house question (spec 8b)",
        "data": f"{steer_claims.DATA}, {HELD:,} held-out images that are no probes",
        "metric": "accuracy_lost", "unit": "share of images", "better": "higher",
        "ours": best["buddies"],
        "against": ("units of like activity", [row["buddies"]["alike"] for row in found]),
        "arms": {
            "accuracy before": [row["before"] for row in found],
            **{
                f"{name}: {key}": [row[name][key] for row in found]
                for name in SETS
                for key in found[0][name]
                if (name, key) not in (("buddies", "shared"), ("buddies", "alike"))
            },
        },
        "criterion": "reported only (statistic: the least accuracy before ablation, above 0)",
        "statistic": min(row["before"] for row in found), "threshold": 0.0,
        "details": {"reading": _causal_reading(found)},
    }  # fmt: skip


SETS = ("buddies", "stars")
"""Units of CNN-A with a partner in CNN-B; units at the head of a star over CNN-B and MAE."""


def _causal_reading(found: Sequence[Figures]) -> str:
    above = sum(row["buddies"]["shared"] > row["buddies"]["random, high"] for row in found)
    below = sum(row["buddies"]["shared"] < row["buddies"]["random, low"] for row in found)
    more = sum(row["buddies"]["shared"] > row["buddies"]["alike"] for row in found)
    return (
        f"Of {len(found)} zoos the loss without the shared units lies above the 95 % range of random ones in"
        f" {above} and below it in {below}; it exceeds that of units of like activity in {more}."
    )


def causal_figures(seed: int) -> Figures:
    """Accuracy lost without each set of units, for one zoo."""
    return measure_causal(steer_claims.run_of(seed), seed)


def measure_causal(folder: Path, seed: int) -> Figures:
    """The same for a run at hand."""
    steered = open_run(folder)
    stage, tables = steered.stages[zoo.MEMBERS[0]], stored_tables(folder / "real")
    maps = tables.maps[0]
    network = zoo.network(stage, steered.source.probes[:1])
    pixels, labels = held_out(steered.config.data, steered.config.size, steered.config.probes)
    before = accuracy(stage.modules["net"], pixels, labels)

    def lost(units: Sequence[int]) -> float:
        with without(network, maps, units):
            return before - accuracy(stage.modules["net"], pixels, labels)

    found: Figures = {"before": before}
    for name, units in shared_units(tables).items():
        draw = rng.generator(seed, 0, f"ablated {name}")
        random = sorted(lost(random_set(maps, units, draw)) for _ in range(DRAWS))
        low, high = torch.tensor(random, dtype=torch.float64).quantile(
            torch.tensor([0.025, 0.975], dtype=torch.float64)
        )
        found[name] = {
            "units": float(len(units)), "shared": lost(units), "alike": lost(alike(maps, units)),
            "random": sum(random) / DRAWS, "random, low": float(low), "random, high": float(high),
        }  # fmt: skip
    return found


def shared_units(tables: Tables) -> dict[str, list[int]]:
    """Units of the pivot by set."""
    mined = mine(Tables(tables.maps[:3], tables.config, tables.folder))
    stars = mined.chains["star"]
    kept = [c.units[0] for c, ok in zip(stars.found, stars.significant, strict=True) if ok]
    return {"buddies": sorted(set(mined.pairs[0, 1].significant.rows.tolist())), "stars": sorted(kept)}


def held_out(name: str, size: int, probes: int) -> tuple[Float[Tensor, "n c s s2"], Int64[Tensor, "n"]]:
    """Test images that follow the probes in the order that those are drawn in, at most `HELD`."""
    test = data.open_set(name, "test")
    pixels, labels = test.tensor(min(probes + HELD, len(test)), size or None, seed=0)
    return images.to_float(pixels[probes:]), labels[probes:]


@torch.no_grad()
def accuracy(net: nn.Module, pixels: Float[Tensor, "n c s s2"], labels: Int64[Tensor, "n"]) -> float:
    """Share that a classifier gets right."""
    found = torch.cat([net(part).argmax(1) for part in pixels.split(256)])
    return float((found == labels).float().mean())


@contextmanager
def without(network: Network, maps: Maps, units: Sequence[int]) -> Iterator[None]:
    """While it lasts, the units answer with their mean over the probes, everywhere."""
    mean = maps.measure().mean
    modules = dict(network.module.named_modules())
    places = [(*maps.place(unit), float(mean[unit])) for unit in units]

    def flattened(layer: int, made: Any) -> Tensor:
        changed = made.clone()
        for at, channel, value in places:
            if at == layer:
                changed[:, channel] = value
        return changed

    def attached(layer: int, name: str) -> RemovableHandle:
        return modules[name].register_forward_hook(lambda _, given, made: flattened(layer, made))

    handles = [attached(layer, name) for layer, name in enumerate(maps.names)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def random_set(maps: Maps, units: Sequence[int], draw: torch.Generator) -> list[int]:
    """As many living units of each layer, at random; shared ones may be among them."""
    chosen = []
    for layer in range(len(maps.names)):
        count = sum(maps.place(unit)[0] == layer for unit in units)
        own = [u for u in range(maps.offsets[layer], maps.offsets[layer + 1]) if maps.alive[u]]
        chosen += [own[i] for i in torch.randperm(len(own), generator=draw)[:count].tolist()]
    return chosen


def alike(maps: Maps, units: Sequence[int]) -> list[int]:
    """For each unit the nearest in deviation of its layer that is neither shared nor taken, where there is
    one."""
    std, taken = maps.measure().std, set(units)
    for unit in units:
        layer, _ = maps.place(unit)
        own = range(maps.offsets[layer], maps.offsets[layer + 1])
        free = [u for u in own if maps.alive[u] and u not in taken]
        if free:
            taken.add(min(free, key=lambda u: (abs(float(std[u] - std[unit])), u)))
    return sorted(taken - set(units))
