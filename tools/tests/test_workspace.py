"""What holds for the whole workspace: declared dependencies, members' metadata, nobody's machine in it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAPERS = sorted(file.parent.name for file in ROOT.glob("packages/*/pyproject.toml"))
MEMBERS = ["paperkit", *PAPERS]
VERBS = ["train", "generate", "evaluate", "reproduce"]

# Distributions that nothing imports by name, and the import that needs them.
INDIRECT = {
    "tensorboard": "torch.utils.tensorboard",
    "beartype": "jaxtyping",
    "onnx": "torch.onnx",
    "onnxscript": "torch.onnx",
}
# Import names of what an ordinary environment lacks (elsewhere the installed metadata tells them).
ABSENT = {"faiss-gpu": {"faiss"}, "faiss-cpu": {"faiss"}}


class Import(NamedTuple):
    """An imported module, and whether it waits for a call (inside a function) or for a type checker."""

    module: str
    lazy: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def folder(member: str) -> Path:
    return ROOT / ("shared" if member == "paperkit" else f"packages/{member}")


def project(member: str) -> dict[str, Any]:
    return tomllib.loads((folder(member) / "pyproject.toml").read_text("utf-8"))


# ---- imports -----------------------------------------------------------------------------------------------


def imports_of(text: str, package: Sequence[str] = ()) -> list[Import]:
    """Every import in a module's text; `package` holds the parts of the package that it lies in."""

    def names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        base = [*package[: len(package) - node.level + 1]] if node.level else []
        parent = ".".join([*base, *([node.module] if node.module else [])])
        yield from (f"{parent}.{alias.name}" for alias in node.names)  # the name may be a module, or in one

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (Import(name, lazy) for name in names(node))
        lazy |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        lazy |= isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            yield from walk(child, lazy)

    return list(walk(ast.parse(text), False))


def modules(source: Path) -> dict[str, list[Import]]:
    """The imports of each module under a `src` folder, by the module's dotted name."""
    found = {}
    for file in sorted(source.rglob("*.py")):
        parts = file.relative_to(source).with_suffix("").parts
        package = parts[:-1]
        name = package if parts[-1] == "__init__" else parts
        found[".".join(name)] = imports_of(file.read_text("utf-8"), package)
    return found


def settled(found: dict[str, list[Import]]) -> list[Import]:
    """All imports; those of a module that is itself only imported inside functions count as lazy too."""
    reached: dict[bool, set[str]] = {True: set(), False: set()}
    for each in chain.from_iterable(found.values()):
        parts = each.module.split(".")
        reached[each.lazy] |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    waits = reached[True] - reached[False]
    return [each._replace(lazy=each.lazy or name in waits) for name in found for each in found[name]]


def outside(imports: Sequence[Import], own: str) -> set[str]:
    """Top-level names that are neither of the standard library nor the member's own."""
    return {each.top for each in imports} - set(sys.stdlib_module_names) - {own}


def loose(member: str, place: str) -> list[Import]:
    """The imports of a member's files outside src (tests, benchmarks), without those of one another."""
    files = sorted((folder(member) / place).rglob("*.py"))
    beside = {file.stem for file in files} | {file.parent.name for file in files}
    return [each for file in files for each in imports_of(file.read_text("utf-8")) if each.top not in beside]


# ---- declarations ------------------------------------------------------------------------------------------


def distribution(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def import_names() -> dict[str, set[str]]:
    """Import names by distribution, from the metadata of what is installed."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, distributions in packages_distributions().items():
        for each in distributions:
            found[distribution(each)].add(name)
    return found


INSTALLED = import_names()


def offers(requirement: str) -> set[str]:
    """The import names that a requirement brings."""
    name = distribution(requirement)
    return INSTALLED.get(name) or ABSENT.get(name) or {name.replace("-", "_")}


def brings(requirements: Sequence[str]) -> set[str]:
    return set().union(*map(offers, requirements))


def used(requirement: str, imports: Sequence[Import]) -> bool:
    """Whether something imports what a requirement brings, or an import needs it without naming it."""
    needs = INDIRECT.get(distribution(requirement))
    if needs and any(f"{each.module}.".startswith(f"{needs}.") for each in imports):
        return True
    return bool(offers(requirement) & {each.top for each in imports})


def extras(member: str) -> list[str]:
    return [*chain(*project(member)["project"].get("optional-dependencies", {}).values())]


@pytest.mark.parametrize("member", MEMBERS)
def test_source_imports_are_declared(member: str) -> None:
    """At the top of a module only dependencies; inside functions extras too."""
    imports = settled(modules(folder(member) / "src"))
    dependencies = project(member)["project"]["dependencies"]
    eager = [each for each in imports if not each.lazy]
    assert outside(eager, member) - brings(dependencies) == set()
    assert outside(imports, member) - brings([*dependencies, *extras(member)]) == set()


@pytest.mark.parametrize("member", MEMBERS)
def test_declared_dependencies_are_imported(member: str) -> None:
    imports = settled(modules(folder(member) / "src"))
    lazy = [each for each in imports if each.lazy]
    assert [each for each in project(member)["project"]["dependencies"] if not used(each, imports)] == []
    assert [each for each in extras(member) if not used(each, lazy)] == []


@pytest.mark.parametrize("member", MEMBERS)
def test_test_imports_are_declared_and_used(member: str) -> None:
    """Tests import dependencies and the `dev` group, which holds what tests and extras under test need."""
    groups = project(member)["dependency-groups"]
    dependencies = project(member)["project"]["dependencies"]
    tests = loose(member, "tests")
    assert outside(tests, member) - brings([*dependencies, *groups["dev"]]) == set()
    wanted = [*tests, *settled(modules(folder(member) / "src")), Import("pytest", False)]
    assert [each for each in groups["dev"] if not used(each, wanted)] == []


@pytest.mark.parametrize("member", MEMBERS)
def test_benchmark_imports_are_declared(member: str) -> None:
    groups = project(member)["dependency-groups"]
    declared = [*project(member)["project"]["dependencies"], *groups["dev"], *groups.get("bench", [])]
    assert outside(loose(member, "benchmarks"), member) - brings(declared) == set()


@pytest.mark.parametrize("member", MEMBERS)
def test_no_member_imports_a_paper_other_than_itself(member: str) -> None:
    source = chain(*modules(folder(member) / "src").values())
    imports = [*source, *loose(member, "tests"), *loose(member, "benchmarks")]
    assert {each.top for each in imports} & set(PAPERS) <= {member}


def test_imports_are_read_right() -> None:
    text = """
import os.path, numpy as np
from . import near
from ..far import thing
if TYPE_CHECKING:
    import types_only
class C:
    import in_class
    def method(self):
        from inside import x
"""
    found = imports_of(text, ("pkg", "sub"))
    assert [each.module for each in found if not each.lazy] == [
        "os.path", "numpy", "pkg.sub.near", "pkg.far.thing", "in_class",
    ]  # fmt: skip
    assert [each.module for each in found if each.lazy] == ["types_only", "inside.x"]
    tree = {
        "pkg": [],
        "pkg.tree": [Import("numba.njit", False)],
        "pkg.search": [Import("pkg.tree.query", True), Import("torch", False)],
    }
    assert settled(tree)[0] == Import("numba.njit", True)
    tree["pkg"] = [Import("pkg.tree", False)]
    assert Import("numba.njit", False) in settled(tree)


# ---- metadata ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", MEMBERS)
def test_metadata(member: str) -> None:
    about = project(member)
    assert about["project"]["name"] == member
    assert about["project"]["requires-python"] == ">=3.11"
    assert "Private :: Do Not Upload" in about["project"]["classifiers"]
    assert about["build-system"]["build-backend"] == "uv_build"
    assert "pytest" in map(distribution, about["dependency-groups"]["dev"])
    assert (folder(member) / about["project"]["readme"]).read_text("utf-8").strip()


@pytest.mark.parametrize("paper", PAPERS)
def test_scripts_of_papers(paper: str) -> None:
    """A paper has one script, of its own name, and registers it; the shared verbs belong to paperkit."""
    expected = {paper: f"{paper}.cli:main"}
    assert project(paper)["project"]["scripts"] == expected
    assert project(paper)["project"]["entry-points"] == {"paperkit.papers": expected}


def test_scripts_of_paperkit() -> None:
    assert project("paperkit")["project"]["scripts"] == {verb: f"paperkit.dispatch:{verb}" for verb in VERBS}


def test_root() -> None:
    root = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert root["tool"]["uv"]["package"] is False
    assert root["tool"]["uv"]["workspace"]["members"] == ["shared", "packages/*"]


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """Run make as from a shell, also where a make runs these tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *words], cwd=ROOT, text=True, capture_output=True, env=kept)


def test_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    targets = re.findall(r"^([a-z][a-z-]*%?):(?!=)", text, re.MULTILINE)
    named = {target.replace("%", "<paper>") for target in targets}
    assert named >= {"help", "train", "test", "test-<paper>", "isolated-<paper>", "lint", "results", "bench"}
    assert set(re.findall(r"^make (\S+) +\S", make().stdout, re.MULTILINE)) == named


def test_make_names_the_packages_when_one_is_unknown() -> None:
    done = make("test-nonsense")
    assert done.returncode == 2
    assert f"no package nonsense; there are: {' '.join([*PAPERS, 'paperkit'])}" in done.stderr


# ---- nobody's machine --------------------------------------------------------------------------------------

MACHINE = re.compile(r"(?<![\w.}\])~*$-])/(?:home|root|work|Users|tmp)(?:/|\b(?![\w-]))")
REGISTRY = re.compile(r"pypi[.]org|pythonhosted[.]org|download[.]pytorch[.]org|https?://\S+/simple\b")


def tracked() -> list[Path]:
    # A container's checkout may belong to another user; reading its list of files is harmless.
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    names = subprocess.check_output(command, cwd=ROOT, text=True).split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_machine_path_and_no_registry() -> None:
    found = []
    for file in tracked():
        try:
            text = file.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # a picture or an archive
        patterns = [MACHINE] if file.name == "uv.lock" else [MACHINE, REGISTRY]
        found += [f"{file.relative_to(ROOT)}: {hit[0]}" for each in patterns for hit in each.finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        ("see {0}home{0}ann", True),
        ("'{0}root'", True),
        ("{0}work{0}main", True),
        ("=file:{0}{0}{0}tmp{0}x", True),
        ("and{0}work", False),
        ("../root{0}x", False),
        ("{{root}}{0}work{0}x", False),
        ("{0}workflows", False),
    ],
)
def test_machine_paths_are_recognised(text: str, hit: bool) -> None:
    assert bool(MACHINE.search(text.format("/"))) is hit


def test_lock_names_the_default_registry_only() -> None:
    lock = (ROOT / "uv.lock").read_text("utf-8")
    registries = set(re.findall(r'registry = "(.*?)"', lock))
    assert len(registries) == 1
    assert re.fullmatch(r"https:/{2}pypi[.]org/simple", registries.pop())


# ---- one paper alone ---------------------------------------------------------------------------------------


def uv() -> str:
    """The uv that runs these tests, else the one on PATH, else the one that the Makefile fetched."""
    found = os.environ.get("UV") or shutil.which("uv") or shutil.which(ROOT / ".uv" / "bin" / "uv")
    assert found, "this test needs uv on PATH (`make test` brings it)"
    return found


def run(*words: str | Path, folder: Path) -> str:
    done = subprocess.run(list(map(str, words)), cwd=folder, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("installer", ["uv", "pip"])
@pytest.mark.parametrize("paper", PAPERS)
def test_one_paper_alone(paper: str, installer: str, tmp_path: Path) -> None:
    """`uv pip install ./packages/<paper>`, and pip with two paths: paperkit is ours, the command runs."""
    environment = tmp_path / "venv"
    python = environment / "bin" / "python"
    run(uv(), "venv", "--quiet", "--seed", "--python", sys.executable, environment, folder=tmp_path)
    if installer == "uv":
        run(uv(), "pip", "install", "--python", python, f"./packages/{paper}", folder=ROOT)
    else:
        # The third-party part comes from uv's cache first: pip would fetch some gigabytes of torch again.
        export = ["export", "--locked", "--quiet", "--no-dev", "--no-emit-workspace", "--package", paper]
        run(uv(), *export, "--output-file", tmp_path / "needs.txt", folder=ROOT)
        run(uv(), "pip", "install", "--python", python, "-r", tmp_path / "needs.txt", folder=tmp_path)
        run(python, "-m", "pip", "install", "./shared", f"./packages/{paper}", folder=ROOT)
    code = "import importlib.metadata as m; print(m.distribution('paperkit').read_text('direct_url.json'))"
    origin = json.loads(run(python, "-c", code, folder=tmp_path))
    assert origin["url"] == (ROOT / "shared").as_uri()
    assert paper in run(environment / "bin" / paper, "--help", folder=tmp_path)
    assert paper in run(environment / "bin" / "train", "--help", folder=tmp_path)
    others = [other for other in PAPERS if other != paper and (environment / "bin" / other).exists()]
    assert others == []
