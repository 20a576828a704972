"""Two other searches behind `search.Matcher`: faiss, and PatchMatch.

Used by `search.matcher`. Both hold patch rows only where they must: faiss keeps a float32 copy of all rows,
PatchMatch gathers the rows of the candidates that it compares.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from paperkit import UserError
from paperkit.nearest import Nearest, Patches
from torch import Tensor
from torch.nn import functional as F

from gpnn.search import pair_distances, rows

CANDIDATES = 4
"""Keys per query that faiss proposes and float64 decides between."""
SWEEPS = 2
"""PatchMatch rounds of one search after the first, which makes twice as many."""
JUMPS = (8, 4, 2, 1)
"""Distances of the neighbours whose match is tried, shifted by the same step."""


class Faiss:
    """Flat faiss indices; the normalised score folds into an inner product of two more numbers (spec 9.4).

    q~ = (q, |q|^2, 1) and k~_j = w_j (2 k_j, -1, -|k_j|^2) with w_j = 1 / (alpha + m_j) give
    q~ . k~_j = -d S_ij; m_j is a plain search of the keys among the queries. faiss computes in float32, so
    its best few candidates are scored again in float64: exact in practice, not by proof.
    """

    def __init__(self, keys: Patches) -> None:
        try:
            import faiss  # pyright: ignore[reportMissingImports] - an extra

            self.faiss: Any = faiss
        except ImportError:
            raise UserError('--search faiss needs faiss: install gpnn with the extra "faiss"') from None
        if keys.image.device.type != "cpu":
            raise UserError("--search faiss works on the CPU here: use --search exact on a GPU")
        self.source, self.patch = keys, keys.window[0]
        valid = keys.valid()
        count = math.prod(keys.grid)
        self.slots = torch.arange(count) if valid is None else valid.nonzero()[:, 0]
        if not len(self.slots):
            raise UserError("the mask leaves no key: no patch lies wholly inside it")
        self.center = rows(keys.image, self.slots, self.patch).mean(0)
        self.rows = rows(keys.image, self.slots, self.patch) - self.center

    def forget(self) -> None:
        """Nothing is kept between searches."""

    def search(self, y: Float[Tensor, "c h w"], alpha: float, seeds: Int64[Tensor, "q"] | None) -> Nearest:
        """Nearest key of every patch of y."""
        grid = Patches(y, self.patch).grid
        every = torch.arange(math.prod(grid))
        queries = rows(y, every, self.patch) - self.center
        scale = torch.ones(len(self.slots), dtype=torch.float64)
        if math.isfinite(alpha):
            scale = alpha + self._least(y, queries)
        weight = (1 / scale).float()[:, None]
        k, q = self.rows, queries
        extended = (
            torch.cat([2 * k, torch.full_like(weight, -1), -k.square().sum(1, keepdim=True)], 1) * weight
        )
        asked = torch.cat([q, q.square().sum(1, keepdim=True), torch.ones_like(q[:, :1])], 1)
        index = self.faiss.IndexFlatIP(extended.shape[1])
        index.add(extended.contiguous().numpy())
        _, found = index.search(asked.contiguous().numpy(), min(CANDIDATES, len(self.slots)))
        slot = torch.from_numpy(found)
        distance = torch.stack(
            [pair_distances(y, self.source.image, every, self.slots[s], self.patch) for s in slot.unbind(1)],
            1,
        )
        score = distance / scale[slot]
        best = torch.where(score == score.amin(1, keepdim=True), slot, len(self.slots)).amin(1)
        column = (slot == best[:, None]).long().argmax(1, keepdim=True)
        distance, score = distance.gather(1, column)[:, 0], score.gather(1, column)[:, 0]
        return Nearest(self.slots[best], distance, score, None)

    def _least(self, y: Tensor, queries: Tensor) -> Float64[Tensor, "k"]:
        index = self.faiss.IndexFlatL2(queries.shape[1])
        index.add(queries.contiguous().numpy())
        _, near = index.search(self.rows.contiguous().numpy(), 1)
        return pair_distances(y, self.source.image, torch.from_numpy(near[:, 0]), self.slots, self.patch)


class PatchMatch:
    """Two approximate fields by propagation and random search: queries -> keys, and keys -> queries for m_j.

    After Barnes et al. 2009, with the jumps of parallel propagation. Approximate by design: `search.excess`
    measures by how much.
    """

    def __init__(self, keys: Patches, memory: int) -> None:
        self.source, self.patch, self.memory = keys, keys.window[0], memory
        self.valid = keys.valid()
        if self.valid is not None and not self.valid.any():
            raise UserError("the mask leaves no key: no patch lies wholly inside it")
        self.forget()

    def forget(self) -> None:
        """Start another sample."""
        self._field: Tensor | None = None
        self._back: Tensor | None = None
        self.draw = torch.Generator().manual_seed(0)

    def search(self, y: Float[Tensor, "c h w"], alpha: float, seeds: Int64[Tensor, "q"] | None) -> Nearest:
        """A good key of every patch of y."""
        keys, weight, sweeps = self.source.image, None, SWEEPS if self._field is not None else 2 * SWEEPS
        if math.isfinite(alpha):
            walk = Walk(keys, y, self.patch, None, None, self.draw, self.memory)
            self._back, least = walk.run(self._back, sweeps)
            weight = 1 / (alpha + least)
        start = self._field if self._field is not None else seeds
        walk = Walk(y, keys, self.patch, weight, self.valid, self.draw, self.memory)
        self._field, score = walk.run(start, sweeps)
        distance = score if weight is None else score / weight[self._field]
        return Nearest(self._field, distance, score, None)


class Walk:
    """One approximate field from the patches of `a` to those of `b`."""

    def __init__(
        self,
        a: Float[Tensor, "c h w"],
        b: Float[Tensor, "c s t"],
        patch: int,
        weight: Float64[Tensor, "k"] | None,
        valid: Bool[Tensor, "k"] | None,
        draw: torch.Generator,
        memory: int,
    ) -> None:
        self.a, self.b, self.patch, self.weight, self.valid, self.draw = a, b, patch, weight, valid, draw
        self.grid, self.among = Patches(a, patch).grid, Patches(b, patch).grid
        self.chunk = max(1, memory // (16 * len(a) * patch**2))

    def run(self, field: Tensor | None, sweeps: int) -> tuple[Int64[Tensor, "q"], Float64[Tensor, "q"]]:
        """Improve a field, or one drawn at random; returns it with its scores."""
        count, keys = math.prod(self.grid), math.prod(self.among)
        drawn = self._draw(keys, count)
        if self.valid is not None:
            drawn = self.valid.nonzero()[:, 0][drawn % int(self.valid.sum())]
        self.field = drawn
        self.score = self._scores(torch.arange(count, device=drawn.device), drawn)
        if field is not None:
            self._try(field)
        for _ in range(sweeps):
            for jump in JUMPS:
                for step in ((0, jump), (0, -jump), (jump, 0), (-jump, 0)):
                    self._propagate(*step)
            radius = max(self.among)
            while radius >= 1:
                self._wander(radius)
                radius //= 2
        return self.field, self.score

    def _draw(self, high: int, count: int) -> Int64[Tensor, "n"]:
        return torch.randint(high, (count,), generator=self.draw).to(self.a.device)

    def _propagate(self, down: int, right: int) -> None:
        """Try the neighbour's match, moved back by the step to the neighbour."""
        field = self.field.view(self.grid)
        rolled = torch.roll(field, (down, right), (0, 1))
        self._try_places(rolled // self.among[1] + down, rolled % self.among[1] + right)

    def _wander(self, radius: int) -> None:
        """Try a match near the present one."""
        field = self.field.view(self.grid)
        shift = [self._draw(2 * radius + 1, field.numel()).view(self.grid) - radius for _ in range(2)]
        self._try_places(field // self.among[1] + shift[0], field % self.among[1] + shift[1])

    def _try_places(self, row: Tensor, column: Tensor) -> None:
        row, column = row.clamp(0, self.among[0] - 1), column.clamp(0, self.among[1] - 1)
        self._try((row * self.among[1] + column).flatten())

    def _try(self, candidate: Tensor) -> None:
        worth = candidate != self.field
        if self.valid is not None:
            worth &= self.valid[candidate]
        which = worth.nonzero()[:, 0]
        if not len(which):
            return
        score = self._scores(which, candidate[which])
        better = score < self.score[which]
        self.field[which[better]], self.score[which[better]] = candidate[which[better]], score[better]

    def _scores(self, i: Tensor, j: Tensor) -> Float64[Tensor, "n"]:
        parts = [
            F.mse_loss(rows(self.a, m, self.patch), rows(self.b, n, self.patch), reduction="none").mean(1)
            for m, n in zip(i.split(self.chunk), j.split(self.chunk), strict=True)
        ]
        score = torch.cat(parts).double()
        return score if self.weight is None else score * self.weight[j]
