"""The benchmark's machinery at tiny counts: the variants take one step, and the file is well formed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ign import bench
from ign.cli import main
from ign.config import TrainConfig
from ign.model import network
from paperkit import results

CASE = bench.Case(TrainConfig(width=8, code=3, batch=4), (1, 4, 4))


def gradient_of(name: str, monkeypatch) -> torch.Tensor:
    """The gradient of which a variant takes its step."""
    made = []
    monkeypatch.setattr(bench, "network", lambda *words: made.append(network(*words)) or made[-1])
    bench.stepper(CASE, name)()
    return torch.cat([p.grad.flatten() for p in made[0].parameters()])


def test_every_engine_steps_along_the_same_gradient(monkeypatch):
    naive = gradient_of("naive", monkeypatch)
    for name in ("shared", "joint"):
        torch.testing.assert_close(gradient_of(name, monkeypatch), naive, rtol=0, atol=2e-6)
    assert float((gradient_of("floor", monkeypatch) - naive).abs().max()) > 1e-6


def test_variants_take_turns_and_warm_up_is_not_counted():
    order = []
    times = bench.in_turns({name: lambda name=name: order.append(name) for name in "ab"}, 5)
    assert order == ["a", "b"] * 8
    assert [(len(each.wall), len(each.processor)) for each in times.values()] == [(5, 5), (5, 5)]


def test_summary_is_of_medians():
    times = {
        "floor": bench.Times([0.001, 0.001, 9.0], [0.001] * 3),
        "naive": bench.Times([0.004] * 3, [0.005] * 3),
        "joint": bench.Times([0.003] * 3, [0.004] * 3),
    }
    rows = bench.summary(times)
    assert rows["joint"] == {"wall_ms": 3.0, "of_naive": 0.75, "of_floor": 3.0, "processor_of_naive": 0.8}
    assert len(bench.table(rows).splitlines()) == 4


def test_peak_memory_is_printed_in_mib(capsys, monkeypatch):
    monkeypatch.setattr(bench, "LARGE", CASE)
    bench.print_peak("joint", 1)
    assert 20 < float(json.loads(capsys.readouterr().out)) < 20_000


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "MAIN", CASE)
    monkeypatch.setattr(bench, "OTHERS", (bench.Case(replace(CASE.config, norm="group"), (1, 4, 4)),))
    monkeypatch.setattr(bench, "VARIANTS", ("floor", "naive", "shared", "joint"))
    monkeypatch.setattr(bench, "peak_mib", lambda name, threads: 1.0)
    monkeypatch.chdir(tmp_path)


def test_bench_step_writes_its_file(tiny, capsys):
    assert main(["bench", "step", "--repeats", "5", "--out", "found"]) == 0
    record = json.loads(Path("found/bench-step.json").read_text())
    assert results.check(record) == []
    assert record["against"]["name"].startswith("naive")
    assert record["ratio"] == pytest.approx(record["against"]["median"] / record["ours"]["median"])
    assert record["repeats"] == 5
    assert len(record["details"]["cases"]) == 2
