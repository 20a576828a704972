"""StoP (FlexPredict), the equations: stochastic positions of masked tokens, and I-JEPA's loss.

| symbol | here                     | meaning                                                | source      |
|--------|--------------------------|--------------------------------------------------------|-------------|
| psi_j  | `psi[j]`, `sincos`       | fixed sine-cosine position of token j, width d_p       | section 3.1 |
| s^x    | `context`                | features of the visible patches, width d_e             | section 3.1 |
| B, A   | `project.weight`         | context projection d_p x d_e; StoP sets A = B          | eq. 1, 6    |
| n_j    | `std * normal`           | Gaussian noise in d_e dimensions, fresh for each token | eq. 5       |
| sigma  | `std` ** 2               | its variance; the released code calls `std` "var"      | eq. 4       |
| Sigma  | `covariance(A, std)`     | std^2 A A^T, covariance of a masked token's position   | eq. 4       |
| psi^_j | `StochasticPosition`     | psi_j + A n_j                                          | eq. 5       |
| m~     | `mask_token` (predictor) | learned vector that all masked tokens share            | eq. 2       |
| c_i    | `Predictor`              | A s^x_i + b + psi_i: context stays where it is         | eq. 6       |
| m_j    | `Predictor`              | A n_j + psi_j + m~                                     | eq. 6       |
| s_y    | `target`                 | averaged encoder's features, layer-normed              | section 3.1 |
| J      | `prediction_loss`        | smooth L1 (beta 1), mean over everything               | section 3.1 |
| f*(r)  | `theory.best_prediction` | E[Y given R = r], a kernel average                     | prop. 3.2   |
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from paperkit import UserError, rng
from torch import Tensor, nn
from torch.nn import functional as F

Source = Literal["tied", "untied", "fixed", "coordinate", "none"]
Mode = Literal["paper", "official"]
Scope = Literal["token", "block"]


# ---- psi: sine-cosine positions --------------------------------------------------------------------------


def grid_coordinates(rows: int, columns: int) -> Float[Tensor, "k 2"]:
    """(row, column) of every cell of a grid in raster order."""
    cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    return cells.reshape(-1, 2).to(torch.get_default_dtype())


def sincos(coordinates: Float[Tensor, "*b 2"], width: int) -> Float[Tensor, "*b d"]:
    """psi at (row, column) coordinates, in cells: the first half of the channels tells the column.

    Each half has all sines, then all cosines, of the coordinate times 10000^(-4i / width). Computed in
    float64. Raises `UserError` for a width that does not divide by 4.
    """
    if width % 4:
        raise UserError(f"a position of width {width} does not divide by 4 (sine and cosine, two axes)")
    frequencies = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = coordinates.double().flip(-1)[..., None] * frequencies.to(coordinates.device)
    both = torch.stack([angles.sin(), angles.cos()], -2)
    return rearrange(both, "... side kind i -> ... (side kind i)").to(coordinates.dtype)


def sincos_grid(rows: int, columns: int, width: int) -> Float[Tensor, "k d"]:
    """psi of every cell of a grid in raster order."""
    return sincos(grid_coordinates(rows, columns), width)


# ---- psi^ = psi + A n: the paper's contribution ----------------------------------------------------------


class StochasticPosition(nn.Module):
    """Positions of masked tokens as Gaussian samples around psi (eq. 3-6), for any predictor.

    `position(places, project)` takes the place of `psi[places]` in a predictor, where `project` is the linear
    layer from context features to the predictor's width. `source` says where the covariance comes from: that
    very layer ("tied", the paper's), a matrix of its own ("untied", which collapses), the identity ("fixed"),
    noise on the coordinates, in cells, before the sine ("coordinate"), or no noise ("none"). `scope` "block"
    gives all tokens of a block one draw.

    Note: mode "official" is the released code: the noise passes through the layer with its bias, so that a
    masked token also receives b (and no m~ is added, which is the predictor's part).
    """

    psi: Float[Tensor, "k d"]
    coordinates: Float[Tensor, "k 2"]

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        context_width: int,
        std: float = 0.25,
        source: Source = "tied",
        mode: Mode = "paper",
        scope: Scope = "token",
    ):
        super().__init__()
        if mode == "official" and source not in ("tied", "none"):
            raise UserError(f"mode official knows tied noise or none, not {source}: use mode paper")
        self.std, self.source, self.mode, self.scope = std, source, mode, scope
        self._width, self._context_width = width, context_width
        self.register_buffer("coordinates", grid_coordinates(*grid), persistent=False)
        self.register_buffer("psi", sincos(self.coordinates, width))
        with torch.random.fork_rng(devices=[]):  # networks with and without it share their other weights
            self.own = nn.Linear(context_width, width, bias=False) if source == "untied" else None

    def noise_shape(self, blocks: int, tokens: int) -> tuple[int, int, int]:
        """(blocks, tokens, dimensions) of the standard normal numbers that one image needs."""
        widths = {"fixed": self._width, "coordinate": 2, "none": 0}
        dimensions = widths.get(self.source, self._context_width)
        return blocks, 1 if self.scope == "block" else tokens, dimensions

    def forward(
        self,
        places: Int64[Tensor, "b m n"],
        project: nn.Linear,
        normal: Float[Tensor, "b m n1 z"] | None = None,
    ) -> Float[Tensor, "b m n d"]:
        """psi^ at the cells `places` of m blocks of n tokens.

        `normal` holds standard normal numbers of `noise_shape`; without them a module in training mode draws
        some, one in evaluation mode adds no noise.
        """
        psi = self.psi[places]
        if self.source == "none":
            return psi
        if normal is None and self.training and self.std:
            shape = (len(places), *self.noise_shape(*places.shape[1:]))
            normal = torch.randn(shape, device=psi.device, dtype=psi.dtype)
        if self.mode == "official":
            noise = torch.zeros_like(psi[..., :1, :1]) if normal is None else self.std * normal
            return psi + project(noise.expand(*noise.shape[:-1], self._context_width))
        if normal is None or not self.std:
            return psi
        noise = self.std * normal
        if self.source == "coordinate":
            return sincos(self.coordinates[places] + noise, self._width)
        matrix = self.matrix(project)
        return psi + (noise if matrix is None else F.linear(noise, matrix))

    def matrix(self, project: nn.Linear) -> Tensor | None:
        """A (d_p, d_e), the map from noise to positions; None where noise needs none or there is none."""
        if self.own is not None:
            return self.own.weight
        return project.weight if self.source == "tied" else None


def covariance(a: Float[Tensor, "p e"], std: float) -> Float[Tensor, "p p"]:
    """Sigma = std^2 A A^T (eq. 4)."""
    return std**2 * a @ a.T


def noise_to_signal(a: Float[Tensor, "p e"], std: float) -> Float[Tensor, ""]:
    """E|A n|^2 over |psi|^2 = d_p / 2: how loud the noise is beside the position."""
    return 2 * std**2 * a.square().sum() / len(a)


def std_for(nsr: float, a: Float[Tensor, "p e"]) -> float:
    """The standard deviation at which `noise_to_signal` is `nsr`."""
    return math.sqrt(nsr / float(noise_to_signal(a, 1.0)))


def keyed_normal(
    samples: Iterable[int], shape: Sequence[int], seed: int, step: int, purpose: str = "noise"
) -> Float[Tensor, "b ..."]:
    """Standard normal numbers for some rows of a global batch, each row's by (seed, step, purpose, row).

    So they are the same on any number of processes, and none draws another's.
    """
    generators = (rng.generator(seed, step, f"{purpose} {row}") for row in samples)
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])


# ---- J: targets, loss, EMA -------------------------------------------------------------------------------


def target(features: Float[Tensor, "b k e"]) -> Float[Tensor, "b k e"]:
    """s_y: features normalised over their channels, without learned scale, in float32 or better."""
    exact = features if features.dtype == torch.float64 else features.float()
    return F.layer_norm(exact, exact.shape[-1:])


def gather(tokens: Float[Tensor, "b k e"], places: Int64[Tensor, "b m n"]) -> Float[Tensor, "b m n e"]:
    """The tokens of each image at its blocks' cells."""
    rows = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    return tokens[rows, places]


def prediction_loss(
    prediction: Float[Tensor, "b m n e"], wanted: Float[Tensor, "b m n e"]
) -> Float[Tensor, ""]:
    """J: smooth L1 with beta 1, the mean over images, blocks, tokens and channels."""
    return F.smooth_l1_loss(prediction.to(wanted.dtype), wanted)


def pixel_loss(prediction: Float[Tensor, "b m n e"], wanted: Float[Tensor, "b m n e"]) -> Float[Tensor, ""]:
    """MAE's loss: the mean squared difference to the normalised pixels of masked patches."""
    return F.mse_loss(prediction.to(wanted.dtype), wanted)


def momentum(step: int, steps: int, start: float, end: float) -> float:
    """EMA momentum at a step (from 1): linear from `start` at the first step towards `end` after the last."""
    return start + (end - start) * (step - 1) / steps


@torch.no_grad()
def update_average(average: nn.Module, online: nn.Module, keep: float) -> None:
    """average <- keep average + (1 - keep) online, in one call over all weights."""
    ours, theirs = ([p.detach() for p in each.parameters()] for each in (average, online))
    torch._foreach_lerp_(ours, theirs, 1 - keep)


# ---- Schedules by optimiser step -------------------------------------------------------------------------


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 to `end` at `steps`."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(step / max(steps, 1), 1.0)))


def learning_rate(step: int, steps: int, warmup: int, start: float, peak: float, end: float) -> float:
    """Linear from `start` to `peak` over `warmup` steps (the first step is one part up), then a cosine."""
    if step < warmup:
        return start + (peak - start) * step / warmup
    return cosine(step - warmup, steps - warmup, peak, end)
