"""Measures the peak memory of one run. A script, run by `bench.peaks` in a process of its own.

Arguments: frames, height, width, working memory in MiB. Prints the peak in MiB, the peak before it (after
imports, compilation and a tiny run), and the seconds it took.
"""

import resource
import sys
import time
from dataclasses import replace

import torch

from vgpnn import tasks
from vgpnn.pyramid import Settings
from vgpnn.search import Schedule

ONE = Schedule((1,), (1,))


def call(shape: tuple[int, int, int], memory: int) -> None:
    """One sample from uniform noise."""
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    settings = replace(Settings(), search="patchmatch", schedule=ONE, steps=1, memory=memory * 2**20)
    tasks.generate(x, 1, 0, settings=settings)


def peak() -> float:
    """Largest resident memory so far, in MiB (Linux counts KiB, macOS bytes)."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main(words: list[str]) -> None:
    """Warm up, run, print."""
    frames, height, width, memory = map(int, words)
    call((5, 20, 24), memory)
    before, since = peak(), time.perf_counter()
    call((frames, height, width), memory)
    print(peak(), before, time.perf_counter() - since)


if __name__ == "__main__":
    main(sys.argv[1:])
