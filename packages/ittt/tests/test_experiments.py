"""Online streams, heat maps and audits: against the adapter, and as records. Networks learn for an epoch."""

import json
from dataclasses import replace

import pytest
import torch
from ittt import Settings, audit, official, online, sensitivity, tables
from ittt.cli import main
from ittt.config import TrainConfig
from ittt.online import CARRIED, stream, streams
from ittt.train import build
from paperkit import results

CIRCUMSTANCES = {"paper": "ittt", "command": "uv run --package ittt ittt reproduce x", "wall_s": 1.0}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    for module in (tables, online, sensitivity):
        monkeypatch.setattr(module, "EPOCHS", (1, 2))
    monkeypatch.setattr(tables, "TEST_ROWS", 20)
    monkeypatch.setattr(audit, "EPOCHS", 1)
    monkeypatch.setattr(audit, "BATCHES", (23,))
    tables.rows_of.cache_clear()
    tables.trials.cache_clear()
    yield
    tables.rows_of.cache_clear()


# ---- online


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 1e-2}, {"lr": 1e-2, "anchor": "ema", "decay": 0.9}, {"lr": 1e-2, "anchor": "none"},
        {"lr": 1e-2, "anchor": "ema", "decay": 0.9, "guard": 0.02},
    ],
)  # fmt: skip
def test_streams_side_by_side_equal_the_adapter(changes):
    settings = replace(CARRIED, **changes)
    nets = [build(TrainConfig(seed=seed, widths=(7, 5)), 4)[0].double() for seed in range(2)]
    x = torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found, returned = stream(nets, x, settings)
    for net, rows, ours, count in zip(nets, x, found, returned, strict=True):
        adapter = net.adapter(settings)
        parts = [adapter(part) for part in rows.split(online.SIZE)]
        wanted = torch.cat([part.prediction for part in parts])
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-9)
        assert int(count) == sum(part.returned for part in parts)
    if "guard" in changes:
        assert float(returned.sum()) > 0


def test_streams_shift_as_they_say():
    found = streams("diabetes", 20)
    assert list(found) == list(online.STREAMS)
    clean, (half, rows) = found["clean"][0], (online.ROWS // 2, online.ROWS)
    gone = {kind: (x != clean).float().mean(1) for kind, (x, _) in found.items()}
    assert float(gone["clean"].max()) == 0
    assert float(gone["switch"][:half].max()) == 0
    assert float(gone["return"][half:].max()) == 0
    assert float(gone["switch"][half:].mean()) == pytest.approx(online.MOST, abs=0.03)
    assert float(gone["ramp"][: rows // 4].mean()) < float(gone["ramp"][-rows // 4 :].mean())


def test_online_counts_its_checks(monkeypatch):
    monkeypatch.setattr(online, "ROWS", 32)
    fields = online.online(2, ["diabetes"])
    record = results.claim(**CIRCUMSTANCES, id="online", **{"preset": "none", **fields})
    assert results.check(record) == []
    assert record["statistic"] == sum(record["details"]["checks"].values())
    assert "offline, lr 0.001, return" in record["arms"]


# ---- sensitivity


def test_sensitivity_judges_what_is_harmless_on_clean_rows(monkeypatch, tmp_path):
    monkeypatch.setattr(sensitivity, "STEPS", (1, 2))
    monkeypatch.setattr(sensitivity, "RATES", (1e-5, 1e-3))
    monkeypatch.setattr(sensitivity, "NEUTRALS", (0.0, 50.0))
    fields = sensitivity.sensitivity(2, ["diabetes"])
    record = results.claim(**CIRCUMSTANCES, id="sensitivity", **{"preset": "none", **fields})
    assert results.check(record) == []
    allowed = record["details"]["harmless"]["neutral 0, 1 epochs"]
    clean = record["details"]["maps"]["neutral 0, 1 epochs"]["clean"]
    assert allowed == [
        [steps, lr]
        for row, steps in zip(clean, (1, 2), strict=True)
        for value, lr in zip(row, (1e-5, 1e-3), strict=True)
        if value <= 1
    ]
    drawing = sensitivity.drawing(record["details"])
    assert drawing.count("<rect") == 1 + 4 * 2 * 4
    assert drawing.count('stroke="black"') == 2 * sum(map(len, record["details"]["harmless"].values()))


def test_sensitivity_tells_how_far_above_and_why(monkeypatch):
    monkeypatch.setattr(sensitivity, "NEUTRALS", (0.0, 50.0))
    trained = {
        ("diabetes", neutral): sensitivity.trials_of("diabetes", neutral, 2) for neutral in (0.0, 50.0)
    }
    above = [("neutral 50, 1 epochs", 2, 1e-3)]
    causes = sensitivity.causes_of(above, trained)
    assert list(causes) == [f"neutral {neutral}, 1 epochs, 2 x 0.001, diabetes" for neutral in (0, 50)]
    cells = {"neutral 50, 1 epochs": {("clean", 2, 1e-3): [0.5, 0.7], ("shifted", 2, 1e-3): [1.0, 2.0]}}
    text = sensitivity.why(cells, above, 10, causes)
    assert text.startswith("9 of 10 settings")
    assert "error +1.50 ± 0.50 % where entries are missing, 1.0 standard errors above the bound" in text
    assert "+0.60 ± 0.10 % on clean rows" in text
    assert "neutral 50, 1 epochs, 2 x 0.001, diabetes (aim" in text


def test_picture_needs_a_result_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sensitivity.reproduction, "folder", lambda _: tmp_path)
    assert main(["picture"]) == 2
    assert "run ittt reproduce sensitivity" in capsys.readouterr().err
    assert main(["picture", "--out", "x.png"]) == 2


# ---- audit


def test_audit_tells_what_each_difference_is_worth(tmp_path, capsys):
    path = tmp_path / "audit.json"
    words = ["audit", "boston", "--data", "diabetes", "--seeds", "2", "--out", str(path)]
    assert main(words) == 0
    found = json.loads(path.read_text())
    assert list(found["ways"]) == list(audit.WAYS)
    told = capsys.readouterr().out
    for way in audit.WAYS:
        assert way in told
    one = found["ways"]["the notebook"]
    assert set(one["changes"]) == {
        f"adapted, batch {size}, {level:g} missing" for size in audit.BATCHES for level in audit.LEVELS
    }


def test_audit_of_mnist_shows_the_rows_of_the_claim(tmp_path, monkeypatch, capsys):
    rows = [{"noise": {"notebook": 12.0 + seed}, "clean": {"notebook": 2.0 + 2 * seed}} for seed in range(2)]
    monkeypatch.setattr(official, "kept", lambda seed: rows[seed])
    path = tmp_path / "audit.json"
    assert main(["audit", "mnist", "--seeds", "2", "--out", str(path)]) == 0
    assert json.loads(path.read_text())["errors"] == {
        "notebook, noise": [12.0, 13.0], "notebook, clean": [2.0, 4.0]
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "12.50 ± 0.50" in said
    assert "3.00 ± 1.00" in said


def test_notebook_takes_the_last_rows_and_scales_by_all():
    x, y, x_test, y_test = audit.rows("diabetes", audit.Replay(), 0)
    assert (len(x), len(x_test)) == (397, 45)
    both = torch.cat([x, x_test])
    torch.testing.assert_close(both.mean(0), torch.zeros(x.shape[1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([y, y_test]).std(), torch.tensor(1.0), atol=1e-4, rtol=0)
    x, _, x_test, _ = audit.rows("diabetes", audit.WAYS["random splits"], 1)
    torch.testing.assert_close(x.std(0), torch.ones(x.shape[1]), atol=1e-4, rtol=0)
    assert audit.Replay().settings() == Settings(
        steps=2, lr=1e-4, carry_state=True, rollback=False, measure=False
    )
