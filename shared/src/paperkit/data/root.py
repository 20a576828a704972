"""Where data sets by file live, and the line that a missing one gets. Used by every opener here."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paperkit import UserError

Root = str | os.PathLike[str] | None
"""A data root; None takes the variable PAPERKIT_DATA, else the user's cache folder."""


def data_root(root: Root = None) -> Path:
    """Return the folder that holds the data sets; it need not exist when it is the cache folder.

    Raises `UserError` when a root that was asked for is missing, is a file or cannot be read.
    """
    chosen = root if root is not None else os.environ.get("PAPERKIT_DATA") or None
    if chosen is None:
        return _cache_folder() / "paperkit" / "data"
    place = Path(chosen).expanduser()
    name = f"the data root {place}" + (" (from PAPERKIT_DATA)" if root is None else "")
    try:
        with os.scandir(place):
            return place
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist: make that folder or name another one") from error
    except NotADirectoryError as error:
        raise UserError(f"{name} is a file: name the folder that holds the data sets") from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from error


def _cache_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@dataclass(frozen=True)
class Known:
    """What the library knows of a set by name: enough to find it, to cite it and say that it is missing."""

    name: str
    """What stands in results, when the files are the published ones."""
    files: str
    """Where they belong below the data root, for the line that says what is missing."""
    size: str
    """Of the files to fetch, for people."""
    source: str
    """Who publishes it."""
    licence: str
    classes: tuple[str, ...] = ()
    published: Mapping[str, int] = field(default_factory=dict)
    """How many images each published split has."""
    download: Callable[[Path], None] | None = None
    """Fetches the published files below a root; None where there is no public download."""


def find(known: Known, root: Root, places: Sequence[str], download: bool = False) -> Path:
    """Return the first of `places` that exists below the root, or raise the missing set's one line.

    With `download`, a missing set that has a public download is fetched first.
    """
    folder = data_root(root)
    for _attempt in range(2):
        for place in places:
            if exists(folder / place):
                return folder / place
        if not download:
            break
        fetch(known, folder)
    raise missing(known, folder)


def exists(path: Path) -> bool:
    """Whether there is a file or folder; raises `UserError` where that cannot be seen."""
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def fetch(known: Known, folder: Path) -> None:
    """Download a set's published files below `folder`; raises `UserError` where that cannot be done."""
    if known.download is None:
        raise UserError(f"{known.name} has no public download: {_where(known, folder)}")
    try:
        known.download(folder)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; torchvision raises RuntimeError
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"the download of {known.name} failed ({reason}): {_where(known, folder)}") from error


def missing(known: Known, folder: Path) -> UserError:
    """The one line for a missing set: which file, from where, how large, where to put it."""
    hint = "; or add --download" if known.download else ""
    return UserError(f"{known.name} is missing: {_where(known, folder)}{hint}")


def _where(known: Known, folder: Path) -> str:
    return f"put {known.files} into {folder} ({known.size}, from {known.source})"
