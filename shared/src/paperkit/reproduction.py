"""What every paper's `reproduce` does: find the claims, run those asked for, write their records.

And what a claim that takes long needs: figures and networks that a killed try at this commit made before are
taken from the folder of runs. Used by all papers.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paperkit import UserError, results
from paperkit.provenance import commit
from paperkit.run import RunOptions, read_json, runs_folder, suggest, to_json, write_json

Claim = Callable[[], Mapping[str, Any]]
"""Runs one claim and returns the fields of `results.claim` that are its own."""


def folder(module: str) -> Path:
    """The results folder of a module's (`__file__`) package in a source checkout, else ./results."""
    place = Path(module).parents[2] / "results"
    return place if (place.parent / "pyproject.toml").exists() else Path("results")


def written(place: Path) -> list[dict[str, Any]]:
    """The claims of a folder of result files, benchmarks left out."""
    return [record for record in results.read(place) if "holds" in record and "ratio" not in record]


def chosen(wanted: str, known: Mapping[str, Any], what: str = "claim") -> list[str]:
    """The names asked for: one, or "all". Raises `UserError` for a name that is not known."""
    if wanted != "all" and wanted not in known:
        raise UserError(f"no {what} {wanted}{suggest(wanted, known)}; the {what}s are {', '.join(known)}")
    return list(known) if wanted == "all" else [wanted]


def run(paper: str, claims: Mapping[str, Claim], place: Path, command: Callable[[str], str]) -> list[Path]:
    """Run these claims and write their result files to `place`; returns the paths.

    `command` gives the words that repeat a claim, after `paper reproduce`.
    """
    paths = []
    for name, claim in claims.items():
        print(f"{paper} reproduce {name}", flush=True)
        since = time.monotonic()
        fields = claim()
        record = results.claim(
            paper=paper, id=name, command=command(name), wall_s=time.monotonic() - since, **fields
        )
        path = results.write(place, record)
        print(f"{path}: {'holds' if record['holds'] else 'DOES NOT HOLD'}", flush=True)
        paths.append(path)
    return paths


# ---- What a killed claim had computed --------------------------------------------------------------------


def remember(paper: str, words: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Figures that were made at this commit before, or are made now and kept. `words` name them."""
    path = _place(paper, f"{words} {commit()[0]}").with_suffix(".json")
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def trained(paper: str, config: Any, train: Callable[[Any, RunOptions, str], Path], preset: str = "") -> Path:
    """The run folder of a configuration, trained on the CPU at this commit now or by an earlier claim.

    A run that was stopped goes on where it was.
    """
    place = _place(paper, json.dumps([to_json(config), commit()[0]], sort_keys=True))
    if not (place / "manifest.json").exists():
        train(config, RunOptions(out=str(place), device="cpu"), preset)
    elif read_json(place / "manifest.json").get("state") != "finished":
        train(config, RunOptions(resume=str(place), device="cpu"), preset)
    return place


def _place(paper: str, words: str) -> Path:
    return runs_folder(paper) / "reproduce" / hashlib.sha256(words.encode()).hexdigest()[:16]
