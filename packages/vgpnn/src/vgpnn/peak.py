"""Measures the peak memory of one run. A script, run by `bench.peaks` in a process of its own.

Arguments: frames, height, width, working memory in MiB, and "all" levels or the "last" one alone. Prints the
peak in MiB, the peak before it (after imports, compilation and a tiny run), and the seconds it took.
"""

import math
import sys
import time
from collections import deque
from dataclasses import replace

import torch
from paperkit.timing import peak_mib

from vgpnn import tasks
from vgpnn.method import Problem, State, grid_of, passes
from vgpnn.pyramid import Settings, Shape, shape_of
from vgpnn.search import Schedule

ONE = Schedule((1,), (1,))


def call(shape: Shape, memory: int, part: str) -> None:
    """One sample of uniform noise, all levels or the finest one alone."""
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    settings = replace(Settings(), search="patchmatch", schedule=ONE, steps=1, memory=memory * 2**20)
    problem = tasks.generation(x, 1, 0, settings=settings)
    deque(passes(problem, None if part == "all" else before_last(problem)), maxlen=1)


def before_last(problem: Problem) -> State:
    """The source itself one level below the finest, each patch matched with any."""
    n = problem.levels - 2
    video = problem.source.sharp(n)[0]
    grid = grid_of(shape_of(video), problem.patch_at(n))
    field = torch.randperm(math.prod(grid), generator=torch.Generator().manual_seed(0)).view(grid)
    return State(n, [video], [field], [field[:1].float()])


def main(words: list[str]) -> None:
    """Warm up, run, print."""
    frames, height, width, memory = map(int, words[:4])
    call((5, 20, 24), memory, words[4])
    before, since = peak_mib(), time.perf_counter()
    call((frames, height, width), memory, words[4])
    print(peak_mib(), before, time.perf_counter() - since)


if __name__ == "__main__":
    main(sys.argv[1:])
