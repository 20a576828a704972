"""Render the result files into the READMEs, so that no figure in them is typed by hand.

    python tools/results.py            write the READMEs
    python tools/results.py --check    change nothing; exit 1 and name each README that differs

Standard library only. A member's `results/*.json` stand between `<!-- results -->` and `<!-- /results -->`
in its README, and chosen arms of one file between `<!-- arms FILE: NAME = words; NAME -->` and
`<!-- /arms -->`, where "ours" and "against" are names too and the words are optional; arms of several files
between `<!-- arms *: FILE: NAME = words; FILE: NAME -->` and the same end. One line for each paper stands
between `<!-- papers -->` and `<!-- /papers -->` in the root's. That line comes from the paper's pyproject:
`description = "Title (arXiv 2311.01462): one sentence"`, and

    [tool.paperkit]
    headline = "small-samples"                    # the result file whose figure is shown; optional
    command = "uv run --package gpnn generate"    # optional; `uv run --package <paper> train` without it
"""

import argparse
import json
import math
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]

SHOWN = 3
"""Arms up to which a table shows them; more are folded away."""


class Problem(Exception):
    """Something that keeps a README from being rendered: one line, with the file's name."""


def render(root: Path) -> dict[Path, str]:
    """Every README that shows results, and the text that it should have."""
    texts = {}
    for member in sorted([root / "shared", *(p.parent for p in root.glob("packages/*/pyproject.toml"))]):
        records = load(member / "results")
        readme = member / "README.md"
        text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        if records or "<!-- results -->" in text:
            text = between(text, "results", results_table(records), readme)
            texts[readme] = chosen_arms(text, records, readme)
    readme = root / "README.md"
    if not readme.is_file():
        raise Problem(f"{readme} is missing")
    texts[readme] = between(readme.read_text(encoding="utf-8"), "papers", papers_table(root), readme)
    return texts


def load(folder: Path) -> list[Record]:
    """The records of a folder, by file name. Raises `Problem` for a file that is no JSON object."""
    records = []
    for file in sorted(folder.glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise Problem(f"{file} is no JSON ({error}): run its command again") from error
        if not isinstance(record, dict):
            raise Problem(f"{file} is no JSON object: run its command again")
        records.append({**record, "file": file})
    return records


def between(text: str, name: str, body: str, readme: Path) -> str:
    """The text with everything between the two markers replaced by the body."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise Problem(f"{readme} needs one line {start} and, below it, one line {end}")
    head, rest = text.split(start)
    return f"{head}{start}\n{body}\n{end}{rest.split(end)[1]}"


def chosen_arms(text: str, records: Sequence[Record], readme: Path) -> str:
    """The text with its blocks of chosen arms rendered anew."""
    known = {record["file"].stem: record for record in records}

    def arm_of(name: str, item: str) -> tuple[str, str]:
        """(words, figure) of `NAME = words`."""
        arm, _, words = (part.strip() for part in item.partition("="))
        if name not in known:
            raise Problem(f"{readme}: arms of {name}, which is no file in results")
        if arm not in (arms := arms_of(known[name])):
            raise Problem(f"{readme}: {name} has no arm {arm!r}: it has {', '.join(arms)}")
        return cell(words or arm), cell(summary(arms[arm], known[name]["unit"]))

    def block(found: re.Match) -> str:
        name, items = found[1], " ".join(found[2].split()).split(";")
        if name == "*":
            pairs = [[part.strip() for part in item.partition(":")] for item in items]
            head = ("", "figure", "result file")
            rows = [(*arm_of(file, item), cell(file)) for file, _, item in pairs]
        else:
            rows = [arm_of(name, item) for item in items]
            head = (cell(known[name]["data"]), cell(known[name]["metric"].replace("_", " ")))
        return f"<!-- arms {name}:{found[2]}-->\n{table(head, rows)}\n<!-- /arms -->"

    if text.count("<!-- arms ") != text.count("<!-- /arms -->"):
        raise Problem(f"{readme}: every <!-- arms FILE: NAME --> needs an <!-- /arms --> below it")
    return re.sub(r"<!-- arms ([\w-]+|\*):(.*?)-->.*?<!-- /arms -->", block, text, flags=re.DOTALL)


def arms_of(record: Record) -> dict[str, Record]:
    """All figures of a record by name; "ours" and "against" are two of them."""
    both = {side: record[side] for side in ("ours", "against") if side in record}
    return {**both, **record.get("arms", {})}


# ------------------------------------------------------------------------------------------- tables


def results_table(records: Sequence[Record]) -> str:
    """Claims, then benchmarks, then why some do not hold."""
    if not records:
        return "No results yet."
    claims = [r for r in records if "ratio" not in r]
    benchmarks = [r for r in records if "ratio" in r]
    parts = []
    if claims:
        head = ("Claim", "Ours", "Against", "Paper", "Holds", "Command")
        parts.append(table(head, (named(claim_row, r) for r in claims)))
    if benchmarks:
        head = (
            "Benchmark",
            "Ours",
            "Against",
            "Ratio",
            "Target",
            "Holds",
            "Peak memory",
            "Hardware",
            "Command",
        )
        parts.append(table(head, (named(benchmark_row, r) for r in benchmarks)))
    if notes := [f"* {cell(r['claim'])} {cell(r['explanation'])}" for r in records if r.get("explanation")]:
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


def named(row: Any, record: Record) -> list[str]:
    """A row of a record; a key that it lacks is reported with the file's name."""
    try:
        return row(record)
    except (KeyError, TypeError, ValueError) as error:
        raise Problem(f"{record['file']} is not a result: {type(error).__name__} {error}") from error


def claim_row(record: Record) -> list[str]:
    """Claim with its data; ours with metric and criterion; others; the paper's figure; verdict; command."""
    unit, paper = record["unit"], record["paper_value"]
    against = record.get("against")
    beside = cell(f"{against['name']}: {summary(against, unit)}") if against else ""
    arms = [cell(f"{name}: {summary(arm, unit)}") for name, arm in record.get("arms", {}).items()]
    if len(arms) > SHOWN:
        arms = [f"<details><summary>{len(arms)} more figures</summary>{'<br>'.join(arms)}</details>"]
    ours = summary(record["ours"], unit)
    if "tolerance" in record:
        largest = max(abs(v) for v in record["ours"]["values"])
        ours = (
            f"largest difference {with_unit(number(largest), unit)}, tolerance {number(record['tolerance'])}"
        )
    about = f"{record['data']}{', a stand-in' if record['stand_in'] else ''}; preset {record['preset']}"
    return [
        f"{cell(record['claim'])}<br><sub>{cell(about)}</sub>",
        f"{cell(ours)}<br><sub>{cell(record['metric'].replace('_', ' '))}; {cell(record['criterion'])}</sub>",
        "<br>".join(part for part in (beside, *arms) if part) or "–",
        cell(f"{with_unit(number(paper['value']), unit)} ({paper['source']})") if paper else "not read",
        "yes" if record["holds"] else "**no**",
        code(record["command"]),
    ]


def benchmark_row(record: Record) -> list[str]:
    """What, medians of both, ratio and target, verdict, memory of both, where it ran, command."""
    unit, peak, against = record["unit"], record["peak_mib"], record.get("against")
    threads = f"{record['threads']} thread{'s' if record['threads'] != 1 else ''}"
    peaks = [f"{number(peak[side])} MiB" for side in ("ours", "against") if peak[side] is not None]
    return [
        f"{cell(record['claim'])}<br><sub>{cell(record['data'])}</sub>",
        cell(with_unit(number(record["ours"]["median"]), unit)),
        cell(f"{against['name']}: {with_unit(number(against['median']), unit)}") if against else "not run",
        f"{record['ratio']:.2f}×" if against else "–",
        f"{record['target']:g}×",
        ("yes" if record["holds"] else "**no**") if against else "–",
        " against ".join(peaks),
        cell(f"{record['hardware']}; {record['device']}, {threads}"),
        code(record["command"]),
    ]


def papers_table(root: Path) -> str:
    """One line for each paper that exists."""
    rows = []
    for file in sorted(root.glob("packages/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))
        name, description = project["project"]["name"], project["project"].get("description", "")
        found = re.fullmatch(r"(.+?) \(([^()]+)\): (.+)", description)
        if found is None:
            raise Problem(f'{file}: description must read "Title (arXiv 2311.01462): one sentence"')
        settings = project.get("tool", {}).get("paperkit", {})
        rows.append([
            f"[{name}](packages/{file.parent.name}/README.md)",
            f"{cell(found[1])}, {source(found[2])}",
            cell(found[3]),
            headline(file, settings["headline"]) if "headline" in settings else "–",
            code(settings.get("command", f"uv run --package {name} train")),
        ])  # fmt: skip
    return table(("Package", "Paper", "In one line", "Our figure", "Command"), rows)


def headline(file: Path, name: str) -> str:
    """The figure of one result file, and where it does not hold, that."""
    found = [r for r in load(file.parent / "results") if r["file"].stem == name]
    if not found:
        raise Problem(f"{file}: its headline {name!r} is no file in {file.parent.name}/results")
    return named(headline_row, found[0])[0]


def headline_row(record: Record) -> list[str]:
    """A single cell: the figure with the sentence that it stands for."""
    if "ratio" not in record:
        figure = claim_row(record)[1].split("<br>")[0]
    elif record["ratio"] is None:
        figure = f"{cell(with_unit(number(record['ours']['median']), record['unit']))}, not compared"
    else:
        figure = f"{record['ratio']:.2f}× against {cell(record['against']['name'])}"
    verdict = " (does not hold)" if record["holds"] is False else ""
    return [f"{figure}{verdict}<br><sub>{cell(record['claim'])}</sub>"]


def source(text: str) -> str:
    """A link for an arXiv number; other places stay words."""
    found = re.fullmatch(r"arXiv:? ?(\d{4}\.\d{4,5})", text)
    return f"[arXiv {found[1]}](https://arxiv.org/abs/{found[1]})" if found else cell(text)


# -------------------------------------------------------------------------------------------- cells


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Words that stay words inside a table: no line ends, bars, tags or emphasis."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|*_`\[\]])", r"\\\1", text)


def code(text: str) -> str:
    """A command between back-ticks, as many as it needs."""
    text = " ".join(str(text).split()).replace("|", "\\|")
    ticks = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return f"{ticks} {text} {ticks}" if "`" in text else f"{ticks}{text}{ticks}"


def summary(arm: Record, unit: str) -> str:
    """Mean ± std unit (n = …), with as many decimals as two digits of the spread need."""
    mean, std, n = float(arm["mean"]), float(arm["std"]), arm["n"]
    decimals = max(0, 1 - math.floor(math.log10(std))) if std else 0
    if not std:
        text = number(mean)
    elif decimals > 6 or abs(mean) >= 1e7:
        text = f"{number(mean)} ± {number(std)}"
    else:
        text = f"{mean:.{decimals}f} ± {std:.{decimals}f}"
    return f"{with_unit(text, unit)} (n = {n})"


def number(value: float) -> str:
    """Four significant digits."""
    value = float(value)
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"


def with_unit(text: str, unit: str) -> str:
    """The unit after a space, where there is one ("1" is that of a pure number)."""
    return f"{text} {unit}" if unit not in ("", "1") else text


# ------------------------------------------------------------------------------------------ command


def replace(file: Path, text: str) -> None:
    """Write a file whole or not at all, and keep its mode."""
    handle, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        Path(temporary).chmod(file.stat().st_mode)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def main(arguments: list[str] | None = None) -> int:
    """0 when all is well, 1 when a README differs (with --check) or cannot be rendered."""
    parser = argparse.ArgumentParser(description="Render the result files into the READMEs.")
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 where a README differs")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    given = parser.parse_args(arguments)
    try:
        texts = render(given.root)
    except Problem as problem:
        print(str(problem).replace(f"{given.root}{os.sep}", ""), file=sys.stderr)
        return 1
    differing = {file: text for file, text in texts.items() if file.read_text(encoding="utf-8") != text}
    for file, text in differing.items():
        name = file.relative_to(given.root).as_posix()
        if given.check:
            print(f"{name} differs from what its result files say: run `make results`", file=sys.stderr)
        else:
            replace(file, text)
            print(f"{name} written")
    return 1 if given.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
