"""Which patches are visible and which are to be predicted: three samplers, whole batches at once.

`official` repeats what the released code does, its peculiarities too (the test file has it image by image);
`unbiased` lets blocks reach the border, draws scale and aspect apart, and keeps a fixed number of context
patches chosen at random; `random` is MAE's. All draw by (seed, step) for the whole global batch, so a mask
depends on its image's row and not on the number of processes.

Note: `official` cuts every context of a call to the length of the shortest, from the end of raster order: as
in the released code, the length depends on how many images a process holds.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from paperkit import UserError, rng
from torch import Tensor

from flexpredict.config import MaskConfig

PATIENCE = 20
"""Corners that `official` tries before it lets the context overlap one more target block."""
REDRAWS = 100
"""How often `unbiased` draws an image's blocks again when too little context is left."""

Grid = tuple[int, int]


@dataclass(frozen=True)
class Masks:
    """Cell numbers in raster order: the context of each image, and its m target blocks of n cells."""

    context: Int64[Tensor, "b c"]
    targets: Int64[Tensor, "b m n"]

    def to(self, device: torch.device) -> "Masks":
        """The same on another device."""
        return Masks(self.context.to(device), self.targets.to(device))


def sample(
    config: MaskConfig, grid: Grid, batch: int, seed: int, step: int, rows: slice = slice(None)
) -> Masks:
    """The masks of `rows` of a global batch at a step. Raises `UserError` where the grid is too small."""
    samplers = {"official": _official, "unbiased": _unbiased, "random": _random}
    return samplers[config.sampler](config, grid, batch, seed, step, rows)


def check(config: MaskConfig, grid: Grid) -> None:
    """Raise `UserError`, with what would fit, when some step's masks cannot be drawn on this grid."""
    cells = math.prod(grid)
    if config.sampler == "random":
        if config.context >= cells:
            raise UserError(
                f"--masks.context {config.context} leaves nothing to predict of {cells} patches: "
                f"at most {cells - 1}"
            )
        return
    shapes = [block_shape(config, grid, u, v) for u in (0.0, 0.25, 0.5, 0.75, 1.0) for v in (0.0, 0.5, 1.0)]
    least, most = (edge(math.prod(shape) for shape in shapes) for edge in (min, max))
    where = f"a grid of {grid[0]}x{grid[1]} patches"
    if config.sampler == "unbiased":
        if config.context > cells - most:
            raise UserError(
                f"{where} with target blocks of {most} cannot keep {config.context} for the context: "
                f"--masks.context {max(1, cells - config.blocks * most)} or smaller blocks would fit"
            )
        return
    context = math.prod(context_shape(config, grid, 0.0))
    if min(least, context) <= config.least:
        raise UserError(
            f"{where} is too small for --masks.least {config.least}: the smallest block has "
            f"{min(least, context)} patches; use --masks.least {min(least, context) - 1}, a smaller "
            "--net.patch or larger images"
        )


# ---- shapes ----------------------------------------------------------------------------------------------


def block_shape(config: MaskConfig, grid: Grid, u: float, v: float) -> tuple[int, int]:
    """(rows, columns) of a target block for two uniform draws: of the scale, and of the aspect.

    Note: in `official` one draw gives both, so that large blocks are always tall.
    """
    v = u if config.sampler == "official" else v
    scale, aspect = (low + w * (high - low) for (low, high), w in ((config.scale, u), (config.aspect, v)))
    return _fit(config, grid, int(math.prod(grid) * scale), aspect)


def context_shape(config: MaskConfig, grid: Grid, u: float) -> tuple[int, int]:
    """(rows, columns) of the block that the context is cut from."""
    low, high = config.context_scale
    return _fit(config, grid, int(math.prod(grid) * (low + u * (high - low))), 1.0)


def _fit(config: MaskConfig, grid: Grid, area: int, aspect: float) -> tuple[int, int]:
    """Note: in `official` a block has at least one row and one column less than the grid."""
    longest = [side - (config.sampler == "official") for side in grid]
    rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return max(1, min(rows, longest[0])), max(1, min(columns, longest[1]))


# ---- blocks ----------------------------------------------------------------------------------------------


def _corners(
    uniform: Float[Tensor, "*b 2"], shape: tuple[int, int], grid: Grid, inclusive: bool
) -> Int64[Tensor, "*b 2"]:
    """Top left cells of blocks, from uniform numbers; without `inclusive` never at the far border."""
    room = torch.tensor([max(1, grid[i] - shape[i] + inclusive) for i in (0, 1)], dtype=torch.float64)
    return (uniform * room).long()


def cells_of(corners: Int64[Tensor, "*b 2"], shape: tuple[int, int], grid: Grid) -> Int64[Tensor, "*b n"]:
    """The cells of blocks of one shape, in raster order."""
    inside = torch.arange(shape[0])[:, None] * grid[1] + torch.arange(shape[1])
    return (corners[..., :1] * grid[1] + corners[..., 1:]) + inside.reshape(-1)


def _covered(cells: Int64[Tensor, "*b n"], grid: Grid) -> Bool[Tensor, "*b k"]:
    """Which cells of the grid are in the lists."""
    return torch.zeros(*cells.shape[:-1], math.prod(grid), dtype=torch.bool).scatter_(-1, cells, True)


def _uniform(
    shape: tuple[int, ...], seed: int, step: int, purpose: str, rows: slice
) -> Float[Tensor, "b ..."]:
    """Uniform numbers for `rows` of the global batch (the first axis), float64."""
    draws = torch.rand(shape, generator=rng.generator(seed, step, purpose), dtype=torch.float64)
    return draws[rows]


def _first(mask: Bool[Tensor, "b k"], count: int) -> Int64[Tensor, "b c"]:
    """The first `count` cells of each mask in raster order."""
    return (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]


# ---- samplers --------------------------------------------------------------------------------------------


def _official(config: MaskConfig, grid: Grid, batch: int, seed: int, step: int, rows: slice) -> Masks:
    u = torch.rand(2, generator=rng.generator(seed, step, "shapes"), dtype=torch.float64).tolist()
    shape, around = block_shape(config, grid, u[0], u[0]), context_shape(config, grid, u[1])
    if min(math.prod(shape), math.prod(around)) <= config.least:
        check(config, grid)
    # 1. Target blocks of one shape, anywhere but at the far border.
    uniform = _uniform((batch, config.blocks, 2), seed, step, "targets", rows)
    targets = cells_of(_corners(uniform, shape, grid, inclusive=False), shape, grid)
    taken = _covered(targets, grid)
    # 2. The context: a block less the targets; where too little is left, another corner, then fewer targets.
    context = torch.zeros(len(targets), math.prod(grid), dtype=torch.bool)
    short = torch.arange(len(targets))
    for attempt in itertools.count():
        uniform = _uniform((batch, 2), seed, step, f"context {attempt}", rows)[short]
        block = _covered(cells_of(_corners(uniform, around, grid, inclusive=False), around, grid), grid)
        respected = max(0, config.blocks - attempt // PATIENCE)
        context[short] = block & ~taken[short, :respected].any(1)
        short = short[context[short].sum(1) <= config.least]
        if not len(short):
            break
    # 3. All contexts as long as the shortest.
    return Masks(_first(context, int(context.sum(1).min())), targets)


def _unbiased(config: MaskConfig, grid: Grid, batch: int, seed: int, step: int, rows: slice) -> Masks:
    u = torch.rand(3, generator=rng.generator(seed, step, "shapes"), dtype=torch.float64).tolist()
    shape, around = block_shape(config, grid, u[0], u[1]), context_shape(config, grid, u[2])
    order = _uniform((batch, math.prod(grid)), seed, step, "order", rows)
    targets = torch.zeros(len(order), config.blocks, math.prod(shape), dtype=torch.int64)
    free = torch.zeros(len(order), math.prod(grid), dtype=torch.bool)
    short = torch.arange(len(order))
    for attempt in range(REDRAWS):
        uniform = _uniform((batch, config.blocks + 1, 2), seed, step, f"blocks {attempt}", rows)[short]
        targets[short] = cells_of(_corners(uniform[:, 1:], shape, grid, inclusive=True), shape, grid)
        block = cells_of(_corners(uniform[:, 0], around, grid, inclusive=True), around, grid)
        free[short] = _covered(block, grid) & ~_covered(targets[short], grid).any(1)
        short = short[free[short].sum(1) < config.context]
        if not len(short):
            chosen = torch.where(free, order, -1.0).topk(config.context, dim=1).indices
            return Masks(chosen.sort(1).values, targets)
    fewest = int(free.sum(1).min())
    raise UserError(
        f"--masks.context {config.context}: {REDRAWS} draws of {config.blocks} target blocks of "
        f"{shape[0]}x{shape[1]} left {fewest} patches on a grid of {grid[0]}x{grid[1]}; "
        f"--masks.context {max(1, fewest)} would fit"
    )


def _random(config: MaskConfig, grid: Grid, batch: int, seed: int, step: int, rows: slice) -> Masks:
    """Context cells at random, and all the others as one block."""
    order = _uniform((batch, math.prod(grid)), seed, step, "order", rows).argsort(1)
    context, rest = order[:, : config.context], order[:, config.context :]
    return Masks(context.sort(1).values, rest.sort(1).values[:, None])
