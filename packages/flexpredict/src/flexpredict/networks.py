"""The trained networks of all claims, each trained once, and their figures.

Networks are kept below runs/ by their configuration and the modules that decide their weights, so that a
claim finds those that another one, or a killed try, has trained.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from paperkit.run import RunOptions, read_json, read_metrics, runs_folder, to_json

from flexpredict import augment, data, masks, method, model, step
from flexpredict.config import TrainConfig
from flexpredict.train import PROBES, train

Figures = dict[str, Any]


def network(config: TrainConfig) -> Path:
    """The run folder of a configuration, trained on the CPU now or by an earlier claim.

    A run that was stopped goes on where it was.
    """
    place = _place(config)
    if not (place / "manifest.json").exists():
        train(config, RunOptions(out=str(place), device="cpu"))
    elif read_json(place / "manifest.json").get("state") != "finished":
        train(config, RunOptions(resume=str(place), device="cpu"))
    return place


def _place(config: TrainConfig) -> Path:
    digest = hashlib.sha256(json.dumps(to_json(config), sort_keys=True).encode())
    for module in (augment, data, masks, method, model, step):
        digest.update(Path(str(module.__file__)).read_bytes())
    return runs_folder("flexpredict") / "networks" / f"{config.data}-s{config.seed}-{digest.hexdigest()[:12]}"


def probed(config: TrainConfig) -> Figures:
    """Of a configuration's network: its last table (trained, random weights, raw pixels), and the targets'
    variance at the end."""
    folder = network(config)
    return {**read_json(folder / PROBES), "variance": read_metrics(folder)[-1]["target_variance"]}


def curve(config: TrainConfig, key: str) -> list[float]:
    """A figure of each of the network's probed steps."""
    return [row[key] for row in read_metrics(network(config)) if key in row]
