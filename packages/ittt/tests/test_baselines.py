"""The other methods: their objectives in plain words, and the library torch-ttt on the same case."""

import copy
import math

import pytest
import torch
from ittt import ITTT, Settings
from ittt.baselines import METHODS, Baseline, method
from ittt.objectives import (
    Activations,
    Agreement,
    Entropy,
    Marginal,
    Reliable,
    Rotation,
    captured,
    entropy,
    shifted,
)
from paperkit import UserError
from torch import nn
from torch_ttt.engine.actmad_engine import ActMADEngine
from torch_ttt.engine.eata_engine import EataEngine
from torch_ttt.engine.it3_engine import IT3Engine
from torch_ttt.engine.memo_engine import MemoEngine
from torch_ttt.engine.tent_engine import TentEngine


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def convs(classes=3, extra=0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1 + extra, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(6 * 16, classes),
    )  # fmt: skip


def images():
    return ITTT(convs(extra=4), "channel", outputs=3, task="classes", neutral="uniform", presence=True)


# ---- objectives


def test_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    expected = [math.log(2), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]
    torch.testing.assert_close(entropy(logits), torch.tensor(expected))
    with pytest.raises(UserError, match="two classes"):
        entropy(torch.zeros(3, 1))


def test_inner_product_by_hand_and_its_gradient_flows_through_both():
    net, x = images().eval(), draw(5, 1, 6, 6)
    first = net(x)
    second = net(x, first.softmax(1))
    pairs = zip(first.detach().softmax(1), second.detach().softmax(1), strict=True)
    expected = -sum(float(p @ q) for p, q in pairs) / 5
    loss = Agreement().loss(net, x)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-6)
    (whole,) = torch.autograd.grad(loss, net.model[0].weight)
    second = net(x, first.detach().softmax(1))
    part = -(first.detach().softmax(1) * second.softmax(1)).sum(1).mean()
    assert not torch.allclose(torch.autograd.grad(part, net.model[0].weight)[0], whole)
    with pytest.raises(UserError, match="needs an ITTT"):
        Agreement().loss(convs(), x)


def test_reliable_keeps_confident_and_new_predictions():
    logits = torch.tensor([[4.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 5.0, 0.0], [4.0, 0.2, 0.0]])
    limit = 0.4 * math.log(3)
    h = entropy(logits)
    assert (h < limit).tolist() == [True, False, True, True]
    objective = Reliable(apart=0.7)
    first = objective.loss(nn.Identity(), logits)
    kept = h[[0, 2, 3]]
    torch.testing.assert_close(first, ((limit - kept).exp() * kept).mean())
    average = logits.softmax(1)[[0, 2, 3]].mean(0)
    torch.testing.assert_close(objective.average, average)
    second = objective.loss(nn.Identity(), logits)  # the two that resemble the average are left out
    torch.testing.assert_close(second, (limit - h[2]).exp() * h[2])
    torch.testing.assert_close(objective.average, 0.9 * average + 0.1 * logits.softmax(1)[2])
    assert objective.loss(nn.Identity(), torch.zeros(2, 3)) is None
    objective.restart()
    assert objective.average is None


def test_activations_are_zero_on_the_clean_inputs_and_pooled():
    net = images()
    clean = draw(20, 1, 6, 6)
    objective = Activations(net, [clean[:7], clean[7:]], ["model.0"])
    net.eval()
    torch.testing.assert_close(objective.loss(net, clean), torch.tensor(0.0), rtol=0, atol=1e-6)
    with torch.no_grad(), captured(net, ["model.0"]) as found:
        net(clean)
        clean_rows = found["model.0"].movedim(1, -1).reshape(-1, 6)
        net(clean[:1] * 2)
        rows = found["model.0"].movedim(1, -1).reshape(-1, 6)
    expected = (rows.mean(0) - clean_rows.mean(0)).abs().mean() + (
        rows.var(0) - clean_rows.var(0)
    ).abs().mean()
    torch.testing.assert_close(objective.loss(net, clean[:1] * 2).detach(), expected)
    single = Activations(nn.Linear(3, 3), [draw(9, 3)], [""])
    assert bool(torch.isfinite(single.loss(nn.Linear(3, 3), draw(1, 3))))


def test_rotation_is_learned_and_told():
    """Ramps of brightness: after some steps the head tells their quarter turns apart."""
    torch.manual_seed(0)
    net, head = images(), Rotation("model.3", 6 * 16)
    ramp = torch.linspace(-1, 1, 6).expand(8, 1, 6, 6) + 0.1 * draw(8, 1, 6, 6)
    optimiser = torch.optim.Adam([*net.parameters(), *head.parameters()], 1e-2)
    start = float(head.loss(net, ramp).detach())
    for _ in range(30):
        optimiser.zero_grad()
        loss = head.loss(net, ramp)
        loss.backward()
        optimiser.step()
    assert start == pytest.approx(math.log(4), rel=0.3)
    assert float(loss.detach()) < 0.1
    given = [p.detach().clone() for p in head.parameters()]
    found = method("rotation", net, Settings(), rotation=head)(ramp)
    assert found.shape == (8, 3)
    assert all(torch.equal(a, b) for a, b in zip(given, head.parameters(), strict=True))


def test_shifted_versions_are_the_images_moved():
    x = torch.arange(64.0).view(1, 1, 8, 8).expand(20, 1, 8, 8)
    versions = shifted(x, torch.Generator().manual_seed(0))
    assert versions.shape == x.shape
    inner = versions[:, 0, 2:6, 2:6]
    steps = (inner[:, :, 1:] - inner[:, :, :-1]).flatten(1)
    assert {float(row[0]) for row in steps} == {1.0, -1.0}
    assert bool((steps == steps[:, :1]).all())


# ---- the library's on the same case


def test_tent_is_the_librarys_under_stored_statistics():
    """In its evaluation mode that engine's batch norm falls back on the stored statistics."""
    net, x = convs().eval(), draw(6, 1, 6, 6)
    ours = Baseline(net, Entropy(), Settings(steps=3, lr=1e-2, parameters="norm"))
    engine = TentEngine(convs(), {"lr": 1e-2, "num_steps": 3}).eval()
    torch.testing.assert_close(ours(x), engine(x)[0].detach())


def test_tent_under_batch_statistics_by_hand():
    net, x = images(), draw(6, 1, 6, 6)
    found = method("tent", net, Settings(steps=1, lr=1e-2, optimiser="sgd"))(x)
    net.train()
    loss = entropy(net(x)).mean()
    weight = [net.model[1].weight, net.model[1].bias]
    for parameter, gradient in zip(weight, torch.autograd.grad(loss, weight), strict=True):
        parameter.data -= 1e-2 * gradient
    torch.testing.assert_close(found, net(x).detach())


def test_objectives_are_the_librarys():
    x = draw(12, 1, 6, 6)
    net = convs().eval()
    net[4].weight.data *= 8  # predictions that differ
    engine = EataEngine(copy.deepcopy(net), e_margin=0.9 * math.log(3), d_margin=0.97).eval()
    ours = Reliable(share=0.9, apart=0.97)
    for part in x.split(4):
        loss = ours.loss(net, part)
        assert loss is not None
        torch.testing.assert_close(loss, engine.ttt_forward(part)[1])
    library = ActMADEngine(net, ["0", "4"])
    library.compute_statistics([(x,)])
    library.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            Activations(net, [x], ["0", "4"], pooled=False).loss(net, x[:5] * 2),
            library.ttt_forward(x[:5] * 2)[1],
        )
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))  # that engine fails on batch norm
    versions = [x[:3] + 0.1 * draw(3, 1, 6, 6, seed=seed) for seed in range(4)]
    ours_, theirs = iter(versions), iter(versions)
    engine = MemoEngine(flat, augmentations=lambda _: next(theirs), n_augmentations=4).eval()
    objective = Marginal(lambda _x, _draw: next(ours_), n=4)
    torch.testing.assert_close(objective.loss(flat, x[:3]), engine.ttt_forward(x[:3])[1])


def test_the_librarys_it3_is_the_unfrozen_variant():
    """Both passes by the network that moves (Eq. 5), whatever the paper says of F."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    embedder = nn.Linear(2, 6, bias=False)
    x = draw(5, 4)
    options = {"lr": 1e-2, "num_steps": 3}
    library = IT3Engine(model, "0", embedder, lambda h, e: h + e, optimization_parameters=options).eval()
    expected = library(x)[0].detach()
    net = ITTT(model, "feature", layer="0", outputs=2, presence=False, gap="l2", retrofit=True)
    net.model[0].branch.weight.data.copy_(embedder.weight)
    own = {"steps": 3, "lr": 1e-2, "rollback": False, "parameters": "model.0.layer.*, model.2.*"}
    torch.testing.assert_close(net.adapter(Settings(anchor="none", **own))(x).prediction, expected)
    assert not torch.allclose(net.adapter(Settings(**own))(x).prediction, expected)


# ---- the protocol


def test_every_method_predicts_resets_and_leaves_the_network_alone():
    net = images()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    parts = {
        "plain": convs(), "clean": [draw(20, 1, 6, 6)], "augment": shifted,
        "rotation": Rotation("model.3", 96),
    }  # fmt: skip
    x, other = draw(5, 1, 6, 6), draw(5, 1, 6, 6, seed=1)
    found = {}
    for name in METHODS:
        predict = method(name, net, Settings(steps=1, lr=1e-2, rollback=False), **parts)
        found[name] = predict(x)
        if name not in ("memo", "random"):  # these draw anew
            predict(other)
            torch.testing.assert_close(predict(x), found[name])
        with torch.no_grad():
            assert predict(x).shape == (5, 3)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        assert torch.equal(found["none"], net.eval()(x))
        assert torch.equal(found["plain"], parts["plain"].eval()(x))
        torch.testing.assert_close(found["bn"], net.train()(x))
    for name in set(METHODS) - {"none", "plain", "eta"}:
        assert not torch.allclose(found[name], found["none"]), name


def test_memo_adapts_each_input_on_its_own():
    net = images()
    x = draw(4, 1, 6, 6)

    def lighter(x, _draw):
        return x + 0.1

    predict = method("memo", net, Settings(steps=1, lr=1e-2), augment=lighter)
    torch.testing.assert_close(predict(x)[1:2], predict(x[1:2]))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tnet", "no method 'tnet' .did you mean tent"),
        ("plain", "needs plain="),
        ("memo", "needs augment="),
        ("actmad", "needs clean="),
        ("rotation", "needs rotation="),
    ],
)
def test_missing_parts_are_named(name, text):
    with pytest.raises(UserError, match=text):
        method(name, images(), Settings())


def test_bad_uses_of_methods():
    table = ITTT(nn.Linear(4, 1))
    for name, text in (("tent", "chooses none"), ("bn", "no batch norm")):
        with pytest.raises(UserError, match=text):
            method(name, table, Settings())
    with pytest.raises(UserError, match="two samples"):
        method("tent", images(), Settings())(draw(1, 1, 6, 6))
    with pytest.raises(UserError, match="square"):
        Rotation("model.3", 96).loss(images(), draw(2, 1, 6, 7))
    with pytest.raises(UserError, match="at least one batch"):
        Activations(images(), [])
    with pytest.raises(UserError, match="no layer"):
        Activations(table, [draw(2, 3)], ["x"])
