"""Exact nearest neighbours between vectors, or between patches of images or videos, within a memory budget.

Used by gpnn, vgpnn and rosetta.

symbol  meaning                                                            source
Q_i     query i; K_j key j; each of d numbers
D_ij    |Q_i - K_j|^2 / d in float64, the squares summed by `halving_sum`  gpnn spec 2.2, step 2
m_j     min_i D_ij                                                         gpnn spec 2.2, step 3
S_ij    D_ij / (alpha + m_j); S = D for alpha = inf                        gpnn spec 2.2, step 3

"Exact" means: the index of the smallest float64 score, the lowest index on ties. It depends neither on the
memory budget nor on threads, device, seeds or method: a fast stage only proposes candidates, with a derived
error bound (`_blocks_slack` here, `_nearest_tree` for the tree), and every candidate is scored in float64.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from paperkit import UserError

Method = Literal["auto", "blocks", "tree"]

LARGEST = 1e100
"""Largest magnitude accepted, and 1/LARGEST the smallest alpha: no square or score overflows in float64."""

GROUP = 16
"""Keys per group of the blocks path: the minimum of a group decides whether its keys are looked at again."""


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
    outputs and tree (default 64 MiB; 1 GiB on a GPU). `method`: "blocks" compares all pairs by matrix
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
        items = _Items(keys, "keys")
        if method not in ("auto", "blocks", "tree"):
            raise UserError(f'unknown method {method!r}: use "auto", "blocks" or "tree"')
        if memory is not None and memory < 2**16:
            raise UserError(f"memory of {memory} bytes is too small: give at least 65536")
        if key_mask is not None and key_mask.shape != (items.count,):
            raise UserError(
                f"key_mask of {tuple(key_mask.shape)} for {items.count} keys: give one bit per key"
            )
        self.count = items.count
        self.memory = memory or (2**30 if items.device.type == "cuda" else 2**26)
        self.method = _available(method, items.device)
        valid = keys.valid() if isinstance(keys, Patches) else None
        masks = [mask for mask in (valid, key_mask) if mask is not None]
        slots = torch.stack(masks).all(0).nonzero()[:, 0].to(items.device) if masks else None
        if slots is not None and not len(slots):
            raise UserError("the mask leaves no key: no patch lies wholly inside it")
        self.keys = items.only(slots).distinct()

    def search(
        self,
        queries: Float[Tensor, "q d"] | Patches,
        alpha: float = math.inf,
        *,
        seeds: Int64[Tensor, "_"] | Int64[Tensor, "_ s"] | None = None,
        reverse_seeds: Int64[Tensor, "_"] | Int64[Tensor, "_ s"] | None = None,
    ) -> Nearest:
        """Nearest key of each query: argmin_j D_ij / (alpha + min_i D_ij), alpha in (0, inf].

        `seeds`: guesses, one or more keys for each query (-1: none), e.g. the result of the last iteration;
        `reverse_seeds`: queries for each key, e.g. `Nearest.reverse`. They change the time, never the result.
        """
        if math.isnan(alpha) or alpha < 1 / LARGEST:
            raise UserError(f"alpha must be positive (at least {1 / LARGEST:g}, or inf), got {alpha}")
        if isinstance(queries, Patches) and queries.mask is not None:
            raise UserError("queries take no mask: every query gets its nearest key; mask the keys instead")
        items = _Items(queries, "queries")
        if (items.width, items.device) != (self.keys.width, self.keys.device):
            raise UserError(
                f"queries of {items.width} numbers on {items.device}, keys of {self.keys.width} on "
                f"{self.keys.device}: give the same patch size, channels and device"
            )
        weight = reverse = None
        if math.isfinite(alpha):
            guesses = _guesses(reverse_seeds, self.count, "reverse_seeds")
            guesses = guesses if guesses is None or self.keys.slots is None else guesses[self.keys.slots]
            back = self._run(self.keys, items.distinct(), None, guesses)
            weight = alpha + back.distance
            reverse = self.keys.spread(back.index, self.count)
        found = self._run(items, self.keys, weight, _guesses(seeds, items.count, "seeds"))
        return Nearest(found.index, found.distance, found.score, reverse)

    def _run(
        self, queries: "_Items", keys: "_Items", scale: Tensor | None, guesses: Tensor | None
    ) -> "_Best":
        return _Blocks(queries, keys, scale, self.memory).search(guesses)


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
    return method


# ---- Rows of vectors or patches


def _windows(image: Tensor, window: tuple[int, ...]) -> Tensor:
    """View (..grid, c, ..window) of all patches of (c, ..axes); no memory."""
    for axis, size in enumerate(window):
        image = image.unfold(axis + 1, size, 1)
    axes = len(window)
    return image.permute(*range(1, axes + 1), 0, *range(axes + 1, 2 * axes + 1))


class _Items:
    """Queries or keys: `count` rows of `width` numbers that are read when asked for.

    `slots` (ascending) names the rows of the source that take part; None: all. Row numbers at this class's
    methods are numbers among those that take part, `original` turns them into numbers of the source.
    """

    def __init__(self, source: Tensor | Patches, name: str, slots: Tensor | None = None) -> None:
        data = source.image if isinstance(source, Patches) else source
        if not data.is_floating_point():
            raise UserError(f"{name} must be floating-point numbers, got {data.dtype}: convert first")
        if not isinstance(source, Patches) and (data.ndim != 2 or 0 in data.shape):
            raise UserError(f"{name} must have shape (count, d), none of them 0, got {tuple(data.shape)}")
        data = data.detach()
        self.data = data if data.dtype in (torch.float32, torch.float64) else data.float()
        self.largest = float(self.data.abs().max())
        if not self.largest <= LARGEST:
            raise UserError(f"{name} hold values that are not finite or above {LARGEST:g}: remove them first")
        self.patches = source if isinstance(source, Patches) else None
        self.view = _windows(self.data, source.window) if isinstance(source, Patches) else self.data
        self.grid = source.grid if isinstance(source, Patches) else (data.shape[0],)
        self.width = self.view.shape[len(self.grid) :].numel()
        self.device = data.device
        self.source, self.name, self.slots = source, name, slots
        self.count = math.prod(self.grid) if slots is None else len(slots)

    def only(self, slots: Int64[Tensor, "n"] | None) -> "_Items":
        """The same source, restricted to these of its rows."""
        return self if slots is None else _Items(self.source, self.name, self.original(slots))

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

    def distinct(self) -> "_Items":
        """Without the rows that repeat an earlier row exactly: they can never win, the earlier one ties."""
        generator = torch.Generator().manual_seed(0)
        factor = torch.randint(-(2**62), 2**62, (self.width,), generator=generator).to(self.device)
        whole = torch.int32 if self.data.dtype == torch.float32 else torch.int64
        keys = torch.empty(self.count, dtype=torch.int64, device=self.device)
        for part in torch.arange(self.count, device=self.device).split(max(1, 2**19 // self.width)):
            bits = (self.rows(part) + 0.0).view(whole)  # + 0.0: one zero only
            keys[part] = (bits * factor).sum(1)
        ordered, order = keys.sort(
            stable=True
        )  # equal rows are neighbours, in ascending order of their number
        again = torch.zeros_like(ordered, dtype=torch.bool)
        again[1:] = ordered[1:] == ordered[:-1]
        pairs = again.nonzero()[:, 0]
        for part in pairs.split(max(1, 2**19 // self.width)):  # a hash proves nothing: compare
            again[part] = (self.rows(order[part]) == self.rows(order[part - 1])).all(1)
        return self.only(order[~again].sort().values) if again.any() else self


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


def _distance(queries: _Items, keys: _Items, i: Tensor, j: Tensor) -> Float64[Tensor, "n"]:
    """D of the pairs (i, j)."""
    difference = queries.rows(i).double() - keys.rows(j).double()
    return halving_sum(difference.square_()) / queries.width


class _Best:
    """Best score of each query so far, and its key; a lower key wins a tie."""

    def __init__(self, queries: _Items, keys: _Items, scale: Float64[Tensor, "k"] | None) -> None:
        self.queries, self.keys, self.scale = queries, keys, scale
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
        """D of the best pairs, computed again for the weighted score."""
        if self.scale is None:
            return self.score
        parts = torch.arange(self.queries.count, device=self.score.device).split(2**12)
        return torch.cat([_distance(self.queries, self.keys, part, self.slot[part]) for part in parts])

    @property
    def index(self) -> Int64[Tensor, "q"]:
        """Best keys as numbers of the source."""
        return self.keys.original(self.slot)


# ---- All pairs by matrix products, in blocks


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products in float32: no TF32, no bfloat16, no autocast, whatever the caller has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _blocks_slack(width: int) -> float:
    """eps such that a float32 score of the blocks path is off by at most eps w (a^2 + b^2).

    Let q, k be the centred, scaled rows, q', k' their float32 roundings, a = |q'|, b = |k'|, u = 2^-24.
    Rounding moves |q - k| by at most u (a + b), hence its square by at most 2.01 u (a + b)^2, that is by
    4.02 u (a^2 + b^2). The score is one inner product of n = d + 2 products: w (-2k') q', w a^2, w b^2. Their
    stored factors carry at most 2.1 u together, and the sum, in any order, with or without fused additions,
    n u / (1 - n u) of the sum of magnitudes, which is at most 2 w (a^2 + b^2).
    """
    u = 2.0**-24
    terms = (width + 2) * u
    if terms > 0.01:
        raise UserError(f"vectors of {width} numbers are too long for a float32 search: reduce them first")
    return 1.01 * (4.02 * u + 2 * (terms / (1 - terms) + 2.1 * u))


class _Blocks:
    """Compare all pairs: lower bounds of S from float32 products, exact scores of all that could win.

    1. Rows are centred (distances stay, cancellation shrinks), scaled by a power of two, and extended so that
       one product per pair, (q', (1-eps) a^2, 1) . w (-2k', 1, (1-eps) b^2), is below its scaled score.
    2. The least bound of each group of keys is kept; with the group's slack added it is above the best score.
    3. Groups not above that are looked at key by key, and the keys left are scored in float64.
    """

    def __init__(
        self, queries: _Items, keys: _Items, scale: Float64[Tensor, "k"] | None, memory: int
    ) -> None:
        self.queries, self.keys, self.scale, self.memory = queries, keys, scale, memory
        self.width, self.device = queries.width, queries.device
        self.eps, self.tiny = _blocks_slack(self.width), 2.0**-100  # tiny: what float32 may lose to underflow
        self.center = keys.sample(4096).double().mean(0)
        power = math.frexp(max(queries.largest, keys.largest) + float(self.center.abs().max()))[1]
        self.unit = 2.0 ** -max(power, -60)
        self.smallest = 1.0 if scale is None else float(scale.min())
        self.best = _Best(queries, keys, scale)

    def search(self, guesses: Int64[Tensor, "q s"] | None) -> _Best:
        """Best key of every query."""
        self.best.seed(guesses, self.memory // 4)
        tile_keys, tile_queries, held = _block_sizes(self.memory, self.width, self.device)
        with _full_precision(self.device):
            for some in self._numbers(0, self.queries.count).split(held):
                parts = [(part, *self._query_rows(part)) for part in some.split(tile_queries)]
                for start in range(0, self.keys.count, tile_keys):
                    groups, slack = self._key_rows(
                        self._numbers(start, min(start + tile_keys, self.keys.count))
                    )
                    for part, rows, square in parts:
                        self._tile(start, groups, slack, part, rows, square)
        return self.best

    def _numbers(self, start: int, stop: int) -> Int64[Tensor, "n"]:
        return torch.arange(start, stop, device=self.device)

    def _centered(self, items: _Items, index: Tensor) -> tuple[Float[Tensor, "n d"], Float64[Tensor, "n"]]:
        rows = items.rows(index).double().sub_(self.center).mul_(self.unit).float()
        return rows, rows.double().square_().sum(1)

    def _query_rows(self, index: Tensor) -> tuple[Float[Tensor, "n e"], Float[Tensor, "n"]]:
        """Step 1 for queries: extended rows, and a^2."""
        rows, square = self._centered(self.queries, index)
        extra = torch.stack([(1 - self.eps) * square, torch.ones_like(square)], 1)
        return torch.cat([rows, extra.float()], 1), square.float()

    def _key_rows(self, index: Tensor) -> tuple[Float[Tensor, "g m e"], Float[Tensor, "2 g 1"]]:
        """Step 1 for keys: extended rows by groups (the last filled up with infinite bounds), and slack."""
        rows, square = self._centered(self.keys, index)
        w = torch.ones_like(square) if self.scale is None else self.smallest / self.scale[index]
        groups = -(-len(index) // GROUP)
        extended = rows.new_zeros(groups * GROUP, self.width + 2)
        extended[:, -1] = math.inf
        extended[: len(index), :-2] = -2 * rows if self.scale is None else -2 * rows * w[:, None]
        extended[: len(index), -2:] = torch.stack([w, (1 - self.eps) * w * square], 1).float()
        slack = rows.new_zeros(2, groups * GROUP)
        slack[:, : len(index)] = 2.5 * self.eps * torch.stack([w, w * square]).float()
        return extended.view(groups, GROUP, -1), slack.view(2, groups, GROUP).amax(2)[..., None]

    def _tile(
        self, start: int, groups: Tensor, slack: Tensor, part: Tensor, rows: Tensor, square: Tensor
    ) -> None:
        """Steps 2 and 3 for one block of queries and one of keys."""
        low = (groups.flatten(0, 1) @ rows.T).view(-1, GROUP, len(part)).amin(1)
        scale = (
            self.width * self.unit**2 * self.smallest * (1 + 1e-6)
        )  # scores in units of the bound, rounded up
        limit = (self.best.score[part] * scale + self.tiny).float()
        limit = torch.minimum(limit, (low + (slack[0] * square + slack[1] + self.tiny)).amin(0))
        group, query = (low <= limit).nonzero().unbind(1)
        room = max(1, self.memory // 4 // (8 * GROUP * self.width))
        for g, i in zip(group.split(room), query.split(room), strict=True):
            bound = torch.bmm(groups[g], rows[i, :, None])[..., 0]
            pair, member = (bound <= limit[i, None]).nonzero().unbind(1)
            self.best.offer(part[i[pair]], start + g[pair] * GROUP + member, self.memory // 4)


def _block_sizes(memory: int, width: int, device: torch.device) -> tuple[int, int, int]:
    """Keys and queries of one tile, and queries held at a time (they share the prepared keys)."""
    keys, queries = (4096, 1024) if device.type == "cpu" else (2**16, 2**13)
    # A pair of the tile takes 4 bytes, its group's bounds half as much; a row being prepared, 24 per number.
    while keys > GROUP and 6 * keys * queries + 24 * width * (keys + queries) > memory // 2:
        keys, queries = (keys // 2, queries) if keys > 4 * queries else (keys, max(1, queries // 2))
    return keys, queries, max(queries, memory // 4 // (4 * width + 8))
