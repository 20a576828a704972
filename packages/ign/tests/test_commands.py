"""The real commands at smoke size: train, resume, two processes, generate, project, evaluate, bad input."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ign import IGN, data, project
from ign.cli import main
from ign.config import TRAIN, TrainConfig
from ign.corrupt import STRENGTH, corrupt
from ign.explore import breadth, ink, slant
from ign.method import Objective
from ign.reproduce import compare
from ign.train import learning_rate, objective, train
from paperkit import UserError, images
from paperkit.run import RunOptions, checkpoints, load_checkpoint, read_metrics

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
    # TensorBoard's folder is there where TensorBoard is installed.
    assert {path.name for path in run.iterdir()} - {"tensorboard"} == {
        "config.json", "manifest.json", "metrics.jsonl", "log.txt", "samples", "checkpoints", "report.html",
    }  # fmt: skip
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["state"] == "finished"
    assert manifest["data"] == "digits, 1,297"
    assert [row["step"] for row in read_metrics(run)] == [20, 30, 40, 60]
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
    """By torchrun: `accelerate launch` starts one process only where there is neither a GPU nor MPI."""
    script = Path("script.py")
    script.write_text(
        "import os, sys; from pathlib import Path; from ign.cli import main\n"
        "Path('rank' + os.environ['RANK'] + 'of' + os.environ['WORLD_SIZE']).touch()\n"
        "sys.exit(main())"
    )
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
    ]
    done = subprocess.run(
        [*words, "train", "--preset", "smoke", "--out", "two"], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in Path().glob("rank*")} == {"rank0of2", "rank1of2"}
    assert done.stdout.count("60/60") == 1, "one process speaks for both"
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
        {"net": "unet", "width": 4, "dropout": 0.1, "jitter": 0.15},
        {"alternate": True, "idem_ramp": 2, "jitter": 0.15, "jitter_target": "clean"},
        {"statistics": "common", "ema": 0.0},
        {"statistics": "common", "engine": "naive", "routing": "idem_to_outer"},
        {"engine": "naive", "routing": "tight_to_inner", "norm": "group", "dropout": 0.1},
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
    ramped = TrainConfig(idem=20.0, idem_ramp=50)
    assert [objective(ramped, step).idem for step in (1, 25, 50, 60)] == [0.4, 10.0, 20.0, 20.0]


def test_presets_of_the_paper():
    listing, appendix = objective(TRAIN["listing"][0], 1), objective(TRAIN["appendix"][0], 1)
    assert listing == Objective(1, 1, 0.1, "l2", 0.0)
    assert appendix == Objective(20, 20, 2.5, "l1", 1.5, "x", True)
    assert appendix == objective(TRAIN["paper"][0], 1)
    assert (TRAIN["listing"][0].noise, TRAIN["appendix"][0].noise) == ("gaussian", "fft")


def test_noise_on_training_images():
    config = replace(SMOKE, batch=500, jitter=0.15)
    x = torch.zeros(500, 1, 8, 8)
    noisy = data.jitter(x, config, 3)
    assert float(noisy.std()) == pytest.approx(0.15, rel=0.02)
    assert torch.equal(noisy, data.jitter(x, config, 3))
    assert not torch.equal(noisy, data.jitter(x, config, 4))
    assert data.jitter(torch.ones_like(x), config, 3).max() == 1
    assert data.jitter(x, replace(SMOKE, batch=500), 3) is x


def test_common_statistics_are_kept_as_training_left_them():
    """In the checkpoint: the trained network's own statistics, one set, also beside averaged weights."""
    config = replace(SMOKE, steps=5, statistics="common")
    weights, _ = load_checkpoint(checkpoints(train(config, RunOptions(out="run")))[-1])
    names = [name for name in weights["net"] if name.endswith((".mean", ".var"))]
    assert names
    for name in names:
        assert torch.equal(weights["net"][name], weights["average"][name])
        assert not torch.equal(weights["net"][name][0], weights["net"][name][1])  # the others stay untouched
    ign = IGN.load("run")
    z = ign.source(6)
    torch.testing.assert_close(ign.apply(z, 1, "z"), ign.apply(z, 1, "x"))


def test_dropout_resumes_as_if_unbroken():
    config = replace(SMOKE, steps=12, save_every=6, sample_every=6, log_every=1, dropout=0.2)
    whole = train(config, RunOptions(out="whole"))
    shutil.copytree(whole, "broken")
    shutil.rmtree("broken/checkpoints/00000012")
    manifest = json.loads(Path("broken/manifest.json").read_text())
    Path("broken/manifest.json").write_text(json.dumps({**manifest, "state": "failed"}))
    train(config, RunOptions(resume="broken"))
    assert compare(whole, Path("broken")) == {"weights": 0, "optimiser": 0, "metrics": 0}


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(capsys, monkeypatch):
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
    torch.testing.assert_close(ign.project(x, 2), ign.apply(ign.project(x), 1, "x"))


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


def test_paths_between_samples(run):
    ign = IGN.load(run)
    paths = ign.interpolate(3, 5, seed=2)
    assert paths.shape == (3, 5, 1, 8, 8)
    ends = ign.sample(6, seed=2)
    torch.testing.assert_close(paths[:, 0], ends[:3])
    torch.testing.assert_close(paths[:, -1], ends[3:])
    with pytest.raises(UserError, match="at least 2"):
        ign.interpolate(3, 1)
    assert main(["interpolate", "--run", str(run), "--n", "2", "--count", "3"]) == 0
    for name in ("linear", "spherical"):
        assert images.read(f"interpolated/{name}.png").shape == (3, 2 * 34 + 2, 3 * 34 + 2)


def test_an_attribute_is_a_direction_that_raises_it(run):
    ign = IGN.load(run)
    direction = ign.attribute(ink, n=800)
    assert float(direction.norm()) == pytest.approx(1.0, abs=1e-5)
    white = ign.white(100, seed=5)
    low, high = (ink(ign.vary(white, direction, strength)) for strength in (-3.0, 3.0))
    assert float((high > low).float().mean()) > 0.8
    torch.testing.assert_close(ign.vary(white, direction, 0.0), ign.decode(white))
    with pytest.raises(UserError, match="alike"):
        ign.attribute(lambda x: torch.zeros(len(x)), n=20)


def test_measures_of_attributes():
    stroke = torch.full((1, 1, 9, 9), -1.0)
    right, left, thick = stroke.clone(), stroke.clone(), stroke.clone()
    for row in range(9):
        right[..., row, 8 - row] = left[..., row, row] = 1
    thick[..., 3:6] = 1
    stroke[..., 4] = 1
    assert ink(thick) > ink(stroke)
    assert float(slant(right)) == pytest.approx(1.0, abs=1e-3)
    assert float(slant(left)) == pytest.approx(-1.0, abs=1e-3)
    assert float(slant(stroke)) == pytest.approx(0.0, abs=1e-3)
    assert float(breadth(stroke)) < 0.01 < float(breadth(thick)) < float(breadth(right))


@pytest.mark.parametrize("attribute", ["ink", "7-1"])
def test_arithmetic_draws(run, attribute, capsys, monkeypatch):
    monkeypatch.setattr("ign.classifier.STEPS", {"small": (20, 32), "large": (20, 32)})
    words = ["--attribute", attribute, "--samples", "60", "--n", "4"]
    assert main(["arithmetic", "--run", str(run), *words]) == 0
    assert "the right way in" in capsys.readouterr().out
    assert images.read("arithmetic/arithmetic.png").ndim == 3


@pytest.mark.parametrize("corruption", ["noise", "sketch", "mask", "patches", "blur"])
def test_project_corrupts_held_out_images(run, corruption, capsys):
    assert main(["project", "--run", str(run), "--corrupt", corruption, "--n", "5"]) == 0
    assert [path.name for path in Path("projected").iterdir()] == ["rows.png"]
    assert f"{corruption} {STRENGTH[corruption]:g}: " in capsys.readouterr().out


def test_project_corrupts_files(run):
    images.write("in/a.png", torch.full((1, 8, 8), 0.0))
    words = ["project", "in", "--run", str(run), "--corrupt", "noise", "--strength", "0.5", "--seed", "3"]
    assert main(words) == 0
    x = corrupt(images.to_float(images.read("in/a.png", "grey"))[None], "noise", 0.5, 3)
    expected = images.to_uint8(IGN.load(run).project(x))[0]
    assert torch.equal(images.read("projected/a.png", "grey"), expected)


def test_drift_ranks_images(run, capsys):
    held = project.held_out(str(run), 0)
    images.write("in/digit.png", held[0])
    images.write("in/noise.png", torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    images.write("other/digit.png", held[1])
    assert main(["drift", "in", "other/digit.png", "--run", str(run)]) == 0
    rows = [line.split(",") for line in Path("drift.csv").read_text().splitlines()]
    assert rows[0] == ["image", "drift", "share_of_held_out_below"]
    assert [row[0] for row in rows[1:]] == ["digit.png", "noise.png", "other/digit.png/digit.png"]
    drifts = IGN.load(run).drift(images.to_float(images.to_uint8(held[:2])))
    assert float(rows[1][1]) == pytest.approx(float(drifts[0]), rel=1e-5)
    shown = capsys.readouterr().out
    assert "held-out images" in shown
    with zipfile.ZipFile("in.zip", "w") as archive:
        archive.write("in/digit.png")
        archive.write("in/noise.png")
    assert main(["drift", "in.zip", "--run", str(run), "--out", "zip.csv"]) == 0
    found = [line.split(",")[1] for line in Path("zip.csv").read_text().splitlines()]
    assert found[1:] == [rows[1][1], rows[2][1]]


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
        (("project",), "--corrupt"),
        (("project", "--corrupt", "fog"), "choose from"),
        (("project", "--corrupt", "noise", "--strength", "0"), "positive"),
        (("project", "--corrupt", "grey"), "colour"),
        (("drift",), "name image files"),
        (("drift", "nothing.png"), "nothing.png"),
        (("interpolate", "--count", "1"), "at least 2"),
        (("arithmetic", "--attribute", "inc"), "did you mean ink"),
        (("arithmetic", "--attribute", "7-12"), "0 to 9"),
        (("arithmetic", "--strength", "-1"), "positive"),
        (("bench", "stp"), "did you mean step"),
        (("bench", "step", "--peer", "there"), "not for step"),
        (("bench", "--repeats", "2"), "at least 5"),
        (("train", "--routing", "idem_to_outer"), "--engine naive"),
        (("train", "--dropout", "1"), "[0, 1)"),
        (("train", "--jitter", "-1"), "negative"),
        (("train", "--norm", "group", "--statistics", "common"), "--norm batch"),
        (("train", "--net", "unet", "--data", "digits", "--size", "10"), "divisible by 4"),
        (("evaluate", "--n", "3"), "at least 50"),
        (("reproduce", "resum"), "did you mean resume"),
        (("reproduce", "resume", "--seeds", "-1"), "negative"),
    ],
)
def test_bad_input_is_one_line(capsys, monkeypatch, tmp_path, run, words, expected):
    monkeypatch.setenv("PAPERKIT_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    if words[0] in ("project", "drift", "arithmetic"):
        words = (*words, "--run", str(run))
    code, error = said(capsys, *words)
    assert code == 2
    assert expected in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_weights_of_another_configuration_are_refused(run, tmp_path, capsys):
    shutil.copytree(run, "other")
    config = json.loads(Path("other/config.json").read_text())
    Path("other/config.json").write_text(json.dumps({**config, "width": 32}))
    code, error = said(capsys, "generate", "--run", "other")
    assert code == 2
    assert "shape" in error


def test_pictures_that_do_not_fit_the_network(run):
    with pytest.raises(UserError, match="do not fit"):
        IGN.load(run).project(torch.zeros(1, 1, 9, 9))


def test_noise_is_shown_within_three_deviations():
    z = torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(data.visible(z), (z / (3 * z.std())).clamp(-1, 1))
    assert torch.equal(data.visible(z / 10), z / 10)
