"""Training by `--task`: one step, a plain loop for the claims, and the loop of a run folder."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from paperkit import UserError, parallel
from torch import Tensor, nn

TITLE = "IT3: Idempotent Test-Time Training"
SUBTITLE = "arXiv 2410.04201"

Loss = Callable[[int], Float[Tensor, ""]]
"""The loss of a step, counted from 1."""


def step_of(optimiser: torch.optim.Optimizer, loss: Loss, step: int, steps: int, lr: float) -> float:
    """One step at the rate that falls from `lr` to 0 along a cosine; its loss. Raises unless finite."""
    for group in optimiser.param_groups:
        group["lr"] = lr * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
    optimiser.zero_grad(set_to_none=True)
    found = loss(step)
    found.backward()
    parallel.average_gradients([p for group in optimiser.param_groups for p in group["params"]])
    value = float(parallel.average(found.detach()))
    if not math.isfinite(value):
        raise UserError(f"the loss is not finite at step {step}: {value}; try a lower --lr")
    optimiser.step()
    return value


def fit(net: nn.Module, loss: Loss, steps: int, lr: float) -> None:
    """Train by Adam, without a run folder, and leave the network ready to be asked."""
    optimiser = torch.optim.Adam(net.parameters(), lr, fused=True)
    net.train()
    for step in range(1, steps + 1):
        step_of(optimiser, loss, step, steps, lr)
    net.eval().requires_grad_(False)
