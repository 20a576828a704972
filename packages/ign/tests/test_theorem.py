"""The theorem's game against a slow one, its bounds; the stacked ring network against each seed alone."""

import math

import numpy as np
import pytest
import torch
from ign import ring, theorem
from ign.method import Naive, Objective
from ign.ring import Mixture, Stack, auc, correlation, measure, mixture, mlp
from paperkit import rng
from torch import nn


class Alone(nn.Module):
    """One seed's network for the engines of `method`."""

    def __init__(self, seed):
        super().__init__()
        self.net = mlp(seed).double()

    def forward(self, y, roles):
        return self.net(y)


def alone(seed, objective, steps, alternating=False):
    """The slow way: the naive engine with its copy, one seed, one optimiser for each player."""
    net, copied = Alone(seed), Alone(seed)
    players = [objective]
    if alternating:
        players = [Objective(objective.rec, 0.0, objective.tight), Objective(0.0, objective.idem, 0.0)]
    adams = [torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.999)) for _ in players]
    draw, data = rng.generator(seed, 0, "ring"), mixture("ring")
    for _ in range(steps):
        x = data.sample(ring.BATCH, draw).double()
        z = torch.randn(ring.BATCH, 2, generator=draw).double()
        for player, adam in zip(players, adams, strict=True):
            adam.zero_grad()
            Naive(net, copied).step(x, z, player)
            adam.step()
    return net


@pytest.mark.parametrize(
    ("objective", "alternating"),
    [
        (Objective(), False),
        (Objective(tight=0.0), False),
        (Objective(idem=0.0), False),
        (Objective(rec=0.0), False),
        (Objective(tight=0.9), True),
    ],
)
def test_stack_trains_each_seed_as_alone(objective, alternating):
    seeds = (3, 0, 8)
    stack = ring.train(mixture("ring"), objective, seeds, 8, alternating, torch.float64)
    z = torch.randn(3, 50, 2, dtype=torch.float64)
    found = stack(z)
    for i, seed in enumerate(seeds):
        net = alone(seed, objective, 8, alternating)
        torch.testing.assert_close(found[i], net(z[i], ("z",)), rtol=0, atol=1e-10)
        assert (found[i] - Alone(seed)(z[i], ("z",))).abs().max() > 1e-3  # it has moved
