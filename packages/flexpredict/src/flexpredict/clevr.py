"""CLEVR's labels for probes: how many objects, and how near the nearest one is (VTAB's bins)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from paperkit import UserError, data
from paperkit.data import FileSet
from paperkit.data.root import Known, find

CLEVR = Known(
    "CLEVR_v1.0",
    "CLEVR_v1.0/{images,scenes} as published",
    "18 GB",
    "cs.stanford.edu/people/jcjohns/clevr",
    "CC BY 4.0",
)
FEWEST, MOST = 3, 10
"""Objects in a scene."""
BINS = (8.0, 8.5, 9.0, 9.5, 10.0)
"""Borders of the nearest object's distance; six classes."""
TASKS = ("clevr-count", "clevr-dist")


def open_clevr(task: str, split: str, root: str | Path | None = None) -> FileSet:
    """Images of a split ("test" is the published validation split, whose scenes are known) with labels.

    Raises `UserError` where the set is missing, damaged or not as published.
    """
    folder = find(CLEVR, root, ["CLEVR_v1.0"])
    part = "train" if split == "train" else "val"
    file = folder / "scenes" / f"CLEVR_{part}_scenes.json"
    try:
        scenes = json.loads(file.read_text())["scenes"]
        labels = {scene["image_filename"]: label_of(task, scene) for scene in scenes}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no list of CLEVR's scenes ({error!r}): fetch it again") from None
    opened = data.open_set(folder / "images" / part, "all")
    assert isinstance(opened, FileSet)
    names = [Path(name).name for name in opened.names]
    if missing := [name for name in names if name not in labels]:
        raise UserError(f"{file} does not know {missing[0]} ({len(missing)} of {len(names)} images)")
    opened.facts = replace(opened.facts, name=task, split=split, licence=CLEVR.licence)
    return opened.relabelled(_array([labels[name] for name in names]), classes(task))


def _array(values: list[int]) -> Int64[np.ndarray, "n"]:
    return np.array(values, dtype=np.int64)


def label_of(task: str, scene: dict[str, Any]) -> int:
    """The class of a scene: objects less `FEWEST`, or the bin of the smallest depth (pixel_coords' third)."""
    if task == "clevr-count":
        return len(scene["objects"]) - FEWEST
    return int(np.digitize(min(each["pixel_coords"][2] for each in scene["objects"]), BINS))


def classes(task: str) -> list[str]:
    """What the labels mean."""
    if task == "clevr-count":
        return [f"{count} objects" for count in range(FEWEST, MOST + 1)]
    return [f"nearest below {border:g}" for border in BINS] + [f"nearest from {BINS[-1]:g}"]
