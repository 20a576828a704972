"""The dictionary file, version 1: which units belong together, how sure that is, and on what probes.

A folder: `manifest.json` (models with weight hashes, layers and dead units, probes, rule, metric, counts
beside their nulls), `units.safetensors` (statistics, strongest images, signatures; the matches of every pair
with p and q), `chains.jsonl` (a line for each chain), `C0001.png` ... (a strip for each).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from paperkit import UserError, images
from paperkit.run import load_weights, read_json, write_folder
from torch import Tensor

from rosetta import pictures
from rosetta.cluster import cluster
from rosetta.maps import Maps
from rosetta.mining import Mined, counts
from rosetta.store import hash_of

SCHEMA, VERSION = "rosetta-dict", 1
SIGNED = (32, 7)
"""Images and side of the maps that a signature holds."""
STRONGEST = 4
"""Images kept for each unit."""
PICTURED = 60
"""Chains that get a picture, the strongest."""


@dataclass
class Dictionary:
    """Of one zoo."""

    manifest: dict[str, Any]
    chains: list[dict[str, Any]]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """Names, the pivot's first."""
        return [model["name"] for model in self.manifest["models"]]

    def unit_name(self, model: int, unit: int) -> str:
        """`layer/channel` of a unit's number."""
        for layer in self.manifest["models"][model]["layers"]:
            if unit < layer["channels"]:
                return f"{layer['name']}/{unit}"
            unit -= layer["channels"]
        raise UserError(f"{self.models[model]} has no unit {unit}: the dictionary is damaged")

    def key(self, chain: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
        """What identifies a chain across dictionaries: models and units, the pivot's first."""
        return tuple(zip(self.models, chain["units"], strict=True))


# ---- From what was mined -----------------------------------------------------------------------------------


def build(
    mined: Mined,
    rule: str,
    probes: Float[Tensor, "n c s s2"],
    about: Mapping[str, Any],
    hashes: Sequence[str],
    untrained: Mined | None = None,
) -> Dictionary:
    """The dictionary of the chains of one rule.

    `about` is what `describe` says of all probes, `hashes` are those of the models' weights. Under several
    processes all must call this, and pictures and signatures show this one's images.
    """
    zoo, config = mined.tables.maps, mined.tables.config
    models = [
        {
            "name": maps.model, "weights": weights,
            "layers": [
                {"name": name, "channels": channels, "grid": list(grid)}
                for name, channels, grid in zip(maps.names, maps.channels, maps.grids, strict=True)
            ],
            "dead": (~maps.alive).nonzero().flatten().tolist(),
        }
        for maps, weights in zip(zoo, hashes, strict=True)
    ]  # fmt: skip
    found = mined.chains[rule]
    groups = cluster(zoo[0], [chain.units[0] for chain in found.found])
    manifest = {
        "schema": SCHEMA, "version": VERSION, "models": models,
        "probes": dict(about),
        "match": asdict(config), "chain": rule, "counts": counts(mined, untrained),
        "cluster": {"cut": groups.cut, "tree": groups.tree},
    }  # fmt: skip
    chains = [
        {
            "id": f"C{number:04d}", "units": list(chain.units), "scores": list(chain.scores),
            "weakest": chain.weakest, "p": p, "q": q, "significant": significant, "cluster": group,
            "images": pictures.best_images(zoo, chain).tolist(),
        }
        for number, (chain, significant, p, q, group) in enumerate(
            zip(found.found, found.significant, found.p, found.q, groups.labels, strict=True), 1
        )
    ]  # fmt: skip
    drawn = {
        row["id"]: _png(pictures.strip(probes, zoo, chain))
        for row, chain in zip(chains[:PICTURED], found.found[:PICTURED], strict=True)
    }
    return Dictionary(manifest, chains, _tensors(mined), drawn)


def describe(name: str, probes: Float[Tensor, "n c s s2"]) -> dict[str, Any]:
    """Name, number and hash of probe images."""
    return {"name": name, "images": len(probes), "hash": hash_of([images.to_uint8(probes)])}


def _png(picture: Tensor) -> bytes:
    import io

    stream = io.BytesIO()
    images.to_pil(picture).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _tensors(mined: Mined) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for number, maps in enumerate(mined.tables.maps):
        stats = maps.measure()
        found |= {
            f"{number}.mean": stats.mean.float(), f"{number}.std": stats.std.float(),
            f"{number}.strongest": strongest(maps), f"{number}.signature": signature(maps).half(),
        }  # fmt: skip
    for (i, j), pair in mined.pairs.items():
        rows, columns = pair.matches.rows.int(), pair.matches.columns.int()
        found |= {
            f"{i}-{j}.units": torch.stack([rows, columns], 1), f"{i}-{j}.r": pair.matches.scores.float(),
            f"{i}-{j}.p": pair.p.float(), f"{i}-{j}.q": pair.q.float(),
        }  # fmt: skip
    return found


def strongest(maps: Maps) -> Tensor:
    """The images on which each unit answers most, by the mean of its map."""
    means = torch.cat([x[slice(None)].float().mean((2, 3)) for x in maps.data], 1)
    return means.topk(min(STRONGEST, len(means)), dim=0).indices.T.contiguous().int()


def signature(maps: Maps) -> Float[Tensor, "d m"]:
    """Each unit's maps on the first images, small and as one centred vector of length 1 (0 for a dead
    one)."""
    count, side = SIGNED
    parts = [
        F.adaptive_avg_pool2d(x[slice(0, count)].float(), (side, side)).transpose(0, 1).flatten(1)
        for x in maps.data
    ]
    flat = torch.cat(parts)
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)


# ---- Files -------------------------------------------------------------------------------------------------


def write(folder: Path, dictionary: Dictionary) -> Path:
    """Write the folder, whole or not at all; replaces one that stands there."""
    from safetensors.torch import save

    lines = "".join(json.dumps(chain) + "\n" for chain in dictionary.chains)
    tensors = {key: value.contiguous() for key, value in dictionary.tensors.items()}
    files = {
        "manifest.json": json.dumps(dictionary.manifest, indent=1).encode(),
        "chains.jsonl": lines.encode(),
        "units.safetensors": save(tensors),
        **{f"{name}.png": data for name, data in dictionary.pictures.items()},
    }
    write_folder(folder, files)
    return folder


def read(folder: Path) -> Dictionary:
    """What `write` wrote. Raises `UserError` for another schema or version, and for a damaged file."""
    if not (folder / "manifest.json").is_file():
        raise UserError(f"{folder} is no dictionary (it has no manifest.json): name the folder of one")
    manifest = read_json(folder / "manifest.json")
    if manifest.get("schema") != SCHEMA:
        raise UserError(f"{folder} is no dictionary: its schema is {manifest.get('schema')!r}, not {SCHEMA}")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{folder} is a dictionary of version {manifest.get('version')}, this program reads {VERSION}: "
            "mine again, or use the program that wrote it"
        )
    try:
        lines = (folder / "chains.jsonl").read_text(encoding="utf-8").splitlines()
        chains = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: chains.jsonl cannot be read ({error}): mine again") from None
    drawn = {file.stem: file.read_bytes() for file in sorted(folder.glob("C*.png"))}
    return Dictionary(manifest, chains, load_weights(folder / "units.safetensors"), drawn)


# ---- Two dictionaries --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Chains by the units of the models that both know: how many each has alone, and both with both
    scores."""

    models: list[str]
    shared: list[tuple[tuple[int, ...], float, float]]
    only_first: list[tuple[int, ...]]
    only_second: list[tuple[int, ...]]


def diff(first: Dictionary, second: Dictionary) -> Difference:
    """Compare two dictionaries on the models that both hold. Raises `UserError` for fewer than two."""
    models = [name for name in first.models if name in second.models]
    if len(models) < 2:
        raise UserError("the dictionaries share fewer than two models: there is nothing to compare")
    one, other = (_by_units(dictionary, models) for dictionary in (first, second))
    both = sorted(set(one) & set(other))
    return Difference(
        models,
        [(units, one[units], other[units]) for units in both],
        sorted(set(one) - set(other)),
        sorted(set(other) - set(one)),
    )


def _by_units(dictionary: Dictionary, models: Sequence[str]) -> dict[tuple[int, ...], float]:
    places = [dictionary.models.index(name) for name in models]
    return {tuple(chain["units"][i] for i in places): chain["weakest"] for chain in dictionary.chains}


def merge(first: Dictionary, second: Dictionary) -> Dictionary:
    """Stars of both around the pivot they share. p and q of a joined chain are the larger of the two.

    Raises `UserError` for other probes, another pivot or other weights of it, another rule or metric, chains
    that are no stars, and a model that both hold.
    """
    _check_joinable(first, second)
    heads = {chain["units"][0]: chain for chain in second.chains}
    chains = []
    for chain in first.chains:
        other = heads.get(chain["units"][0])
        if other is not None:
            chains.append({
                **chain, "units": chain["units"] + other["units"][1:],
                "scores": chain["scores"] + other["scores"],
                "weakest": min(chain["weakest"], other["weakest"]),
                "p": max(chain["p"], other["p"]), "q": max(chain["q"], other["q"]),
                "significant": chain["significant"] and other["significant"],
            })  # fmt: skip
    chains.sort(key=lambda chain: (-chain["weakest"], chain["units"]))
    chains = [{**chain, "id": f"C{number:04d}"} for number, chain in enumerate(chains, 1)]
    moved = _renumbered(first, second)
    manifest = {
        **first.manifest,
        "models": first.manifest["models"] + second.manifest["models"][1:],
        "counts": [row for d in (first, second) for row in d.manifest["counts"] if " x " in row["what"]],
        "cluster": {"cut": first.manifest["cluster"]["cut"], "tree": []},
    }
    return Dictionary(manifest, chains, moved)


def _check_joinable(first: Dictionary, second: Dictionary) -> None:
    a, b = first.manifest, second.manifest
    if a["probes"]["hash"] != b["probes"]["hash"]:
        raise UserError(
            f"the dictionaries saw different probes ({a['probes']['name']} and {b['probes']['name']}): "
            "their units cannot be compared, mine both on the same images"
        )
    pivots = a["models"][0], b["models"][0]
    if (pivots[0]["name"], pivots[0]["weights"]) != (pivots[1]["name"], pivots[1]["weights"]):
        raise UserError(f"the pivots differ: {pivots[0]['name']} and {pivots[1]['name']}, or their weights")
    if a["match"] != b["match"] or {a["chain"], b["chain"]} != {"star"}:
        raise UserError("only stars of one rule and metric can be joined: match both alike")
    if both := set(first.models[1:]) & set(second.models[1:]):
        raise UserError(f"both dictionaries hold {min(both)}: name one of them otherwise")


def _renumbered(first: Dictionary, second: Dictionary) -> dict[str, Tensor]:
    """The tensors of both, the second's models after the first's."""
    shift = len(first.models) - 1

    def moved(key: str) -> str:
        place, _, name = key.partition(".")
        numbers = [int(n) + shift if int(n) else 0 for n in place.split("-")]
        return f"{'-'.join(map(str, numbers))}.{name}"

    return {**{moved(key): value for key, value in second.tensors.items()}, **first.tensors}
