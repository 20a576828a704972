"""Batches side by side: the same as an adapter of each network, batch after batch."""

from dataclasses import replace

import pytest
import torch
from ittt import ITTT, Settings, data, extra_inputs, tables
from ittt.baselines import VARIANTS
from ittt.beside import Beside, predict, stacked, train
from ittt.config import TrainConfig
from ittt.networks import Perceptron
from ittt.train import build
from paperkit import UserError, rng
from torch import Tensor, nn
from torch.nn import functional as F

BASE = Settings(steps=3, lr=1e-2)


def network(seed: int, **words) -> ITTT:
    rng.seed_everything(seed)
    model = Perceptron(4 + extra_inputs(1), (7, 5))
    return ITTT(model, "concat", **words).double()


@pytest.fixture
def nets() -> list[ITTT]:
    return [network(seed) for seed in range(3)]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 11, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def one_by_one(nets, x, size, settings, gate=0.0, clean=None) -> tuple[Tensor, Tensor]:
    found, moved = [], []
    for net, rows in zip(nets, x, strict=True):
        adapter = net.adapter(
            replace(settings, gate=gate), net.calibrate([clean]) if clean is not None else None
        )
        parts = [adapter(part) for part in rows.split(size)]
        found.append(torch.cat([part.prediction for part in parts]))
        moved.append(torch.cat([part.moved for part in parts]))
    return torch.stack(found), torch.stack(moved)


CASES = [(size, variant) for size in (1, 4, 11, 20) for variant in ("it3", "un-frozen")]
"""Sizes of batches and variants; shuffled needs two rows in each."""


@pytest.mark.parametrize(("size", "variant"), [*CASES, (4, "shuffled"), (20, "shuffled")])
def test_variants_equal_the_adapter(nets, x, size, variant):
    settings = replace(BASE, **VARIANTS[variant])
    wanted, moved = one_by_one(nets, x, size, settings)
    found = predict(nets, x, size, settings)
    torch.testing.assert_close(found.prediction, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.moved, moved, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "changes",
    [
        {"trust": 0.005}, {"early_stop": True}, {"rollback": False, "measure": False}, {"lr": 0.3},
        {"choose": "lower-gap"}, {"optimiser": "sgd"}, {"through_anchor": False}, {"score": "second"},
        {"anchor": "ema", "decay": 0.5}, {"parameters": "head"},
    ],
)  # fmt: skip
def test_settings_equal_the_adapter(nets, x, changes):
    settings = replace(BASE, **changes)
    wanted, moved = one_by_one(nets, x, 4, settings)
    found = predict(nets, x, 4, settings)
    torch.testing.assert_close(found.prediction, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.moved, moved, rtol=0, atol=1e-10)


def test_gate_equals_the_adapter(nets, x):
    clean = torch.randn(40, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    settings = replace(BASE, trust=0.01)
    wanted, _ = one_by_one(nets, x, 4, settings, gate=0.6, clean=clean)
    gates = torch.tensor([net.calibrate([clean]).gate(0.6) for net in nets], dtype=torch.float64)
    found = predict(nets, x, 4, settings, gates)
    torch.testing.assert_close(found.prediction, wanted, rtol=0, atol=1e-10)
    assert 0 < int(found.adapted.sum()) < found.adapted.numel()


def test_random_directions_differ_and_keep_their_length(nets, x):
    found = predict(nets, x, 4, replace(BASE, steps=1, control="random", rollback=False))
    same = predict(nets, x, 4, replace(BASE, steps=1, rollback=False))
    torch.testing.assert_close(found.moved, same.moved, rtol=1e-6, atol=0)
    assert not torch.allclose(found.prediction, same.prediction, atol=1e-4)
    assert len(found.moved.unique()) > 1


def test_networks_stay_as_they_are(nets, x):
    before = [[w.clone() for w in net.state_dict().values()] for net in nets]
    predict(nets, x, 4, BASE)
    for net, old in zip(nets, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), old, strict=True))


def test_refuses_what_needs_batches_one_after_another(nets, x):
    with pytest.raises(UserError, match="reset on"):
        predict(nets, x, 4, replace(BASE, reset=False))
    net = ITTT(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), "concat")
    with pytest.raises(UserError, match="no batch statistics"):
        Beside(net, stacked([net]), torch.zeros(2, dtype=torch.long), replace(BASE, norm="batch"))


# ---- training side by side


def test_training_side_by_side_is_training_one_by_one():
    rows = [tables.rows_of("diabetes", seed) for seed in range(2)]
    config = TrainConfig(widths=(6, 5))
    pairs = [build(replace(config, seed=seed), rows[0].columns) for seed in range(2)]
    x_all, y_all = (torch.stack([getattr(part, name) for part in rows]) for name in ("x", "y"))
    found = train(pairs, x_all, y_all, (1, 2))
    for seed, part in enumerate(rows):
        own = replace(config, seed=seed)
        net, plain = build(own, part.columns)
        optimiser = torch.optim.Adam([*net.parameters(), *plain.parameters()], own.lr)
        for step in range(1, 2 * (len(part.x) // own.batch) + 1):
            x, y = data.batch(part, own, step)
            optimiser.zero_grad()
            (net.loss(x, y) + F.mse_loss(plain(x), y)).backward()
            optimiser.step()
        for trained, wanted in zip(found[2][seed], (net, plain), strict=True):
            for name, values in wanted.state_dict().items():
                torch.testing.assert_close(trained.state_dict()[name], values, rtol=0, atol=2e-5)
    assert not torch.equal(found[1][0][0](rows[0].x), found[2][0][0](rows[0].x))


def test_tables_leave_no_row_alone_and_share_no_row():
    for seed in (0, 21):
        rows = tables.rows_of("diabetes", seed)
        assert all(len(rows.x_test) % size != 1 for size in tables.BATCHES if size > 1)
        parts = torch.cat([rows.x, rows.x_clean, rows.x_test])
        assert len(parts.unique(dim=0)) == len(parts)
