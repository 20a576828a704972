"""What IGN is compared with: the other generators, the public implementation, the denoisers."""

import math
from pathlib import Path

import pytest
import torch
from ign import baselines, data, peer, projection
from ign.classifier import Classifier, Judge
from ign.config import TrainConfig
from ign.method import Objective, distance
from ign.train import parameters
from paperkit import UserError

SHAPE = (1, 8, 8)
TINY = TrainConfig(net="hybrid", width=12, code=8, steps=20, batch=16)


@pytest.fixture
def digits() -> data.Images:
    return data.load(TINY)


@pytest.mark.parametrize("name", baselines.METHODS)
def test_every_method_learns_with_all_its_parameters_and_samples_alike_each_time(name, digits):
    method = baselines.METHODS[name](TINY, SHAPE)
    before = [[p.clone() for p in net.parameters()] for net in method.nets]
    for step in range(1, 4):
        method.step(data.batch(digits, TINY, step), step, 20)
    for net, old in zip(method.nets, before, strict=True):
        for (key, new), start in zip(net.named_parameters(), old, strict=True):
            assert not torch.equal(new, start), f"{key} of {name} did not move"
    samples = method.sample(6)
    assert samples.shape == (6, *SHAPE)
    assert torch.equal(samples, method.sample(6))
    assert samples.std(0).mean() > 0


def test_methods_have_the_same_number_of_parameters_within_five_percent():
    shape = (1, 28, 28)
    sizes = {
        name: sum(parameters(net) for net in make(baselines.CONFIG, shape).nets)
        for name, make in baselines.METHODS.items()
    }
    for name, size in sizes.items():
        assert abs(size / sizes["ign"] - 1) < 0.05, (name, sizes)


def test_the_two_networks_of_ebgan_receive_the_gradient_of_their_own_loss():
    method = baselines.Ebgan(TINY, SHAPE)
    method.nets = [net.double() for net in method.nets]
    method.optimisers = []
    x = torch.rand(16, *SHAPE, dtype=torch.float64) * 2 - 1
    z = torch.randn(16, *SHAPE, dtype=torch.float64)
    method.draw = lambda n, step, purpose: z
    weights = Objective(rec=1.0, idem=0.7, tight=0.3)
    method.learn(x, 1, weights)
    found = [[p.grad.clone() for p in net.parameters()] for net in method.nets]

    critic, generator = method.nets
    for net in method.nets:
        net.zero_grad()
    h = generator(z, ("z",))
    own = distance(critic(x, ("x",)), x, "l2").mean() * weights.rec
    own = own - weights.tight * distance(critic(h.detach(), ("fz",)), h.detach(), "l2").mean()
    expected_critic = torch.autograd.grad(own, list(critic.parameters()))
    pull = weights.idem * distance(critic(h, ("fz",)), h, "l2").mean()
    expected_generator = torch.autograd.grad(pull, list(generator.parameters()))
    for got, wanted in zip(found, (expected_critic, expected_generator), strict=True):
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# ---- the public implementation ---------------------------------------------------------------------------


def test_a_folder_that_is_no_checkout_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no train.py: --peer names a checkout"):
        peer.Peer(tmp_path)


def checkout(folder: Path, program: str) -> peer.Peer:
    """A stand-in for the public implementation whose training is `program`."""
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "ign_mnist.yaml").write_text("seed: 0\n")
    (folder / "sample.py").write_text("raise SystemExit('no samples today')\n")
    (folder / "train.py").write_text(program)
    return peer.Peer(folder)


PROGRAM = """
import os, sys, time
words = dict(zip(sys.argv[1::1], sys.argv[2::1]))
out = words["-e"]
os.makedirs(out + "/ckpt")
open(out + "/output-now.log", "w").write("Start training...")
for step in range(10_000):
    time.sleep(0.05)
    place = f"{out}/ckpt/step{step:06d}"
    os.makedirs(place)
    open(place + "/model.pt", "w").write(words["--train.batch_size"])
    open(place + "/meta.pt", "w").write("done")
"""


def test_public_training_ends_with_the_first_checkpoint_after_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(peer, "importable", lambda module: True)
    monkeypatch.setattr(peer, "unpacked_mnist", lambda folder: folder)
    weights, steps = checkout(tmp_path / "peer", PROGRAM).train(tmp_path / "run", 0.4, seed=0, batch=64)
    assert weights.read_text() == "64"
    assert weights.parent.name == f"step{steps - 1:06d}"
    assert steps >= 3


def test_public_training_that_ends_by_itself_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(peer, "importable", lambda module: True)
    monkeypatch.setattr(peer, "unpacked_mnist", lambda folder: folder)
    with pytest.raises(UserError, match="ended by itself"):
        checkout(tmp_path / "peer", "raise SystemExit(3)").train(tmp_path / "run", 9.0, seed=0)


def test_public_sampling_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(peer, "importable", lambda module: True)
    with pytest.raises(UserError, match="could not sample: no samples today"):
        checkout(tmp_path / "peer", "").sample(tmp_path / "w.pt", 2, 1, 0, tmp_path / "out")


def test_what_the_public_implementation_imports_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(peer, "importable", lambda module: module != "omegaconf")
    with pytest.raises(UserError, match="omegaconf: install it by uv sync --group bench"):
        checkout(tmp_path / "peer", "")


def test_images_of_32_become_images_of_28_in_range():
    small = peer.to_28(torch.full((2, 1, 32, 32), 255, dtype=torch.uint8))
    assert small.shape == (2, 1, 28, 28)
    torch.testing.assert_close(small, torch.ones(2, 1, 28, 28))


def test_claims_and_benchmarks_that_need_a_checkout_ask_for_it(tmp_path, capsys, monkeypatch):
    from ign import bench, reproduce
    from ign.config import BenchConfig, ReproduceConfig

    with pytest.raises(UserError, match="name a checkout of it by --peer"):
        reproduce.reproduce(ReproduceConfig("mnist-quality"))
    with pytest.raises(UserError, match="name a checkout of it by --peer"):
        bench.bench(BenchConfig("peer"))
    with pytest.raises(UserError, match="--peer is for mnist-quality, not for resume"):
        reproduce.reproduce(ReproduceConfig("resume", peer=str(tmp_path)))
    monkeypatch.setattr(reproduce, "CLAIMS", {"mnist-quality": reproduce.CLAIMS["mnist-quality"]})
    assert reproduce.reproduce(ReproduceConfig("all")) == []
    assert "mnist-quality: left out" in capsys.readouterr().out


def test_a_step_with_bf16_and_its_arithmetic_are_timed_on_any_device():
    from ign import bench

    case = bench.Case(TrainConfig(width=8, code=3, batch=4, norm="none"), (1, 4, 4))
    run, operations = bench.gpu_step(case, "cpu", bf16=True, compiled=False)
    assert len(bench.synchronised(run, 5, "cpu")) == 5
    # Multiplications and additions of f's products on 4 images, forward; f is applied three times.
    products = 2 * 4 * (16 * 8 + 8 * 8 + 8 * 3) * 2
    assert operations == pytest.approx(products * 3 * 3, rel=0.15)  # backward: twice the forward, nearly
    assert bench.matrix_peak("cpu", 64) > 0


def test_the_gpu_benchmark_refuses_where_there_is_none(monkeypatch):
    from ign import bench
    from ign.config import BenchConfig

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a CUDA device"):
        bench.bench(BenchConfig("gpu"))


# ---- projection ------------------------------------------------------------------------------------------


def test_mcnemar_is_the_binomial_tail_of_the_images_that_changed():
    before = torch.tensor([1, 1, 0, 0, 0, 0, 0, 1], dtype=torch.bool)
    after = torch.tensor([1, 0, 1, 1, 1, 1, 1, 1], dtype=torch.bool)
    # Five gained, one lost: P(at least 5 of 6 heads).
    assert projection.mcnemar(before, after) == pytest.approx((math.comb(6, 5) + 1) / 2**6)
    assert projection.mcnemar(before, before) == 1.0


def test_examine_reports_every_corruption_before_and_after():
    net = Classifier(1, 28, 10).eval()
    judge = Judge(net, 0.5, torch.ones(64))
    x, labels = torch.rand(20, 1, 28, 28) * 2 - 1, torch.arange(20) % 10
    found = projection.examine(lambda y, k: x, x, labels, judge)
    names = set(projection.corruptions(x)) | {"clean"}
    assert {key.removeprefix("before_") for key in found if key.startswith("before_")} == names
    assert all(found[f"rms1_{name}"] == 0 for name in names)
    assert all(found[f"after3_{name}"] == found["before_clean"] for name in names)
    assert found["rms_before_noise_0.5"] == pytest.approx(0.5, rel=0.05)


def test_a_denoiser_learns_to_remove_its_own_corruption(digits):
    config = TrainConfig(steps=200, batch=32)
    method = type("Restorer", (projection.Restorer,), {"kind": "mask"})(config, SHAPE)
    x = digits.floats()[:200]
    y = projection.corrupt(x, "mask", 0.375)
    for step in range(1, 201):
        method.step(data.batch(digits, config, step), step, 200)
    assert (method.restore(y, 1) - x).square().mean() < 0.8 * (y - x).square().mean()


def test_a_dead_feature_of_the_judge_cannot_decide_a_score(digits, tmp_path, monkeypatch):
    from ign import classifier

    monkeypatch.setattr(classifier, "STEPS", {"small": (3, 16), "large": (3, 16)})
    original = classifier._fit

    def with_a_dead_unit(net, train):
        original(net, train)
        linear = net.body[-2]
        with torch.no_grad():
            linear.weight[0], linear.bias[0] = 0.0, -1.0  # silent on every image

    monkeypatch.setattr(classifier, "_fit", with_a_dead_unit)
    judge = classifier.judge(digits, data.load(TINY, "test"), tmp_path)
    assert torch.isinf(judge.spread[0])
    features = judge.features(digits.floats()[:5])
    assert (features[:, 0] == 0).all()
    assert torch.isfinite(features).all()
