"""The benchmarks at tiny counts: the variants compute the same, and the files are well formed."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from ccconv import bench, charges, paths
from ccconv.cli import main
from ccconv.config import BenchConfig
from paperkit import results, timing

PEER = """
import torch
def resize(x, scale_factors, out_shape, pad_mode):
    return torch.nn.functional.interpolate(x, out_shape[2:])
"""


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "SHAPES", ((1, 2, 12),))
    monkeypatch.setattr(bench, "SCALES", (Fraction(1), Fraction(1, 2), Fraction(2)))
    monkeypatch.setattr(bench, "COPRIME", (1, 2, 8, 7))
    monkeypatch.setattr(bench, "in_own_process", lambda code, *words: 1.0 if "ours" in words else 3.0)


def written(name: str, *words: str) -> dict:
    """The record of a benchmark."""
    assert main(["bench", name, "--repeats", "5", "--out", "found", *words]) == 0
    record = json.loads(Path(f"found/bench-{name}.json").read_text())
    assert results.check(record) == []
    return record


def test_conv_has_a_floor_for_every_cell():
    record = written("conv")
    assert len(record["details"]["cells"]) == 3 * 2 * 3
    aims = {row["aim"] for row in record["details"]["cells"].values() if "aim" in row}
    assert aims == {1.05, 1.1, 0.7}


def test_naive_measures_memory_too():
    record = written("naive")
    assert record["peak_mib"] == {"ours": 1.0, "against": 3.0}
    assert record["details"]["times_less_memory"]["forward"] == 3
    assert "10 were aimed at" in record["explanation"]


def test_today_and_paths_write_their_files():
    assert set(written("today")["details"]["cells"]) >= {"1x2x12 to 6, forward", "1x2x12 to 24, forward"}
    cases = written("paths")["details"]["cases"]
    assert all(row["chosen"] in row for row in cases.values())


def test_resizeright_with_and_without_the_peer():
    assert written("resizeright")["ratio"] is None
    Path("peer").mkdir()
    Path("peer/resize_right.py").write_text(PEER)
    record = written("resizeright", "--peer", "peer")
    assert record["ratio"] > 0
    assert "PEER" in record["command"]


def test_the_record_is_of_the_cell_with_the_least_room():
    cells = [bench.Cell("a", [1.0] * 5, [1.0] * 5, 2.0), bench.Cell("b", [3.0] * 5, [1.0] * 5, 2.0)]
    found = bench.worst(cells, "rival")
    assert found["ours"] == [3.0] * 5
    assert found["explanation"] == "aims missed by 1 of 2 cells: b"


def test_rival_convs_give_outputs_of_the_same_size():
    for s in (Fraction(1, 2), Fraction(3, 4), Fraction(2)):
        layer = bench.layer_of("mlp", 2)
        made = layer.plan(torch.zeros(1, 2, 12, 12), scale=s)
        conv, sides = bench.conv_like(made, 2, bench.taps_of(made))
        assert conv(torch.zeros(1, 2, *sides)).shape[2:] == made.sizes


def test_taps_are_those_that_are_read():
    x = torch.zeros(1, 2, 12, 12)
    assert bench.taps_of(bench.layer_of("mlp", 2).plan(x, scale=0.5)) == 6
    assert bench.taps_of(bench.layer_of("mlp", 2).plan(x)) == 3


def test_peak_of_a_call_is_what_it_needs():
    """In processes of their own: memory that earlier tests gave back would hide a peak."""
    found = []
    for which in ("ours", "against"):
        small = "from ccconv import bench; bench.COPRIME = (4, 16, 32, 31); "
        found.append(timing.in_own_process(small + bench.MEASURED, "naive", which, "", "1"))
    ours, against = found
    assert against > 15  # the kernels alone
    assert against > 3 * ours >= 0


def test_cost_model_prices_every_term():
    layer = bench.layer_of("mlp", 4)
    made = layer.plan(torch.zeros(1, 4, 12, 12), scale=Fraction(3, 2))
    words = (made, layer.geometry, 2, (4, 4, 1), 24)
    for mode, table in {"training": "training", "forward": "forward", "kept": "forward"}.items():
        terms, cost = paths.terms(*words, mode), paths.cost(*words, mode)
        assert set(terms) == set(cost) == {"gather", "polyphase", "single", "separable"}
        for path, values in terms.items():
            prices = paths.CHARGES[table][paths.priced(path, layer.geometry)]
            assert set(prices) == set(values)
            assert cost[path] == pytest.approx(sum(prices[term] * value for term, value in values.items()))
            assert (values["sampled"] == 0) == (mode == "kept" and path != "separable")


def test_charges_are_found_again_from_the_times_that_they_make():
    rows, true = [], {"resampled": 0.5, "products": 2.0, "calls": 100.0}
    for number in range(1, 6):
        terms = {"resampled": 1e6 * number, "products": 3e5 * number**2, "calls": 7.0 * number**3}
        seconds = 1e-9 * sum(true[term] * value for term, value in terms.items())
        rows.append({
            "mode": "forward", "terms": {"separable": terms}, "times": {}, "once": {"separable": seconds},
        })  # fmt: skip
    assert charges.fitted(rows, "training") == {}
    assert charges.fitted(rows, "forward") == {"separable": pytest.approx(true, rel=1e-6)}
    for row in rows:  # a term that only takes time away is left out
        row["once"]["separable"] = 1e-9 * (row["terms"]["separable"]["resampled"] - 5e3)
    assert min(charges.fitted(rows, "forward")["separable"].values()) == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("conf",), "did you mean conv"),
        (("conv", "--peer", "x"), "--peer is for resizeright"),
        (("resizeright", "--peer", "nowhere"), "holds no resize_right.py"),
        (("conv", "--repeats", "4"), "--repeats"),
        (("conv", "--threads", "0"), "--threads"),
    ],
)
def test_bad_benchmarks_are_one_line(capsys, words, expected):
    assert main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_defaults_are_the_protocol_of_the_issue():
    assert BenchConfig().repeats >= 20
