"""The schema and its checker, record builders, files, and the paired statistics against slow oracles."""

import copy
import importlib.metadata
import itertools
import json
import math
import re
import subprocess
import sys
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from paperkit import UserError, provenance, results

CLAIM = {
    "paper": "ign",
    "id": "projection",
    "claim": "Projecting a noisy digit gives back its class more often than an untrained net does.",
    "source": "abstract",
    "command": "uv run --package ign ign reproduce projection --preset small --seeds 5",
    "preset": "small",
    "data": "MNIST, 10,000 of 60,000",
    "metric": "top1_test",
    "unit": "%",
    "better": "higher",
    "ours": [90.0, 91.0, 92.5],
    "criterion": "paired difference > 2 standard errors",
    "statistic": 3.1,
    "threshold": 2.0,
    "wall_s": 12.5,
}
BENCH = {
    "paper": "gpnn",
    "id": "nearest",
    "claim": "Exact nearest neighbours take no longer than cdist and argmin.",
    "command": "uv run --package gpnn gpnn bench nearest --peer PEER",
    "data": "50,000 patches of 147 numbers",
    "ours": [1.0, 1.1, 0.9, 1.0, 5.0],
    "against": ("torch.cdist 2.15", [3.0, 2.0, 2.2, 2.1, 2.0]),
    "target": 1.0,
    "peak_mib": (100.0, 400.0),
    "threads": 2,
    "device": "cpu",
    "wall_s": 30,
}


def claim(**changes) -> results.Record:
    return results.claim(**(CLAIM | changes))


def bench(**changes) -> results.Record:
    return results.benchmark(**(BENCH | changes))


# summary


def test_summary_divides_by_n_less_one() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    mean = sum(values) / 4
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / 3)
    assert results.summary(values) == {"mean": mean, "std": pytest.approx(std), "n": 4, "values": values}


def test_summary_of_one_value_has_no_spread() -> None:
    assert results.summary([3]) == {"mean": 3.0, "std": 0.0, "n": 1, "values": [3.0]}


@pytest.mark.parametrize(
    "values", [np.array([1, 2], dtype=np.float32), torch.tensor([1.0, 2.0]), (x for x in (1, 2))], ids=type
)
def test_summary_takes_arrays_tensors_and_iterators_and_gives_json(values) -> None:
    assert json.loads(json.dumps(results.summary(values)))["values"] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("values", "message"), [([], "no values"), ([1, math.nan], "nan"), ([math.inf], "inf")]
)
def test_summary_refuses(values: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        results.summary(values)


# claims


def test_a_claim_has_every_key_of_the_plan_and_is_valid() -> None:
    record = claim(against=("untrained", [10, 11, 12]), arms={"held out": [99, 98, 97]})
    assert results.check(record) == []
    assert list(record) == [
        "paper", "id", "claim", "source", "command", "preset", "data", "stand_in", "metric", "unit", "better",
        "ours", "against", "arms", "paper_value", "criterion", "statistic", "threshold", "holds", "hardware",
        "wall_s", "versions", "commit", "dirty", "date",
    ]  # fmt: skip
    assert record["holds"] is True
    assert record["paper_value"] is None
    assert record["against"] == {"name": "untrained", **results.summary([10, 11, 12])}
    assert record["arms"]["held out"]["mean"] == 98.0
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    declared = [re.split(r"[^\w.-]", line)[0] for line in importlib.metadata.requires("ign")]
    assert len(declared) > 3
    assert {name: importlib.metadata.version(name) for name in declared}.items() <= record["versions"].items()


@pytest.mark.parametrize(("statistic", "holds"), [(2.0, True), (1.999, False), (-3, False)])
def test_a_claim_holds_from_the_threshold_on(statistic: float, holds: bool) -> None:
    assert claim(statistic=statistic)["holds"] is holds


def test_a_claim_that_fails_is_valid_and_kept_with_its_explanation(tmp_path: Path) -> None:
    given = claim(statistic=0.5, explanation="Three seeds are too few.")
    assert results.check(given) == []
    assert given["explanation"] == "Three seeds are too few."
    assert "Not yet explained" in claim(statistic=0.5)["explanation"]
    assert json.loads(results.write(tmp_path, given).read_text())["holds"] is False
    del given["explanation"]
    assert results.check(given) == ["holds is false: an explanation is needed"]


@pytest.mark.parametrize(
    ("differences", "holds"), [([1e-13, 0.0], True), ([1e-12], True), ([0.0, -1e-11], False)]
)
def test_an_exact_check_compares_the_largest_difference_with_its_tolerance(differences, holds) -> None:
    record = claim(
        ours=differences,
        criterion="exact to 1e-12",
        tolerance=1e-12,
        statistic=None,
        threshold=None,
        better="lower",
    )
    assert results.check(record) == []
    assert record["holds"] is holds
    assert record["tolerance"] == 1e-12
    assert max(record["ours"]["values"], key=abs) == max(differences, key=abs)


def test_an_exact_check_bit_for_bit_has_tolerance_zero() -> None:
    same = claim(ours=[0.0], criterion="exact", tolerance=0, statistic=None, threshold=None)
    assert results.check(same) == []
    assert same["holds"] is True
    assert "-0" not in json.dumps(same["statistic"]) + json.dumps(same["threshold"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"statistic": None},
        {"threshold": None},
        {"tolerance": 1e-3},
        {"statistic": None, "threshold": None},
        {"tolerance": 1e-3, "threshold": None},
    ],
    ids=str,
)
def test_a_claim_needs_one_way_to_be_decided(wrong: dict) -> None:
    with pytest.raises(UserError, match="projection: give a statistic and a threshold, or a tolerance"):
        claim(**wrong)


def test_the_papers_figure_comes_with_its_place() -> None:
    record = claim(paper_value=(39, "Table 1, FID on CelebA"))
    assert record["paper_value"] == {"value": 39.0, "source": "Table 1, FID on CelebA"}
    assert results.check(record) == []


# the checker

BREAKS = {
    "missing": (lambda r: r.pop("source"), "source is missing"),
    "unknown key": (lambda r: r.update(colour="red"), "colour is not a key"),
    "text for a number": (lambda r: r.update(statistic="3.1"), "statistic is '3.1', not a number"),
    "bool for a number": (lambda r: r.update(statistic=True), "statistic is True, not a number"),
    "number for a bool": (lambda r: r.update(stand_in=0), "stand_in is 0, not true or false"),
    "empty claim": (lambda r: r.update(claim=" "), "claim is empty"),
    "orientation": (lambda r: r.update(better="more"), "better is 'more'"),
    "id": (lambda r: r.update(id="../evil"), "lower-case letters"),
    "bench id": (lambda r: r.update(id="bench-x"), "id starts with bench-"),
    "path": (lambda r: r.update(command="ign bench --peer /srv/peer/ign"), "path of this machine"),
    "home": (lambda r: r.update(command="ign bench --peer ~/ign"), "path of this machine"),
    "holds": (lambda r: r.update(holds=False, explanation="x"), "holds is False, but the statistic is 3.1"),
    "mean": (lambda r: r["ours"].update(mean=99.0), "ours.mean is 99.0, its values give"),
    "std": (lambda r: r["ours"].update(std=0.0), "ours.std is 0.0"),
    "n": (lambda r: r["ours"].update(n=4), "ours.n is 4"),
    "values": (lambda r: r["ours"].update(values=[]), "ours.values is not a list of numbers"),
    "against without a name": (lambda r: r.update(against=results.summary([1])), "against.name is missing"),
    "arm": (lambda r: r.update(arms={"x": 3}), "arms.x is not a summary"),
    "nan": (lambda r: r.update(statistic=math.nan), "statistic is nan: a result must be finite"),
    "deep inf": (lambda r: r.update(details={"a": [1, {"b": -math.inf}]}), r"details.a\[1\].b is -inf"),
    "tensor": (lambda r: r.update(details={"a": torch.ones(1)}), "details.a is of type Tensor"),
    "key": (lambda r: r.update(details={3: 1}), "details has the key 3, not text"),
    "paper value": (lambda r: r.update(paper_value={"value": 3.0}), "where it stands"),
    "exact": (lambda r: r.update(criterion="exact"), "go together"),
    "tolerance": (lambda r: r.update(tolerance=1.0), "go together"),
    "date": (lambda r: r.update(date="yesterday"), "not ISO 8601"),
    "time": (lambda r: r.update(wall_s=-1), "wall_s is negative"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_checker_finds(name: str, tmp_path: Path) -> None:
    breaks, message = BREAKS[name]
    record = claim(against=("untrained", [1, 2, 3]))
    breaks(record)
    problems = results.check(record)
    assert len(problems) == 1, problems
    with pytest.raises(UserError, match=message) as caught:
        results.write(tmp_path, record)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_checker_lists_all_that_is_wrong_at_once() -> None:
    record = claim()
    del record["claim"], record["unit"]
    record["n"] = 3
    assert len(results.check(record)) == 3


def test_paths_that_belong_to_the_repository_are_no_machine_paths() -> None:
    for command in (
        "ign project samples/a.png",
        "make bench",
        "ign train --data ../shared/data",
        "a --lr 1/2",
    ):
        assert results.check(claim(command=command)) == [], command


EXACT_BREAKS = [{"tolerance": -1e-12}, {"threshold": -1.0}, {"statistic": -0.25}]


@pytest.mark.parametrize("change", EXACT_BREAKS, ids=str)
def test_the_checker_of_an_exact_check(change: dict) -> None:
    record = claim(ours=[0.5, -1.0], criterion="exact", tolerance=2.0, statistic=None, threshold=None)
    assert results.check(record) == []
    record |= change
    record["holds"] = record["statistic"] >= record["threshold"]
    record["explanation"] = "x"
    assert any("an exact check has" in p for p in results.check(record))


# benchmarks


def test_a_benchmark_compares_medians() -> None:
    record = bench()
    assert results.check(record) == []
    assert record["ours"]["median"] == 1.0
    assert record["against"]["median"] == 2.1
    assert record["ratio"] == 2.1
    assert record["holds"] is True
    assert record["repeats"] == 5
    assert record["peak_mib"] == {"ours": 100.0, "against": 400.0}


def test_a_benchmark_below_its_target_is_kept() -> None:
    record = bench(target=3)
    assert record["holds"] is False
    assert "2.1 is below 3" in record["explanation"]
    assert results.check(record) == []


def test_without_a_peer_no_ratio_is_written(tmp_path: Path) -> None:
    record = bench(against=None, peak_mib=(100, None))
    assert results.check(record) == []
    assert (record["ratio"], record["holds"]) == (None, None)
    assert "against" not in record
    assert results.write(tmp_path, record).name == "bench-nearest.json"


def test_calls_of_minutes_need_fewer_turns() -> None:
    record = bench(ours=[160.0, 150.0], against=("peer", [310.0]))
    assert results.check(record) == []
    assert (record["repeats"], record["against"]["n"]) == (2, 1)
    assert "ours has 2 repeats" in "".join(results.check(bench(ours=[140.0, 150.0])))


BENCH_BREAKS = {
    "four repeats": (lambda r: r.update(ours=_timing([1.0, 1, 1, 1]), repeats=4), "ours has 4 repeats"),
    "no time": (lambda r: r.update(ours=_timing([0.0, 1, 1, 1, 1])), "not above zero"),
    "median": (lambda r: r["ours"].update(median=2.0), "ours.median is not that of its values"),
    "memory": (lambda r: r["peak_mib"].update(against=None), "peak_mib.against is not a number"),
    "repeats": (lambda r: r.update(repeats=7), "repeats must be"),
    "threads": (lambda r: r.update(threads=0), "threads at least 1"),
    "ratio": (lambda r: r.update(ratio=9.0), "ratio is 9.0, the medians give"),
    "holds": (lambda r: r.update(holds=False, explanation="x"), "holds is False, but the ratio"),
    "ratio alone": (lambda r: r.pop("against"), "without the other side"),
}


def _timing(values: list) -> dict:
    return {"median": float(np.median(values)), **results.summary(values)}


@pytest.mark.parametrize("name", BENCH_BREAKS)
def test_the_checker_of_benchmarks_finds(name: str) -> None:
    breaks, message = BENCH_BREAKS[name]
    record = bench()
    breaks(record)
    problems = results.check(record)
    assert len(problems) == 1, problems
    assert message in problems[0]


# files


def test_written_files_are_read_back(tmp_path: Path) -> None:
    records = [bench(), claim(unit=""), claim(id="a-second", claim="Größer als π.")]
    paths = [results.write(tmp_path, r) for r in records]
    assert [p.name for p in paths] == ["bench-nearest.json", "projection.json", "a-second.json"]
    assert results.read(tmp_path) == [records[2], records[0], records[1]]
    assert "Größer als π." in paths[2].read_text(encoding="utf-8")
    assert paths[0].read_text().endswith("}\n")


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    cases = {"a.json": "{", "b.json": "[]", "c.json": "{}", "d.json": json.dumps(claim())}
    for name, text in cases.items():
        folder = tmp_path / name[0]
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(UserError, match=name):
            results.read(folder)


def test_every_result_file_of_the_repository_is_valid_and_in_its_place() -> None:
    root = Path(__file__).parents[2]
    folders = {"paperkit": root / "shared"} | {
        p.parent.name: p.parent for p in root.glob("packages/*/pyproject.toml")
    }
    assert len(folders) > 1
    for paper, folder in folders.items():
        assert {r["paper"] for r in results.read(folder / "results")} <= {paper}


def test_a_record_is_left_as_it_was(tmp_path: Path) -> None:
    record = claim()
    before = copy.deepcopy(record)
    results.write(tmp_path, record)
    assert record == before


# circumstances


def test_the_commit_is_that_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", *identity, "-C", str(tmp_path), *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    (tmp_path / "src").mkdir()
    module = tmp_path / "src" / "provenance.py"
    module.write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert provenance.commit() == ("unknown", False)
    git("init", "-q")
    assert provenance.commit() == ("unknown", False), "an untracked copy inside a repository"
    git("add", ".")
    git("commit", "-qm", "first")
    assert provenance.commit() == (git("rev-parse", "HEAD"), False)
    (tmp_path / "packages" / "ign" / "results").mkdir(parents=True)
    (tmp_path / "packages" / "ign" / "results" / "a.json").write_text("{}")
    assert provenance.commit()[1] is False, "result files of this very run do not count"
    (tmp_path / "other.py").write_text("2")
    assert provenance.commit() == (git("rev-parse", "HEAD"), True)


def test_outside_git_the_record_is_still_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    record = claim()
    assert (record["commit"], record["dirty"]) == ("unknown", False)
    assert results.check(record) == []


def test_a_paper_that_is_not_installed_still_has_versions() -> None:
    found = provenance.versions("no-such-paper")
    assert {"python", "torch", "numpy", "paperkit"} == set(found)


def test_import_brings_no_torch_and_no_scipy() -> None:
    code = "import sys, paperkit.results; print([m for m in ('torch', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# paired statistics


def test_paired_differences_have_their_textbook_t() -> None:
    ours, against = [3.0, 5.0, 4.0, 6.5], [2.0, 4.5, 4.5, 4.0]
    d = [a - b for a, b in zip(ours, against, strict=True)]
    mean = sum(d) / 4
    se = math.sqrt(sum((v - mean) ** 2 for v in d) / 3) / 2
    found = results.paired(ours, against)
    assert (found.mean, found.se, found.t) == (
        pytest.approx(mean), pytest.approx(se), pytest.approx(mean / se),
    )  # fmt: skip
    assert (found.wins, found.losses, found.n) == (3, 1, 4)
    assert found.sign_p == pytest.approx(5 / 16)


def test_lower_is_better_turns_the_sign() -> None:
    x, y = [1.0, 2.0, 3.5], [2.0, 4.0, 5.0]
    down, up = results.paired(x, y, "lower"), results.paired(y, x, "higher")
    assert down == up
    assert down.mean > 0
    assert results.paired(x, y).mean == -down.mean


def test_equal_pairs_show_nothing_and_a_constant_gain_stays_finite() -> None:
    same = results.paired([1.0, 2.0], [1.0, 2.0])
    assert (same.mean, same.t, same.sign_p, same.low, same.high) == (0.0, 0.0, 1.0, 0.0, 0.0)
    assert results.paired([0.0, 0.0], [0.0, 0.0]).t == 0.0
    gain = results.paired([2.0, 3.0], [1.0, 2.0])
    assert math.isfinite(gain.t)
    assert gain.t > 1e12
    noise = results.paired([0.1 + 0.2] * 3, [0.3] * 3)
    assert noise.t <= 1, "a difference of rounding is no finding"


def test_the_bootstrap_interval_is_that_of_all_resamples() -> None:
    """All 4⁴ resamples of four pairs, counted exactly; 10,000 draws come within sampling error of that."""
    d = np.array([1.0, 0.5, -0.5, 2.5])
    means = sorted(float(np.mean(draw)) for draw in itertools.product(d, repeat=4))
    found = results.paired(d, np.zeros(4))
    assert means[round(0.015 * 256)] <= found.low <= means[round(0.035 * 256)]
    assert means[round(0.965 * 256)] <= found.high <= means[round(0.985 * 256)]
    assert found == results.paired(d, np.zeros(4)), "a fixed seed"
    assert results.paired(d, np.zeros(4), seed=1, draws=100) != found


def test_the_bootstrap_of_many_pairs_agrees_with_the_normal_law() -> None:
    d = np.random.default_rng(0).normal(1.0, 2.0, 20_000)
    found = results.paired(d, np.zeros_like(d), draws=500)
    assert found.low == pytest.approx(found.mean - 1.96 * found.se, abs=0.2 * found.se)
    assert found.high == pytest.approx(found.mean + 1.96 * found.se, abs=0.2 * found.se)


@pytest.mark.parametrize(("wins", "losses", "ties"), [(5, 0, 0), (7, 3, 2), (0, 4, 1), (0, 0, 3)])
def test_the_sign_test_counts_exactly_and_drops_ties(wins: int, losses: int, ties: int) -> None:
    n = wins + losses
    expected = Fraction(sum(comb(n, k) for k in range(wins, n + 1)), 2**n)
    found = results.paired([1.0] * wins + [-1.0] * losses + [0.0] * ties, [0.0] * (n + ties))
    assert found.sign_p == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 0), (9, 3), (4, 4), (2, 11)])
def test_mcnemar_is_the_exact_binomial(b: int, c: int) -> None:
    n, k = b + c, min(b, c)
    expected = min(1.0, 2 * float(Fraction(sum(comb(n, i) for i in range(k + 1)), 2**n)))
    found = results.mcnemar([1] * b + [0] * c + [1, 0], [0] * b + [1] * c + [1, 0])
    assert (found.only_ours, found.only_against) == (b, c)
    assert found.p == pytest.approx(expected, rel=1e-12)


def test_mcnemar_takes_tensors_of_booleans() -> None:
    found = results.mcnemar(torch.tensor([True, True, False]), torch.tensor([False, True, False]))
    assert (found.only_ours, found.only_against, found.p) == (1, 0, 1.0)


def test_spearman_averages_the_ranks_of_ties() -> None:
    x, y = [1.0, 2.0, 2.0, 4.0, 9.0], [3.0, 1.0, 4.0, 4.0, 8.0]
    rx, ry = [1, 2.5, 2.5, 4, 5], [2, 1, 3.5, 3.5, 5]
    covariance = sum((a - 3) * (b - 3) for a, b in zip(rx, ry, strict=True))
    expected = covariance / math.sqrt(sum((a - 3) ** 2 for a in rx) * sum((b - 3) ** 2 for b in ry))
    assert results.spearman(x, y).rho == pytest.approx(expected, rel=1e-12)
    assert results.spearman(range(6), [v**3 for v in range(6)]) == (
        pytest.approx(1.0),
        pytest.approx(0, abs=1e-12),
    )


BAD = {
    "unequal": (lambda: results.paired([1, 2, 3], [1, 2]), "got 3 values against 2"),
    "one pair": (lambda: results.paired([1], [2]), "2 pairs or more needed"),
    "nan": (lambda: results.paired([1, math.nan], [1, 2]), "ours hold a value that is not finite"),
    "mcnemar lengths": (lambda: results.mcnemar([1, 0], [1]), "got 2 values against 1"),
    "mcnemar values": (lambda: results.mcnemar([1, 2], [1, 0]), "right .1. and wrong .0. only"),
    "spearman constant": (lambda: results.spearman([1, 1, 1], [1, 2, 3]), "one side is constant"),
    "spearman short": (lambda: results.spearman([1, 2], [1, 2]), "3 pairs or more needed"),
}


@pytest.mark.parametrize("name", BAD)
def test_statistics_refuse(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(UserError, match=message):
        call()
