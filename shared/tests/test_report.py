"""The page of a run: what stands in it, that nothing leaves it, that it fits a phone; and the charts."""

import base64
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from paperkit import UserError, report, results
from paperkit.report import curves
from PIL import Image

VOID = {"meta", "img", "line", "circle", "polyline", "br", "link", "input"}


class Page(HTMLParser):
    """The page as a list of (tag, attributes) and the text by the innermost tag; checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def of(self, *tags: str) -> list[str]:
        return [text for tag, text in self.texts if tag in tags]

    @property
    def words(self) -> str:
        return " ".join(text for tag, text in self.texts if tag != "style")


MANIFEST = {
    "paper": "ign", "title": "Idempotent Generative Network", "preset": "small", "seed": 3,
    "command": "uv run --package ign train --seed 3 --data.name 'a & b <c>'", "commit": "0b012b8c5f5b4f7d9",
    "dirty": True, "versions": {"torch": "2.15.0", "numpy": "2.4.6"}, "device": "cpu", "precision": "fp32",
    "started": "2026-11-25T10:35:01+00:00", "ended": "2026-11-25T12:39:47+00:00", "state": "finished",
    "step": 4000, "data": "digits, 1,797 images", "parameters": 1284353,
}  # fmt: skip
CONFIG = {
    "lr": 1e-4, "model": {"width": 64, "blocks": [64, 128], "empty": {}}, "root": None, "ema": True,
    "long": "averylongname" * 30, "script": "<script>alert('x')</script> & \"quotes\"",
}  # fmt: skip
COMMON = {"paper": "ign", "source": "section 3", "preset": "small", "data": "digits", "wall_s": 3}


def claims() -> list[results.Record]:
    return [
        results.claim(
            id="a", claim="Ours is <b>better</b>.", command="ign reproduce a", metric="top1", unit="%",
            better="higher", ours=[81.25, 84.5, 79.9], against=("untrained & blind", [3.1, 2.2, 4.0]),
            arms={"held out": [98.0]}, criterion="paired difference > 2 se", statistic=61.2, threshold=2.0,
            stand_in=True, **COMMON,
        ),
        results.claim(
            id="b", claim="It is exact.", command="ign reproduce b", metric="difference", unit="",
            better="lower", ours=[3e-14, 1e-15], criterion="exact to 1e-12", tolerance=1e-12,
            paper_value=(0, "Table 7"), **COMMON,
        ),
        results.claim(
            id="c", claim="Twice helps.", command="ign reproduce c", metric="kid", unit="", better="lower",
            ours=[0.03, 0.04], criterion="difference > 2 se", statistic=-0.4, threshold=2.0,
            explanation="Within noise at this scale.", **COMMON,
        ),
        results.benchmark(
            paper="ign", id="d", claim="A step is fast.", command="ign bench d", data="digits",
            ours=[0.02] * 5, against=("two networks", [0.03] * 5), target=1.2, peak_mib=(412, 530), threads=2,
            device="cpu", wall_s=1,
        ),
        results.benchmark(
            paper="ign", id="e", claim="Alone.", command="ign bench e", data="digits", ours=[0.02] * 5,
            target=1, peak_mib=(412, None), threads=2, device="cpu", wall_s=1,
        ),
    ]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "samples").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    lines = [
        {"step": s, "loss": 10 ** (-s / 100), "lr": 1e-4, "<i>": -s, "ok": True, "text": "x", "none": None}
        for s in range(0, 400, 10)
    ]
    lines[7]["loss"] = math.nan
    lines[20]["kid_1k"] = 0.5
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines) + '{"step": 4')
    pictures = [f"{s:06d}" for s in range(0, 5001, 500)] + ["faces-000100", "faces-000200", "second <look>"]
    for i, name in enumerate(pictures):
        picture(folder / "samples" / f"{name}.png", shade=i)
    picture(folder / "samples" / "wide.png", width=900)
    return folder


def picture(file: Path, width: int = 20, shade: int = 0) -> None:
    Image.fromarray(np.full((16, width), shade, dtype=np.uint8)).save(file)


def page(run: Path, **given) -> Page:
    arguments = {
        "title": "A & <b>",
        "subtitle": "Sub <i>",
        "claims": claims(),
        "notes": "One <u>.\n\nTwo & three.",
    }
    return Page(report.write(run, **(arguments | given)).read_text(encoding="utf-8"))


# what a reader finds


def test_the_page_lies_in_the_run_folder(run: Path) -> None:
    before = set(run.iterdir())
    assert report.write(run, "Title") == run / "report.html"
    assert set(run.iterdir()) - before == {run / "report.html"}


def test_the_header_tells_the_run(run: Path) -> None:
    found = page(run)
    assert found.of("h1") == ["A & <b>"]
    assert found.of("title") == ["A & <b>"]
    for words in ("ign · preset small · seed 3", "Sub <i>", "25 November 2026, 10:35", "2 h 4 min",
                  "1\u202f284\u202f353",
                  "cpu, fp32", "0b012b8c5f, with changes"):  # fmt: skip
        assert words in found.words, words
    assert "not finished" not in found.words


def test_sections_and_their_order(run: Path) -> None:
    expected = [
        "Samples",
        "Claims",
        "Curves",
        "Notes",
        "To run it again",
        "Configuration",
        "Manifest",
        "Versions",
    ]
    assert page(run).of("h2") == expected


def test_a_table_as_text_keeps_its_columns(run: Path) -> None:
    text = "error        before   after\nclean           0.1     0.2"
    found = page(run, notes=f"Words.\n\n{text}")
    assert text in found.of("pre")
    assert "Words." in found.of("p")


def test_claims_stand_beside_the_papers_figures(run: Path) -> None:
    found = page(run)
    assert found.of("h3")[1:] == [
        "Ours is <b>better</b>.",
        "It is exact.",
        "Twice helps.",
        "A step is fast.",
        "Alone.",
    ]
    values = found.of("dt", "dd", "small", "span")
    for words in ("81.9 ± 2.4\u202f%", "untrained & blind", "3.10 ± 0.90\u202f%", "held out", "98\u202f%",
                  "not read",
                  "paired difference > 2 se: 61.2 ≥ 2", "Largest difference", "3×10⁻¹⁴", "Table 7",
                  "exact to 1e-12: tolerance 10⁻¹²", "difference > 2 se: −0.4 < 2", "does not hold", "1.50×",
                  "target 1.2×", "median of 5, peak 412 MiB", "not compared"):  # fmt: skip
        assert words in values, words
    assert values.count("holds") == 3
    assert "Within noise at this scale." in found.of("p")
    assert "a stand-in for the paper’s data" in found.words
    assert {"ign reproduce a", "ign bench e"} <= set(found.of("code"))


def test_the_command_is_there_to_be_copied(run: Path) -> None:
    assert MANIFEST["command"] in page(run).of("code")


def test_configuration_and_manifest_in_full(run: Path) -> None:
    found = page(run)
    rows = dict(zip(found.of("th"), found.of("td"), strict=True))
    assert rows["model.width"] == "64"
    assert rows["model.blocks"] == "[64, 128]"
    assert rows["model.empty"] == "{}"
    assert (rows["root"], rows["ema"], rows["dirty"]) == ("null", "true", "true")
    assert rows["script"] == CONFIG["script"]
    assert rows["numpy"] == "2.4.6"
    assert set(MANIFEST) - {"versions"} <= set(rows)


def test_samples_first_last_and_a_few_between(run: Path) -> None:
    pictures = [a for tag, a in page(run).tags if tag == "img"]
    alts = [a["alt"] for a in pictures]
    assert alts[:6] == [f"Samples at step {s}" for s in (0, 1000, 2000, 3000, 4000, 5000)]
    assert alts[6:] == ["Faces at step 100", "Faces at step 200", "Second <look>", "Wide"]
    assert [a.get("class") for a in pictures] == ["small"] * 9 + [None]
    assert (pictures[-1]["width"], pictures[-1]["height"]) == ("900", "16")
    first = base64.b64decode(pictures[0]["src"].removeprefix("data:image/png;base64,"))
    assert first == (run / "samples" / "000000.png").read_bytes()
    assert "5 more in samples/" in page(run).words
    rows = [
        a["class"]
        for tag, a in page(run).tags
        if tag == "div" and (a.get("class") or "").startswith("samples")
    ]
    assert rows == ["samples steps", "samples steps", "samples wide"]


def test_one_curve_per_numeric_metric(run: Path) -> None:
    found = page(run)
    labels = [a["aria-label"] for tag, a in found.tags if tag == "svg"]
    assert [label.split(" over ")[0] for label in labels] == ["loss", "lr", "<i>", "kid_1k"]
    assert labels[0] == (
        "loss over steps 0 to 390: starts at 1, ends at 1.26×10⁻⁴, "
        "lowest 1.26×10⁻⁴ at step 390, highest 1 at step 0"
    )
    assert "log scale · 1 not finite" in found.of("span")


@pytest.mark.parametrize("state", ["interrupted", "failed", "running"])
def test_a_run_that_did_not_end_well_says_so(run: Path, state: str) -> None:
    (run / "manifest.json").write_text(
        json.dumps(MANIFEST | {"state": state, "ended": None, "error": "Oops: <3>"})
    )
    assert f"This run is not finished ({state}): Oops: <3>" in page(run).of("p")


def test_a_bare_run_has_a_short_page(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    found = Page(report.write(tmp_path, "Title").read_text())
    assert found.of("h1", "h2") == ["Title"]


# that it is fit to be read anywhere


def nothing_comes_from_outside(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    found = Page(text)
    for tag, attributes in found.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form"), tag
        assert not [a for a in attributes if a.startswith("on")]
        for name in ("src", "href", "srcset", "data", "action", "xlink:href"):
            assert (attributes.get(name) or "data:image/png;base64,").startswith("data:image/png;base64,")
    style = "".join(found.of("style"))
    assert not re.search(r"url\(|@import|//", style)
    assert not re.search(r"https?:", text)
    policy = next(a["content"] for tag, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def everything_has_words(file: Path) -> None:
    tags = Page(file.read_text(encoding="utf-8")).tags
    assert dict(tags)["html"] == {"lang": "en"}
    for tag, attributes in tags:
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
        if tag == "th":
            assert attributes["scope"] == "row"
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), "no level of headings is skipped"
    names = [tag for tag, _ in tags]
    assert names.count("main") == names.count("header") == names.count("footer") == 1
    following = [names[i + 1] for i, tag in enumerate(names) if tag == "details"]
    assert following == ["summary"] * 3, "the keyboard opens them"


def light_and_dark(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6})", block))
        for block in re.split("prefers-color-scheme: dark", text)
    )
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for name in ("ink", "quiet", "accent", "good", "bad"):
            for ground in ("paper", "raised"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground, colours)


def contrast(a: str, b: str) -> float:
    """WCAG 2: ratio of relative luminances."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


MEASURE = """<script>addEventListener("load", () => {
  const outside = [...document.querySelectorAll("body *")]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5);
  parent.postMessage(JSON.stringify({width: innerWidth, scroll: document.documentElement.scrollWidth,
    outside: outside.map(e => e.tagName), images: [...document.images].every(i => i.naturalWidth > 0)}), "*");
})</script>"""
FRAME = """<!DOCTYPE html><title>nothing heard</title>
<script>onmessage = e => document.title = e.data</script>
<iframe src="inside.html" style="border: 0; width: WIDTHpx; height: 900px"></iframe>"""


def in_a_browser(browser: str, width: int) -> Callable[[Path], None]:
    """A check that nothing stands outside a window of this width, by a script in a copy of the page.

    The copy stands in a frame: a browser's own window has a least width, 500 pixels for this one.
    """

    def fits(file: Path) -> None:
        text = re.sub(r'<meta http-equiv="Content-S[^>]*>', "", file.read_text(encoding="utf-8"))
        text = text.replace("<details>", "<details open>").replace("</body>", MEASURE + "</body>")
        file.with_name("inside.html").write_text(text, encoding="utf-8")
        frame = file.with_name("frame.html")
        frame.write_text(FRAME.replace("WIDTH", str(width)))
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
        flags += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
        flags += [f"--user-data-dir={file.parent / 'browser'}", "--window-size=1400,1000"]
        done = subprocess.run(
            [browser, *flags, "--dump-dom", frame.as_uri()],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        found = re.search(r"<title>(.*?)</title>", done.stdout)
        assert found
        assert json.loads(found[1]) == {"width": width, "scroll": width, "outside": [], "images": True}

    fits.__name__ = f"fits_{width}_pixels"
    return fits


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHECKS = [nothing_comes_from_outside, everything_has_words, light_and_dark]
CHECKS += [in_a_browser(BROWSER, width) for width in (390, 1200)] if BROWSER else []


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_the_page(check: Callable[[Path], None], run: Path) -> None:
    page(run)
    check(run / "report.html")


def test_import_brings_no_torch() -> None:
    code = "import sys, paperkit.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# bad input

BAD = {
    "manifest.json": [("{", "cannot be read"), ("[]", "it is no JSON object"), (None, "is not a run folder")],
    "config.json": [("{", "cannot be read"), ("3", "it is no JSON object")],
    "metrics.jsonl": [('{"step": 1}\n{"st\n{"step": 2}\n', "line 2"),
                      ('{"loss": 1}\n{"step": 2}\n', "line 1"),
                      ('[1]\n{"step": 2}\n', "line 1"), ('{"step": "x"}\n{"step": 2}\n', "line 1")],
    "samples/000000.png": [("no picture", "is no PNG picture"), ("", "is no PNG picture")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"), [(n, t, m) for n, cases in BAD.items() for t, m in cases]
)
def test_a_broken_file_is_named_and_no_page_is_written(
    run: Path, name: str, text: str | None, message: str
) -> None:
    if text is None:
        (run / name).unlink()
    else:
        (run / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        report.write(run, "Title")
    assert Path(name).name in str(caught.value)
    assert not (run / "report.html").exists()


# charts


def curve(values: list) -> list[curves.Point]:
    return [(float(step), float(value)) for step, value in enumerate(values)]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3.7, 12), (0.0021, 0.0029), (1e5, 9e5), (-1e-7, 1e-7), (0.999999, 1.000001)]
)
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = curves.ticks_between(low, high)
    assert 2 <= len(ticks) <= 6
    span = high - low
    assert all(low - 1e-9 * span <= t <= high + 1e-9 * span for t in ticks)
    step = ticks[1] - ticks[0]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-6), 3) in (1, 2, 5)
    assert all(len(f"{t:.12g}".lstrip("-0.").replace(".", "")) <= 9 for t in ticks), ticks


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([1, 99], False),
        ([1, 101], True),
        ([0, 1000], False),
        ([-1, 1000], False),
        ([1e-9, 1e9], True),
        ([5], False),
    ],
)
def test_the_scale_is_logarithmic_only_for_positive_values_far_apart(values: list, log: bool) -> None:
    text = curves.panel("m", curve(values))
    assert ("log scale" in text) == log
    inside(text)


@pytest.mark.parametrize("values", [[0], [3], [3, 3, 3], [-2, -2], [0, 0], [1e300, -1e300], [1e-300, 2e-300]])
def test_flat_and_extreme_curves_are_drawn(values: list) -> None:
    inside(curves.panel("m", curve(values)))


def inside(text: str) -> None:
    """Every coordinate of the chart is finite and inside its frame."""
    numbers = re.findall(r' (?:x1?|x2|y1?|y2|cx|cy)="([^"]*)"', text)
    pairs = [p.split(",") for points in re.findall(r'points="([^"]*)"', text) for p in points.split()]
    for x, y in pairs:
        assert curves.LEFT <= float(x) <= curves.WIDTH - curves.RIGHT
        assert curves.TOP <= float(y) <= curves.HEIGHT - curves.BOTTOM
    assert numbers
    assert all(0 <= float(n) <= curves.WIDTH for n in numbers)


def test_the_line_goes_through_its_points() -> None:
    text = curves.panel("m", [(0.0, 0.0), (50.0, 1.0), (100.0, 0.5)])
    right, bottom = curves.WIDTH - curves.RIGHT, curves.HEIGHT - curves.BOTTOM
    points = [
        (curves.LEFT, bottom),
        ((curves.LEFT + right) / 2, curves.TOP),
        (right, (bottom + curves.TOP) / 2),
    ]
    assert f'points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"' in text
    assert ">0.5</text>" in text


def test_a_value_that_is_not_finite_breaks_the_line() -> None:
    values = [1.0, 2.0, math.inf, 3.0, math.nan, math.nan, 4.0, 5.0]
    assert curves.panel("m", curve(values)).count("<polyline") == 3
    assert "no finite value in 2 records" in curves.panel("m", [(0.0, math.nan), (1.0, math.inf)])


def test_thinning_keeps_ends_and_every_spike() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=50_001)
    spikes = rng.choice(50_000, 20, replace=False)
    values[spikes] = 100 + np.arange(20)
    points = [(float(i), float(v)) for i, v in enumerate(values)]
    kept = curves.thin(points)
    assert 1000 < len(kept) <= 2000
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(kept)
    assert {points[i] for i in spikes} <= set(kept)
    assert min(points, key=lambda p: p[1]) in kept
    assert set(kept) <= set(points)
    assert curves.thin(points[:2000]) == points[:2000]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.23456, "1.235"), (-0.5, "−0.5"), (1e-3, "0.001"), (3.14159e-5, "3.14×10⁻⁵"),
     (1e-12, "10⁻¹²"), (12345, "12\u202f345"), (123456.7, "123\u202f457"), (2.5e9, "2.5×10⁹"),
     (-1e-7, "−10⁻⁷"), (math.inf, "inf")],
)  # fmt: skip
def test_figures_are_written_short(value: float, text: str) -> None:
    assert curves.figure(value) == text
