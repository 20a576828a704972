"""Seconds per element comparison: of our kernels, and of this machine (spec 9.3). Used by `bench limit`.

An element comparison is (a - b)^2, added up: one of the d = channels kt kh kw of a pair of patches.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace

import numba
import torch
from paperkit.nearest import Patches
from paperkit.threads import parallel
from paperkit.timing import in_turns

from vgpnn._walk import CompiledWalk
from vgpnn.method import Problem, State, passes
from vgpnn.patchmatch import below, bits
from vgpnn.search import Decided

CACHED, LARGE = 2**11, 2**25
"""Numbers of each of the two rows of a straight loop: in the nearest cache, and far beyond every cache."""
PASSES = 2**12
"""Times that the short rows are run through."""
SIDE = 1024
"""Of the matrices whose product gives the rate of multiply-adds."""
KINDS = 14
"""Candidates of a query in a round of PatchMatch."""


def compiled(function: Callable) -> Callable:
    """numba's compiler, sums in any order; unwrapped, as the tests' type checker wraps every function."""
    return numba.njit(nogil=True, cache=True, fastmath=True)(inspect.unwrap(function))


@compiled
def _straight(a, b, start, stop):
    """Element comparisons from start to stop; from slices, as a loop from a start is not vectorised."""
    one, two = a[start:stop], b[start:stop]
    total = one[0] - one[0]
    for k in range(len(one)):
        apart = one[k] - two[k]
        total += apart * apart
    return total


@compiled
def _again(a, b, size, start, stop):
    """The first `size` numbers again and again, shifted, as equal work would be done once."""
    total = a[0] - a[0]
    for k in range(start, stop):
        total += _straight(a, b, k % 8, k % 8 + size)
    return total


def measure(problem: Problem, state: State, threads: int, repeats: int) -> dict[str, list[float]]:
    """Seconds per element comparison, `repeats` of each; `state`: a sample before its finest level."""
    work = {**kernels(problem, state), **searches(problem, state), **machine(threads)}
    times = in_turns({name: call for name, (call, _) in work.items()}, repeats)
    return {name: [each / work[name][1] for each in found] for name, found in times.items()}


Work = dict[str, tuple[Callable[[], object], float]]
"""Name -> (call, its element comparisons)."""


def kernels(problem: Problem, state: State) -> Work:
    """All patches of a sample compared whole, with the keys of its field and with keys drawn at random."""
    *_, end = passes(problem, state)
    patch, values = problem.patch_at(end.level), problem.source.sharp(end.level)[0]
    s = problem.settings
    walk = CompiledWalk(
        Patches(end.videos[0], patch), Patches(values, patch), None, None, s.schedule, 0, s.memory
    )
    drawn, found = below(bits(0, 0, torch.arange(walk.count)), walk.keys), end.fields[0].flatten()
    count = float(walk.count * walk.numbers)
    return {
        "patches, a sample's field": (lambda: walk.start(found), count),
        "patches, keys at random": (lambda: walk.start(drawn), count),
    }


def searches(problem: Problem, state: State) -> Work:
    """The finest level by both searches, votes included; every candidate or pair counts whole."""
    n = problem.levels - 1
    values, patch = problem.source.sharp(n)[0], problem.patch_at(n)
    queries = math.prod(Patches(state.videos[0].new_empty(1, *problem.shape_at(n)), patch).grid)
    keys, d = math.prod(Patches(values, patch).grid), len(values) * math.prod(patch)
    steps = problem.settings.steps_at(n, problem.levels, problem.shape_at(n))
    tried = {"patchmatch": KINDS * len(problem.settings.schedule.jumps) + 1, "exact": keys}

    def call(kind: Decided) -> Callable[[], object]:
        each = replace(problem, settings=replace(problem.settings, search=kind))
        return lambda: list(passes(each, state))

    return {
        f"{kind} search": (call(kind), float(steps * queries * tried[kind] * d))
        for kind in ("patchmatch", "exact")
    }


def machine(threads: int) -> Work:
    """What this machine does in a straight loop, from the cache and from memory, and in a matrix product."""
    short = torch.rand(2, CACHED + 8)
    large = torch.rand(2, LARGE)
    a = torch.rand(SIDE, SIDE)

    def cached() -> None:
        rows = short[0].numpy(), short[1].numpy(), CACHED
        parallel(PASSES, PASSES // 16, threads, lambda start, stop: _again(*rows, start, stop))

    def streamed() -> None:
        rows = large[0].numpy(), large[1].numpy()
        parallel(LARGE, LARGE // 16, threads, lambda start, stop: _straight(*rows, start, stop))

    return {
        "straight loop, in the cache": (cached, float(CACHED * PASSES)),
        "straight loop, from memory": (streamed, float(LARGE)),
        "multiply-adds": (lambda: a @ a, float(SIDE**3)),
    }
