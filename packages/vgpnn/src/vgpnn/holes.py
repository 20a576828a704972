"""The claim about inpainting (spec 8 (10)). Used by `reproduce`.

How real a fill is: the mean least D of its patches to the patches of the clip that touch no hole. It is held
against two references, both of the clip itself: its patches outside the hole to *other* patches outside (a
patch is its own nearest, so those around it are left out), and what was in the hole before it was cut.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vgpnn import clips, metrics, tasks
from vgpnn.clips import CLIPS
from vgpnn.config import ReproduceConfig
from vgpnn.method import grid_of, places_of
from vgpnn.pyramid import Settings, shape_of

MOST = 1.2
"""Largest realism inside over outside."""


def inpaint(config: ReproduceConfig) -> dict[str, Any]:
    """Holes in real clips: outside unchanged, inside as real as outside, and the cue decides."""
    side = config.side or 48
    cases = {}
    for name in CLIPS:
        cases[name] = _case(clips.real(name, side))
        print(f"{name} done", flush=True)
    rows = list(cases.values())
    ratios = [row["inside"] / max(row["outside"], 1e-9) for row in rows]
    steered = [float(row["bright"] > row["dark"]) for row in rows]
    changed = [row["changed"] for row in rows]
    holds = max(changed) <= 2 / 255 and max(ratios) <= MOST and min(steered) == 1
    return {
        "claim": "Inpainting leaves the outside as it is, fills as realistically, and follows the colour cue",
        "source": "section on conditional inpainting; spec 8 (10)", "data": clips.described(CLIPS, side),
        "metric": "realism_inside_over_outside", "unit": "1", "better": "lower", "ours": ratios,
        "criterion": "outside unchanged to 1 of 255 levels; D of patches that touch the hole at most 1.2x of "
        "others, both to the clip outside the hole; a bright cue fills brighter than a dark one (1 when all)",
        "statistic": float(holds), "threshold": 1.0,
        "arms": {
            "cue followed": steered, "change outside": changed,
            "fill over the hole's own content": [row["inside"] / max(row["real"], 1e-9) for row in rows],
            "the hole's own content over outside": [row["real"] / max(row["outside"], 1e-9) for row in rows],
        },
        "explanation": "" if holds else _why(cases),
        "details": {"cases": cases, "hole": "a third of the shorter side, square, in every frame"},
    }  # fmt: skip


def _why(cases: dict[str, dict[str, Any]]) -> str:
    """Where the fill is less real than outside, whether the real content was, and what other ways do."""

    def over(row: dict[str, Any], key: str, by: str) -> bool:
        return row[key] > MOST * row[by]

    rows = cases.values()
    far = "; ".join(
        f"{name} {row['inside'] / max(row['outside'], 1e-9):.1f} times (its real content "
        f"{row['real'] / max(row['outside'], 1e-9):.1f} times)"
        for name, row in cases.items()
        if over(row, "inside", "outside")
    )
    unsteered = ", ".join(name for name, row in cases.items() if row["bright"] <= row["dark"])
    ways = []
    for way in next(iter(rows))["other_ways"]:
        tried = [(row["other_ways"][way], row["outside"]) for row in rows]
        within = sum(found["inside"] <= MOST * outside for found, outside in tried)
        followed = sum(found["bright"] > found["dark"] for found, _ in tried)
        ways.append(f"{way}: {within} clips within {MOST}, cue followed on {followed}")
    return (
        f"Less real than outside: {far or 'none'}. By this measure the real content of the hole itself "
        f"misses on {sum(over(row, 'real', 'outside') for row in rows)} of {len(cases)} clips. Against it "
        f"the fill is within {MOST} on {sum(not over(row, 'inside', 'real') for row in rows)}. Cue not "
        f"followed: {unsteered or 'none'}. Other ways: {'; '.join(ways)}."
    )


def box(x: Tensor) -> Bool[Tensor, "t h w"]:
    """A square hole of a third of the shorter side, the same in every frame."""
    t, h, w = shape_of(x)
    wide = min(h, w) // 3
    hole = torch.zeros(t, h, w, dtype=torch.bool)
    hole[:, h // 3 : h // 3 + wide, w // 3 : w // 3 + wide] = True
    return hole


def other_ways(x: Tensor, hole: Tensor) -> dict[str, Settings]:
    """Tried beside the default: the hole narrower at the coarsest level, and five searches there."""
    base = tasks.settings_for_hole(shape_of(x), hole)
    deeper = replace(base, least_side=max(base.patch[1], round(base.least_side / tasks.HOLE_PATCHES)))
    return {"hole of one patch": deeper, "five searches at the coarsest level": replace(base, coarse_steps=5)}


def _case(x: Tensor) -> dict[str, Any]:
    """Realism of the fill and of its references, what changed outside, and what two cues do."""
    hole = box(x)
    fill = tasks.inpaint(tasks.without_cue(x, hole), hole).video
    real, outside = realism_in(x, x, hole)
    cues = dict(zip(("dark", "bright"), two_cues(x, hole), strict=True))
    cued = {name: tasks.inpaint(painted(x, hole, cue), hole).video for name, cue in cues.items()}
    others = {}
    for name, settings in other_ways(x, hole).items():
        y = tasks.inpaint(tasks.without_cue(x, hole), hole, settings=settings).video
        means = [
            float(
                metrics.grey(tasks.inpaint(painted(x, hole, cue), hole, settings=settings).video)[hole].mean()
            )
            for cue in cues.values()
        ]
        others[name] = {"inside": realism_in(y, x, hole)[0], "dark": means[0], "bright": means[1]}
    return {
        "inside": realism_in(fill, x, hole)[0], "outside": outside, "real": real,
        "changed": max(float((y - x)[:, ~hole].abs().max()) for y in (fill, *cued.values())),
        **{name: float(metrics.grey(y)[hole].mean()) for name, y in cued.items()},
        "other_ways": others,
    }  # fmt: skip


def painted(x: Tensor, hole: Tensor, colour: Float[Tensor, "3"]) -> Tensor:
    """A clip with one colour in the hole."""
    return torch.where(hole, colour[:, None, None, None], x)


def two_cues(x: Tensor, hole: Tensor) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Mean colours of the darkest and the brightest fifth of what is outside the hole."""
    valid = x[:, ~hole]
    order = valid.mean(0).argsort()
    fifth = max(1, len(order) // 5)
    return valid[:, order[:fifth]].mean(1), valid[:, order[-fifth:]].mean(1)


def realism_in(y: Tensor, x: Tensor, hole: Tensor) -> tuple[float, float]:
    """Mean least D to the patches of x outside the hole: of y's patches that touch it, and of x's others."""
    patch = metrics.PATCH
    touched = torch.nn.functional.max_pool3d(hole[None].float(), patch, 1).flatten() > 0
    inside, free = touched.nonzero()[:, 0], (~touched).nonzero()[:, 0]
    keys = metrics.rows(x, free, patch).double()
    some = inside[:: max(1, len(inside) // 300)]
    within = torch.cdist(metrics.rows(y, some, patch).double(), keys).amin(1).square().mean() / keys.shape[1]
    chosen = torch.arange(0, len(free), max(1, len(free) // 300))
    apart = torch.cdist(keys[chosen], keys)
    places = places_of(free, grid_of(shape_of(x), patch))
    near = (places[chosen][:, None] - places[None]).abs() < torch.tensor(patch)
    elsewhere = apart.masked_fill(near.all(2), math.inf).amin(1).square().mean() / keys.shape[1]
    return float(within), float(elsewhere)
