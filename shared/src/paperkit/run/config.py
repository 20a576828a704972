"""Configurations: frozen dataclasses to JSON and back, and the keys in which two of them differ."""

import contextlib
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from paperkit import UserError, suggest

T = TypeVar("T")


def to_json(config: Any) -> dict[str, Any]:
    """A frozen configuration dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_json(kind: type[T], values: Mapping[str, Any], source: str = "configuration") -> T:
    """A configuration dataclass of `kind` from JSON values; keys that are absent keep their defaults.

    Fields may be numbers, text, booleans, None, paths, `Literal`, unions, tuples and further dataclasses.
    Raises `UserError` for a key that `kind` does not have, one that it needs, and a value of another type.
    """
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
    known = [field.name for field in fields]
    for name in values:
        if name not in known:
            raise UserError(f"{source}: unknown key {name}{suggest(name, known)}")
    for field in fields:
        if field.name not in values and _required(field):
            raise UserError(f"{source}: the key {field.name} is missing")
    return kind(**{name: _value(hints[name], value, f"{source}: {name}") for name, value in values.items()})


def _required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_json(hint, value, where)  # pyright: ignore[reportArgumentType]
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(arguments, value, where)
    if origin is tuple and isinstance(value, list):
        kinds = arguments[:1] * len(value) if arguments[-1:] == (Ellipsis,) else arguments
        if len(kinds) == len(value):
            return tuple(_value(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if origin is typing.Literal and any(value == a and type(value) is type(a) for a in arguments):
        return value
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if type(value) is hint:
        return value
    raise _misfit(hint, value, where)


def _first_that_fits(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
    if len(kinds) == 1:
        return _value(kinds[0], value, where)
    for kind in kinds:
        with contextlib.suppress(UserError):
            return _value(kind, value, where)
    raise _misfit(typing.Union[kinds], value, where)  # noqa: UP007 - built from a tuple


def _misfit(hint: Any, value: Any, where: str) -> UserError:
    name = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
    return UserError(f"{where}: {value!r} does not fit {name}")


def differences(stored: Mapping[str, Any], present: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The keys in which two configurations differ, each as 'key: stored -> present'."""
    found = []
    for key in sorted(set(stored) | set(present)):
        old, new = stored.get(key), present.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old} -> {new}")
    return found
