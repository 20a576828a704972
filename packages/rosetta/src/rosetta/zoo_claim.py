"""The claim `zoo`: trained networks share more units than the same networks untrained (spec 12.6)."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from paperkit import reproduction
from torch import Tensor

from rosetta import zoo
from rosetta.config import TRAIN, MatchConfig, TrainConfig
from rosetta.hooks import record
from rosetta.maps import Maps
from rosetta.match import summarise
from rosetta.mining import Mined, Tables, mine, mine_pair, options, split_half, with_rule
from rosetta.residual import pixel_residual, template_free
from rosetta.similarity import tiles
from rosetta.zoo import MEMBERS, Source, Stage

LEAST_RATIO = 1.5
"""Trained over untrained matches of CNN-A with CNN-B above t*, in every seed."""
HALVES = 20
"""Null draws of the split-half index."""
MATCH = MatchConfig(draws=19, others=1)
Figures = dict[str, float]


def claim(seeds: int) -> dict[str, Any]:
    """On Fashion-MNIST."""
    return _claim("FashionMNIST", seeds)


def _claim(data: str, seeds: int) -> dict[str, Any]:
    found = [
        reproduction.remember("rosetta", f"zoo {data} {seed}", lambda seed=seed: figures(data, seed))
        for seed in range(seeds)
    ]
    margins = {
        "A-B matches, trained over untrained, above 1.5": min(map(_ratio("A-B matches"), found))
        - LEAST_RATIO,
        "pixel residual A-B: mean best r, trained less untrained": min(map(_gain("A-B residual"), found)),
        "pixel residual A-MAE: mean best r, trained less untrained": min(map(_gain("A-MAE residual"), found)),
    }
    reported = {
        "mutual-3 A-B and A-MAE, trained over untrained, above 1.5": min(
            (row["trained A-B mutual-3"] + row["trained A-MAE mutual-3"])
            / max(row["untrained A-B mutual-3"] + row["untrained A-MAE mutual-3"], 1.0)
            for row in found
        )
        - LEAST_RATIO,
        "split-half index of A-B matches above the highest of 20 null draws": min(
            row["trained A-B halves"] - row["trained A-B halves, null"] for row in found
        ),
    }
    broken = [f"{name}: {value:.3g}" for name, value in margins.items() if value < 0]
    return {
        "claim": "Trained networks share more units than the same networks untrained: best buddies above the"
        " permutation threshold, and agreement beyond what pixels explain",
        "source": "abstract; house criterion (spec 12.6)", "data": f"{data}, 1,000 held-out images",
        "metric": "best_buddies_above_threshold", "unit": "pairs", "better": "higher",
        "ours": [row["trained A-B matches"] for row in found],
        "against": ("the same networks untrained", [row["untrained A-B matches"] for row in found]),
        "arms": {key: [row[key] for row in found] for key in found[0]},
        "criterion": f"in every seed: CNN-A x CNN-B best buddies above t* at least {LEAST_RATIO:g} times"
        " those of untrained networks, and the mean best r of the pixel-residual maps higher than theirs for"
        " CNN-B and for MAE (statistic: the smallest margin)",
        "statistic": min(margins.values()), "threshold": 0.0,
        "details": {"margins": margins, "reported": reported, "match": vars(MATCH)},
        "explanation": f"Not met: {'; '.join(broken)}." if broken else "",
    }  # fmt: skip


def _ratio(name: str):
    return lambda row: row[f"trained {name}"] / max(row[f"untrained {name}"], 1.0)


def _gain(name: str):
    return lambda row: row[f"trained {name}"] - row[f"untrained {name}"]


# ---- One seed ----------------------------------------------------------------------------------------------


def figures(data: str, seed: int) -> Figures:
    """Everything that is measured on one zoo and on its untrained twin."""
    config = replace(TRAIN["fashion"][0], data=data, seed=seed, match=MATCH)
    source = zoo.open_source(config)
    trained, fresh = learned(config, source), viewers(replace(config, seed=seed + 1_000_000), source)
    found = {
        "CNN-A right": zoo.accuracy(trained[0], source), "CNN-B right": zoo.accuracy(trained[1], source),
        "MAE error": zoo.masked_error(trained[2], source),
    }  # fmt: skip
    for name, some in (("trained", trained), ("untrained", fresh)):
        maps = [record(zoo.network(stage, source.probes[:2]), source.probes, 256) for stage in some]
        found |= {f"{name} {key}": value for key, value in shared(maps, source.probes).items()}
    return found


def viewers(config: TrainConfig, source: Source) -> list[Stage]:
    """Fresh networks that look at images."""
    return [s for s in zoo.stages(config, *source.shape, source.classes) if s.name in MEMBERS]


def learned(config: TrainConfig, source: Source) -> list[Stage]:
    """The same, trained."""
    some = viewers(config, source)
    for stage in some:
        for module in stage.modules.values():
            module.train()
        for local in range(1, stage.steps + 1):
            stage.step(source, config.batch * (2 if stage.name == "MAE" else 1), local)
    return some


def shared(maps: Sequence[Maps], pixels: Float[Tensor, "n c s s2"]) -> Figures:
    """Counts, strengths, variants and stability of CNN-A, CNN-B, MAE, and CNN-A of another seed."""
    tables = Tables(maps[:3], MATCH)
    mined = mine(tables)
    found = {**_counts(mined), **_wider(tables)}
    maps[3].measure()
    again = mine_pair(Tables([maps[0], maps[3]], MATCH), 0, 1)
    found |= {"A-A again matches": float(len(again.significant)), "A-A again mean best r": again.mean_best}
    for variant, change in (
        ("template-free", template_free),
        ("residual", lambda m: pixel_residual(m, pixels)),
    ):
        changed = [change(m) for m in maps[:3]]
        for j, name in ((1, "A-B"), (2, "A-MAE")):
            found[f"{name} {variant}"] = _mean_best(changed[0], changed[j])
    threshold = mined.pairs[0, 1].threshold
    index, null = split_half(maps[0], maps[1], MATCH, threshold, HALVES)
    found |= {"A-B halves": index, "A-B halves, null": max(null)}
    found |= {
        f"{name} CKA": linear_cka(maps[0], maps[j])
        for j, name in ((1, "A-B"), (2, "A-MAE"), (3, "A-A again"))
    }
    return found


def _counts(mined: Mined) -> Figures:
    found: Figures = {}
    for (i, j), name in {(0, 1): "A-B", (0, 2): "A-MAE", (1, 2): "B-MAE"}.items():
        pair = mined.pairs[i, j]
        found |= {
            f"{name} matches": float(len(pair.significant)), f"{name} raw": float(len(pair.matches)),
            f"{name} i.i.d.": pair.expected, f"{name} t*": pair.threshold,
            f"{name} mean best r": pair.mean_best, f"{name} hubs": float(pair.hubs),
            **{f"{name} {kind}": float(values[0]) for kind, values in pair.null_counts.items()},
            f"{name} images": sum(pair.null_counts["images"]) / MATCH.draws,
        }  # fmt: skip
    return found | {f"{rule}s": float(chains.count) for rule, chains in mined.chains.items()}


def _wider(tables: Tables) -> Figures:
    """Counts of the rules mutual-2 and mutual-3 over the same tables."""
    found: Figures = {}
    for k in (2, 3):
        mined = mine(with_rule(tables, replace(MATCH, k=k)))
        for (i, j), name in {(0, 1): "A-B", (0, 2): "A-MAE"}.items():
            found[f"{name} mutual-{k}"] = float(len(mined.pairs[i, j].significant))
        found[f"stars, mutual-{k}"] = float(mined.chains["star"].count)
    return found


def _mean_best(a: Maps, b: Maps) -> float:
    return summarise(tiles(a, b, options(MATCH)), a.units, b.units, 1).mean_best


def linear_cka(a: Maps, b: Maps) -> float:
    """Mean over layer pairs of linear CKA (Kornblith et al. 2019) on features averaged over positions."""
    pooled = [[x[slice(None)].double().mean((2, 3)) for x in maps.data] for maps in (a, b)]
    values = [_cka(x, y) for x, y in itertools.product(*pooled)]
    return sum(values) / len(values)


def _cka(x: Float[Tensor, "n a"], y: Float[Tensor, "n b"]) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    norms = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(torch.linalg.matrix_norm(x.T @ y).square() / norms)
