"""The theorem's game against a slow one; the stacked ring network against each seed alone; pictures."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ign import draw, ring, theorem
from ign.cli import main
from ign.method import Naive, Objective
from ign.reproduce import CLAIMS, SEEDS
from ign.ring import Stack, auc, correlation, measure, mixture, mlp
from paperkit import images, rng
from torch import nn

# ---- E0: the game


def slow_play(p, q, tight, eta, rounds, seed):
    """One instance after another, one point after another."""
    p, q, generator = p.tolist(), q.tolist(), np.random.default_rng(seed)
    tv = []
    for _ in range(rounds):
        tv.append(
            [sum(abs(a - b) for a, b in zip(*pair, strict=True)) / 2 for pair in zip(p, q, strict=True)]
        )
        luck = generator.random((len(p), len(p[0])))
        for p_i, q_i, luck_i in zip(p, q, luck, strict=True):
            drifting = [a < tight * b for a, b in zip(p_i, q_i, strict=True)]
            target = max((n for n in range(len(p_i)) if not drifting[n]), key=luck_i.__getitem__)
            for n in range(len(p_i)):
                if drifting[n]:
                    q_i[target] += eta * q_i[n]
                    q_i[n] *= 1 - eta
    return np.array(tv), np.array(q)


@pytest.mark.parametrize("start", ["random", "collapsed"])
@pytest.mark.parametrize(("tight", "eta"), [(1.0, 0.1), (1.0, 1.0), (0.5, 0.1), (0.125, 0.3)])
def test_game_is_the_slow_one(start, tight, eta):
    p, q = theorem.instances(3, start, 7)
    game = theorem.play(p, q, tight, eta, 120, seed=4)
    tv, end = slow_play(p, q, tight, eta, 120, 4)
    played = len(game.tv) - 1
    np.testing.assert_allclose(game.tv[:played], tv[:played], rtol=0, atol=1e-12)
    np.testing.assert_allclose(game.q, end, rtol=0, atol=1e-12)
    np.testing.assert_allclose(game.q.sum(1), 1, rtol=0, atol=1e-12)


def test_game_from_the_optimum_stops_at_once():
    p, _ = theorem.instances(2, "random")
    game = theorem.play(p, p, 1.0, 0.1)
    assert game.stopped.tolist() == [0, 0]
    assert np.array_equal(game.q, p)
    assert game.tv.shape == (2, 2)


@pytest.mark.parametrize("tight", [0.5, 0.125])
def test_below_one_it_stops_at_an_optimum_that_lacks_no_more_than_the_bound(tight):
    p, q = theorem.instances(20, "collapsed")
    game = theorem.play(p, q, tight, 0.1)
    assert (game.stopped > 0).all()
    assert (tight * game.q <= p).all()
    assert (game.tv[-1] <= 1 - tight).all()
    assert (np.where(game.q == 0, p, 0).sum(1) <= 1 - tight).all()


def test_at_one_each_point_lacks_at_most_eta_of_its_mass():
    p, q = theorem.instances(5, "random")
    game = theorem.play(p, q, 1.0, 0.1, 3000)
    assert (game.stopped == -1).all()
    assert (game.q >= 0.9 * p - 1e-15).all()


def test_an_instance_depends_on_its_index_alone():
    for few, many in zip(theorem.instances(2, "random"), theorem.instances(5, "random"), strict=True):
        assert np.array_equal(few, many[:2])


def test_total_variation():
    p, q = np.array([[0.5, 0.5, 0.0]]), np.array([[0.25, 0.25, 0.5]])
    assert theorem.total_variation(p, q).tolist() == [0.5]


# ---- E1: data and measures


@pytest.mark.parametrize("name", ["ring", "moons"])
def test_modes_are_equally_heavy_and_samples_stay_near(name):
    data = mixture(name)
    assert torch.bincount(data.mode).tolist() == [len(data.points) // 8] * 8
    x = data.sample(20_000, torch.Generator().manual_seed(0))
    assert x.abs().max() < 1
    shares = data.shares(x)
    # 3 std of a Gaussian in the plane hold 1 - exp(-4.5) of it; along an arc of them a little more
    assert shares.sum() == pytest.approx(1 - np.exp(-4.5), abs=0.01)
    assert shares.tolist() == pytest.approx([1 / 8] * 8, abs=0.01)


def test_ring_has_radius_and_deviation():
    data = mixture("ring")
    assert data.points.norm(dim=1).tolist() == pytest.approx([0.7] * 8)
    assert mixture("moons").points.abs().amax(0).tolist() == pytest.approx([0.75, 0.375], abs=1e-3)
    x = data.sample(20_000, torch.Generator().manual_seed(0))
    offset = x - data.points[torch.cdist(x, data.points).argmin(1)]
    assert offset.std(0).tolist() == pytest.approx([0.03, 0.03], rel=0.03)


class Constant(Stack):
    """f puts everything onto the first mode of the ring."""

    def forward(self, y, roles=()):
        return torch.tensor([0.7, 0.0]).expand_as(y)


class Identity(Stack):
    def forward(self, y, roles=()):
        return y


def test_measures_of_a_collapsed_and_of_an_idle_network():
    found = {key: value[1] for key, value in measure(Constant([0, 1]), mixture("ring"), [0, 1], 500).items()}
    assert found["precision"] == 1
    assert (found["modes"], found["least"], found["heaviest"], found["overlap"]) == (1, 0, 8, 1 / 8)
    assert found["e2"] == found["spread"] == 0
    assert found["auc_fz"] == 1
    idle = {key: value[0] for key, value in measure(Identity([0]), mixture("ring"), [0], 500).items()}
    assert idle["rec"] == idle["e2"] == 0
    assert idle["auc"] == idle["auc_fz"] == 0.5
    assert idle["spread"] == pytest.approx(1, abs=0.1)


def test_measures_of_a_seed_do_not_depend_on_the_others():
    data = mixture("ring")
    both, one = measure(Stack([0, 1]), data, [0, 1], 300), measure(Stack([1]), data, [1], 300)
    assert {key: value[1] for key, value in both.items()} == pytest.approx({k: v[0] for k, v in one.items()})


def test_auc_counts_pairs():
    draw_ = torch.Generator().manual_seed(0)
    high = torch.randint(0, 9, (40,), generator=draw_).float()
    low = torch.randint(0, 7, (30,), generator=draw_).float()
    pairs = [float(a > b) + 0.5 * float(a == b) for a, b in itertools.product(high, low)]
    assert auc(high, low) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_correlation_and_its_limit():
    rising = {0.0: {"m": [1, 2, 5]}, 0.5: {"m": [2, 4, 5]}, 0.9: {"m": [3, 9, 5]}}
    rho, limit = correlation(rising, "m")
    assert rho == pytest.approx([1, 1, 0])  # the third never changes
    # All 36 pairs of permutations of three ranks, whose correlations are 1, .5, .5, -.5, -.5, -1.
    one = [1, 0.5, 0.5, -0.5, -0.5, -1]
    exact = np.quantile([(a + b) / 3 for a, b in itertools.product(one, one)], 0.95)
    assert limit == pytest.approx(exact, abs=1e-9)
    assert correlation({w: {"m": [3.0]} for w in rising}, "m") == ([0.0], 0.0)


# ---- E1: training


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
    seeds = (3, 8)
    stack = ring.train(mixture("ring"), objective, seeds, 4, alternating, torch.float64)
    z = torch.randn(2, 50, 2, dtype=torch.float64)
    found = stack(z)
    for i, seed in enumerate(seeds):
        net = alone(seed, objective, 4, alternating)
        torch.testing.assert_close(found[i], net(z[i], ("z",)), rtol=0, atol=1e-10)
        assert (found[i] - Alone(seed)(z[i], ("z",))).abs().max() > 1e-3  # it has moved


# ---- the verb and its pictures


def test_density_and_drift_map_stand_upright():
    corner = draw.plane(40)[1, 1].expand(500, 2)  # left, up
    assert corner[0].tolist() == pytest.approx([-1.0175, 1.0175])
    for picture in (draw.density(corner, 40), draw.drift_map((draw.plane(40) - corner[0]).square().mean(-1))):
        brightness = picture.float().mean(0)
        assert brightness[1, 1] == brightness.max() > 200
        assert brightness[-1, -1] < 40


def test_colours_hit_their_stops():
    found = draw.colours(torch.tensor([[0.0, 0.5, 1.0, 2.0]]), [(0, 0, 0), (10, 20, 30), (200, 100, 0)])
    assert found[:, 0].T.tolist() == [[0, 0, 0], [10, 20, 30], [200, 100, 0], [200, 100, 0]]


def test_verb_writes_its_pictures(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(theorem, "ROUNDS", 100)
    assert main(["theorem", "--steps", "2", "--instances", "2", "--data", "moons"]) == 0
    assert images.read("theorem/games.png").shape == (3, draw.HIGH, 3 * draw.WIDE)
    assert images.read("theorem/ring.png").float().std() > 10
    figures = json.loads(Path("theorem/figures.json").read_text())
    assert list(figures["arms"]) == [
        "full, l_t = 0.1", "full, l_t = 0.5", "without L_tight", "without L_idem", "without L_rec",
    ]  # fmt: skip
    assert "may drop up to 90% of the data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--steps", "0"), "at least 1"),
        (("--instances", "0"), "at least 1"),
        (("--tight", "-1"), "negative"),
        (("--data", "spiral"), "moons"),
        (("--out", "taken/x"), "taken"),
    ],
)
def test_bad_input_is_one_line(capsys, monkeypatch, tmp_path, words, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(theorem, "ROUNDS", 10)
    Path("taken").write_text("")
    assert main(["theorem", "--steps", "1", *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_seeds_of_claims():
    assert set(SEEDS) <= set(CLAIMS)
