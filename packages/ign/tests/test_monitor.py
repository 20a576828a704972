"""The signs of collapse: closed forms, and a training run that shows them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ign import IGN
from ign.cli import main
from ign.config import TRAIN
from ign.monitor import Look, look
from paperkit.run import checkpoints, read_metrics

SMOKE = replace(TRAIN["smoke"][0], steps=12, batch=8, log_every=4, sample_every=4, save_every=4)


def data(n=40):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, 1, 3, 3, generator=draw), torch.arange(n) % 4


def test_data_as_samples_are_as_diverse_as_data():
    x, labels = data()
    found = look(x, x + 0.5, x, labels, "l2")
    assert found.diversity == pytest.approx(1.0)
    scale = (x - x.roll(1, 0)).square().mean()
    assert found.stillness == pytest.approx(0.25 / float(scale), rel=1e-4)
    assert found.entropy == pytest.approx(1.0)
    assert found.warning == ""


def test_half_the_contrast_is_half_the_diversity():
    x, labels = data()
    assert look(x / 2, x, x, labels, "l2").diversity == pytest.approx(0.5)


def test_one_fixed_point_is_a_collapse():
    x, labels = data()
    same = x[:1].expand(20, -1, -1, -1)
    found = look(same, same, x, labels, "l1")
    assert (found.diversity, found.stillness) == (0.0, 0.0)
    assert found.entropy == pytest.approx(0.0)
    assert "0.00 times" in found.warning


def test_an_f_that_no_longer_moves_diverse_samples_is_named():
    x, labels = data()
    assert "leaves its samples" in look(x, x, x, labels, "l2").warning


def test_two_of_four_classes_are_half_the_entropy():
    x, labels = data()
    two = x[labels < 2]
    assert look(two, two + 1, x, labels, "l2").entropy == pytest.approx(0.5)


def test_without_labels_or_a_look_there_is_nothing_to_log():
    x, labels = data()
    assert math.isnan(look(x, x + 1, x, torch.full_like(labels, -1), "l2").entropy)
    assert set(look(x, x + 1, x, torch.full_like(labels, -1), "l2").figures()) == {"diversity", "stillness"}
    assert Look().figures() == {}
    assert Look().warning == ""


@pytest.fixture
def collapsing(tmp_path, monkeypatch):
    """A run whose samples are alike from step 8 on, as the monitor sees it."""
    import ign.train

    true = ign.train.look
    calls = iter(range(100))

    def constant(samples, again, x, labels, metric):
        # Calls: step 0, 4, 8, 12.
        return true(samples * (0.0 if next(calls) >= 2 else 1e3), again, x, labels, metric)

    monkeypatch.setattr(ign.train, "look", constant)
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(json.dumps(SMOKE.__dict__))


def test_a_collapse_is_a_warning_that_names_the_step(collapsing):
    assert main(["train", "--config", "config.json", "--out", "run"]) == 0
    warnings = [line for line in Path("run/log.txt").read_text().splitlines() if line.startswith("warning")]
    assert len(warnings) == 2
    assert "collapse at step 8" in warnings[0]
    rows = read_metrics(Path("run"))
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert rows[0]["diversity"] > 1
    assert rows[1]["diversity"] == 0


def test_a_stop_keeps_the_last_checkpoint_before_the_collapse(collapsing, capsys):
    assert main(["train", "--config", "config.json", "--out", "run", "--stop-on-collapse"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "step 8" in error
    assert "00000004" in error
    assert [path.name for path in checkpoints(Path("run"))] == ["00000004"]
    assert json.loads(Path("run/manifest.json").read_text())["state"] == "failed"
    assert torch.isfinite(IGN.load("run").sample(2)).all()
