"""Benchmarks: both sides compute alike, and the records are whole. No times are asserted."""

import json
import sys

import pytest
import torch
from ittt import bench
from ittt.cli import main

CPU = torch.device("cpu")


def test_every_case_has_both_sides():
    for name, cases in bench.CASES.items():
        for label, case in cases.items():
            assert case.gpu == (name == "cost" and label in bench.RESNETS)
            if label == "resnet50":
                continue  # as resnet18, and too large for this machine
            calls = case.calls(CPU)
            assert {"ours", "against"} <= set(calls)
            if case.gpu:
                assert calls["against"]().shape == (2, 1000)
                continue
            for side, call in calls.items():
                assert (call() is None) == (side in (*bench.PARTS[:3], *bench.THEIRS))


@pytest.mark.parametrize("kind", ["stacked", "rank-one"])
def test_instances_agree_with_the_loop(kind):
    calls = bench.loop(kind)(CPU)
    ours, against = calls["ours"](), calls["against"]()
    close = (ours.prediction - against.prediction).abs() < (1e-5 if kind == "stacked" else 1e-3)
    assert float(close.float().mean()) > 0.9  # rank-one: Adam's eps is 0, which tiny gradients feel


def test_record_is_written_and_peak_is_measured(tmp_path, monkeypatch, capsys):
    """Each side's peak by the words of its own process, said here: a start takes seconds."""

    def said(code: str, *words: str) -> float:
        monkeypatch.setattr(sys, "argv", ["-c", *words])
        exec(code, {})
        return float(capsys.readouterr().out.splitlines()[-1])

    monkeypatch.setattr(bench, "in_own_process", said)
    monkeypatch.setattr(bench, "ROUND", 0.0)
    words = ["bench", "cost", "--cases", "mlp", "--repeats", "5", "--out", str(tmp_path)]
    assert main(words) == 0
    record = json.loads((tmp_path / "bench-cost-mlp.json").read_text())
    assert record["repeats"] == 5
    assert set(record["details"]["cost"]) == {"ours", "two steps", "three steps"}
    assert min(record["peak_mib"].values()) >= 0
    parts = record["details"]["parts_in_plain_forward_passes"]
    assert set(parts) == set(bench.PARTS)
    assert all(cost > 0 for cost in parts.values())
    assert record["holds"] == (record["explanation"] == "")


def test_reasons_are_computed_from_the_parts():
    """Three steps of 3 ms and a prediction of 1 allow 15 / 10; with passes of 4 ms only 15 / 13."""
    times = {part: [0.001] for part in bench.PARTS} | {part: [0.004] for part in bench.THEIRS}
    times |= {"ours": [0.012], "against": [0.015], bench.PARTS[0]: [0.003]}
    assert "the ratio is 1.50: the rest decides" in bench._why("torch-ttt", 1.5, times)
    times[bench.PARTS[0]] = [0.004]
    text = bench._why("torch-ttt", 1.5, times)
    assert "the ratio is 1.15: below the target" in text
    assert "3 x 4.00 are both applications" in text
    assert bench._why("torch-ttt", 1.2, times) == ""


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nix"], "no benchmark nix"),
        (["cost", "--cases", "nix"], "no case nix"),
        (["--repeats", "2"], "--repeats"),
    ],
)
def test_command_refuses(words, text, capsys):
    assert main(["bench", *words]) == 2
    assert text in capsys.readouterr().err
