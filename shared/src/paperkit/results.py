"""Result files: one JSON per claim and per benchmark, their schema, and what they were run on.

Used by every paper's `reproduce` and `bench`. `claim` and `benchmark` build a record, `write` checks it and
puts it in its place; `tools/results.py` renders the files into the READMEs. Importing this imports no torch.

A claim holds when `statistic >= threshold`; an exact check has statistic = -(largest difference) and
threshold = -(tolerance). A benchmark holds when against / ours >= target, both medians. Either is computed
here from the values, never given. A claim that does not hold is kept, with an explanation.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np

from paperkit import UserError
from paperkit.provenance import commit, hardware, versions
from paperkit.run import atomic
from paperkit.statistics import (
    Better,
    McNemar,
    Numbers,
    Paired,
    Spearman,
    mcnemar,
    orientation,
    paired,
    spearman,
    summary,
)

__all__ = [
    "McNemar",
    "Paired",
    "Spearman",
    "benchmark",
    "check",
    "claim",
    "mcnemar",
    "paired",
    "path",
    "read",
    "spearman",
    "summary",
    "write",
]

Record = dict[str, Any]


# ------------------------------------------------------------------------------------------ records


def claim(
    *,
    paper: str,
    id: str,
    claim: str,
    source: str,
    command: str,
    preset: str,
    data: str,
    metric: str,
    unit: str,
    better: Better,
    ours: Numbers,
    criterion: str,
    wall_s: SupportsFloat,
    statistic: SupportsFloat | None = None,
    threshold: SupportsFloat | None = None,
    tolerance: SupportsFloat | None = None,
    against: tuple[str, Numbers] | None = None,
    arms: Mapping[str, Numbers] | None = None,
    stand_in: bool = False,
    paper_value: tuple[SupportsFloat, str] | None = None,
    details: Mapping[str, Any] | None = None,
    explanation: str = "",
    device: str = "cpu",
) -> Record:
    """The record of one claim; fills in hardware, versions, commit and date, and computes `holds`.

    `ours` has one value per seed (or image, split, …). Give `statistic` and `threshold`, or for an exact
    check `tolerance` alone: then `ours` are the differences, case by case, and `criterion` says "exact".
    `paper_value` is the paper's figure and where it stands, None when no source that we could read states it.
    `explanation` says why the claim fails; without one the record says that it is not yet explained.
    """
    orientation(better)
    values = summary(ours)
    if (tolerance is None) == (statistic is None) or (statistic is None) != (threshold is None):
        raise UserError(f"{id}: give a statistic and a threshold, or a tolerance alone for an exact check")
    if tolerance is not None:
        statistic, threshold = 0.0 - max(abs(v) for v in values["values"]), 0.0 - float(tolerance)
    reached, needed = float(statistic or 0), float(threshold or 0)
    holds = reached >= needed
    record = {
        "paper": paper, "id": id, "claim": claim, "source": source, "command": command, "preset": preset,
        "data": data, "stand_in": stand_in, "metric": metric, "unit": unit, "better": better, "ours": values,
        "against": against and {"name": against[0], **summary(against[1])},
        "arms": arms and {name: summary(arm) for name, arm in arms.items()},
        "paper_value": paper_value and {"value": float(paper_value[0]), "source": paper_value[1]},
        "criterion": criterion, "statistic": reached, "threshold": needed,
        "tolerance": None if tolerance is None else float(tolerance),
        "holds": holds, "explanation": _explained(explanation, holds, reached, needed), "details": details,
        **_circumstances(paper, wall_s, device),
    }  # fmt: skip
    return _without_nulls(record, but=("paper_value",))


def benchmark(
    *,
    paper: str,
    id: str,
    claim: str,
    command: str,
    data: str,
    ours: Numbers,
    target: SupportsFloat,
    peak_mib: tuple[SupportsFloat, SupportsFloat | None],
    threads: int,
    device: str,
    wall_s: SupportsFloat,
    against: tuple[str, Numbers] | None = None,
    metric: str = "wall_time",
    unit: str = "s",
    stand_in: bool = False,
    details: Mapping[str, Any] | None = None,
    explanation: str = "",
) -> Record:
    """The record of one benchmark: times of both sides taken in turns after a warm-up, `enough` of each.

    `against` is (what and which version or commit, its times); without it only our side is recorded and
    `ratio` and `holds` are null. `peak_mib` is (ours, against). `ratio` = median(against) / median(ours):
    above 1 we are faster.
    """
    mine, theirs = _timing(ours), None if against is None else {"name": against[0], **_timing(against[1])}
    ratio = None if theirs is None else _ratio(theirs["median"], mine["median"])
    holds = None if ratio is None else ratio >= float(target)
    record = {
        "paper": paper, "id": id.removeprefix("bench-"), "claim": claim, "command": command, "data": data,
        "stand_in": stand_in, "metric": metric, "unit": unit, "better": "lower", "ours": mine,
        "against": theirs, "ratio": ratio, "target": float(target), "holds": holds,
        "explanation": _explained(explanation, holds, ratio, float(target)),
        "peak_mib": {"ours": float(peak_mib[0]), "against": peak_mib[1] and float(peak_mib[1])},
        "threads": threads, "device": device, "repeats": mine["n"], "details": details,
        **_circumstances(paper, wall_s, device),
    }  # fmt: skip
    return _without_nulls(record, but=("ratio", "holds"))


def enough(times: Sequence[float], unit: str = "s") -> bool:
    """Whether a side was timed often enough: five times, or for `LONG` seconds where one call takes minutes.

    Calls of minutes differ by a few per cent, and their benchmarks would take hours.
    """
    return len(times) >= 5 or (unit == "s" and sum(times) >= LONG)


def _explained(text: str, holds: bool | None, reached: float | None, needed: float) -> str | None:
    if holds is False and not text:
        return f"Not met: {reached:.4g} is below {needed:.4g}. Not yet explained."
    return text or None


def _without_nulls(record: Record, but: tuple[str, ...]) -> Record:
    return {key: value for key, value in record.items() if value is not None or key in but}


def _ratio(theirs: float, mine: float) -> float:
    return theirs / mine if mine else math.inf


def _timing(values: Numbers) -> Record:
    numbers = summary(values)
    return {"median": float(np.median(numbers["values"])), **numbers}


def _circumstances(paper: str, wall_s: SupportsFloat, device: str) -> Record:
    revision, dirty = commit()
    return {
        "hardware": hardware(device),
        "wall_s": round(float(wall_s), 3),
        "versions": versions(paper),
        "commit": revision,
        "dirty": dirty,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


# ------------------------------------------------------------------------------------ schema, files

LONG = 300.0
"""Seconds of one side of a benchmark after which it need not be timed again."""
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_PATH = re.compile(r"(?<![\w.~/-])(/[\w.-]+/|~/|[A-Za-z]:\\)")

_COMMON = {
    "paper": str, "id": str, "claim": str, "command": str, "data": str, "stand_in": bool, "metric": str,
    "unit": str, "better": str, "ours": dict, "hardware": str, "wall_s": float, "versions": dict,
    "commit": str, "dirty": bool, "date": str,
}  # fmt: skip
_CLAIM = _COMMON | {
    "source": str, "preset": str, "paper_value": (dict, type(None)), "criterion": str, "statistic": float,
    "threshold": float, "holds": bool,
}  # fmt: skip
_BENCHMARK = _COMMON | {
    "ratio": (float, type(None)), "target": float, "holds": (bool, type(None)), "peak_mib": dict,
    "threads": int, "device": str, "repeats": int,
}  # fmt: skip
_OPTIONAL = {"against": dict, "explanation": str, "details": dict}
_OPTIONAL_CLAIM = _OPTIONAL | {"arms": dict, "tolerance": float}


def check(record: Record) -> list[str]:
    """What is wrong with a record, one line each; an empty list when it is a valid result."""
    bench = "ratio" in record
    needed, optional = (_BENCHMARK, _OPTIONAL) if bench else (_CLAIM, _OPTIONAL_CLAIM)
    problems = [f"{key} is missing" for key in needed if key not in record]
    problems += [f"{key} is not a key of the schema" for key in record if key not in needed | optional]
    for key, kind in (needed | optional).items():
        if key in record and not _is(record[key], kind):
            problems.append(f"{key} is {record[key]!r}, not {_kind_name(kind)}")
    problems += _not_json(record)
    if not problems:  # what follows may rely on keys and types
        problems += _check_words(record) + _check_arms(record)
        problems += _check_benchmark(record) if bench else _check_claim(record)
    return problems


def path(folder: str | os.PathLike[str], record: Record) -> Path:
    """Where a record lives: `<id>.json` for a claim, `bench-<id>.json` for a benchmark."""
    return Path(folder) / f"{'bench-' if 'ratio' in record else ''}{record['id']}.json"


def write(folder: str | os.PathLike[str], record: Record) -> Path:
    """Check a record and write it, all or nothing. Raises `UserError` with everything that is wrong."""
    if problems := check(record):
        raise UserError(f"result {record.get('id', '?')!r} is not valid: {'; '.join(problems)}")
    target = path(folder, record)
    with atomic(target, "w") as stream:
        stream.write(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return target


def read(folder: str | os.PathLike[str]) -> list[Record]:
    """Every valid record of a folder by file name. Raises `UserError` that names a file that is not one."""
    return [_read(file) for file in sorted(Path(folder).glob("*.json"))]


def _read(file: Path) -> Record:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}): run its command again") from error
    problems = check(record) if isinstance(record, dict) else ["it is no JSON object"]
    if not problems and path(file.parent, record).name != file.name:
        problems = [f"its id {record['id']!r} belongs in {path(file.parent, record).name}"]
    if problems:
        raise UserError(f"{file} is not a valid result: {'; '.join(problems)}")
    return record


def _is(value: object, kind: Any) -> bool:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, (*kinds, int) if float in kinds else kinds)


def _kind_name(kind: Any) -> str:
    names = {str: "text", bool: "true or false", float: "a number", int: "an integer", dict: "an object"}
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(names.get(k, "null") for k in kinds)


def _not_json(value: object, where: str = "") -> list[str]:
    """Everything in the record that JSON has no form for: NaN, infinities, arrays, tensors, keys not text."""
    if isinstance(value, dict):
        keys = [
            f"{where or 'the record'} has the key {k!r}, not text" for k in value if not isinstance(k, str)
        ]
        return keys + [p for k, v in value.items() for p in _not_json(v, f"{where}.{k}" if where else str(k))]
    if isinstance(value, (list, tuple)):
        return [p for i, v in enumerate(value) for p in _not_json(v, f"{where}[{i}]")]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{where} is {value}: a result must be finite"]
    if not isinstance(value, (str, int, float, type(None))):
        return [f"{where} is of type {type(value).__name__}, which JSON has no form for"]
    return []


def _check_words(record: Record) -> list[str]:
    optional_words = ("unit",)
    problems = [
        f"{key} is empty"
        for key, value in record.items()
        if isinstance(value, str) and not value.strip() and key not in optional_words
    ]
    problems += [
        f"{key} is {record[key]!r}: lower-case letters, digits and hyphens"
        for key in ("paper", "id")
        if not _NAME.fullmatch(record[key])
    ]
    if record["id"].startswith("bench-"):
        problems.append("id starts with bench-: the file name of a benchmark adds that")
    if record["better"] not in ("higher", "lower"):
        problems.append(f"better is {record['better']!r}, not higher or lower")
    if _PATH.search(record["command"]):
        problems.append("command holds a path of this machine: write a name in capitals, such as PEER")
    if record["holds"] is False and "explanation" not in record:
        problems.append("holds is false: an explanation is needed")
    if record["wall_s"] < 0:
        problems.append("wall_s is negative")
    try:
        datetime.fromisoformat(record["date"])
    except ValueError:
        problems.append(f"date is {record['date']!r}, not ISO 8601")
    return problems


def _check_arms(record: Record) -> list[str]:
    problems = _check_summary("ours", record["ours"])
    if "against" in record:
        problems += _check_summary("against", record["against"])
        if not isinstance(record["against"].get("name"), str) or not record["against"]["name"].strip():
            problems.append("against.name is missing")
    for name, arm in record.get("arms", {}).items():
        problems += _check_summary(f"arms.{name}", arm)
    return problems


def _check_summary(name: str, arm: object) -> list[str]:
    if not isinstance(arm, dict):
        return [f"{name} is not a summary"]
    values = arm.get("values")
    if not isinstance(values, list) or not values or not all(_is(v, float) for v in values):
        return [f"{name}.values is not a list of numbers"]
    computed = summary(values)
    wrong = [k for k in ("mean", "std", "n") if not _is(arm.get(k), float) or not _same(arm[k], computed[k])]
    return [f"{name}.{key} is {arm.get(key)!r}, its values give {computed[key]!r}" for key in wrong]


def _same(a: SupportsFloat, b: SupportsFloat) -> bool:
    return math.isclose(float(a), float(b), rel_tol=1e-9, abs_tol=1e-300)


def _check_claim(record: Record) -> list[str]:
    problems = []
    if record["holds"] != (record["statistic"] >= record["threshold"]):
        problems.append(
            f"holds is {record['holds']}, but the statistic is {record['statistic']} "
            f"and the threshold {record['threshold']}"
        )
    value = record["paper_value"]
    if value is not None and not (_is(value.get("value"), float) and value.get("source")):
        problems.append('paper_value is not null or {"value": number, "source": where it stands}')
    exact = re.search(r"\bexact\b", record["criterion"].lower()) is not None
    if exact != ("tolerance" in record):
        problems.append('a criterion that says "exact" and a tolerance go together')
    elif exact:
        largest = max(abs(v) for v in record["ours"]["values"])
        if record["tolerance"] < 0 or record["threshold"] != -record["tolerance"]:
            problems.append("an exact check has tolerance >= 0 and threshold = -tolerance")
        if record["statistic"] != -largest:
            problems.append(f"an exact check has statistic = -(largest difference) = {-largest}")
    return problems


def _check_benchmark(record: Record) -> list[str]:
    sides = [side for side in ("ours", "against") if side in record]
    problems = []
    for side in sides:
        values = record[side]["values"]
        if not enough(values, record["unit"]):
            problems.append(f"{side} has {len(values)} repeats: five are needed, or {LONG:g} s of them")
        if min(values) <= 0:
            problems.append(f"{side} has a time that is not above zero")
        elif not _same(record[side].get("median", math.nan), float(np.median(values))):
            problems.append(f"{side}.median is not that of its values")
        if not _is(record["peak_mib"].get(side), float) or record["peak_mib"][side] < 0:
            problems.append(f"peak_mib.{side} is not a number of MiB")
    if record["repeats"] != len(record["ours"]["values"]) or record["threads"] < 1:
        problems.append("repeats must be the number of our values and threads at least 1")
    if problems:
        return problems
    if "against" not in record:
        if record["ratio"] is not None or record["holds"] is not None:
            problems.append("without the other side ratio and holds are null")
        return problems
    ratio = record["against"]["median"] / record["ours"]["median"]
    if record["ratio"] is None or not _same(record["ratio"], ratio):
        problems.append(f"ratio is {record['ratio']}, the medians give {ratio}")
    elif record["holds"] != (record["ratio"] >= record["target"]):
        problems.append(
            f"holds is {record['holds']}, but the ratio is {ratio} and the target {record['target']}"
        )
    return problems
