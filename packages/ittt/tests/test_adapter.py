"""Batch after batch: reset, rollback, gates, abstention, online streams, batch norm, and what is refused."""

from dataclasses import replace

import pytest
import torch
from ittt import ITTT, Calibration, Settings, extra_inputs
from ittt.copies import Stack
from ittt.method import conformal, quantile
from ittt.weights import batch_statistics, chosen
from paperkit import UserError
from torch import nn


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def table(seed=0, outputs=1):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4 + extra_inputs(outputs), 8), nn.Tanh(), nn.Linear(8, outputs))
    return ITTT(model, outputs=outputs)


def images(norm=True, seed=0):
    """A small conv net with statistics that differ from those of any test batch."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1 + extra_inputs(3), 6, 3), nn.BatchNorm2d(6) if norm else nn.GroupNorm(2, 6), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 16, 3),
    )  # fmt: skip
    net = ITTT(model, "channel", outputs=3, task="classes", neutral="uniform")
    if norm:
        model[1].running_mean.copy_(draw(6, seed=5))
        model[1].running_var.copy_(draw(6, seed=6).abs() + 0.5)
        model[1].weight.data.copy_(draw(6, seed=7))
    return net


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def unchanged(net, before):
    return all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# ---- what never changes, and what is put back


@pytest.mark.parametrize("anchor", ["frozen", "ema", "none"])
@pytest.mark.parametrize("norm", ["eval", "batch", "batch-frozen"])
def test_frozen_weights_stay_and_reset_is_exact_buffers_too(norm, anchor):
    """Bit-identical after any call: the given network, the frozen anchor; after reset, the adapted one."""
    net = images()
    given = state(net)
    adapter = net.adapter(Settings(steps=3, lr=1e-2, norm=norm, anchor=anchor, rollback=False))
    x = draw(5, 1, 6, 6)
    first = adapter(x)
    assert unchanged(net, given)
    assert unchanged(adapter.source, given)
    if anchor == "frozen":
        assert adapter.anchor is adapter.source
    assert not unchanged(adapter.net, given)
    moved = [name for name, value in adapter.net.state_dict().items() if not torch.equal(value, given[name])]
    assert not [name for name in moved if "running" in name or "num_batches" in name]
    assert torch.equal(adapter(x).prediction, first.prediction), "each batch starts from the trained weights"
    adapter.reset()
    assert unchanged(adapter.net, given)
    assert unchanged(adapter.anchor, given)


def test_optimiser_forgets_its_moments_unless_they_are_carried():
    net = table()
    x, other = draw(6, 4), draw(6, 4, seed=1)
    fresh, carried = (net.adapter(Settings(carry_state=carry, rollback=False)) for carry in (False, True))
    assert torch.equal(fresh(x).prediction, carried(x).prediction)
    again = net.adapter(Settings(rollback=False))
    assert torch.equal(fresh(other).prediction, again(other).prediction)
    assert not torch.equal(carried(other).prediction, fresh(other).prediction)


def test_step_that_makes_the_gap_grow_is_rolled_back_online_too():
    net = table()
    for reset in (True, False):
        adapter = net.adapter(Settings(steps=1, lr=50.0, reset=reset))
        for seed in range(2):
            found = adapter(draw(6, 4, seed=seed))
            assert bool(found.rolled_back.all())
            assert torch.equal(found.prediction, found.before)
            assert torch.equal(found.gap_after, found.gap_before)
            assert found.steps.tolist() == [0] * 6
        assert unchanged(adapter.net, state(net))
    left = net.adapter(Settings(steps=1, lr=50.0, rollback=False))(draw(6, 4))
    assert float(left.gap_after.mean()) > float(left.gap_before.mean())


def test_adaptation_to_no_number_is_rolled_back():
    net = table()
    found = net.adapter(Settings(steps=3, lr=1e38, optimiser="sgd"))(draw(6, 4))
    assert bool(found.rolled_back.all())
    assert bool(torch.isfinite(found.prediction).all())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_the_caller_has_switched_gradients_off(mode):
    net = table()
    expected = net.adapter()(draw(6, 4)).prediction
    with mode():
        assert torch.equal(net.adapter()(draw(6, 4)).prediction, expected)


def test_seeds_and_repeats_give_the_same_bits():
    one, two = (images().adapter(Settings(control="random", seed=3))(draw(4, 1, 6, 6)) for _ in range(2))
    assert torch.equal(one.prediction, two.prediction)


# ---- calibration: gate and abstention


def test_thresholds_of_clean_gaps():
    gaps = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 7.0, 8.0, 6.0, 9.0])
    assert quantile(gaps, 0.0) == 1
    assert quantile(gaps, 2 / 3) == 6
    assert quantile(gaps, 1.0) == 9
    assert conformal(gaps, 0.1) == 9
    assert conformal(gaps, 0.2) == 8
    assert conformal(gaps, 1.0) == 1
    with pytest.raises(UserError, match="at least 19 clean inputs"):
        conformal(gaps, 0.05)


def test_conformal_limit_refuses_no_more_clean_inputs_than_promised():
    """P(refused) = floor((n + 1) share) / (n + 1) for exchangeable gaps without ties, exactly."""
    n, share, refused = 19, 0.1, 0
    gaps = draw(2000, n + 1).abs()
    for row in gaps:
        refused += int(row[-1] > conformal(row[:-1], share))
    assert refused / 2000 == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 2000) ** 0.5)


@pytest.mark.parametrize("settings", [Settings(), Settings(per="instance"), Settings(norm="batch")])
def test_gate_leaves_inputs_of_small_gap_alone(settings):
    net = images()
    x = draw(8, 1, 6, 6)
    gaps = net.adapter(replace(settings, steps=0))(x).gap_before
    scored = "batch" if settings.norm == "batch" else "eval"
    torch.testing.assert_close(net.gap(x, scored), gaps)
    calibration = Calibration(gaps * 1.001, scored)  # no ties
    settings = replace(settings, gate=0.5, lr=1e-2, rollback=False)
    found = net.adapter(settings, calibration)(x)
    above = gaps > 1.001 * gaps.sort().values[3]
    assert found.adapted.tolist() == above.tolist()
    assert torch.equal(found.prediction[~above], found.before[~above])
    assert found.steps.tolist() == [2 * int(a) for a in above]
    assert not torch.isclose(found.prediction[above], found.before[above]).all()
    if settings.norm == "eval":  # as if the others had not been there
        alone = net.adapter(replace(settings, gate=0.0))(x[above])
        torch.testing.assert_close(found.prediction[above], alone.prediction)
    none = net.adapter(replace(settings, gate=1.0), calibration)(x)
    assert torch.equal(none.prediction, none.before)
    assert not bool(none.adapted.any())


def test_abstention_is_by_the_gap_before():
    net = table()
    clean = draw(40, 4)
    calibration = net.calibrate([clean[:25], clean[25:]])
    torch.testing.assert_close(calibration.gaps, net.gap(clean))
    found = net.adapter(Settings(abstain=0.1), calibration)(draw(30, 4, seed=2) * 4)
    assert found.abstain.tolist() == (found.gap_before > calibration.limit(0.1)).tolist()
    assert 0 < int(found.abstain.sum()) < 30
    assert not bool(net.adapter()(clean).abstain.any())
    with pytest.raises(UserError, match="abstain compares with clean gaps"):
        net.adapter(Settings(abstain=0.1))
    with pytest.raises(UserError, match="gate compares with clean gaps"):
        net.adapter(Settings(gate=0.9))
    with pytest.raises(UserError, match="at least one"):
        net.calibrate([])
    with pytest.raises(UserError, match="measured alike"):
        images().adapter(Settings(norm="batch", gate=0.9), Calibration(torch.ones(3)))


def test_out_of_memory_halves_the_chunk(monkeypatch):
    class Small(Stack):
        def __init__(self, source, n, names, settings):
            if n > limit:
                raise torch.OutOfMemoryError("out of memory")
            sizes.append(n)
            super().__init__(source, n, names, settings)

    net, x = table(), draw(10, 4)
    expected = net.adapter(Settings(per="instance"))(x).prediction
    monkeypatch.setattr("ittt.adapt.Stack", Small)
    limit, sizes = 3, []
    torch.testing.assert_close(net.adapter(Settings(per="instance"))(x).prediction, expected)
    assert sizes == [3, 2, 3, 2]
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        net.adapter(Settings(per="instance"))(x)


def test_rows_are_plain_numbers():
    rows = table().adapter()(draw(3, 4)).rows()
    assert len(rows) == 3
    assert set(rows[0]) == {"gap_before", "gap_after", "adapted", "steps", "moved", "rolled_back", "abstain"}
    assert isinstance(rows[0]["gap_before"], float)


def test_without_measuring_the_last_gap_is_unknown_and_the_prediction_the_same():
    net = table()
    x = draw(5, 4)
    quick = net.adapter(Settings(measure=False, rollback=False))(x)
    assert bool(torch.isnan(quick.gap_after).all())
    assert torch.equal(quick.prediction, net.adapter(Settings(rollback=False))(x).prediction)


def test_prediction_before_the_last_step_replays_the_notebook():
    """One step, scored before it: the optimiser changes nothing (specification, section 5b.2)."""
    net = images()
    x = draw(6, 1, 6, 6)
    legacy = Settings(steps=1, lr=1e-3, timing="before", score="second-adapted", norm="batch", rollback=False)
    found = net.adapter(legacy)(x)
    assert torch.equal(found.prediction, found.before)
    assert torch.equal(found.prediction, net.adapter(replace(legacy, lr=10.0))(x).prediction)
    later = net.adapter(replace(legacy, timing="after"))(x)
    assert not torch.equal(later.prediction, found.prediction)
    two = net.adapter(replace(legacy, steps=2))(x)
    assert torch.equal(two.prediction, later.prediction)


# ---- online


def test_online_carries_its_weights_and_goes_on_after_a_stop():
    net = table()
    settings = Settings(reset=False, anchor="ema", decay=0.9, carry_state=True)
    stream = [draw(6, 4, seed=seed) for seed in range(6)]
    unbroken, first, second = (net.adapter(settings) for _ in range(3))
    expected = [unbroken(x).prediction for x in stream]
    for x in stream[:3]:
        first(x)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(second(x).prediction, y) for x, y in zip(stream[3:], expected[3:], strict=True))
    assert second.batches == 6
    offline = net.adapter(replace(settings, reset=True, carry_state=False))
    assert torch.equal(offline(stream[0]).prediction, expected[0])
    assert not torch.equal(offline(stream[1]).prediction, expected[1])


def test_online_average_is_that_of_all_steps_and_rolls_back_with_the_weights():
    net = table()
    adapter = net.adapter(Settings(steps=1, reset=False, anchor="ema", decay=0.9, rollback=False))
    average = {name: value.clone() for name, value in net.named_parameters()}
    for seed in range(3):
        adapter(draw(6, 4, seed=seed))
        for name, value in adapter.net.named_parameters():
            average[name] = 0.9 * average[name] + 0.1 * value.detach()
    for name, value in adapter.anchor.named_parameters():
        torch.testing.assert_close(value, average[name])
    undone = net.adapter(Settings(steps=1, lr=50.0, reset=False, anchor="ema", decay=0.9))
    undone(draw(6, 4))
    assert unchanged(undone.anchor, state(net))


def test_guard_returns_a_stream_that_has_gone_too_far():
    net = table()
    loose = Settings(reset=False, lr=1e-2, rollback=False)
    for guard in (0.0, 0.02):
        adapter = net.adapter(replace(loose, guard=guard))
        found = [adapter(draw(6, 4, seed=seed)) for seed in range(8)]
        assert any(one.returned for one in found) == bool(guard)
        returned = [i for i, one in enumerate(found) if one.returned]
        for i in returned:  # predicted anew from the trained weights
            alone = net.adapter(replace(loose, reset=True))(draw(6, 4, seed=i))
            torch.testing.assert_close(found[i].prediction, alone.prediction)


def test_abrupt_shift_begins_the_stream_anew():
    net = table()
    settings = Settings(reset=False, lr=1e-2, detect=4.0, rollback=False)
    adapter = net.adapter(settings)
    calm = [draw(64, 4, seed=seed) for seed in range(8)]
    found = [adapter(x).shifted for x in calm]
    assert found == [False] * 8
    many = draw(2000, 4, seed=9)
    loud = many[net.gap(many).topk(64).indices]
    assert float(net.gap(loud).mean()) > 2 * float(net.gap(calm[0]).mean())
    jump = adapter(loud)
    assert jump.shifted
    assert torch.equal(jump.prediction, net.adapter(Settings(lr=1e-2, rollback=False))(loud).prediction)
    assert not adapter(loud).shifted
    assert len(adapter.state_dict()["gaps"]) == 2


# ---- batch norm


def test_batch_statistics_equal_training_mode_and_leave_the_stored_ones():
    net = images()
    x = draw(5, 1, 6, 6)
    before = state(net)
    with batch_statistics(net):
        found = net.eval()(x)
    assert unchanged(net, before)
    torch.testing.assert_close(found, net.train()(x))


def test_norm_modes():
    """batch: the batch's statistics in every pass; batch-frozen: while adapting only, affine fixed."""
    net = images()
    x = draw(5, 1, 6, 6)
    net.eval()
    with torch.no_grad():
        stored = net(x)
        with batch_statistics(net):
            batch = net(x)
    assert torch.equal(net.adapter(Settings(steps=0))(x).prediction, stored)
    assert torch.equal(net.adapter(Settings(steps=0, norm="batch"))(x).prediction, batch)
    frozen = net.adapter(Settings(norm="batch-frozen", lr=1e-2, rollback=False))
    found = frozen(x)
    assert torch.equal(found.before, stored)
    with torch.no_grad():
        assert torch.equal(found.prediction, frozen.net(x))
    assert torch.equal(frozen.net.model[1].weight, net.model[1].weight)
    assert not torch.equal(frozen.net.model[0].weight, net.model[0].weight)
    whole = net.adapter(Settings(norm="batch", lr=1e-2, rollback=False))
    whole(x)
    assert not torch.equal(whole.net.model[1].weight, net.model[1].weight)


def test_side_by_side_with_batch_norm_in_evaluation_mode_is_the_loop():
    net = images()
    x = draw(5, 1, 6, 6)
    stacked, loop = (
        net.adapter(Settings(steps=2, per="instance", method=method, rollback=False))(x)
        for method in ("stacked", "loop")
    )
    torch.testing.assert_close(stacked.prediction, loop.prediction, rtol=1e-4, atol=1e-5)
    head = Settings(steps=1, per="instance", parameters="head", rollback=False)
    fast, slow = (net.adapter(replace(head, method=method))(x) for method in ("rank-one", "loop"))
    torch.testing.assert_close(fast.prediction, slow.prediction, rtol=1e-3, atol=1e-4)


def test_shortcut_for_norms_is_the_loop():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(1 + extra_inputs(2), 4, 3), nn.BatchNorm2d(4)
            self.three, self.four = nn.Conv2d(4, 4, 2, padding="valid"), nn.GroupNorm(2, 4)
            self.five, self.six = nn.LayerNorm(9), nn.LayerNorm((4, 9))
            self.seven, self.eight, self.nine = nn.Linear(36, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)

        def forward(self, x):
            h = self.four(self.three(self.two(self.one(x)).tanh())).tanh()
            h = self.six(self.five(h.flatten(2))).tanh()
            return self.nine(self.eight(self.seven(h.flatten(1))).tanh())

    torch.manual_seed(0)
    model = Mixed().double()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point():
            value.data.add_(0.1 * draw(*value.shape, seed=len(name)).abs().double())
    net = ITTT(model, "channel", outputs=2, neutral=0.5, gap="l2")
    x = draw(5, 1, 6, 6).double()
    for optimiser in ("sgd", "adam"):
        settings = Settings(steps=1, per="instance", lr=1e-2, optimiser=optimiser, rollback=False)
        fast, slow = (net.adapter(replace(settings, method=method))(x) for method in ("rank-one", "loop"))
        torch.testing.assert_close(fast.prediction, slow.prediction, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(fast.moved, slow.moved, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(fast.prediction, fast.before)


def test_tied_weights_stay_tied_side_by_side():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    model[2].weight = model[0].weight
    net = ITTT(model)
    x = draw(3, 4).double()
    settings = Settings(steps=3, lr=1e-2, per="instance", rollback=False)
    assert len(chosen(net, settings)) == 5
    stacked, loop = (net.adapter(replace(settings, method=method)) for method in ("stacked", "loop"))
    torch.testing.assert_close(stacked(x).prediction, loop(x).prediction)
    assert loop.net.model[2].weight is loop.net.model[0].weight
    with pytest.raises(UserError, match="shared by two layers"):
        net.adapter(replace(settings, method="rank-one", steps=1))(x)


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (2, 1)}])
def test_shortcut_for_convolutions_is_the_loop(options, optimiser):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1 + extra_inputs(3), 5, 3, **options), nn.ReLU(inplace=True),
        nn.Conv2d(5, 4, 2, bias=False), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).double()  # fmt: skip
    net = ITTT(model, "channel", outputs=3, task="classes", neutral="uniform", gap="l1-prob")
    x = draw(5, 1, 9, 9).double()
    settings = Settings(steps=1, per="instance", lr=1e-2, optimiser=optimiser, trust=0.02, rollback=False)
    fast, slow = (net.adapter(replace(settings, method=method))(x) for method in ("rank-one", "loop"))
    torch.testing.assert_close(fast.prediction, slow.prediction, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(fast.moved, slow.moved, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(fast.prediction, fast.before)


# ---- what is adapted


def test_parameter_filters():
    net = images()
    names = dict(net.named_parameters())
    assert chosen(net, Settings()) == list(names)
    assert chosen(net, Settings(parameters="norm")) == ["model.1.weight", "model.1.bias"]
    assert chosen(net, Settings(parameters="head")) == ["model.4.weight", "model.4.bias"]
    assert chosen(net, Settings(parameters="encoder")) == [
        "model.0.weight", "model.0.bias", "model.1.weight", "model.1.bias",
    ]  # fmt: skip
    assert chosen(net, Settings(parameters="*.0.*, model.4.bias")) == [
        "model.0.weight", "model.0.bias", "model.4.bias",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"chooses none.*the network has model\.0\.weight"):
        chosen(net, Settings(parameters="model.9.*"))
    adapter = net.adapter(Settings(parameters="head", rollback=False))
    adapter(draw(3, 1, 6, 6))
    moved = [n for n, p in adapter.net.named_parameters() if not torch.equal(p, names[n])]
    assert moved == ["model.4.weight", "model.4.bias"]


# ---- what is refused, in one line


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"steps": -1}, "steps must not"),
        ({"chunk": 0}, "chunk at least 1"),
        ({"lr": float("nan")}, "lr must be"),
        ({"decay": 1.5}, "decay is a share"),
        ({"gate": -0.1}, "gate is a share"),
        ({"trust": -1.0}, "trust must not"),
        ({"timing": "before", "steps": 0}, "needs a step"),
        ({"timing": "before"}, "compare gaps before and after"),
        ({"measure": False, "early_stop": True}, "compare gaps before and after"),
        ({"early_stop": True, "norm": "batch-frozen"}, "cannot compare"),
        ({"per": "instance", "reset": False}, "leave reset on"),
        ({"per": "instance", "norm": "batch"}, "no batch statistics"),
        ({"per": "instance", "control": "shuffled"}, "other inputs"),
        ({"method": "rank-one"}, "per='instance', steps=1"),
        ({"method": "rank-one", "per": "instance", "steps": 1, "optimiser": "momentum"}, "adam and sgd"),
        (
            {"method": "rank-one", "per": "instance", "steps": 1, "score": "second-adapted"},
            "predicts after its step",
        ),
        ({"early_stop": True, "carry_state": True}, "takes a step back"),
        ({"guard": 0.1}, "set reset to False"),
        ({"detect": 3.0}, "set reset to False"),
        ({"detect": -3.0}, "detect must not"),
    ],
)
def test_bad_settings(changes, text):
    with pytest.raises(UserError, match=text):
        Settings(**changes)


def test_settings_that_the_network_does_not_allow():
    with pytest.raises(UserError, match="no batch norm"):
        table().adapter(Settings(norm="batch"))
    with pytest.raises(UserError, match="two samples"):
        images().adapter(Settings(norm="batch"))(draw(1, 1, 6, 6))
    with pytest.raises(UserError, match="two samples"):
        images().adapter(Settings(control="shuffled"))(draw(1, 1, 6, 6))
    grouped = ITTT(
        nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Flatten(), nn.Linear(32, 1)), "channel", presence=False
    )
    with pytest.raises(UserError, match="of a Conv2d: choose parameters='head'"):
        grouped.adapter(Settings(per="instance", method="rank-one", steps=1))(draw(2, 1, 6, 6))

    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 1)

        def forward(self, x):
            return self.inner(x) if float(x.sum()) > 0 else self.inner(-x)

    with pytest.raises(UserError, match="use method='loop'"):
        ITTT(Asking()).adapter(Settings(per="instance"))(draw(2, 2))

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x):
            return self.inner(self.inner(x))[:, :1]

    with pytest.raises(UserError, match="called once"):
        ITTT(Twice()).adapter(Settings(per="instance", method="rank-one", steps=1))(draw(2, 1))
