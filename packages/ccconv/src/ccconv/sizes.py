"""The learned claims about sizes: unseen image sizes, hidden sizes, ensembles, gradual networks, shifts.

Each function returns the record's fields for `ccconv reproduce`. Criteria, seeds and sizes stand here and
were fixed before the runs, after a pilot at seed 100 that no claim uses. All claims share the networks of
`trained`, which are trained once per commit. Held-out images: the 500 test digits.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from paperkit import reproduction, results
from torch import Tensor, nn
from torch.nn import functional as F

from ccconv import data
from ccconv.config import TRAIN, TrainConfig
from ccconv.evaluate import Maps, chains, ensemble
from ccconv.model import Classifier, cost, matched, parameters
from ccconv.train import accuracy, load, predict, train

SIZES = (8, 9, 11, 13, 14, 16, 18, 22, 26, 29, 30, 32)
"""Image sides of the tests; of these training sees 16 only, in either regime."""
TIMES = 2.776
"""Two-sided 95 % point of t for five pairs: "better" is written only beyond it."""
DIGITS = replace(TRAIN["small"][0], log_every=1000, test_every=1000, save_every=1000)
FIXED, VARIED = (), DIGITS.draw
REGIMES = {"fixed": FIXED, "varied": VARIED}
SOURCE = "abstract (any size at inference, dynamic shapes, gradual networks); no figure of the paper was read"
Figures = dict[str, list[float]]


# ---- The networks ----------------------------------------------------------------------------------------


def arms() -> dict[str, TrainConfig]:
    """Every network of the family by name, without its seed."""
    kinds: dict[str, dict[str, Any]] = {
        "cc interp": {"layer": "cc"},
        "cc mlp": {"layer": "cc", "kernel": "mlp"},
        "strided": {"layer": "strided"},
        "strided wide": {"layer": "strided"},
        "resize-conv": {"layer": "resize-conv"},
        "conv-resize": {"layer": "conv-resize"},
    }
    made = {
        f"{name}, {regime}": replace(DIGITS, draw=draw, **words)
        for name, words in kinds.items()
        for regime, draw in REGIMES.items()
    }
    wanted = parameters(Classifier(made["cc mlp, fixed"], 1, 10))
    for regime in REGIMES:
        made[f"strided wide, {regime}"] = matched(made[f"strided, {regime}"], wanted, 1, 10)
    for name in ("cc interp", "cc mlp", "resize-conv", "conv-resize"):
        made[f"{name}, loose"] = replace(made[f"{name}, varied"], loose=0.3)
    made["blur, fixed"] = replace(DIGITS, layer="blur", draw=FIXED)
    for kernel in ("interp", "mlp"):
        made[f"gradual {kernel}, varied"] = replace(DIGITS, kernel=kernel, maps=GRADUAL, widths=(12,) * 6)
        made[f"one step {kernel}, varied"] = replace(DIGITS, kernel=kernel, maps=ONE_STEP, widths=(14,) * 6)
    return made


GRADUAL = (16, 14, 12, 10, 9, 8)
ONE_STEP = (16, 16, 8, 8, 8, 8)
"""Six layers each; with 12 and 14 channels of `interp` their FLOPs are within 2 % of one another."""


def trained(config: TrainConfig) -> Classifier:
    """The network of a configuration, trained at this commit now or by an earlier claim."""
    return load(reproduction.trained("ccconv", config, train, "small"))[0]


@lru_cache(maxsize=1)
def held_out() -> data.Images:
    """The test digits."""
    return data.load(DIGITS, "test")


def logits(net: Classifier, size: int = DIGITS.size, maps: Maps | None = None) -> Float[Tensor, "n k"]:
    """Of all held-out digits at a side."""
    return predict(net, held_out(), size, DIGITS.margin, maps)


def right(found: Float[Tensor, "n k"]) -> float:
    """Per cent right of the held-out digits."""
    return accuracy(found, held_out())


def each_seed(names: Iterable[str], seeds: Iterable[int]) -> Iterable[tuple[int, str, Classifier]]:
    """(seed, name, network) of every arm and seed."""
    known = arms()
    for seed in seeds:
        print(f"seed {seed}", flush=True)
        for name in names:
            yield seed, name, trained(replace(known[name], seed=seed))


def compared(
    ours: Iterable[float], against: Iterable[float], better: Literal["higher", "lower"] = "higher"
) -> dict[str, float]:
    """The paired difference as plain values; positive favours ours."""
    return asdict(results.paired(ours, against, better))


def versus(found: Mapping[str, list[float]], pairs: Iterable[tuple[str, str]]) -> dict[str, dict]:
    """The paired differences of named arms."""
    return {f"{a} against {b}": compared(found[a], found[b]) for a, b in pairs}


# ---- 8.3 (1): image sizes that training never saw --------------------------------------------------------


def sweep(seeds: Iterable[int]) -> tuple[Figures, dict[str, dict[str, list[float]]]]:
    """Mean accuracy over `SIZES` per arm and seed, and the accuracies at each size."""
    seeds = list(seeds)
    names = [name for name in arms() if name.split(", ")[1] != "loose" and name.split()[0] not in ONLY_ONE]
    mean: Figures = {}
    each: dict[str, dict[str, list[float]]] = {}

    def note(name: str, values: Mapping[int, float]) -> None:
        mean.setdefault(name, []).append(sum(values.values()) / len(values))
        for size, value in values.items():
            each.setdefault(name, {}).setdefault(str(size), []).append(value)

    for _, name, net in each_seed(names, seeds):
        note(name, {size: right(logits(net, size)) for size in SIZES})
        if name == "strided, fixed":
            note("strided, input resized to 16", {size: right(at_home(net, size)) for size in SIZES})
        if name.startswith("cc "):
            chosen = chains(DIGITS.maps)
            found = {s: right(ensemble(net, held_out(), s, DIGITS.margin, chosen)) for s in SIZES}
            note(f"{name}, ensemble", found)
    return mean, each


ONLY_ONE = ("blur", "gradual", "one")


@torch.no_grad()
def at_home(net: Classifier, size: int) -> Float[Tensor, "n k"]:
    """Logits of images at a side that are first resized to the training's: what needs no new layer."""
    from ccconv.model import resized

    x = held_out().at(size, margin=DIGITS.margin)
    return torch.cat([net(resized(part, DIGITS.size)) for part in x.split(500)])


def unseen_sizes(seeds: int) -> dict[str, Any]:
    """Continuous layers against strided convs with pooling, in both training regimes."""
    mean, each = sweep(range(seeds))
    cells, passed = {}, 0
    for kernel in ("interp", "mlp"):
        for regime in REGIMES:
            ours, twin = f"cc {kernel}, {regime}", f"strided, {regime}"
            area = compared(mean[ours], mean[twin])
            home = compared(each[ours]["16"], each[twin]["16"])
            cells[ours] = {"area": area, "at_the_training_size": home}
            passed += area["t"] >= TIMES and home["mean"] >= -1
    rivals = ("strided, input resized to 16", "resize-conv, fixed", "resize-conv, varied")
    by_kernel = {
        regime: compared(mean[f"cc interp, {regime}"], mean[f"cc mlp, {regime}"]) for regime in REGIMES
    }
    known = arms()
    size = {name: Classifier(known[name], 1, 10) for name in known if name in mean}
    return {
        "claim": "At image sizes that training never saw, networks of continuous layers are right more often "
        "than strided convs with pooling, trained at one size or at several",
        "source": SOURCE, "preset": "small", "data": "digits, 1,297",
        "metric": "mean_accuracy_over_twelve_sizes", "unit": "%", "better": "higher",
        "ours": mean["cc interp, varied"],
        "against": ("strided convs, varied sizes", mean["strided, varied"]),
        "arms": dict(mean),
        "criterion": "for both kernels and both regimes: mean over twelve sizes above the strided twin's by "
        "t >= 2.776, and at most 1 point below it at the training size (cells of four that pass)",
        "statistic": passed, "threshold": 4,
        "details": {
            "rivals_first": versus(
                mean, [(f"cc {k}, {r}", b) for k in ("interp", "mlp") for r in REGIMES for b in rivals]
            ),
            "cells": cells,
            "default_kernel": {
                "rule": "mlp where its mean over sizes is above interp's by t >= 2.776 in both regimes, else "
                "interp: it has a conv's parameters and converts one exactly",
                "interp_minus_mlp": by_kernel,
                "chosen": "mlp" if all(c["t"] <= -TIMES for c in by_kernel.values()) else "interp",
            },
            "wide_twin": versus(mean, [(f"cc mlp, {r}", f"strided wide, {r}") for r in REGIMES]),
            "ensemble": versus(
                mean,
                [(f"cc {k}, {r}, ensemble", f"cc {k}, {r}") for k in ("interp", "mlp") for r in REGIMES],
            ),
            "trained_at": {"fixed": [DIGITS.size], "varied": list(VARIED)},
            "accuracy_by_size": {
                name: {s: round(sum(v) / len(v), 2) for s, v in row.items()} for name, row in each.items()
            },
            "parameters": {name: parameters(net) for name, net in size.items()},
            "flops_at_16": {name: cost(net, DIGITS.size) for name, net in size.items()},
        },
    }  # fmt: skip


# ---- 8.3 (2): hidden sizes -------------------------------------------------------------------------------

HIDDEN: tuple[Maps, ...] = (
    (12, 8, 4), (14, 8, 4), (18, 8, 4), (20, 8, 4), (16, 6, 4), (16, 7, 4), (16, 9, 4), (16, 10, 4),
    (16, 8, 3), (16, 8, 5), (12, 6, 3), (20, 10, 5),
)  # fmt: skip
"""Chains that no network was trained with exactly, each map at most 30 % off (16, 8, 4)."""


def hidden_sizes(seeds: int) -> dict[str, Any]:
    """What other hidden sizes cost at inference, at image side 16."""
    kinds = ("cc interp", "cc mlp", "resize-conv", "conv-resize")
    names = [f"{kind}, {regime}" for kind in kinds for regime in ("fixed", "varied", "loose")]
    drop: Figures = {}
    each: dict[str, dict[str, list[float]]] = {}
    for _, name, net in each_seed(names, range(seeds)):
        own = right(logits(net))
        found = {str(maps): right(logits(net, maps=maps)) for maps in HIDDEN}
        drop.setdefault(name, []).append(own - sum(found.values()) / len(found))
        for maps, value in {"own": own, **found}.items():
            each.setdefault(name, {}).setdefault(maps, []).append(value)

    def against(rival: str) -> dict[str, dict]:
        regimes = ("fixed", "varied", "loose")
        return {
            f"{kind}, {regime}": compared(drop[f"{kind}, {regime}"], drop[f"{rival}, {regime}"], "lower")
            for kind in kinds[:2]
            for regime in regimes
        }

    worst = max(sum(drop[f"{kind}, loose"]) / seeds for kind in kinds[:2])
    return {
        "claim": "Trained with hidden sizes that vary, continuous networks lose at most 2 points when these "
        "are changed by up to 30 % at inference",
        "source": SOURCE, "preset": "small", "data": "digits, 1,297", "metric": "accuracy_drop",
        "unit": "points", "better": "lower", "ours": drop["cc interp, loose"],
        "against": ("resize, then conv", drop["resize-conv, loose"]),
        "arms": dict(drop),
        "criterion": "mean drop of both kernels at most 2 points (2 minus the larger)",
        "statistic": 2 - worst, "threshold": 0,
        "details": {
            "smaller_drop_than_resize_then_conv": against("resize-conv"),
            "smaller_drop_than_conv_then_resize": against("conv-resize"),
            "accuracy_by_maps": {
                name: {m: round(sum(v) / len(v), 2) for m, v in row.items()} for name, row in each.items()
            },
            "regimes": "fixed: images of 16 px; varied: 10 to 28 px; loose: that, maps 30 % off at random",
        },
    }  # fmt: skip


# ---- 8.3 (3): ensembles of scales ------------------------------------------------------------------------


FAR_CHAINS: tuple[Maps, ...] = ((16, 8, 4), (12, 8, 4), (20, 8, 4), (16, 6, 4), (16, 10, 4))
"""As `chains`, twice as far off: a quarter, within what `loose` was trained with."""


def scale_ensemble(seeds: int) -> dict[str, Any]:
    """Five chains of hidden sizes, averaged, against one; and against five images at equal FLOPs."""
    names = [f"cc {kernel}, {regime}" for kernel in ("interp", "mlp") for regime in ("varied", "loose")]
    found: Figures = {}
    surprise: Figures = {}
    apart: Figures = {}
    for _, name, net in each_seed(names, range(seeds)):
        views = {
            "one chain": [logits(net)],
            "five chains": [logits(net, maps=maps) for maps in chains(DIGITS.maps)],
            "five far chains": [logits(net, maps=maps) for maps in FAR_CHAINS],
            "five input sizes": [logits(net, size) for size in (13, 14, 16, 18, 22)],
            "five shifts": [
                shifted_logits(net, *step) for step in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
            ],
        }
        means = {view: torch.stack(each).mean(0) for view, each in views.items()}
        chances = torch.stack(views["five chains"]).softmax(-1).mean(0)
        means["five chains, mean of probabilities"] = chances.clamp_min(1e-12).log()
        for view, mean in means.items():
            loss = float(F.cross_entropy(mean, held_out().labels))
            found.setdefault(f"{name}, {view}", []).append(right(mean))
            surprise.setdefault(f"{name}, {view}", []).append(loss)
        for view in ("five chains", "five far chains", "five input sizes", "five shifts"):
            apart.setdefault(f"{name}, {view}", []).append(disagreement(views[view]))
    ours, single = found["cc interp, loose, five chains"], found["cc interp, loose, one chain"]
    rest = ("one chain", "five input sizes", "five shifts")
    ways = ("five chains", "five far chains", "five chains, mean of probabilities")
    losses = {
        f"{name} against {view}": compared(
            surprise[f"{name}, five chains"], surprise[f"{name}, {view}"], "lower"
        )
        for name in names
        for view in rest
    }
    t = compared(ours, single)["t"]
    return {
        "claim": "One network's mean over five chains of hidden sizes is right more often than one chain",
        "source": SOURCE, "preset": "small", "data": "digits, 1,297", "metric": "accuracy_at_16",
        "unit": "%", "better": "higher", "ours": ours, "against": ("one chain", single), "arms": dict(found),
        "criterion": "paired difference of interp, trained with loose maps, at least 2.776 standard errors",
        "statistic": t, "threshold": TIMES,
        "explanation": "" if t >= TIMES else why_chains_gain_little(found, apart),
        "details": {
            "accuracy": versus(
                found, [(f"{name}, five chains", f"{name}, {view}") for name in names for view in rest]
            ),
            "other_ways_against_one_chain": versus(
                found, [(f"{name}, {way}", f"{name}, one chain") for name in names for way in ways[1:]]
            ),
            "log_loss": {name: sum(values) / len(values) for name, values in surprise.items()},
            "log_loss_of_five_chains_lower_by": losses,
            "percent_of_digits_that_the_five_name_differently": {
                name: sum(values) / len(values) for name, values in apart.items()
            },
            "chains": [list(maps) for maps in chains(DIGITS.maps)],
            "far_chains": [list(maps) for maps in FAR_CHAINS],
            "equal_flops": "five passes each; no flips, as they turn digits into others",
        },
    }  # fmt: skip


def disagreement(views: list[Float[Tensor, "n k"]]) -> float:
    """Percent of inputs to which not all views give the same class."""
    named = torch.stack([view.argmax(1) for view in views])
    return 100 * float((named != named[0]).any(0).double().mean())


def why_chains_gain_little(found: Figures, apart: Figures) -> str:
    """From the figures: how seldom chains differ, and what other chains and another mean give."""
    name = "cc interp, loose"
    single = found[f"{name}, one chain"]

    def gain(view: str) -> str:
        pair = compared(found[f"{name}, {view}"], single)
        return f"{pair['mean']:+.2f} points (t = {pair['t']:.2f})"

    seldom = sum(apart[f"{name}, five chains"]) / len(single)
    wrong = 100 - sum(single) / len(single)
    return (
        f"Five chains gain {gain('five chains')}. They are one network on almost the same maps: they name "
        f"different classes for {seldom:.1f} % of the digits; one chain has {wrong:.1f} % wrong. Two other "
        f"ways: chains twice as far apart {gain('five far chains')}, probabilities averaged instead of "
        f"logits {gain('five chains, mean of probabilities')}. Five input sizes, at the same cost, "
        f"{gain('five input sizes')}."
    )


# ---- 8.3 (4): gradual networks ---------------------------------------------------------------------------


def gradual(seeds: int) -> dict[str, Any]:
    """16, 14, 12, 10, 9, 8 against 16, 16, 8, 8, 8, 8 at equal FLOPs."""
    names = [f"{chain} {kernel}, varied" for chain in ("gradual", "one step") for kernel in ("interp", "mlp")]
    mean: Figures = {}
    home: Figures = {}
    for _, name, net in each_seed(names, range(seeds)):
        values = [right(logits(net, size)) for size in SIZES]
        mean.setdefault(name, []).append(sum(values) / len(values))
        home.setdefault(name, []).append(values[SIZES.index(16)])
    pairs = [(f"gradual {kernel}, varied", f"one step {kernel}, varied") for kernel in ("interp", "mlp")]
    known = {name: Classifier(arms()[name], 1, 10) for name in names}
    t, flops = (
        compared(mean[pairs[0][0]], mean[pairs[0][1]])["t"],
        {n: cost(net, 16) for n, net in known.items()},
    )
    return {
        "claim": "Six layers that each shrink a little are right more often than six of which one halves the "
        "map, at equal FLOPs",
        "source": SOURCE, "preset": "small, six layers", "data": "digits, 1,297",
        "metric": "mean_accuracy_over_twelve_sizes", "unit": "%", "better": "higher",
        "ours": mean[pairs[0][0]], "against": ("one step", mean[pairs[0][1]]),
        "arms": {**mean, **{f"{name}, at 16": values for name, values in home.items()}},
        "criterion": "paired difference of interp at least 2.776 standard errors",
        "statistic": t, "threshold": TIMES,
        "explanation": "" if t >= TIMES else why_gradual_gains_nothing(mean, home, flops),
        "details": {
            "over_twelve_sizes": versus(mean, pairs), "at_16": versus(home, pairs),
            "maps": {"gradual": list(GRADUAL), "one step": list(ONE_STEP)},
            "parameters": {name: parameters(net) for name, net in known.items()},
            "flops_at_16": flops,
        },
    }  # fmt: skip


def why_gradual_gains_nothing(mean: Figures, home: Figures, flops: Mapping[str, int]) -> str:
    """From the figures: the difference, the same at the training size, and with the other kernel."""

    def gain(found: Figures, kernel: str) -> str:
        pair = compared(found[f"gradual {kernel}, varied"], found[f"one step {kernel}, varied"])
        return f"{pair['mean']:+.2f} points (t = {pair['t']:.2f})"

    times = flops["gradual mlp, varied"] / flops["one step mlp, varied"]
    return (
        f"With interp the gradual chain differs by {gain(mean, 'interp')} over all sizes and by "
        f"{gain(home, 'interp')} at 16 px: antialiased layers that keep the grid lose nothing by one larger "
        f"step. With mlp {gain(mean, 'mlp')} over all sizes and {gain(home, 'mlp')} at 16 px, but "
        f"not at equal cost: sizes without a common factor give every output pixel a kernel of its own, "
        f"{times:.1f} times the FLOPs, and its function is trained at as many more offsets."
    )


# ---- 8.3 (5): shifts -------------------------------------------------------------------------------------


def shifted_logits(net: nn.Module, down: int, along: int) -> Float[Tensor, "n k"]:
    """Logits of the held-out digits at 16 px, moved by whole pixels; black moves in."""
    x = held_out().at(DIGITS.size, margin=DIGITS.margin)
    moved = torch.zeros_like(x)
    n = DIGITS.size
    moved[..., max(down, 0) : n + min(down, 0), max(along, 0) : n + min(along, 0)] = x[
        ..., max(-down, 0) : n + min(-down, 0), max(-along, 0) : n + min(-along, 0)
    ]
    with torch.no_grad():
        return net(moved)


SHIFTS = [(a * step, b * step) for step in (1, 2, 3) for a, b in ((0, 1), (0, -1), (1, 0), (-1, 0))]


def shift(seeds: int) -> dict[str, Any]:
    """How often a shift of 1 to 3 px leaves the named class as it was."""
    names = ["cc interp, fixed", "cc mlp, fixed", "strided, fixed", "blur, fixed", "resize-conv, fixed"]
    names += ["cc interp, varied", "cc mlp, varied", "strided, varied"]
    same: Figures = {}
    for _, name, net in each_seed(names, range(seeds)):
        still = logits(net).argmax(1)
        for pixels in (1, 2, 3):
            steps = [step for step in SHIFTS if max(map(abs, step)) == pixels]
            kept = [float((shifted_logits(net, *step).argmax(1) == still).double().mean()) for step in steps]
            same.setdefault(f"{name}, {pixels} px", []).append(100 * sum(kept) / len(kept))
    mean = {
        name: [sum(v) / 3 for v in zip(*(same[f"{name}, {pixels} px"] for pixels in (1, 2, 3)), strict=True)]
        for name in names
    }
    return {
        "claim": "A shift by 1 to 3 px changes the class that a continuous network names less often than "
        "that of strided convs",
        "source": SOURCE, "preset": "small", "data": "digits, 1,297", "metric": "same_class_after_shift",
        "unit": "%", "better": "higher", "ours": mean["cc interp, fixed"],
        "against": ("strided convs", mean["strided, fixed"]), "arms": {**mean, **same},
        "criterion": "paired difference of interp, trained at one size, at least 2.776 standard errors",
        "statistic": compared(mean["cc interp, fixed"], mean["strided, fixed"])["t"], "threshold": TIMES,
        "details": {
            "pairs": versus(
                mean,
                [
                    (f"cc {kernel}, fixed", f"{rival}, fixed")
                    for kernel in ("interp", "mlp")
                    for rival in ("strided", "blur", "resize-conv")
                ]
                + [(f"cc {kernel}, varied", "strided, varied") for kernel in ("interp", "mlp")],
            ),
            "shifts": "4 directions by 1, 2 and 3 px at 16 px; the digit has 2.7 px of margin",
        },
    }  # fmt: skip


CLAIMS = {
    "unseen-sizes": unseen_sizes,
    "hidden-sizes": hidden_sizes,
    "ensemble": scale_ensemble,
    "gradual": gradual,
    "shift": shift,
}
