"""Which papers a change touches, on a made-up workspace and on this repository."""

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "affected.py"


def load(script: Path):
    spec = importlib.util.spec_from_file_location(f"tools_{script.stem}", script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


affected = load(SCRIPT)
ALL = ["alpha", "beta-two", "gamma", "ign"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Papers ign, alpha, gamma → beta-two → alpha; names and folders are spelt differently on purpose."""
    papers = {
        "ign": '[project]\nname = "ign"\ndependencies = ["paperkit", "torch>=2"]\n',
        "alpha": '[project]\nname = "alpha"\n[dependency-groups]\ndev = ["ruff"]\n',
        "beta_two": '[project]\nname = "Beta.Two"\n[project.optional-dependencies]\nx = ["Alpha>=1 ; m"]\n',
        "gamma": '[project]\nname = "gamma"\n[dependency-groups]\n'
        'dev = ["beta_two[x]", {include-group = "y"}]\ny = []\n',
    }
    for folder, text in papers.items():
        (tmp_path / "packages" / folder).mkdir(parents=True)
        (tmp_path / "packages" / folder / "pyproject.toml").write_text(text)
    (tmp_path / "packages" / "notes").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], []),
        (["README.md"], []),
        (["packages/ign/README.md", "shared/README.md", "packages/ign/docs/more.md"], []),
        (["packages/ign/results/small-samples.json", "shared/results/bench-nearest.json"], []),
        (["packages/ign/src/ign/method.py"], ["ign"]),
        (["packages/ign/tests/test_method.py", "README.md"], ["ign"]),
        (["packages/ign/pyproject.toml"], ["ign"]),
        (["packages/ign/src/ign/card.md"], ["ign"]),
        (["packages/ign/src/ign/results/table.txt"], ["ign"]),
        (["packages/gamma/src/gamma/cli.py"], ["gamma"]),
        (["packages/beta_two/src/beta_two/cli.py"], ["beta-two", "gamma"]),
        (["packages/alpha/src/alpha/cli.py"], ["alpha", "beta-two", "gamma"]),
        (["packages/gamma/x.py", "packages/ign/x.py"], ["gamma", "ign"]),
        (["shared/src/paperkit/run.py"], ALL),
        (["packages/ign/x.py", "shared/pyproject.toml"], ALL),
        (["uv.lock"], ALL),
        (["pyproject.toml"], ALL),
        (["tools/affected.py"], ALL),
        (["tools/results/x.json"], ALL),
        ([".github/workflows/ci.yml"], ALL),
        (["Makefile"], ALL),
        ([".ci/run"], ALL),
        (["packages/gone/src/gone/method.py"], ALL),
        (["packages/stray.py"], ALL),
        (["something/new.txt"], ALL),
    ],
    ids=lambda value: ",".join(value)[:60] or "none",
)
def test_rules(root: Path, files: list[str], expected: list[str]) -> None:
    assert affected.affected(files, root) == expected


def git(root: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, "-C", str(root), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(root: Path, file: str, text: str) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)
    git(root, "add", "-A")
    git(root, "commit", "-qm", f"change {file}")


@pytest.fixture
def repository(root: Path) -> Path:
    git(root, "init", "-q", "-b", "main")
    commit(root, "README.md", "first")
    git(root, "switch", "-qc", "topic")
    return root


def run(root: Path, *arguments: str, stdin: str = "") -> list[str]:
    command = [sys.executable, "-S", "-I", str(SCRIPT), "--root", str(root), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, input=stdin)
    return json.loads(done.stdout)


def test_the_command_compares_with_where_the_branch_left_its_base(repository: Path) -> None:
    assert run(repository, "--base", "main") == []
    commit(repository, "packages/ign/src/ign/größe.py", "x = 1")
    assert run(repository, "--base", "main") == ["ign"]
    git(repository, "switch", "-q", "main")
    commit(repository, "uv.lock", "someone else's work")
    git(repository, "switch", "-q", "topic")
    assert run(repository, "--base", "main") == ["ign"]


def test_a_file_that_moves_touches_both_ends(repository: Path) -> None:
    commit(repository, "packages/ign/src/ign/long.py", "line\n" * 50)
    git(repository, "branch", "-f", "main")
    git(repository, "mv", "packages/ign/src/ign/long.py", "packages/gamma/long.py")
    git(repository, "commit", "-qm", "move")
    assert run(repository, "--base", "main") == ["gamma", "ign"]


@pytest.mark.parametrize("base", ["", "no-such-branch", "0" * 40, "--output=evil"])
def test_an_unknown_base_means_all(repository: Path, base: str) -> None:
    assert run(repository, f"--base={base}") == ALL
    assert not list(repository.glob("evil*")), "a base is never an option of git"


def test_outside_git_means_all(root: Path) -> None:
    assert run(root, "--base", "main") == ALL


def test_files_may_come_from_stdin(root: Path) -> None:
    assert run(root, "--stdin", stdin="README.md\npackages/ign/a.py\n") == ["ign"]
    assert run(root, "--stdin") == []


def test_one_source_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        affected.main([])
    assert caught.value.code == 2
    assert "--base" in capsys.readouterr().err


def test_this_repository(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folders = sorted(p.parent.name for p in SCRIPT.parents[1].glob("packages/*/pyproject.toml"))
    for files, expected in (
        ("packages/ign/src/ign/__init__.py", ["ign"]),
        ("shared/pyproject.toml", folders),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(files))
        assert affected.main(["--stdin"]) == 0
        assert json.loads(capsys.readouterr().out) == expected
