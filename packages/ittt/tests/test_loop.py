"""The adaptation loop against a slow reference: plain functions in float64, nothing of the package."""

import math
from dataclasses import replace

import pytest
import torch
from ittt import ITTT, Settings, extra_inputs
from torch import nn

NEUTRAL = 0.3
COLUMNS, HIDDEN, ROWS = 5, 7, 6


# ---- the reference: a network as a function of a list of weights, and the loop, line by line


def network(weights, x, signal):
    """Two tanh layers and a linear one on (x, signal); the signal is neutral where it is None."""
    w1, b1, w2, b2, w3, b3 = weights
    outputs = len(b3)
    if signal is None:
        extra = torch.full((len(x), outputs + 1), NEUTRAL, dtype=torch.float64)
        extra[:, -1] = 0
    else:
        extra = torch.cat([signal, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    h = torch.tanh(torch.cat([x, extra], 1) @ w1.T + b1)
    h = torch.tanh(h @ w2.T + b2)
    return h @ w3.T + b3


def gap_l1(first, second):
    return torch.stack(
        [
            sum(abs(a - b) for a, b in zip(p, q, strict=True)) / len(p)
            for p, q in zip(first, second, strict=True)
        ]
    )


def gap_js(first, second):
    rows = []
    for a, b in zip(first, second, strict=True):
        p, q = a.exp() / a.exp().sum(), b.exp() / b.exp().sum()
        m = (p + q) / 2
        rows.append((p * (p / m).log()).sum() / 2 + (q * (q / m).log()).sum() / 2)
    return torch.stack(rows)


def passes(theta, anchor, x, task, s):
    first = network(theta, x, None)
    signal = first if task == "regression" else first.exp() / first.exp().sum(1, keepdim=True)
    if not s.through_anchor:
        signal = signal.detach()
    second = network(anchor, x, signal)
    gaps = (gap_l1 if task == "regression" else gap_js)(first, second)
    return first, second, gaps


def scored(found, s):
    return found[1] if s.score == "second" else found[0]


def length(tensors):
    return math.sqrt(sum(float((t**2).sum()) for t in tensors))


def fresh(source):
    """Weights of f and F, and Adam's moments with the count of its steps."""
    return source, source, [[torch.zeros_like(w), torch.zeros_like(w)] for w in source], 0


def reference(source, x, task, s, adapted=(0, 1, 2, 3, 4, 5), eps=1e-8, start=None):
    """(prediction, prediction before, gaps before, gaps after, theta, rolled back) of one batch.

    `start` is where a stream stands; the state after the batch is appended to it.
    """
    state = start[-1] if start else fresh(source)
    theta = [w.clone().requires_grad_() for w in state[0]]
    anchor = [w.clone() for w in state[1]]
    moments, count = [[m.clone() for m in pair] for pair in state[2]], state[3]
    kept, previous = None, None
    for step in range(s.steps + 1):
        second = theta if s.anchor == "none" else anchor
        found = passes(theta, second, x, task, s)
        loss = found[2].mean()
        if kept is None:
            before = [part.detach() for part in found]
        elif s.early_stop and not loss.item() < float(kept[2].mean()):
            theta, anchor = previous
            break
        kept = [part.detach() for part in found]
        if step == s.steps:
            break
        gradients = torch.autograd.grad(loss, theta)
        previous = [w.clone() for w in theta], [w.clone() for w in anchor]
        moved = []
        for i, (w, g) in enumerate(zip(theta, gradients, strict=True)):
            w = w.detach().clone()
            if i in adapted:
                first, square = moments[i]
                if s.optimiser == "adam":
                    first = moments[i][0] = 0.9 * first + 0.1 * g
                    square = moments[i][1] = 0.999 * square + 0.001 * g**2
                    centred = first / (1 - 0.9 ** (count + 1))
                    spread = square / (1 - 0.999 ** (count + 1))
                    w -= s.lr * centred / (spread.sqrt() + eps)
                else:
                    momentum = 0.9 if s.optimiser == "momentum" else 0.0
                    first = moments[i][0] = momentum * first + g
                    w -= s.lr * first
            moved.append(w)
        count += 1
        if s.trust:
            radius = s.trust * length(source[i] for i in adapted)
            far = length(w - o for w, o in zip(moved, source, strict=True))
            if far > radius:
                moved = [o + (w - o) * radius / far for w, o in zip(moved, source, strict=True)]
        if s.anchor == "ema":
            anchor = [s.decay * a + (1 - s.decay) * w for a, w in zip(anchor, moved, strict=True)]
        theta = [w.requires_grad_() for w in moved]
    rolled = s.rollback and not float(kept[2].mean()) <= float(before[2].mean())
    if rolled:
        kept = before
        theta, anchor, moments, count = state
    if start:
        start.append(([w.detach() for w in theta], anchor, moments, count))
    prediction = scored(kept, s)
    gaps = kept[2]
    if s.choose == "lower-gap":
        lower = kept[2] <= before[2]
        prediction = torch.where(lower[:, None], prediction, scored(before, s))
        gaps = torch.where(lower, kept[2], before[2])
    return prediction, scored(before, s), before[2], gaps, [w.detach() for w in theta], rolled


# ---- the engine


def build(task="regression", outputs=2, seed=0):
    """An ITTT in float64 and its weights as a list."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(COLUMNS + extra_inputs(outputs, presence=True), HIDDEN), nn.Tanh(),
        nn.Linear(HIDDEN, HIDDEN), nn.Tanh(),
        nn.Linear(HIDDEN, outputs),
    ).double()  # fmt: skip
    net = ITTT(model, "concat", outputs=outputs, task=task, neutral=NEUTRAL, presence=True)
    return net, [w.detach().clone() for w in net.parameters()]


def rows(n=ROWS, seed=1):
    return torch.randn(n, COLUMNS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CASES = {
    "the paper's": Settings(rollback=False),
    "one step": Settings(steps=1),
    "no step": Settings(steps=0),
    "lr 0": Settings(lr=0.0),
    "sgd": Settings(steps=4, optimiser="sgd", lr=0.1),
    "momentum": Settings(steps=5, optimiser="momentum", lr=0.05),
    "detached": Settings(steps=3, through_anchor=False, lr=1e-2, rollback=False),
    "un-frozen": Settings(steps=3, anchor="none", lr=1e-2, rollback=False),
    "un-frozen, detached": Settings(steps=3, anchor="none", through_anchor=False, lr=1e-2),
    "moving average": Settings(steps=4, anchor="ema", decay=0.7, lr=1e-2, rollback=False),
    "second pass": Settings(steps=3, score="second", lr=1e-2),
    "trust region": Settings(steps=5, lr=1e-2, trust=0.01),
    "early stop": Settings(steps=30, lr=4e-3, early_stop=True),
    "early stop, average": Settings(steps=30, lr=4e-3, early_stop=True, anchor="ema", decay=0.5),
    "too large a step": Settings(steps=1, lr=3.0, rollback=True),
    "lower gap": Settings(steps=3, lr=5e-2, choose="lower-gap", rollback=False),
    "everything": Settings(
        steps=9, lr=4e-3, early_stop=True, trust=0.05, choose="lower-gap", anchor="ema", decay=0.9,
        score="second",
    ),
}  # fmt: skip


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("task", ["regression", "classes"])
@pytest.mark.parametrize("case", CASES)
def test_batch_equals_the_reference(case, task):
    settings = CASES[case]
    net, source = build(task)
    adapter = net.adapter(settings)
    for seed in (1, 2):  # the second batch starts from the trained weights again
        x = rows(seed=seed)
        found = adapter(x)
        prediction, before, gap_before, gap_after, theta, rolled = reference(source, x, task, settings)
        same(found.prediction, prediction)
        same(found.before, before)
        same(found.gap_before, gap_before)
        same(found.gap_after, gap_after)
        same(list(adapter.net.parameters()), theta)
        assert bool(found.rolled_back.all()) == rolled
        same(float(found.moved[0]), length(a - b for a, b in zip(theta, source, strict=True)))


def test_the_cases_show_what_they_are_for():
    """Early stops before the last step, and one step that is rolled back."""
    net, _ = build()
    stopped = net.adapter(CASES["early stop"])(rows())
    assert 0 < int(stopped.steps[0]) < 30
    undone = net.adapter(CASES["too large a step"])(rows())
    assert bool(undone.rolled_back.all())
    assert not bool(undone.adapted.any())
    assert float(undone.moved.max()) == 0
    held = net.adapter(CASES["trust region"])(rows())
    full = net.adapter(replace(CASES["trust region"], trust=0.0))(rows())
    assert float(held.moved[0]) < 0.9 * float(full.moved[0])
    mixed = net.adapter(CASES["lower gap"])(rows())
    assert 0 < int(mixed.adapted.sum()) < ROWS


@pytest.mark.parametrize("method", ["stacked", "loop"])
@pytest.mark.parametrize("task", ["regression", "classes"])
@pytest.mark.parametrize("case", CASES)
def test_instances_equal_the_reference_one_by_one(case, task, method):
    settings = replace(CASES[case], per="instance", method=method, chunk=4)
    net, source = build(task)
    x = rows()
    found = net.adapter(settings)(x)
    for i in range(ROWS):
        prediction, _, gap_before, gap_after, theta, rolled = reference(source, x[i : i + 1], task, settings)
        same(found.prediction[i : i + 1], prediction)
        same(found.gap_before[i : i + 1], gap_before)
        same(found.gap_after[i : i + 1], gap_after)
        assert bool(found.rolled_back[i]) == rolled
        same(float(found.moved[i]), length(a - b for a, b in zip(theta, source, strict=True)))


@pytest.mark.parametrize("task", ["regression", "classes"])
@pytest.mark.parametrize(
    "settings",
    [
        Settings(steps=1, rollback=False),
        Settings(steps=1, through_anchor=False, rollback=False),
        Settings(steps=1, score="second"),
        Settings(steps=1, lr=0.05, choose="lower-gap"),
        Settings(steps=1, lr=1.0),
        Settings(steps=1, trust=0.003),
        Settings(steps=1, optimiser="sgd", lr=0.1, trust=0.003),
    ],
)
def test_rank_one_equals_the_reference(settings, task):
    """It is the step of Adam with eps = 0; the usual eps changes a weight's step by a share eps / |g|."""
    settings = replace(settings, per="instance", method="rank-one")
    net, source = build(task)
    x = rows()
    found = net.adapter(settings)(x)
    for i in range(ROWS):
        one = x[i : i + 1]
        prediction, _, _, gaps, theta, rolled = reference(source, one, task, settings, eps=1e-30)
        same(found.prediction[i : i + 1], prediction)
        same(found.gap_after[i : i + 1], gaps)
        same(float(found.moved[i]), length(a - b for a, b in zip(theta, source, strict=True)))
        assert bool(found.rolled_back[i]) == rolled
        usual = reference(source, one, task, settings)[0]
        torch.testing.assert_close(found.prediction[i : i + 1], usual, rtol=0, atol=0.05 * settings.lr)


@pytest.mark.parametrize(
    ("parameters", "adapted"), [("head", (4, 5)), ("encoder", (0, 1, 2, 3)), ("*.bias", (1, 3, 5))]
)
@pytest.mark.parametrize("method", ["", "stacked", "rank-one"])
def test_a_part_of_the_weights(parameters, adapted, method):
    settings = Settings(steps=1, lr=1e-2, parameters=parameters, trust=0.5)
    if method:
        settings = replace(settings, per="instance", method=method)
    net, source = build()
    x = rows(1 if not method else ROWS)
    found = net.adapter(settings)(x)
    for i in range(len(x)):
        eps = 1e-30 if method == "rank-one" else 1e-8
        same(
            found.prediction[i : i + 1],
            reference(source, x[i : i + 1], "regression", settings, adapted, eps)[0],
        )


STREAMS = {
    "frozen": Settings(reset=False, lr=1e-2),
    "average": Settings(reset=False, lr=1e-2, anchor="ema", decay=0.8),
    "average, no rollback": Settings(reset=False, lr=3e-2, anchor="ema", decay=0.8, rollback=False),
    "un-frozen": Settings(reset=False, lr=1e-2, anchor="none"),
    "moments carried": Settings(reset=False, lr=2e-2, carry_state=True, anchor="ema", decay=0.8),
    "momentum carried": Settings(reset=False, lr=2e-2, carry_state=True, optimiser="momentum"),
    "moments carried, weights not": Settings(carry_state=True, rollback=False),
    "all": Settings(reset=False, steps=6, lr=5e-3, anchor="ema", decay=0.9, early_stop=True, trust=0.04),
}


@pytest.mark.parametrize("case", STREAMS)
def test_stream_equals_the_reference(case):
    settings = STREAMS[case]
    net, source = build()
    adapter, stream, undone = net.adapter(settings), [fresh(source)], 0
    for seed in range(8):
        x = rows(seed=seed)
        found = adapter(x)
        prediction, before, _, gaps, theta, rolled = reference(
            source, x, "regression", settings, start=stream
        )
        same(found.prediction, prediction)
        same(found.before, before)
        same(found.gap_after, gaps)
        same(list(adapter.net.parameters()), theta)
        undone += rolled
        assert bool(found.rolled_back.all()) == rolled
        theta, anchor, moments, count = stream[-1]
        weights = (source, source) if settings.reset else (theta, anchor)
        stream.append((*weights, moments, count) if settings.carry_state else (*weights, *fresh(source)[2:]))
    if case in ("frozen", "moments carried"):
        assert 0 < undone < 8, "some batches are rolled back"


# ---- limits and invariances (specification, section 11)


def test_average_that_never_moves_is_frozen_and_one_that_follows_is_the_network():
    """Decay 1 equals the frozen anchor bit by bit; after a step at decay 0, F has the weights of f."""
    net, _ = build()
    x = rows()
    moving, frozen = (Settings(steps=4, lr=1e-2, anchor=kind, decay=1.0) for kind in ("ema", "frozen"))
    assert torch.equal(net.adapter(moving)(x).prediction, net.adapter(frozen)(x).prediction)
    adapter = net.adapter(Settings(steps=1, lr=1e-2, anchor="ema", decay=0.0, rollback=False))
    found = adapter(x)
    for ours, theirs in zip(adapter.anchor.parameters(), adapter.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        twice = adapter.net(x, adapter.net.from_output(adapter.net(x)))
    torch.testing.assert_close(found.gap_after, (twice - found.prediction).abs().mean(1))


@pytest.mark.parametrize("through", [True, False])
@pytest.mark.parametrize("task", ["regression", "classes"])
def test_gradient_of_the_gap_against_finite_differences(task, through):
    """d/d theta of the loss with F's weights fixed, and F's input live or fixed."""
    net, source = build(task)
    x = rows()
    lr = 1e-3
    adapter = net.adapter(Settings(steps=1, optimiser="sgd", lr=lr, through_anchor=through, rollback=False))
    adapter(x)
    gradients = [(a - b.detach()) / lr for a, b in zip(source, adapter.net.parameters(), strict=True)]
    fixed = network(source, x, None)
    fixed = fixed if task == "regression" else fixed.softmax(1)

    def loss(theta):
        first = network(theta, x, None)
        signal = first if task == "regression" else first.softmax(1)
        second = network(source, x, signal if through else fixed)
        return float((gap_l1 if task == "regression" else gap_js)(first, second).mean())

    draw = torch.Generator().manual_seed(3)
    for _ in range(5):
        along = [torch.randn(w.shape, generator=draw, dtype=torch.float64) for w in source]
        up, down = ([w + sign * 1e-6 * a for w, a in zip(source, along, strict=True)] for sign in (1, -1))
        slope = (loss(up) - loss(down)) / 2e-6
        assert slope == pytest.approx(
            float(sum((g * a).sum() for g, a in zip(gradients, along, strict=True))), rel=1e-5
        )


def test_scalar_toy_in_closed_form():
    """f(x, a) = w x + u a, one input, SGD: y0 = w x, y1 = w x + u y0, so gap = |u w x|.

    d gap / d w = sign (u x), d gap / d u = 0: u only weighs the signal, and f's own is 0; F's u is frozen.
    Through the anchor y1 - y0 = (W x + U y0) - y0, so d / d w = sign(y1 - y0) (U - 1) x.
    """
    w, u, x, lr = 1.5, 0.4, 2.0, 0.01
    linear = nn.Linear(2, 1, bias=False).double()
    linear.weight.data = torch.tensor([[w, u]], dtype=torch.float64)
    net = ITTT(linear, "concat", presence=False)
    for through, slope in ((True, (u - 1) * x), (False, -x)):
        settings = Settings(steps=1, optimiser="sgd", lr=lr, through_anchor=through, rollback=False)
        adapter = net.adapter(settings)
        found = adapter(torch.tensor([[x]], dtype=torch.float64))
        assert float(found.gap_before) == pytest.approx(abs(u * w * x))
        assert float(found.prediction) == pytest.approx((w - lr * slope) * x)
        assert adapter.net.model.weight.tolist()[0] == pytest.approx([w - lr * slope, u])


def test_network_that_ignores_the_signal_is_idempotent():
    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(COLUMNS, 2).double()

        def forward(self, x):
            return self.inner(x[:, :COLUMNS])

    found = ITTT(Deaf(), "concat", outputs=2).adapter(Settings(steps=5))(rows())
    assert found.gap_before.tolist() == found.gap_after.tolist() == [0.0] * ROWS
    assert torch.equal(found.prediction, found.before)


@pytest.mark.parametrize("settings", [Settings(steps=0), Settings(steps=5, lr=0.0)])
def test_nothing_done_is_the_unadapted_prediction(settings):
    net, _ = build()
    x = rows()
    with torch.no_grad():
        assert torch.equal(net.adapter(settings)(x).prediction, net(x))


@pytest.mark.parametrize("method", ["stacked", "rank-one", "loop"])
def test_an_instance_does_not_depend_on_its_neighbours(method):
    net, _ = build()
    adapter = net.adapter(Settings(steps=1, lr=1e-2, per="instance", method=method))
    x = rows(9)
    found = adapter(x).prediction
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    same(adapter(x[order]).prediction, found[order])
    same(adapter(x[2:5]).prediction, found[2:5])


def test_a_batch_does_not_depend_on_its_order():
    net, _ = build()
    adapter = net.adapter(Settings(steps=3, lr=1e-2))
    x = rows(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    same(adapter(x[order]).prediction, adapter(x).prediction[order])


@pytest.mark.parametrize("per", ["batch", "instance"])
def test_random_directions_repeat_by_seed_and_have_the_steps_length(per):
    net, _ = build()
    x = rows()
    plain, one, two = (
        net.adapter(Settings(steps=1, lr=1e-2, per=per, control=control, seed=seed, rollback=False))
        for control, seed in (("none", 0), ("random", 0), ("random", 1))
    )
    found = one(x)
    same(found.moved, plain(x).moved)
    again = net.adapter(Settings(steps=1, lr=1e-2, per=per, control="random", rollback=False))
    assert torch.equal(again(x).prediction, found.prediction)
    assert not torch.allclose(two(x).prediction, found.prediction)


def test_random_directions_side_by_side_are_those_of_the_loop():
    net, _ = build()
    x = rows()
    stacked, loop = (
        net.adapter(Settings(steps=3, lr=1e-2, per="instance", method=method, control="random", chunk=4))(x)
        for method in ("stacked", "loop")
    )
    same(stacked.prediction, loop.prediction)


def test_shuffled_control_feeds_the_neighbours_prediction():
    net, source = build()
    x = rows()
    found = net.adapter(Settings(steps=1, control="shuffled", rollback=False))(x)
    y0 = network(source, x, None)
    same(found.gap_before, gap_l1(y0, network(source, x, torch.cat([y0[-1:], y0[:-1]]))))
