"""The verbs `invert` and `edit`: pictures in the run folder, and which pairs followed their goals."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from paperkit import UserError, images
from paperkit.run import find
from torch import Tensor

from rosetta import invert as search
from rosetta import steer
from rosetta.config import EditConfig, InvertConfig
from rosetta.invert import Found, Settings
from rosetta.steer import Pair, Steered
from rosetta.zoo import MEMBERS

FOLLOWED = 0.5
"""A goal whose correlation stays below this was not reached."""
Picture = Float[Tensor, "c s s2"]


def invert(config: InvertConfig) -> Path:
    """`rosetta invert`: writes samples/inverted.png of the run and prints the pairs; returns its path.

    Raises `UserError` for a run without a mined generator, and where it shares no unit with the networks.
    """
    folder = find("rosetta", config.run)
    steered = steer.open_run(folder)
    pairs = _pairs(steered, config.k, config.pixels)
    settings = Settings(config.steps, config.rate, config.prior, config.pixels)
    targets = _targets(steered, config)
    found = [steer.inverted(steered, picture, pairs, settings) for picture in targets]
    print(_followed(steered, pairs, found))
    return _written(
        folder / "samples" / "inverted.png", {"picture": targets, "generated": [x.image for x in found]}
    )


def _pairs(steered: Steered, k: int, pixels: float = 0.0) -> list[Pair]:
    pairs = steer.shared_pairs(steered.tables, k)
    if not pairs and not pixels:
        raise UserError(
            f"the generator shares no unit with the networks above chance at k {k}: raise --k, up to 10"
        )
    return pairs


def _targets(steered: Steered, config: InvertConfig) -> list[Picture]:
    if not config.picture:
        return list(steered.source.probes[: config.count])
    channels, side = steered.source.shape
    read = images.read(config.picture, "grey" if channels == 1 else "rgb")
    return [images.to_float(images.fit(read, side))]


def _followed(steered: Steered, pairs: Sequence[Pair], found: Sequence[Found]) -> str:
    """A line for each pair: its units, the mean correlation over the pictures, and whether it failed."""
    generator, *others = steered.tables.maps
    lines = []
    for number, (unit, viewer, other) in enumerate(pairs):
        reached = sum(x.reached[number] for x in found) / len(found)
        units = f"{generator.name(unit)}  {others[viewer].model}/{others[viewer].name(other)}"
        lines.append(f"{reached:6.3f}  {units}{'' if reached >= FOLLOWED else '   not followed'}")
    return "\n".join(lines)


def _written(target: Path, rows: dict[str, Sequence[Picture]]) -> Path:
    images.write(target, images.rows({name: torch.stack(list(some)) for name, some in rows.items()}))
    print(target)
    return target


# ---- Edits -------------------------------------------------------------------------------------------------


def edit(config: EditConfig) -> Path:
    """`rosetta edit`: writes samples/EDIT.png of the run and prints what changed; returns its path.

    Raises `UserError` as `invert` does, and for a unit that the generator does not have.
    """
    folder = find("rosetta", config.run)
    steered = steer.open_run(folder)
    settings = Settings(config.steps, config.rate, config.prior)
    starts = steered.codes(config.count, config.seed, "edit")
    before = [steer.image_of(steered, code) for code in starts]
    made, beside = _EDITS[config.edit](steered, config, starts, settings)
    after = [found.image for found in made]
    print(_moved(before, after))
    return _written(
        folder / "samples" / f"{config.edit}.png", {"generated": before, **beside, config.edit: after}
    )


Made = tuple[list[Found], dict[str, Sequence[Picture]]]
"""What was found, and rows of the picture between first and last."""


def _units(steered: Steered, config: EditConfig) -> list[int]:
    if not config.unit:
        return steer.matched_units(_pairs(steered, config.k))
    maps = steered.tables.maps[0]
    layer, _, channel = config.unit.rpartition("/")
    if layer not in maps.names or not channel.isdecimal():
        raise UserError(f"no unit {config.unit}: the generator's layers are {', '.join(maps.names)}")
    number = maps.names.index(layer)
    if int(channel) >= maps.channels[number]:
        raise UserError(f"no unit {config.unit}: {layer} has {maps.channels[number]} units")
    return [maps.offsets[number] + int(channel)]


def _by_maps(steered: Steered, config: EditConfig, starts: Tensor, settings: Settings) -> Made:
    """One edit of every unit's map."""
    units = _units(steered, config)
    change = _change(config)
    return [steer.edited(steered, code, units, change, settings) for code in starts], {}


def _change(config: EditConfig) -> Callable[[search.Map], search.Map]:
    if config.edit == "shift":
        return search.shift(config.down, config.right)
    return search.zoom(config.by) if config.edit == "zoom" else search.raised(config.by)


def _paste(steered: Steered, config: EditConfig, starts: Tensor, settings: Settings) -> Made:
    """Beside each image the next one, whose right half comes in."""
    units, others = _units(steered, config), starts.roll(-1, 0)
    found = [
        steer.joined(steered, left, right, steered.start, units, settings)
        for left, right in zip(starts, others, strict=True)
    ]
    return found, {"right half of": [steer.image_of(steered, code) for code in others]}


def _align(steered: Steered, config: EditConfig, starts: Tensor, settings: Settings) -> Made:
    """From each image towards what the networks see in one of another class.

    Note: the paper fixes the class by the generator's class code; this generator has none, so the code stays
    near its start by the prior alone.
    """
    pairs = _pairs(steered, config.k)
    classes = _classes(steered, starts)
    targets = [_of_another_class(number, classes) for number in range(len(starts))]
    pictures = [steer.image_of(steered, starts[target]) for target in targets]
    found = [
        search.seek(steered.generator, code, steered.goals(picture, pairs), settings)
        for code, picture in zip(starts, pictures, strict=True)
    ]
    return found, {"seen as": pictures}


@torch.no_grad()
def _classes(steered: Steered, codes: Tensor) -> list[int]:
    """Of the codes' images, as the first classifier sees them."""
    drawn = torch.stack([steer.image_of(steered, code) for code in codes])
    return steered.stages[MEMBERS[0]].modules["net"].eval()(drawn).argmax(1).tolist()


def _of_another_class(number: int, classes: Sequence[int]) -> int:
    later = [*range(number + 1, len(classes)), *range(number)]
    for other in later:
        if classes[other] != classes[number]:
            return other
    raise UserError("all images are of one class to the classifier: give another --seed, or more --count")


_EDITS: dict[str, Any] = {
    "shift": _by_maps, "zoom": _by_maps, "unit": _by_maps, "paste": _paste, "align": _align
}  # fmt: skip


def _moved(before: Sequence[Picture], after: Sequence[Picture]) -> str:
    """Mean change of the centre of mass and of the foreground's area."""
    ways = torch.tensor([
        [b - a for a, b in zip(search.centre_of_mass(x), search.centre_of_mass(y), strict=True)]
        for x, y in zip(before, after, strict=True)
    ])  # fmt: skip
    areas = [sum(map(search.foreground, some)) / len(some) for some in (before, after)]
    down, right = (100 * ways.mean(0)).tolist()
    return (
        f"centre of mass moved by {down:+.1f} % down, {right:+.1f} % to the right; foreground "
        f"{100 * areas[0]:.1f} % -> {100 * areas[1]:.1f} % of the image"
    )
