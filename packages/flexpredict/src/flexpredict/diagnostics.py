"""What tells whether training goes well, beside the loss: which does not (a low one is a warning).

Training first falls into a position code, in which the targets of all images are alike, and only later
learns content; `target_variance` shows it 500 steps before any probe does.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from paperkit import images, parallel, rng
from torch import Tensor

from flexpredict import theory
from flexpredict.config import MaskConfig
from flexpredict.masks import Masks, sample
from flexpredict.method import covariance, keyed_normal
from flexpredict.model import Learner, Predictor, current_nsr, noise_matrix

STUCK = 0.2
"""A variance of targets below this after `STUCK_AFTER` of the steps means that nothing was learned."""
STUCK_AFTER = 0.6
MAX_CELLS = 256
"""Cells up to which positions are decoded; the cost grows with their square."""


def moments(wanted: Float[Tensor, "b k e"]) -> Float[Tensor, "2 k e"]:
    """Mean and mean square of targets over images."""
    return torch.stack([wanted.mean(0), wanted.square().mean(0)])


def target_variance(moments: Float[Tensor, "2 k e"]) -> Float[Tensor, ""]:
    """Variance between images of the normalised targets: 1 is all content, 0 position alone.

    Over the images of all processes; `moments` are those of this process's.
    """
    mean, square = parallel.average(moments)
    return (square - mean.square()).mean()


def rankme(features: Float[Tensor, "n d"], centred: bool = True) -> float:
    """Effective rank: exp of the entropy of the singular values' shares (Garrido et al. 2023)."""
    x = features.double()
    values = torch.linalg.svdvals(x - x.mean(0) if centred else x)
    share = values / values.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


class Decoding(NamedTuple):
    """What a noisy position still tells of its cell."""

    accuracy: float
    """How often the most likely cell is the right one."""
    radius: float
    """Root mean squared distance, in cells, of the cells that a noisy position may stand for: the effective
    radius of the smoothing in prop. 3.2."""


@torch.no_grad()
def decode(predictor: Predictor, draws: int = 4, seed: int = 0) -> Decoding | None:
    """Decode psi + A n by maximum likelihood under the current A; None without noise or for large grids."""
    position, matrix = predictor.position, noise_matrix(predictor)
    if matrix is None or len(position.psi) > MAX_CELLS:
        return None
    a, psi = matrix.double().cpu(), position.psi.double().cpu()
    normal = rng.normal((draws * len(psi), a.shape[1]), seed, 0, "decode").double()
    r = psi.repeat(draws, 1) + position.std * normal @ a.T
    likely = theory.posterior(r, psi, covariance(a, position.std))
    cells = torch.arange(len(psi)).repeat(draws)
    where = position.coordinates.double().cpu()
    apart = torch.cdist(where, where)[cells] ** 2
    accuracy = (likely.argmax(1) == cells).double().mean()
    return Decoding(float(accuracy), float((likely * apart).sum(1).mean().sqrt()))


def spectrum(predictor: Predictor) -> Float[Tensor, " p"] | None:
    """Standard deviations of the noise along its axes, largest first; None without noise."""
    matrix = noise_matrix(predictor)
    return None if matrix is None else predictor.position.std * torch.linalg.svdvals(matrix.double())


def figures(predictor: Predictor) -> dict[str, float]:
    """The state of A and m~ for a line of metrics."""
    found = {
        "norm_projection": float(predictor.predictor_embed.weight.detach().norm()),
        "norm_mask_token": float(predictor.mask_token.detach().norm()),
        "norm_bias": float(predictor.predictor_embed.bias.detach().norm()),
        "nsr": current_nsr(predictor),
    }
    if (matrix := noise_matrix(predictor)) is not None:
        found["norm_noise"] = float(matrix.norm())
    if decoded := decode(predictor):
        found |= {"decodable": decoded.accuracy, "radius": decoded.radius}
    if (axes := spectrum(predictor)) is not None and float(axes.sum()) > 0:
        share = axes / axes.sum()
        found["noise_rank"] = float(torch.exp(-torch.special.xlogy(share, share).sum()))
    return found


# ---- where the predictor is unsure -----------------------------------------------------------------------


@torch.no_grad()
def uncertainty(
    learner: Learner, pictures: Float[Tensor, "b c h w"], config: MaskConfig, draws: int = 16
) -> Float[Tensor, "b k"]:
    """Variance of each hidden cell's prediction over draws of its position; 0 at the context's cells."""
    grid = learner.encoder.grid
    context = sample(config, grid, len(pictures), 0, 0).context.to(pictures.device)
    hidden = torch.ones(len(pictures), grid[0] * grid[1], dtype=torch.bool, device=pictures.device)
    hidden.scatter_(1, context, False)
    targets = hidden.nonzero()[:, 1].reshape(len(pictures), -1, 1)
    shape = learner.predictor.position.noise_shape(targets.shape[1], 1)
    features = learner.encoder(pictures, context)
    found = []
    for draw in range(draws):
        normal = keyed_normal(range(len(pictures)), shape, 0, draw).to(pictures.device)
        found.append(learner.predictor(features, Masks(context, targets), normal))
    variance = torch.stack(found).var(0).mean((-1, -2))
    return torch.zeros_like(hidden, dtype=variance.dtype).scatter_(1, targets[:, :, 0], variance)


def uncertainty_picture(
    learner: Learner, seen: UInt8[Tensor, "b c h w"], scaled: Float[Tensor, "b c h w"], config: MaskConfig
) -> UInt8[Tensor, "3 y x"]:
    """Rows: images, and how unsure the predictor is of each hidden patch (bright; context is black)."""
    rows, columns = learner.encoder.grid
    found = uncertainty(learner, scaled, config).reshape(-1, 1, rows, columns).cpu()
    level = found / found.amax().clamp_min(1e-12)
    maps = images.enlarge(images.to_uint8(level, 0.0), learner.encoder.patch)
    return images.rows({"image": list(seen.cpu()), "unsure": list(maps)})
