"""The real commands at smoke size: train, resume, two processes, generate, project, evaluate, bad input."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ign import IGN
from ign.cli import main
from ign.config import TRAIN, TrainConfig
from ign.reproduce import compare
from ign.train import learning_rate, objective, train
from paperkit import UserError, images
from paperkit.run import RunOptions, checkpoints, read_metrics

SMOKE = TRAIN["smoke"][0]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """One smoke run that the tests of this file read."""
    out = tmp_path_factory.mktemp("ign") / "run"
    return train(SMOKE, RunOptions(out=str(out)), "smoke")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def said(capsys, *words: str) -> tuple[int, str]:
    """Exit code and stderr of the command."""
    code = main(list(words))
    return code, capsys.readouterr().err


# ---- train


def test_run_folder_is_whole(run):
    assert {path.name for path in run.iterdir()} == {
        "config.json", "manifest.json", "metrics.jsonl", "log.txt", "samples", "checkpoints", "report.html",
    }  # fmt: skip
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["state"] == "finished"
    assert manifest["data"] == "digits, 1,297"
    assert [row["step"] for row in read_metrics(run)] == [20, 40, 60]
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "00000000.png", "00000030.png", "00000060.png",
    ]  # fmt: skip
    assert [path.name for path in checkpoints(run)] == ["00000040", "00000060"]


def test_interrupted_run_ends_like_an_unbroken_one(run, monkeypatch):
    """A step that dies after the checkpoint of step 40: the kill -9 of `reproduce resume` in small."""
    import ign.train

    step, calls = ign.train.Shared.step, iter(range(1000))
    monkeypatch.setattr(
        ign.train.Shared,
        "step",
        lambda *words: step(*words) if next(calls) < 47 else (_ for _ in ()).throw(OSError("x")),
    )
    with pytest.raises(OSError, match="x"):
        train(SMOKE, RunOptions(out="broken"), "smoke")
    monkeypatch.setattr(ign.train.Shared, "step", step)
    assert json.loads(Path("broken/manifest.json").read_text())["state"] == "failed"
    assert main(["train", "--resume", "broken"]) == 0
    assert compare(run, Path("broken")) == {"weights": 0, "optimiser": 0, "metrics": 0}


def test_two_processes_give_the_curve_of_one(run):
    words = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    script = Path("script.py")
    script.write_text("import sys; from ign.cli import main; sys.exit(main())")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*words, str(script), "train", "--preset", "smoke", "--out", "two"], capture_output=True, text=True,
        env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = read_metrics(run), read_metrics(Path("two"))
    assert [row["step"] for row in two] == [row["step"] for row in one]
    for key in ("rec", "idem", "tight"):
        np.testing.assert_allclose([row[key] for row in two], [row[key] for row in one], rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", ["naive", "joint"])
def test_engines_train_alike(run, engine):
    out = train(replace(SMOKE, engine=engine, steps=20), RunOptions(out=engine))
    ours, theirs = read_metrics(out)[0], read_metrics(run)[0]
    assert ours["rec"] == pytest.approx(theirs["rec"], abs=1e-4)
    assert ours["idem"] == pytest.approx(theirs["idem"], abs=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"net": "dcgan", "width": 4, "code": 8, "init": "dcgan"},
        {"net": "hybrid", "width": 4},
        {"norm": "group"},
        {"norm": "none", "metric": "l1"},
        {"noise": "fft"},
        {"noise": "fft_hermitian", "clamp": 1.5, "clamp_gradient": True},
        {"clamp": 0.5, "reference": "z", "ema": 0.0, "flip": True},
        {"data": "digits", "limit": 100, "size": 16},
    ],
)
def test_every_part_runs_and_samples(change):
    config = replace(SMOKE, steps=3, batch=8, log_every=1, sample_every=3, save_every=3, **change)
    ign = IGN.load(train(config, RunOptions(out="run")))
    assert torch.isfinite(ign.sample(4, k=2)).all()


def test_colour_folder_is_data(tmp_path):
    draw = torch.Generator().manual_seed(0)
    for index in range(12):
        picture = torch.randint(0, 256, (3, 20, 24), generator=draw, dtype=torch.uint8)
        images.write(tmp_path / "faces" / f"{index}.png", picture)
    config = replace(SMOKE, data=str(tmp_path / "faces"), size=16, steps=2, batch=4, log_every=1)
    assert IGN.load(train(config, RunOptions(out="run"))).shape == (3, 16, 16)


def test_schedules():
    config = TrainConfig(tight=0.4, tight_start=0.1, tight_ramp=100, lr=1e-3, lr_final=1e-4, steps=200)
    assert objective(config, 50).tight == pytest.approx(0.25)
    assert objective(config, 100).tight == objective(config, 150).tight == 0.4
    assert learning_rate(config, 100) == 1e-3
    assert learning_rate(config, 150) == pytest.approx(5.5e-4)
    assert learning_rate(config, 200) == pytest.approx(1e-4)
    assert learning_rate(TrainConfig(), 5999) == 1e-3


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(capsys, monkeypatch):
    from ign import data

    batch = data.batch
    monkeypatch.setattr(
        data, "batch", lambda a, b, step: batch(a, b, step) * (float("nan") if step == 25 else 1)
    )
    code, error = said(capsys, "train", "--preset", "smoke", "--out", "bad")
    assert code == 2
    assert "step 25" in error
    assert error.count("\n") == 1
    assert [path.name for path in checkpoints(Path("bad"))] == ["00000020"]
    assert json.loads(Path("bad/manifest.json").read_text())["state"] == "failed"
    assert torch.isfinite(IGN.load("bad").sample(4)).all()


def test_dry_run_touches_nothing(capsys):
    assert main(["train", "--preset", "small", "-n"]) == 0
    out = capsys.readouterr().out
    for word in ("174,672 parameters", "digits, 1,297", "cpu, fp32", "runs/ign/", '"tight": 0.5'):
        assert word in out
    assert list(Path().iterdir()) == []


# ---- a trained network


def test_samples_are_fixed_by_the_seed_in_a_fresh_process(run):
    here = IGN.load(run).sample(4, k=2, seed=3)
    code = "import sys, torch, ign; torch.save(ign.IGN.load(sys.argv[1]).sample(4, k=2, seed=3), 's.pt')"
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)
    assert torch.equal(torch.load("s.pt", weights_only=True), here)


def test_a_sample_does_not_depend_on_its_neighbours(run):
    ign = IGN.load(run)
    torch.testing.assert_close(ign.sample(8, seed=1)[:2], ign.apply(ign.source(8, 1)[:2], 1, "z"))


def test_drift_is_the_distance_to_the_projection(run):
    ign = IGN.load(run)
    x = torch.rand(5, 1, 8, 8) * 2 - 1
    torch.testing.assert_close(ign.drift(x), (ign.project(x) - x).square().flatten(1).mean(1))
    torch.testing.assert_close(ign.project(x, 2), ign.apply(ign.project(x), 1, "fz"))


def test_generate_writes_pictures_and_arrays(run):
    assert main(["generate", "--run", str(run), "--n", "5", "--k", "2", "--seed", "1"]) == 0
    saved = np.load("generated/samples.npz")
    assert saved["samples"].shape == (5, 1, 8, 8)
    expected = images.to_uint8(IGN.load(run).sample(5, 2, 1)).numpy()
    assert np.array_equal(saved["samples"], expected)
    assert images.read("generated/grid.png").ndim == images.read("generated/rows.png").ndim == 3


def test_project_takes_a_file_or_a_folder(run):
    picture = torch.randint(0, 256, (3, 10, 12), dtype=torch.uint8)
    images.write("in/a.png", picture)
    images.write("in/b.png", picture)
    assert main(["project", "in/a.png", "--run", str(run), "--out", "one"]) == 0
    assert main(["project", "in", "--run", str(run), "--out", "two"]) == 0
    assert {path.name for path in Path("two").iterdir()} == {"a.png", "b.png", "rows.png"}
    assert torch.equal(images.read("one/a.png", "grey"), images.read("two/a.png", "grey"))
    assert images.read("one/a.png", "grey").shape == (1, 8, 8)


def test_evaluate_prints_and_keeps_figures(run, capsys, monkeypatch):
    monkeypatch.setattr("ign.classifier.STEPS", {"small": (40, 32), "large": (40, 32)})
    assert main(["evaluate", "--run", str(run), "--n", "60", "--k", "2"]) == 0
    found = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").unlink()
    assert set(found) >= {"k1", "k2", "real", "idempotence", "judge_accuracy"}
    assert 0 <= found["k1"]["readable"] <= 1
    assert "readable" in capsys.readouterr().out


def test_report_is_written(run, capsys):
    assert main(["report", "--run", str(run)]) == 0
    assert "Idempotent Generative Network" in (run / "report.html").read_text()


# ---- bad input: one line, exit code 2, nothing written


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("trian",), "did you mean train"),
        (("train", "--preset", "smal"), "did you mean small"),
        (("train", "--stpes", "3"), "did you mean --steps"),
        (("train", "--steps", "0"), "at least 1"),
        (("train", "--batch", "-4"), "at least 1"),
        (("train", "--size", "-1"), "negative"),
        (("train", "--lr", "0"), "positive"),
        (("train", "--ema", "1"), "[0, 1)"),
        (("train", "--noise", "pink"), "--noise"),
        (("train", "--device", "cuda:99"), "--device"),
        (("train", "--data", "MNSIT"), "MNIST"),
        (("train", "--data", "MNIST"), "images-idx3"),
        (("train", "--net", "dcgan", "--size", "40"), "28, 32"),
        (("train", "--resume", "nowhere"), "nowhere"),
        (("generate", "--n", "0"), "at least 1"),
        (("generate", "--run", "nowhere"), "nowhere"),
        (("generate",), "no run"),
        (("project", "nothing.png"), "nothing.png"),
        (("evaluate", "--n", "3"), "at least 50"),
        (("reproduce", "resum"), "did you mean resume"),
        (("reproduce", "resume", "--seeds", "-1"), "negative"),
    ],
)
def test_bad_input_is_one_line(capsys, monkeypatch, tmp_path, run, words, expected):
    monkeypatch.setenv("PAPERKIT_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    if words[0] == "project":
        words = (*words, "--run", str(run))
    code, error = said(capsys, *words)
    assert code == 2
    assert expected in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_weights_of_another_configuration_are_refused(run, tmp_path, capsys):
    import shutil

    shutil.copytree(run, "other")
    config = json.loads(Path("other/config.json").read_text())
    Path("other/config.json").write_text(json.dumps({**config, "width": 32}))
    code, error = said(capsys, "generate", "--run", "other")
    assert code == 2
    assert "shape" in error


def test_pictures_that_do_not_fit_the_network(run):
    with pytest.raises(UserError, match="do not fit"):
        IGN.load(run).project(torch.zeros(1, 1, 9, 9))
