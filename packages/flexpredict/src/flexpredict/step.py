"""The parts of one training step: networks, optimiser's groups, schedules, what is hidden, loss and gradient.

`train.train` strings them together. A run's weights depend on its configuration and on this module, `model`,
`method`, `masks`, `data` and `augment`.
"""

import copy
from collections.abc import Iterator

import torch
from jaxtyping import Float
from paperkit import UserError, parallel, rng
from paperkit.device import Device
from torch import Tensor

from flexpredict import diagnostics, masks, method
from flexpredict.config import TrainConfig
from flexpredict.masks import Masks
from flexpredict.model import Encoder, Learner, patches

Noise = tuple[Tensor | None, Tensor | None]
"""Standard normal numbers for the masked tokens (b, m, n, z), and for the context's (b, 1, c, z)."""


def build(config: TrainConfig, shape: tuple[int, int, int]) -> Learner:
    """The networks for images of (channels, height, width). Raises `UserError` where the sizes do not fit."""
    channels, height, width = shape
    patch = config.net.patch
    if height % patch or width % patch:
        near = max(patch, round(height / patch) * patch)
        raise UserError(
            f"images of {height}x{width} do not divide into patches of {patch}: --size {near}, or another "
            "--net.patch"
        )
    grid = (height // patch, width // patch)
    masks.check(config.masks, grid)
    return Learner(config, channels, grid)


def first_state(
    config: TrainConfig, shape: tuple[int, int, int], device: torch.device | str = "cpu"
) -> tuple[Learner, Encoder]:
    """(encoder and predictor, averaged encoder) at step 0: the same for all arms of a seed."""
    rng.seed_everything(config.seed)
    learner = build(config, shape).to(device)
    return learner, copy.deepcopy(learner.encoder).requires_grad_(False).eval()


def groups(learner: Learner, config: TrainConfig) -> list[dict[str, object]]:
    """AdamW's groups: weights that decay, and those that do not (biases, norms; A where asked)."""
    a = {id(learner.predictor.predictor_embed.weight)}
    if learner.predictor.position.own is not None:
        a.add(id(learner.predictor.position.own.weight))
    learned = [p for p in learner.parameters() if p.requires_grad]
    plain = [p for p in learned if p.ndim < 2 or (id(p) in a and not config.decay_projection)]
    spared = set(map(id, plain))
    return [
        {"params": [p for p in learned if id(p) not in spared], "decays": True},
        {"params": plain, "decays": False, "weight_decay": 0.0},
    ]


def schedule(optimiser: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    """Set learning rate and decay for a step (from 1)."""
    at = min(step, config.freeze or step)
    rate = method.learning_rate(at, config.steps, config.warmup, config.lr_start, config.lr, config.lr_final)
    decay = method.cosine(at, config.steps, config.decay, config.decay_final)
    for group in optimiser.param_groups:
        group["lr"] = rate
        group["weight_decay"] = decay if group["decays"] else 0.0


def hidden(config: TrainConfig, learner: Learner, step: int) -> tuple[Masks, Noise]:
    """This process's masks of a step, and the standard normal numbers for its tokens."""
    device = learner.encoder.pos_embed.device
    rank, size = parallel.world()
    part = config.batch // size
    rows = range(rank * part, (rank + 1) * part)
    chosen = masks.sample(
        config.masks, learner.encoder.grid, config.batch, config.seed, step, slice(rows.start, rows.stop)
    )
    position, normal, beside = learner.predictor.position, None, None
    if position.source != "none" and config.position.tokens != "context":
        shape = position.noise_shape(*chosen.targets.shape[1:])
        normal = method.keyed_normal(rows, shape, config.seed, step).to(device)
    if position.source != "none" and config.position.tokens != "masked":
        shape = position.noise_shape(1, chosen.context.shape[1])
        beside = method.keyed_normal(rows, shape, config.seed, step, "context noise").to(device)
    return chosen.to(device), (normal, beside)


def objective(
    config: TrainConfig,
    learner: Learner,
    average: Encoder,
    x: Float[Tensor, "b c h w"],
    chosen: Masks,
    noise: Noise,
) -> tuple[Float[Tensor, ""], Float[Tensor, "2 k e"]]:
    """(loss, moments of the targets over images) of one batch."""
    with torch.no_grad():
        seen = average(x) if config.objective == "features" else patches(x, config.net.patch)
        everywhere = method.target(seen)
        wanted = method.gather(everywhere, chosen.targets)
        moments = diagnostics.moments(everywhere)
    predicted = learner(x, chosen, *noise)
    loss = method.prediction_loss if config.objective == "features" else method.pixel_loss
    return loss(predicted, wanted), moments


def gradient(
    config: TrainConfig,
    learner: Learner,
    average: Encoder,
    x: Float[Tensor, "b c h w"],
    chosen: Masks,
    noise: Noise,
    device: Device,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Leave in `learner` the gradient over the global batch; (its loss, variance of its targets).

    This process's images are passed in `config.accumulate` equal parts.
    """
    learner.zero_grad(set_to_none=True)
    losses, moments = [], []
    for part in _parts(config.accumulate, x, chosen, noise):
        with device.autocast():
            loss, found = objective(config, learner, average, *part)
        (loss / config.accumulate).backward()
        losses.append(loss.detach())
        moments.append(found)
    parallel.average_gradients(learner.parameters())
    value = parallel.average(torch.stack(losses).mean())
    return value, diagnostics.target_variance(torch.stack(moments).mean(0))


def _parts(
    count: int, x: Float[Tensor, "b c h w"], chosen: Masks, noise: Noise
) -> Iterator[tuple[Tensor, Masks, Noise]]:
    """Equal parts of a batch. Raises `UserError` where it does not divide."""
    if count == 1:
        yield x, chosen, noise
        return
    if len(x) % count:
        raise UserError(
            f"--accumulate {count} does not divide a process's {len(x)} images: choose a divisor of {len(x)}"
        )
    rows = len(x) // count
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        normal, beside = (None if each is None else each[part] for each in noise)
        yield x[part], Masks(chosen.context[part], chosen.targets[part]), (normal, beside)
