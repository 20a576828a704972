"""Numbers addressed by (seed, step, purpose): the same whenever asked, others for any other address."""

import itertools
import random

import numpy as np
import pytest
import torch
from paperkit import rng


def test_known_values_stay_what_they_are() -> None:
    assert rng.seed_of(0, 0, "") == 37690156179941161
    assert rng.seed_of(3, 7, "noise") == 5498343284396522220
    assert rng.normal((3,), 3, 7).tolist() == pytest.approx([-0.73986971, -0.54906434, 0.64461058], abs=1e-7)


def test_the_same_address_gives_the_same_numbers_whatever_was_drawn_before() -> None:
    first = rng.normal((4, 5), 1, 2, "a")
    torch.manual_seed(99)
    torch.randn(17)
    np.random.seed(1)  # noqa: NPY002
    assert torch.equal(rng.normal((4, 5), 1, 2, "a"), first)
    assert first.dtype == torch.float32
    assert first.shape == (4, 5)


def test_the_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    rng.normal((100,), 0)
    torch.randperm(5, generator=rng.generator(1, 2, "order"))
    assert torch.equal(torch.get_rng_state(), before)


def test_any_change_of_the_address_gives_other_numbers() -> None:
    addresses = [*itertools.product((0, 1, 11, -1), (0, 1, 11), ("", "a", "1", "1/a", "/")), (0, 1, "0/1/a")]
    seeds = {rng.seed_of(*address) for address in addresses}
    assert len(seeds) == len(addresses)
    assert all(0 <= seed < 2**63 for seed in seeds)
    draws = {tuple(rng.normal((4,), *address).tolist()) for address in addresses}
    assert len(draws) == len(addresses)


def test_neighbouring_steps_are_uncorrelated() -> None:
    rows = torch.stack([rng.normal((4000,), 0, step) for step in range(8)])
    correlation = torch.corrcoef(rows) - torch.eye(8)
    assert correlation.abs().max() < 5 / 4000**0.5


def test_normal_numbers_are_standard() -> None:
    drawn = rng.normal((100_000,), 5).double()
    assert drawn.mean() == pytest.approx(0, abs=4 / 100_000**0.5)
    assert drawn.std() == pytest.approx(1, abs=0.01)


def test_seed_everything_fixes_all_three_global_generators() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002

    rng.seed_everything(4)
    first = draw()
    draw()
    rng.seed_everything(4)
    assert draw() == first
    rng.seed_everything(5)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
    rng.seed_everything(4, "other")
    assert all(a != b for a, b in zip(draw(), first, strict=True))
