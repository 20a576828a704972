"""Which papers a change touches: a JSON list of package names on stdout, for the matrix of the CI.

    python tools/affected.py --base origin/main      files that differ between HEAD and where it left the base
    git diff --name-only … | python tools/affected.py --stdin

Standard library only, so that it runs before anything is installed. The rules, first match wins:

* a text for readers (`*.md` outside `src/`) and a result file (`results/*.json`): nothing. That the READMEs
  show what the result files say is checked by the lint job, which always runs;
* a file of a paper, `packages/<paper>/…`: that paper and every paper that depends on it, by the pyprojects;
* anything else (`shared/`, `uv.lock`, `pyproject.toml`, `tools/`, `.github/`, `.ci/`, `Makefile`, …): all.

A base that git does not know (a new branch, a shallow clone) means all papers.
"""

import argparse
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath


def papers(root: Path) -> dict[str, tuple[str, set[str]]]:
    """Every paper by name: its folder below the root, and the names of all that it declares to need."""
    found = {}
    for file in sorted(root.glob("packages/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))
        table = project["project"]
        needs = [*table.get("dependencies", [])]
        for lines in table.get("optional-dependencies", {}).values():
            needs += lines
        for lines in project.get("dependency-groups", {}).values():
            needs += [line for line in lines if isinstance(line, str)]
        folder = file.parent.relative_to(root).as_posix()
        found[normal(table["name"])] = folder, {normal(re.split(r"[^\w.-]", need)[0]) for need in needs}
    return found


def normal(name: str) -> str:
    """A distribution's name in its normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def with_dependents(names: Iterable[str], graph: Mapping[str, tuple[str, set[str]]]) -> set[str]:
    """The given papers and all that need them, directly or through others."""
    reached = set(names)
    while more := {name for name, (_, needs) in graph.items() if needs & reached} - reached:
        reached |= more
    return reached


def affected(files: Iterable[str], root: Path) -> list[str]:
    """The papers that changes of these files (paths below the root) touch, sorted."""
    graph = papers(root)
    owners = {folder: name for name, (folder, _) in graph.items()}
    touched: set[str] = set()
    for file in files:
        path = PurePosixPath(file)
        if is_reading_matter(path):
            continue
        owner = owners.get("/".join(path.parts[:2])) if len(path.parts) > 2 else None
        if owner is None:
            return sorted(graph)
        touched.add(owner)
    return sorted(with_dependents(touched, graph))


def is_reading_matter(path: PurePosixPath) -> bool:
    """A text for readers, or a result file: nothing that a paper's own tests could notice."""
    if path.suffix == ".md":
        return "src" not in path.parts
    return (
        path.suffix == ".json" and path.parent.name == "results" and path.parts[0] in ("packages", "shared")
    )


def changed(base: str, root: Path) -> list[str] | None:
    """Files that differ between HEAD and where it left `base`; None where git cannot tell."""
    command = ["git", "-C", str(root), "diff", "--name-only", "--no-renames", "-z"]
    command += ["--end-of-options", f"{base}...HEAD", "--"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return [name for name in done.stdout.split("\0") if name]


def main(arguments: list[str] | None = None) -> int:
    """Print the list; exits 0."""
    parser = argparse.ArgumentParser(description="Which papers a change touches, as JSON.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--base", help="a commit or branch; unknown or empty means all papers")
    source.add_argument("--stdin", action="store_true", help="read the changed files from stdin, one a line")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    given = parser.parse_args(arguments)
    files = (
        sys.stdin.read().splitlines()
        if given.stdin
        else changed(given.base, given.root)
        if given.base
        else None
    )
    if files is None:
        print(f"base {given.base!r} is unknown here: all papers", file=sys.stderr)
    print(json.dumps(sorted(papers(given.root)) if files is None else affected(files, given.root)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
