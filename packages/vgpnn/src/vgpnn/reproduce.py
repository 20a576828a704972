"""`vgpnn reproduce <id>`: each claim of the README, run again, as one result file.

Criteria stand here in code and were fixed before the runs (spec section 8). Clips are real ones below
PAPERKIT_DATA/videos, shrunk; what is synthetic says so.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from paperkit import reproduction, results
from torch import Tensor

from vgpnn import clips, holes, metrics, sizes, tasks
from vgpnn.clips import CLIPS
from vgpnn.config import ReproduceConfig
from vgpnn.method import solve
from vgpnn.published import generation
from vgpnn.pyramid import Settings, shape_of
from vgpnn.quality import patchmatch_quality
from vgpnn.synthetic import analogy_truth


def claims() -> list[dict[str, Any]]:
    """The claims of the package's result files; none in an installed copy."""
    return reproduction.written(reproduction.folder(__file__))


def reproduce(config: ReproduceConfig) -> list[Path]:
    """Run one claim, or all, and write the result files; returns their paths."""

    def command(name: str) -> str:
        words = f"uv run --package vgpnn vgpnn reproduce {name} --seeds {config.seeds}"
        return words + (f" --side {config.side}" if config.side else "")

    def run(name: str) -> dict[str, Any]:
        return {"preset": "none", **CLAIMS[name](config)}

    wanted = {name: partial(run, name) for name in reproduction.chosen(config.id, CLAIMS)}
    place = Path(config.out) if config.out else reproduction.folder(__file__)
    return reproduction.run("vgpnn", wanted, place, command)


# ---- identity --------------------------------------------------------------------------------------------


def psnr(a: Tensor, b: Tensor) -> float:
    """Of values in [-1, 1], at most 200 dB."""
    return -10 * math.log10(max(1e-20, float((a.double() - b.double()).square().mean()) / 4))


def identity(config: ReproduceConfig) -> dict[str, Any]:
    """Without noise the input comes back, by the exact search and by PatchMatch."""
    side = config.side or 48
    found: dict[str, list[float]] = {"exact": [], "patchmatch": []}
    for name in CLIPS:
        x = clips.real(name, side)
        for search in ("exact", "patchmatch"):
            settings = replace(tasks.settings_for("generate", shape_of(x)), search=search)
            y = tasks.generate(x, 1, 0, None, tasks.Noise("voxel", 0.0), settings)[0].video
            found[search].append(psnr(y, x))
    margin = min(min(found["exact"]) - 35, min(found["patchmatch"]) - 30)
    return {
        "claim": "Without noise the input comes back, by the exact search and by PatchMatch",
        "source": "algorithm; spec 8 (2)",
        "data": clips.described(CLIPS, side), "metric": "psnr_exact", "unit": "dB",
        "better": "higher", "ours": found["exact"], "arms": {"psnr_patchmatch": found["patchmatch"]},
        "criterion": "every clip at least 35 dB by the full search and 30 dB by PatchMatch (statistic: the "
        "smallest margin)",
        "statistic": margin, "threshold": 0.0, "details": {"clips": list(CLIPS)},
    }  # fmt: skip


# ---- noise-dose ----------------------------------------------------------------------------------------


def noise_dose(config: ReproduceConfig) -> dict[str, Any]:
    """Diversity grows and copying falls with sigma."""
    side, doses = config.side or 36, (0.0, 0.5, 2.0, 5.0)
    table: dict[str, dict[str, list[float]]] = {}
    for name in CLIPS:
        x = clips.real(name, side)
        against = metrics.Against(x)
        spread, copied = [], []
        for sigma in doses:
            noise = tasks.Noise("voxel", sigma)
            samples = [o.video for o in tasks.generate(x, max(2, config.seeds), 0, None, noise)]
            spread.append(metrics.diversity(samples, x))
            copied.append(float(np.mean([against.figures(y)["same_place"] for y in samples])))
        table[name] = {"diversity": spread, "same_place": copied}
    rises = [_rank(doses, row["diversity"]) for row in table.values()]
    falls = [-_rank(doses, row["same_place"]) for row in table.values()]
    arms = {
        f"{key}_at_{sigma:g}": [row[key][k] for row in table.values()]
        for key in ("diversity", "same_place")
        for k, sigma in enumerate(doses)
    }
    return {
        "claim": "More noise at the coarsest level gives more diversity and less copying",
        "source": "section on noise; spec 8 (3)",
        "data": clips.described(CLIPS, side), "metric": "rank_correlation",
        "unit": "1", "better": "higher", "ours": rises, "arms": {"of -same_place": falls, **arms},
        "criterion": "mean over clips of the rank correlation of sigma (0, 0.5, 2, 5) with diversity, and "
        "with -(same-place rate), both at least 0.8 (statistic: the smaller)",
        "statistic": min(float(np.mean(rises)), float(np.mean(falls))), "threshold": 0.8,
        "details": {"clips": table, "samples": max(2, config.seeds)},
    }  # fmt: skip


def _rank(x: tuple[float, ...], y: list[float]) -> float:
    return 0.0 if len(set(y)) == 1 else results.spearman(x, y).rho


# ---- patchmatch-equivalence ------------------------------------------------------------------------------


def equivalence(config: ReproduceConfig) -> dict[str, Any]:
    """Whole runs by PatchMatch and by the exact search: equal figures."""
    side, samples = config.side or 36, max(10, config.seeds)
    found: dict[str, dict[str, list[float]]] = {}
    for search in ("patchmatch", "exact"):
        rows: dict[str, list[float]] = {"realism": [], "completeness": [], "diversity": []}
        for name in CLIPS:
            x = clips.real(name, side)
            settings = replace(tasks.settings_for("generate", shape_of(x)), search=search)
            videos = [o.video for o in tasks.generate(x, samples, 0, settings=settings)]
            against = metrics.Against(x)
            each = [against.figures(y) for y in videos]
            for key in ("realism", "completeness"):
                rows[key] += [row[key] for row in each]
            rows["diversity"].append(metrics.diversity(videos, x))
        found[search] = rows
    bounds = {}
    for key in ("realism", "completeness", "diversity"):
        ours, theirs = (found[search][key] for search in ("patchmatch", "exact"))
        mean = float(np.mean(theirs))
        apart = results.paired(ours, theirs, "lower")
        bounds[key] = [apart.low / mean, apart.high / mean]
    worst = max(abs(end) for ends in bounds.values() for end in ends)
    arms = {f"{key} {search}": values for search, rows in found.items() for key, values in rows.items()}
    return {
        "claim": "Samples by PatchMatch have the realism, completeness and diversity of the exact search's",
        "source": "section on PatchMatch; spec 8 (6)",
        "data": clips.described(CLIPS, side), "metric": "realism",
        "unit": "1", "better": "lower", "ours": found["patchmatch"]["realism"],
        "against": ("the full search", found["exact"]["realism"]), "arms": arms,
        "criterion": "95 % paired bootstrap interval of each figure's difference within 10 % of its mean "
        "(statistic: 0.1 - the farthest end)",
        "statistic": 0.1 - worst, "threshold": 0.0,
        "explanation": "" if worst <= 0.1 else _why_not_equal(found, bounds, samples),
        "details": {"relative_intervals": bounds, "samples": samples},
    }  # fmt: skip


def _why_not_equal(found: dict[str, dict[str, list[float]]], bounds: dict[str, list[float]], n: int) -> str:
    """Which intervals are too wide, and how much a pair of samples has in common."""
    wide = "; ".join(
        f"{key}: {low:+.1%} to {high:+.1%}" for key, (low, high) in bounds.items() if max(-low, high) > 0.1
    )
    ours, theirs = (np.reshape(found[search]["realism"], (-1, n)) for search in ("patchmatch", "exact"))
    pairs = (ours - theirs).std(1).mean()
    strangers = math.sqrt(2) * theirs.std(1).mean()
    return (
        f"Beyond 10 %: {wide}, with {n} samples of each of {len(ours)} clips. Differences in realism within "
        f"a pair, of one noise, spread {pairs / max(strangers, 1e-12):.0%} as wide as between samples of "
        "different noise: where one match differs, a sample goes another way."
    )


# ---- ablations -------------------------------------------------------------------------------------------


def ablations(config: ReproduceConfig) -> dict[str, Any]:
    """Vote, J, noise in time, identity candidates, weights in generation: figures of each."""
    side, samples = config.side or 36, max(2, config.seeds)
    base = Settings()
    variants: dict[str, tuple[Settings, tasks.Noise]] = {
        "default": (base, tasks.Noise()),
        "mean vote": (replace(base, vote="mean"), tasks.Noise()),
        "gaussian vote": (replace(base, vote="gaussian"), tasks.Noise()),
        "J 1": (replace(base, steps=1), tasks.Noise()),
        "J 3": (replace(base, steps=3), tasks.Noise()),
        "J 2 at the coarsest": (replace(base, coarse_steps=2), tasks.Noise()),
        "patches of 3x5x5": (replace(base, patch=(3, 5, 5)), tasks.Noise()),
        "a coarsest level of 20 rows": (replace(base, least_side=20), tasks.Noise()),
        "still noise": (base, tasks.Noise("still")),
        "noise by rule of thumb": (base, tasks.Noise("auto")),
        "alpha 0.0044": (replace(base, alpha=0.0044), tasks.Noise()),
        "alpha 0.0023 (1 on sums)": (replace(base, alpha=1 / 441), tasks.Noise()),
        "PatchMatch": (replace(base, search="patchmatch"), tasks.Noise()),
        "PatchMatch, same place tried": (
            replace(base, search="patchmatch", schedule=replace(base.schedule, identity=True)),
            tasks.Noise(),
        ),
    }
    arms: dict[str, list[float]] = {}
    for label, (settings, noise) in variants.items():
        for name in CLIPS:
            x = clips.real(name, side)
            videos = [o.video for o in solve(tasks.generation(x, samples, 0, None, noise, settings))]
            against = metrics.Against(x)
            for y in videos:
                for key, value in against.figures(y).items():
                    arms.setdefault(f"{label}: {key}", []).append(value)
            arms.setdefault(f"{label}: diversity", []).append(metrics.diversity(videos, x))
    worst = max(np.mean(values) for key, values in arms.items() if key.endswith(": realism"))
    return {
        "claim": "Votes, J, noise, weights and candidates: what each does to the figures",
        "source": "spec 8 (11)",
        "data": clips.described(CLIPS, side), "metric": "realism", "unit": "1",
        "better": "lower", "ours": arms["default: realism"], "arms": arms,
        "criterion": "reported only: the worst variant's mean realism over the default's, itself one of them",
        "statistic": float(worst / max(np.mean(arms["default: realism"]), 1e-12)), "threshold": 1.0,
        "details": {"samples": samples},
    }  # fmt: skip


# ---- memory ----------------------------------------------------------------------------------------------


SIZES = ((13, 72, 128), (13, 144, 256), (30, 360, 640))
LARGE = (50, 1080, 1920)
"""Of this size the finest level alone is run: all levels of Full HD take hours on two cores."""


def memory(config: ReproduceConfig) -> dict[str, Any]:
    """Peak memory over sizes, each in a process of its own; of a larger one, the finest level alone."""
    from vgpnn.bench import peaks

    found = peaks(SIZES[: 2 if config.side else 3])
    alone = peaks(() if config.side else (LARGE,), part="last")
    sizes_ = {**found, **alone}
    voxels, grown = list(sizes_), [row["peak_mib"] - row["before_mib"] for row in sizes_.values()]
    whole = len(found)
    slope = float(np.polyfit(np.log(voxels[:whole]), np.log(grown[:whole]), 1)[0])
    budget = [row["budget_mib"] for row in sizes_.values()]
    holds = 0.9 <= slope <= 1.15 and all(g <= b for g, b in zip(grown, budget, strict=True))
    return {
        "claim": "Peak memory grows linearly with the voxels and stays within its budget",
        "source": "section on memory; spec 8, 9.3", "data": "uniform noise, one search per level, one round",
        "metric": "peak_mib_per_million_voxels", "unit": "MiB", "better": "lower",
        "ours": [g / n * 1e6 for g, n in zip(grown, voxels, strict=True)],
        "arms": {"grown_mib": grown, "budget_mib": budget},
        "criterion": "slope of log memory over log voxels of the finest level, whole runs, in [0.9, 1.15]; "
        "in every run no more than twelve float32 videos plus twice the working memory (statistic: 1 when "
        "both, else 0)",
        "statistic": float(holds), "threshold": 1.0,
        "explanation": "" if holds else f"Slope {slope:.3f}; MiB beside the budget, by size: "
        + ", ".join(f"{g:.0f} of {b:.0f}" for g, b in zip(grown, budget, strict=True)) + ".",
        "details": {
            "slope": slope, "sizes": {str(n): row for n, row in sizes_.items()},
            "finest level alone": ["x".join(map(str, LARGE))] if alone else [],
        },
    }  # fmt: skip


CLAIMS: dict[str, Callable[[ReproduceConfig], dict[str, Any]]] = {
    "identity": identity,
    "generation": generation,
    "noise-dose": noise_dose,
    "shortening": sizes.shortening,
    "completeness": sizes.completeness,
    "retarget": sizes.retarget,
    "patchmatch-quality": patchmatch_quality,
    "patchmatch-equivalence": equivalence,
    "inpaint": holes.inpaint,
    "analogy-truth": analogy_truth,
    "ablations": ablations,
    "memory": memory,
}
