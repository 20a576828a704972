"""The run folder: atomic files, configuration, manifest, metrics, log, checkpoints, resume, signals.

Used by every paper that writes anything. Importing this package does not import torch.
"""

from paperkit import suggest
from paperkit.run.checkpoint import (
    FORMAT,
    checkpoints,
    fill,
    load_checkpoint,
    load_foreign,
    load_weights,
    save_checkpoint,
)
from paperkit.run.config import differences, from_json, to_json
from paperkit.run.files import atomic, explain, read_json, write_folder, write_json
from paperkit.run.folder import Interrupted, Run, RunOptions, find, read_metrics, runs_folder

__all__ = [
    "FORMAT",
    "Interrupted",
    "Run",
    "RunOptions",
    "atomic",
    "checkpoints",
    "differences",
    "explain",
    "fill",
    "find",
    "from_json",
    "load_checkpoint",
    "load_foreign",
    "load_weights",
    "read_json",
    "read_metrics",
    "runs_folder",
    "save_checkpoint",
    "suggest",
    "to_json",
    "write_folder",
    "write_json",
]
