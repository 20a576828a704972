"""The commands `train`, `generate`, `evaluate`, `reproduce`: find the paper that was meant, call its command.

Every paper uses it, by an entry point in the group `paperkit.papers`: its name is the paper's, its value a
`main(argv: Sequence[str] | None = None) -> int`. Where several packages of a workspace each declare a script
`train`, the one installed last wins, whatever `--package` says; so `paperkit` alone declares it.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import NamedTuple

from paperkit import UserError, suggest

GROUP = "paperkit.papers"

# What `uv` and `uv run` take with a value in the next word (uv 0.13, hidden options and aliases included).
# Everything else that begins with a dash is a switch; the first word that is neither is the command.
_VALUED = """
    --allow-insecure-host --cache-dir --color --config-file --config-setting --config-settings
    --config-settings-package --default-index --directory --env-file --exclude-newer
    --exclude-newer-package --extra --extra-index-url --find-links --fork-strategy --group --index
    --index-strategy --index-url --keyring-provider --link-mode --max-recursion-depth --no-binary-package
    --no-build-isolation-package --no-build-package --no-editable-package --no-extra --no-group
    --no-sources-package --only-group --package --prerelease --prerelease-package --preview-feature
    --preview-features --project --python --python-fetch --python-platform --python-preference
    --refresh-package --reinstall-package --resolution --trusted-host --upgrade-group --upgrade-package
    --with --with-editable --with-requirements
"""
_VALUED_SHORT = frozenset("CPfipw")  # -p is the Python version


class UvChoice(NamedTuple):
    """What a uv command line says about the project to run in, before the command's own words."""

    package: str | None = None
    project: str | None = None
    directory: str | None = None


def train() -> int:
    """Console script `train`: the chosen paper's `train`; returns its exit code."""
    return run("train")


def generate() -> int:
    """Console script `generate`: the chosen paper's `generate`; returns its exit code."""
    return run("generate")


def evaluate() -> int:
    """Console script `evaluate`: the chosen paper's `evaluate`; returns its exit code."""
    return run("evaluate")


def reproduce() -> int:
    """Console script `reproduce`: the chosen paper's `reproduce`; returns its exit code."""
    return run("reproduce")


def run(verb: str) -> int:
    """Call the chosen paper's `main([verb, *arguments])`; return its exit code, or 2 when none is chosen."""
    arguments = sys.argv[1:]
    papers = installed()
    try:
        paper = choose(papers, [verb, *arguments], os.environ)
    except UserError as error:
        print(f"{verb}: {error}", file=sys.stderr)
        return 2
    return papers[paper].load()([verb, *arguments])


def installed() -> dict[str, EntryPoint]:
    """The papers of this environment, by normalised name in alphabetical order."""
    found = {normalised(entry.name): entry for entry in entry_points(group=GROUP)}
    return dict(sorted(found.items()))


def choose(papers: Mapping[str, object], command: Sequence[str], environment: Mapping[str, str]) -> str:
    """The paper that `command` (the verb and its arguments) was meant for; never a guess.

    In this order: the variable PAPER; the nearest uv above this process, by `--package`, `--project` or
    `--directory`; the working directory; the only paper installed. Raises `UserError` when none decides.
    """
    if not papers:
        raise UserError("no paper is installed in this environment; run `uv sync --all-packages` first")
    if named := environment.get("PAPER", ""):
        return _by_name(named, papers)
    if len(papers) == 1:  # the other rules could only name this one
        return next(iter(papers))
    paper = _from_uv(papers) or _from_folder(Path.cwd(), papers)
    if paper is None:
        raise UserError(_undecided(papers, command))
    return paper


def normalised(name: str) -> str:
    """A distribution's name as uv compares it: lower case, runs of `-`, `_` and `.` as one `-` (PEP 503)."""
    return "-".join(part for part in name.lower().replace("_", "-").replace(".", "-").split("-") if part)


def read_uv(words: Sequence[str]) -> UvChoice:
    """Read a uv command line (without the program's name) up to the command that it runs.

    In `run --package a train --package x` the second `--package` is the paper's own. Of other subcommands
    only the options in front of them are read.
    """
    found: dict[str, str] = {}
    remaining = iter(words)
    inside_run = False
    for word in remaining:
        if not word.startswith("-"):
            if inside_run or word != "run":
                break
            inside_run = True
            continue
        if word in ("-", "--"):  # a script from standard input; the end of the options
            break
        option, _, value = word.partition("=")
        if _takes_next_word(word):
            value = next(remaining, "")
        if option in ("--package", "--project", "--directory"):
            found[option[2:]] = value
    return UvChoice(**found)


def _takes_next_word(word: str) -> bool:
    """Whether the next word is a value: after `--with`, `-p`, `-qp`; not `--with=x`, `-q`, `-p3.12`."""
    if word.startswith("--"):
        return word in _VALUED.split()
    return word[-1] in _VALUED_SHORT and _VALUED_SHORT.isdisjoint(word[1:-1])


def _by_name(named: str, papers: Mapping[str, object]) -> str:
    if normalised(named) in papers:
        return normalised(named)
    hint = suggest(normalised(named), papers)
    raise UserError(f"PAPER={named} is not installed{hint}; installed: {', '.join(papers)}")


def _from_uv(papers: Mapping[str, object]) -> str | None:
    """The paper that the nearest uv above this process was told, if it was told one."""
    import psutil

    try:
        for process in psutil.Process().parents():
            try:
                argv = process.cmdline()
            except psutil.Error:  # another user's process, on some systems
                argv = []
            if not any(map(is_uv, [process.name(), *argv[:1]])):
                continue
            choice = read_uv(argv[1:])
            if choice.package is not None:
                return normalised(choice.package) if normalised(choice.package) in papers else None
            if choice.project is not None or choice.directory is not None:
                # uv has gone to --directory itself by now, and takes --project from there.
                return _from_folder(Path(process.cwd(), choice.project or "."), papers)
            return None
    except psutil.Error:  # hidden or gone: the next rules decide
        pass
    return None


def is_uv(program: str) -> bool:
    """Whether a process name or path is uv's: `uv`, `/usr/bin/uv`, `C:\\bin\\uv.exe`."""
    return program.replace("\\", "/").rpartition("/")[2].lower() in ("uv", "uv.exe")


def _from_folder(folder: Path, papers: Mapping[str, object]) -> str | None:
    """The paper in whose project `folder` lies: the nearest pyproject.toml above that has a paper's name."""
    import tomllib

    for place in (folder.resolve(), *folder.resolve().parents):
        try:
            project = tomllib.loads((place / "pyproject.toml").read_text("utf-8")).get("project", {})
        except (OSError, ValueError):
            continue
        if (name := normalised(str(project.get("name", "")))) in papers:
            return name
    return None


def _undecided(papers: Mapping[str, object], command: Sequence[str]) -> str:
    import shlex

    first, words = next(iter(papers)), shlex.join(command)
    return (
        f"which paper? Installed: {', '.join(papers)}. Name one: `uv run --package {first} {words}` in the "
        f"repository, or `{first} {words}` here"
    )
