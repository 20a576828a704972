"""The trained networks of all claims, each trained once, and their figures.

Networks are kept below runs/ by their configuration and the modules that decide their weights, so that a
claim finds those that another one, or a killed try, has trained.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from paperkit.run import RunOptions, read_json, read_metrics, runs_folder, to_json

from flexpredict import augment, data, masks, method, model, step
from flexpredict.checkpoints import read
from flexpredict.config import TrainConfig
from flexpredict.probes import Split
from flexpredict.probing import probe_set
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


def pixels_kept(config: TrainConfig) -> dict[str, float]:
    """Part of the test pixels' variance that a linear map of the features gives back, before training and
    after: what a linear probe can read of them."""
    folder = network(config)
    source = data.open_source(config)
    probe = probe_set(config, source)
    assert probe is not None
    wanted = probe.pixels()
    initial = step.first_state(config, source.shape)[1]
    encoders = {"random weights": initial, "trained": read(folder).encoder("target", config.net.heads)}
    return {name: explained(probe.split(encoder), wanted) for name, encoder in encoders.items()}


def explained(features: Split, wanted: Split) -> float:
    """R^2 on test images of ridge regression from one set of features to another."""
    mean, target = features.x.double().mean(0), wanted.x.double().mean(0)
    x, x_test = features.x.double() - mean, features.x_test.double() - mean
    y, y_test = wanted.x.double() - target, wanted.x_test.double() - target
    system = x.T @ x + 1e-6 * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    missed = y_test - x_test @ torch.linalg.solve(system, x.T @ y)
    return 1 - float(missed.square().sum() / y_test.square().sum())


def curve(config: TrainConfig, key: str) -> list[float]:
    """A figure of each of the network's probed steps."""
    return [row[key] for row in read_metrics(network(config)) if key in row]
