"""The loop of `reproduce`, and what it takes from an earlier try."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from paperkit import UserError, reproduction, results
from paperkit.run import write_json

FIELDS: dict[str, Any] = {
    "claim": "two is more than one", "source": "arithmetic", "preset": "none", "data": "none",
    "metric": "sum", "unit": "1", "better": "higher", "ours": [2.0],
    "criterion": "above one", "statistic": 2, "threshold": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    steps: int = 3


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_claims_are_run_and_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    claims = {"two": lambda: FIELDS, "false": lambda: {**FIELDS, "ours": [0.0], "statistic": 0}}
    paths = reproduction.run("ign", claims, tmp_path / "found", lambda name: f"ign reproduce {name}")
    assert [path.name for path in paths] == ["two.json", "false.json"]
    told = capsys.readouterr().out
    assert "two.json: holds" in told
    assert "false.json: DOES NOT HOLD" in told
    records = {record["id"]: record for record in reproduction.written(tmp_path / "found")}
    assert records["two"]["command"] == "ign reproduce two"
    assert [records[name]["holds"] for name in ("two", "false")] == [True, False]


def test_benchmarks_are_no_claims(tmp_path: Path) -> None:
    record = results.benchmark(
        paper="ign", id="step", claim="quick", command="ign bench step", data="none", ours=[1.0] * 5,
        target=1, peak_mib=(1, None), threads=1, device="cpu", wall_s=1,
    )  # fmt: skip
    results.write(tmp_path, record)
    assert reproduction.written(tmp_path) == []


def test_one_claim_or_all() -> None:
    known = {"first": 1, "second": 2}
    assert reproduction.chosen("all", known) == ["first", "second"]
    assert reproduction.chosen("second", known) == ["second"]
    with pytest.raises(UserError, match=r"no claim secnd.*second") as caught:
        reproduction.chosen("secnd", known)
    assert "\n" not in str(caught.value)


def test_results_lie_beside_a_source_checkout_or_here(tmp_path: Path) -> None:
    module = tmp_path / "packages" / "ign" / "src" / "ign" / "reproduce.py"
    assert reproduction.folder(str(module)) == Path("results")
    (tmp_path / "packages" / "ign").mkdir(parents=True)
    (tmp_path / "packages" / "ign" / "pyproject.toml").touch()
    assert reproduction.folder(str(module)) == tmp_path / "packages" / "ign" / "results"


def test_figures_are_made_once_per_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make() -> dict[str, Any]:
        made.append(len(made))
        return {"value": float(len(made))}

    monkeypatch.setattr(reproduction, "commit", lambda: ("a" * 40, False))
    assert [reproduction.remember("ign", "one", make) for _ in range(2)] == [{"value": 1.0}] * 2
    assert reproduction.remember("ign", "two", make) == {"value": 2.0}
    monkeypatch.setattr(reproduction, "commit", lambda: ("b" * 40, False))
    assert reproduction.remember("ign", "one", make) == {"value": 3.0}


def test_networks_are_trained_once_and_stopped_ones_go_on() -> None:
    calls = []

    def train(config: Config, options: Any, preset: str) -> Path:
        place = Path(options.out or options.resume)
        calls.append(("resume" if options.resume else "new", preset, options.device))
        write_json(place / "manifest.json", {"state": "finished" if options.resume else "interrupted"})
        return place

    places = {reproduction.trained("ign", Config(), train, "small") for _ in range(3)}
    assert calls == [("new", "small", "cpu"), ("resume", "small", "cpu")]
    assert reproduction.trained("ign", Config(steps=4), train) not in places
