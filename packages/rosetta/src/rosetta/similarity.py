"""Correlation of all pairs of units at the smaller of their grids, exact, within a given memory.

The pair's grid is the larger one of each axis, and <A, U B> = <U' A, B> for the bilinear matrix U: so the
larger map is brought down by the adjoint once, and the big product runs at the smaller grid (spec 9.1).
A pass over the images serves as many columns of the table as the memory holds; none needs all of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from paperkit import UserError, parallel
from torch import Tensor

from rosetta import method
from rosetta.maps import Block, Grid, Maps
from rosetta.moments import CrossMoments, Moments

Metric = Literal["pearson", "spearman", "official"]
SAMPLES = 2**16
"""Most samples that one float32 product sums over before the sum goes on in float64."""
WIDEST, NARROWEST = 2048, 16
"""Most and fewest units of a block (fewer only where a grid has fewer)."""
TABLE_BYTES = 24
"""Of a pair while it is gathered: its sum, the product that is added to it, and its correlation."""


class Tile(NamedTuple):
    """Scores of some rows and columns of the table, by the units' numbers."""

    rows: Int64[Tensor, "r"]
    columns: Int64[Tensor, "c"]
    scores: Float64[Tensor, "r c"]


@dataclass(frozen=True)
class Options:
    """How scores are computed."""

    metric: Metric = "pearson"
    memory: int = 512
    """Working memory in MiB."""
    double: bool = False
    """Products in float64 instead of float32 that is summed in float64."""
    batch: int = 16
    """Images of a batch of the official metric, whose value depends on it."""


def tiles(a: Maps, b: Maps, options: Options) -> Iterator[Tile]:
    """The table of scores of the living units of `a` (rows) and `b` (columns), tile by tile.

    Under several processes each holds maps of its own images, and all get the same tiles. Raises `UserError`
    for models of different probes, and for a memory that one tile does not fit in.
    """
    if a.images != b.images:
        raise UserError(
            f"{a.model} and {b.model} saw different probes, {a.images} and {b.images} images: "
            "record them again"
        )
    form = _Official(a, b, options) if options.metric == "official" else None
    for rows, columns, chunk in _passes(a, b, options):
        if options.metric == "spearman":
            found = {(i, j): _ranked(a, b, x, y) for i, x in enumerate(rows) for j, y in enumerate(columns)}
        else:
            found = _gather(a, b, rows, columns, chunk, options, form)
        for (i, j), scores in found.items():
            yield _living(Tile(rows[i].units, columns[j].units, scores), a, b)


def table(a: Maps, b: Maps, options: Options | None = None) -> Float64[Tensor, "da db"]:
    """The whole table; 0 for dead units."""
    scores = torch.zeros(a.units, b.units, dtype=torch.float64)
    for tile in tiles(a, b, options or Options()):
        scores[tile.rows[:, None], tile.columns] = tile.scores.cpu()
    return scores


def _living(tile: Tile, a: Maps, b: Maps) -> Tile:
    rows, columns = a.alive[tile.rows], b.alive[tile.columns]
    if bool(rows.all()) and bool(columns.all()):
        return tile
    scores = tile.scores[rows.to(tile.scores.device)][:, columns.to(tile.scores.device)]
    return Tile(tile.rows[rows], tile.columns[columns], scores)


# ---- One chunk of images -----------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def interpolation(size: int, to: int) -> Float64[Tensor, "to size"]:
    """The matrix that resizes `size` samples to `to`, as `method.resized` does along one axis."""
    line = torch.eye(size, dtype=torch.float64)[None]
    return F.interpolate(line, to, mode="linear", align_corners=False)[0].T.contiguous()


def _along(x: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """x times a matrix along its height and one along its width; None is the identity."""
    if columns is not None:
        x = x @ columns.to(x).T
    if rows is not None:
        x = rows.to(x) @ x
    return x


@dataclass(frozen=True)
class Prepared:
    """Maps of a block on a chunk of images, as pairs with units of another grid need them.

    `flat` lies at the smaller grid of each axis; count, sums and energy are those of the maps resized to the
    larger one, after `shift` was taken off.
    """

    flat: Float[Tensor, "d m"]
    shift: Float64[Tensor, "d"]
    sums: Float64[Tensor, "d"]
    energy: Float64[Tensor, "d"]
    count: int

    @property
    def moments(self) -> Moments:
        """Of the resized maps."""
        mean = self.sums / self.count
        return Moments(float(self.count), mean + self.shift, self.energy - self.sums * mean)


def centred(
    x: Float[Tensor, "b d h w"], double: bool
) -> tuple[Float[Tensor, "b d h w"], Float64[Tensor, "d"]]:
    """The maps without (about) their mean, and exactly what was taken off."""
    x = x.double() if double else x
    shift = x.mean((2, 3)).mean(0, dtype=torch.float64)
    shift = shift.to(x.dtype)
    y = x - shift[:, None, None]
    return y if double else y.float(), shift.double()


def prepare(y: Float[Tensor, "b d h w"], shift: Float64[Tensor, "d"], other: Grid) -> Prepared:
    """Bring maps, off which `shift` was taken, down by the adjoint; sum up at the larger grid."""
    own = (y.shape[2], y.shape[3])
    up = [interpolation(s, t) if t > s else None for s, t in zip(own, other, strict=True)]
    down = [interpolation(t, s).T if t < s else None for s, t in zip(own, other, strict=True)]
    weights = [torch.ones(s) if u is None else u.sum(0) for s, u in zip(own, up, strict=True)]
    smoothed = _along(y, *(None if u is None else u.T @ u for u in up))
    area = max(own[0], other[0]) * max(own[1], other[1])
    return Prepared(
        flat=_along(y, *down).transpose(0, 1).flatten(1),
        shift=shift,
        sums=(y * torch.outer(*weights).to(y)).sum((2, 3)).sum(0, dtype=torch.float64),
        energy=(y * smoothed).sum((2, 3)).sum(0, dtype=torch.float64),
        count=len(y) * area,
    )


def _products(a: Prepared, b: Prepared) -> Float64[Tensor, "da db"]:
    return (a.flat @ b.flat.T).double()


def _crossed(a: Prepared, b: Prepared) -> CrossMoments:
    products = _products(a, b)
    products.addr_(a.sums, b.sums, alpha=-1 / a.count)
    return CrossMoments(a.moments, b.moments, products)


# ---- A pass over the images --------------------------------------------------------------------------------


def _gather(
    a: Maps,
    b: Maps,
    rows: Sequence[Block],
    columns: Sequence[Block],
    chunk: int,
    options: Options,
    form: "_Official | None",
) -> dict[tuple[int, int], Float64[Tensor, "r c"]]:
    """Scores of every pair of the blocks, from one look at every image."""
    crossed: dict[tuple[int, int], CrossMoments] = {}
    cosines: dict[tuple[int, int], Tensor] = {}
    for start in range(0, a.images, chunk):
        images = slice(start, min(start + chunk, a.images))
        left = _prepared(a, rows, {y.grid for y in columns}, images, options, form and form.a)
        right = _prepared(b, columns, {x.grid for x in rows}, images, options, form and form.b)
        for i, x in enumerate(rows):
            for j, y in enumerate(columns):
                pair = left[i, y.grid], right[j, x.grid]
                if form:
                    cosine = _cosines(*pair)
                    cosines[i, j] = cosines[i, j].add_(cosine) if (i, j) in cosines else cosine
                elif (i, j) in crossed:
                    crossed[i, j].merge(_crossed(*pair))
                else:
                    crossed[i, j] = _crossed(*pair)
    if form:
        return {pair: total / form.batches for pair, total in cosines.items()}
    for moments in crossed.values():
        moments.reduce()
    return {pair: crossed.pop(pair).correlation() for pair in list(crossed)}


def _prepared(
    maps: Maps,
    blocks: Sequence[Block],
    grids: set[Grid],
    images: slice,
    options: Options,
    normal: tuple[Tensor, Tensor] | None,
) -> dict[tuple[int, Grid], Prepared]:
    found = {}
    for i, block in enumerate(blocks):
        x = maps.read(block, images)
        if normal is None:
            y, shift = centred(x, options.double)
        else:
            mean, divisor = (part[block.units, None, None].to(x.device) for part in normal)
            y, shift = (x.double() - mean) / divisor, torch.zeros_like(mean).flatten()
            y = y if options.double else y.float()
        found |= {(i, grid): prepare(y, shift, grid) for grid in sorted(grids)}
    return found


def _passes(a: Maps, b: Maps, options: Options) -> Iterator[tuple[list[Block], list[Block], int]]:
    """(blocks of rows, blocks of columns, images at a time) of each pass, together within the memory."""
    width, half = WIDEST, options.memory * 2**20 // 2
    while True:
        rows, columns = a.blocks(width), b.blocks(width)
        fewest = max(len(x.units) for x in rows) * max(len(y.units) for y in columns) * TABLE_BYTES
        most = max(_image_bytes([x], [y], a, b, options) for x in rows for y in columns)
        if fewest <= half and most <= half:
            break
        if width == NARROWEST:
            need = -(-2 * max(fewest, most) // 2**20)
            raise UserError(
                f"--memory {options.memory} does not hold one tile of {a.model} x {b.model}: give {need}"
            )
        width //= 2
    for taken in _fitting(rows, columns, a, b, options, half):
        chunk = half // _image_bytes(*taken, a, b, options)
        yield *taken, _chunk(chunk, taken, a, options)


def _chunk(fitting: int, taken: tuple[list[Block], list[Block]], a: Maps, options: Options) -> int:
    if options.metric == "official":
        return options.batch
    grids = [tuple(map(min, x.grid, y.grid)) for x in taken[0] for y in taken[1]]
    return max(1, min(fitting, a.images, SAMPLES // max(h * w for h, w in grids)))


def _fitting(
    rows: list[Block], columns: list[Block], a: Maps, b: Maps, options: Options, half: int
) -> Iterator[tuple[list[Block], list[Block]]]:
    """All rows with as many columns as fit; where not one column does, row by row."""

    def fits(some: list[Block], others: list[Block]) -> bool:
        pairs = sum(len(x.units) for x in some) * sum(len(y.units) for y in others)
        return pairs * TABLE_BYTES <= half and _image_bytes(some, others, a, b, options) <= half

    groups = [rows] if all(fits(rows, [y]) for y in columns) else [[x] for x in rows]
    for group in groups:
        taken: list[Block] = []
        for column in columns:
            if taken and not fits(group, [*taken, column]):
                yield group, taken
                taken = []
            taken = [*taken, column]
        yield group, taken


def _image_bytes(rows: Sequence[Block], columns: Sequence[Block], a: Maps, b: Maps, options: Options) -> int:
    """Of one image (of all of them for ranks, of a batch for the official metric) while it is prepared."""
    if options.metric == "spearman":
        area = max(max(x.grid[0], y.grid[0]) * max(x.grid[1], y.grid[1]) for x in rows for y in columns)
        return 8 * 6 * a.images * area * max(len(x.units) for x in (*rows, *columns)) * 2
    each = 4 * (2 if options.double else 1)
    total = 0
    for blocks, others in ((rows, columns), (columns, rows)):
        kept = sum(len(x.units) * x.grid[0] * x.grid[1] for x in blocks)
        total += kept * each * len({y.grid for y in others})
        total += 5 * 8 * max(len(x.units) * x.grid[0] * x.grid[1] for x in blocks)
    return total * (options.batch if options.metric == "official" else 1)


# ---- The other metrics -------------------------------------------------------------------------------------


class _Official:
    """The means and divisors of the released code, and how many batches there are."""

    def __init__(self, a: Maps, b: Maps, options: Options):
        if parallel.world()[1] > 1:
            raise UserError("--metric official averages over batches in order: run it on one process")
        if a.images % options.batch:
            raise UserError(
                f"--metric official needs whole batches: {a.images} images do not divide by {options.batch}"
            )
        self.batches = a.images // options.batch
        self.a, self.b = self._normal(a, options.batch), self._normal(b, options.batch)

    def _normal(self, maps: Maps, batch: int) -> tuple[Tensor, Tensor]:
        means, divisors = [], []
        for layer in maps.data:
            parts = [layer[slice(s, s + batch)].double() for s in range(0, maps.images, batch)]
            means.append(sum(x.mean((0, 2, 3)) for x in parts) / self.batches)
            within = sum(x.var((0, 2, 3)) for x in parts) / self.batches
            divisors.append(torch.as_tensor(within).sqrt() + method.EPS)
        return torch.cat([torch.as_tensor(m) for m in means]), torch.cat(divisors)


def _cosines(a: Prepared, b: Prepared) -> Float64[Tensor, "da db"]:
    return (_products(a, b) / (a.energy[:, None] * b.energy).sqrt()).nan_to_num_(0.0, 0.0, 0.0)


def _ranked(a: Maps, b: Maps, x: Block, y: Block) -> Float64[Tensor, "r c"]:
    if parallel.world()[1] > 1:
        raise UserError("--metric spearman ranks all images together: run it on one process")
    return method.rank_similarity(a.read(x, slice(None)), b.read(y, slice(None)))
