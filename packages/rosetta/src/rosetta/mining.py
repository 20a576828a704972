"""From maps to matches and chains with what chance gives beside them: every count has its null.

The tables' summaries lie in a folder, so that a run that was stopped goes on with the next table, and another
rule or chain needs no table again.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from paperkit import UserError
from paperkit.run import from_json, load_weights, read_json, write_folder
from torch import Tensor

from rosetta import method, nulls
from rosetta.config import MatchConfig
from rosetta.maps import Maps
from rosetta.match import Best, Matches, Rule, Summary, summarise
from rosetta.method import Chain
from rosetta.similarity import Options, tiles
from rosetta.store import open_maps

KEPT = 10
"""Best partners that a stored summary holds: rules up to this k need no table again."""
SHARE = 0.999
"""Share of the table that the milder threshold leaves below it."""


class Tables:
    """Summaries of the tables of every pair of models, computed once; model 0 is the pivot."""

    def __init__(self, maps: Sequence[Maps], config: MatchConfig, folder: Path | None = None):
        names = [m.model for m in maps]
        if len(set(names)) < len(names):
            raise UserError(f"a model is named twice: {', '.join(names)}")
        if len(maps) < 2:
            raise UserError("two models or more are needed, the pivot first")
        self.maps, self.config, self.folder = list(maps), config, folder
        self._held: dict[str, Summary] = {}
        self.kept = max(KEPT, config.k, config.back)

    def observed(self, i: int, j: int) -> Summary:
        """Of models i and j as they are."""
        return self._summary(f"{i}-{j}", self.maps[i], self.maps[j])

    def null(self, i: int, j: int, kind: nulls.Kind, draw: int) -> Summary:
        """With model j disturbed, and model i too unless it is the pivot."""
        name = f"{i}-{j}-{kind}-{draw}"
        a = self._disturbed(i, kind, draw) if i else self.maps[0]
        return self._summary(name, a, self._disturbed(j, kind, draw))

    def _disturbed(self, model: int, kind: nulls.Kind, draw: int) -> Maps:
        return nulls.disturbed(self.maps[model], kind, draw, self.config.seed)

    def _summary(self, name: str, a: Maps, b: Maps) -> Summary:
        if name in self._held:
            return self._held[name]
        path = self.folder and self.folder / name
        if path and path.exists():
            return load_summary(path)
        found = summarise(tiles(a, b, options(self.config)), a.units, b.units, self.kept)
        if path:
            save_summary(path, found)
        else:
            self._held[name] = found
        return found


def options(config: MatchConfig) -> Options:
    """How scores are computed."""
    return Options(config.metric, config.memory, config.double, config.batch)


def save_summary(path: Path, summary: Summary) -> None:
    """A folder with one file of tensors."""
    from safetensors.torch import save

    parts = {
        "row_scores": summary.rows.scores, "row_partners": summary.rows.partners,
        "column_scores": summary.columns.scores, "column_partners": summary.columns.partners,
        "histogram": summary.histogram,
    }  # fmt: skip
    write_folder(path, {"summary.safetensors": save(parts)})


def load_summary(path: Path) -> Summary:
    """What `save_summary` wrote."""
    parts = load_weights(path / "summary.safetensors")
    sides = [Best(*parts[f"{side}_scores"].shape) for side in ("row", "column")]
    for best, side in zip(sides, ("row", "column"), strict=True):
        best.scores, best.partners = parts[f"{side}_scores"], parts[f"{side}_partners"]
    return Summary(sides[0], sides[1], parts["histogram"])


# ---- Pairs of models ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """The matches of two models, and the same under the nulls."""

    i: int
    j: int
    matches: Matches
    threshold: float
    """The highest score of any draw of permuted images (or the highest of their quantiles, as asked)."""
    p: Float64[Tensor, "m"]
    q: Float64[Tensor, "m"]
    expected: float
    """Matches in a table of independent noise."""
    null_counts: dict[str, list[int]]
    """Matches of each draw: all for images and positions, those above the threshold for the others."""
    null_tops: dict[str, float]
    """The highest score of any draw."""
    mean_best: float
    hubs: int

    @property
    def significant(self) -> Matches:
        """Matches above the threshold."""
        return self.matches.above(self.threshold)


def mine_pair(tables: Tables, i: int, j: int) -> Pair:
    """Matches of models i and j with their significance."""
    config = tables.config
    rule = Rule(config.k, config.back)
    found = tables.observed(i, j)
    matches = found.part(rule)
    draws: dict[nulls.Kind, list[Summary]] = {
        kind: [
            tables.null(i, j, kind, draw)
            for draw in range(config.draws if kind == "images" else config.others)
        ]
        for kind in nulls.KINDS
        if kind == "images" or config.others
    }
    largest = [summary.largest for summary in draws["images"]]
    limits = largest if config.threshold == "max" else [s.quantile(SHARE) for s in draws["images"]]
    threshold = max(limits)
    null = [summary.part(rule) for summary in draws["images"]]
    counts = {
        kind: [
            len(s.part(rule) if kind in ("images", "positions") else s.part(rule).above(threshold))
            for s in summaries
        ]
        for kind, summaries in draws.items()
    }
    sizes = tables.maps[i].living, tables.maps[j].living
    return Pair(
        i, j, matches, threshold,
        p=nulls.family_wise_p(matches.scores, largest),
        q=nulls.false_discovery_rate(matches.scores, [m.scores for m in null]),
        expected=method.expected_buddies(*sizes, config.k, config.back),
        null_counts=counts,
        null_tops={kind: max(s.largest for s in summaries) for kind, summaries in draws.items()},
        mean_best=found.mean_best, hubs=found.hubs,
    )  # fmt: skip


# ---- Chains ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chains:
    """The chains of one rule, strongest first, and the same under permuted images."""

    rule: str
    found: list[Chain]
    significant: list[bool]
    """Whether every pair of the chain is above its threshold."""
    p: list[float]
    q: list[float]
    expected: float
    """Units of the pivot with a partner everywhere, in tables of independent noise; 0 where not known."""
    null_counts: list[int]

    @property
    def count(self) -> int:
        """Significant chains."""
        return sum(self.significant)


def mine_chains(tables: Tables, pairs: dict[tuple[int, int], Pair], rule: str) -> Chains:
    """Chains of a rule over all models, with p and q by their weakest pair."""
    models, config = len(tables.maps), tables.config
    wanted = method.edges(rule, models)
    found = method.chains({pair: pairs[pair].matches.partners for pair in wanted}, rule, models)
    match = Rule(config.k, config.back)
    drawn = [
        method.chains(
            {(i, j): tables.null(i, j, "images", draw).part(match).partners for i, j in wanted}, rule, models
        )
        for draw in range(config.draws)
    ]
    weakest = torch.tensor([chain.weakest for chain in found], dtype=torch.float64)
    null = [torch.tensor([chain.weakest for chain in some], dtype=torch.float64) for some in drawn]
    tops = [float(scores.max()) if len(scores) else -1.0 for scores in null]
    living = [maps.living for maps in tables.maps]
    return Chains(
        rule, found, [_above(chain, pairs, wanted) for chain in found],
        nulls.family_wise_p(weakest, tops).tolist(), nulls.false_discovery_rate(weakest, null).tolist(),
        method.expected_chains(living[0], living[1:], config.k, config.back) if rule == "star" else 0.0,
        [len(some) for some in drawn],
    )  # fmt: skip


def _above(chain: Chain, pairs: dict[tuple[int, int], Pair], wanted: Sequence[tuple[int, int]]) -> bool:
    return all(
        pairs[i, j].matches.partners[chain.units[i]][chain.units[j]] > pairs[i, j].threshold
        for i, j in wanted
    )


# ---- All of it ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mined:
    """What a zoo shares."""

    tables: Tables
    pairs: dict[tuple[int, int], Pair]
    chains: dict[str, Chains]

    @property
    def models(self) -> list[str]:
        """Names, the pivot's first."""
        return [maps.model for maps in self.tables.maps]


def mine(tables: Tables) -> Mined:
    """Every pair of models and every kind of chain."""
    for maps in tables.maps:
        maps.measure()
        if not maps.living:
            raise UserError(f"{maps.model}: every unit is constant on these images; use others")
    numbers = range(len(tables.maps))
    pairs = {(i, j): mine_pair(tables, i, j) for i, j in itertools.combinations(numbers, 2)}
    return Mined(
        tables, pairs, {rule: mine_chains(tables, pairs, rule) for rule in ("star", "clique", "cycle")}
    )


def split_half(
    a: Maps, b: Maps, config: MatchConfig, threshold: float, draws: int
) -> tuple[float, list[float]]:
    """Jaccard index of the significant matches of two disjoint halves of the images, and of those of halves
    whose images were permuted (all matches: there is none above the threshold)."""
    half = a.images // 2
    parts = [slice(0, half), slice(half, 2 * half)]

    def pairs(kind_draw: int | None, part: int) -> set[tuple[int, ...]]:
        x, y = a.part(parts[part]), b.part(parts[part])
        if kind_draw is not None:
            y = nulls.disturbed(y, "images", 2 * kind_draw + part, config.seed)
        found = summarise(tiles(x, y, options(config)), x.units, y.units, max(config.k, config.back))
        matches = found.part(Rule(config.k, config.back))
        return set((matches if kind_draw is not None else matches.above(threshold)).pairs)

    return (
        nulls.jaccard(pairs(None, 0), pairs(None, 1)),
        [nulls.jaccard(pairs(draw, 0), pairs(draw, 1)) for draw in range(draws)],
    )


def with_rule(tables: Tables, config: MatchConfig) -> Tables:
    """The same tables under another rule. Raises `UserError` where they would have to be computed again."""
    kept = replace(config, k=tables.config.k, back=tables.config.back, threshold=tables.config.threshold)
    if kept != tables.config or max(config.k, config.back) > tables.kept:
        raise UserError(f"stored tables hold the {tables.kept} best of one metric and seed: mine again")
    other = Tables(tables.maps, config, tables.folder)
    other._held = tables._held
    return other


def stored_tables(place: Path) -> Tables:
    """The tables of a folder that holds maps and mined.json, under the rule that they were mined with."""
    facts = read_json(place / "mined.json")
    maps = [open_maps(place / "maps" / name) for name in facts["maps"]]
    return Tables(maps, from_json(MatchConfig, facts["match"]), place / "tables")


# ---- As printed --------------------------------------------------------------------------------------------


def counts(mined: Mined, untrained: Mined | None = None) -> list[dict[str, Any]]:
    """A row for each pair of models and each kind of chain: what was found beside what chance gives."""
    rows = []
    for (i, j), pair in mined.pairs.items():
        row: dict[str, Any] = {
            "what": f"{mined.models[i]} x {mined.models[j]}",
            "found": len(pair.matches), "significant": len(pair.significant), "expected": pair.expected,
            **{kind: _mean(values) for kind, values in pair.null_counts.items()},
            "threshold": pair.threshold, "mean_best": pair.mean_best, "hubs": pair.hubs,
        }  # fmt: skip
        if untrained:
            row["untrained"] = len(untrained.pairs[i, j].significant)
        rows.append(row)
    for rule, chains in mined.chains.items():
        row = {
            "what": f"{rule} of {len(mined.models)}", "found": len(chains.found),
            "significant": chains.count, "images": _mean(chains.null_counts),
        }  # fmt: skip
        if chains.expected:
            row["expected"] = chains.expected
        if untrained:
            row["untrained"] = untrained.chains[rule].count
        rows.append(row)
    return rows


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0


COLUMNS = {
    "what": "", "significant": "found>t*", "untrained": "untrained>t*", "rotation": "rotated>t*",
    "shift": "shifted>t*", "found": "found", "expected": "i.i.d.", "images": "permuted",
    "positions": "scattered", "threshold": "t*", "hubs": "hubs",
}  # fmt: skip
"""Of the printed table: first what exceeds the threshold, then all mutual matches."""


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `counts` as a table for a terminal."""
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    cells = [[COLUMNS[key] for key in keys], *([_cell(row.get(key), key) for key in keys] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def as_words(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The same, a sentence for each row."""
    return [
        f"{row['what']}: "
        + ", ".join(
            f"{COLUMNS[key]} {_cell(row[key], key)}" for key in COLUMNS if key != "what" and key in row
        )
        + "."
        for row in rows
    ]


def _cell(value: Any, key: str) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}" if key == "threshold" else f"{value:.1f}"
    return str(value)
