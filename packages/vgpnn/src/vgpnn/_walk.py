"""PatchMatch's walk compiled by numba. Private to `patchmatch`: same candidates, same sums, same field.

A patch is compared two rows first, then frame by frame; as soon as the sum so far reaches the best score, the
candidate is given up. All terms are squares, so sums in one fixed order never fall: no decision changes.
"""

import inspect
import math

import numba
import numpy as np
import torch
from jaxtyping import Int64
from paperkit import UserError
from paperkit.threads import parallel
from torch import Tensor

from vgpnn.patchmatch import MIX, Walk

CHUNK = 2048
"""Queries that a thread takes at a time."""
FIRST = 2
"""Rows of a patch after which a candidate that is far off is given up."""
T, H, MASK = 42, 21, 2**21 - 1
"""A place packed into one number: frame, row and column of 21 bits each."""
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
def _across(sums, lanes):
    """The lanes added up in four chains, as `patchmatch.across` does."""
    one = two = three = four = sums[0] - sums[0]
    whole = lanes // 4 * 4
    for lane in range(0, whole, 4):
        one += sums[U(lane)]
        two += sums[U(lane + 1)]
        three += sums[U(lane + 2)]
        four += sums[U(lane + 3)]
    for lane in range(whole, lanes):
        one += sums[U(lane)]
    return (one + two) + (three + four)


@compiled
def _compare(a, b, one, two, steps, ends, lanes, sums, factor, best):
    """w_j D_ij of one pair, or some value not below `best`."""
    sums[:] = 0
    total, row = sums[0], 0
    for end in ends:
        while row < end:
            left, right = U(one + steps[0, row]), U(two + steps[1, row])
            for lane in range(len(sums)):  # a length that is not known: vector instructions
                apart = a[left + U(lane)] - b[right + U(lane)]
                sums[lane] += apart * apart
            row += 1
        total = _across(sums, lanes) * factor
        if total >= best:
            break
    return total


@compiled
def _pack(t, h, w):
    """A place as one number that is taken apart without a division."""
    return (t << T) | (h << H) | w


@compiled
def _packed(number, grid):
    """The same of a patch number."""
    rest = number // grid[2]
    return _pack(rest // grid[1], rest % grid[1], number % grid[2])


@compiled
def _pack_all(field, grid):
    """Patch numbers to packed places, in place: a large level has no room for three axes at once."""
    for i in range(len(field)):
        field[i] = _packed(field[i], grid)


@compiled
def _unpack_all(field, grid):
    """The inverse of `_pack_all`."""
    for i in range(len(field)):
        place = field[i]
        field[i] = ((place >> T) * grid[1] + ((place >> H) & MASK)) * grid[2] + (place & MASK)


@compiled
def _first(t, h, w, size, width):
    """Number of a patch's first value."""
    return ((t * size[1] + h) * size[2] + w) * width


@compiled
def _scores(a, b, grid, among, sizes, steps, ends, lanes, width, factor, field, score, start, stop):
    """Scores of the present field."""
    sums = np.zeros((lanes + LANES - 1) // LANES * LANES, a.dtype)
    for i in range(start, stop):
        place, t, h, w = _packed(i, grid), field[i] >> T, (field[i] >> H) & MASK, field[i] & MASK
        one = _first(place >> T, (place >> H) & MASK, place & MASK, sizes[0], width)
        two = _first(t, h, w, sizes[1], width)
        weight = factor[(t * among[1] + h) * among[2] + w] if len(factor) > 1 else factor[0]
        score[i] = _compare(a, b, one, two, steps, ends, lanes, sums, weight, np.inf)


@compiled
def _attempt(
    a, b, grid, among, sizes, steps, ends, lanes, width, factor, valid, slots, key, number, kind, axis, step,
    radius, identity, old, field, score, start, stop,
):  # fmt: skip
    """One kind of candidate for the queries start .. stop; returns how many were compared."""
    sums = np.zeros((lanes + LANES - 1) // LANES * LANES, a.dtype)
    keys, done = among[0] * among[1] * among[2], 0
    stride = step * (grid[1] * grid[2] if axis == 0 else (grid[2] if axis == 1 else 1))
    span = U(2 * radius + 1)
    place = _packed(start, grid)
    qt, qh, qw = place >> T, (place >> H) & MASK, (place & MASK) - 1
    for i in range(start, stop):
        qw += 1
        if qw == grid[2]:
            qw, qh = 0, qh + 1
            if qh == grid[1]:
                qh, qt = 0, qt + 1
        if kind == 0 and radius == 0:
            high = len(slots) if len(slots) else keys
            drawn = np.int64(((_bits(key, number, i) >> S32) * U(high)) >> S31)
            place = _packed(slots[drawn] if len(slots) else drawn, among)
            t, h, w = place >> T, (place >> H) & MASK, place & MASK
        else:
            at = qt if axis == 0 else (qh if axis == 1 else qw)
            if kind > 1 and (at < step or at - step >= grid[axis]):
                if not identity:
                    continue
                t, h, w = qt, qh, qw
            else:
                before = old[i - stride] if kind > 1 else field[i]
                t, h, w = before >> T, (before >> H) & MASK, before & MASK
                if kind > 1:
                    if axis == 0:
                        t += step
                    elif axis == 1:
                        h += step
                    else:
                        w += step
                if radius:
                    drawn = _bits(key, number, i)
                    t += np.int64(((drawn & WORD) * span) >> S20) - radius
                    h += np.int64((((drawn >> S20) & WORD) * span) >> S20) - radius
                    w += np.int64((((drawn >> S40) & WORD) * span) >> S20) - radius
            t, h, w = _clip(t, among[0]), _clip(h, among[1]), _clip(w, among[2])
            place = _pack(t, h, w)
        if place == field[i]:
            continue
        j = (t * among[1] + h) * among[2] + w
        if len(valid) and not valid[j]:
            continue
        done += 1
        one, two = _first(qt, qh, qw, sizes[0], width), _first(t, h, w, sizes[1], width)
        weight = factor[j] if len(factor) > 1 else factor[0]
        found = _compare(a, b, one, two, steps, ends, lanes, sums, weight, score[i])
        if found < score[i]:
            score[i], field[i] = found, place
    return done


class CompiledWalk(Walk):
    """`Walk` with its inner loops compiled; the same field bit for bit. Its `field` has packed places."""

    def __init__(self, *given) -> None:
        super().__init__(*given)
        if max(*self.grid, *self.among) > MASK:
            raise UserError(f"PatchMatch takes up to {MASK} frames, rows and columns")
        rows = math.prod(self.patch[:2])
        ends = sorted({min(FIRST, rows), *range(self.patch[1], rows + 1, self.patch[1])})
        spare = torch.zeros(LANES, dtype=self.a.dtype)
        # One after the other, and views of it: never two copies of both videos.
        a = torch.cat([self.a, spare])
        self.a = a[:-LANES]
        b = torch.cat([self.b, spare])
        self.b = b[:-LANES]
        self._videos = a.numpy(), b.numpy()
        self._shapes = (
            np.array(self.grid), np.array(self.among), np.array(self.sizes), np.array(self.steps()),
            np.array(ends), self.patch[2] * self.width, self.width, self.factor.numpy(),
        )  # fmt: skip
        self._valid = np.empty(0, np.bool_) if self.valid is None else self.valid.numpy()
        self._slots = np.empty(0, np.int64) if self.slots is None else self.slots.numpy()
        self.compared = 0
        """Pairs compared so far."""

    def found(self) -> Int64[Tensor, "q"]:
        """The key of each query."""
        found = self.field.clone()
        _unpack_all(found.numpy(), self._shapes[1])
        return found

    def scored(self):
        """The scores of the field, which has packed places from here on."""
        score, field = np.empty(self.count, self._videos[0].dtype), self.field.numpy()
        _pack_all(field, self._shapes[1])

        def run(start: int, stop: int) -> None:
            _scores(*self._videos, *self._shapes, field, score, start, stop)

        parallel(self.count, CHUNK, torch.get_num_threads(), run)
        self.compared += self.count
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
