"""The verbs that make images. Used by `cli`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from paperkit import UserError, images, parallel
from paperkit.device import choose
from paperkit.nearest import Patches
from paperkit.resize import resize
from torch import Tensor
from torch.nn import functional as F

from gpnn import config as c
from gpnn import tasks
from gpnn.config import Common
from gpnn.method import Output, Settings, Source, key_set, level_size
from gpnn.provenance import legend, same_place
from gpnn.search import excess, matcher
from gpnn.session import Session, describe_sizes, read_image, settings_of


def describe(config: Common) -> dict[str, str]:
    """For --dry-run: the images and what they are shrunk to."""
    return describe_sizes(config)


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[1], x.shape[2]


def _summary(settings: Settings) -> str:
    return (
        f"{settings.levels} levels of ratio {settings.ratio:g}, alpha {settings.alpha:g}, "
        f"keys {settings.keys}, {settings.search} search"
    )


def _say_excess(session: Session, x: Tensor, output: Output, settings: Settings) -> None:
    """An approximate search says how far off it is, on the last level."""
    if settings.search != "patchmatch":
        return
    keys = key_set([Source.of(x, settings)], 0, "blurred" if settings.levels else "sharp")
    y = output.image
    found = matcher(keys, settings.patch, "patchmatch", settings.memory).search(y, settings.alpha, None)
    off = excess(Patches(keys.keys, settings.patch), y, found, settings.alpha)
    session.figures["patchmatch_excess"] = off
    session.note(
        f"PatchMatch against the exact search at the finest level: score {off['median']:.3f} times as large "
        f"in the median, {off['p99']:.2f} at the 99th percentile; another key for {off['missed']:.0%}"
    )


# ---- one image


def generate(config: c.GenerateConfig) -> Path:
    """`gpnn generate`: samples, a picture of all, and where their patches came from."""
    with Session("generate", config) as session:
        x = session.image(config.input)
        size = (config.height or x.shape[1], config.width or x.shape[2])
        settings = settings_of(config, "generate", [_size(x), size])
        session.note(f"{config.input} {x.shape[1]}x{x.shape[2]}: {_summary(settings)}")
        noise = tasks.Noise(config.noise_kind, config.noise)
        outputs = tasks.generate(x, config.samples, config.seed, size, noise, settings, session.on_level)
        session.picture("0-input", x, keep=False)
        _write_samples(session, outputs, x)
        _say_excess(session, x, outputs[0], settings)
    return session.folder


def texture(config: c.TextureConfig) -> Path:
    """`gpnn texture`: a texture of the size asked for."""
    with Session("texture", config) as session:
        x, size = session.image(config.input), (config.height, config.width)
        settings = settings_of(config, "texture", [_size(x), size])
        session.note(f"{config.input} {x.shape[1]}x{x.shape[2]}: {_summary(settings)}")
        outputs = tasks.texture(x, size, config.samples, config.seed, settings, session.on_level)
        session.picture("0-input", x, keep=False)
        _write_samples(session, outputs, x)
    return session.folder


def _write_samples(session: Session, outputs: list[Output], x: Tensor) -> None:
    rates = []
    for number, output in enumerate(outputs):
        session.output(f"sample-{number}", output, [_size(x)], shown=number == 0)
        rates.append(same_place(output))
    pictures = [output.image.cpu().clamp(0, 1) for output in outputs]
    sheet = images.grid(pictures, pad=4, scale=1, low=0, high=1)
    images.write(session.folder / "samples" / "1-samples.png", sheet)
    images.write(session.folder / "grid.png", sheet)
    session.picture("2-places-of-the-input", legend(_size(x)), keep=False)
    words = ", ".join(f"{rate:.0%}" for rate in rates[:12])
    session.note(f"patches at their own place in the input (100% = a copy): {words}")


def retarget(config: c.RetargetConfig) -> Path:
    """`gpnn retarget`: the image at another size, beside plain resizing."""
    with Session("retarget", config) as session:
        x = session.image(config.input)
        size = tasks.target_size(_size(x), (config.height, config.width))
        settings = settings_of(config, "retarget", [_size(x), size])
        session.note(f"{config.input} {x.shape[1]}x{x.shape[2]} -> {size[0]}x{size[1]}: {_summary(settings)}")
        output = tasks.retarget(x, size, config.gradual, settings, session.on_level)
        session.picture("0-input", x, keep=False)
        session.output("1-retargeted", output, [_size(x)])
        session.picture("2-plainly-resized", resize(x, size=size), keep=False)
        _say_excess(session, x, output, settings)
    return session.folder


def edit(config: c.EditConfig) -> Path:
    """`gpnn edit`: the crude edit and its seamless form."""
    with Session("edit", config) as session:
        x, edited = session.image(config.input), session.image(config.edited)
        _edit(session, x, edited)
    return session.folder


def reshuffle(config: c.ReshuffleConfig) -> Path:
    """`gpnn reshuffle`: boxes moved, crudely and seamlessly."""
    with Session("reshuffle", config) as session:
        x = session.image(config.input)
        moves = config.move or (_default_move(_size(x)),)
        crops = []
        for words in moves:
            top, left, height, width, row, column = _numbers(words, 6, "--move")
            crops.append(((top, left, height, width), (row, column)))
        _edit(session, x, tasks.place_crops(x, crops, erase=not config.keep))
    return session.folder


def _edit(session: Session, x: Tensor, edited: Tensor) -> None:
    if x.shape != edited.shape:
        raise UserError(f"the edited image is {_size(edited)}, the input {_size(x)}: give equal sizes")
    side = tasks.change_side((x - edited).abs().amax(0) > tasks.CHANGED)
    settings = settings_of(session.config, "edit", [_size(x)], side)
    session.note(f"{x.shape[1]}x{x.shape[2]}, change of {side} pixels: {_summary(settings)}")
    output = tasks.edit(x, edited, settings, session.on_level)
    session.picture("0-input", x, keep=False)
    session.picture("1-crude-edit", edited, keep=False)
    session.output("2-edited", output, [_size(x)])


def _default_move(size: tuple[int, int]) -> str:
    """The middle of the left half to the right, where nothing is said."""
    h, w = size
    return f"{h // 4},{w // 8},{h // 3},{w // 4},{h // 2},{5 * w // 8}"


def _numbers(words: str, count: int, flag: str) -> list[int]:
    parts = words.split(",")
    if len(parts) != count or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"{flag} takes {count} whole numbers with commas between, not {words!r}")
    return [int(part) for part in parts]


def inpaint(config: c.InpaintConfig) -> Path:
    """`gpnn inpaint`: a hole filled, its colour as the cue."""
    with Session("inpaint", config) as session:
        x = session.image(config.input)
        hole = _hole(session, x)
        if config.colour:
            x = torch.where(hole, _colour(config.colour, x, hole), x)
        change = tasks.change_side(hole)
        settings = settings_of(config, "inpaint", [_size(x)], change)
        if config.levels < 0:
            settings = tasks.fillable(hole, settings)
        session.note(f"{x.shape[1]}x{x.shape[2]}, hole of {change} pixels: {_summary(settings)}")
        output = tasks.inpaint(x, hole, not config.whole, config.parity, settings, session.on_level)
        session.picture("0-painted", x, keep=False)
        session.output("1-filled", output, [_size(x)])
    return session.folder


def _hole(session: Session, x: Tensor) -> Bool[Tensor, "h w"]:
    config: Any = session.config
    if config.mask:
        mask = images.to_float(images.read(config.mask, "grey"), 0, 1)[0]
        original = images.read(config.input) if Path(config.input).exists() else None
        if original is not None and original.shape[1:] == mask.shape and _size(x) != tuple(mask.shape):
            # The picture was shrunk: so is its mask, and a pixel that holds any of the hole is hole.
            mask = F.adaptive_max_pool2d(mask[None], _size(x))[0]
        if tuple(mask.shape) != _size(x):
            raise UserError(f"the mask is {tuple(mask.shape)}, the image {_size(x)}: give equal sizes")
        return (mask > 0.5).to(x.device)
    h, w = _size(x)
    words = config.hole or f"{h // 3},{w // 3},{h // 4},{w // 4}"
    top, left, height, width = _numbers(words, 4, "--hole")
    if min(height, width) < 1 or top + height > h or left + width > w:
        raise UserError(f"--hole {words} leaves the image of {h}x{w}: move it inside")
    hole = torch.zeros(h, w, dtype=torch.bool, device=x.device)
    hole[top : top + height, left : left + width] = True
    return hole


def _colour(words: str, x: Tensor, hole: Tensor) -> Float[Tensor, "c 1 1"]:
    if words == "mean":
        return x[:, ~hole].mean(1)[:, None, None]
    values = torch.tensor(_numbers(words, 3, "--colour"), device=x.device)
    if int(values.max()) > 255:
        raise UserError(f"--colour takes numbers of 0..255, not {words}")
    return (values / 255)[:, None, None].to(x)


# ---- several images


def analogy(config: c.AnalogyConfig) -> Path:
    """`gpnn analogy`: one image's layout in another's patches, or a sheet of settings."""
    with Session("analogy", config) as session:
        a, b = session.image(config.source), session.image(config.structure)
        session.picture("0-source", a, keep=False)
        session.picture("1-structure", b, keep=False)
        if config.search_settings:
            _analogy_sheet(session, a, b)
            return session.folder
        pairs = [("2-analogy", a, b), *([("3-the-other-way", b, a)] if config.both else [])]
        for name, source, structure in pairs:
            settings = settings_of(config, "analogy", [_size(source), _size(structure)])
            session.note(f"{name[2:]}: {_summary(settings)}")
            output = tasks.analogy(source, structure, settings, session.on_level)
            session.output(name, output, [_size(source)])
    return session.folder


def _analogy_sheet(session: Session, a: Tensor, b: Tensor) -> None:
    """Levels by alpha: a pair's best settings differ from another's by as much as all of this."""
    base = settings_of(session.config, "analogy", [_size(a), _size(b)])
    deepest = max(
        n
        for n in range(11)
        if min(*level_size(_size(a), base.ratio, n), *level_size(_size(b), base.ratio, n)) > base.patch
    )
    levels = sorted({min(n, deepest) for n in (4, 6, 8, 10)})
    strips = {}
    for alpha in (5e-2, 5e-3, 5e-4):
        outputs = [
            tasks.analogy(a, b, replace(base, alpha=alpha, levels=n), session.on_level) for n in levels
        ]
        strips[f"alpha {alpha:g}"] = [output.image.cpu().clamp(0, 1) for output in outputs]
    sheet = images.rows(strips, heads=[f"{n} levels" for n in levels], low=0, high=1)
    images.write(session.folder / "samples" / "2-settings.png", sheet)
    images.write(session.folder / "settings.png", sheet)
    session.note(f"a sheet of {3 * len(levels)} settings: settings.png")


def collage(config: c.CollageConfig) -> Path:
    """`gpnn collage`: the row of images, and what it grew into."""
    with Session("collage", config) as session:
        if len(config.inputs) < 2:
            raise UserError(f"a collage needs at least two images, got {len(config.inputs)}")
        parts = tasks.side_by_side([session.image(name) for name in config.inputs])
        row = torch.cat(parts, 2)
        narrow = row.shape[1], round(row.shape[2] * tasks.SHRINK**config.shrinkings)
        settings = settings_of(config, "collage", [*map(_size, parts), narrow])
        session.note(f"{len(parts)} images, {row.shape[1]}x{row.shape[2]}: {_summary(settings)}")
        output = tasks.collage(parts, config.shrinkings, settings, session.on_level)
        session.picture("0-side-by-side", row, keep=False)
        figures = session.output("1-collage", output, [_size(x) for x in parts])
        given = zip(config.inputs, figures["shares"], strict=True)
        session.note("; ".join(f"{Path(name).stem} gave {share:.0%}" for name, share in given))
    return session.folder


# ---- a folder


def batch(config: c.BatchConfig) -> Path:
    """`gpnn batch`: samples of every image of a folder; images done before are passed over.

    Under `accelerate launch` each process takes its share of the files.
    """
    folder = Path(config.folder)
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}: name a folder of images")
    names = images.natural_order(path.name for path in folder.iterdir() if images.is_image(path.name))
    if not names:
        raise UserError(f"no images in {folder} (looked for {' '.join(images.SUFFIXES)})")
    rank, size = parallel.world()
    device, out = choose(config.device).device, Path(config.out)
    done, made = 0, 0
    for name in names[rank::size]:
        targets = [out / f"{Path(name).stem}-{k}.png" for k in range(config.samples)]
        if all(target.exists() for target in targets):
            done += 1
            continue
        x = read_image(str(folder / name), config.side).to(device)
        settings = settings_of(config, "generate", [_size(x)])
        noise = tasks.Noise(config.noise_kind, config.noise)
        outputs = tasks.generate(x, config.samples, config.seed, None, noise, settings)
        for target, output in zip(targets, outputs, strict=True):
            images.write(target, output.image.cpu().clamp(0, 1), 0, 1)
        made += 1
        print(f"{name}: {config.samples} samples", flush=True)
    where = f" (process {rank} of {size})" if size > 1 else ""
    print(f"{out}: {made} images made, {done} were there{where}", flush=True)
    return out
