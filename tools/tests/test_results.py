"""Result files into READMEs: what is shown, markers, escapes, --check, and what is refused."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paperkit import results as records

SCRIPT = Path(__file__).parents[1] / "results.py"


def load(script: Path):
    spec = importlib.util.spec_from_file_location(f"tools_{script.stem}", script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


results = load(SCRIPT)

README = "# {0}\n\nText before.\n\n<!-- {1} -->\nold\n<!-- /{1} -->\n\nText after.\n"
COMMON = {"paper": "ign", "source": "abstract", "preset": "small", "data": "digits, 1,797", "wall_s": 1}
SMALL = records.claim(
    id="small-samples", claim="Samples are read by a classifier.", metric="named", unit="%", better="higher",
    command="uv run --package ign ign reproduce x", ours=[81.25, 84.5, 79.9],
    against=("untrained | net", [3.1, 2.2, 4.0]), arms={"held out": [98.0, 97.0]},
    criterion="difference > 2 se", statistic=61, threshold=2, stand_in=True, **COMMON,
)  # fmt: skip
EXACT = records.claim(
    id="routing", claim="Gradients are *exact*.", command="ign reproduce routing", metric="difference",
    unit="", better="lower", ours=[3e-14, 0], criterion="exact to 1e-12", tolerance=1e-12,
    paper_value=(0, "section 3"), **COMMON,
)  # fmt: skip
FAILED = records.claim(
    id="twice", claim="Twice helps.", command="ign reproduce twice | cat", metric="kid", unit="",
    better="lower", ours=[0.03, 0.04], criterion="difference > 2 se", statistic=0.3, threshold=2,
    paper_value=(0.021, "Table <2>"), explanation="Within noise.", **COMMON,
)  # fmt: skip
BENCH = records.benchmark(
    paper="ign", id="step", claim="A step is fast.", command="ign bench step", data="digits",
    ours=[0.02] * 5, against=("two networks", [0.03] * 5), target=1.2, peak_mib=(412, 530.25), threads=2,
    device="cpu", wall_s=1,
)  # fmt: skip
ALONE = records.benchmark(
    paper="ign", id="alone", claim="Alone.", command="ign bench alone", data="digits", ours=[0.02] * 5,
    target=1, peak_mib=(12345, None), threads=1, device="cpu", wall_s=1,
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(README.format("Papers", "papers"))
    paper(tmp_path, "ign", '"Idempotent Generative Network (arXiv 2311.01462): fixed points are the data"',
          'headline = "small-samples"')  # fmt: skip
    paper(tmp_path, "gpnn", '"Drop the GAN (CVPR 2022): patches <are> enough"', 'command = "gpnn generate"')
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "README.md").write_text("# paperkit\n\nNo figures here.\n")
    for record in (SMALL, EXACT, FAILED, BENCH, ALONE):
        records.write(tmp_path / "packages" / "ign" / "results", record)
    return tmp_path


def paper(root: Path, name: str, description: str, settings: str = "") -> None:
    folder = root / "packages" / name
    folder.mkdir(parents=True)
    text = f'[project]\nname = "{name}"\ndescription = {description}\n[tool.paperkit]\n{settings}\n'
    (folder / "pyproject.toml").write_text(text)
    (folder / "README.md").write_text(README.format(name, "results"))


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-I", str(SCRIPT), "--root", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, split at bars that no backslash escapes."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_tables_of_a_paper(root: Path) -> None:
    assert run(root).returncode == 0
    text = (root / "packages" / "ign" / "README.md").read_text(encoding="utf-8")
    found = rows(text)
    sizes = [len(row) for row in found]
    assert sizes == [6] * 5 + [9] * 4
    routing, small, twice = found[2:5]
    assert small == [
        "Samples are read by a classifier.<br><sub>digits, 1,797, a stand-in; preset small</sub>",
        "81.9 ± 2.4 % (n = 3)<br><sub>named; difference &gt; 2 se</sub>",
        r"untrained \| net: 3.10 ± 0.90 % (n = 3)<br>held out: 97.50 ± 0.71 % (n = 2)",
        "not read", "yes", "`uv run --package ign ign reproduce x`",
    ]  # fmt: skip
    assert routing[0].startswith(r"Gradients are \*exact\*.")
    assert routing[1].startswith("largest difference 3e-14, tolerance 1e-12<br><sub>difference; ")
    assert routing[2:] == [
        "–", "0 (section 3)", "yes", "`ign reproduce routing`"
    ]  # fmt: skip
    assert twice[1].startswith("0.0350 ± 0.0071 (n = 2)<br><sub>")
    assert twice[2:] == [
        "–", "0.021 (Table &lt;2&gt;)", "**no**", r"`ign reproduce twice \| cat`"
    ]  # fmt: skip
    alone, bench = found[7:]
    assert bench[1:7] == [
        "0.02 s",
        "two networks: 0.03 s",
        "1.50×",
        "1.2×",
        "yes",
        "412 MiB against 530.2 MiB",
    ]
    assert bench[7].endswith("; cpu, 2 threads")
    assert alone[1:7] == ["0.02 s", "not run", "–", "1×", "–", "12345 MiB"]
    assert "* Twice helps. Within noise.\n" in text


def test_many_arms_are_folded_away_and_pure_numbers_have_no_unit() -> None:
    arm = {"mean": 0.5, "std": 0.0, "n": 1, "values": [0.5]}
    record = {
        "claim": "c", "data": "d", "stand_in": False, "preset": "p", "unit": "1", "metric": "m", "ours": arm,
        "criterion": "x", "paper_value": None, "holds": True, "command": "k",
    }  # fmt: skip
    few = results.claim_row(record | {"arms": dict.fromkeys("abc", arm)})[2]
    assert few == "<br>".join(f"{name}: 0.5 (n = 1)" for name in "abc")
    many = results.claim_row(record | {"arms": dict.fromkeys("abcd", arm)})[2]
    assert many == f"<details><summary>4 more figures</summary>{few}<br>d: 0.5 (n = 1)</details>"


def test_the_text_around_the_markers_stays(root: Path) -> None:
    run(root)
    for name, mark in (("packages/ign/README.md", "results"), ("README.md", "papers")):
        text = (root / name).read_text(encoding="utf-8")
        assert text.startswith(README.split("<!--")[0].format("Papers" if mark == "papers" else "ign"))
        assert text.split(f"\n<!-- /{mark} -->")[1] == "\n\nText after.\n"
        assert "old" not in text.split()
    assert (root / "shared" / "README.md").read_text() == "# paperkit\n\nNo figures here.\n"


ARMS = "<!-- arms small-samples: held out = real | digits;\nours -->\nold\n<!-- /arms -->\n"


def test_chosen_arms_stand_where_the_text_wants_them(root: Path) -> None:
    readme = root / "packages" / "ign" / "README.md"
    readme.write_text(f"{ARMS}Between.\n{readme.read_text()}{ARMS}")
    assert run(root).returncode == 0
    text = readme.read_text()
    part = text.split("Between.")[0]
    assert part.startswith(ARMS.split("old")[0])
    assert rows(part)[2:] == [
        ["real \\| digits", "97.50 ± 0.71 % (n = 2)"], ["ours", "81.9 ± 2.4 % (n = 3)"]
    ]  # fmt: skip
    assert "named" in rows(part)[0]
    assert text.count("97.50") == 3
    assert "\nold\n" not in text
    assert run(root, "--check").returncode == 0


def test_arms_of_several_files_stand_in_one_table(root: Path) -> None:
    readme = root / "packages" / "ign" / "README.md"
    block = "<!-- arms *: small-samples: held out = a: b; twice: ours -->\nold\n<!-- /arms -->\n"
    readme.write_text(block + readme.read_text())
    assert run(root).returncode == 0
    text = readme.read_text()
    assert text.startswith(block.split("old")[0])
    assert rows(text.split("<!-- /arms -->")[0])[2:] == [
        ["a: b", "97.50 ± 0.71 % (n = 2)", "small-samples"], ["ours", "0.0350 ± 0.0071 (n = 2)", "twice"]
    ]  # fmt: skip
    assert run(root, "--check").returncode == 0


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("<!-- arms *: nothing: ours -->\n<!-- /arms -->", "arms of nothing, which is no file"),
        ("<!-- arms nothing: ours -->\n<!-- /arms -->", "arms of nothing, which is no file"),
        (
            "<!-- arms small-samples: held in -->\n<!-- /arms -->",
            "no arm 'held in': it has ours, against, held out",
        ),
        ("<!-- arms small-samples: ours -->", "needs an <!-- /arms -->"),
    ],
)
def test_arms_that_cannot_be_shown_are_named(root: Path, block: str, message: str) -> None:
    readme = root / "packages" / "ign" / "README.md"
    before = f"{block}\n{readme.read_text()}"
    readme.write_text(before)
    done = run(root)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert readme.read_text() == before


def test_the_table_of_papers(root: Path) -> None:
    run(root)
    found = rows((root / "README.md").read_text(encoding="utf-8"))
    assert found[2:] == [
        ["[gpnn](packages/gpnn/README.md)", "Drop the GAN, CVPR 2022", "patches &lt;are&gt; enough", "–",
         "`gpnn generate`"],
        ["[ign](packages/ign/README.md)",
         "Idempotent Generative Network, [arXiv 2311.01462](https://arxiv.org/abs/2311.01462)",
         "fixed points are the data",
         "81.9 ± 2.4 % (n = 3)<br><sub>Samples are read by a classifier.</sub>",
         "`uv run --package ign train`"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("twice", "0.0350 ± 0.0071 (n = 2) (does not hold)<br><sub>Twice helps.</sub>"),
        ("bench-step", "1.50× against two networks<br><sub>A step is fast.</sub>"),
        ("bench-alone", "0.02 s, not compared<br><sub>Alone.</sub>"),
    ],
)
def test_any_result_file_may_be_the_headline(root: Path, name: str, figure: str) -> None:
    file = root / "packages" / "ign" / "pyproject.toml"
    file.write_text(file.read_text().replace("small-samples", name))
    run(root)
    assert rows((root / "README.md").read_text(encoding="utf-8"))[3][3] == figure


def test_a_paper_without_results_says_so(root: Path) -> None:
    run(root)
    text = (root / "packages" / "gpnn" / "README.md").read_text()
    assert "<!-- results -->\nNo results yet.\n<!-- /results -->" in text


def test_results_of_the_shared_package_are_shown_too(root: Path) -> None:
    records.write(root / "shared" / "results", BENCH | {"paper": "paperkit"})
    (root / "shared" / "README.md").write_text(README.format("paperkit", "results"))
    run(root)
    assert "A step is fast." in (root / "shared" / "README.md").read_text()


def test_check_names_each_readme_that_differs_and_changes_nothing(root: Path) -> None:
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    done = run(root, "--check")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [line.split(" differs")[0] for line in lines] == [
        "packages/gpnn/README.md", "packages/ign/README.md", "README.md"
    ]  # fmt: skip
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    assert run(root).stdout.splitlines() == [f"{line.split(' differs')[0]} written" for line in lines]
    assert run(root, "--check").returncode == 0
    assert run(root).stdout == "", "a second run has nothing to do"


def test_a_changed_figure_is_noticed(root: Path) -> None:
    run(root)
    file = root / "packages" / "ign" / "results" / "twice.json"
    file.write_text(file.read_text().replace('"Twice helps."', '"Twice helps a little."'))
    done = run(root, "--check")
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        ["packages/ign/README.md differs from what its result files say: run `make results`"],
    )


def drop(file: Path, key: str) -> None:
    record = json.loads(file.read_text())
    del record[key]
    file.write_text(json.dumps(record))


IGN = "packages/ign"
BREAKS = {
    "no marker": (lambda r: (r / IGN / "README.md").write_text("# ign\n"), f"{IGN}/README.md needs"),
    "one marker": (lambda r: (r / IGN / "README.md").write_text("<!-- results -->"), "ign/README.md needs"),
    "turned round": (
        lambda r: (r / "README.md").write_text("<!-- /papers -->\n<!-- papers -->"), "README.md needs"),
    "no README": (lambda r: (r / "README.md").unlink(), "README.md is missing"),
    "no README there": (lambda r: (r / IGN / "README.md").unlink(), f"{IGN}/README.md needs"),
    "no JSON": (lambda r: (r / IGN / "results" / "a.json").write_text("{"), "results/a.json is no JSON"),
    "a list": (lambda r: (r / IGN / "results" / "a.json").write_text("[]"), "results/a.json is no JSON"),
    "no key": (lambda r: drop(r / IGN / "results" / "twice.json", "holds"), "twice.json is not"),
    "no headline": (
        lambda r: (r / IGN / "results" / "small-samples.json").unlink(), "its headline 'small-samples' is"),
    "description": (
        lambda r: (r / IGN / "pyproject.toml").write_text('[project]\nname = "ign"\ndescription = "Net"'),
        f"{IGN}/pyproject.toml: description must read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.parametrize("flags", [[], ["--check"]], ids=["write", "check"])
def test_what_cannot_be_rendered_is_named_in_one_line_and_nothing_is_written(
    root: Path, name: str, flags: list[str]
) -> None:
    breaks, message = BREAKS[name]
    breaks(root)
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    done = run(root, *flags)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert str(root) not in done.stderr
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a b", "`a b`"), ("a | b", r"`a \| b`"), ("echo `x`", "`` echo `x` ``"), ("a\n b", "`a b`")],
)
def test_commands_stay_commands(text: str, expected: str) -> None:
    assert results.code(text) == expected


def test_words_stay_words() -> None:
    assert results.cell("a|b *c* _d_\n<e> & `f` [g](h)") == (
        r"a\|b \*c\* \_d\_ &lt;e&gt; &amp; \`f\` \[g\](h)"
    )
