"""Exact nearest neighbours by matrix products over all pairs, in blocks, on any device.

Private to `paperkit.nearest` (gpnn, vgpnn, rosetta).
"""

import contextlib
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from paperkit import UserError
from paperkit.nearest import Best, Items

GROUP = 16
"""Keys per group: the least bound of a group decides whether its keys are looked at again."""


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products in float32: no TF32, no bfloat16, no autocast, whatever the caller has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def relative_slack(width: int) -> float:
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


@cache
def bfloat16_is_quick() -> bool:
    """Whether this processor multiplies bfloat16 matrices well above the speed of float32 (time only)."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(256, 160, dtype=dtype)
        for _ in range(4):
            start = time.perf_counter()
            torch.mm(a, a.T)
            seconds[dtype] = min(seconds.get(dtype, math.inf), time.perf_counter() - start)
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]


def in_parts(x: Float64[Tensor, "n"]) -> list[Tensor]:
    """Three bfloat16 numbers whose sum is x to 24 bits."""
    parts = []
    for _ in range(3):
        parts.append(x.bfloat16())
        x = x - parts[-1].double()
    return parts


def search_blocks(
    queries: Items,
    keys: Items,
    scale: Float64[Tensor, "k"] | None,
    guesses: Tensor | None,
    memory: int,
    threads: int,
) -> Best:
    """Best key of every query; on a CPU each thread of Python takes its share of them from end to end."""
    with full_precision(queries.device):
        if threads < 2 or queries.device.type != "cpu" or queries.count <= 1024:
            return Blocks(queries, keys, scale, memory).search(guesses)

        def share(part: Tensor) -> Best:
            torch.set_num_threads(1)
            mine = None if guesses is None else guesses[part]
            return Blocks(queries.only(part), keys, scale, memory // threads).search(mine)

        with ThreadPoolExecutor(threads) as pool:
            shares = list(pool.map(share, torch.arange(queries.count).chunk(threads)))
    best = Best(queries, keys, scale)
    best.score = torch.cat([part.score for part in shares])
    best.slot = torch.cat([part.slot for part in shares])
    return best


class Blocks:
    """Compare all pairs: bounds of S from matrix products, exact scores of all that could win.

    1. Rows are centred (distances stay, cancellation shrinks), scaled by a power of two, and extended so that
       one product per pair, (q', (1-eps) a^2, 1) . w (-2k', 1, (1-eps) b^2), is below its scaled score.
    2. First look, by bfloat16 products where those are quick: coarse rows q^, k^ whose errors e = |q' - q^|
       and r = |-2w k' - k^| are measured; w a^2, w b^2 in parts, to 24 bits. The product, rounded by rho,
       is off by rho |product| + r a + |k^| e + 2.5 eps w (a^2 + b^2) at most. Its minimum over a group of
       keys, with the group's largest error added, is above the best score; a group not above that is kept.
    3. Second look at those, key by key, by float32; the keys left are scored in float64.
    """

    def __init__(self, queries: Items, keys: Items, scale: Float64[Tensor, "k"] | None, memory: int) -> None:
        self.queries, self.keys, self.scale, self.memory = queries, keys, scale, memory
        self.width, self.device = queries.width, queries.device
        self.eps = relative_slack(self.width + 8)  # the first look adds up to nine products
        self.tiny = 2.0**-100  # what float32 may lose to underflow
        self.center = keys.sample(4096).double().mean(0)
        power = math.frexp(max(queries.largest, keys.largest) + float(self.center.abs().max()))[1]
        self.unit = 2.0 ** -max(power, -60)
        self.smallest = 1.0 if scale is None else float(scale.min())
        self.best = Best(queries, keys, scale)
        # Reduced sums inside a bfloat16 product, which a GPU may make, have no bound here: the CPU only.
        self.coarse = self.device.type == "cpu" and bfloat16_is_quick()
        self.rho = 1.01 * 2.0**-8 if self.coarse else 2.0**-23  # bfloat16 has 8 significant bits

    def search(self, guesses: Int64[Tensor, "q s"] | None) -> Best:
        """Best key of every query."""
        self.best.seed(guesses, self.memory // 4)
        tile_keys, tile_queries, held = block_sizes(self.memory, self.width, self.device)
        for some in self._numbers(0, self.queries.count).split(held):
            parts = [(part, self._query_rows(part)) for part in some.split(tile_queries)]
            for start in range(0, self.keys.count, tile_keys):
                block = self._key_rows(self._numbers(start, min(start + tile_keys, self.keys.count)))
                for part, query in parts:
                    self._tile(start, block, part, query)
        return self.best

    def _numbers(self, start: int, stop: int) -> Int64[Tensor, "n"]:
        return torch.arange(start, stop, device=self.device)

    def _centered(self, items: Items, index: Tensor) -> tuple[Float[Tensor, "n d"], Float64[Tensor, "n"]]:
        rows = items.rows(index).double().sub_(self.center).mul_(self.unit).float()
        return rows, rows.double().square_().sum(1)

    def _query_rows(self, index: Tensor) -> "Prepared":
        rows, square = self._centered(self.queries, index)
        one = torch.ones_like(square)
        fine = torch.cat([rows, torch.stack([(1 - self.eps) * square, one], 1).float()], 1)
        if not self.coarse:
            error = torch.stack([0 * square, 0 * square, square, one]).float()
            return Prepared(fine, torch.cat([rows, torch.stack([square, one], 1).float()], 1), error)
        first = rows.bfloat16()
        a, b, c = in_parts(square)
        first = torch.cat([first, torch.stack([a, b, a, c, a, b, *[one.bfloat16()] * 3], 1)], 1)
        off = (rows - first[:, : self.width].float()).double().norm(dim=1)
        return Prepared(fine, first, torch.stack([square.sqrt(), off, square, one]).float())

    def _key_rows(self, index: Tensor) -> "Prepared":
        rows, square = self._centered(self.keys, index)
        w = torch.ones_like(square) if self.scale is None else self.smallest / self.scale[index]
        moved = -2 * rows.double() * w[:, None]
        v = w * square
        fine = torch.cat([moved, w[:, None], (1 - self.eps) * v[:, None]], 1).float()
        margin = 2.5 * self.eps
        if self.coarse:
            a, b, c = in_parts(w)
            first = torch.cat([moved.bfloat16(), torch.stack([a, a, b, a, c, b, *in_parts(v)], 1)], 1)
            held = first[:, : self.width].double()
            error = torch.stack(
                [(moved - held).norm(dim=1), held.norm(dim=1), margin * w, margin * v + self.tiny]
            )
        else:
            first = torch.cat([moved, w[:, None], v[:, None]], 1).float()
            error = torch.stack([0 * w, 0 * w, margin * w, margin * v + self.tiny])
        error = error.float() * 1.01
        if short := -len(index) % GROUP:  # fill the last group with keys that cannot win
            fine, first = (torch.nn.functional.pad(x, (0, 0, 0, short)) for x in (fine, first))
            fine[-short:, -1] = first[-short:, -1] = 1e30
            error = torch.nn.functional.pad(error, (0, short))
        return Prepared(fine, first, error.view(4, -1, GROUP).amax(2).T)

    def _tile(self, start: int, keys: "Prepared", part: Tensor, queries: "Prepared") -> None:
        """Steps 2 and 3 for one block of keys and one of queries."""
        low = (keys.first @ queries.first.T).view(-1, GROUP, len(part)).amin(1).float()
        off = (keys.error @ queries.error).add_(low.abs(), alpha=self.rho)
        scale = (
            self.width * self.unit**2 * self.smallest * (1 + 1e-6)
        )  # scores in units of the bound, rounded up
        limit = (self.best.score[part] * scale + self.tiny).float()
        limit = torch.minimum(limit, (low + off).amin(0))
        group, query = (low.sub_(off) <= limit).nonzero().unbind(1)
        groups = keys.fine.view(-1, GROUP, self.width + 2)
        room = max(1, self.memory // 4 // (8 * GROUP * self.width))
        for g, i in zip(group.split(room), query.split(room), strict=True):
            bound = torch.bmm(groups[g], queries.fine[i, :, None])[..., 0]
            pair, member = (bound <= limit[i, None]).nonzero().unbind(1)
            self.best.offer(part[i[pair]], start + g[pair] * GROUP + member, self.memory // 4)


class Prepared(NamedTuple):
    """Rows for the second look, rows for the first look, and the factors of the first look's error."""

    fine: Tensor
    first: Tensor
    error: Tensor


def block_sizes(memory: int, width: int, device: torch.device) -> tuple[int, int, int]:
    """Keys and queries of one tile, and queries held at a time (they share the prepared keys)."""
    keys, queries = (8192, 1024) if device.type == "cpu" else (2**16, 2**13)
    # A pair of the tile takes 4 bytes, its group's bounds half as much; a row being prepared, 24 per number.
    while keys > GROUP and 6 * keys * queries + 24 * width * (keys + queries) > memory // 2:
        keys, queries = (keys // 2, queries) if keys > 4 * queries else (keys, max(1, queries // 2))
    return keys, queries, max(queries, memory // 4 // (6 * width + 8))
