"""One page that tells a run: what it drew, how it learned, what it claims, how to repeat it.

Used by every paper's `report` and at the end of `train`. The page is one file with everything inside: no
network, no script, light and dark, for a phone as for a desk. Importing this imports no torch.
"""

import base64
import json
import math
import os
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from paperkit import UserError
from paperkit.report.curves import Point, figure, panel
from paperkit.run import atomic

MOST_OF_A_SERIES = 6
MOST_NAMED = 12
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
SMALL = 300
"""Pictures below this width, in pixels, are enlarged with sharp edges."""
WIDE = 1.4
"""Pictures at least so many times as wide as high stand two in a row."""


def write(
    run: str | os.PathLike[str],
    title: str,
    subtitle: str = "",
    claims: Sequence[Mapping[str, Any]] = (),
    notes: str = "",
) -> Path:
    """Write `report.html` into a run folder from what lies there; returns its path.

    `claims` are records of `paperkit.results`. `notes` are paragraphs apart by an empty line, or tables as
    text. Needs `manifest.json`; configuration, metrics and pictures are shown where they are. Raises
    `UserError` for a folder without a manifest and for a file that cannot be read.
    """
    folder = Path(run)
    manifest = _json(folder / "manifest.json")
    if manifest is None:
        raise UserError(f"{folder} is not a run folder: it has no manifest.json")
    config = _json(folder / "config.json") or {}
    sections = [
        _samples(_series(folder / "samples")),
        _claims(claims),
        _curves(_metrics(folder / "metrics.jsonl")),
        _section("Notes", *(_note(text) for text in re.split(r"\n\s*\n", notes.strip()) if text)),
        _repeat(manifest),
        _records(config, manifest),
    ]
    page = _page(title, _header(title, subtitle, manifest), "\n".join(s for s in sections if s))
    target = folder / "report.html"
    with atomic(target, "w") as stream:
        stream.write(page)
    return target


# -------------------------------------------------------------------------------------------- files


def _json(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} cannot be read: it is no JSON object")
    return found


def _metrics(file: Path) -> dict[str, list[Point]]:
    """Points (step, value) of every numeric key, in the order in which the keys first appear."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    curves: dict[str, list[Point]] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            step = float(record.pop("step"))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            if number == len(lines):
                break  # the run was killed while it wrote this line
            raise UserError(f"{file}, line {number}, is no JSON object with a step") from error
        for key, value in record.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                curves.setdefault(key, []).append((step, float(value)))
    return {key: sorted(points, key=lambda p: p[0]) for key, points in curves.items()}


def _series(folder: Path) -> dict[str, list[tuple[int | None, Path]]]:
    """Pictures by name without their step: {"": [(0, 000000.png), (500, 000500.png)], "faces": …}."""
    series: dict[str, list[tuple[int | None, Path]]] = {}
    for file in sorted(folder.glob("*.png")):
        found = re.fullmatch(r"(?:(.*?)[-_ ]?)(\d{4,})", file.stem)
        name, step = (found[1], int(found[2])) if found else (file.stem, None)
        series.setdefault(name, []).append((step, file))
    return {name: sorted(files, key=lambda f: f[0] or 0) for name, files in series.items()}


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """The first, the last, and evenly spaced ones between, `most` in all."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


# ------------------------------------------------------------------------------------------ sections


def _header(title: str, subtitle: str, manifest: Mapping[str, Any]) -> str:
    words = [manifest.get("paper"), _named("preset", manifest), _named("seed", manifest)]
    eyebrow = " · ".join(escape(str(w)) for w in words if w not in (None, ""))
    state = str(manifest.get("state", ""))
    facts = {
        "State": state,
        "Started": _moment(manifest.get("started")),
        "Duration": _duration(manifest.get("started"), manifest.get("ended")),
        "Steps": manifest.get("step"),
        "Parameters": manifest.get("parameters"),
        "Data": manifest.get("data"),
        "Device": ", ".join(str(manifest[k]) for k in ("device", "precision") if manifest.get(k)),
        "Commit": _commit(manifest),
    }
    items = "".join(
        f"<div><dt>{name}</dt><dd>{escape(_value(value))}</dd></div>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    return (
        (f'<p class="eyebrow">{eyebrow}</p>' if eyebrow else "")
        + f"<h1>{escape(title)}</h1>"
        + (f'<p class="subtitle">{escape(subtitle)}</p>' if subtitle else "")
        + (f'<dl class="facts">{items}</dl>' if items else "")
        + _notice(state, str(manifest.get("error") or ""))
    )


def _notice(state: str, error: str) -> str:
    """A run that did not end well says so before it shows anything."""
    if state in ("", "finished"):
        return ""
    text = f"This run is not finished ({state})" + (f": {error}" if error else ".")
    return f'<p class="notice">{escape(text)}</p>'


def _claims(claims: Sequence[Mapping[str, Any]]) -> str:
    return _section("Claims", *(_claim(record) for record in claims))


def _claim(record: Mapping[str, Any]) -> str:
    bench = "ratio" in record
    figures = _bench_figures(record) if bench else _claim_figures(record)
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{main}{f'<small>{small}</small>' if small else ''}</dd></div>"
        for name, main, small in figures
    )
    lines = [f"<h3>{escape(str(record.get('claim', '')))}</h3>", f'<dl class="figures">{cells}</dl>']
    if record.get("explanation"):
        lines.append(f"<p>{escape(record['explanation'])}</p>")
    about = [
        record.get("data"),
        "a stand-in for the paper’s data" if record.get("stand_in") else "",
        record.get("source"),
    ]
    lines.append(f'<p class="quiet">{escape(" · ".join(str(a) for a in about if a))}</p>')
    lines.append(f"<pre><code>{escape(str(record.get('command', '')))}</code></pre>")
    return f'<article class="claim">{"".join(lines)}</article>'


def _claim_figures(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    unit = record.get("unit", "")
    if "tolerance" in record:
        largest = figure(max(abs(v) for v in record["ours"]["values"]))
        rows = [("Largest difference", escape(_with_unit(largest, unit)), f"cases: {record['ours']['n']}")]
        test = f"{record['criterion']}: tolerance {figure(record['tolerance'])}"
    else:
        rows = [("Ours", *_arm(record["ours"], unit))]
        sign = "≥" if record["holds"] else "<"
        test = f"{record['criterion']}: {figure(record['statistic'])} {sign} {figure(record['threshold'])}"
    if record.get("against"):
        rows.append((record["against"]["name"], *_arm(record["against"], unit)))
    rows += [(name, *_arm(arm, unit)) for name, arm in record.get("arms", {}).items()]
    return [*rows, _paper(record, unit), ("Verdict", _verdict(record["holds"]), escape(test))]


def _paper(record: Mapping[str, Any], unit: str) -> tuple[str, str, str]:
    value = record.get("paper_value")
    if not isinstance(value, Mapping):
        return "The paper", "not read", ""
    return "The paper", escape(_with_unit(figure(value["value"]), unit)), escape(str(value["source"]))


def _bench_figures(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    unit, peak = record.get("unit", "s"), record.get("peak_mib", {})

    def side(key: str) -> tuple[str, str]:
        median = escape(_with_unit(figure(record[key]["median"]), unit))
        return median, f"median of {record[key]['n']}, peak {figure(peak[key])} MiB" if peak.get(
            key
        ) is not None else ""

    rows = [("Ours", *side("ours"))]
    if record.get("against"):
        rows.append((record["against"]["name"], *side("against")))
    if record["ratio"] is None:
        return [*rows, ("Ratio", "not compared", "the other side was not run")]
    return [
        *rows,
        ("Ratio", f"{record['ratio']:.2f}×", "above 1 is faster"),
        ("Verdict", _verdict(record["holds"]), f"target {record['target']:g}×"),
    ]


def _samples(series: Mapping[str, Sequence[tuple[int | None, Path]]]) -> str:
    """One row per series over steps, then one row of the pictures that have a name only."""
    stepped = {name: found for name, found in series.items() if found[0][0] is not None}
    named = [(name, *found[0]) for name, found in series.items() if found[0][0] is None]
    rows = []
    for name, pictures in stepped.items():
        shown = _spread(pictures, MOST_OF_A_SERIES)
        heading = f"<h3>{escape(_title(name))}</h3>" if name else ""
        rows.append(_row(heading, [(name, *file) for file in shown], len(pictures) - len(shown)))
    if named:
        rows.append(_row("", named[:MOST_NAMED], len(named) - MOST_NAMED))
    return _section("Samples", *rows)


def _row(heading: str, files: Sequence[tuple[str, int | None, Path]], left_out: int) -> str:
    """Pictures side by side; fewer in a row where they are wide, so that words in them can be read."""
    pictures = [(name, step, *_png(file)) for name, step, file in files]
    wide = any(width >= WIDE * height and width >= SMALL for _, _, _, width, height in pictures)
    kind = "samples" + (" steps" if files[0][1] is not None else "") + (" wide" if wide else "")
    figures = "".join(_picture(*picture) for picture in pictures)
    rest = f'<p class="quiet">{left_out} more in samples/</p>' if left_out > 0 else ""
    return f'<div class="series">{heading}<div class="{kind}">{figures}</div>{rest}</div>'


def _png(file: Path) -> tuple[bytes, int, int]:
    """A picture's bytes, width and height."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        raise UserError(f"{file} is no PNG picture: remove it or write it again")
    width, height = struct.unpack(">II", data[16:24])
    return data, width, height


def _picture(name: str, step: int | None, data: bytes, width: int, height: int) -> str:
    what = _title(name) or "Samples"
    caption, alt = (what, what) if step is None else (f"step {step}", f"{what} at step {step}")
    small = ' class="small"' if width < SMALL else ""
    return (
        f'<figure><img{small} src="data:image/png;base64,{base64.b64encode(data).decode()}" '
        f'alt="{escape(alt)}" width="{width}" height="{height}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _note(text: str) -> str:
    """A paragraph; columns that spaces align (a table as text) stay as they are."""
    return f"<pre>{escape(text)}</pre>" if "\n" in text and "   " in text else f"<p>{escape(text)}</p>"


def _curves(curves: Mapping[str, Sequence[Point]]) -> str:
    panels = "".join(panel(name, points) for name, points in curves.items())
    return _section("Curves", f'<div class="curves">{panels}</div>') if panels else ""


def _repeat(manifest: Mapping[str, Any]) -> str:
    command = manifest.get("command")
    if not command:
        return ""
    text = command if isinstance(command, str) else " ".join(str(word) for word in command)
    commit = _commit(manifest)
    at = f"<p class='quiet'>at commit {escape(commit)}</p>" if commit else ""
    return _section("To run it again", f"<pre><code>{escape(text)}</code></pre>{at}")


def _records(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    versions = manifest.get("versions")
    rest = {k: v for k, v in manifest.items() if k != "versions"}
    blocks = [
        _details("Configuration", config, " open"),
        _details("Manifest", rest),
        _details("Versions", versions if isinstance(versions, Mapping) else {}),
    ]
    return f"<section>{''.join(blocks)}</section>" if any(blocks) else ""


def _details(name: str, values: Mapping[str, Any], state: str = "") -> str:
    rows = list(_flat(values))
    if not rows:
        return ""
    body = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(_value(v))}</td></tr>' for k, v in rows)
    head = f"<summary><h2>{name}</h2><small>{len(rows)} entries</small></summary>"
    return f"<details{state}>{head}<table><tbody>{body}</tbody></table></details>"


def _section(heading: str, *parts: str) -> str:
    return f"<section><h2>{heading}</h2>{''.join(parts)}</section>" if any(parts) else ""


def _page(title: str, header: str, body: str) -> str:
    style = files("paperkit.report").joinpath("style.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>{header}</header>
<main>
{body}
</main>
<footer>Written by paperkit from the files of this run.</footer>
</body>
</html>
"""


# --------------------------------------------------------------------------------------------- words


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:,}".replace(",", "\u202f")
    return json.dumps(value, ensure_ascii=False, default=str)


def _arm(arm: Mapping[str, Any], unit: str) -> tuple[str, str]:
    """Mean ± std, and how many; the mean has as many decimals as two digits of the spread need."""
    mean, std, n = float(arm["mean"]), float(arm["std"]), arm["n"]
    decimals = max(0, 1 - math.floor(math.log10(std))) if std else 0
    if not std:
        text = figure(mean)
    elif decimals > 6 or abs(mean) >= 1e7:
        text = f"{figure(mean)} ± {figure(std)}"
    else:
        text = f"{mean:.{decimals}f} ± {std:.{decimals}f}".replace("-", "−")
    return escape(_with_unit(text, unit)), f"n = {n}"


def _with_unit(text: str, unit: str) -> str:
    return f"{text}\u202f{unit}" if unit else text


def _verdict(holds: bool) -> str:
    style, words = ("holds", "holds") if holds else ("fails", "does not hold")
    return f'<span class="verdict {style}">{words}</span>'


def _named(key: str, manifest: Mapping[str, Any]) -> str:
    return f"{key} {manifest[key]}" if manifest.get(key) is not None else ""


def _title(name: str) -> str:
    words = re.sub(r"[-_]+", " ", name).strip()
    return words[:1].upper() + words[1:]


def _commit(manifest: Mapping[str, Any]) -> str:
    commit = str(manifest.get("commit") or "")
    return f"{commit[:10]}{', with changes' if manifest.get('dirty') else ''}" if commit else ""


def _when(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None


def _moment(text: Any) -> str:
    when = _when(text)
    return when.strftime("%-d %B %Y, %H:%M") if when else str(text or "")


def _duration(started: Any, ended: Any) -> str:
    first, last = _when(started), _when(ended)
    if first is None or last is None:
        return ""
    seconds = (last.replace(tzinfo=None) - first.replace(tzinfo=None)).total_seconds()
    hours, rest = divmod(round(seconds), 3600)
    if hours:
        return f"{hours} h {rest // 60} min"
    return f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{seconds:.0f} s"
