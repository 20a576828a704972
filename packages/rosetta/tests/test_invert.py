"""Inversion and edits on a generator whose answer is known; edits of maps; the schedule."""

import pytest
import torch
from paperkit import UserError
from rosetta.hooks import Network, discover, record
from rosetta.invert import (
    Generator,
    Goal,
    Settings,
    centre_of_mass,
    cosine,
    goals_of_edit,
    goals_of_image,
    pasted,
    raised,
    seek,
    share_of_rate,
    shift,
    zoom,
)
from torch import nn


class Spots(nn.Module):
    """A generator of two blurred spots whose places are the code, and an empty third channel."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Identity()

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        axis = torch.linspace(-1, 1, 16)
        spots = []
        for row, column in ((0, 1), (2, 3)):
            y, x = (axis - code[:, i : i + 1] for i in (row, column))
            spots.append(torch.exp(-8 * (y[:, :, None] ** 2 + x[:, None] ** 2)))
        found = self.maps(torch.stack([*spots, torch.zeros_like(spots[0])], 1))
        return 2 * found[:, :2].amax(1, keepdim=True) - 1


@pytest.fixture(scope="module")
def spots() -> Generator:
    codes = torch.rand(64, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    network = Network("spots", Spots())
    discover(network, codes[:2], ["maps"])
    return Generator(network, record(network, codes))


def test_a_code_is_found_from_its_maps(spots):
    truth, start = torch.tensor([0.4, -0.3, -0.2, 0.1]), torch.zeros(4)
    goals = goals_of_edit(spots, truth, [0, 1], lambda x: x)
    found = seek(spots, start, goals, Settings(steps=200, prior=0.0))
    assert float((found.code - truth).abs().max()) < 0.02
    assert min(found.reached) > 0.99
    assert found.losses[-1] < found.losses[0]
    # one goal leaves the other spot where it was
    only = seek(spots, start, goals[:1], Settings(steps=100, prior=0.0)).code
    assert torch.equal(only[2:], start[2:])


def test_prior_holds_back_and_pixels_alone_serve_too(spots):
    truth, start = torch.tensor([0.3, 0.0, -0.3, 0.1]), torch.tensor([0.1, 0.0, -0.1, 0.0])
    with torch.no_grad():
        image, _ = spots.run(truth[None])
    near = seek(spots, start, [], Settings(steps=300, prior=0.0, pixels=1.0), image)
    assert float((near.image - image).square().mean()) < 0.01
    held = seek(spots, start, [], Settings(steps=100, prior=100.0, pixels=1.0), image)
    assert float((held.code - start).abs().max()) < 0.05
    with pytest.raises(UserError, match="no goals"):
        seek(spots, start, [])
    with pytest.raises(UserError, match="an inversion needs"):
        Settings(rate=0.0)


@pytest.mark.parametrize(("down", "right"), [(0.25, 0.0), (-0.125, 0.25)])
def test_a_shifted_map_moves_what_the_unit_draws(spots, down, right):
    start = torch.zeros(4)
    goals = goals_of_edit(spots, start, [0, 1], shift(down, right))
    found = seek(spots, start, goals, Settings(steps=200, prior=0.0))
    row, column = centre_of_mass(found.image)
    assert row - 0.5 == pytest.approx(down, abs=0.05)
    assert column - 0.5 == pytest.approx(right, abs=0.05)


def test_goals_of_an_image_are_the_partners_maps(spots):
    code = torch.tensor([[0.3, 0.1, 0.0, 0.0]])
    seen = record(spots.network, code)
    goals = goals_of_image([seen], [spots.maps], [(0, 0, 0), (1, 0, 1)])
    with torch.no_grad():
        _, maps = spots.run(code)
    for goal in goals:
        torch.testing.assert_close(goal.map, maps(goal.unit))
    assert float(cosine(goals[0].map, maps(0))) == pytest.approx(1.0)


def test_edits_of_maps():
    x = torch.arange(16.0).view(4, 4)
    assert shift(0.25, 0.0)(x)[1:].equal(x[:-1])
    assert shift(0.25, 0.0)(x)[0].tolist() == [0.0] * 4
    assert shift(0.0, -0.5)(x)[:, :2].equal(x[:, 2:])
    assert shift(0.0, 0.0)(x).equal(x)
    assert zoom(2.0)(x).equal(x[1:3, 1:3].repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert zoom(1.0)(x).equal(x)
    assert zoom(0.5)(x)[0].tolist() == [0.0] * 4
    assert raised(-2.0)(x).equal(x - 2)
    joined = pasted([Goal(3, x)], [Goal(3, -x)])[0]
    assert joined.unit == 3
    assert joined.map[:, :2].equal(x[:, :2])
    assert joined.map[:, 2:].equal(-x[:, 2:])


def test_rate_goes_up_then_down():
    shares = [share_of_rate(step, 100) for step in range(100)]
    assert shares[0] == pytest.approx(0.2)
    assert shares[10:75] == [1.0] * 65
    assert shares[75:] == sorted(shares[75:], reverse=True)
    assert 0 < shares[-1] < 0.01


def test_maps_of_several_grids_compare_on_the_larger():
    small, large = torch.rand(4, 4), torch.rand(8, 8)
    up = torch.nn.functional.interpolate(small[None, None].double(), (8, 8), mode="bilinear")[0, 0]
    wanted = float((up * large).sum() / (up.norm() * large.double().norm()))
    assert float(cosine(small, large)) == pytest.approx(wanted, abs=1e-9)
