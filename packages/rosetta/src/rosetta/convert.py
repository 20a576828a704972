"""Tables and lists of the released codes as a dictionary; a pickle is read without running anything."""

import io
import json
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch._utils
from jaxtyping import Float64
from paperkit import UserError
from torch import Tensor

from rosetta.config import MatchConfig
from rosetta.dictionary import SCHEMA, VERSION, Dictionary
from rosetta.match import Matches, Rule, summarise
from rosetta.method import expected_buddies
from rosetta.similarity import Tile

REFUSED = "holds more than a table, perhaps code, and was not opened"


class _TablesOnly(pickle.Unpickler):
    """Knows tensors, arrays and what they are made of; whatever else a pickle names is refused."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
            ("torch.storage", "_load_from_bytes"): _storage,
            ("collections", "OrderedDict"): dict,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) in known:
            return known[module, name]
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("a reference to outside")


def _storage(data: bytes) -> Any:
    """A tensor's storage, which torch pickles as bytes of its own format: read as data, onto the CPU."""
    with warnings.catch_warnings(action="ignore"):  # of what is refused anyway
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def read_table(file: Path) -> Float64[Tensor, "da db"]:
    """A pickled table of scores. Raises `UserError` for code (which is never executed) and for other
    shapes."""
    try:
        found = _TablesOnly(io.BytesIO(file.read_bytes())).load()
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{file} {REFUSED} ({str(error).splitlines()[0]})") from None
    except Exception as error:  # damaged bytes end in almost any exception of the reader
        raise UserError(f"{file} is damaged: {type(error).__name__}") from None
    table = torch.as_tensor(found) if isinstance(found, np.ndarray) else found
    if not isinstance(table, Tensor) or table.ndim != 2 or not table.is_floating_point():
        raise UserError(f"{file} holds no table of scores (two axes of numbers)")
    if not bool(torch.isfinite(table).all()):
        raise UserError(f"{file} holds scores that are not finite")
    return table.double().cpu()


def of_table(scores: Float64[Tensor, "da db"], k: int, back: int, name: str) -> Dictionary:
    """The matches of a table as a dictionary of two models; there is no null, so p and q are 1."""
    da, db = scores.shape
    rule = Rule(k, back)
    found = summarise([Tile(torch.arange(da), torch.arange(db), scores)], da, db, max(k, rule.returns))
    matches = found.part(rule)
    return _dictionary(["rows", "columns"], [da, db], matches, rule, name)


def read_pairs(file: Path) -> Dictionary:
    """`best_buddies.json` or `rosetta_anchors.json` of the successor: entries that name two units or more.

    Known forms of a unit: [layer, channel], {"layer": ..., "unit" or "channel" or "neuron": ...}. Raises
    `UserError` for other files.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON: {error}") from None
    entries = _entries(found)
    if not entries:
        raise UserError(f"{file} holds no list of pairs: name best_buddies.json or rosetta_anchors.json")
    units = [[_unit(part, file) for part in entry["units"]] for entry in entries]
    return _of_units(units, [float(entry["score"]) for entry in entries], file.name)


def _entries(found: Any) -> list[dict[str, Any]]:
    """Entries as {"units": [...], "score": ...}, whatever key holds them."""
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list) and value]
        found = lists[0] if len(lists) == 1 else []
    entries = []
    for entry in found if isinstance(found, list) else []:
        if isinstance(entry, dict):
            score = next(
                (entry[key] for key in ("score", "correlation", "r", "avg_corr", "mean") if key in entry),
                None,
            )
            parts = entry.get("units") or [v for v in entry.values() if isinstance(v, list | dict)]
        else:
            score, parts = None, []
        if score is not None and len(parts) >= 2:
            entries.append({"units": parts, "score": score})
    return entries


def _unit(part: Any, file: Path) -> tuple[str, int]:
    if isinstance(part, list) and len(part) == 2:
        return str(part[0]), int(part[1])
    if isinstance(part, dict) and "layer" in part:
        for key in ("unit", "channel", "neuron"):
            if key in part:
                return str(part["layer"]), int(part[key])
    raise UserError(
        f"{file}: a unit is neither [layer, channel] nor an object with layer and unit: {part!r}"[:300]
    )


def _of_units(units: Sequence[Sequence[tuple[str, int]]], scores: Sequence[float], name: str) -> Dictionary:
    """A dictionary whose layers are as large as the units named need them."""
    count = len(units[0])
    layers: list[dict[str, int]] = [{} for _ in range(count)]
    for entry in units:
        for number, (layer, channel) in enumerate(entry):
            layers[number][layer] = max(layers[number].get(layer, 0), channel + 1)
    models, starts = [], []
    for number, sizes in enumerate(layers):
        ordered = sorted(
            sizes, key=lambda word: (not word.isdecimal(), int(word) if word.isdecimal() else 0, word)
        )
        start: dict[str, int] = {}
        for layer in ordered:
            start[layer] = sum(sizes[before] for before in start)
        starts.append(start)
        models.append(_model(f"model {number}", [(layer, sizes[layer]) for layer in ordered]))
    chains = [
        {"units": [starts[i][layer] + channel for i, (layer, channel) in enumerate(entry)], "scores": [score]
        * (count - 1)} for entry, score in zip(units, scores, strict=True)
    ]  # fmt: skip
    return _with_chains(models, chains, MatchConfig(), name, [])


def _dictionary(
    names: Sequence[str], sizes: Sequence[int], matches: Matches, rule: Rule, name: str
) -> Dictionary:
    models = [_model(model, [("all", size)]) for model, size in zip(names, sizes, strict=True)]
    triples = zip(matches.rows.tolist(), matches.columns.tolist(), matches.scores.tolist(), strict=True)
    chains = [{"units": [u, v], "scores": [score]} for u, v, score in triples]
    expected = expected_buddies(sizes[0], sizes[1], rule.k, rule.returns)
    counts = [{"what": "rows x columns", "found": len(matches), "expected": expected}]
    return _with_chains(models, chains, MatchConfig(k=rule.k, back=rule.back), name, counts)


def _model(name: str, layers: Sequence[tuple[str, int]]) -> dict[str, Any]:
    return {
        "name": name, "weights": "", "dead": [],
        "layers": [{"name": layer, "channels": channels, "grid": []} for layer, channels in layers],
    }  # fmt: skip


def _with_chains(
    models: list[dict[str, Any]],
    chains: list[dict[str, Any]],
    config: MatchConfig,
    name: str,
    counts: list[Any],
) -> Dictionary:
    from dataclasses import asdict

    chains = sorted(chains, key=lambda chain: (-min(chain["scores"]), chain["units"]))
    manifest = {
        "schema": SCHEMA, "version": VERSION, "models": models, "chain": "star",
        "probes": {"name": f"unknown (imported from {name})", "images": 0, "hash": ""},
        "match": asdict(config), "counts": counts, "cluster": {"cut": 0.0, "tree": []},
    }  # fmt: skip
    rows = [
        {
            "id": f"C{number:04d}", **chain, "weakest": min(chain["scores"]), "p": 1.0, "q": 1.0,
            "significant": False, "cluster": 0, "images": [],
        }
        for number, chain in enumerate(chains, 1)
    ]  # fmt: skip
    return Dictionary(manifest, rows)
