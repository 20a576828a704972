"""A verb's folder: images in, settings, outputs, provenance, time and memory per level, report.

Used by `commands`. A folder has config.json, manifest.json, metrics.jsonl (one line per level), images/ (the
outputs at full size), samples/ (the pictures of the report), provenance*.npz and report.html.
"""

import contextlib
import dataclasses
import io
import json
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Float
from paperkit import UserError, images, report
from paperkit.data import photograph
from paperkit.data.embedded import PHOTOGRAPHS
from paperkit.device import choose
from paperkit.provenance import commit, hardware, now, versions
from paperkit.resize import resize
from paperkit.run import atomic, explain, runs_folder, to_json, write_json
from torch import Tensor

from gpnn.config import Common
from gpnn.method import LevelFacts, Output, Settings
from gpnn.provenance import colours, pixel_places, same_place, shares
from gpnn.tasks import DEFAULTS, Task, automatic_depth

TITLE = "Drop the GAN: patch nearest neighbours as a single-image generative model"


def read_image(name: str, side: int) -> Float[Tensor, "3 h w"]:
    """An image file or an embedded photograph in [0, 1], its longer side shrunk to `side` pixels (0: kept).

    EXIF orientation is applied, 16 bits become 8, CMYK becomes RGB, transparency is laid over white, of an
    animation the first frame is taken. Raises `UserError` for what cannot be read.
    """
    names = [file.rsplit(".", 1)[0] for file in PHOTOGRAPHS]
    if not name:
        raise UserError(f"no image given: name a file or an embedded photograph ({', '.join(names)})")
    if name in names and not Path(name).exists():
        x = photograph(name)
    elif Path(name).suffix or Path(name).exists():
        x = images.read(name)
    else:
        raise UserError(f"no image {name}: name a file or an embedded photograph ({', '.join(names)})")
    y = images.to_float(x, 0, 1)
    longer = max(y.shape[1:])
    if side and longer > side:
        size = [max(1, round(n * side / longer)) for n in y.shape[1:]]
        y = resize(y, size=size).clamp(0, 1)
    return y


def settings_of(config: Common, task: Task, sizes: Sequence[tuple[int, int]], change: int = 0) -> Settings:
    """The task's settings with what the flags say otherwise."""
    base = DEFAULTS[task]
    ratio = config.ratio or base.ratio
    levels = config.levels
    if levels < 0:
        levels = automatic_depth(task, sizes, ratio, change, config.patch)
    return Settings(
        alpha=config.alpha or base.alpha,
        ratio=ratio,
        levels=levels,
        coarse_steps=config.coarse_steps or (min(base.coarse_steps, config.steps or base.coarse_steps)),
        steps=config.steps or base.steps,
        keys=base.keys if config.keys == "task" else config.keys,
        patch=config.patch,
        fold=config.fold,
        search=config.search,
        memory=config.memory * 2**20,
    )


class Session:
    """A verb's folder while it works."""

    def __init__(self, verb: str, config: Common) -> None:
        self.verb, self.config = verb, config
        self.device = choose(config.device).device
        self.folder = new_folder(verb, config.out)
        self.facts: list[tuple[LevelFacts, int]] = []
        """What each level cost, and the process's memory after it in MiB."""
        self.notes: list[str] = []
        self.figures: dict[str, Any] = {}
        self.strips: dict[str, list[Tensor]] = {}
        revision, dirty = commit()
        self.manifest = {
            "paper": "gpnn", "title": TITLE, "preset": verb, "seed": getattr(config, "seed", None),
            "command": shlex.join(["gpnn", *sys.argv[1:]]), "commit": revision, "dirty": dirty,
            "versions": versions("gpnn"), "hardware": hardware(str(self.device)), "device": str(self.device),
            "started": now(), "state": "running",
        }  # fmt: skip
        write_json(self.folder / "config.json", {**to_json(config), "verb": verb})
        write_json(self.folder / "manifest.json", self.manifest)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        state = "finished" if kind is None else "interrupted" if kind is KeyboardInterrupt else "failed"
        changes = {"state": state, "ended": now(), **({"error": f"{kind.__name__}: {error}"} if kind else {})}
        with contextlib.suppress(UserError) if kind else contextlib.nullcontext():
            write_json(self.folder / "manifest.json", {**self.manifest, **changes})
        if kind is None:
            self._close()

    def image(self, name: str) -> Float[Tensor, "3 h w"]:
        """Read an image onto the device."""
        return read_image(name, self.config.side).to(self.device)

    def on_level(self, facts: LevelFacts) -> None:
        """Keep what a level cost, and the memory that the process holds after it."""
        memory = round(psutil.Process().memory_info().rss / 2**20)
        self.facts.append((facts, memory))
        record = {
            "step": len(self.facts), "level": facts.level, "seconds": round(facts.seconds, 3),
            "rss_mib": memory, "queries": facts.queries, "keys": facts.keys, "distance": facts.distance,
        }  # fmt: skip
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def picture(self, name: str, image: Tensor, keep: bool = True) -> None:
        """Write an image in [0, 1] for the report, and at full size beside the outputs."""
        x = image.detach().cpu().clamp(0, 1)
        images.write(self.folder / "samples" / f"{name}.png", x, 0, 1)
        if keep:
            images.write(self.folder / "images" / f"{name}.png", x, 0, 1)

    def output(
        self, name: str, output: Output, sizes: Sequence[tuple[int, int]], shown: bool = True
    ) -> dict[str, Any]:
        """Write an output with its provenance; returns its figures."""
        x = output.image.cpu().clamp(0, 1)
        images.write(self.folder / "images" / f"{name}.png", x, 0, 1)
        places = pixel_places(output, self.config.patch).cpu()
        if shown:
            images.write(self.folder / "samples" / f"{name}.png", x, 0, 1)
            map_ = colours(places, sizes).clamp(0, 1)
            images.write(self.folder / "samples" / f"{name}-provenance.png", map_, 0, 1)
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, source=places[..., 0].numpy().astype(np.uint8),
            row=places[..., 1].numpy().astype(np.int32), column=places[..., 2].numpy().astype(np.int32),
            distance=output.distance.cpu().numpy().astype(np.float32),
        )  # fmt: skip
        with atomic(self.folder / f"provenance-{name}.npz") as stream:
            stream.write(buffer.getvalue())
        figures: dict[str, Any] = {"mean_distance": float(output.distance.mean())}
        if len(sizes) == 1:
            figures["same_place"] = same_place(output)
        else:
            figures["shares"] = shares(output, len(sizes))
        self.figures[name] = figures
        return figures

    def note(self, text: str) -> None:
        """A line for the reader, also on the report."""
        print(text, flush=True)
        self.notes.append(text)

    def _close(self) -> None:
        write_json(self.folder / "figures.json", self.figures)
        if self.facts:
            table = "; ".join(
                f"level {f.level} ({f.size[0]}x{f.size[1]}) {f.seconds:.2f} s, {memory} MiB"
                for f, memory in self.facts[-12:]
            )
            self.notes.append(f"Time per level, all samples together, and the process's memory: {table}.")
        path = report.write(self.folder, TITLE, "arXiv 2103.15545", notes="\n\n".join(self.notes))
        print(f"{self.folder}: images/, provenance, {path.name}", flush=True)


def new_folder(verb: str, out: str) -> Path:
    """An empty folder: `out`, or a new one below runs/gpnn. Raises `UserError` where it cannot be made."""
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{verb}"
    folder = Path(out) if out else runs_folder("gpnn") / stamp
    count = 1
    while not out and folder.exists():
        count += 1
        folder = runs_folder("gpnn") / f"{stamp}-{count}"
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"--out {out} is not empty: choose another")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, folder) from error
    return folder


def describe_sizes(config: Common) -> dict[str, str]:
    """What a dry run says about images and device."""
    facts = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("input", "edited", "source", "structure", "inputs") and value:
            for name in (value,) if isinstance(value, str) else value:
                height, width = read_image(name, config.side).shape[1:]
                facts[field.name if isinstance(value, str) else name] = f"{name}, {height}x{width}"
    facts["device"] = str(choose(config.device).device)
    facts["threads"] = str(torch.get_num_threads())
    return facts
