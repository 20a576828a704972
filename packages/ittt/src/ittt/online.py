"""Online adaptation on streams of table rows (section 3.3, Eq. 7; spec E9): what keeps it from collapse.

The paper gives no decay, rate, steps or batch for its online form. Here: batches of 8, two steps, rates 1e-4
and 1e-3, and F from frozen over slow and fast averages to f itself. Streams of all seeds run side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from paperkit import rng
from paperkit.data import permutation
from torch import Tensor

from ittt.adapt import Trace, adapt
from ittt.beside import Beside, predict, stacked
from ittt.model import ITTT
from ittt.protocol import FIRST, PAPER, facts, pooled
from ittt.settings import Settings
from ittt.tables import EPOCHS, at_hand, rows_of, trials
from ittt.weights import forget

TABLES = ("diabetes", "bostonHousing", "concrete", "energy", "power-plant", "wine-quality-red")
"""The spec's six."""
ROWS, SIZE, MOST = 480, 8, 0.3
"""Rows of a stream and of a batch, and the largest share of missing entries."""
GRID = (1.0, 0.9999, 0.999, 0.99)
"""Decays of F, from frozen to fast."""
RATES = (1e-4, 1e-3)
CARRIED = replace(PAPER, steps=2, reset=False)
GUARD, LOOSE = Settings.online().guard, 0.1
"""Shares of the weights' norm at which the guard returns to the trained weights: the default, and one that
lets the stream go too far."""
HISTORY = (
    f"A first run (commit d18ca20) had the guard at {LOOSE:g}, which let the error of clean streams rise. "
    f"{GUARD:g} was chosen on seeds 100 to 105 among 0.01, 0.02, 0.03 and 0.05; the claim's seeds, rates and "
    "criterion are those of the first run."
)
STREAMS = {
    "ramp": "from none to 30 % missing, slowly",
    "clean": "nothing missing",
    "switch": "nothing missing, then 30 % at once",
    "return": "30 % missing, then nothing",
}


# ---- streams side by side ----------------------------------------------------------------------------------


def stream(
    nets: Sequence[ITTT], x: Float[Tensor, "s m d"], settings: Settings, size: int = SIZE
) -> tuple[Float[Tensor, "s m k"], Float[Tensor, " s"]]:
    """Predictions of each network on its own stream with weights that are carried, as an `Adapter` does it.

    And how often each stream's guard returned to the trained weights.
    """
    copies = Beside(nets[0], stacked(nets), torch.arange(len(nets)), settings)
    returned, found = torch.zeros(len(nets)), []
    with torch.inference_mode(False), torch.enable_grad():
        for part in x.split(size, 1):
            trace, far = guarded(copies, part.flatten(0, 1), settings)
            returned += far
            found.append(trace.after.prediction.unflatten(0, (len(nets), -1)))
    return torch.cat(found, 1), returned


def guarded(copies: Beside, x: Tensor, settings: Settings) -> tuple[Trace, Tensor]:
    """One batch of every stream; those that went too far adapt to it anew from the trained weights."""
    forget(copies.optimiser)
    before = copies.snapshot() if settings.guard else []
    trace = adapt(copies, x, settings)
    far = torch.zeros(copies.n, dtype=torch.bool)
    if settings.guard:
        far = copies.distance() > settings.guard * copies.length()
    if bool(far.any()):
        copies.restore(torch.ones_like(far), before)
        copies.restore(far, None)
        forget(copies.optimiser)
        trace = adapt(copies, x, settings)
    return trace, far


def streams(name: str, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Rows and labels of each stream: the test rows in random order, over and over, entries missing anew."""
    rows = rows_of(name, seed)
    rounds = -(-ROWS // len(rows.x_test))
    orders = [permutation(len(rows.x_test), seed, "stream", number) for number in range(rounds)]
    order = torch.cat([torch.from_numpy(each) for each in orders])[:ROWS]
    x, y = rows.x_test[order], rows.y_test[order]
    draws = torch.rand(x.shape, generator=rng.generator(seed, 0, "missing in the stream"))
    time = torch.arange(ROWS) / (ROWS - 1)
    late = (time > 0.5).float()
    shares = {"ramp": time, "clean": 0 * time, "switch": late, "return": 1 - late}
    return {kind: (torch.where(draws < MOST * share[:, None], 0.0, x), y) for kind, share in shares.items()}


# ---- the claim ---------------------------------------------------------------------------------------------


def ways() -> dict[str, Settings]:
    """Every form of F at every rate, and the guarded ones."""
    found: dict[str, Settings] = {}
    for lr in RATES:
        for decay in GRID:
            anchor = "frozen" if decay == 1 else "ema"
            found[f"F decays {decay:g}, lr {lr:g}"] = replace(CARRIED, anchor=anchor, decay=decay, lr=lr)
        found[f"F is f, lr {lr:g}"] = replace(CARRIED, anchor="none", lr=lr)
        for word, guard in (("guard", GUARD), (f"guard at {LOOSE:g}", LOOSE)):
            found[f"F decays 0.99, lr {lr:g}, {word}"] = replace(
                CARRIED, anchor="ema", decay=0.99, lr=lr, guard=guard
            )
    return found


def online(seeds: int, names: Sequence[str] = ()) -> dict[str, Any]:
    """E9: a slower F is safer, without a guard the stream collapses, and the guard keeps it."""
    names = names or [name for name in TABLES if name in at_hand()]
    found = {name: changes(name, seeds) for name in names}
    cells = {
        f"{way}, {kind}": pooled([found[name][way][kind] for name in names])
        for way in next(iter(found.values()))
        for kind in STREAMS
    }
    verdict = {cell: facts(values) for cell, values in cells.items()}
    clean = [f"F decays {decay:g}, lr {RATES[0]:g}, clean" for decay in GRID]
    ends = facts([fast - slow for fast, slow in zip(cells[clean[-1]], cells[clean[0]], strict=True)])
    fast = f"F decays 0.99, lr {RATES[1]:g}"
    bare, kept = (verdict[f"{fast}{guard}, clean"] for guard in ("", ", guard"))
    checks = {
        "error grows as F gets faster (clean stream, lr 1e-4)": all(
            verdict[a]["mean"] <= verdict[b]["mean"] for a, b in pairwise(clean)
        ),
        "its ends differ by more than 2 standard errors": ends["t"] > 2,
        "without guard a fast F collapses at lr 1e-3 (error up by 20 % and more)": bare["mean"]
        - 2 * bare["se"] > 20,
        "with it the error stays below +5 %": kept["high"] < 5,
    }  # fmt: skip
    missed = [check for check, passed in checks.items() if not passed]
    return {
        "claim": "Carrying weights on is safe only with a slow anchor: a fast one collapses, which a guard "
        "prevents",
        "source": "section 3.3, Eq. 7, whose settings the paper does not give; spec E9",
        "data": f"streams of {ROWS} rows of {', '.join(names)}, batches of {SIZE}; change of the error on "
        "the second half against the same network not adapted",
        "metric": "change_of_mean_absolute_error", "unit": "%", "better": "lower",
        "ours": cells[f"{fast}, guard, clean"],
        "against": ("without the guard", cells[f"{fast}, clean"]),
        "arms": cells,
        "criterion": "; ".join(checks) + " (the statistic counts how many hold)",
        "statistic": len(checks) - len(missed), "threshold": len(checks),
        "explanation": f"Does not hold: {'; '.join(missed)}." if missed else "",
        "details": {
            "checks": checks, "history": HISTORY, "streams": STREAMS, "cells": verdict, "ends": ends,
            "settings": {name: vars(way) for name, way in ways().items()},
            "online_minus_offline": against_offline(cells),
            "by_table": {
                name: {
                    f"{way}, {kind}": facts(values)["mean"]
                    for way, each in rows.items()
                    for kind, values in each.items()
                }
                for name, rows in found.items()
            },
        },
    }  # fmt: skip


def against_offline(cells: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Weights carried on against weights put back after each batch, at the same rate; negative is better."""
    found = {}
    for lr in RATES:
        for way in (name for name in ways() if f"lr {lr:g}" in name):
            for kind in STREAMS:
                pairs = zip(cells[f"{way}, {kind}"], cells[f"offline, lr {lr:g}, {kind}"], strict=True)
                found[f"{way}, {kind}"] = facts([carried - back for carried, back in pairs])
    return found


def changes(name: str, seeds: int) -> dict[str, dict[str, list[float]]]:
    """Form of F -> stream -> change of the second half's error against no adaptation, per cent, by seed."""
    print(f"  {name}", flush=True)
    found = trials(name, seeds)[EPOCHS[0]]
    made = [streams(name, seed) for seed in range(FIRST, FIRST + seeds)]
    x = torch.cat([torch.stack([each[kind][0] for each in made]) for kind in STREAMS])
    y = torch.cat([torch.stack([each[kind][1] for each in made]) for kind in STREAMS])
    nets = [trial.net for trial in found] * len(STREAMS)
    before = torch.stack([net(rows) for net, rows in zip(nets, x, strict=True)])
    predictions = {way: stream(nets, x, settings)[0] for way, settings in ways().items()}
    for lr in RATES:
        predictions[f"offline, lr {lr:g}"] = predict(nets, x, SIZE, replace(PAPER, steps=2, lr=lr)).prediction
    base = late_error(before, y, seeds)
    return {
        way: {
            kind: (100 * (error - base[kind]) / base[kind].mean()).tolist()
            for kind, error in late_error(values, y, seeds).items()
        }
        for way, values in predictions.items()
    }


def late_error(predictions: Tensor, y: Tensor, seeds: int) -> dict[str, Tensor]:
    """Mean absolute error on the second half of each stream, by seed; a collapse counts as finite."""
    error = (predictions - y).abs()[:, ROWS // 2 :].mean((1, 2)).nan_to_num(1e6, posinf=1e6).clamp_max(1e6)
    return dict(zip(STREAMS, error.view(len(STREAMS), seeds), strict=True))
