"""`vgpnn bench <id>`: time of the searches over sizes, and peak memory for `reproduce memory`.

exact   the five searches of the finest level by the full search and by PatchMatch, in turns: which `auto`
        takes, and where the cross-over lies
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from paperkit import UserError, reproduction, results
from torch import Tensor

from vgpnn import clips, tasks
from vgpnn.config import BenchConfig
from vgpnn.method import Problem, State, grid_of, passes
from vgpnn.pyramid import shape_of
from vgpnn.search import exact_pays
from vgpnn.video import to_unit


@dataclass(frozen=True)
class Case:
    """A size of the clip, by its shorter side."""

    side: int


CASES: dict[str, dict[str, Case]] = {"exact": {str(side): Case(side) for side in (24, 36, 48, 72, 96)}}


def bench(config: BenchConfig) -> list[Path]:
    """Run one benchmark, or all, and write the result files; returns their paths."""
    torch.set_num_threads(config.threads)
    paths = []
    for name in reproduction.chosen(config.id, CASES, "benchmark"):
        for label in config.cases or list(CASES[name]):
            if label not in CASES[name]:
                raise UserError(f"no case {label} of {name}: there are {', '.join(CASES[name])}")
            paths.append(_exact(config, label, CASES[name][label]))
    return paths


def last_level(x: Tensor) -> tuple[Problem, State]:
    """A sample's problem, and its state before the finest level."""
    problem = tasks.generation(x, 1, 0)
    *_, state = passes(problem, stop=problem.levels - 2)
    return problem, state


def _exact(config: BenchConfig, label: str, case: Case) -> Path:
    since = time.monotonic()
    x = to_unit(clips.prepare(clips.Clip(clips.stand_in(), name=clips.STAND_IN), 13, 0, case.side).frames)
    problem, state = last_level(x)
    keys = int(np.prod(grid_of(shape_of(x), problem.patch_at(problem.levels - 1))))
    problems = {
        kind: replace(problem, settings=replace(problem.settings, search=kind))
        for kind in ("exact", "patchmatch")
    }
    times: dict[str, list[float]] = {kind: [] for kind in problems}
    distance = {}
    for turn in range(config.repeats + 1):
        for kind, each in problems.items():
            if sum(times[kind]) > results.LONG:
                continue
            start = time.perf_counter()
            *_, end = passes(each, state)
            if turn:  # the first warms up: compilation, caches
                times[kind].append(time.perf_counter() - start)
            distance[kind] = float(end.distances[0].double().mean())
    picked, other = ("exact", "patchmatch") if exact_pays(keys, keys, "cpu") else ("patchmatch", "exact")
    record = results.benchmark(
        paper="vgpnn", id=f"exact-{label}", data=f"{clips.STAND_IN} clip, {'x'.join(map(str, shape_of(x)))}",
        claim=f"{keys} keys, five searches: auto ({picked}) at least as fast as {other}",
        command=f"uv run --package vgpnn vgpnn bench exact --cases {label} --threads {config.threads}",
        ours=times[picked], against=(other, times[other]), target=1.0, peak_mib=(0.0, 0.0),
        threads=config.threads, device="cpu", wall_s=time.monotonic() - since,
        details={
            "keys": keys, "mean_distance": distance,
            "patchmatch_over_exact": float(np.median(times["patchmatch"]) / np.median(times["exact"])),
        },
    )  # fmt: skip
    path = results.write(config.out or reproduction.folder(__file__), record)
    print(path, flush=True)
    return path


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
