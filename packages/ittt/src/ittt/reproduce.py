"""`ittt reproduce <id> …`: each claim of the README, run again, as one result file.

Criteria, seeds and settings stand in the claims' modules and were fixed before the runs. What all claims have
in common is in `protocol`. A claim is a function from the number of seeds to the fields of
`paperkit.results.claim` that are its own.
"""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from paperkit import UserError, reproduction

from ittt.config import ReproduceConfig

CLAIMS: dict[str, str] = {
    "anchor-matters": "ittt.across:anchor_matters",
    "tables": "ittt.tables:claim",
    "online": "ittt.online:online",
    "sensitivity": "ittt.sensitivity:sensitivity",
    "presence": "ittt.tables:presence",
    "no-harm": "ittt.across:no_harm",
    "controls": "ittt.across:controls",
    "gap-predicts-error": "ittt.image_claims:gap_predicts_error",
    "images": "ittt.image_claims:images_claim",
    "images-statistics": "ittt.image_claims:images_statistics",
    "images-presence": "ittt.image_forms:claim",
    "official-mnist": "ittt.official:claim",
    "retrofit": "ittt.retrofit:claim",
    "faces": "ittt.face_claim:claim",
    "roads": "ittt.road_claim:claim",
    "roads-direction": "ittt.road_causes:claim",
    "airfoils": "ittt.graph_claims:airfoils",
    "cars": "ittt.graph_claims:cars",
}
"""Result file -> "module:function"; imported when it is run."""
SEEDS: dict[str, int] = {
    "anchor-matters": 20, "tables": 20, "no-harm": 20, "controls": 20,
    "online": 10, "sensitivity": 10, "presence": 10,
    "official-mnist": 8, "retrofit": 3, "faces": 3, "images-presence": 3,
    "roads-direction": 2,
}  # fmt: skip
"""How many seeds a claim takes unless the command says otherwise; five where it is not listed."""


def claims() -> list[dict[str, Any]]:
    """The claims of the package's result files; none in an installed copy."""
    return reproduction.written(reproduction.folder(__file__))


def reproduce(config: ReproduceConfig) -> list[Path]:
    """Run claims and write their result files; returns the paths. Raises `UserError` for an unknown id."""
    if len(config.ids) > 1 and "all" in config.ids:
        raise UserError("all is every claim: leave the other ids out")
    wanted = [name for word in config.ids for name in reproduction.chosen(word, CLAIMS)]
    torch.set_num_threads(1)  # networks of a few thousand weights

    def count(name: str) -> int:
        return config.seeds or SEEDS.get(name, 5)

    def command(name: str) -> str:
        return f"uv run --package ittt ittt reproduce {name} --seeds {count(name)}"

    def run(name: str) -> dict[str, Any]:
        return {"preset": "none", **function(CLAIMS[name])(count(name))}

    place = Path(config.out) if config.out else reproduction.folder(__file__)
    return reproduction.run("ittt", {name: partial(run, name) for name in wanted}, place, command)


def function(place: str) -> Callable[..., Any]:
    """What "module:function" names."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
