"""Checkpoints: weights in safetensors, the rest as plain data. Nothing in a checkpoint is ever executed."""

import io
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperkit import UserError
from paperkit.run.files import write_folder

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

FORMAT = 1
"""Version of the checkpoint layout; a reader refuses newer ones."""
VERSION_KEY = "paperkit_format"
"""Where a safetensors file carries it; the key "format" belongs to the libraries that read such files."""


def save_checkpoint(
    folder: Path, step: int, weights: Mapping[str, Mapping[str, "Tensor"]], state: Any
) -> None:
    """Write one checkpoint folder: a safetensors file per group of `weights`, `state` for the rest.

    `state` holds tensors, numbers, strings, lists and dicts only.
    """
    import torch
    from safetensors.torch import save

    files = {}
    for name, group in weights.items():
        # A copy each: safetensors takes no two tensors that share memory, as tied weights do.
        copies = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in group.items()}
        files[f"{name}.safetensors"] = save(copies, {"format": "pt", VERSION_KEY: str(FORMAT)})
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "step": step, "groups": sorted(weights), "state": state}, buffer)
    write_folder(folder, {**files, "state.pt": buffer.getvalue()})


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    return sorted(
        path for path in (folder / "checkpoints").glob("*") if path.is_dir() and path.name.isdecimal()
    )


def load_weights(path: Path) -> dict[str, "Tensor"]:
    """The tensors of a safetensors file; `UserError` when it is missing, corrupt or from a newer version."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            _refuse_newer(path, (opened.metadata() or {}).get(VERSION_KEY, str(FORMAT)))
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the checkpoint is not whole") from None
    except (SafetensorError, OSError) as error:
        raise _corrupt(path, error) from None


def load_checkpoint(folder: Path) -> tuple[dict[str, dict[str, "Tensor"]], Any]:
    """(weights by group, state) of one checkpoint folder. Nothing in it is executed.

    Raises `UserError` for a file that is missing, corrupt, from a newer version, or holds anything but data.
    """
    path = folder / "state.pt"
    try:
        saved = _data(path, _corrupt)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the checkpoint is not whole") from None
    if not isinstance(saved, dict) or "format" not in saved:
        raise UserError(f"{path} is no checkpoint of ours: it lacks a format number")
    _refuse_newer(path, saved["format"])
    if missing := {"groups", "state"} - set(saved):
        raise UserError(f"{path} lacks {min(missing)}: the checkpoint is not whole")
    return {name: load_weights(folder / f"{name}.safetensors") for name in saved["groups"]}, saved["state"]


def load_foreign(path: Path) -> Any:
    """What a file of another program holds: tensors and plain data by torch, or safetensors. Nothing is run.

    Raises `UserError` for a file that is missing, damaged, or holds anything but data.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    if path.suffix == ".safetensors":
        return load_weights(path)
    return _data(path, _damaged)


def _data(path: Path, unreadable: Callable[[Path, Exception], UserError]) -> Any:
    """What torch reads of a file as plain data; `unreadable` words the error for other bytes."""
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # of a file that is refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, MemoryError):
        raise
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is corrupt or holds more than data, perhaps code, and was not opened: use another"
        ) from None
    except Exception as error:  # damaged bytes end in almost any exception of the reader
        raise unreadable(path, error) from None


def _refuse_newer(path: Path, version: Any) -> None:
    if not str(version).isdecimal():
        raise UserError(f"{path} is no checkpoint of ours: its format is {version!r}, not a number")
    if int(version) > FORMAT:
        raise UserError(
            f"{path} was written by a newer version (format {version} > {FORMAT}): update paperkit"
        )


def _corrupt(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is corrupt ({_reason(error)}): delete its folder to use the checkpoint before it"
    )


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged and cannot be read ({_reason(error)}): use another")


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def fill(module: "Module", weights: Mapping[str, "Tensor"], source: Path | str) -> None:
    """Load `weights` into `module`; `UserError` names the first key or shape that does not fit."""
    own = module.state_dict()
    for key in sorted(set(own) ^ set(weights)):
        raise UserError(
            f"{source}: {'lacks' if key in own else 'has an unknown'} {key}: it is of another network"
        )
    for key, value in weights.items():
        if value.shape != own[key].shape:
            shapes = f"{tuple(value.shape)} instead of {tuple(own[key].shape)}"
            raise UserError(f"{source}: {key} has shape {shapes}: it is of another configuration")
    module.load_state_dict(dict(weights))
