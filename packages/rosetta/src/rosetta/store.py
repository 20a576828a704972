"""Maps and probe images as files mapped into memory: recording that goes on, tables that read pieces."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from paperkit import UserError, images
from paperkit.run import explain, read_json, to_json, write_json
from torch import Tensor, nn

from rosetta.config import MatchConfig
from rosetta.hooks import Network, reading
from rosetta.maps import Maps


class Recording:
    """The maps of one network on a number of images, written batch by batch.

    A folder that holds a part already goes on after it.
    """

    def __init__(self, folder: Path, network: Network, count: int):
        self.folder, self.network = folder, network
        layers = [{"name": s.name, "channels": s.channels, "grid": list(s.grid)} for s in network.sites]
        facts = {"model": network.name, "images": count, "layers": layers}
        if (folder / "maps.json").exists():
            if read_json(folder / "maps.json") != facts:
                raise UserError(
                    f"{folder} holds maps of another network or of other images: use another folder"
                )
            self.done = int(read_json(folder / "done.json")["images"])
        else:
            self.done = 0
        mode = "r+" if self.done else "w+"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.arrays = [
                np.lib.format.open_memmap(
                    folder / f"{number:03d}.npy", mode, np.float32, (count, s.channels, *s.grid)
                )
                for number, s in enumerate(network.sites)
            ]
        except OSError as error:
            raise explain(error, folder) from error
        write_json(folder / "maps.json", facts)
        write_json(folder / "done.json", {"images": self.done})

    @torch.no_grad()
    def take(self, inputs: Float[Tensor, "b ..."]) -> None:
        """Run the network on the next batch and write its maps."""
        with reading(self.network) as found:
            self.network.call(self.network.module, self.network.prepare(inputs))
        for site, array in zip(self.network.sites, self.arrays, strict=True):
            array[self.done : self.done + len(inputs)] = found[site.name].cpu().numpy()
            array.flush()
        self.done += len(inputs)
        write_json(self.folder / "done.json", {"images": self.done})


def open_maps(folder: Path) -> Maps:
    """The maps that a recording left. Raises `UserError` where it is missing or not whole."""
    facts = read_json(folder / "maps.json")
    if read_json(folder / "done.json")["images"] < facts["images"]:
        raise UserError(f"{folder} is not whole: go on with the run first (--resume)")
    names = [layer["name"] for layer in facts["layers"]]
    # Copy on write: torch wants memory that it could write to.
    arrays = [np.load(folder / f"{number:03d}.npy", mmap_mode="c") for number in range(len(names))]
    return Maps(facts["model"], names, [torch.from_numpy(array) for array in arrays])


def write_maps(folder: Path, maps: Maps) -> None:
    """Maps that are in memory, as a recording leaves them."""
    layers = [
        {"name": name, "channels": channels, "grid": list(grid)}
        for name, channels, grid in zip(maps.names, maps.channels, maps.grids, strict=True)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, array in enumerate(maps.data):
            np.save(folder / f"{number:03d}.npy", array[slice(None)].float().numpy())
    except OSError as error:
        raise explain(error, folder) from error
    write_json(folder / "maps.json", {"model": maps.model, "images": maps.images, "layers": layers})
    write_json(folder / "done.json", {"images": maps.images})


def write_images(file: Path, probes: Float[Tensor, "n c s s2"]) -> None:
    """Probe images, uint8."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, images.to_uint8(probes).numpy())
    except OSError as error:
        raise explain(error, file) from error


def open_images(file: Path) -> Float[Tensor, "n c s s2"]:
    """Probe images in [-1, 1]. Raises `UserError` where they are missing."""
    try:
        return images.to_float(torch.from_numpy(np.load(file)))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): mine again") from None


def note_mined(
    place: Path,
    maps: Sequence[str],
    match: MatchConfig,
    probes: Mapping[str, Any],
    hashes: Sequence[str],
) -> None:
    """mined.json: what `match` needs to know of a folder with tables, maps and probes."""
    facts = {"maps": list(maps), "match": to_json(match), "probes": dict(probes), "hashes": list(hashes)}
    write_json(place / "mined.json", facts)


def folder_name(model: str) -> str:
    """A model's name as a folder's."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in model)


def hash_of(parts: Sequence[Tensor]) -> str:
    """The first 16 digits of the SHA-256 of tensors' bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(str((part.dtype, tuple(part.shape))).encode())
        digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def weights_hash(module: nn.Module) -> str:
    """Of a network's weights and buffers, in the order of their names."""
    state = module.state_dict()
    return hash_of([state[key] for key in sorted(state)])
