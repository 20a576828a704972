"""A trained zoo whose generator is steered by the units it shares with networks that look at images.

Behind the verbs `invert` and `edit` and their claims. `invert` holds the search itself, for any generator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from paperkit import UserError, rng
from paperkit.run import checkpoints, fill, from_json, load_checkpoint, read_json
from torch import Tensor

from rosetta import invert, nets, zoo
from rosetta.config import TrainConfig
from rosetta.hooks import Network, record
from rosetta.invert import Found, Generator, Goal, Map, Settings
from rosetta.maps import Maps
from rosetta.mining import Tables, mine_pair, stored_tables, with_rule
from rosetta.zoo import GENERATOR, Source, Stage

Pair = tuple[int, int, int]
"""Unit of the generator, number of the network that looks (from 0), and its unit."""


@dataclass(frozen=True)
class Steered:
    """The networks of a run of `train`, and what mining its generated images found."""

    config: TrainConfig
    source: Source
    stages: dict[str, Stage]
    tables: Tables
    """Of the generated images; the generator is model 0."""
    generator: Generator
    viewers: tuple[Network, ...]
    """The other models of the tables, in their order."""

    @property
    def start(self) -> Float[Tensor, "z"]:
        """The middle of all codes."""
        return torch.zeros(nets.CODE)

    def codes(self, count: int, seed: int, what: str) -> Float[Tensor, "n z"]:
        """Random codes that mining has not seen."""
        return rng.normal((count, nets.CODE), seed, 0, what)

    def goals(self, picture: Float[Tensor, "c s s2"], pairs: Sequence[Pair]) -> list[Goal]:
        """What a picture asks of the generator's units, by the maps of their partners."""
        seen = [record(viewer, picture[None]) for viewer in self.viewers]
        return invert.goals_of_image(seen, self.tables.maps[1:], pairs)


def open_run(folder: Path) -> Steered:
    """The zoo of a finished run of `train`, on the CPU.

    Raises `UserError` for a run of another verb, and for one that was not mined yet.
    """
    place = folder / "generated"
    saved = checkpoints(folder)
    if not saved or not (place / "mined.json").is_file():
        raise UserError(f"{folder} has no mined generator: name a run of rosetta train that has ended")
    config = from_json(TrainConfig, read_json(folder / "config.json"), str(folder / "config.json"))
    source = zoo.open_source(config)
    stages = zoo.stages(config, *source.shape, source.classes)
    weights, _ = load_checkpoint(saved[-1])
    for number, stage in enumerate(stages):
        for key, module in stage.modules.items():
            fill(module, weights[f"{number}-{key}"], folder)
            module.requires_grad_(False)
    by_name = {stage.name: stage for stage in stages}
    tables = stored_tables(place)
    code = torch.zeros(1, nets.CODE)
    generator = Generator(zoo.network(by_name[GENERATOR], code), tables.maps[0])
    viewers = [zoo.network(by_name[maps.model], source.probes[:1]) for maps in tables.maps[1:]]
    return Steered(config, source, by_name, tables, generator, tuple(viewers))


# ---- Pairs -------------------------------------------------------------------------------------------------


def shared_pairs(tables: Tables, k: int = 1) -> list[Pair]:
    """Best buddies of model 0 with every other model, above every score of permuted images."""
    for maps in tables.maps:
        maps.measure()
    ruled = with_rule(tables, replace(tables.config, k=k, back=0))
    return [
        (unit, number - 1, other)
        for number in range(1, len(tables.maps))
        for unit, other in sorted(mine_pair(ruled, 0, number).significant.pairs)
    ]


def matched_units(pairs: Sequence[Pair]) -> list[int]:
    """The generator's units that have a partner anywhere."""
    return sorted({unit for unit, _, _ in pairs})


def other_unit(maps: Maps, unit: int, generator: torch.Generator) -> int:
    """Another living unit of the same layer, at random."""
    layer, _ = maps.place(unit)
    near = [u for u in range(maps.offsets[layer], maps.offsets[layer + 1]) if maps.alive[u] and u != unit]
    if not near:
        raise UserError(f"{maps.model}, layer {maps.names[layer]}: no other unit to compare {unit} with")
    return near[int(torch.randint(len(near), (), generator=generator))]


def with_random_partners(tables: Tables, pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The same units of the generator, each beside a random unit of its partner's layer."""
    draw = rng.generator(seed, 0, "random partners")
    return [(u, j, other_unit(tables.maps[j + 1], v, draw)) for u, j, v in pairs]


def random_pairs(tables: Tables, pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """Random units of the layers of both, as many."""
    draw = rng.generator(seed, 0, "random pairs")
    return [
        (other_unit(tables.maps[0], u, draw), j, other_unit(tables.maps[j + 1], v, draw)) for u, j, v in pairs
    ]


def with_shuffled_partners(pairs: Sequence[Pair]) -> list[Pair]:
    """The same units on both sides, each of the generator's beside the next one's partner."""
    moved = [*pairs[1:], *pairs[:1]]
    return [(u, j, v) for (u, _, _), (_, j, v) in zip(pairs, moved, strict=True)]


# ---- Inversion and edits -----------------------------------------------------------------------------------


def inverted(
    steered: Steered, picture: Float[Tensor, "c s s2"], pairs: Sequence[Pair], settings: Settings
) -> Found:
    """The code whose image the networks see as they see the picture, sought from the middle."""
    return invert.seek(steered.generator, steered.start, steered.goals(picture, pairs), settings, picture)


def edited(
    steered: Steered,
    start: Float[Tensor, "z"],
    units: Sequence[int],
    edit: Callable[[Map], Map],
    settings: Settings,
) -> Found:
    """The code, near the start, at which the units have changed copies of their maps."""
    goals = invert.goals_of_edit(steered.generator, start, units, edit)
    return invert.seek(steered.generator, start, goals, settings)


def joined(
    steered: Steered,
    left: Float[Tensor, "z"],
    right: Float[Tensor, "z"],
    start: Float[Tensor, "z"],
    units: Sequence[int],
    settings: Settings,
) -> Found:
    """Copy and paste: the left half of one code's maps beside the right half of another's."""
    goals = partial(invert.goals_of_edit, steered.generator, units=units, edit=lambda x: x)
    return invert.seek(steered.generator, start, invert.pasted(goals(left), goals(right)), settings)


@torch.no_grad()
def image_of(steered: Steered, code: Float[Tensor, "z"]) -> Float[Tensor, "c s s2"]:
    """What the generator draws of a code."""
    return steered.generator.run(code[None])[0]
