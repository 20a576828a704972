"""`rosetta reproduce <id> ...`: each claim of the README, run again, as one result file.

Criteria, seeds and settings stand in the claims' modules and were fixed before the runs.
"""

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from paperkit import UserError, reproduction

from rosetta.config import ReproduceConfig

CLAIMS: dict[str, tuple[str, int]] = {
    "planted": ("rosetta.planted:claim", 10),
    "null-formula": ("rosetta.planted:null_formula", 5),
    "zoo": ("rosetta.zoo_claim:claim", 5),
    "inversion": ("rosetta.steer_claims:inversion", 3),
    "edits": ("rosetta.steer_claims:edits", 3),
    "causal": ("rosetta.causal_claim:causal", 3),
    "ablations": ("rosetta.settings_claim:ablations", 3),
}
"""Result file -> ("module:function", seeds); the module is imported when its claim is run."""


def reproduce(config: ReproduceConfig) -> list[Path]:
    """Run claims and write their result files; returns the paths. Raises `UserError` for an unknown id."""
    if len(config.ids) > 1 and "all" in config.ids:
        raise UserError("all is every claim: leave the other ids out")
    wanted = [name for word in config.ids for name in reproduction.chosen(word, CLAIMS)]
    torch.set_num_threads(1)  # tiny networks, and sums in one order

    def seeds(name: str) -> int:
        return config.seeds or CLAIMS[name][1]

    def command(name: str) -> str:
        return f"uv run --package rosetta rosetta reproduce {name} --seeds {seeds(name)}"

    def run(name: str) -> dict[str, Any]:
        module, _, function = CLAIMS[name][0].partition(":")
        return {"preset": "none", **getattr(import_module(module), function)(seeds(name))}

    place = Path(config.out) if config.out else reproduction.folder(__file__)
    return reproduction.run("rosetta", {name: partial(run, name) for name in wanted}, place, command)
