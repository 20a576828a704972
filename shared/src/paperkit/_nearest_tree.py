"""Exact nearest neighbours on the CPU by a tree over principal components, compiled by numba.

Private to `paperkit.nearest` (gpnn, vgpnn, rosetta), which imports it only where a tree is wanted: numba is
the extra `nearest`.

A row x (centred on the keys' mean, scaled by a power of two) gets 16 coordinates: its products with the keys'
first 15 principal directions B, and the norm of what they leave. Distances between coordinates never exceed
distances between rows. A balanced tree over the coordinates skips the keys that are farther away in them than
the best score so far (gpnn spec 11.4). A key that is near enough is looked at with 15 more directions, and
the norm of what all 30 leave; every key that is still near enough is scored in float64.

Rounding, for a row with a = |x| and u = 2^-53 (`Space.error`): float64 sums of d products give 30 coordinates
to 6 (d + 3) u a; B is within `defect` = |B'B - I| of an orthonormal matrix; the square of a residual norm is
off by ((2 d + 90) u + 4 defect) a^2, hence the norm by the root of that; storing as float32 adds 2^-24 a. A
distance of coordinates is off by the sum e of both rows' errors, and its square, a float32 sum of at most 33
squares of differences, none above it, relatively by less than 2^-18. So no key above
(sqrt(best) + e)^2 (1 + 2^-18) can win (`limit_of`).
"""

import inspect
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np
import torch

from paperkit.threads import parallel

if TYPE_CHECKING:
    from paperkit.nearest import Items

AXES = 16
"""Coordinates in the tree: 15 directions and a residual norm; as many again for the second look."""
LEAF = 16
"""Rows in a leaf, at most."""


def compiled(**options):
    """numba's compiler, interpreter lock off; unwrapped, as the tests' type checker wraps every function."""
    return lambda function: numba.njit(nogil=True, cache=True, **options)(inspect.unwrap(function))


strict = compiled()
# Sums may be reordered and fused where only a bound with a margin is computed; infinities keep their meaning.
loose = compiled(fastmath={"reassoc", "contract", "nsz"})


class Rows(NamedTuple):
    """Rows in memory: number t of row i is data[origin[i] + offset[t]]; patches overlap, vectors do not."""

    data: np.ndarray
    origin: np.ndarray
    offset: np.ndarray


class Tree(NamedTuple):
    """A balanced tree in heap order: children of node n are 2n + 1 and 2n + 2."""

    member: np.ndarray
    """Row number of each place in the leaves (leaf, LEAF)."""
    size: np.ndarray
    """Rows in each leaf."""
    box: np.ndarray
    """Least and greatest coordinates of each node (node, 2, AXES)."""
    coordinate: np.ndarray
    """Coordinates of the leaves' rows, axis by axis (leaf, AXES, LEAF)."""


class Weight(NamedTuple):
    """S = D / scale of the rows in a tree; all in units where the smallest scale counts 1, rounded down."""

    scale: np.ndarray
    """Float64 divisor of each row; empty for the plain distance."""
    place: np.ndarray
    """1 / scale at each place in the leaves (leaf, LEAF)."""
    node: np.ndarray
    """Least 1 / scale below each node, and the least score that any query can reach there (node, 2)."""


# ---- Compiled parts

# Loops over 16 numbers take the length from the array: a loop of known length is unrolled before vector
# instructions are considered (measured: 8 instead of 15 ns for a box, 34 instead of 89 ns for a leaf).


@loose
def project(rows, start, stop, center, unit, basis, out):
    """Coordinates of rows start .. stop; `basis` has one direction per row."""
    data, origin, offset = rows
    row = np.empty(len(offset))
    sums = np.empty(2 * AXES)
    for i in range(start, stop):
        square = 0.0
        for t in range(len(row)):
            value = (data[origin[i] + offset[t]] - center[t]) * unit
            row[t] = value
            square += value * value
        for a in range(0, 2 * AXES, 4):  # four directions at a time: fewer reads of `row`
            one, two, three, four = 0.0, 0.0, 0.0, 0.0
            for t in range(len(row)):
                one += row[t] * basis[a, t]
                two += row[t] * basis[a + 1, t]
                three += row[t] * basis[a + 2, t]
                four += row[t] * basis[a + 3, t]
            sums[a], sums[a + 1], sums[a + 2], sums[a + 3] = one, two, three, four
        rest = square
        for a in range(2 * AXES):
            if a % AXES == AXES - 1:
                out[i, a] = math.sqrt(max(rest, 0.0))
            else:
                out[i, a] = sums[a]
                rest -= sums[a] * sums[a]


@strict
def select(order, key, low, high, middle):
    """Reorder order[low:high] so that the entry at `middle` is in its sorted place (Hoare's selection)."""
    high -= 1
    while low < high:
        pivot = key[order[(low + high) // 2]]
        i, j = low, high
        while i <= j:
            while key[order[i]] < pivot:
                i += 1
            while key[order[j]] > pivot:
                j -= 1
            if i <= j:
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if middle <= j:
            high = j
        elif middle >= i:
            low = i
        else:
            return


@strict
def grow(coordinates, levels):
    """Median splits on the widest axis, `levels` times: node ranges, boxes and the order of the rows."""
    count = coordinates.shape[1]
    nodes = 2 ** (levels + 1) - 1
    order = np.arange(count)
    begin = np.zeros(nodes, np.int64)
    end = np.full(nodes, count)
    box = np.empty((nodes, 2, AXES), np.float32)
    for node in range(nodes):
        low, high = begin[node], end[node]
        widest, width = 0, np.float32(-1)
        for a in range(AXES):
            axis = coordinates[a]
            least, greatest = axis[order[low]], axis[order[low]]
            for n in range(low + 1, high):
                value = axis[order[n]]
                least, greatest = min(least, value), max(greatest, value)
            box[node, 0, a], box[node, 1, a] = least, greatest
            if greatest - least > width:
                widest, width = a, greatest - least
        if 2 * node + 2 < nodes:
            middle = (low + high) // 2
            select(order, coordinates[widest], low, high, middle)
            begin[2 * node + 1], end[2 * node + 1] = low, middle
            begin[2 * node + 2], end[2 * node + 2] = middle, high
    return order, begin, end, box


@strict
def distance(queries, i, keys, j, buffer):
    """D of the pair in float64, the squares added as `paperkit.nearest.halving_sum` adds them."""
    width = len(queries.offset)
    a, b = queries.origin[i], keys.origin[j]
    for t in range(width):
        difference = np.float64(queries.data[a + queries.offset[t]]) - np.float64(
            keys.data[b + keys.offset[t]]
        )
        buffer[t] = difference * difference
    left = width
    while left > 1:
        half = (left + 1) // 2
        for t in range(left - half):
            buffer[t] += buffer[half + t]
        left = half
    return buffer[0] / width


@loose
def box_distance(box, node, query):
    """Squared distance of the query's coordinates from a box."""
    total = np.float32(0)
    for a in range(box.shape[2]):
        out = max(box[node, 0, a] - query[a], query[a] - box[node, 1, a])
        out = max(out, np.float32(0))
        total += out * out
    return total


@loose
def leaf_distances(coordinate, leaf, query, out):
    """Squared distances of the query's coordinates from those of a leaf's rows."""
    size = coordinate.shape[2]
    for n in range(size):
        out[n] = 0
    for a in range(0, AXES, 4):  # four axes at a time: fewer passes over `out`
        for n in range(size):
            one, two = coordinate[leaf, a, n] - query[a], coordinate[leaf, a + 1, n] - query[a + 1]
            three, four = coordinate[leaf, a + 2, n] - query[a + 2], coordinate[leaf, a + 3, n] - query[a + 3]
            out[n] += one * one + two * two + (three * three + four * four)


@loose
def second_look(bound, one, two):
    """The squared distance `bound` of first coordinates, with the second ones in place of the residual."""
    residual = one[AXES - 1] - two[AXES - 1]
    total = np.float32(0)
    for a in range(AXES, len(one)):
        apart = one[a] - two[a]
        total += apart * apart
    return bound - residual * residual + total


@strict
def limit_of(score, unit, error):
    """Coordinate distances above this cannot win against `score`."""
    bound = math.sqrt(score * unit) + error
    return np.float32(bound * bound * (1 + 2.0**-18) + 2.0**-100)


@strict
def search(
    queries,
    keys,
    points,
    others,
    start,
    stop,
    steps,
    guesses,
    slots,
    lookup,
    tree,
    weight,
    unit,
    error,
    slack,
    best,
    slot,
    other,
    work,
):
    """Best key of queries start .. stop, depth first, the nearer child first.

    The first upper bound comes from the guesses, and from earlier neighbours' keys moved by the same step:
    the field of nearest patches is coherent. No key but the best scores below other[i], which is the second
    best score or `slack` times the best one, whichever is less.
    """
    plain = len(weight.scale) == 0
    first_leaf = len(tree.size) - 1
    buffer = np.empty(len(queries.offset))
    apart = np.empty(LEAF, np.float32)
    stack = np.empty(64, np.int64)
    bounds = np.empty(64, np.float32)
    count = len(keys.origin)
    total = count if len(slots) == 0 else len(lookup)
    for i in range(start, stop):
        query = points[i]
        norm = 0.0
        for a in range(AXES):
            norm += np.float64(query[a]) ** 2
        reach = error[0] * (math.sqrt(norm) + error[1])
        held, at, second = np.inf, count, np.inf
        # 1. Upper bound.
        last = -1
        for n in range(guesses.shape[1] + len(steps)):
            if n < guesses.shape[1]:
                source = guesses[i, n]
            else:
                step = steps[n - guesses.shape[1]]
                if i - step[0] < start:
                    continue
                source = slot[i - step[0]]
                source = (source if len(slots) == 0 else slots[source]) + step[1]
            if source < 0 or source >= total or source == last:
                continue
            last = source
            j = source if len(slots) == 0 else lookup[source]
            if j < 0:
                continue
            score = distance(queries, i, keys, j, buffer)
            work[2] += 1
            if not plain:
                score /= weight.scale[j]
            if score < held or (score == held and j < at):
                second = min(second, held)
                held, at = score, j
            elif j != at:
                second = min(second, score)
        limit = limit_of(slack * held, unit, reach)
        # 2. Walk.
        stack[0], bounds[0], depth = 0, 0, 1
        while depth > 0:
            depth -= 1
            node = stack[depth]
            if bounds[depth] > limit:
                continue
            while node < first_leaf:
                work[0] += 1
                near, far = 2 * node + 1, 2 * node + 2
                close, away = box_distance(tree.box, near, query), box_distance(tree.box, far, query)
                if not plain:
                    close = max(close * weight.node[near, 0], weight.node[near, 1])
                    away = max(away * weight.node[far, 0], weight.node[far, 1])
                if away < close:
                    near, far, close, away = far, near, away, close
                if away <= limit:
                    stack[depth], bounds[depth] = far, away
                    depth += 1
                node = near
                if close > limit:
                    node = -1
                    break
            if node < 0:
                continue
            # 3. Leaf.
            leaf = node - first_leaf
            work[1] += 1
            leaf_distances(tree.coordinate, leaf, query, apart)
            for n in range(tree.size[leaf]):
                bound = apart[n] if plain else apart[n] * weight.place[leaf, n]
                if bound > limit:
                    continue
                j = tree.member[leaf, n]
                if j == at:
                    continue
                closer = second_look(apart[n], query, others[j])
                if (closer if plain else closer * weight.place[leaf, n]) > limit:
                    continue
                score = distance(queries, i, keys, j, buffer)
                work[2] += 1
                if not plain:
                    score /= weight.scale[j]
                if score < held or (score == held and j < at):
                    second = min(second, held)
                    held, at = score, j
                    limit = limit_of(slack * held, unit, reach)
                else:
                    second = min(second, score)
        best[i], slot[i], other[i] = held, at, min(second, slack * held)


@strict
def pair_distances(queries, keys, start, stop, slot, out):
    """D of queries start .. stop and one key each."""
    buffer = np.empty(len(queries.offset))
    for i in range(start, stop):
        out[i] = distance(queries, i, keys, slot[i], buffer)


@strict
def hash_rows(bits, origin, offset, factor, start, stop, out):
    """Sums of the rows' bits times factors, modulo 2^64."""
    for i in range(start, stop):
        total = np.int64(0)
        for t in range(len(offset)):
            total += np.int64(bits[origin[i] + offset[t]]) * factor[t]
        out[i] = total


# ---- From rows to coordinates to a tree


def table(items: "Items") -> Rows:
    """Where the rows' numbers lie in memory."""
    data = items.data.contiguous()
    index = items.original(torch.arange(items.count))
    stride = data.stride()
    if items.patches is None:
        return Rows(data.flatten().numpy(), (index * stride[0]).numpy(), np.arange(items.width))
    origin = torch.zeros_like(index)
    for size, step in zip(reversed(items.grid), reversed(stride[1:]), strict=True):
        origin += index % size * step
        index = index // size
    offset = torch.zeros((1,) * data.ndim, dtype=torch.int64)
    for axis, size in enumerate((data.shape[0], *items.patches.window)):
        offset = offset + (torch.arange(size) * stride[axis]).view(-1, *(1,) * (data.ndim - 1 - axis))
    return Rows(data.flatten().numpy(), origin.numpy(), offset.flatten().numpy())


class Space:
    """Coordinates for rows like these keys."""

    def __init__(self, keys: "Items", power: int) -> None:
        sample = keys.sample(1024).double()
        mean = sample.mean(0)
        self.power, self.unit = power, 2.0**-power
        sample = (sample - mean) * self.unit
        kept = min(2 * (AXES - 1), keys.width)
        vectors = torch.linalg.eigh(sample.T @ sample).eigenvectors[:, -kept:].flip(1)
        defect = float((vectors.T @ vectors - torch.eye(kept, dtype=torch.float64)).norm())
        u, d = 2.0**-53, keys.width
        self.error = 1.01 * (2.0**-24 + 6 * (d + 3) * u + defect + math.sqrt((2 * d + 90) * u + 4 * defect))
        self.center = mean.numpy()
        self.basis = np.zeros((2 * AXES, d))  # rows 15 and 31 stay empty: the residual norms' places
        first = min(AXES - 1, kept)
        self.basis[:first] = vectors[:, :first].T.numpy()
        self.basis[AXES : AXES + kept - first] = vectors[:, first:].T.numpy()

    def points(self, rows: Rows, threads: int) -> np.ndarray:
        """Coordinates of all rows (row, 2 AXES): for the tree, and for the second look."""
        out = np.empty((len(rows.origin), 2 * AXES), np.float32)
        parallel(
            len(out), 1024, threads, lambda a, b: project(rows, a, b, self.center, self.unit, self.basis, out)
        )
        return out


def plant(points: np.ndarray) -> Tree:
    """The tree over rows with these coordinates; leaves hold between LEAF / 2 and LEAF rows."""
    levels = max(0, math.ceil(math.log2(len(points) / LEAF)))
    order, begin, end, box = grow(np.ascontiguousarray(points[:, :AXES].T), levels)
    begin, end = begin[2**levels - 1 :], end[2**levels - 1 :]
    place = begin[:, None] + np.arange(LEAF)
    member = order[np.minimum(place, end[:, None] - 1)]
    return Tree(member, end - begin, box, np.ascontiguousarray(points[:, :AXES][member].transpose(0, 2, 1)))


def weigh(tree: Tree, scale: np.ndarray | None, least: np.ndarray | None, unit: float) -> Weight:
    """Weights of the tree's rows for S = D / scale, where no query has D below `least`."""
    if scale is None or least is None:
        return Weight(np.empty(0), np.zeros((1, 1), np.float32), np.zeros((1, 2), np.float32))
    place = (scale.min() / scale * (1 - 2.0**-20)).astype(np.float32)[tree.member]
    floor = (least / scale * unit * (1 - 2.0**-20)).astype(np.float32)[tree.member]
    node = np.stack([place.min(1), floor.min(1)], 1)
    level = node
    while len(level) > 1:
        level = np.minimum(level[::2], level[1::2])
        node = np.concatenate([level, node])
    return Weight(scale, place, node)


def steps_between(queries: "Items", keys: "Items") -> np.ndarray:
    """Steps back to an earlier query, each with the same step between keys: left, up, earlier frame."""
    pairs = [(1, 1)]
    whole = queries.slots is None and queries.patches is not None and keys.patches is not None
    if whole and len(queries.grid) == len(keys.grid):
        for axis in range(len(queries.grid) - 1, 0, -1):
            pairs.append((math.prod(queries.grid[axis:]), math.prod(keys.grid[axis:])))
    return np.array(pairs)


class Planted:
    """Rows with their coordinates; the tree over them grows when it is first needed."""

    def __init__(self, items: "Items", space: Space, threads: int) -> None:
        self.items, self.space, self.threads = items, space, threads
        self.rows = table(items)
        self.points = space.points(self.rows, threads)
        self.longest = 1.001 * float(np.sqrt(np.einsum("na,na->n", *[self.points[:, :AXES]] * 2).max()))
        self._tree: Tree | None = None

    @property
    def tree(self) -> Tree:
        """The tree over these rows."""
        if self._tree is None:
            self._tree = plant(self.points)
        return self._tree


def search_tree(
    queries: Planted,
    keys: Planted,
    scale: np.ndarray | None = None,
    least: np.ndarray | None = None,
    guesses: np.ndarray | None = None,
    only: Iterable[int] | None = None,
    slack: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Best score and key of each query (or of `only` some), the least that any other key may score, and the
    work: splits, leaves, exact scores.

    `slack` is by how much the score of other keys is known beyond the best one, as a factor.
    """
    count, source = len(queries.rows.origin), keys.items.slots
    unit = keys.items.width * keys.space.unit**2 * (1.0 if scale is None else scale.min())
    weight = weigh(keys.tree, scale, least, unit)
    slots, lookup = np.empty(0, np.int64), np.empty(0, np.int64)
    if source is not None:
        slots = source.numpy()
        lookup = np.full(slots[-1] + 1, -1)
        lookup[slots] = np.arange(len(slots))
    guesses = np.empty((count, 0), np.int64) if guesses is None else np.ascontiguousarray(guesses)
    steps = steps_between(queries.items, keys.items)
    error = np.array([keys.space.error, keys.longest])
    a, b = queries.rows, keys.rows
    a, b = alike(a, b)
    best, slot, other = np.full(count, np.inf), np.zeros(count, np.int64), np.zeros(count)
    work = np.zeros(3, np.int64)

    def run(start: int, stop: int) -> None:
        done = np.zeros(3, np.int64)
        search(
            a, b, queries.points, keys.points, start, stop, steps, guesses, slots, lookup,
            keys.tree, weight, unit, error, slack, best, slot, other, done,
        )  # fmt: skip
        np.add(work, done, out=work)

    if only is not None:
        for i in only:
            run(i, i + 1)
    else:
        row = (
            queries.items.grid[-1] if queries.items.slots is None and queries.items.patches is not None else 0
        )
        parallel(count, max(512, 8 * row), queries.threads, run)
    return best, slot, other, work


def alike(a: Rows, b: Rows) -> tuple[Rows, Rows]:
    """Both in one precision: one compilation for each, not for each pair."""
    if a.data.dtype == b.data.dtype:
        return a, b
    return a._replace(data=a.data.astype(np.float64)), b._replace(data=b.data.astype(np.float64))


def hashes(rows: Rows, factor: np.ndarray, threads: int) -> np.ndarray:
    """A number for each row, the same for rows of the same bits (one zero only)."""
    bits = (rows.data + 0.0).view(np.int32 if rows.data.dtype == np.float32 else np.int64)
    out = np.empty(len(rows.origin), np.int64)

    def run(start: int, stop: int) -> None:
        hash_rows(bits, rows.origin, rows.offset, factor, start, stop, out)

    parallel(len(out), 1024, threads, run)
    return out


def distances(queries: Rows, keys: Rows, slot: np.ndarray, threads: int) -> np.ndarray:
    """D of each query and one key."""
    a, b = alike(queries, keys)
    out = np.empty(len(slot))
    parallel(len(slot), 1024, threads, lambda start, stop: pair_distances(a, b, start, stop, slot, out))
    return out
