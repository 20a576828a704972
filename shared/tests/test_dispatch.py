"""`train` in real environments: a small uv workspace of three made-up papers.

The `paperkit` in it needs psutil only, so that an environment takes a second. Alpha, beta and gamma are no
papers of ours: whatever started pytest (`uv run --package ign pytest`, say) tells nothing about them.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import paperkit
import pytest
from paperkit import UserError, dispatch

PAPERS = ("alpha", "beta", "gamma")
# What the caller's shell may say about another project; network and cache settings stay.
NOT_OURS = (
    "PAPER PYTHONPATH VIRTUAL_ENV UV_PROJECT UV_WORKING_DIR UV_PROJECT_ENVIRONMENT UV_PYTHON UV_NO_SYNC "
    "UV_FROZEN UV_LOCKED UV_ISOLATED UV_NO_PROJECT UV_NO_EDITABLE UV_RUN_RECURSION_DEPTH MAKEFLAGS MAKELEVEL"
)
BACKEND = '\n[build-system]\nrequires = ["uv_build>=0.9,<1"]\nbuild-backend = "uv_build"\n'

ROOT = f"""
[project]
name = "made-up"
version = "0"
requires-python = "=={sys.version_info.major}.{sys.version_info.minor}.*"
[tool.uv]
package = false
[tool.uv.workspace]
members = ["shared", "packages/*"]
[tool.uv.sources]
paperkit = {{ workspace = true }}
"""
SHARED = f"""
[project]
name = "paperkit"
version = "0"
dependencies = ["psutil=={version("psutil")}"]
[project.scripts]
train = "paperkit.dispatch:train"
generate = "paperkit.dispatch:generate"
evaluate = "paperkit.dispatch:evaluate"
reproduce = "paperkit.dispatch:reproduce"
"""
PAPER = """
[project]
name = "{name}"
version = "0"
dependencies = ["paperkit"]
[project.scripts]
{name} = "{name}.cli:main"
[project.entry-points."paperkit.papers"]
{name} = "{name}.cli:main"
"""
CLI = """
import json, sys
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    print(json.dumps({{"paper": "{name}", "argv": list(argv)}}))
    return 7 if "--fail" in argv else 0
"""


def uv() -> str:
    """The uv that runs these tests, else the one on PATH, else the one that the Makefile fetched."""
    fetched = Path(__file__).parents[2] / ".uv" / "bin" / "uv"
    found = os.environ.get("UV") or shutil.which("uv") or shutil.which(fetched)
    assert found, "these tests need uv on PATH (`make test` brings it)"
    return found


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.lstrip("\n"), encoding="utf-8")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary workspace, locked; each test makes the environment that it needs."""
    root = tmp_path_factory.mktemp("made-up")
    write(root / "pyproject.toml", ROOT)
    write(root / "shared" / "pyproject.toml", SHARED + BACKEND)
    for module in (paperkit, dispatch):
        source = Path(str(module.__file__))
        write(root / "shared" / "src" / "paperkit" / source.name, source.read_text("utf-8"))
    for name in PAPERS:
        member = root / "packages" / name
        write(member / "pyproject.toml", PAPER.format(name=name) + BACKEND)
        write(member / "src" / name / "__init__.py", "")
        write(member / "src" / name / "cli.py", CLI.format(name=name))
    call(root, f"{uv()} lock")
    return root


def call(
    root: Path, command: str | Sequence[str], folder: Path | None = None, code: int = 0, **variables: str
) -> str:
    """Run a command with the workspace's environment on PATH; return stdout, of a failure stderr."""
    kept = {name: value for name, value in os.environ.items() if name not in NOT_OURS.split()}
    path = os.pathsep.join([str(root / ".venv" / "bin"), str(Path(uv()).parent), kept["PATH"]])
    done = subprocess.run(
        shlex.split(command) if isinstance(command, str) else command,
        cwd=folder or root,
        env={**kept, "PATH": path, **variables},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def paper(output: str) -> str:
    return json.loads(output)["paper"]


@pytest.fixture
def everything(root: Path) -> Path:
    """The workspace with all three papers installed."""
    call(root, "uv sync --all-packages --quiet")
    return root


def test_one_after_the_other_in_a_fresh_environment(root: Path) -> None:
    shutil.rmtree(root / ".venv", ignore_errors=True)
    order = ["alpha", "beta", "alpha", "gamma", "beta", "alpha"]
    assert [paper(call(root, f"uv run --package {name} train")) for name in order] == order


def test_after_all_packages_and_after_an_exact_sync(everything: Path) -> None:
    order = ["alpha", "beta", "gamma", "alpha"]
    assert [paper(call(everything, f"uv run --package {name} train")) for name in order] == order
    call(everything, "uv sync --package alpha --quiet")
    assert [paper(call(everything, f"uv run --package {name} train")) for name in order] == order


def test_ten_at_once(everything: Path) -> None:
    order = [PAPERS[index % 3] for index in range(10)]
    with ThreadPoolExecutor(10) as pool:
        outputs = pool.map(lambda name: call(everything, f"uv run --package {name} train"), order)
    assert [paper(output) for output in outputs] == order


@pytest.mark.parametrize(
    ("command", "folder", "expected"),
    [
        ("uv run train", "packages/beta", "beta"),
        ("uv run train", "packages/gamma/src/gamma", "gamma"),
        ("train", "packages/beta", "beta"),
        ("uv run --directory packages/beta train", ".", "beta"),
        ("uv --directory packages/beta run train", ".", "beta"),
        ("uv run --project packages/gamma train", ".", "gamma"),
        ("uv run --project ../gamma train", "packages/beta", "gamma"),
        ("uv run --directory packages --project gamma train", ".", "gamma"),
        ("uv run --package=alpha --directory packages/beta train", ".", "alpha"),
        ("uv run --no-sync --package alpha train", "packages/beta", "alpha"),
        ("uv run -q --with psutil --package alpha -- train", "packages/beta", "alpha"),
        ("uv run --isolated --package gamma train", ".", "gamma"),
        ("uv run --package beta bash -c 'cd shared; true; train; true'", ".", "beta"),
        ("uv run --package beta python -c 'import subprocess as s; s.run([\"train\"])'", ".", "beta"),
        ('uv run --package beta python -c \'import os; os.execvp("train", ["train"])\'', ".", "beta"),
        ("uv run --package alpha uv run --package gamma train", ".", "gamma"),
        ("uv run --package alpha bash -c 'uv run --package gamma true; train; true'", ".", "alpha"),
        ("uv run --package paperkit train", "packages/alpha", "alpha"),
    ],
)
def test_forms(everything: Path, command: str, folder: str, expected: str) -> None:
    assert paper(call(everything, command, folder=everything / folder)) == expected


@pytest.mark.parametrize("verb", ["train", "generate", "evaluate", "reproduce"])
def test_verb_arguments_and_exit_code_are_the_papers(everything: Path, verb: str) -> None:
    words = ["--package", "gamma", "--directory=packages/gamma", "a b", "-n"]
    output = json.loads(call(everything, ["uv", "run", "--package", "beta", verb, *words]))
    assert output == {"paper": "beta", "argv": [verb, *words]}
    call(everything, f"uv run --package beta {verb} --fail", code=7)


def test_through_make(everything: Path, tmp_path: Path) -> None:
    write(tmp_path / "Makefile", f"train:\n\t@cd {everything} && uv run --package gamma train $(ARGS)\n")
    output = call(everything, ["make", "train", "ARGS=--package beta"], folder=tmp_path)
    assert json.loads(output) == {"paper": "gamma", "argv": ["train", "--package", "beta"]}


def test_uv_by_path_and_by_another_process_name(everything: Path, tmp_path: Path) -> None:
    assert paper(call(everything, f"{shlex.quote(str(uv()))} run --package gamma train")) == "gamma"
    (tmp_path / "uv.exe").symlink_to(uv())
    (tmp_path / "wrapped").symlink_to(uv())  # a launcher may rename the program and keep the first word
    assert paper(call(everything, f"{tmp_path}/uv.exe run --package gamma train")) == "gamma"
    line = f"exec -a uv {tmp_path}/wrapped run --package beta train"
    assert paper(call(everything, ["bash", "-c", line])) == "beta"


def test_through_torchrun(everything: Path) -> None:
    """Every process of a distributed run finds the same paper."""
    torchrun = Path(sys.executable).with_name("torchrun")
    line = f"uv run --package gamma {torchrun} --standalone --nproc-per-node 2 --no-python train"
    output = call(everything, line, OMP_NUM_THREADS="1")
    assert re.findall('"paper": "([a-z]+)"', output) == ["gamma", "gamma"]  # the two may share a line


def test_the_only_one_installed(root: Path, tmp_path: Path) -> None:
    call(root, "uv sync --package beta --quiet")
    assert paper(call(root, "train", folder=tmp_path)) == "beta"


def test_variable(everything: Path) -> None:
    assert paper(call(everything, "train", PAPER="Gamma")) == "gamma"
    assert paper(call(everything, "uv run --package alpha train", PAPER="beta")) == "beta"
    complaint = call(everything, "train", PAPER="gama", code=2)
    assert complaint == (
        "train: PAPER=gama is not installed (did you mean gamma?); installed: alpha, beta, gamma\n"
    )
    assert "mean" not in call(everything, "train", PAPER="zzz", code=2)


@pytest.mark.parametrize("command", ["train", "uv run train", "uv run --package paperkit train"])
def test_nothing_decides(everything: Path, command: str) -> None:
    """Exit 2, one line with the papers installed and two commands, both of which then work."""
    complaint = call(everything, f"{command} --seed 3", PAPER="", code=2)
    assert complaint.startswith("train: which paper? Installed: alpha, beta, gamma.")
    assert complaint.count("\n") == 1
    suggested = re.findall("`(.*?)`", complaint)
    assert len(suggested) == 2
    for line in suggested:
        output = json.loads(call(everything, line))
        assert output == {"paper": "alpha", "argv": ["train", "--seed", "3"]}


def test_nothing_installed() -> None:
    with pytest.raises(UserError, match="uv sync --all-packages"):
        dispatch.choose({}, ["train"], {"PAPER": "alpha"})


def test_start_is_light() -> None:
    code = "import sys, paperkit.dispatch; print({'torch', 'numpy', 'psutil', 'tyro'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", ()),
        ("run", ()),
        ("run train", ()),
        ("run --package a train", ("a",)),
        ("run --package=a train", ("a",)),
        ("run train --package a", ()),
        ("run --package a train --package b", ("a",)),
        ("run --package a -- train --package b", ("a",)),
        ("run -- train --package b", ()),
        ("run -p a train", ()),  # -p is --python
        ("run -p 3.12 --package a train", ("a",)),
        ("run -p3.12 --package a train", ("a",)),
        ("run -qp 3.12 --package a train", ("a",)),
        ("run -nqq --package a train", ("a",)),
        ("run -p train --package a train", ("a",)),
        ("run --python=3.12 --extra nearest --with x,y -w z --package a train", ("a",)),
        ("run --extra train --package a train", ("a",)),
        ("run --isolated --no-sync --locked --all-extras --package a bash -c 'train --package b'", ("a",)),
        ("run -m --package a train", ("a",)),
        ("run - --package a", ()),
        ("--color never --offline run --package a train", ("a",)),
        ("--directory d run train", (None, None, "d")),
        ("--project p run --directory=d --package a train", ("a", "p", "d")),
        ("run --env-file .env --project p make -C x train", (None, "p")),
        ("tool run --from x --package a train", ()),
        ("--project p tool run train", (None, "p")),
        ("pip install --package a", ()),
        ("run --package", ("",)),
    ],
)
def test_uv_command_line(line: str, expected: tuple[str | None, ...]) -> None:
    assert dispatch.read_uv(shlex.split(line)) == dispatch.UvChoice(*expected)


@pytest.mark.parametrize("program", ["uv", "/opt/x/uv", r"C:\tools\UV.EXE"])
def test_program_is_uv(program: str) -> None:
    assert dispatch.is_uv(program)


@pytest.mark.parametrize("program", ["uvx", "uvicorn", "/uv/bin/python", ""])
def test_program_is_not_uv(program: str) -> None:
    assert not dispatch.is_uv(program)


def test_names_are_compared_as_uv_compares_them() -> None:
    assert dispatch.normalised("Some_Paper.x--y") == "some-paper-x-y"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["", "run"])
def test_every_option_with_a_value_is_known(command: str) -> None:
    """The uv at hand has no option with a value that the dispatcher would read as a switch."""
    text = subprocess.check_output([uv(), "help", *command.split()], text=True)
    options = re.findall(r"^ +(?:-(\w), )?(--[\w-]+) <", text, re.MULTILINE)
    assert len(options) > 5
    for short, long in options:
        assert dispatch.read_uv(["run", long, "train", "--package", "a"]) == dispatch.UvChoice(
            **({"package": "a"} | ({long[2:]: "train"} if long in ("--project", "--directory") else {}))
        )
        assert not short or dispatch.read_uv(["run", f"-{short}", "train", "--package", "a"]).package == "a"
