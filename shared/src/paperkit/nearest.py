"""Exact nearest neighbours between vectors, or between patches of images or videos, within a memory budget.

Used by gpnn, vgpnn and rosetta.

symbol  meaning                                                            source
Q_i     query i; K_j key j; each of d numbers
D_ij    |Q_i - K_j|^2 / d in float64, the squares summed by `halving_sum`  gpnn spec 2.2, step 2
m_j     min_i D_ij                                                         gpnn spec 2.2, step 3
S_ij    D_ij / (alpha + m_j); S = D for alpha = inf                        gpnn spec 2.2, step 3

"Exact" means: the index of the smallest float64 score, the lowest index on ties. It depends neither on the
memory budget nor on threads, device, seeds or method: a fast stage only proposes candidates, with a derived
error bound (see `_nearest_blocks` and `_nearest_tree`), and every candidate is scored in float64.
"""

import contextlib
import copy
import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from paperkit import UserError

if TYPE_CHECKING:
    from paperkit._nearest_tree import Planted

Method = Literal["auto", "blocks", "tree"]

LARGEST = 1e100
"""Largest magnitude accepted, and 1/LARGEST the smallest alpha: no square or score overflows in float64."""

SMALL = 2**15
"""Pairs below which the blocks path is taken without asking: it needs milliseconds."""
TREE_NANOSECONDS = (25.0, 40.0, 150.0)
"""Time of a split, a leaf and an exact score of the tree, for the choice of the method only."""
BLOCKS_NANOSECONDS = 0.03
"""Time of a pair per number in the blocks path, for the choice of the method only."""


# ---- What is searched


@dataclass(frozen=True)
class Patches:
    """All patches of an image (C, H, W) or a video (C, T, H, W), stride 1, never unfolded as a whole.

    Patches are numbered row by row (frame by frame); the d numbers of one are ordered (channel, frame, row,
    column), as `F.unfold` orders them. Only a patch wholly inside `mask` may serve as a key; queries take no
    mask.
    """

    image: Float[Tensor, "c h w"] | Float[Tensor, "c t h w"]
    size: int | tuple[int, ...]
    mask: Bool[Tensor, "_ _"] | Bool[Tensor, "_ _ _"] | None = None

    def __post_init__(self) -> None:
        axes = self.image.shape[1:]
        if len(self.window) != len(axes) or any(
            not 1 <= p <= n for p, n in zip(self.window, axes, strict=False)
        ):
            raise UserError(
                f"patches of {self.window} do not fit into {tuple(axes)}: choose a smaller patch size"
            )
        if self.mask is not None and self.mask.shape != axes:
            raise UserError(
                f"mask of {tuple(self.mask.shape)} for an image of {tuple(axes)}: give one bit per pixel"
            )

    @property
    def window(self) -> tuple[int, ...]:
        """Patch size per axis."""
        return (self.size,) * (self.image.ndim - 1) if isinstance(self.size, int) else self.size

    @property
    def grid(self) -> tuple[int, ...]:
        """Patch positions per axis."""
        return tuple(n - p + 1 for n, p in zip(self.image.shape[1:], self.window, strict=True))

    def valid(self) -> Bool[Tensor, "n"] | None:
        """Which patches lie wholly inside the mask."""
        return (
            None
            if self.mask is None
            else _windows(self.mask[None], self.window).flatten(len(self.grid)).all(-1).flatten()
        )


@dataclass(frozen=True)
class Nearest:
    """The nearest key of each query."""

    index: Int64[Tensor, "q"]
    """Number of the key, counted over all keys, masked ones too."""
    distance: Float64[Tensor, "q"]
    """D of that key: squared distance, mean over d."""
    score: Float64[Tensor, "q"]
    """S of that key; equal to `distance` for alpha = inf."""
    reverse: Int64[Tensor, "k"] | None
    """For finite alpha each key's nearest query (-1: masked, or repeats an earlier key), a warm start."""
    other: Float64[Tensor, "q"] | None = None
    """No other key has a D below this; only where it was asked for (`slack`) and is known."""


def nearest(
    queries: Float[Tensor, "q d"] | Patches,
    keys: Float[Tensor, "k _"] | Patches,
    alpha: float = math.inf,
    *,
    key_mask: Bool[Tensor, "_"] | None = None,
    seeds: Int64[Tensor, "_"] | Int64[Tensor, "_ s"] | None = None,
    reverse_seeds: Int64[Tensor, "_"] | Int64[Tensor, "_ s"] | None = None,
    memory: int | None = None,
    method: Method | str = "auto",
) -> Nearest:
    """Find argmin_j S_ij for every query i, S_ij = D_ij / (alpha + min_i D_ij) with alpha in (0, inf].

    Arguments as for `Index` and `Index.search`; use those for several searches among the same keys.
    Raises `UserError` for shapes, devices, masks or values that cannot be searched.
    """
    index = Index(keys, key_mask=key_mask, memory=memory, method=method)
    return index.search(queries, alpha, seeds=seeds, reverse_seeds=reverse_seeds)


class Index:
    """Keys made ready for several searches.

    `key_mask` excludes keys (False), `memory` is the working memory of a search in bytes, beyond inputs,
    outputs and tree (default 128 MiB; 1 GiB on a GPU). `method`: "blocks" compares all pairs by matrix
    products; "tree" (CPU, extra `nearest`) skips most pairs; "auto" estimates which is quicker for the data.
    """

    def __init__(
        self,
        keys: Float[Tensor, "k _"] | Patches,
        *,
        key_mask: Bool[Tensor, "_"] | None = None,
        memory: int | None = None,
        method: Method | str = "auto",
    ) -> None:
        if method not in ("auto", "blocks", "tree"):
            raise UserError(f'unknown method {method!r}: use "auto", "blocks" or "tree"')
        if memory is not None and memory < 2**16:
            raise UserError(f"memory of {memory} bytes is too small: give at least 65536")
        with _one_torch_thread() as self.threads:
            self._prepare(Items(keys, "keys"), key_mask, memory, method)

    def _prepare(self, items: "Items", key_mask: Tensor | None, memory: int | None, method: str) -> None:
        if key_mask is not None and key_mask.shape != (items.count,):
            raise UserError(
                f"key_mask of {tuple(key_mask.shape)} for {items.count} keys: give one bit per key"
            )
        self.count = items.count
        self.memory = memory or (2**30 if items.device.type == "cuda" else 2**27)
        self.method = _available(method, items.device)
        valid = None if items.patches is None else items.patches.valid()
        masks = [mask.to(items.device) for mask in (valid, key_mask) if mask is not None]
        slots = torch.stack(masks).all(0).nonzero()[:, 0] if masks else None
        if slots is not None and not len(slots):
            raise UserError("the mask leaves no key: no patch lies wholly inside it")
        self.keys = items.only(slots).distinct(self._compiled())
        self._tree: Planted | None = None

    def search(
        self,
        queries: Float[Tensor, "q d"] | Patches,
        alpha: float = math.inf,
        *,
        seeds: Int64[Tensor, "_"] | Int64[Tensor, "_ s"] | None = None,
        reverse_seeds: Int64[Tensor, "_"] | Int64[Tensor, "_ s"] | None = None,
        slack: float = 0.0,
    ) -> Nearest:
        """Nearest key of each query: argmin_j D_ij / (alpha + min_i D_ij), alpha in (0, inf].

        `seeds`: guesses, one or more keys for each query (-1: none), e.g. the result of the last iteration;
        `reverse_seeds`: queries for each key, e.g. `Nearest.reverse`. They change the time, never the result.
        `slack` (for alpha = inf): how far beyond the nearest key, as a share of its distance, the others are
        looked at, so that `again` can tell which queries need no new search.
        """
        if math.isnan(alpha) or alpha < 1 / LARGEST:
            raise UserError(f"alpha must be positive (at least {1 / LARGEST:g}, or inf), got {alpha}")
        if isinstance(queries, Patches) and queries.mask is not None:
            raise UserError("queries take no mask: every query gets its nearest key; mask the keys instead")
        with _one_torch_thread() as threads:
            self.threads = threads
            return self._search(Items(queries, "queries"), alpha, seeds, reverse_seeds, slack)

    def again(
        self,
        queries: Float[Tensor, "q d"] | Patches,
        before: Nearest,
        moved: Float64[Tensor, "_"],
        slack: float = 0.1,
    ) -> Nearest:
        """Nearest keys (alpha = inf) of queries that moved since `before`; as `search` finds them.

        `moved`: squared distance of each query from what it was, mean over d. Where the old key is still
        nearer than any other can have come (triangle inequality on `before.other`) nothing is searched; nor
        where a query did not move. Raises `UserError` for other numbers of queries.
        """
        if len(before.index) != len(moved):
            raise UserError(f"{len(moved)} moved queries, {len(before.index)} before: give the same ones")
        with _one_torch_thread() as threads:
            self.threads = threads
            return self._again(Items(queries, "queries"), before, moved, slack)

    def _again(self, items: "Items", before: Nearest, moved: Tensor, slack: float) -> Nearest:
        index, distance = before.index.clone(), before.distance.clone()
        other = None if before.other is None else before.other.clone()
        rest = moved.nonzero()[:, 0]
        if other is not None and len(rest):
            distance[rest], other[rest], settled = self._settled(items.only(rest), rest, before, moved)
            rest = rest[~settled]
        if len(rest):
            # The tree that told `other` was quicker then: it is not asked again.
            new = self._search(items.only(rest), math.inf, index[rest], None, slack, other is not None)
            index[rest], distance[rest] = new.index, new.distance
            if other is not None:
                other[rest] = 0.0 if new.other is None else new.other
        return Nearest(index, distance, distance, None, other)

    def _settled(
        self, items: "Items", rest: Tensor, before: Nearest, moved: Tensor
    ) -> tuple[Float64[Tensor, "n"], Float64[Tensor, "n"], Bool[Tensor, "n"]]:
        """D of the old keys, the least D that another key can have now, and where the old key is nearest."""
        from paperkit._nearest_tree import distances, table

        assert before.other is not None
        assert self._tree is not None
        slot = before.index[rest]
        slot = slot if self.keys.slots is None else torch.searchsorted(self.keys.slots, slot)
        distance = torch.from_numpy(distances(table(items), self._tree.rows, slot.numpy(), self.threads))
        step, reach = moved[rest].sqrt(), before.other[rest].sqrt()
        # The roots are right to 1e-12 of their size; the margin is a thousand times that.
        settled = distance.sqrt() + step < reach * (1 - 1e-9)
        return distance, (reach - step).clamp(min=0).square(), settled

    def _search(
        self,
        items: "Items",
        alpha: float,
        seeds: Tensor | None,
        reverse_seeds: Tensor | None,
        slack: float = 0.0,
        tree: bool = False,
    ) -> Nearest:
        if (items.width, items.device) != (self.keys.width, self.keys.device):
            raise UserError(
                f"queries of {items.width} numbers on {items.device}, keys of {self.keys.width} on "
                f"{self.keys.device}: give the same patch size, channels and device"
            )
        search = self._tree_search(items) if tree or self._tree_pays(items) else self._blocks_search
        reverse = scale = least = None
        if math.isfinite(alpha):
            guesses = _guesses(reverse_seeds, self.count, "reverse_seeds")
            guesses = guesses if guesses is None or self.keys.slots is None else guesses[self.keys.slots]
            back = search(self.keys, items.distinct(self._compiled()), None, None, guesses)
            least = back.distance
            scale = alpha + least
            reverse = self.keys.spread(back.index, self.count)
        known = {"slack": slack} if slack and scale is None else {}
        found = search(items, self.keys, scale, least, _guesses(seeds, items.count, "seeds"), **known)
        return Nearest(found.index, found.distance, found.score, reverse, found.other)

    def _compiled(self) -> int:
        """Threads of compiled code; 0 where there is none."""
        return 0 if self.method == "blocks" else self.threads

    def _blocks_search(
        self,
        queries: "Items",
        keys: "Items",
        scale: Tensor | None,
        least: Tensor | None,
        guesses: Tensor | None,
        slack: float = 0.0,
    ) -> "Best":
        from paperkit._nearest_blocks import search_blocks

        return search_blocks(queries, keys, scale, guesses, self.memory, self.threads)

    def _tree_for(self, queries: "Items") -> "Planted":
        """The keys' coordinates and tree, in a unit (a power of two) that keeps the queries' in range too."""
        from paperkit._nearest_tree import Planted, Space

        # Steps of 32 powers, never down again: the tree is seldom made anew for other queries.
        power = max(-64, 32 * math.ceil(math.frexp(2 * max(queries.largest, self.keys.largest))[1] / 32))
        if self._tree is None or self._tree.space.power < power:
            self._tree = Planted(self.keys, Space(self.keys, power), self.threads)
        return self._tree

    def _tree_pays(self, queries: "Items") -> bool:
        """Whether the tree is asked for, or quicker as far as the work of a few queries tells."""
        if self.method != "auto" or queries.count * self.keys.count < SMALL:
            return self.method == "tree"
        from paperkit._nearest_tree import Planted, search_tree

        keys = self._tree_for(queries)
        some = queries.only(torch.arange(0, queries.count, max(1, queries.count // 16)))
        *_, work = search_tree(Planted(some, keys.space, self.threads), keys)
        time = sum(n * each for n, each in zip(work.tolist(), TREE_NANOSECONDS, strict=True))
        return time < some.count * self.keys.count * self.keys.width * BLOCKS_NANOSECONDS

    def _tree_search(self, queries: "Items") -> Callable[..., "Best"]:
        """Search by the tree, as `_blocks_search` does by blocks."""
        from paperkit._nearest_tree import Planted, distances, search_tree

        keys = self._tree_for(queries)
        known = {id(self.keys): keys, id(queries): Planted(queries, keys.space, self.threads)}

        def search(queries: Items, keys: Items, *arrays: Tensor | None, slack: float = 0.0) -> Best:
            space = known[id(self.keys)].space
            q, k = (known.get(id(items)) or Planted(items, space, self.threads) for items in (queries, keys))
            best = Best(queries, keys, arrays[0])
            given = [None if x is None else x.numpy() for x in arrays]
            score, slot, other, _ = search_tree(q, k, *given, slack=(1 + slack) ** 2)
            best.score, best.slot = torch.from_numpy(score), torch.from_numpy(slot)
            best.other = torch.from_numpy(other) if slack else None
            if best.scale is not None:
                best.plain = torch.from_numpy(distances(q.rows, k.rows, slot, self.threads))
            return best

        return search


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[int]:
    """Torch's operations in one thread; the number of threads that it had, for threads of Python.

    Many small operations, each with a barrier at which OpenMP's threads spin, lose more than they win, above
    all on a machine that others use too (gpnn spec 11.2).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _guesses(seeds: Tensor | None, count: int, name: str) -> Int64[Tensor, "n s"] | None:
    if seeds is None:
        return None
    if seeds.shape[0] != count:
        raise UserError(f"{name} for {seeds.shape[0]} of {count}: give one row of guesses for each")
    return seeds.reshape(count, -1)


def _available(method: str, device: torch.device) -> str:
    """The method asked for, or what this machine can do of it."""
    if method == "blocks" or (method == "auto" and device.type != "cpu"):
        return "blocks"
    if device.type != "cpu":
        raise UserError(f'method "tree" works on the CPU, the keys are on {device}: use method="blocks"')
    if importlib.util.find_spec("numba") is None:
        if method == "tree":
            raise UserError('method "tree" needs numba: install paperkit with the extra "nearest"')
        return "blocks"
    return method


# ---- Rows of vectors or patches


def _windows(image: Tensor, window: tuple[int, ...]) -> Tensor:
    """View (..grid, c, ..window) of all patches of (c, ..axes); no memory."""
    for axis, size in enumerate(window):
        image = image.unfold(axis + 1, size, 1)
    axes = len(window)
    return image.permute(*range(1, axes + 1), 0, *range(axes + 1, 2 * axes + 1))


class Items:
    """Queries or keys: `count` rows of `width` numbers that are read when asked for.

    `slots` (ascending) names the rows of the source that take part; None: all. Row numbers at this class's
    methods are numbers among those that take part, `original` turns them into numbers of the source.
    """

    def __init__(self, source: Tensor | Patches, name: str) -> None:
        data = source.image if isinstance(source, Patches) else source
        if not data.is_floating_point():
            raise UserError(f"{name} must be floating-point numbers, got {data.dtype}: convert first")
        if not isinstance(source, Patches) and (data.ndim != 2 or 0 in data.shape):
            raise UserError(f"{name} must have shape (count, d), none of them 0, got {tuple(data.shape)}")
        data = data.detach()
        self.data = data if data.dtype in (torch.float32, torch.float64) else data.float()
        self.largest = max(abs(float(x)) for x in self.data.aminmax())
        if not self.largest <= LARGEST:  # NaN is not
            raise UserError(f"{name} hold values that are not finite or above {LARGEST:g}: remove them first")
        self.patches = source if isinstance(source, Patches) else None
        self.view = _windows(self.data, source.window) if isinstance(source, Patches) else self.data
        self.grid = source.grid if isinstance(source, Patches) else (data.shape[0],)
        self.width = self.view.shape[len(self.grid) :].numel()
        self.device = data.device
        self.slots: Tensor | None = None
        self.count = math.prod(self.grid)

    def only(self, slots: Int64[Tensor, "n"] | None) -> "Items":
        """The same source, restricted to these of its rows."""
        if slots is None:
            return self
        part = copy.copy(self)
        part.slots, part.count = self.original(slots), len(slots)
        return part

    def original(self, index: Int64[Tensor, "n"]) -> Int64[Tensor, "n"]:
        """Numbers of the source."""
        return index if self.slots is None else self.slots[index]

    def spread(self, values: Int64[Tensor, "n"], count: int) -> Int64[Tensor, "m"]:
        """Values of the rows that take part at their places among all `count`, -1 elsewhere."""
        if self.slots is None:
            return values
        return torch.full((count,), -1, device=self.device).index_copy(0, self.slots, values)

    def rows(self, index: Int64[Tensor, "n"]) -> Float[Tensor, "n d"]:
        """Read rows: the only place where patches become vectors."""
        index = self.original(index)
        position = []
        for size in reversed(self.grid):
            position.append(index % size)
            index = index // size
        return self.view[tuple(reversed(position))].reshape(-1, self.width)

    def sample(self, count: int) -> Float[Tensor, "n d"]:
        """At most `count` rows, evenly spread."""
        step = max(1, self.count // count)
        return self.rows(torch.arange(0, self.count, step, device=self.device)[:count])

    def distinct(self, threads: int = 0) -> "Items":
        """Without the rows that repeat an earlier row exactly: they can never win, the earlier one ties.

        `threads`: of compiled code; 0: where there is none.
        """
        generator = torch.Generator().manual_seed(0)
        factor = torch.randint(-(2**62), 2**62, (self.width,), generator=generator)
        keys = self._hashes(factor.to(self.device), threads)
        ordered, order = keys.sort(
            stable=True
        )  # equal rows are neighbours, in ascending order of their number
        again = torch.zeros_like(ordered, dtype=torch.bool)
        again[1:] = ordered[1:] == ordered[:-1]
        pairs = again.nonzero()[:, 0]
        for part in pairs.split(max(1, 2**19 // self.width)):  # a hash proves nothing: compare
            again[part] = (self.rows(order[part]) == self.rows(order[part - 1])).all(1)
        return self.only(order[~again].sort().values) if again.any() else self

    def _hashes(self, factor: Int64[Tensor, "d"], threads: int) -> Int64[Tensor, "n"]:
        """A number for each row, the same for equal ones: its bits, weighted, modulo 2^64."""
        if threads:
            from paperkit._nearest_tree import hashes, table

            return torch.from_numpy(hashes(table(self), factor.numpy(), threads))
        whole = torch.int32 if self.data.dtype == torch.float32 else torch.int64
        keys = torch.empty(self.count, dtype=torch.int64, device=self.device)
        for part in torch.arange(self.count, device=self.device).split(max(1, 2**19 // self.width)):
            bits = (self.rows(part) + 0.0).view(whole)  # + 0.0: one zero only
            keys[part] = (bits * factor).sum(1)
        return keys


# ---- The float64 score that decides


def halving_sum(x: Float64[Tensor, "n d"]) -> Float64[Tensor, "n"]:
    """Sum of each row in one fixed order: add the upper half to the lower, down to one number. Overwrites x.

    Additions of whole columns, so that the result is the same bit for bit on any device and thread count.
    """
    width = x.shape[1]
    while width > 1:
        half = (width + 1) // 2
        x[:, : width - half] += x[:, half:width]
        width = half
    return x[:, 0]


def _distance(queries: Items, keys: Items, i: Tensor, j: Tensor) -> Float64[Tensor, "n"]:
    """D of the pairs (i, j)."""
    difference = queries.rows(i).double() - keys.rows(j).double()
    return halving_sum(difference.square_()) / queries.width


class Best:
    """Best score of each query so far, and its key; a lower key wins a tie."""

    def __init__(self, queries: Items, keys: Items, scale: Float64[Tensor, "k"] | None) -> None:
        self.queries, self.keys, self.scale = queries, keys, scale
        self.other: Tensor | None = None
        self.plain: Tensor | None = None
        none = torch.iinfo(torch.int64).max
        self.score = torch.full((queries.count,), math.inf, dtype=torch.float64, device=queries.device)
        self.slot = torch.full((queries.count,), none, device=queries.device)

    def offer(self, i: Int64[Tensor, "n"], j: Int64[Tensor, "n"], memory: int) -> None:
        """Score the pairs (i, j) in float64 and keep the best."""
        for some in torch.arange(len(i), device=i.device).split(max(1, memory // (40 * self.queries.width))):
            a, b = i[some], j[some]
            score = _distance(self.queries, self.keys, a, b)
            score = score if self.scale is None else score / self.scale[b]
            best = self.score.scatter_reduce(0, a, score, "amin")
            none = torch.iinfo(torch.int64).max
            held = torch.where(self.score == best, self.slot, none)
            self.slot = held.scatter_reduce(0, a, torch.where(score == best[a], b, none), "amin")
            self.score = best

    def seed(self, guesses: Int64[Tensor, "q s"] | None, memory: int) -> None:
        """Offer guesses, given as numbers of the source; those that are no key are passed over."""
        if guesses is None:
            return
        for column in guesses.to(self.queries.device).unbind(1):
            slot = column
            if self.keys.slots is not None:
                slot = torch.searchsorted(self.keys.slots, column.contiguous()).clamp(max=self.keys.count - 1)
                slot = torch.where(self.keys.slots[slot] == column, slot, -1)
            good = ((slot >= 0) & (slot < self.keys.count)).nonzero()[:, 0]
            self.offer(good, slot[good], memory)

    @property
    def distance(self) -> Float64[Tensor, "q"]:
        """D of the best pairs, computed again for the weighted score where nobody did."""
        if self.scale is None or self.plain is not None:
            return self.score if self.plain is None else self.plain
        parts = torch.arange(self.queries.count, device=self.score.device).split(2**12)
        return torch.cat([_distance(self.queries, self.keys, part, self.slot[part]) for part in parts])

    @property
    def index(self) -> Int64[Tensor, "q"]:
        """Best keys as numbers of the source."""
        return self.keys.original(self.slot)
