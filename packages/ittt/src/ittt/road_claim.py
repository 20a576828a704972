"""The claim `roads` (spec E8): does adaptation raise the quality of road masks under noise and haze?

Every test image is shown clean and, under each kind of shift, at one level, which goes round from seed to
seed; levels are those of the generator, never of an error, and no mask of a shifted tile is read but to score
it. Criterion, seeds, settings and rows were fixed before the first run.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from paperkit import reproduction, results
from torch import Tensor, nn

from ittt import roads
from ittt.baselines import Predict, method
from ittt.guard import harmless_lr
from ittt.model import ITTT
from ittt.protocol import facts
from ittt.road_metrics import Scores, scores
from ittt.roads import KINDS, LEVELS, Parts, Tiles, shift
from ittt.settings import Settings
from ittt.task_config import RoadsConfig
from ittt.task_loop import fit
from ittt.weights import restate

RECIPE = RoadsConfig(data="aerial-roads")
STEP = Settings(steps=2, lr=1e-3, rollback=False, measure=False)
"""Spec A12 for images: 1 to 3 steps of 1e-3; the paper's figure 9 shows 5 and 15, its table says nothing."""
BATCHES, MAIN, STREAM = (4, 8, 16), 16, 4
"""The paper's batch sizes, that of the controls, and that of the streams."""
RATES = (1e-4, 1e-3)
"""Of the streams; the paper gives none."""
STREAMED = f"online {STREAM}, lr {RATES[0]:g}"
PUBLISHED = {"none": 39.5, "it3 4": 46.4, "it3 8": 48.5, "it3 16": 48.7, "online": 69.8}
"""Quality in table 1: another network, other images, other shifts."""

Row = dict[str, dict[str, list[float]]]
"""Condition (clean, or kind and level) -> score -> tile by tile, in per cent; `marked`: predicted road."""

Tests = dict[str, dict[str, Tiles]]
"""Kind of shift -> condition -> tiles."""
Way = tuple[Callable[[], Predict], int]
"""What makes a method, and its batch size."""


# ---- rows --------------------------------------------------------------------------------------------------


def conditions(parts: Parts, seed: int) -> Tests:
    """Each image clean, and under each kind of shift at the level (image + seed) mod 4."""
    image = torch.arange(len(parts.test.x)) // roads.PER_IMAGE
    found: Tests = {"clean": {"clean": parts.test}}
    for kind in KINDS:
        found[kind] = {}
        for level in LEVELS:
            rows = (image + seed) % len(LEVELS) == level - 1
            x = shift(parts.test.x[rows], kind, level, seed)
            found[kind][f"{kind} {level}"] = Tiles(x, parts.test.y[rows])
    return found


def row(parts: Parts, tests: Tests, make: Callable[[], Predict], size: int) -> Row:
    """Scores of one way, in batches of `size`; it begins anew with each kind, whose levels are a stream."""
    found: Row = {}
    for levels in tests.values():
        predict = make()
        for name, tiles in levels.items():
            with torch.no_grad():
                masks = torch.cat([predict(x) for x in tiles.x.split(size)]) > 0
            told = scores(masks, tiles.y, parts.tolerance)._asdict() | {"marked": 100 * share(masks)}
            found[name] = {word: [round(value, 3) for value in each.tolist()] for word, each in told.items()}
    return found


def share(masks: Tensor) -> Float[Tensor, " n"]:
    """How much of each tile is road."""
    return masks.flatten(1).float().mean(1)


def missed(parts: Parts, logits: Tensor, y: Tensor) -> Float[Tensor, " n"]:
    """100 - quality of each tile: the error of the no-harm rule."""
    return 100 - scores(logits > 0, y > 0.5, parts.tolerance).quality


def online(lr: float) -> Settings:
    """Weights carried along a stream of growing shift, F a slow average (Eq. 7), no guard as in the paper."""
    return Settings.online(steps=STEP.steps, lr=lr, guard=0.0, rollback=False, measure=False)


def ways(net: ITTT, plain: nn.Module, rate: float, own: ITTT) -> dict[str, Way]:
    """Every row by name. `own` is the network with the stored statistics of f(x, 0)."""
    found: dict[str, Way] = {
        f"{name} {size}": (partial(method, name, net, STEP), size)
        for name in ("bn", "it3")
        for size in BATCHES
    }
    for name in ("it3-bn", "un-frozen", "shuffled", "random"):
        found[f"{name} {MAIN}"] = (partial(method, name, net, STEP), MAIN)
    others = {
        "rate by the no-harm rule": replace(STEP, lr=rate),
        "no gradient through F": replace(STEP, through_anchor=False),
    }
    for words, settings in others.items():
        found[f"it3 {MAIN}, {words}"] = (partial(method, "it3", net, settings), MAIN)
    for lr in RATES:
        found[f"online {STREAM}, lr {lr:g}"] = (partial(method, "it3", net, online(lr)), STREAM)
    for name in ("none", "it3"):
        found[f"{name} {MAIN}, restated statistics"] = (partial(method, name, own, STEP), MAIN)
    return found | {
        "none": (partial(method, "none", net, STEP), MAIN),
        "plain": (partial(method, "plain", net, STEP, plain=plain), MAIN),
        "all is road": (lambda: lambda x: torch.ones_like(x[:, :1]), MAIN),
    }


def rows(seed: int) -> dict[str, Any]:
    """Every row of one trained network, its plain twin among them; the no-harm rate, and mean gaps."""
    config = replace(RECIPE, seed=seed)
    parts = roads.load(config)
    net, plain = roads.build(config, parts), roads.plain_twin(config, parts)
    fit(net, roads.loss(config, net, parts), roads.length(config, parts), config.lr)
    fit(plain, roads.plain_loss(config, plain, parts), roads.length(config, parts), config.lr)
    clean = list(zip(parts.clean.x.split(MAIN), parts.clean.y.split(MAIN), strict=True))
    rate = harmless_lr(net, clean, STEP, partial(missed, parts))
    own = copy.deepcopy(net)
    restate(own, parts.learned.x.split(48))
    tests = conditions(parts, seed)
    gaps = {name: net.gap(tiles.x).tolist() for levels in tests.values() for name, tiles in levels.items()}
    return {"rate": rate, "gap": gaps} | {
        name: row(parts, tests, make, size) for name, (make, size) in ways(net, plain, rate, own).items()
    }


# ---- the claim ---------------------------------------------------------------------------------------------

SHIFTED = tuple(f"{kind} {level}" for kind in KINDS for level in LEVELS)


def tiles_of(found: Row, score: str, names: Sequence[str] = SHIFTED) -> list[float]:
    """A score of every tile of these conditions."""
    return [value for name in names for value in found[name][score]]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def claim(seeds: int) -> dict[str, Any]:
    """Quality with steps against without, over tiles times seeds, in batches of 4, 8 and 16."""
    each = [reproduction.remember("ittt", f"roads {seed}", partial(rows, seed)) for seed in range(seeds)]
    names = [name for name in each[0] if name not in ("rate", "gap")]

    def gain(name: str, wanted: Sequence[str] = SHIFTED, score: str = "quality") -> list[float]:
        return [
            after - before
            for found in each
            for after, before in zip(
                tiles_of(found[name], score, wanted), tiles_of(found["none"], score, wanted), strict=True
            )
        ]

    def of(name: str, score: str = "quality", wanted: Sequence[str] = SHIFTED) -> list[float]:
        return [mean(tiles_of(found[name], score, wanted)) for found in each]

    judged = {f"it3 {size}": facts(gain(f"it3 {size}")) for size in BATCHES}
    least = min(judged, key=lambda name: judged[name]["t"])
    parts = roads.load(RECIPE)
    return {
        "claim": "Two steps of adaptation raise the quality of road masks under sensor noise and haze, in "
        "batches of 4, 8 and 16",
        "source": "section 4.4, table 1",
        "data": f"{parts.name}, from the EPFL road segmentation set; noise and haze of {len(LEVELS)} levels",
        "metric": "quality_5_px", "unit": "%", "better": "higher",
        "ours": of(least), "against": ("not adapted", of("none")),
        "arms": {f"{name}, shifted": of(name) for name in names}
        | {f"{name}, clean": of(name, wanted=["clean"]) for name in names}
        | {
            f"{score} of {name}, shifted": of(name, score)
            for name in ("none", *judged, STREAMED)
            for score in Scores._fields[:2]
        },
        "paper_value": (PUBLISHED[least], f"table 1, {least}; 39.5 not adapted, 69.8 online; other images"),
        "criterion": "mean gain of quality over shifted tiles x seeds above 2 standard errors in batches of "
        "4, of 8 and of 16 (ours is the least)",
        "statistic": judged[least]["t"], "threshold": 2.0,
        "explanation": why(each, judged) if judged[least]["t"] < 2 else "",
        "details": {
            "gain_over_tiles_and_seeds": {name: facts(gain(name)) for name in names if name != "none"},
            "gain_over_seeds": {
                name: facts([a - b for a, b in zip(of(name), of("none"), strict=True)])
                for name in names if name != "none"
            },
            "gain_on_clean_tiles": {
                name: facts(gain(name, ["clean"])) for name in names if name != "none"
            },
            "quality_by_condition": {
                name: {where: mean(of(name, wanted=[where])) for where in ("clean", *SHIFTED)}
                for name in ("none", "plain", f"bn {MAIN}", f"it3 {MAIN}", STREAMED)
            },
            "gap_by_condition": {
                where: mean([value for found in each for value in found["gap"][where]])
                for where in ("clean", *SHIFTED)
            },
            "rates_by_the_no_harm_rule": [found["rate"] for found in each],
            "published_quality": PUBLISHED,
            "tolerance": f"{roads.PIXELS} px of an image as it comes, {parts.tolerance:g} px of a tile",
            "settings": {"steps": STEP.steps, "lr": STEP.lr, "optimiser": STEP.optimiser},
            "reduced": "a U-Net of 100,000 weights instead of DRU-Net, trained from scratch on 72 images; "
            "noise and haze from generators instead of another set of photographs; the set names no regions",
        },
    }  # fmt: skip


def why(each: Sequence[Mapping[str, Any]], judged: Mapping[str, Mapping[str, float]]) -> str:
    """What kept the claim from holding, from the rows themselves."""

    def marked(name: str, kind: str) -> float:
        wanted = [f"{kind} {level}" for level in LEVELS]
        return mean([value for found in each for value in tiles_of(found[name], "marked", wanted)])

    def of(name: str) -> list[float]:
        return [value for found in each for value in tiles_of(found[name], "quality")]

    least = [name for name, fact in judged.items() if fact["t"] < 2]
    parts = [
        f"under {kind} the network marks {marked('none', kind):.1f} % of a tile as road, with steps "
        f"{marked(f'it3 {MAIN}', kind):.1f} %"
        for kind in KINDS
    ]
    road = 100 * float(share(roads.load(RECIPE).test.y).mean())
    harm = "; ".join(
        f"{name} {mean([a - b for a, b in zip(of(name), of('none'), strict=True)]):+.1f}"
        for name in each[0] if name not in ("rate", "gap", "none")
    )  # fmt: skip
    return (
        f"No gain by two standard errors: {', '.join(least)}. Of the test tiles {road:.1f} % are road; "
        f"{'; '.join(parts)}. Rank correlation over tiles of the gap and what is missed of the quality: "
        f"{told_by_gap(each):+.2f}. Change of the quality: {harm}. Why: the claim roads-direction."
    )


def told_by_gap(each: Sequence[Mapping[str, Any]]) -> float:
    """Rank correlation of gap and 100 - quality, not adapted, over shifted tiles of all seeds."""
    pairs = [
        (gap, 100 - quality)
        for found in each
        for name in SHIFTED
        for gap, quality in zip(found["gap"][name], found["none"][name]["quality"], strict=True)
    ]
    return results.spearman(*zip(*pairs, strict=True)).rho
