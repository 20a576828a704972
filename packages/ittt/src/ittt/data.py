"""Tables: standardised by their training rows, batches by step, and entries that go missing (section 4.1)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from paperkit import UserError, parallel, rng
from paperkit.data import batch_indices, open_table, permutation
from torch import Tensor

from ittt.config import TrainConfig
from ittt.graph_config import GraphConfig


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of the training rows: of each column, and of the label."""

    x_mean: Float[Tensor, " d"]
    x_std: Float[Tensor, " d"]
    y_mean: Float[Tensor, " k"]
    y_std: Float[Tensor, " k"]

    def x(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Rows in standard deviations."""
        return (rows - self.x_mean) / self.x_std

    def y(self, labels: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Labels in standard deviations."""
        return (labels - self.y_mean) / self.y_std

    def units(self, predictions: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Predictions in the label's own units."""
        return predictions * self.y_std + self.y_mean


@dataclass(frozen=True)
class Rows:
    """A standardised table: rows to learn from, clean ones for calibration, and test rows."""

    name: str
    scale: Scale
    x: Float[Tensor, "n d"]
    y: Float[Tensor, "n 1"]
    x_clean: Float[Tensor, "c d"]
    y_clean: Float[Tensor, "c 1"]
    x_test: Float[Tensor, "m d"]
    y_test: Float[Tensor, "m 1"]

    @property
    def columns(self) -> int:
        return self.x.shape[1]


def load(config: TrainConfig) -> Rows:
    """The table of a configuration; statistics are those of the rows that are trained on."""
    table = open_table(config.data)
    part = table.split(config.split)
    order = torch.from_numpy(permutation(len(part.y_train), config.split, "calibration"))
    count = max(1, round(config.held_out * len(order)))
    if count >= len(order):
        raise UserError(f"--held-out {config.held_out:g} leaves no row of {config.data} to learn from")
    clean, kept = order[:count].sort().values, order[count:].sort().values
    x, y = part.x_train.float(), part.y_train.float()[:, None]
    # A column that never varies says nothing: it becomes 0.
    spread = x[kept].std(0).where(x[kept].std(0) > 0, torch.ones(x.shape[1]))
    scale = Scale(x[kept].mean(0), spread, y[kept].mean(0), y[kept].std(0))
    return Rows(
        f"{table.name}, {len(kept):,} rows", scale, scale.x(x[kept]), scale.y(y[kept]),
        scale.x(x[clean]), scale.y(y[clean]),
        scale.x(part.x_test.float()), scale.y(part.y_test.float()[:, None]),
    )  # fmt: skip


def batch(rows: Rows, config: TrainConfig, step: int) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b 1"]]:
    """This process's rows of a step (from 1)."""
    chosen = torch.from_numpy(batch_indices(len(rows.x), config.batch, config.seed, step - 1))
    chosen = parallel.shard(chosen)
    return rows.x[chosen], rows.y[chosen]


def mask(config: TrainConfig | GraphConfig, step: int) -> Bool[Tensor, " b"] | None:
    """Which of this process's samples of a step are fed the neutral signal; None: all, and their labels."""
    if config.mask is None:
        return None
    draws = torch.rand(config.batch, generator=rng.generator(config.seed, step, "mask"))
    return parallel.shard(draws < config.mask)


def drop(x: Float[Tensor, "n d"], share: float, seed: int) -> Float[Tensor, "n d"]:
    """The rows with each entry set to the training mean with probability `share` (section 4.1).

    Entries missing at one share are missing at every larger one, for the same seed.
    """
    draws = torch.rand(x.shape, generator=rng.generator(seed, 0, "missing"))
    return torch.where(draws.to(x.device) < share, 0.0, x)
