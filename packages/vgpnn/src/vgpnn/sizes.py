"""The claims about other sizes and lengths: shortening, completeness, retarget (spec 8 (4), (7), (8)).

Used by `reproduce`. Criteria stand here in code and were fixed before the runs.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from paperkit import results
from paperkit.data.clips import list_clips
from paperkit.resize import resize
from torch import Tensor

from vgpnn import clips, metrics, tasks
from vgpnn.clips import CLIPS
from vgpnn.config import ReproduceConfig
from vgpnn.method import Problem, solve
from vgpnn.pyramid import Shape, Source, shape_of, shrink
from vgpnn.synthetic import striped

# ---- shortening


def shortening(config: ReproduceConfig) -> dict[str, Any]:
    """Half the frames give more diversity than all of them."""
    side, samples = config.side or 36, max(4, config.seeds)
    names = tuple(clip.name for clip in list_clips("hpvaegan"))
    found: dict[str, list[float]] = {}
    for name in names:
        for key, value in _shortened(clips.real(name, side), samples).items():
            found.setdefault(key, []).append(value)
        print(f"{name} done", flush=True)
    share = _share(found["half"], found["full"])
    return {
        "claim": "Asking for half the frames gives more diverse samples than asking for all",
        "source": "section on temporal diversity; spec 8 (4)", "data": clips.described(names, side),
        "metric": "diversity", "unit": "1", "better": "higher", "ours": found["half"],
        "against": ("full length", found["full"]),
        "arms": {
            "as many frames at the coarsest level as at full length": found["deep"],
            "realism at half length": found["half realism"], "realism at full length": found["full realism"],
        },
        "criterion": "diversity of the first frames larger at half length on at least 2/3 of the clips",
        "statistic": share, "threshold": 2 / 3,
        "explanation": "" if share >= 2 / 3 else _why_short(found, names),
        "details": {
            "samples": samples, "clips": list(names),
            "share_deep": _share(found["deep"], found["full"]),
            "history": "At commit a1534b5 more frames at the coarsest level (the second arm) were our "
            "default for short outputs and were judged: it failed. The paper's are the default again.",
        },
    }  # fmt: skip


def _share(a: list[float], b: list[float]) -> float:
    return float(np.mean([x > y for x, y in zip(a, b, strict=True)]))


def _shortened(x: Tensor, samples: int) -> dict[str, float]:
    """Diversity of as many first frames at full and at half length, and with a pyramid deeper in time."""
    short = (x.shape[1] // 2, *shape_of(x)[1:])
    base = tasks.settings_for("generate", shape_of(x))
    deep = replace(base, least_frames=base.least_frames * x.shape[1] // short[0])
    videos = {
        "full": [o.video[:, : short[0]] for o in tasks.generate(x, samples, 0)],
        "half": [o.video for o in tasks.generate(x, samples, 0, short)],
        "deep": [o.video for o in tasks.generate(x, samples, 0, short, settings=deep)],
    }
    against = metrics.Against(x)
    found = {name: metrics.diversity(each, x) for name, each in videos.items()}
    for name, each in videos.items():
        found[f"{name} realism"] = float(np.mean([against.realism(y) for y in each]))
    return found


def _why_short(found: dict[str, list[float]], names: tuple[str, ...]) -> str:
    rows = zip(names, found["half"], found["full"], strict=True)
    less = "; ".join(f"{name} {a:.3f} beside {b:.3f}" for name, a, b in rows if a <= b)
    return (
        f"Half length is not more diverse on: {less}. With as many frames at the coarsest level as at full "
        f"length it is on {_share(found['deep'], found['full']):.0%} of the clips. In the mean over clips: "
        f"{np.mean(found['half']):.3f} at half length, {np.mean(found['full']):.3f} at full length."
    )


# ---- completeness


WAYS = {"0.0044": tasks.ALPHA, "0.05": 0.05, "0.0005": 0.0005}
"""Values of alpha: that of the released analogies, about ten times as much, and as little."""


def completeness(config: ReproduceConfig) -> dict[str, Any]:
    """Retargeting to 0.6 of the width with and without the completeness weights, paired over clips."""
    side, names = config.side or 36, (*CLIPS, "waterfall_gt", "air_ballons_cut", "blueangels2")
    found: dict[str, list[float]] = {}
    for name in names:
        for key, value in _narrowed(clips.real(name, side)).items():
            found.setdefault(key, []).append(value)
        print(f"{name} done", flush=True)
    compared = results.paired(found["c 0.0044"], found["c inf"], "lower")
    plain = max(float(np.mean(found["r inf"])), 1e-12)
    losses = {label: float(np.mean(found[f"r {label}"])) / plain for label in WAYS}
    statistic = compared.low if losses["0.0044"] <= 1.1 else -1.0
    return {
        "claim": "The weights keep more of the source in retargeting, at equal realism",
        "source": "section on completeness; spec 8 (7)", "data": clips.described(names, side),
        "metric": "completeness", "unit": "1", "better": "lower", "ours": found["c 0.0044"],
        "against": ("no weights", found["c inf"]), "arms": found,
        "criterion": "paired 95 % interval above 0 and mean realism at most 1.1x (else -1)",
        "statistic": statistic, "threshold": 1e-12,
        "explanation": "" if statistic >= 1e-12 else _why_incomplete(found, losses),
        "details": {
            "realism_ratios": losses, "wins": compared.wins, "losses": compared.losses,
            "interval": [compared.low, compared.high],
        },
    }  # fmt: skip


def _narrowed(x: Tensor) -> dict[str, float]:
    """C and R of each way, and R of the source's own patches to each other."""
    against = metrics.Against(x)
    shape = tasks.scaled_shape(shape_of(x), (1.0, 1.0, 0.6))
    base = tasks.settings_for("retarget", shape_of(x), shape)
    videos = {
        label: tasks.retarget(x, shape, 0, replace(base, alpha=alpha)).video
        for label, alpha in {"inf": math.inf, **WAYS}.items()
    }
    found = {"r of the source": against.natural()}
    for label, y in videos.items():
        row = against.figures(y)
        found[f"c {label}"], found[f"r {label}"] = row["completeness"], row["realism"]
    return found


def _why_incomplete(found: dict[str, list[float]], losses: dict[str, float]) -> str:
    means = {key: float(np.mean(values)) for key, values in found.items()}
    own = means["r of the source"]
    ways = "; ".join(
        f"{label}: C {means[f'c {label}']:.5f}, R {means[f'r {label}']:.5f}, {loss:.1f} times that without"
        for label, loss in losses.items()
    )
    copies = sum(r <= 0.1 * s for r, s in zip(found["r inf"], found["r of the source"], strict=True))
    return (
        f"Without weights C is {means['c inf']:.5f} and R {means['r inf']:.5f}: {means['r inf'] / own:.0%} "
        f"of what the source's patches are from each other ({own:.5f}), on {copies} of {len(found['r inf'])} "
        "clips below a tenth, so nearly a piece cut out of the source, than which nothing is more real. What "
        "is squeezed in beside it must be joined, and a join costs more than a tenth of so little. By alpha: "
        f"{ways}. At 0.0044 R is {means['r 0.0044'] / own:.0%} of the source's own."
    )


# ---- retarget


def period(x: Tensor, longest: int = 40) -> int:
    """Period of a video along its rows: the first lag after a dip that correlates nearly best."""
    grey = metrics.grey(x).double()
    grey = grey - grey.mean(2, keepdim=True)
    scores = []
    for lag in range(longest + 1):
        a, b = grey[..., lag:], grey[..., : grey.shape[2] - lag]
        scores.append(float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12)))
    dip = next((lag for lag in range(1, longest) if scores[lag + 1] > scores[lag]), 1)
    most = max(scores[dip:])
    return next(lag for lag in range(dip, longest + 1) if scores[lag] >= 0.9 * most)


def at_once(x: Tensor, shape: Shape) -> Tensor:
    """Retargeting as the released command does it: the coarsest level resized in one step."""
    settings = replace(tasks.settings_for("retarget", shape_of(x), shape), coarse_steps=1)
    source = Source.of(x, settings)
    scale = source.scales[0]
    guess = shrink(resize(x, size=shape, axes=(1, 2, 3)), scale, scale.of(shape, settings.patch))
    return solve(Problem(source, [guess], shape, settings))[0].video


def retarget(config: ReproduceConfig) -> dict[str, Any]:
    """Widening a periodic texture by 1.5 keeps its period; resizing does not. Sizes come out exact."""
    errors: dict[str, list[float]] = {"ours": [], "at once": [], "resized": []}
    cases, exact = {}, []
    for seed in range(max(3, config.seeds)):
        x, piece = striped(seed)
        shape = tasks.scaled_shape(shape_of(x), (1.0, 1.0, 1.5))
        videos = {
            "ours": tasks.retarget(x, shape, 0).video,
            "at once": at_once(x, shape),
            "resized": resize(x, size=shape, axes=(1, 2, 3)),
        }
        exact.append(shape_of(videos["ours"]) == shape)
        found = {name: period(y) for name, y in videos.items()}
        cases[f"period {piece}"] = {"source": period(x), **found}
        for name, value in found.items():
            errors[name].append(abs(value - period(x)))
    holds = max(errors["ours"]) <= 1 < min(errors["resized"]) and all(exact)
    return {
        "claim": "Widening a moving periodic texture by 1.5 keeps its period, where resizing stretches it",
        "source": "section on retargeting; spec 8 (8)",
        "data": "pieces of scikit-image photographs, repeated, moving one pixel per frame",
        "metric": "period_error_px", "unit": "px", "better": "lower", "ours": errors["ours"],
        "against": ("plain resizing", errors["resized"]),
        "arms": {"coarsest level stretched at once": errors["at once"]},
        "criterion": "period within 1 px for every texture, resizing off by more than 1 px for every one, "
        "output sizes as asked (statistic: 1 when all, else 0)",
        "statistic": float(holds), "threshold": 1.0,
        "explanation": "" if holds else f"Periods: {cases}.",
        "details": {"cases": cases},
    }  # fmt: skip
