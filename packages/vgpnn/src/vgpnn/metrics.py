"""Figures of outputs against their source (spec 8). Used by `evaluate` and `reproduce`.

symbol  meaning (X source, Y output, values in [-1, 1]; D mean squared difference of 3x5x5 patches)
R       mean over patches of Y of min D to X: realism, 0 = every patch is in the source
R_self  the same of X to itself, outside 2 frames and 4 pixels around: the unit of R / R_self
C       mean over patches of X of min D to Y: completeness
F       R with patches of 5x3x3, long in time: coherence without a flow
D       standard deviation of each voxel's grey over samples, averaged, over that of X's voxels: diversity
S       share of Y's patches whose nearest patch of X lies within 1 voxel of their own place: copying
M       mean absolute frame difference, Y over X: motion energy
NNFDIV  bytes of the deflated field of offsets (3x3x3 patches) per number of it (SinFusion 7.2)

R, C, F and S are means over `QUERIES` patches drawn at random, the same for videos of one shape; the search
is exact. NNFDIV takes PatchMatch at one fixed schedule: its figure depends on the search.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from paperkit import UserError, rng
from paperkit.nearest import Index, Patches
from torch import Tensor

from vgpnn.method import grid_of, places_of
from vgpnn.patchmatch import walk
from vgpnn.pyramid import Shape, shape_of
from vgpnn.search import Schedule

PATCH: Shape = (3, 5, 5)
LONG: Shape = (5, 3, 3)
QUERIES = 400
APART: Shape = (2, 4, 4)
"""What is left out around a patch of X for R_self."""
FIELD = Schedule((16, 8, 4, 2, 1) * 10 + (1,) * 10, (6, 4, 2, 1, 1) * 10 + (1,) * 10)
"""The schedule of NNFDIV, after its authors' notebook (research notes, 2.1)."""


def rows(video: Float[Tensor, "c t h w"], index: Int64[Tensor, "n"], patch: Shape) -> Float[Tensor, "n d"]:
    """Some patches as rows, numbered as `paperkit.nearest.Patches` numbers them."""
    view = video.unfold(1, patch[0], 1).unfold(2, patch[1], 1).unfold(3, patch[2], 1)
    places = places_of(index, grid_of(shape_of(video), patch))
    chosen = view[:, places[:, 0], places[:, 1], places[:, 2]]
    return chosen.movedim(1, 0).flatten(1)


def some(shape: Shape, patch: Shape, count: int = QUERIES) -> Int64[Tensor, "n"]:
    """Numbers of patches drawn at random, the same for every video of a shape."""
    total = math.prod(grid_of(shape, patch))
    if total <= count:
        return torch.arange(total)
    return torch.randperm(total, generator=rng.generator(0, total, "metrics"))[:count].sort().values


class Against:
    """A source, made ready for the figures of many outputs."""

    def __init__(self, x: Float[Tensor, "3 t h w"], queries: int = QUERIES) -> None:
        if any(n < p for n, p in zip(shape_of(x), PATCH, strict=True)):
            raise UserError(f"a clip of {shape_of(x)} is smaller than the patches of the figures, {PATCH}")
        self.x, self.queries = x.float().contiguous(), queries
        self._indices: dict[Shape, Index] = {}

    def index(self, patch: Shape) -> Index:
        """The search among the source's patches."""
        if patch not in self._indices:
            self._indices[patch] = Index(Patches(self.x, patch))
        return self._indices[patch]

    def least(self, y: Tensor, patch: Shape = PATCH) -> tuple[Tensor, Tensor, Tensor]:
        """(numbers of the patches of y, their nearest patches of the source, D)."""
        chosen = some(shape_of(y), patch, self.queries)
        found = self.index(patch).search(rows(y.float(), chosen, patch))
        return chosen, found.index, found.distance

    def realism(self, y: Float[Tensor, "3 t h w"]) -> float:
        """R."""
        return float(self.least(y)[2].mean())

    def natural(self) -> float:
        """R_self."""
        grid = grid_of(shape_of(self.x), PATCH)
        chosen = some(shape_of(self.x), PATCH, self.queries)
        every = rows(self.x, torch.arange(math.prod(grid)), PATCH) if math.prod(grid) < 2**16 else None
        own, least = places_of(chosen, grid), []
        for place, row in zip(own, rows(self.x, chosen, PATCH), strict=True):
            least.append(_nearest_elsewhere(self.x, row, place, grid, every))
        return float(np.mean(least))

    def figures(self, y: Float[Tensor, "3 t h w"]) -> dict[str, float]:
        """R, C, S, M and F of one output."""
        number, nearest, distance = self.least(y)
        back = Index(Patches(y.float().contiguous(), PATCH))
        keys = some(shape_of(self.x), PATCH, self.queries)
        found = {
            "realism": float(distance.mean()),
            "completeness": float(back.search(rows(self.x, keys, PATCH)).distance.mean()),
            "same_place": same_place(number, nearest, shape_of(y), shape_of(self.x)),
            "motion": motion(y) / max(motion(self.x), 1e-12),
        }
        if min(y.shape[1], self.x.shape[1]) >= LONG[0]:
            found["coherence"] = float(self.least(y, LONG)[2].mean())
        return found


def _nearest_elsewhere(x: Tensor, row: Tensor, place: Tensor, grid: Shape, every: Tensor | None) -> float:
    """Least D of one patch to the others of its own video, not near its place."""
    d = (
        (every - row).square().mean(1)
        if every is not None
        else torch.cat(
            [
                (rows(x, part, PATCH) - row).square().mean(1)
                for part in torch.arange(math.prod(grid)).split(2**14)
            ]
        )
    )
    d = d.view(grid).clone()
    near = [slice(max(0, int(p) - a), int(p) + a + 1) for p, a in zip(place, APART, strict=True)]
    d[tuple(near)] = math.inf
    least = float(d.min())
    return least if math.isfinite(least) else 0.0


def same_place(number: Tensor, nearest: Tensor, of: Shape, among: Shape, patch: Shape = PATCH) -> float:
    """S: share of patches whose nearest patch lies within one voxel of their own place."""
    apart = places_of(number, grid_of(of, patch)) - places_of(nearest, grid_of(among, patch))
    return float((apart.abs().amax(1) <= 1).double().mean())


def motion(x: Float[Tensor, "c t h w"]) -> float:
    """Mean absolute difference of frames."""
    return float(x.diff(dim=1).abs().mean()) if x.shape[1] > 1 else 0.0


def grey(x: Float[Tensor, "3 t h w"]) -> Float[Tensor, "t h w"]:
    """0.299 R + 0.587 G + 0.114 B."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=x.device)
    return (x.float() * weights[:, None, None, None]).sum(0)


def diversity(samples: Sequence[Float[Tensor, "3 t h w"]], x: Float[Tensor, "3 s h w"]) -> float:
    """D, over the frames that all samples have (spec 4.2, population standard deviations)."""
    if len(samples) < 2:
        raise UserError("diversity needs at least two samples")
    frames = min(sample.shape[1] for sample in samples)
    together = torch.stack([grey(sample[:, :frames]) for sample in samples])
    return float(together.std(0, correction=0).mean() / grey(x).std(correction=0).clamp(min=1e-12))


def field_complexity(y: Float[Tensor, "3 t h w"], x: Float[Tensor, "3 s a b"], seed: int = 0) -> float:
    """NNFDIV: 0 = one piece of the source, moved as a whole; high = of many pieces."""
    patch = (3, 3, 3)
    queries, keys = (Patches(v.float().contiguous(), patch) for v in (y, x))
    index, _ = walk(queries, keys, None, None, FIELD, rng.seed_of(seed, 0, "nnfdiv"), 2**27).run(None)
    places = places_of(index.view(queries.grid), grid_of(shape_of(x), patch))
    own = places_of(torch.arange(math.prod(queries.grid)).view(queries.grid), grid_of(shape_of(y), patch))
    offsets = (places - own).movedim(-1, 0).contiguous()
    return len(zlib.compress(offsets.to(torch.uint8).numpy().tobytes())) / offsets.numel()


# ---- Controls: what the figures must tell from a good output


def shuffled(x: Float[Tensor, "3 t h w"], seed: int = 0, tile: int = 8) -> Float[Tensor, "3 t a b"]:
    """The source in tiles of 8x8 pixels put back at random, in each frame anew (cropped to whole tiles)."""
    t, rows_, columns = x.shape[1], x.shape[2] // tile, x.shape[3] // tile
    cut = x[:, :, : rows_ * tile, : columns * tile]
    tiles = cut.unfold(2, tile, tile).unfold(3, tile, tile).flatten(2, 3)
    order = [torch.randperm(tiles.shape[2], generator=rng.generator(seed, k, "tiles")) for k in range(t)]
    mixed = torch.stack([tiles[:, k, order[k]] for k in range(t)], 1)
    mixed = mixed.view(len(x), t, rows_, columns, tile, tile).movedim(3, 4)
    return mixed.reshape(len(x), t, rows_ * tile, columns * tile)
