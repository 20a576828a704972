"""Named files in a folder, a zip or a tar, read without unpacking to disk. Used by the file sets."""

from pathlib import Path
from typing import Protocol


class Source(Protocol):
    """Hands out files by name; safe under threads and in worker processes."""

    path: Path

    def names(self) -> list[str]:
        """Every file's name, relative, with forward slashes."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of one file; raises `UserError` when it is damaged."""
        ...
