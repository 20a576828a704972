"""`flexpredict reproduce <id> ...`: each claim of the README, run again, as one result file.

Criteria, seeds and settings stand in the claims' modules and were fixed before the runs.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from paperkit import UserError, reproduction

from flexpredict.config import ReproduceConfig

CLAIMS: dict[str, str] = {
    "zero-noise": "flexpredict.claims:zero_noise",
    "covariance": "flexpredict.claims:covariance",
    "theory": "flexpredict.theory_claim:claim",
    "masks": "flexpredict.claims:mask_facts",
    "world-size": "flexpredict.claims:world_size",
    "toy-collapse": "flexpredict.toy:claim",
    "learns": "flexpredict.learns:claim",
    "collapse": "flexpredict.collapse:claim",
    "noninferior": "flexpredict.noninferior:claim",
    "placement": "flexpredict.noninferior:placement_claim",
    "propagation": "flexpredict.propagation_claim:claim",
    "controlled": "flexpredict.controlled:claim",
    "learns-cifar10": "flexpredict.learns:cifar_claim",
    "noninferior-cifar10": "flexpredict.noninferior:cifar_claim",
    "learns-tiny-imagenet": "flexpredict.learns:tiny_claim",
}
"""Result file -> "module:function"; imported when it is run."""
SEEDS = 5


def reproduce(config: ReproduceConfig) -> list[Path]:
    """Run claims and write their result files; returns the paths. Raises `UserError` for an unknown id."""
    if len(config.ids) > 1 and "all" in config.ids:
        raise UserError("all is every claim: leave the other ids out")
    wanted = [name for word in config.ids for name in reproduction.chosen(word, CLAIMS)]
    torch.set_num_threads(1)  # tiny networks, and sums in one order
    seeds = config.seeds or SEEDS

    def command(name: str) -> str:
        return f"uv run --package flexpredict flexpredict reproduce {name} --seeds {seeds}"

    def run(name: str) -> dict[str, Any]:
        return {"preset": "none", **function(CLAIMS[name])(seeds)}

    place = Path(config.out) if config.out else reproduction.folder(__file__)
    return reproduction.run("flexpredict", {name: partial(run, name) for name in wanted}, place, command)


def function(place: str) -> Callable[..., Any]:
    """What "module:function" names."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
