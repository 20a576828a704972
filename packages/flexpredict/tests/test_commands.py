"""The real commands: train, resume, two processes, evaluate, report, bad input; augmentation and data."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flexpredict import augment, bench, claims, data, diagnostics, fsdp, probes, toy
from flexpredict import train as train_module
from flexpredict.cli import main
from flexpredict.config import DIGITS, TRAIN, NetConfig, PositionConfig
from flexpredict.probes import Split
from flexpredict.step import build, first_state, gradient, groups, hidden
from flexpredict.train import stuck, train
from paperkit import UserError, images, results
from paperkit.device import choose
from paperkit.run import RunOptions, checkpoints, load_checkpoint, read_metrics

SMOKE = replace(
    TRAIN["smoke"][0], steps=30, log_every=10, probe_every=30, save_every=10,
    net=NetConfig(2, 16, 1, 2, 8, 1, 2),
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """One short run that the tests of this file read."""
    return train(SMOKE, RunOptions(out=str(tmp_path_factory.mktemp("flex") / "run")), "smoke")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- train


def test_run_folder_is_whole(run):
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["state"] == "finished"
    assert manifest["data"] == "digits, 300 of 1,297"
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == [10, 20, 30]
    wanted = {"loss", "target_variance", "knn", "rankme", "nsr", "decodable", "radius", "norm_noise"}
    assert wanted <= rows[-1].keys()
    assert [path.name for path in checkpoints(run)] == ["00000020", "00000030"]
    log, page = (run / "log.txt").read_text(), (run / "report.html").read_text()
    for words in ("trained", "random weights", "raw pixels", "target variance"):
        assert words in log
        assert words in page
    assert images.read(run / "samples" / "00000030.png").ndim == 3


def test_killed_run_ends_in_the_same_weights(run, monkeypatch):
    """A step that dies after the checkpoint of step 10, then --resume."""
    step, calls = train_module.hidden, iter(range(1000))
    monkeypatch.setattr(
        train_module,
        "hidden",
        lambda *words: step(*words) if next(calls) < 14 else (_ for _ in ()).throw(OSError("x")),
    )
    with pytest.raises(OSError, match="x"):
        train(SMOKE, RunOptions(out="broken"), "smoke")
    monkeypatch.setattr(train_module, "hidden", step)
    assert main(["train", "--resume", "broken"]) == 0
    (ours, state), (theirs, other) = (
        load_checkpoint(checkpoints(folder)[-1]) for folder in (Path("broken"), run)
    )
    for group in ("learner", "average", "scale"):
        assert all(torch.equal(ours[group][key], theirs[group][key]) for key in theirs[group])
    for number, rows in other["optimiser"]["state"].items():
        assert all(torch.equal(state["optimiser"]["state"][number][key], rows[key]) for key in rows)
    assert read_metrics(Path("broken")) == read_metrics(run)


TWO = """
import os, sys
from pathlib import Path
from flexpredict.claims import write_gradient
from flexpredict.cli import main
words = sys.argv[1:]
failed = main([*words, "--out", "two"])
os.environ["ACCELERATE_USE_FSDP"] = "true"
failed = failed or main([*words, "--out", "shared"])
write_gradient(0, Path("gradient.json"))
sys.exit(failed)
"""
"""What each of two processes does: the command, the command with FSDP, its half of a gradient."""
WORDS = [
    "train",
    "--preset",
    "smoke",
    "--steps",
    "4",
    "--warmup",
    "1",
    "--net.width",
    "16",
    "--net.depth",
    "1",
]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The folder in which two processes have run; they are started once, as that takes most of the time."""
    place = tmp_path_factory.mktemp("two")
    (place / "script.py").write_text(TWO)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "script.py", *WORDS], capture_output=True, text=True, cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return place


def test_two_processes_give_the_gradient_of_one(two, monkeypatch):
    claims.write_gradient(0, Path("one.json"))
    files = {1: Path("one.json"), 2: two / "gradient.json"}
    monkeypatch.setattr(claims, "_gradient", lambda count, seed, out: json.loads(files[count].read_text()))
    found = claims.world_size(1)
    assert max(found["ours"]) <= 1e-5, found["details"]
    assert found["ours"] != [0, 0, 0]  # not the same file twice


def test_two_processes_train_by_the_real_command(two):
    assert main([*WORDS, "--out", "one"]) == 0
    alone, both, parts = (read_metrics(folder)[-1] for folder in (Path("one"), two / "two", two / "shared"))
    assert both["loss"] == pytest.approx(alone["loss"], rel=1e-3)
    # Shared out (FSDP), then saved whole: the same figures, and the run goes on in one process.
    assert "FSDP" in (two / "shared" / "log.txt").read_text()
    assert parts == pytest.approx(both, rel=1e-3)
    (ours, state), (theirs, other) = (load_checkpoint(checkpoints(two / n)[-1]) for n in ("shared", "two"))
    for group in ("learner", "average"):
        for key, value in theirs[group].items():
            torch.testing.assert_close(ours[group][key], value, rtol=1e-3, atol=1e-5)
    moments = [each["optimiser"]["state"][0]["exp_avg"] for each in (state, other)]
    torch.testing.assert_close(*moments, rtol=1e-2, atol=1e-6)


def test_launch_commands_of_the_readme_are_accelerates_and_ours(monkeypatch):
    """Accelerate's own parser reads them, its variables ask for FSDP where the README says so."""
    accelerate = pytest.importorskip("accelerate.commands.launch")
    from accelerate.utils.launch import prepare_multi_gpu_env

    said = (Path(__file__).parents[1] / "README.md").read_text()
    lines = re.findall(r"^accelerate launch ([^#\n]*)", said, re.MULTILINE)
    assert any("--use_fsdp" in line for line in lines)
    for line in lines:
        parsed = accelerate.launch_command_parser().parse_args(line.split())
        parsed, *_ = accelerate._validate_launch_command(parsed)
        assert (parsed.module, parsed.training_script, parsed.num_processes) == (
            True,
            "flexpredict.launch",
            8,
        )
        given = prepare_multi_gpu_env(parsed)
        monkeypatch.setenv("ACCELERATE_USE_FSDP", given.get("ACCELERATE_USE_FSDP", ""))
        assert fsdp.wanted() == ("--use_fsdp" in line)
        assert main([*parsed.training_script_args, "--dry-run"]) == 0


@pytest.mark.parametrize("source", ["untied", "fixed", "none"])
def test_other_positions_train(source):
    config = replace(SMOKE, steps=2, warmup=1, position=PositionConfig(source, 0.1, "std"))
    folder = train(config, RunOptions(out=source))
    assert read_metrics(folder)[-1]["loss"] > 0


def test_masked_autoencoder_trains_with_stochastic_positions():
    masks = replace(SMOKE.masks, sampler="random", blocks=1, context=4)
    config = replace(SMOKE, objective="pixels", ema=(0.0, 0.0), masks=masks)
    folder = train(config, RunOptions(out="mae"))
    rows = read_metrics(folder)
    assert rows[-1]["loss"] < rows[0]["loss"]
    weights, _ = load_checkpoint(checkpoints(folder)[-1])
    for key, value in weights["average"].items():
        torch.testing.assert_close(value, weights["learner"][f"encoder.{key}"])


def test_folders_with_a_broken_image_and_an_empty_class(capsys):
    for split, n in (("train", 6), ("test", 3)):
        for label in ("a", "b"):
            for i in range(n):
                images.write(Path("set", split, label, f"{i}.png"), torch.rand(3, 20, 24) * 2 - 1)
    Path("set/train/a/2.png").write_bytes(b"no image")
    Path("set/train/c").mkdir()
    words = "train --data set --recipe stop --size 8 --steps 3 --warmup 1 --batch 12"
    words = [*words.split(), "--net.width", "16", "--net.depth", "1"]
    assert main([*words, "--out", "crops"]) == 2
    assert "holds no image" in capsys.readouterr().err
    Path("set/train/c").rmdir()
    assert main([*words, "--out", "crops"]) == 0
    said = capsys.readouterr().out
    assert "2.png" in said
    assert "broken image 1" in said
    assert "random weights" in said
    assert main([*words, "--recipe", "none", "--out", "memory"]) == 0
    assert "broken image 1 of 1" in capsys.readouterr().out
    assert main([*words, "--recipe", "none", "--strict", "--out", "strict"]) == 2
    assert "2.png" in capsys.readouterr().err


def test_gradient_in_parts_is_the_gradient():
    """Accumulated over four parts, with noise on all tokens: loss, variance, every gradient."""
    found = []
    for parts in (1, 4):
        position = replace(SMOKE.position, tokens="both")
        config = replace(SMOKE, accumulate=parts, position=position)
        source = data.open_source(config)
        learner, average = first_state(config, source.shape)
        x = next(data.batches(source, config, 0))
        told = gradient(config, learner, average, x, *hidden(config, learner, 1), choose("cpu", "fp32"))
        found.append([*told, *(p.grad for p in learner.parameters() if p.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_a_projection_is_spared_decay_where_asked():
    source = data.open_source(SMOKE)
    for spare in (True, False):
        config = replace(SMOKE, decay_projection=not spare)
        learner = build(config, source.shape)
        plain = groups(learner, config)[1]["params"]
        a = learner.predictor.predictor_embed.weight
        assert any(p is a for p in plain) == spare
        assert any(p is learner.predictor.predictor_embed.bias for p in plain)
        assert not any(p is learner.predictor.mask_token for p in plain)  # as in I-JEPA, where it decays


def test_a_stuck_run_is_told_apart():
    assert "positions" in stuck(DIGITS, 2000, 0.1)
    assert stuck(DIGITS, 1000, 0.1) == ""
    assert stuck(DIGITS, 2000, 0.5) == ""


def test_dry_run_names_data_and_network(capsys):
    assert main(["train", "-n"]) == 0
    said = capsys.readouterr().out
    assert "digits, 1,297" in said
    assert "4x4 patches" in said
    assert not Path("runs").exists()


def test_help_imports_no_torch():
    code = "import sys; from flexpredict.cli import main; main(['train', '--help']); "
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- benchmarks


def test_benchmarks_write_records_at_a_small_size(monkeypatch):
    """Every one starts and tells its sides; the sizes are a test's, the other collator is a stand-in."""
    net = NetConfig(16, 16, 1, 2, 8, 1, 2, "official")
    monkeypatch.setattr(bench, "STOP_VITB16", replace(bench.STOP_VITB16, net=net))
    collator = SimpleNamespace(MaskCollator=lambda **_: lambda images: time.sleep(0.01))
    monkeypatch.setattr(bench, "_peer", lambda folder, name: collator)
    words = ["--batch", "2", "--repeats", "5", "--threads", "1", "--out", "."]
    for name, more in (("step", []), ("overhead", []), ("loader", []), ("masks", ["--peer", "nowhere"])):
        assert main(["bench", name, *words, *more]) == 0
        record = json.loads(Path(f"bench-{name}.json").read_text())
        assert results.check(record) == []
        assert set(record["details"]["images_per_s"]) >= {"ours"}
        assert ("against" in record) == (name in ("overhead", "masks"))
        assert len(record["ours"]["values"]) == 5
        assert record["command"].endswith("--peer CHECKOUT") == (name == "masks")
    assert "stochastic" in json.loads(Path("bench-step.json").read_text())["details"]["images_per_s"]


# ---- bad input


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("train", "--net.width", "30"), "try 32"),
        (("train", "--net.width", "64", "--net.heads", "5"), "5 heads"),
        (("train", "--net.patch", "3"), "do not divide into patches of 3"),
        (("train", "--size", "9"), "try 8"),
        (("train", "--masks.context", "13"), "would fit"),
        (("train", "--masks.sampler", "official"), "--masks.least"),
        (("train", "--masks.scale", "0.5", "0.2"), "in order"),
        (("train", "--position.mode", "official", "--position.source", "fixed"), "use mode paper"),
        (("train", "--position.source", "coordinate"), "give std or variance"),
        (("train", "--position.noise", "-1"), "negative"),
        (("train", "--warmup", "9999"), "longer than --steps"),
        (("train", "--ema", "0.9", "1.1"), "in [0, 1]"),
        (("train", "--data", "nothing"), "no data set"),
        (("train", "--batch", "0"), "--batch"),
        (("train", "--position.mode", "official", "--position.tokens", "both"), "use mode paper"),
        (("train", "--accumulate", "0"), "--accumulate"),
        (("evaluate", "latest", "--probe", "davis"), "no run"),
        (("evaluate", "nothing"), "there is no file or run folder"),
        (("evaluate", "latest"), "no run"),
        (("evaluate", "x", "--share", "0"), "--share"),
        (("reproduce", "zero-nose"), "did you mean zero-noise"),
        (("bench", "setp"), "did you mean step"),
        (("trian",), "did you mean train"),
    ],
)
def test_bad_words_are_one_line(capsys, words, text):
    assert main(list(words)) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1
    assert not Path("runs").exists()


def test_a_batch_that_does_not_divide_into_parts(capsys):
    words = ["train", "--preset", "smoke", "--accumulate", "7", "--out", "parts", "--net.width", "16"]
    assert main(words) == 2
    assert "choose a divisor of 64" in capsys.readouterr().err
    assert not Path("parts").exists()


def test_ridge_is_the_normal_equations():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 3, generator=generator), torch.arange(60) % 3
    x_test = torch.randn(200, 3, generator=generator)
    a = (x.double() - x.double().mean(0)) / x.double().std(0)
    wanted = torch.nn.functional.one_hot(y).double()
    weights = torch.linalg.lstsq(
        torch.cat([a, 0.6**0.5 * torch.eye(3).double()]),
        torch.cat([wanted - 1 / 3, torch.zeros(3, 3).double()]),
    ).solution
    b = (x_test.double() - x.double().mean(0)) / x.double().std(0)
    guess = (b @ weights + 1 / 3).argmax(1)
    assert probes.ridge(Split(x, y, x_test, guess)) == 100


def test_a_batch_that_processes_cannot_share(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="multiple of 3"):
        next(data.batches(data.open_source(SMOKE), replace(SMOKE, batch=64), 0))


# ---- evaluate, report


def test_evaluate_keeps_features_and_writes_figures(run, capsys):
    assert main(["evaluate", str(run), "--epochs", "2", "--limit", "200", "--share", "0.3"]) == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert found["knn"] > 10
    assert len(found["linear"]["validation"]) == 10  # one block: no "last four"
    best = max(found["linear"]["validation"], key=found["linear"]["validation"].get)
    assert found["linear"]["best"] == best
    assert found["linear"]["test"] == found["linear"]["every_test"][best]
    kept = list((run / "features").glob("*.safetensors"))
    assert len(kept) == 2
    times = [path.stat().st_mtime_ns for path in kept]
    assert main(["evaluate", str(run), "--probe", "knn", "--limit", "200", "--out", "again.json"]) == 0
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert json.loads(Path("again.json").read_text())["knn"] == found["knn"]


def test_evaluate_refuses_sets_without_labels(run, capsys):
    images.write(Path("flat/train/a.png"), torch.rand(1, 8, 8))
    images.write(Path("flat/test/a.png"), torch.rand(1, 8, 8))
    assert main(["evaluate", str(run), "--data", "flat"]) == 2
    assert "labels" in capsys.readouterr().err


def test_report_is_written_again(run, capsys):
    assert main(["report", "--run", str(run)]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


# ---- probes


def test_nearest_neighbours_vote_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
    asked = torch.tensor([[2.0, 0.4], [-0.1, 3.0]])
    y = torch.tensor([0, 1, 1, 2])
    weights = torch.zeros(2, 3)
    for row in range(2):
        near = torch.nn.functional.cosine_similarity(asked[row : row + 1], x)
        for i in near.argsort(descending=True)[:3].tolist():
            weights[row, y[i]] += torch.exp(near[i] / 0.07)
    assert probes.knn(Split(x, y, asked, weights.argmax(1)), k=3) == 100


def test_probes_separate_what_is_separable():
    centre = torch.eye(4)[torch.arange(200) % 4] * 6
    x, y = centre + torch.randn(200, 4, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 4
    split = Split(x[:120], y[:120], x[120:], y[120:])
    assert probes.knn(split) > 95
    assert probes.logistic(split) > 95
    assert probes.ridge(split) > 95
    assert probes.logistic(split, 0.0025, False, True) > 90
    found = probes.linear_heads(x[None, :120], y[:120], x[None, 120:], y[120:], epochs=8, batch=32)
    assert found.test > 95
    assert sorted(probes.few(y, 0.1, 0).tolist()) == probes.few(y, 0.1, 0).tolist()
    assert torch.bincount(y[probes.few(y, 0.1, 0)]).tolist() == [5, 5, 5, 5]


# ---- data and augmentation


def test_crops_lie_inside_and_keep_their_area():
    for seed in range(200):
        draw = torch.rand(32, generator=torch.Generator().manual_seed(seed)).tolist()
        left, top, right, bottom = augment.crop_box((300, 200), draw)
        assert 0 <= left < right <= 300
        assert 0 <= top < bottom <= 200
        assert 0.29 < (right - left) * (bottom - top) / 60_000 <= 1
        assert 0.7 < (right - left) / (bottom - top) < 1.4
    assert augment.crop_box((100, 10), [0.99] * 32) == (43, 0, 56, 10)


def test_augmentation_depends_on_its_address_alone():
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    one = augment.augmented(image, "stop", 16, 1, 2, 3)
    torch.rand(3)
    assert torch.equal(augment.augmented(image, "stop", 16, 1, 2, 3), one)
    assert one.shape == (3, 16, 16)
    assert not torch.equal(augment.augmented(image, "stop", 16, 1, 2, 4), one)


def test_recipe_stop_greys_and_mirrors_as_often_as_it_should():
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[0, :, :16] = 255
    made = torch.stack([augment.augmented(image, "stop", 8, 0, 0, row) for row in range(300)]).float()
    grey = (made[:, 0] == made[:, 1]).all(-1).all(-1)
    assert 0.12 < float(grey.float().mean()) < 0.28
    plain = torch.stack([augment.augmented(image, "ijepa", 8, 0, 0, row) for row in range(50)]).float()
    assert float((plain[:, 0].mean(1)[:, 0] >= plain[:, 0].mean(1)[:, -1]).float().mean()) == 1
    mirrored = made[:, 0].mean(1)[:, 0] < made[:, 0].mean(1)[:, -1]
    assert 0.35 < float(mirrored.float().mean()) < 0.65


def test_streamed_and_resumed_crops_are_the_same():
    for i in range(8):
        images.write(Path("flat", f"{i}.png"), torch.rand(3, 12, 12) * 2 - 1)
    config = replace(SMOKE, data="flat", recipe="ijepa", size=8, batch=4, limit=0)
    source = data.open_source(config)
    stream = data.batches(source, config, 0)
    first = [next(stream) for _ in range(5)]
    assert torch.equal(next(data.batches(source, config, 3)), first[3])
    two = next(data.batches(source, replace(config, workers=1), 3))
    assert torch.equal(two, first[3])


def test_pixels_are_standardised():
    source = data.open_source(replace(DIGITS, limit=0))
    x = source.scale(source.memory.pixels)
    assert float(x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(x.std()) == pytest.approx(1, abs=1e-3)


# ---- diagnostics and the toy


def test_decoding_gets_worse_with_noise_and_radius_larger():
    learner = build(DIGITS, (1, 8, 8))
    found = []
    for std in (0.01, 1.0, 8.0):
        learner.predictor.position.std = std
        found.append(diagnostics.decode(learner.predictor))
    assert found[0].accuracy == 1
    assert found[0].radius == pytest.approx(0, abs=1e-6)
    assert found[0].accuracy >= found[1].accuracy > found[2].accuracy
    assert found[0].radius < found[1].radius < found[2].radius
    learner.predictor.position.source = "none"
    assert diagnostics.decode(learner.predictor) is None


def test_uncertainty_is_zero_at_the_context_and_without_noise():
    learner = build(DIGITS, (1, 8, 8))
    found = diagnostics.uncertainty(learner, torch.randn(3, 1, 8, 8), DIGITS.masks)
    assert ((found == 0).sum(1) == 8).all()
    learner.predictor.position.std = 0.0
    still = diagnostics.uncertainty(learner, torch.randn(3, 1, 8, 8), DIGITS.masks)
    assert float(still.max()) < 1e-12


def test_toys_seeds_do_not_touch():
    two, three = (toy.train(toy.ARMS["tied 0.5"], seeds, 8) for seeds in (2, 3))
    assert two.ratio == pytest.approx(three.ratio[:2], rel=1e-5)
    assert two.loss == pytest.approx(three.loss[:2], rel=1e-5)
    untied = toy.train(toy.ARMS["untied 0.25"], 2, 250)
    assert max(untied.ratio) < 1
