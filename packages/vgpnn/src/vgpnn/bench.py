"""`vgpnn bench <id>`: times of whole samples and of the searches, and peak memory for `reproduce memory`.

id        what                                                                       peer (--peer CHECKOUT)
official  a sample at the released code's settings, PatchMatch at every level        see `timing`
limit     element comparisons per second, against what this machine can do           none
exact     the finest level of five samples by both searches: where they cross over   none

Aims stand here and were fixed before anything was timed.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from paperkit import UserError, reproduction, results
from torch import Tensor
from tqdm import tqdm

from vgpnn import clips, limits, metrics, tasks
from vgpnn.config import GENERATE, BenchConfig
from vgpnn.method import Problem, State, grid_of, passes
from vgpnn.pyramid import Source, shape_of
from vgpnn.search import SWITCH, Decided, decide
from vgpnn.session import flags_over
from vgpnn.timing import PATCHED
from vgpnn.video import to_unit

RELEASED = "released code, commit bca419b"


@dataclass(frozen=True)
class Case:
    """One line of a benchmark."""

    side: int
    """Shorter side of the clip."""
    frames: int = 13
    clip: str = clips.STAND_IN
    levels: int = 0
    """Both sides stop after so many levels from the coarsest; 0: all."""
    turns: int = 1
    """Samples of a side that takes minutes; the diversity needs two."""


CASES: dict[str, dict[str, Case]] = {
    "official": {
        "15x36x64": Case(36, 15, "airballoons", turns=2),
        "13x72x128": Case(72, 13, "airballoons"),
    },
    "limit": {"48": Case(48)},
    "exact": {str(side): Case(side) for side in (24, 30, 36, 48, 60, 72)},
}
AIM = 30.0
"""`official`: times as fast as the released code."""
SHARE = 0.1
"""`limit`: of the rate of a straight loop over numbers in the cache, for patches compared whole."""
WORSE = 0.8
"""`exact`: what `auto` takes is at no size slower than the other search by more than a quarter."""


def bench(config: BenchConfig) -> list[Path]:
    """Run one benchmark, or all, and write the result files; returns their paths."""
    if config.peer and not (Path(config.peer) / "pnn" / "patch_match.py").exists():
        raise UserError(
            f"--peer {config.peer} is no checkout of nivha/single_video_generation: "
            "it has no pnn/patch_match.py"
        )
    torch.set_num_threads(config.threads)
    paths = []
    for name in reproduction.chosen(config.id, CASES, "benchmark"):
        cases = _cases(name, config.cases)
        if name == "exact":
            paths.append(_write(config, "exact", name, _exact(config, cases)))
            continue
        run = {"official": _official, "limit": _limit}[name]
        for label, case in cases.items():
            paths.append(_write(config, f"{name}-{label}", f"{name} --cases {label}", run(config, case)))
    return paths


def _cases(name: str, wanted: Sequence[str]) -> dict[str, Case]:
    for label in wanted:
        if label not in CASES[name]:
            raise UserError(f"no case {label} of {name}: there are {', '.join(CASES[name])}")
    return {label: CASES[name][label] for label in wanted or CASES[name]}


def _write(config: BenchConfig, id: str, words: str, fields: Mapping[str, Any]) -> Path:
    command = f"uv run --package vgpnn vgpnn bench {words} --threads {config.threads}"
    if fields["against"] and words.startswith("official"):
        command += " --peer PEER" + (" --peer-python PYTHON" if config.peer_python else "")
    record = results.benchmark(
        paper="vgpnn", id=id, command=command, threads=config.threads, device="cpu", **fields
    )
    path = results.write(config.out or reproduction.folder(__file__), record)
    print(path, flush=True)
    return path


def clip_of(case: Case) -> Tensor:
    """The case's clip, uint8 (t, 3, h, w)."""
    return clips.prepare(clips.open_clip(case.clip), case.frames, 0, case.side).frames


def described(case: Case) -> str:
    """The case's clip in words."""
    frames = clip_of(case)
    kind = " clip" if case.clip == clips.STAND_IN else ""
    return f"{case.clip}{kind}, {len(frames)}x{frames.shape[2]}x{frames.shape[3]}"


# ---- Beside the released code


def _official(config: BenchConfig, case: Case) -> dict[str, Any]:
    """Samples of both sides in turns, each in a process of its own, with their realism and diversity."""
    since, frames = time.monotonic(), clip_of(case)
    with tempfile.TemporaryDirectory() as folder:
        calls = {"ours": [sys.executable, "ours"]}
        if config.peer:
            checkout = str(Path(config.peer).resolve())
            calls["released"] = [config.peer_python or sys.executable, "released", checkout]
        times = _turns(calls, frames, config, case, Path(folder))
        videos = {
            side: [torch.from_numpy(np.load(path)) for path in sorted(Path(folder).glob(f"{side}-*.npy"))]
            for side in calls
        }
    wall, cpu, peak, before = np.array(times["ours"]).T
    details: dict[str, Any] = {
        "quality": quality(_target(to_unit(frames), case.levels), videos),
        "levels": case.levels or "all",
        "cpu_s": cpu.tolist(), "call_mib": float(np.median(peak - before)),
    }  # fmt: skip
    against, theirs = None, None
    if config.peer:
        wall_, cpu_, peak_, before_ = np.array(times["released"]).T
        against, theirs = (RELEASED, wall_.tolist()), float(np.median(peak_))
        details |= {
            "cpu_s_released": cpu_.tolist(), "cpu_ratio": float(np.median(cpu_) / np.median(cpu)),
            "call_mib_released": float(np.median(peak_ - before_)), "released_code_patched": list(PATCHED),
        }  # fmt: skip
    part = f", {case.levels} levels from the coarsest" if case.levels else ""
    return {
        "claim": f"a sample at the released settings{part}, {AIM:g} times as fast", "data": described(case),
        "ours": wall.tolist(), "against": against, "target": AIM, "details": details,
        "peak_mib": (float(np.median(peak)), theirs), "wall_s": time.monotonic() - since,
    }  # fmt: skip


def _turns(
    calls: Mapping[str, list[str]], frames: Tensor, config: BenchConfig, case: Case, folder: Path
) -> dict[str, list[list[float]]]:
    """What `timing` prints; turn k has seed k. A side that has taken minutes stops after `case.turns`."""
    times: dict[str, list[list[float]]] = {side: [] for side in calls}
    for turn in tqdm(range(config.repeats), desc=described(case)):
        np.savez(folder / "in.npz", frames=frames.permute(0, 2, 3, 1).numpy(), levels=case.levels, seed=turn)
        for side, (python, name, *checkout) in calls.items():
            if len(times[side]) >= case.turns and sum(each[0] for each in times[side]) >= results.LONG:
                continue
            words = [name, str(folder / "in.npz"), str(folder / f"{side}-{turn}.npy"), *checkout]
            times[side].append(_timed(python, words, config.threads))
    return times


def _timed(python: str, words: list[str], threads: int) -> list[float]:
    """What `timing` prints of one call in a fresh process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    script = str(Path(__file__).with_name("timing.py"))
    done = subprocess.run(
        [python, script, *words], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise UserError(f"a timed process failed: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    return [float(word) for word in done.stdout.split()[-4:]]


def _target(x: Tensor, levels: int) -> Tensor:
    """The source at the level where the samples stop."""
    settings = flags_over(GENERATE["code"][0], tasks.settings_for("generate", shape_of(x)))
    return Source.of(x, settings).sharp(levels - 1)[0] if levels else x


def quality(x: Tensor, videos: Mapping[str, Sequence[Tensor]]) -> dict[str, dict[str, float | None]]:
    """R, C, S and M, means over each side's samples, and D over as many samples as both sides have."""
    many, source = min(len(each) for each in videos.values()), metrics.Against(x)
    found: dict[str, dict[str, float | None]] = {}
    for side, made in videos.items():
        if shape_of(made[0]) != shape_of(x):
            raise UserError(f"{side}: a sample of {shape_of(made[0])}, not {shape_of(x)}")
        figures = [source.figures(y) for y in made]
        found[side] = {name: float(np.mean([each[name] for each in figures])) for name in figures[0]}
        found[side]["diversity"] = metrics.diversity(made[:many], x) if many > 1 else None
        found[side]["samples"] = len(made)
    return found


# ---- Against the machine


def _limit(config: BenchConfig, case: Case) -> dict[str, Any]:
    """Patches compared whole, by a sample's field and at random, against rates of the machine."""
    since = time.monotonic()
    problem, state = last_level(to_unit(clip_of(case)))
    measured = limits.measure(problem, state, config.threads, config.repeats)
    rates = {name: 1 / float(np.median(each)) for name, each in measured.items()}
    ours, best = "patches, a sample's field", "straight loop, in the cache"
    return {
        "claim": f"patches compared whole at {SHARE:g} or more of the rate of a straight loop in the cache",
        "data": described(case), "target": SHARE, "peak_mib": (0.0, 0.0),
        "ours": [1e9 * each for each in measured[ours]],
        "against": (f"a {best}", [1e9 * each for each in measured[best]]),
        "metric": "time_of_1e9_element_comparisons", "wall_s": time.monotonic() - since,
        "details": {
            "element_comparisons_per_s": rates,
            "share_of_the_loop_in_the_cache": {name: rate / rates[best] for name, rate in rates.items()},
            "bytes_per_s_from_memory": 8 * rates["straight loop, from memory"],
            "note": "searches: all candidates (PatchMatch) or all pairs (exact) counted whole, so that what "
            "is skipped or given up early counts as speed; multiply-adds: a matrix product, one per element",
        },
    }  # fmt: skip


# ---- Exact or PatchMatch


def last_level(x: Tensor, seed: int = 0) -> tuple[Problem, State]:
    """A sample's problem, and its state before the finest level."""
    problem = tasks.generation(x, 1, seed)
    *_, state = passes(problem, stop=problem.levels - 2)
    return problem, state


@dataclass(frozen=True)
class Row:
    """Both searches at one size, over samples."""

    keys: int
    times: dict[Decided, list[float]]
    distance: dict[str, float]

    def median(self, kind: Decided) -> float:
        """Seconds of a finest level."""
        return float(np.median(self.times[kind]))

    @property
    def picked(self) -> Decided:
        """What `auto` takes."""
        return decide("auto", self.keys, "cpu")

    @property
    def other(self) -> Decided:
        """What it does not take."""
        return "patchmatch" if self.picked == "exact" else "exact"

    @property
    def ratio(self) -> float:
        """PatchMatch over exact."""
        return self.median("patchmatch") / self.median("exact")


def _exact(config: BenchConfig, cases: Mapping[str, Case]) -> dict[str, Any]:
    """The finest level by both searches at several sizes; the record has the one worst for `auto`."""
    since = time.monotonic()
    rows = {label: _row(config, case) for label, case in cases.items()}
    worst = min(rows.values(), key=lambda row: row.median(row.other) / row.median(row.picked))
    crossing = cross_over([(row.keys, row.ratio) for row in rows.values()])
    says = (
        f"the searches cross over at about {crossing} keys" if crossing else "the searches do not cross over"
    )
    print(f"{says} here; auto switches at {SWITCH['cpu']}, --switch KEYS sets another count", flush=True)
    clip = next(iter(cases.values()))
    return {
        "claim": f"what auto takes is at no size more than a quarter slower than the other search; {says}",
        "data": f"{clip.clip} clip, {clip.frames} frames of {', '.join(cases)} rows",
        "ours": worst.times[worst.picked],
        "against": (f"{worst.other}, {worst.keys} keys", worst.times[worst.other]),
        "target": WORSE, "peak_mib": (0.0, 0.0), "wall_s": time.monotonic() - since,
        "explanation": why_not_quicker(worst),
        "details": {
            "cross_over_keys": crossing, "switch": SWITCH["cpu"],
            "cells": {
                label: {
                    "keys": row.keys, "exact_s": row.median("exact"),
                    "patchmatch_s": row.median("patchmatch"), "patchmatch_over_exact": row.ratio,
                    "mean_distance": row.distance, "samples_s": row.times,
                }
                for label, row in rows.items()
            },
        },
    }  # fmt: skip


def why_not_quicker(row: Row) -> str:
    """How far apart the samples are where `auto` is not the quicker."""
    if row.median(row.other) >= WORSE * row.median(row.picked):
        return ""
    spread = {kind: f"{min(each):.2f} to {max(each):.2f} s" for kind, each in row.times.items()}
    return (
        f"At {row.keys} keys auto takes {row.picked}. By sample: exact {spread['exact']}, patchmatch "
        f"{spread['patchmatch']}. The exact search is slow where queries are far from every key, and auto "
        "decides by the count of keys alone, so that a clip and a seed give one video on every machine."
    )


def _row(config: BenchConfig, case: Case) -> Row:
    """Turn k is the sample of seed k: how long the exact search takes hangs on the sample."""
    kinds: tuple[Decided, ...] = ("exact", "patchmatch")
    times: dict[Decided, list[float]] = {kind: [] for kind in kinds}
    distance: dict[str, list[float]] = {kind: [] for kind in kinds}
    x, keys = to_unit(clip_of(case)), 0
    for turn in tqdm(range(-1, config.repeats), desc=described(case)):
        problem, state = last_level(x, max(turn, 0))
        keys = int(
            np.prod(grid_of(problem.shape_at(problem.levels - 1), problem.patch_at(problem.levels - 1)))
        )
        for kind in kinds:
            start = time.perf_counter()
            each = replace(problem, settings=replace(problem.settings, search=kind))
            *_, end = passes(each, state)
            if turn >= 0:  # the first warms up: compilation, caches
                times[kind].append(time.perf_counter() - start)
                distance[kind].append(float(end.distances[0].double().mean()))
    return Row(keys, times, {kind: float(np.mean(each)) for kind, each in distance.items()})


def cross_over(cells: Sequence[tuple[int, float]]) -> int | None:
    """Keys where PatchMatch's time over the exact one's falls to 1, on a line through the logarithms.

    None where it does not from one size to the next.
    """
    for (few, before), (many, after) in pairwise(cells):
        if before > 1 >= after:
            share = np.log(before) / (np.log(before) - np.log(after))
            return round(float(few * (many / few) ** share))
    return None


# ---- Memory


def peaks(
    sizes: Sequence[tuple[int, int, int]], budget: int = 64, part: Literal["all", "last"] = "all"
) -> dict[int, dict[str, float]]:
    """Voxels of the finest level -> peak memory of a run and memory before it, in MiB.

    Each in a fresh process: PatchMatch with one round, one search per level, `budget` MiB of working memory;
    all levels or the finest one alone.
    """
    found = {}
    for shape in sizes:
        voxels = shape[0] * shape[1] * shape[2]
        script = str(Path(__file__).with_name("peak.py"))
        words = [sys.executable, script, *map(str, shape), str(budget), part]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=dict(os.environ))
        if done.returncode:
            raise UserError(f"a measured process failed: {' '.join(done.stderr.strip().splitlines()[-1:])}")
        peak, before, seconds = (float(word) for word in done.stdout.split()[-3:])
        found[voxels] = {
            "peak_mib": peak, "before_mib": before, "seconds": seconds,
            "budget_mib": 12 * voxels * 12 / 2**20 + 2 * budget,
        }  # fmt: skip
    return found
