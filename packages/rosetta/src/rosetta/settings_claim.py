"""The claim `ablations`, reported: what the rule, the number of images and the metric change (spec 8c).

It uses the run of `train` of each seed that the claims on inversion and edits use: CNN-A with CNN-B on real
images, and the same networks untrained.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from paperkit import reproduction
from torch import Tensor

from rosetta import steer_claims
from rosetta.config import MatchConfig
from rosetta.maps import Array, Maps
from rosetta.mining import Tables, mine_pair, options, stored_tables, with_rule
from rosetta.nulls import jaccard
from rosetta.similarity import table

KS = (1, 2, 3, 5, 10)
IMAGES = (50, 100, 250, 500)
"""Fewer images than the run's."""
FEW = 240
"""Images of the comparison of metrics: whole batches of the official one, and ranks that fit."""
DRAWS = 4
"""Permuted tables of each metric."""
MARGIN = 1
"""Pixels that are taken off each side of every map in which some are left."""
Figures = dict[str, float]
Matched = set[tuple[int, int]]


def ablations(seeds: int) -> dict[str, Any]:
    """CNN-A with CNN-B under other settings than the default."""
    found = [
        reproduction.remember("rosetta", f"ablations {seed}", lambda seed=seed: ablation_figures(seed))
        for seed in range(seeds)
    ]
    ours = f"mutual-{KS[0]}: matches"
    return {
        "claim": "What other settings change in the matches of CNN-A with CNN-B above chance: k, the number"
        " of images, cropped maps, float64, other metrics",
        "source": "house question (spec 8c)", "data": f"{steer_claims.DATA}, held-out images",
        "metric": "best_buddies_above_threshold", "unit": "pairs, or share of pairs in common",
        "better": "higher", "ours": [row[ours] for row in found],
        "arms": {key: [row[key] for row in found] for key in found[0] if key != ours},
        "criterion": "reported only (statistic: the fewest matches of the default rule, above 0)",
        "statistic": min(row[ours] for row in found), "threshold": 0.0,
    }  # fmt: skip


def ablation_figures(seed: int) -> Figures:
    """Every setting for one zoo."""
    return measure_ablations(steer_claims.run_of(seed))


def measure_ablations(folder: Path) -> Figures:
    """The same for a run at hand."""
    tables = stored_tables(folder / "real")
    # Of the untrained networks the tables are kept, not the maps: only what needs no new table may be asked.
    fresh = Tables(tables.maps, replace(tables.config, others=0), folder / "real" / "untrained")
    return {**_rules(tables, fresh), **_fewer(tables), **_arithmetic(tables), **_metrics(tables)}


def matched(tables: Tables) -> Matched:
    """Matches of the first two models above the threshold."""
    for maps in tables.maps[:2]:
        maps.measure()
    return mine_pair(tables, 0, 1).significant.pairs


def _rules(tables: Tables, fresh: Tables) -> Figures:
    """Matches by k, and those of untrained networks."""
    found: Figures = {}
    for k in KS:
        for name, some in (("matches", tables), ("untrained", fresh)):
            ruled = with_rule(some, replace(some.config, k=k))
            found[f"mutual-{k}: {name}"] = float(len(matched(ruled)))
    return found


def _fewer(tables: Tables) -> Figures:
    """Matches on the first images only, and the share that they have in common with all images'."""
    whole, found = matched(tables), Figures()
    for count in [n for n in IMAGES if n < tables.maps[0].images]:
        some = matched(_of(tables, lambda m, n=count: m.part(slice(0, n)), tables.config))
        found[f"{count} images: matches"] = float(len(some))
        found[f"{count} images: in common"] = jaccard(whole, some)
    return found


def _of(tables: Tables, change: Callable[[Maps], Maps], config: MatchConfig) -> Tables:
    return Tables([change(maps) for maps in tables.maps[:2]], config)


def _arithmetic(tables: Tables) -> Figures:
    """Cropped maps, and products in float64: scores and matches."""
    whole = matched(tables)
    double = replace(tables.config, double=True)
    first, second = tables.maps[:2]
    exact, ours = (table(first, second, options(config)) for config in (double, tables.config))
    cropped = matched(_of(tables, _cropped, tables.config))
    return {
        "float64: largest difference of a score": float((exact - ours).abs().max()),
        "float64: in common": jaccard(whole, matched(_of(tables, lambda m: m, double))),
        "cropped maps: matches": float(len(cropped)), "cropped maps: in common": jaccard(whole, cropped),
    }  # fmt: skip


def _cropped(maps: Maps) -> Maps:
    return maps.with_data([_inside(x) for x in maps.data])


def _inside(x: Array) -> Float[Tensor, "n c h w"]:
    rows, columns = (_cut(side) for side in x.shape[2:])
    return x[slice(None)][:, :, rows, columns]


def _cut(side: int) -> slice:
    return slice(MARGIN, side - MARGIN) if side > 2 * MARGIN else slice(None)


def _metrics(tables: Tables) -> Figures:
    """The other metrics on few images, beside the default on the same ones."""
    count = min(FEW, tables.maps[0].images)
    found: dict[str, Matched] = {}
    for metric in ("pearson", "spearman", "official"):
        config = replace(tables.config, metric=metric, draws=DRAWS, others=0, batch=min(16, count))
        found[metric] = matched(_of(tables, lambda m: m.part(slice(0, count)), config))
    return {
        **{f"{metric}: matches": float(len(pairs)) for metric, pairs in found.items()},
        **{f"{metric}: in common": jaccard(found["pearson"], pairs) for metric, pairs in found.items()},
    }
