"""The claim `faces` (spec E7): does adaptation lower errors of ages outside the range that was learned?

The released evaluation changes three things at once: it makes steps, takes batch statistics while it makes
them, and scores the second application. Here each stands alone, and each pair of an application and of
statistics is judged by itself against the same without steps. Fixed before the first run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from paperkit import reproduction
from torch import Tensor

from ittt import faces
from ittt.faces import RANGE, YEARS, Faces, years
from ittt.guard import harmless_lr
from ittt.model import ITTT
from ittt.protocol import facts
from ittt.settings import Settings
from ittt.task_config import FacesConfig
from ittt.task_loop import fit
from ittt.weights import restate

RECIPE = FacesConfig()
LEVELS = {"1 to 5": (1, 5), "6 to 10": (6, 10), "11 to 20": (11, 20), "over 20": (21, 200)}
"""Years between an age and the range."""
BATCH, BATCHES = 16, (4, 8, 16)
"""The main batch size, and those of the released form (the paper's)."""
OFFICIAL = Settings(
    steps=2, lr=5e-4, norm="batch-frozen", score="second", carry_state=True, rollback=False, measure=False
)
"""The age notebook: batch statistics while adapting, affine weights frozen, the second pass scored."""
ALONE = replace(OFFICIAL, carry_state=False)
SCORES, NORMS = ("first", "second"), ("eval", "batch", "batch-frozen")


def way(score: str, norm: str, steps: int) -> str:
    """The name of a row; frozen batch statistics without steps are those of eval."""
    return f"{score} pass, {'eval' if norm == 'batch-frozen' and not steps else norm}, {steps} steps"


WAYS: dict[str, Settings] = {
    way(score, norm, steps): replace(ALONE, score=score, norm=norm, steps=steps)  # pyright: ignore
    for score in SCORES for norm in NORMS for steps in (0, 2) if (norm, steps) != ("batch-frozen", 0)
} | {"released": OFFICIAL, "released, F not frozen": replace(OFFICIAL, anchor="none")}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "F not frozen": {"anchor": "none"}, "shuffled": {"control": "shuffled"}, "random": {"control": "random"},
    "no gradient through F": {"through_anchor": False},
}  # fmt: skip
"""Of the paper's own form (first pass, stored statistics, 2 steps): Eq. 5, two controls, appendix C.4."""
BASE, PAPER = way("first", "eval", 0), way("first", "eval", 2)
WAYS |= {f"{PAPER}, {word}": replace(WAYS[PAPER], **change) for word, change in CHANGES.items()}
PAIRS = {way(score, norm, 2): way(score, norm, 0) for score in SCORES for norm in NORMS}
"""What is judged: a row with steps -> the same pass and statistics without."""


def predicted(net: ITTT, x: Float[Tensor, "n 3 h w"], settings: Settings, size: int) -> Float[Tensor, "n 1"]:
    """Predictions in units of `YEARS`, in batches of `size`."""
    adapter = net.adapter(settings)
    return torch.cat([adapter(part).prediction for part in x.split(size)])


def levels(outside: Faces) -> dict[str, Tensor]:
    """Which faces are how far from the range, and on which side."""
    age = (outside.y * YEARS)[:, 0].round()
    away = torch.maximum(RANGE[0] - age, age - RANGE[1])
    found = {name: (away >= low) & (away <= high) for name, (low, high) in LEVELS.items()}
    return found | {"younger": age < RANGE[0], "older": age > RANGE[1]}


Row = dict[str, float]
"""Mean absolute error in years in range, out of range, and by level; "signed": mean error with its sign."""


def row(parts: faces.Parts, predict: Callable[[Tensor], Tensor]) -> Row:
    """Means of the errors of faces in range and out of range."""
    near = years(predict(parts.inside.x), parts.inside.y)
    prediction, y = predict(parts.outside.x), parts.outside.y
    far, signed = years(prediction, y), YEARS * (prediction - y)[:, 0]
    found = {"in range": float(near.mean()), "out of range": float(far.mean())}
    for name, chosen in levels(parts.outside).items():
        found |= {name: float(far[chosen].mean()), f"signed, {name}": float(signed[chosen].mean())}
    return found


def errors(seed: int) -> dict[str, Row]:
    """Every row of `WAYS`, the plain twin, two more ways, and mean gaps."""
    config = replace(RECIPE, seed=seed)
    parts = faces.load(config)
    net, plain = faces.build(config, parts), faces.plain_twin(config, parts)
    fit(net, faces.loss(config, net, parts), faces.length(config), config.lr)
    fit(plain, faces.plain_loss(config, plain, parts), faces.length(config), config.lr)
    found: dict[str, Row] = {}

    def note(name: str, settings: Settings, size: int = BATCH) -> None:
        found[f"{name}, batches of {size}"] = row(
            parts, partial(predicted, net, settings=settings, size=size)
        )

    for name, settings in WAYS.items():
        for size in BATCHES if name == "released" else [BATCH]:
            note(name, settings, size)
    clean = list(zip(parts.clean.x.split(BATCH), parts.clean.y.split(BATCH), strict=True))
    rate = harmless_lr(net, clean, WAYS[PAPER], years)
    note(f"{PAPER}, rate by the no-harm rule", replace(WAYS[PAPER], lr=rate))
    found["plain network"] = row(parts, lambda x: torch.cat([plain(part) for part in x.split(256)]))
    middle = parts.learned.y.median()
    found["the median age, always"] = row(parts, lambda x: middle.expand(len(x), 1))
    found["gap"] = {"rate by the no-harm rule": rate} | {
        where: float(YEARS * torch.cat([net.gap(x) for x in part.x.split(256)]).mean())
        for where, part in (("in range", parts.inside), ("out of range", parts.outside))
    }
    restate(net, parts.learned.x.split(250))
    for name in (BASE, PAPER):
        note(f"{name}, restated statistics", WAYS[name])
    return found


def claim(seeds: int) -> dict[str, Any]:
    """Each pass under each kind of statistics with steps against without; the released form beside."""
    each = [reproduction.remember("ittt", f"faces {seed}", partial(errors, seed)) for seed in range(seeds)]
    names = [name for name in each[0] if name != "gap"]

    def of(name: str, where: str) -> list[float]:
        return [found[name][where] for found in each]

    def less(name: str, other: str, where: str = "out of range") -> dict[str, float]:
        return facts([a - b for a, b in zip(of(name, where), of(other, where), strict=True)])

    def sized(name: str) -> str:
        return f"{name}, batches of {BATCH}"

    judged = {name: less(sized(name), sized(base)) for name, base in PAIRS.items()}
    least = min(judged, key=lambda name: -judged[name]["t"])
    config, parts = RECIPE, faces.load(RECIPE)
    return {
        "claim": "Two steps of adaptation lower the error of ages outside the range of training ages, "
        "whichever application is scored and whichever batch statistics are used",
        "source": "section 4.3; nikitadurasov/ittt, exps/age/eval_ittt.ipynb",
        "data": f"{parts.name}, {config.inside} in range and {config.outside} outside to test on",
        "metric": "mae_out_of_range", "unit": "years", "better": "lower",
        "ours": of(sized(least), "out of range"),
        "against": (f"without steps: {PAIRS[least]}", of(sized(PAIRS[least]), "out of range")),
        "arms": {
            f"{name}, {where}": of(name, where) for name in names for where in ("out of range", "in range")
        },
        "paper_value": (11.61, "output of the age notebook at batches of 16; 12.51 not adapted"),
        "criterion": f"first and second pass, stored statistics, the batch's, and the batch's with affine "
        f"weights frozen, batches of {BATCH}: error out of range with 2 steps of 5e-4 below that without by "
        "> 2 standard errors (ours is the least of the six)",
        "statistic": -judged[least]["t"], "threshold": 2.0,
        "explanation": why(each, judged) if judged[least]["t"] > -2 else "",
        "details": {
            "steps_against_none": judged,
            "difference_to_unadapted_first_pass": {
                name: {where: less(name, sized(BASE), where) for where in ("in range", "out of range")}
                for name in names if name != sized(BASE)
            },
            "by_distance_from_the_range": {
                name: {level: sum(of(sized(name), level)) / seeds for level in each[0][sized(BASE)]}
                for name in (BASE, PAPER, "released")
            },
            "gap_in_years": {
                where: facts([found["gap"][where] for found in each])
                for where in ("in range", "out of range")
            },
            "rates_by_the_no_harm_rule": [found["gap"]["rate by the no-harm rule"] for found in each],
            "reduced": f"a ResNet-18 of widths {faces.WIDTHS} from scratch (published: ResNet-152, code: "
            f"ResNet-18 with ImageNet weights), {config.epochs} epochs, 64 px, {config.train:,} faces; "
            "all ages outside the range (the notebook: 10 to 20 and 50 to 70)",
        },
    }  # fmt: skip


def why(each: Sequence[Mapping[str, Row]], judged: Mapping[str, Mapping[str, float]]) -> str:
    """What kept the claim from holding, from the rows themselves."""

    def mean(name: str, where: str) -> float:
        return sum(found[f"{name}, batches of {BATCH}"][where] for found in each) / len(each)

    missed = [name for name, fact in judged.items() if fact["t"] > -2]
    off = {side: mean(BASE, f"signed, {side}") for side in ("younger", "older")}
    moved = {side: mean(PAPER, f"signed, {side}") - away for side, away in off.items()}
    return (
        f"Not lower by two standard errors: {'; '.join(missed)}. Without steps faces younger than the range "
        f"are taken for {off['younger']:+.1f} years, older ones for {off['older']:+.1f} years of what they "
        f"are; the paper's own form moves the younger by {moved['younger']:+.1f} and the older by "
        f"{moved['older']:+.1f} years."
    )
