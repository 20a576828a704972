"""Trained networks that claims keep below runs/, by configuration and the modules that decide their weights.

A claim finds those that another one, or a killed try, has trained. Used by the tasks of images and graphs.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from paperkit.run import RunOptions, read_json, runs_folder, to_json


def kept(
    config: Any, name: str, modules: Sequence[ModuleType], train: Callable[[Any, RunOptions], Path]
) -> Path:
    """The run folder of a configuration, trained now on the CPU where it is not whole yet."""
    place = folder(config, name, modules)
    if not (place / "manifest.json").exists():
        train(config, RunOptions(out=str(place), device="cpu"))
    elif read_json(place / "manifest.json").get("state") != "finished":
        train(config, RunOptions(resume=str(place), device="cpu"))
    return place


def folder(config: Any, name: str, modules: Sequence[ModuleType]) -> Path:
    """Where it lies: another one for every configuration and every text of the modules."""
    digest = hashlib.sha256(json.dumps(to_json(config), sort_keys=True).encode())
    for module in modules:
        digest.update(Path(str(module.__file__)).read_bytes())
    return runs_folder("ittt") / "networks" / f"{name}-{digest.hexdigest()[:12]}"
