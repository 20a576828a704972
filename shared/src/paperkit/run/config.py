"""Configurations: frozen dataclasses to JSON and back, their differences, the facts of a process."""

import contextlib
import dataclasses
import difflib
import json
import platform
import subprocess
import types
import typing
from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from paperkit import UserError

T = TypeVar("T")


def now() -> str:
    """The local time with its zone, ISO 8601, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def commit(folder: Path | None = None) -> tuple[str, bool]:
    """(commit, dirty) of the git checkout around `folder` (default: this file), else ("unknown", False)."""
    where = folder or Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False


def versions(*names: str) -> dict[str, str]:
    """Python's version and those of the named distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def to_json(config: Any) -> dict[str, Any]:
    """A frozen configuration dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_json(kind: type[T], values: Mapping[str, Any], source: str = "configuration") -> T:
    """A configuration dataclass of `kind` from JSON values; keys that are absent keep their defaults.

    Raises `UserError` for a key that `kind` does not have and for a value of another type.
    """
    hints = typing.get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(f"{source}: unknown key {unknown[0]}{suggest(unknown[0], known)}")
    return kind(**{name: _value(hints[name], value, f"{source}: {name}") for name, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _value(arguments[0], value, where)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_json(hint, value, where)  # pyright: ignore[reportArgumentType]
    if origin is typing.Literal:
        fits = value in arguments
    elif origin is tuple:
        if isinstance(value, list):
            kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
            if len(kinds) == len(value):
                return tuple(_value(kind, item, where) for kind, item in zip(kinds, value, strict=True))
        fits = False
    elif origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(next(kind for kind in arguments if kind is not type(None)), value, where)
    elif hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if fits else value
    elif hint is Path:
        return Path(value)
    else:
        fits = type(value) is hint
    if not fits:
        raise UserError(f"{where}: {value!r} does not fit {getattr(hint, '__name__', hint)}")
    return value


def suggest(word: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the known word nearest to `word`, or ''."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def differences(stored: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The keys in which two configurations differ, each as 'key: stored -> now'."""
    found = []
    for key in sorted(set(stored) | set(now)):
        old, new = stored.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old} -> {new}")
    return found
