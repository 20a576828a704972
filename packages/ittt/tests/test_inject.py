"""Where the signal enters, what it is, ZigZag training, retrofits, and every kind of batch."""

import pytest
import torch
import torchvision
from ittt import ITTT, Settings, extra_inputs
from paperkit import UserError
from torch import nn


class Named(nn.Module):
    """Takes a dict."""

    def __init__(self, columns: int):
        super().__init__()
        self.inner = nn.Linear(columns + 2, 1)

    def forward(self, x):
        return self.inner(torch.cat([x["table"], x["more"]], 1))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def convs(channels: int, classes: int = 3):
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes),
    )  # fmt: skip


# ---- signals


def test_signal_of_numbers_is_scaled_and_carries_its_presence():
    net = ITTT(nn.Linear(3 + extra_inputs(2, True), 2), outputs=2, neutral=0.2, presence=True, scale=500.0)
    x, y = draw(4, 3), torch.tensor([[50.0, -100.0]] * 4)
    torch.testing.assert_close(net.encoded(x, net.from_target(y)), torch.tensor([[0.1, -0.2, 1.0]] * 4))
    torch.testing.assert_close(net.encoded(x, None), torch.tensor([[0.2, 0.2, 0.0]] * 4))
    known = torch.tensor([True, False, True, False])
    mixed = net.encoded(x, net.from_target(y), known)
    torch.testing.assert_close(mixed[known], net.encoded(x, net.from_target(y))[known])
    torch.testing.assert_close(mixed[~known], net.encoded(x, None)[~known])


def test_signal_of_classes_is_a_distribution():
    net = ITTT(
        nn.Linear(3 + 4, 4), outputs=4, task="classes", neutral="uniform", presence=False, smoothing=0.2
    )
    x = draw(2, 3)
    assert net.encoded(x, None).tolist() == [[0.25] * 4] * 2
    expected = torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05]])
    torch.testing.assert_close(net.from_target(torch.tensor([1, 0])), expected)
    torch.testing.assert_close(net.from_output(net(x)), net(x).softmax(1))


def test_signal_of_masks_is_a_probability_map():
    net = ITTT(nn.Conv2d(3 + 2, 1, 3, padding=1), "channel", task="binary", neutral=0.5, presence=True)
    x, mask = draw(2, 3, 8, 8), (draw(2, 1, 8, 8, seed=1) > 0).float()
    assert net.encoded(x, net.from_target(mask)).shape == (2, 2, 8, 8)
    torch.testing.assert_close(net.from_output(net(x)), net(x).sigmoid())
    known = torch.tensor([True, False])
    mixed = net.encoded(x, net.from_target(mask), known)
    assert torch.equal(mixed[0, :1], mask[0])
    assert mixed[1, 0].unique().tolist() == [0.5]
    assert mixed[:, 1].amax((1, 2)).tolist() == [1, 0]
    assert net.gap(x).shape == (2,)
    assert float(net.loss(x, mask).detach()) > 0


def test_learned_neutral_is_trained():
    net = ITTT(nn.Linear(3 + extra_inputs(1), 1), neutral="learned")
    net.loss(draw(4, 3), draw(4, 1, seed=1)).backward()
    assert float(net.neutral.grad.abs()) > 0


# ---- training, Eq. 2


def test_loss_is_the_sum_of_both_passes_and_masked_draws_one_of_them():
    torch.manual_seed(0)
    net = ITTT(nn.Linear(3 + 1, 1), neutral=0.5)
    x, y = draw(6, 3), draw(6, 1, seed=1)
    known = ((net(x, net.from_target(y)) - y) ** 2)[:, 0]
    neutral = ((net(x) - y) ** 2)[:, 0]
    torch.testing.assert_close(net.loss(x, y), known.mean() + neutral.mean())
    torch.testing.assert_close(net.loss(x, y, mask=1.0), neutral.mean())
    torch.testing.assert_close(net.loss(x, y, mask=0.0), known.mean())
    fed = torch.rand(6, generator=torch.Generator().manual_seed(7)) >= 0.5
    assert 0 < int(fed.sum()) < 6
    drawn = net.loss(x, y, mask=0.5, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(drawn, torch.where(fed, known, neutral).mean())
    torch.testing.assert_close(net.loss(x, y, mask=~fed), drawn)


def test_gap_leaves_the_training_mode_as_it_was():
    net = ITTT(convs(3 + extra_inputs(3)), "channel", outputs=3, task="classes")
    net.model[1].eval()
    net.gap(draw(2, 3, 8, 8))
    assert net.training
    assert net.model[0].training
    assert not net.model[1].training


# ---- each place, with each kind of batch


def test_concat_and_channel_are_more_inputs():
    table = nn.Linear(3 + 1, 1)
    torch.testing.assert_close(
        ITTT(table, neutral=0.5)(draw(4, 3)),
        table(torch.cat([draw(4, 3), torch.full((4, 1), 0.5)], 1)),
    )
    conv = convs(3 + 4).eval()
    bits = torch.zeros(2, 4, 8, 8)
    bits[:, :3] = 1 / 3
    net = ITTT(conv, "channel", outputs=3, task="classes", neutral="uniform", presence=True)
    torch.testing.assert_close(net(draw(2, 3, 8, 8)), conv(torch.cat([draw(2, 3, 8, 8), bits], 1)))


def test_tokens_get_the_signal_each():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3 + 1, 1)

        def forward(self, x):
            return self.inner(x).mean(1)

    assert ITTT(Mean())(draw(2, 5, 3)).shape == (2, 1)


def test_feature_is_added_at_the_named_layer():
    net = ITTT(convs(3), "feature", outputs=3, task="classes", layer="3", neutral="uniform")
    found = {}
    net.model[3].layer.register_forward_hook(lambda _m, _x, h: found.update(before=h))
    net.model[3].register_forward_hook(lambda _m, _x, h: found.update(after=h))
    x = draw(2, 3, 8, 8)
    signal = draw(2, 3).softmax(1)
    net(x, signal)
    added = net.model[3].branch(net.encoded(x, signal))
    torch.testing.assert_close(found["after"], found["before"] + added[:, :, None, None])
    assert float(net.gap(x).min()) > 0
    net.loss(x, torch.tensor([0, 1])).backward()
    assert float(net.model[3].branch[0].weight.grad.abs().sum()) > 0


def test_feature_of_tokens_is_their_last_axis():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(25, 2))
    net = ITTT(model, "feature", layer="0", outputs=2, presence=False, retrofit=True)
    nn.init.normal_(net.model[0].branch.weight)
    x, signal = draw(4, 5, 3), draw(4, 2, seed=1)  # as many tokens as features
    h = net.model[0].layer(x) + net.model[0].branch(signal)[:, None, :]
    torch.testing.assert_close(net(x, signal), model[3](h.relu().flatten(1)))


@pytest.mark.parametrize("place", ["feature", "channel", "concat", "resnet"])
def test_second_pass_that_resumes_at_the_layer_is_the_whole_one(place):
    """In an nn.Sequential the layers before the signal run once per batch, whatever the number of steps."""
    torch.manual_seed(0)
    options = {"outputs": 3, "task": "classes", "neutral": "uniform", "retrofit": place != "feature"}
    model = {
        "concat": nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)),
        "resnet": torchvision.models.resnet18(num_classes=3),
    }.get(place) or convs(3)
    x = draw(5, 4) if place == "concat" else draw(3, 3, 16, 16)
    if place == "feature":
        options["layer"] = "3"
    net = ITTT(model, "channel" if place == "resnet" else place, **options).eval()
    for name, weight in net.named_parameters():
        if "branch" in name:
            nn.init.normal_(weight)
    signal = draw(len(x), 3, seed=1).softmax(1)
    with torch.no_grad():
        resume = net.resumed(x)
        for _ in range(2):
            torch.testing.assert_close(resume(signal), net(x, signal))
    calls = []
    adapter = net.adapter(Settings(steps=4, rollback=False))
    if place == "feature":
        adapter.source.model[0].register_forward_hook(lambda *_: calls.append(1))
        adapter(x)
        assert len(calls) == 1


def test_dict_of_tensors():
    net = ITTT(Named(4 + 1), key="table")
    x = {"table": draw(5, 4), "more": draw(5, 2, seed=1)}
    found = {per: net.adapter(Settings(steps=1, per=per))(x) for per in ("batch", "instance")}
    assert found["batch"].prediction.shape == (5, 1)
    alone = net.adapter(Settings(steps=1))({name: values[2:3] for name, values in x.items()})
    torch.testing.assert_close(found["instance"].prediction[2:3], alone.prediction)


# ---- retrofits: f(x, 0) equals the pretrained network bit for bit


@pytest.mark.parametrize("neutral", [0.0, 50.0, "learned", "uniform"])
@pytest.mark.parametrize("place", ["concat", "channel", "feature", "resnet"])
def test_retrofit_is_the_pretrained_network_exactly(place, neutral):
    torch.manual_seed(1)
    options = {"outputs": 3, "task": "classes", "neutral": neutral, "retrofit": True}
    if place == "concat":
        x, model = draw(5, 4), nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    elif place == "resnet":
        x, model = draw(2, 3, 32, 32), torchvision.models.resnet18(num_classes=3)
    else:
        x, model = draw(2, 3, 9, 9), convs(3)
    if place == "feature":
        options |= {"layer": "4"} | {"width": 6}
    model.eval()
    with torch.no_grad():
        expected = model(x)
        net = ITTT(model, "channel" if place == "resnet" else place, **options).eval()
        assert torch.equal(net(x), expected)
        assert torch.equal(net(x, net.from_output(expected)), expected)
        assert net.gap(x).tolist() == [0.0] * len(expected)
    net.loss(x, torch.zeros(len(expected), dtype=torch.long)).backward()
    trained = [p.grad for name, p in net.named_parameters() if "branch" in name]
    assert trained
    assert all(float(gradient.abs().sum()) > 0 for gradient in trained)


def test_retrofitted_network_can_be_copied_and_adapted():
    torch.manual_seed(0)
    net = ITTT(convs(3), "channel", outputs=3, task="classes", neutral="uniform", retrofit=True)
    nn.init.normal_(net.model[0].branch.weight)
    x = draw(4, 3, 8, 8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = net.adapter(Settings(steps=2, per="instance"))(x)
    loop = net.adapter(Settings(steps=2, per="instance", method="loop"))(x)
    torch.testing.assert_close(found.prediction, loop.prediction, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# ---- bad input is one line


def refused(text, call):
    with pytest.raises(UserError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_bad_construction():
    refused("choose from concat", lambda: ITTT(nn.Linear(3, 1), "image"))
    refused(r"no layer 'layer4'.*one of 0, 1", lambda: ITTT(convs(3), "feature", layer="layer4"))
    refused("needs layer=: one of 0, 1", lambda: ITTT(convs(3), "feature"))
    refused("needs a Conv1d", lambda: ITTT(convs(3), "channel", layer="7", retrofit=True))
    refused("give it by width", lambda: ITTT(convs(3), "feature", layer="2"))
    refused("has no Linear", lambda: ITTT(nn.Conv2d(3, 3, 1), "concat", retrofit=True))
    refused("'uniform' or 'learned'", lambda: ITTT(nn.Linear(5, 1), neutral="none"))
    refused("choose from auto, l1", lambda: ITTT(nn.Linear(5, 1), gap="mse"))
    refused("compares distributions", lambda: ITTT(nn.Linear(5, 1), gap="js"))
    refused("choose from regression", lambda: ITTT(nn.Linear(5, 1), task="class"))
    refused("outputs must be", lambda: ITTT(nn.Linear(5, 1), outputs=0))
    refused("scale must be", lambda: ITTT(nn.Linear(5, 1), scale=0.0))


def test_bad_batches():
    net = ITTT(nn.Linear(3 + 1, 1))
    adapter, x = net.adapter(), draw(4, 3)
    refused("labels must not", lambda: adapter((x, draw(4, 1))))
    refused("leave 'y' out", lambda: adapter({"x": x, "y": draw(4, 1)}))
    refused("keys 'a', 'b': name", lambda: adapter({"a": x, "b": x}))
    refused("not str", lambda: adapter("x"))
    refused("is empty", lambda: adapter(x[:0]))
    hole = x.clone()
    hole[2, 1] = torch.nan
    refused("row 2 of the batch has nan in column 1", lambda: adapter(hole))
    refused(r"does not take inputs of shape \(4, 4\)", lambda: adapter(draw(4, 4)))
    refused(r"output of shape \(4, 2\) cannot be fed back", lambda: ITTT(nn.Linear(4, 2)).adapter()(x))
    refused("targets have shape", lambda: net.loss(x, draw(4)))
    refused("mask is a probability", lambda: net.loss(x, draw(4, 1), mask=2.0))
    maps = ITTT(nn.Conv2d(3 + 1, 1, 3), "channel")
    refused("cannot be fed back as channels", lambda: maps.adapter()(draw(2, 3, 8, 8)))
    flat = ITTT(nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (1, 2, 2))))
    refused(r"signal of shape \(4, 1, 2, 2\) cannot be fed back by", lambda: flat.adapter()(x))
    sized = nn.Sequential(nn.Conv2d(3 + 1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 1))
    refused("does not take inputs", lambda: ITTT(sized, "channel").adapter()(draw(2, 3, 9, 9)))


def test_a_model_of_ones_own_fault_keeps_its_traceback():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 1)

        def forward(self, x):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        ITTT(Broken()).adapter()(draw(4, 3))
