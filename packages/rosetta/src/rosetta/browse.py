"""The browser: one HTML file with everything inside; search, limits, overlays, tree, keyboard. No network."""

import base64
import json
from importlib.resources import files
from pathlib import Path

from paperkit.run import atomic

from rosetta.dictionary import Dictionary


def write(target: Path, dictionary: Dictionary) -> Path:
    """Write the page of a dictionary; returns its path."""
    template = files("rosetta").joinpath("browser.html").read_text(encoding="utf-8")
    with atomic(target, "w") as stream:
        stream.write(template.replace("/*DATA*/null", as_script(data(dictionary))))
    return target


def data(dictionary: Dictionary) -> dict[str, object]:
    """What the page shows: chains with unit names, pictures, counts, models and the tree."""
    manifest = dictionary.manifest
    chains = [
        {
            **{key: chain[key] for key in ("id", "scores", "weakest", "p", "q", "significant", "cluster")},
            "units": [dictionary.unit_name(m, u) for m, u in enumerate(chain["units"])],
            "images": chain["images"],
            "picture": _embedded(dictionary.pictures.get(chain["id"])),
        }
        for chain in dictionary.chains
    ]
    return {
        "models": dictionary.models, "chains": chains, "counts": manifest["counts"],
        "probes": manifest["probes"], "match": manifest["match"], "rule": manifest["chain"],
        "cut": manifest["cluster"]["cut"], "tree": manifest["cluster"]["tree"],
    }  # fmt: skip


def as_script(value: object) -> str:
    """JSON that can stand in a script element, whatever names it holds."""
    return json.dumps(value).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _embedded(picture: bytes | None) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}" if picture else ""
