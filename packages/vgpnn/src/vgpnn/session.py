"""A verb's run folder: clips in, settings, levels that can be resumed, outputs, provenance, report.

Used by `commands`. A folder has config.json, manifest.json, metrics.jsonl (one line per level), clips/ (the
outputs), lossless/ (the same and the input, for `evaluate`), samples/ (the report's pictures, which play),
provenance-*.npz, checkpoints/ (the last level, until the end) and report.html.
"""

import io
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Float
from paperkit import UserError, images, report
from paperkit.device import choose
from paperkit.run import Run, RunOptions, atomic, write_json
from torch import Tensor

from vgpnn import clips, video
from vgpnn.config import Common
from vgpnn.method import Output, Problem, State, passes
from vgpnn.provenance import colours, same_place, voxel_places
from vgpnn.pyramid import Settings, Shape
from vgpnn.search import Schedule
from vgpnn.tasks import Task, settings_for
from vgpnn.video import Clip, to_frames, to_unit

TITLE = "Diverse generation from a single video, by space-time patch nearest neighbours"
SHOWN = 48
"""Frames of a clip on the report, at most."""


def settings_of(config: Common, task: Task, shape: Shape, out: Shape | None = None) -> Settings:
    """The task's settings with what the flags say otherwise."""
    return flags_over(config, settings_for(task, shape, out))


def flags_over(config: Common, base: Settings) -> Settings:
    """Settings with what the flags say otherwise."""
    schedule = base.schedule
    if config.rounds:
        cycle = len(schedule.jumps) // 5
        many = -(-config.rounds // cycle)
        schedule = Schedule(
            (schedule.jumps[:cycle] * many)[: config.rounds], (schedule.radii[:cycle] * many)[: config.rounds]
        )
    patch = config.patch if any(config.patch) else base.patch
    return replace(
        base,
        ratio_time=config.ratio_time or base.ratio_time,
        ratio_space=config.ratio_space or base.ratio_space,
        least_frames=config.least_frames or max(base.least_frames, patch[0]),
        least_side=config.least_side or max(base.least_side, *patch[1:]),
        patch=patch,
        big_patch=patch if any(config.patch) else base.big_patch,
        patch_limit=round(config.patch_limit * 1e6),
        steps=config.steps or base.steps,
        coarse_steps=config.coarse_steps or min(base.coarse_steps, config.steps or base.coarse_steps),
        alpha=config.alpha or base.alpha,
        vote=config.vote,
        search=config.search,
        switch=config.switch,
        schedule=replace(schedule, identity=config.identity_candidate),
        memory=config.memory * 2**20,
    )


class Session:
    """A verb's folder while it works."""

    def __init__(self, verb: str, config: Any, options: RunOptions, preset: str, flags: Any = None) -> None:
        chosen = choose(options.device, options.precision)
        self.verb, self.config, self.device = verb, flags or config, chosen.device
        name = verb if not preset or preset == verb else f"{verb}-{preset}"
        self.run = Run.open(
            "vgpnn", TITLE, config, options, name, getattr(self.config, "seed", 0),
            device=str(chosen.device), verb=verb,
        )  # fmt: skip
        self.folder = self.run.folder
        self.notes: list[str] = []
        self.figures: dict[str, Any] = {}
        self.rate = Fraction(10)
        self.begun = False
        """Whether a level is done."""

    def clip(self, name: str, frames: int | None = None) -> tuple[Clip, Tensor]:
        """Read a clip as the flags say; its frames, and the video on the device."""
        config = self.config
        clip = clips.open_clip(name)
        for notice in clip.notices:
            self.note(notice)
        clip = clips.prepare(clip, config.frames if frames is None else frames, config.start, config.side)
        self.rate = Fraction(config.rate).limit_denominator(1001) if config.rate else clip.rate
        return clip, to_unit(clip.frames).to(self.device)

    def note(self, text: str) -> None:
        """A line for the reader, also on the report."""
        self.run.say(text)
        self.notes.append(text)

    def solve(self, problem: Problem, stop: int | None = None, begin: State | None = None) -> State | None:
        """All levels up to `stop`, from where the run was (or from `begin`); None where a signal ended it."""
        problem.check()
        total = problem.levels if stop is None else stop + 1
        self.describe(problem)
        saved = self.run.restore()
        state = begin if saved is None else unpack(saved[1]["state"], saved[2], self.device)
        start = 0 if state is None else state.level + 1
        levels = passes(problem, state, total - 1)
        for step in self.run.steps(start, total):
            state = next(levels)
            self._level(problem, state)
            if step < total or stop is not None:
                self.run.save(step, {"state": pack(state)}, {"level": state.level}, keep=1)
        return state if state is not None and state.level == total - 1 else None

    def _level(self, problem: Problem, state: State) -> None:
        self.begun = True
        shape, memory = problem.shape_at(state.level), psutil.Process().memory_info().rss / 2**20
        distance = float(torch.stack([d.double().mean() for d in state.distances]).mean())
        self.run.say(
            f"level {state.level + 1} of {problem.levels}: {by(shape)}, {state.search}, "
            f"{state.seconds:.2f} s, {memory:.0f} MiB, mean distance {distance:.5f}"
        )
        self.run.log(state.level + 1, voxels=shape[0] * shape[1] * shape[2], distance=distance)

    def describe(self, problem: Problem) -> None:
        """What will be done, in a line."""
        s, n = problem.settings, problem.levels
        source = problem.source.shape_at(problem.levels - 1)
        self.note(
            f"{by(source)} -> {by(problem.shape)}, {n} levels from {by(problem.shape_at(0))}, ratios "
            f"{s.ratio_time:g} and {s.ratio_space:g}, patch {by(s.patch)}, {s.steps} searches per level, "
            f"alpha {s.alpha:g}, {s.search} search"
        )

    # ---- what is written

    def show(self, name: str, shown: Float[Tensor, "c t h w"]) -> None:
        """Write a video for the report: an animated PNG, which plays there."""
        frames = to_frames(shown)[:SHOWN]
        video.write(self.folder / "samples" / f"{name}.png", frames, self.rate)

    def keep(self, name: str, shown: Float[Tensor, "c t h w"]) -> None:
        """Write a video as the flags say, and lossless for `evaluate`."""
        frames = to_frames(shown)
        if name != "input":
            video.write(self.folder / "clips" / f"{name}.{self.config.format}", frames, self.rate)
        video.write(self.folder / "lossless" / f"{name}.mkv", frames, self.rate)

    def output(
        self, name: str, output: Output, source: Shape, loop: bool = False, shown: bool = True
    ) -> dict[str, Any]:
        """Write an output with its provenance; returns its figures."""
        self.keep(name, output.video)
        places = voxel_places(output, loop).cpu()
        if shown:
            self.show(name, output.video)
            map_ = colours(places, source)
            self.show(f"{name}-provenance", map_)
            video.write(self.folder / "clips" / f"{name}-provenance.mp4", to_frames(map_), self.rate)
        buffer = io.BytesIO()
        frame, row, column = (part.numpy().astype(np.int32) for part in places.unbind(-1))
        distance = output.distance.cpu().numpy().astype(np.float32)
        np.savez_compressed(buffer, frame=frame, row=row, column=column, distance=distance)
        with atomic(self.folder / f"provenance-{name}.npz") as stream:
            stream.write(buffer.getvalue())
        self.figures[name] = {
            "mean_distance": float(output.distance.double().mean()), "same_place": same_place(output),
        }  # fmt: skip
        return self.figures[name]

    def close(self) -> None:
        """Figures, page, and no checkpoints any more."""
        write_json(self.folder / "figures.json", self.figures)
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)


@contextmanager
def session(verb: str, config: Any, options: RunOptions, preset: str, flags: Any = None) -> Iterator[Session]:
    """A verb's folder; a signal lets the present level end and saves it. The page is written at the end.

    A `UserError` before the first level is done leaves no folder behind.
    `flags`: the configuration that says how to read and write, where it is not the verb's own.
    """
    work = Session(verb, config, options, preset, flags)
    if work.run.finished:
        raise UserError(f"{work.folder} is finished: there is nothing to go on with")
    since = time.monotonic()
    try:
        with work.run.guard():
            yield work
    except UserError:
        if not (work.begun or work.run.resumed):  # refused: nothing half-written stays
            shutil.rmtree(work.folder, ignore_errors=True)
        raise
    work.notes.append(f"{time.monotonic() - since:.1f} s in all.")
    path = report.write(work.folder, TITLE, "arXiv 2109.08591", notes="\n\n".join(work.notes))
    print(f"{work.folder}: clips/, provenance, {path.name}", flush=True)


def by(shape: Shape) -> str:
    """Frames x height x width."""
    return "x".join(map(str, shape))


def sheet(videos: dict[str, Float[Tensor, "c t h w"]], frames: int = 8) -> Tensor:
    """A contact sheet: a row of evenly spread frames of each video, captions at the left."""
    strips = {}
    for name, shown in videos.items():
        chosen = torch.linspace(0, shown.shape[1] - 1, min(frames, shown.shape[1])).round().long()
        strips[name] = list(to_frames(shown[:, chosen]))
    height = max(frame.shape[1] for strip in strips.values() for frame in strip)
    width = max(frame.shape[2] for strip in strips.values() for frame in strip)
    padded = {name: [_pad(frame, height, width) for frame in strip] for name, strip in strips.items()}
    return images.rows(padded, scale=2 if width < 100 else 1)


def _pad(frame: Tensor, height: int, width: int) -> Tensor:
    return torch.nn.functional.pad(frame, (0, width - frame.shape[2], 0, height - frame.shape[1]), value=255)


def pack(state: State) -> dict[str, Tensor]:
    """A state as named tensors."""
    found = {}
    for k, (shown, index, distance) in enumerate(
        zip(state.videos, state.fields, state.distances, strict=True)
    ):
        found |= {f"video.{k}": shown, f"field.{k}": index, f"distance.{k}": distance}
    return found


def unpack(tensors: dict[str, Tensor], facts: dict[str, Any], device: torch.device) -> State:
    """The state of such tensors."""
    count = sum(name.startswith("video.") for name in tensors)

    def each(kind: str) -> list[Tensor]:
        return [tensors[f"{kind}.{k}"].to(device) for k in range(count)]

    return State(int(facts["level"]), each("video"), each("field"), each("distance"))
