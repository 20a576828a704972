"""PatchMatch's walk compiled by numba. Private to `patchmatch`: same candidates, same sums, same field.

A patch is compared frame by frame; as soon as the sum so far reaches the best score it is given up. All terms
are squares, so sums in one fixed order never fall, and giving up changes no decision.
"""

import inspect

import numba
import numpy as np
import torch
from paperkit.threads import parallel

from vgpnn.patchmatch import MIX, Walk

CHUNK = 2048
"""Queries that a thread takes at a time."""
LANES = 8
"""Rows are read in whole vectors: up to so many numbers of the next row are read and not used."""

U = np.uint64
ONE, TWO, THREE = (U(factor) for factor in MIX)
S20, S27, S30, S31, S32, S40, TOP, LOW, WORD = (
    U(20),
    U(27),
    U(30),
    U(31),
    U(32),
    U(40),
    U(1),
    U(63),
    U(0xFFFFF),
)


def compiled(function):
    """numba's compiler; unwrapped, as the tests' type checker wraps every function."""
    return numba.njit(nogil=True, cache=True, error_model="numpy")(inspect.unwrap(function))


@compiled
def _bits(key, number, position):
    """`patchmatch.bits` of one position."""
    x = U(position) * ONE + key + U(number) * TWO
    x = (x ^ (x >> S30)) * TWO
    x = (x ^ (x >> S27)) * THREE
    x = x ^ (x >> S31)
    return (x << TOP) >> TOP


@compiled
def _clip(value, size):
    return min(max(value, 0), size - 1)


@compiled
def _compare(a, b, one, two, steps, kt, lanes, sums, factor, best):
    """w_j D_ij of one pair, or some value not below `best`."""
    sums[:] = 0
    total = sums[0]
    rows = steps.shape[1] // kt
    for frame in range(kt):
        for row in range(frame * rows, frame * rows + rows):
            left, right = U(one + steps[0, row]), U(two + steps[1, row])
            for lane in range(len(sums)):  # a length that is not known: vector instructions
                apart = a[left + U(lane)] - b[right + U(lane)]
                sums[lane] += apart * apart
        total = sums[0]
        for lane in range(1, lanes):
            total += sums[lane]
        if total * factor >= best:
            break
    return total * factor


@compiled
def _first(number, grid, size, width):
    t, h, w = number // (grid[1] * grid[2]), number // grid[2] % grid[1], number % grid[2]
    return ((t * size[1] + h) * size[2] + w) * width


@compiled
def _scores(a, b, grid, among, sizes, steps, kt, lanes, width, factor, field, score, start, stop):
    """Scores of the present field."""
    sums = np.zeros((lanes + LANES - 1) // LANES * LANES, a.dtype)
    for i in range(start, stop):
        j = field[i]
        one, two = _first(i, grid, sizes[0], width), _first(j, among, sizes[1], width)
        w = factor[j] if len(factor) > 1 else factor[0]
        score[i] = _compare(a, b, one, two, steps, kt, lanes, sums, w, np.inf)


@compiled
def _attempt(
    a, b, grid, among, sizes, steps, kt, lanes, width, factor, valid, slots, key, number, kind, axis, step,
    radius, identity, old, field, score, start, stop,
):  # fmt: skip
    """One kind of candidate for the queries start .. stop; returns how many were compared."""
    sums = np.zeros((lanes + LANES - 1) // LANES * LANES, a.dtype)
    keys, done = among[0] * among[1] * among[2], 0
    for i in range(start, stop):
        drawn = _bits(key, number, i)
        if kind == 0 and radius == 0:
            high = len(slots) if len(slots) else keys
            j = np.int64(((drawn >> S32) * U(high)) >> S31)
            if len(slots):
                j = slots[j]
        else:
            t, h, w = i // (grid[1] * grid[2]), i // grid[2] % grid[1], i % grid[2]
            near = i
            outside = False
            if kind > 1:
                place = t if axis == 0 else (h if axis == 1 else w)
                outside = place < step or place - step >= grid[axis]
                if not outside:
                    stride = grid[1] * grid[2] if axis == 0 else (grid[2] if axis == 1 else 1)
                    near = i - step * stride
            if outside:
                if not identity:
                    continue
            else:
                before = old[near]
                t, h, w = before // (among[1] * among[2]), before // among[2] % among[1], before % among[2]
                if kind > 1:
                    if axis == 0:
                        t += step
                    elif axis == 1:
                        h += step
                    else:
                        w += step
                if radius:
                    span = U(2 * radius + 1)
                    t += np.int64(((drawn & WORD) * span) >> S20) - radius
                    h += np.int64((((drawn >> S20) & WORD) * span) >> S20) - radius
                    w += np.int64((((drawn >> S40) & WORD) * span) >> S20) - radius
            j = (_clip(t, among[0]) * among[1] + _clip(h, among[1])) * among[2] + _clip(w, among[2])
        if j == field[i] or (len(valid) and not valid[j]):
            continue
        done += 1
        one, two = _first(i, grid, sizes[0], width), _first(j, among, sizes[1], width)
        weight = factor[j] if len(factor) > 1 else factor[0]
        found = _compare(a, b, one, two, steps, kt, lanes, sums, weight, score[i])
        if found < score[i]:
            score[i], field[i] = found, j
    return done


class CompiledWalk(Walk):
    """`Walk` with its inner loops compiled; the same field bit for bit."""

    def __init__(self, *given) -> None:
        super().__init__(*given)
        lanes = self.patch[2] * self.width
        steps = [
            [
                (a * size[1] + b) * size[2] * self.width
                for a in range(self.patch[0])
                for b in range(self.patch[1])
            ]
            for size in self.sizes
        ]
        spare = torch.zeros(LANES, dtype=self.a.dtype)
        # One after the other, and views of it: never two copies of both videos.
        a = torch.cat([self.a, spare])
        self.a = a[:-LANES]
        b = torch.cat([self.b, spare])
        self.b = b[:-LANES]
        self._videos = a.numpy(), b.numpy()
        self._shapes = (
            np.array(self.grid), np.array(self.among), np.array(self.sizes), np.array(steps), self.patch[0],
            lanes, self.width, self.factor.numpy(),
        )  # fmt: skip
        self._valid = np.empty(0, np.bool_) if self.valid is None else self.valid.numpy()
        self._slots = np.empty(0, np.int64) if self.slots is None else self.slots.numpy()
        self.compared = 0
        """Pairs compared so far."""

    def scores(self, i, j):
        """Scores of the whole field (`start` asks for nothing else)."""
        score, field = np.empty(len(j), self._videos[0].dtype), j.numpy()

        def run(start: int, stop: int) -> None:
            _scores(*self._videos, *self._shapes, field, score, start, stop)

        parallel(len(j), CHUNK, torch.get_num_threads(), run)
        self.compared += len(j)
        return torch.from_numpy(score)

    def attempt(self, number: int, kind: int, axis: int, step: int, radius: int) -> None:
        """Try one kind of candidate for every query."""
        old = self.field.clone() if kind > 1 else self.field
        arrays = old.numpy(), self.field.numpy(), self.score.numpy()
        words = self._valid, self._slots, U(self.key % 2**64), 16 * number + kind, kind, axis, step, radius
        done = []

        def run(start: int, stop: int) -> None:
            done.append(
                _attempt(*self._videos, *self._shapes, *words, self.schedule.identity, *arrays, start, stop)
            )

        parallel(self.count, CHUNK, torch.get_num_threads(), run)
        self.compared += sum(done)
