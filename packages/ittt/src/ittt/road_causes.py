"""Why steps harm road masks: the claim `roads-direction`, a smaller run beside `roads` that looks for causes.

What the method needs of a gap is asked tile by tile, with networks of the claim `roads` that are not adapted;
then what each operation does to the quality. Conditions, seeds and operations were fixed before the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from paperkit import reproduction, results
from torch import Tensor

from ittt import roads
from ittt.baselines import method
from ittt.model import ITTT
from ittt.protocol import facts
from ittt.road_claim import MAIN, RECIPE, STEP, Row, conditions, mean, row, tiles_of
from ittt.road_metrics import scores
from ittt.roads import KINDS, LEVELS, Tiles
from ittt.settings import Settings
from ittt.task_loop import fit

OPERATIONS: dict[str, Settings] = {
    "not adapted": replace(STEP, steps=0),
    "batch statistics, no step": replace(STEP, steps=0, norm="batch"),
    "1 step": replace(STEP, steps=1),
    "2 steps": STEP,
    "2 steps, batch statistics": replace(STEP, norm="batch"),
    "2 steps of the norms": replace(STEP, parameters="norm"),
    "2 steps of the head": replace(STEP, parameters="head"),
    "2 steps of all but the head": replace(STEP, parameters="encoder"),
    "2 steps, no gradient through F": replace(STEP, through_anchor=False),
}
"""What of an adaptation does the harm; batches of `MAIN`."""
NOTHING = "not adapted"


# ---- one network -------------------------------------------------------------------------------------------


@torch.no_grad()
def asked(net: ITTT, tiles: Tiles, tolerance: float) -> dict[str, list[float]]:
    """Of each tile: does its gap point to the true mask, which masks stay as they are, gap, and error.

    toward: cosine of y1 - y0 and y - y0, in probabilities. true, empty, own: how much F changes a mask that
    it is fed, mean over pixels. missed: 100 - quality of the first application.
    """
    found: dict[str, list[Tensor]] = {}
    for x, y in zip(tiles.x.split(MAIN), tiles.y.split(MAIN), strict=True):
        logits, true = net(x), y.float()
        own = net.from_output(logits)
        again = net(x, own)
        second = net.from_output(again)
        parts = {
            "toward": torch.cosine_similarity((second - own).flatten(1), (true - own).flatten(1)),
            "true": changed(net, x, true), "empty": changed(net, x, torch.zeros_like(true)),
            "own": (second - own).abs().flatten(1).mean(1), "gap": net.task.gap(logits, again),
            "missed": 100 - scores(logits > 0, y, tolerance).quality,
        }  # fmt: skip
        for name, values in parts.items():
            found.setdefault(name, []).append(values)
    return {name: torch.cat(values).tolist() for name, values in found.items()}


def changed(net: ITTT, x: Float[Tensor, "b 3 s s"], mask: Float[Tensor, "b 1 s s"]) -> Float[Tensor, " b"]:
    """How much F changes a mask: mean absolute difference of probabilities over pixels."""
    return (net.from_output(net(x, mask)) - mask).abs().flatten(1).mean(1)


def rows(seed: int) -> dict[str, Any]:
    """What is asked of one network by kind of shift, and the scores of every operation."""
    config = replace(RECIPE, seed=seed)
    parts = roads.load(config)
    net = roads.build(config, parts)
    fit(net, roads.loss(config, net, parts), roads.length(config, parts), config.lr)
    tests = conditions(parts, seed)
    whole = {
        kind: Tiles(*(torch.cat([getattr(tiles, part) for tiles in levels.values()]) for part in ("x", "y")))
        for kind, levels in tests.items()
    }
    return {
        "asked": {kind: asked(net, tiles, parts.tolerance) for kind, tiles in whole.items()},
        "operations": {
            name: row(parts, tests, partial(method, "it3", net, settings), MAIN)
            for name, settings in OPERATIONS.items()
        },
    }


# ---- the claim ---------------------------------------------------------------------------------------------

Asked = Mapping[str, Mapping[str, Sequence[float]]]
"""Kind of shift -> what was asked -> tile by tile, over all seeds."""


def claim(seeds: int) -> dict[str, Any]:
    """Does the gap of a road mask point to the true one, under noise and haze?"""
    each = [
        reproduction.remember("ittt", f"roads-direction {seed}", partial(rows, seed)) for seed in range(seeds)
    ]
    told = {kind: joined([one["asked"][kind] for one in each]) for kind in ("clean", *KINDS)}
    met = conditions_of(told)
    missed = [condition for condition, holds in met.items() if not holds]
    least = min(KINDS, key=lambda kind: facts(told[kind]["toward"])["t"])
    parts = roads.load(RECIPE)
    return {
        "claim": "Under noise and haze the gap of a road mask points to the true mask, which F changes less "
        "than an empty one, and larger gaps mean worse masks",
        "source": "section 3, which supposes it; why the claim roads fails",
        "data": f"{parts.name}; networks of {seeds} of the seeds of the claim roads, not adapted",
        "metric": "cosine_of_gap_and_error", "unit": "1", "better": "higher",
        "ours": [mean(one["asked"][least]["toward"]) for one in each],
        "arms": {f"{name}, {kind}": quality(each, name, kind) for name in OPERATIONS
                 for kind in ("clean", *KINDS)},
        "criterion": "under noise and under haze, over tiles x seeds, by > 2 standard errors each: cosine of "
        "y1 - y0 and y - y0 above 0; F changes the true mask less than an empty one; rank correlation of gap "
        "and 100 - quality above 0 (conditions that hold, of all; ours is the cosine of the worse kind; arms "
        "are quality in per cent)",
        "statistic": len(met) - len(missed), "threshold": len(met),
        "explanation": explained(told, each, missed) if missed else "",
        "details": {
            "conditions": met,
            "means": {kind: {name: facts(values) for name, values in one.items()}
                      for kind, one in told.items()},
            "correlation_of_gap_and_missed_quality": {
                kind: correlation(one["gap"], one["missed"])[0] for kind, one in told.items()
            },
            "road_marked": {
                name: {kind: mean(marked(each, name, kind)) for kind in ("clean", *KINDS)}
                for name in OPERATIONS
            },
            "road_in_truth": 100 * float(parts.test.y.float().mean()),
        },
    }  # fmt: skip


def joined(parts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """The tiles of all seeds, one after another."""
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def conditions_of(told: Asked) -> dict[str, bool]:
    """What the method needs, kind by kind, and whether it is so."""
    found = {}
    for kind in KINDS:
        one = told[kind]
        less = [empty - true for empty, true in zip(one["empty"], one["true"], strict=True)]
        found |= {
            f"the gap points to the true mask, {kind}": facts(one["toward"])["t"] > 2,
            f"the true mask stays more as it is than an empty one, {kind}": facts(less)["t"] > 2,
            f"larger gaps mean worse masks, {kind}": correlation(one["gap"], one["missed"])[1] > 2,
        }
    return found


def correlation(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """(rank correlation, the same in its standard errors if there were none)."""
    found = results.spearman(one, other).rho
    return found, found * ((len(one) - 2) / max(1 - found**2, 1e-12)) ** 0.5


def quality(each: Sequence[Mapping[str, Any]], name: str, kind: str, score: str = "quality") -> list[float]:
    """Mean score of an operation by seed."""
    return [mean(tiles_of(found, score, levels_of(kind))) for found in operations(each, name)]


def marked(each: Sequence[Mapping[str, Any]], name: str, kind: str) -> list[float]:
    """Per cent of a tile that is marked as road, by seed."""
    return quality(each, name, kind, "marked")


def operations(each: Sequence[Mapping[str, Any]], name: str) -> list[Row]:
    """An operation's scores, seed by seed."""
    return [found["operations"][name] for found in each]


def levels_of(kind: str) -> list[str]:
    """The conditions of a kind of shift."""
    return ["clean"] if kind == "clean" else [f"{kind} {level}" for level in LEVELS]


def explained(told: Asked, each: Sequence[Mapping[str, Any]], missed: Sequence[str]) -> str:
    """Which conditions fail, what masks F leaves as they are, and which operations take quality away."""
    masks = "; ".join(
        f"under {kind} F changes the true mask by {mean(one['true']):.3f}, an empty one by "
        f"{mean(one['empty']):.3f}, the network's own by {mean(one['own']):.3f} (cosine of gap and error "
        f"{mean(one['toward']):+.2f}, rank correlation with the error "
        f"{correlation(one['gap'], one['missed'])[0]:+.2f})"
        for kind, one in told.items() if kind in KINDS
    )  # fmt: skip
    lost = "; ".join(
        f"{name} " + ", ".join(f"{change(each, name, kind):+.1f} under {kind}" for kind in KINDS)
        for name in OPERATIONS if name != NOTHING
    )  # fmt: skip
    road = "; ".join(
        f"under {kind} {mean(marked(each, NOTHING, kind)):.1f} % of a tile is marked before and "
        f"{mean(marked(each, '2 steps', kind)):.1f} % after 2 steps"
        for kind in KINDS
    )
    return f"Not met: {'; '.join(missed)}. Masks: {masks}. Change of quality: {lost}. Road: {road}."


def change(each: Sequence[Mapping[str, Any]], name: str, kind: str) -> float:
    """Of the quality by an operation, in points."""
    pairs = zip(quality(each, name, kind), quality(each, NOTHING, kind), strict=True)
    return mean([after - before for after, before in pairs])
