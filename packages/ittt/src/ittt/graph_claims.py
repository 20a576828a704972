"""Claims about graphs (section 4.5, table 1; spec E6): shapes better than any that were learned from.

Criteria, recipes, seeds and parts were fixed before the runs. Labels define the shift here: adaptation would
have to predict beyond the range of all labels seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from paperkit import reproduction
from torch import Tensor

from ittt import graphs
from ittt.adapt import Adapted
from ittt.baselines import VARIANTS, method
from ittt.graph_config import AIRFOILS, CARS, GraphConfig
from ittt.graph_data import LEVELS, Parts, Shapes
from ittt.graphs import Trained, by_level, predicted, tested
from ittt.protocol import facts, relative
from ittt.settings import Settings

PAPER = Settings(steps=1, lr=2e-4, rollback=False)
"""The step of the public airfoils notebook (spec A12), without this package's safeguards."""
MORE = {
    "5 steps": replace(PAPER, steps=5),
    "20 steps": replace(PAPER, steps=20),
    "no gradient through F": replace(PAPER, through_anchor=False),
    "gated": replace(PAPER, gate=0.95),
}
"""Other ways on the same networks, reported; gated: shapes are left alone whose gap is no larger than 95 % of
the held-out ones'."""
RECIPES: dict[str, GraphConfig] = {"airfoils": AIRFOILS["small"][0], "cars": CARS["small"][0]}
BATCHES: dict[str, tuple[int, ...]] = {"airfoils": (1, 4, 16), "cars": (1, 2, 4)}
"""Test shapes that are adapted to together, as in table 1."""
ONLINE = {
    f"online, F decays {decay:g}": replace(PAPER, reset=False, anchor="ema", decay=decay)
    for decay in (1.0, 0.999, 0.99)
}
"""Weights that are carried along a stream; a decay of 1 is a frozen F."""
BOUND = 5.0
"""Per cent of the error in range that the upper end of its 95 % interval must stay below (spec 8)."""
PUBLISHED = {
    "airfoils": (100 * (37.4 / 38.2 - 1), "table 1: 38.2 -> 37.6, 37.5, 37.4 at 1, 4, 16; online 34.1"),
    "cars": (100 * (0.412 / 0.501 - 1), "table 1: 0.501 -> 0.446, 0.424, 0.412 at 1, 2, 4; online 0.385"),
}

Row = dict[str, float]
"""Errors by place (inside, outside, each level), and gaps where they are told."""


# ---- one network -------------------------------------------------------------------------------------------


def figures(name: str, seed: int) -> dict[str, Row]:
    """Every way's errors with one seed's networks, in the labels' own units."""
    config = replace(RECIPES[name], seed=seed)
    trained = graphs.restored(reproduction.trained("ittt", config, graphs.train, "small"))
    torch.set_num_threads(1)
    shapes, parts = graphs.load(config)
    largest, found = BATCHES[name][-1], {}
    for way in ("plain", "none"):
        ask = method(way, trained.net, PAPER, plain=trained.plain)
        found[way] = by_level(
            shapes, parts, *(predicted(ask, shapes, rows, len(rows)) for rows in tested(parts))
        )
    for size in BATCHES[name]:
        for way, changes in VARIANTS.items():
            if way != "it3-bn" and (way, size) != ("shuffled", 1):
                settings = replace(PAPER, **changes)
                found[f"{way}, batches of {size}"] = adapted(trained, shapes, parts, settings, size)
    for words, settings in MORE.items():
        found[f"it3, {words}, batches of {largest}"] = adapted(trained, shapes, parts, settings, largest)
    for words, settings in ONLINE.items():
        found[words] = streamed(trained, shapes, parts, settings, 4)
    return found


def adapted(trained: Trained, shapes: Shapes, parts: Parts, settings: Settings, size: int) -> Row:
    """Errors and mean gaps before and after, in batches of `size`."""
    near, far = (
        asked(trained, shapes, [rows for rows in part.split(size)], settings) for part in tested(parts)
    )
    row = by_level(shapes, parts, joined(near), joined(far))
    for place, batches, rows in zip(("inside", "outside"), (near, far), tested(parts), strict=True):
        before = torch.cat([found.before for found in batches])
        row[f"too high, {place}"] = shapes.unit * float((before - shapes.y[rows]).mean())
        row[f"moved up, {place}"] = shapes.unit * float((joined(batches) - before).mean())
        row[f"gap before, {place}"] = shapes.unit * mean([found.gap_before for found in batches])
        row[f"gap after, {place}"] = shapes.unit * mean([found.gap_after for found in batches])
    return row


def streamed(trained: Trained, shapes: Shapes, parts: Parts, settings: Settings, size: int) -> Row:
    """Errors where weights are carried on: first shapes in range, then from mild to far out (section 3.3)."""
    ranked = shapes.y[parts.outside, 0].argsort(descending=not shapes.high_is_outside, stable=True)
    order = torch.cat([parts.inside, parts.outside[ranked]])
    found = joined(asked(trained, shapes, list(order.split(size)), settings))
    near, far = found.split([len(parts.inside), len(parts.outside)])
    return by_level(shapes, parts, near, far[ranked.argsort()])


def asked(
    trained: Trained, shapes: Shapes, rows: Sequence[Int64[Tensor, " m"]], settings: Settings
) -> list[Adapted]:
    """What an adapter says of each batch."""
    adapter = trained.net.adapter(settings, trained.calibration)
    return [adapter(shapes.batch(part)) for part in rows]


def joined(batches: Sequence[Adapted]) -> Float[Tensor, "m 1"]:
    """The predictions of all batches."""
    return torch.cat([found.prediction for found in batches])


def mean(parts: Sequence[Tensor]) -> float:
    """Of all entries."""
    return float(torch.cat(list(parts)).mean())


# ---- all seeds ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seeds:
    """The figures of every seed."""

    each: list[dict[str, Row]]

    def of(self, way: str, place: str = "outside") -> list[float]:
        """One figure, seed by seed."""
        return [row[way][place] for row in self.each]

    def change(self, way: str, place: str = "outside") -> list[float]:
        """Change of the error against the same network not adapted, per cent of it."""
        return relative(self.of(way, place), self.of("none", place))

    def less(self, one: list[float], other: list[float]) -> dict[str, float]:
        """Facts about a paired difference."""
        return facts([a - b for a, b in zip(one, other, strict=True)])


def conditions(found: Seeds, sizes: Sequence[int]) -> dict[str, bool]:
    """What the claim asks for (spec E6), and whether it is so."""
    gap = f"it3, batches of {sizes[-1]}"
    asked_ = {
        "gap outside above the gap in range": found.less(
            found.of(gap, "gap before, outside"), found.of(gap, "gap before, inside")
        )["t"] > 2
    }  # fmt: skip
    for size in sizes:
        way = f"it3, batches of {size}"
        after, before = found.of(way, "gap after, outside"), found.of(way, "gap before, outside")
        asked_[f"error outside falls, batches of {size}"] = facts(found.change(way))["t"] < -2
        asked_[f"gap outside falls, batches of {size}"] = found.less(after, before)["t"] < -2
        asked_[f"no harm in range, batches of {size}"] = facts(found.change(way, "inside"))["high"] < BOUND
    return asked_


def explained(found: Seeds, missed: Sequence[str], sizes: Sequence[int]) -> str:
    """Why conditions are missed, by what was measured; empty where none is."""
    if not missed:
        return ""
    size = sizes[-1]
    way = f"it3, batches of {size}"
    error, gap, high, up, up_inside = (
        facts(found.of(*words))["mean"]
        for words in (
            ("none", "outside"), (way, "gap before, outside"), (way, "too high, outside"),
            (way, "moved up, outside"), (way, "moved up, inside"),
        )
    )  # fmt: skip
    others = [f"it3, {words}, batches of {size}" for words in MORE] + list(ONLINE)
    others += [f"{control}, batches of {size}" for control in ("un-frozen", "shuffled", "random")]
    changed = "; ".join(f"{other}: {both(found, other)}" for other in (way, *others, "plain"))
    why = reason(error, gap, high, up, up_inside)
    return (
        f"Not met: {'; '.join(missed)}. {why} Change of the error outside, and in range, by ways that were "
        f"tried on the same networks: {changed}."
    )


def reason(error: float, gap: float, high: float, up: float, up_inside: float) -> str:
    """What mean error, gap, excess of predictions and their movement outside and in range say of a step."""
    found = (
        f"Outside, predictions are {abs(high):.3g} too {'high' if high > 0 else 'low'} on average (mean "
        f"error {error:.3g}), and the step moves them {'up' if up > 0 else 'down'} by {abs(up):.2g}."
    )
    if gap < error / 10:
        found += f" The gap is {gap:.2g}: fed its own prediction the network confirms it, right or wrong."
    if up * up_inside > 0 and abs(up_inside) > abs(up) / 4:
        found += (
            f" In range it moves them the same way, by {abs(up_inside):.2g}: it shifts all predictions, "
            "whether they are right or wrong."
        )
    if high * up > 0:
        found += " The step leads away from the labels: the gap does not know on which side they lie."
    elif abs(up) < abs(high) / 10:
        found += " The direction is right and the step too short to matter."
    return found


def both(found: Seeds, way: str) -> str:
    """The changes outside and in range."""
    return f"{percent(found.change(way))}, {percent(found.change(way, 'inside'))}"


def percent(changes: Sequence[float]) -> str:
    """A mean change and its standard error."""
    told = facts(changes)
    return f"{told['mean']:+.2f} ± {told['se']:.2f} %"


def claim(name: str, words: str, seeds: int) -> dict[str, Any]:
    """The record of one set of graphs; `words` are its claim."""
    shapes, parts = graphs.load(RECIPES[name])
    found = Seeds(
        [
            reproduction.remember("ittt", f"{name} {seed}", partial(figures, name, seed))
            for seed in range(seeds)
        ]
    )
    sizes = BATCHES[name]
    headline = f"it3, batches of {sizes[-1]}"
    asked_ = conditions(found, sizes)
    missed = [condition for condition, holds in asked_.items() if not holds]
    ways = [way for way in found.each[0] if way not in (headline, "none")]
    return {
        "source": "section 4.5; table 1; figures 2 and 11", "metric": "change_of_mean_absolute_error",
        "unit": "%", "better": "lower", "claim": words,
        "data": f"{shapes.name}; {graphs.words_of_parts(parts)}; change against the same network not adapted",
        "ours": found.change(headline),
        "against": (f"random, batches of {sizes[-1]}", found.change(f"random, batches of {sizes[-1]}")),
        "arms": {f"{way}, outside": found.change(way) for way in (headline, *ways)}
        | {f"{way}, in range": found.change(way, "inside") for way in (headline, *ways)},
        "paper_value": PUBLISHED[name],
        "criterion": f"1 step of 2e-4; at batches of {', '.join(map(str, sizes))}: error outside lower than "
        "not adapted by > 2 standard errors, gap outside falls by > 2, upper end of the 95 % interval of the "
        f"change in range below {BOUND:g} %; and the gap outside is above that in range by > 2 (conditions "
        "that hold, of all)",
        "statistic": len(asked_) - len(missed), "threshold": len(asked_), "stand_in": shapes.stand_in,
        "explanation": explained(found, missed, sizes),
        "details": {
            "conditions": asked_,
            "change_of_the_error_outside": {way: facts(found.change(way)) for way in (headline, *ways)},
            "change_of_the_error_in_range": {
                way: facts(found.change(way, "inside")) for way in (headline, *ways)
            },
            "errors": {
                way: {
                    place: facts(found.of(way, place))
                    for place in ("inside", "outside", *(f"level {level}" for level in range(1, LEVELS + 1)))
                }
                for way in ("plain", "none", headline)
            },
            "predictions": {
                f"{what}, {place}": facts(found.of(headline, f"{what}, {place}"))
                for what in ("too high", "moved up") for place in ("inside", "outside")
            },
            "gaps": {
                f"{moment}, {place}": facts(found.of(headline, f"gap {moment}, {place}"))
                for moment in ("before", "after") for place in ("inside", "outside")
            },
        },
    }  # fmt: skip


def airfoils(seeds: int) -> dict[str, Any]:
    """Airfoils of a higher lift-to-drag ratio than any learned from."""
    words = (
        "Airfoils better than any learned from: one step on the gap lowers the error of their lift-to-drag "
        "ratio, and does no harm in range"
    )
    return claim("airfoils", words, seeds)


def cars(seeds: int) -> dict[str, Any]:
    """Bodies of revolution that stand in for cars, of a lower drag than any learned from."""
    words = (
        "Bodies of less drag than any learned from, in the place of cars: one step on the gap lowers the "
        "error of their drag, and does no harm in range"
    )
    return claim("cars", words, seeds)
