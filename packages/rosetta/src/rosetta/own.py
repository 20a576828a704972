"""`rosetta mine`: networks of one's own, recorded on images and mined; goes on where it was stopped."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from paperkit import UserError, data, images, parallel, report
from paperkit.device import choose
from paperkit.run import Run, RunOptions
from torch import Tensor

from rosetta import dictionary, hooks, mining, models, store
from rosetta.config import MineConfig
from rosetta.hooks import Network
from rosetta.mining import Tables
from rosetta.train import READING, SUBTITLE, TITLE, tables_of, write_dictionary


@dataclass(frozen=True)
class Probes:
    """Images that the networks are compared on."""

    name: str
    pixels: Float[Tensor, "n c s s"]


def mine(config: MineConfig, options: RunOptions | None = None, preset: str = "") -> Path:
    """Record every network's maps, mine them, write dictionary and browser; returns the run folder.

    Under several processes each records its own part of the images, and the tables' sums are added up
    exactly. Raises `UserError` for bad input.
    """
    options = options or RunOptions()
    device = choose(options.device, options.precision)
    parallel.launch(device)
    probes = open_probes(config)
    zoo = [ready(config, words, probes, device.device) for words in config.models]
    run = Run.open(
        "rosetta", TITLE, config, options, preset, config.seed, verb="mine", device=str(device.device),
        precision="fp32", data=probes.name,
        parameters=sum(p.numel() for n in zoo for p in n.module.parameters()),
    )  # fmt: skip
    if not run.begins(device=device, data=probes.name):
        return run.folder
    for network in zoo:
        run.say(f"network   {network.name}: {units(network):,} units in {len(network.sites)} layers")

    notes = ""
    with run.guard():
        own = part(probes.pixels)
        places = [place_of(run.folder, network) for network in zoo]
        recordings = [store.Recording(p, n, len(own)) for p, n in zip(places, zoo, strict=True)]
        batches = math.ceil(len(own) / config.batch)
        done = min(r.done for r in recordings) // config.batch
        step = done
        for step in run.steps(done, batches):
            # One batch of images through every network that has not seen it.
            first = (step - 1) * config.batch
            x = own[first : first + config.batch].to(device.device)
            for recording in recordings:
                if recording.done <= first:
                    recording.take(x)
        if step == batches:
            notes = conclude(run, config, probes, own, zoo, places)
    if run.main:
        run.say(f"report    {report.write(run.folder, TITLE, SUBTITLE, notes=notes)}")
    return run.folder


def conclude(
    run: Run, config: MineConfig, probes: Probes, own: Tensor, zoo: list[Network], places: list[Path]
) -> str:
    """Tables, dictionary, browser; returns notes for the report."""
    maps = [store.open_maps(place) for place in places]
    alone = parallel.world()[1] == 1
    tables = Tables(maps, config.match, run.folder / "tables" if run.main and alone else None)
    mined = mining.mine(tables)
    for each in maps:
        if dead := each.units - each.living:
            run.say(f"dead      {each.model}: {dead} of {each.units} units never change")
    hashes = [store.weights_hash(network.module) for network in zoo]
    about = dictionary.describe(probes.name, probes.pixels)
    built = dictionary.build(mined, "star", own, about, hashes)
    rows = mining.counts(mined)
    notes = "\n\n".join([*mining.as_words(rows), READING])
    if not run.main:
        return notes
    if alone:
        store.write_images(run.folder / "probes.npy", own)
        store.note_mined(run.folder, [place.name for place in places], config.match, about, hashes)
    write_dictionary(run.folder, built)
    run.say(mining.as_text(rows))
    run.say(READING)
    run.say(f"browser   {run.folder / 'browser.html'}")
    return notes


def place_of(folder: Path, network: Network) -> Path:
    """Where a network's maps go; a folder for each process where there are several."""
    rank, processes = parallel.world()
    below = folder / "maps" / store.folder_name(network.name)
    return below if processes == 1 else below.with_name(f"{below.name}-{rank}-of-{processes}")


def part(pixels: Float[Tensor, "n c s s"]) -> Float[Tensor, "p c s s"]:
    """This process's images: every so-manieth, equally many for all."""
    rank, processes = parallel.world()
    return pixels[rank::processes][: len(pixels) // processes]


def open_probes(config: MineConfig) -> Probes:
    """The configured images, drawn by the seed. Raises `UserError` for fewer than two."""
    found = data.open_set(config.images, config.split, download=config.download)
    count = min(config.limit, len(found))
    pixels, _ = found.tensor(count, config.size, seed=config.seed)
    processes = parallel.world()[1]
    if count // processes < 2:
        raise UserError(
            f"{found.name} has {count} images, two or more are needed on each of {processes} processes"
        )
    return Probes(f"{found.name}, {count:,} of {len(found):,}", images.to_float(pixels))


def ready(config: MineConfig, words: str, probes: Probes, device: torch.device) -> Network:
    """A network on the device, its layers found by a dry run on two images."""
    network = models.load(words, config.download, config.seed)
    network.module.to(device)
    network.margin = next((int(value) for name, value in _pairs(config.margin) if name in words), 0)
    layers = [value for name, value in _pairs(config.layers) if name in words]
    hooks.discover(network, probes.pixels[:2].to(device), layers)
    return network


def _pairs(words: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (word.partition("=") for word in words)]


def units(network: Network) -> int:
    """How many units the sites have."""
    return sum(site.channels for site in network.sites)


def describe(config: MineConfig) -> dict[str, str]:
    """What `--dry-run` adds: each network's layers, units and grids, and the memory of maps and tables."""
    probes = open_probes(config)
    zoo = [ready(config, words, probes, torch.device("cpu")) for words in config.models]
    facts: dict[str, str] = {"images": f"{probes.name}, {probes.pixels.shape[2]}x{probes.pixels.shape[3]}"}
    for network in zoo:
        facts[network.name] = "; ".join(hooks.facts(network))
    floats = sum(s.channels * s.grid[0] * s.grid[1] for n in zoo for s in n.sites)
    facts["maps"] = f"{floats * 4 * len(probes.pixels) / 2**30:.2f} GiB on disk"
    rows = units(zoo[0])
    tables = ", ".join(f"{rows:,} x {units(n):,}" for n in zoo[1:])
    facts["tables"] = f"{tables} with the pivot; {tables_of(config.match, len(zoo))}"
    facts["memory"] = f"{config.match.memory} MiB for tables, of which none is held whole"
    return facts
