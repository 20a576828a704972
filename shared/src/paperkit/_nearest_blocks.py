"""Exact nearest neighbours by matrix products over all pairs, in blocks, on any device.

Private to `paperkit.nearest` (gpnn, vgpnn, rosetta).
"""

import contextlib
import math
from collections.abc import Iterator

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


class Blocks:
    """Compare all pairs: lower bounds of S from float32 products, exact scores of all that could win.

    1. Rows are centred (distances stay, cancellation shrinks), scaled by a power of two, and extended so that
       one product per pair, (q', (1-eps) a^2, 1) . w (-2k', 1, (1-eps) b^2), is below its scaled score.
    2. The least bound of each group of keys is kept; with the group's slack added it is above the best score.
    3. Groups not above that are looked at key by key, and the keys left are scored in float64.
    """

    def __init__(self, queries: Items, keys: Items, scale: Float64[Tensor, "k"] | None, memory: int) -> None:
        self.queries, self.keys, self.scale, self.memory = queries, keys, scale, memory
        self.width, self.device = queries.width, queries.device
        self.eps, self.tiny = (
            relative_slack(self.width),
            2.0**-100,
        )  # tiny: what float32 may lose to underflow
        self.center = keys.sample(4096).double().mean(0)
        power = math.frexp(max(queries.largest, keys.largest) + float(self.center.abs().max()))[1]
        self.unit = 2.0 ** -max(power, -60)
        self.smallest = 1.0 if scale is None else float(scale.min())
        self.best = Best(queries, keys, scale)

    def search(self, guesses: Int64[Tensor, "q s"] | None) -> Best:
        """Best key of every query."""
        self.best.seed(guesses, self.memory // 4)
        tile_keys, tile_queries, held = block_sizes(self.memory, self.width, self.device)
        with full_precision(self.device):
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

    def _centered(self, items: Items, index: Tensor) -> tuple[Float[Tensor, "n d"], Float64[Tensor, "n"]]:
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


def block_sizes(memory: int, width: int, device: torch.device) -> tuple[int, int, int]:
    """Keys and queries of one tile, and queries held at a time (they share the prepared keys)."""
    keys, queries = (4096, 1024) if device.type == "cpu" else (2**16, 2**13)
    # A pair of the tile takes 4 bytes, its group's bounds half as much; a row being prepared, 24 per number.
    while keys > GROUP and 6 * keys * queries + 24 * width * (keys + queries) > memory // 2:
        keys, queries = (keys // 2, queries) if keys > 4 * queries else (keys, max(1, queries // 2))
    return keys, queries, max(queries, memory // 4 // (4 * width + 8))
