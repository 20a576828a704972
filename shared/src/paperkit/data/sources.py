"""Files in a folder, a zip or a tar, read by name without unpacking to disk. Used by every file set.

All of them work under threads and in worker processes: a zip has one handle per thread and process, a plain
tar is opened anew for each file, and a compressed tar (which cannot be read from the middle) is held in
memory as a whole.
"""

import bz2
import gzip
import io
import lzma
import os
import re
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from paperkit import UserError
from paperkit.images import is_image

_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    ".tar.gz": gzip.decompress,
    ".tgz": gzip.decompress,
    ".tar.xz": lzma.decompress,
    ".txz": lzma.decompress,
    ".tar.bz2": bz2.decompress,
}
ARCHIVES = (".zip", ".tar", *_UNPACK)
"""File names with these endings are archives."""

_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    ValueError,
    NotImplementedError,  # a compression that zipfile does not know
    RuntimeError,  # zipfile's word for an encrypted file
)


@runtime_checkable
class Source(Protocol):
    """Hands out files by name."""

    path: Path

    def names(self) -> list[str]:
        """The names of all files, relative, with forward slashes, in no promised order."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of one file; raises `UserError` when it is damaged."""
        ...


def open_source(path: Path) -> Source:
    """Open a folder, a zip or a tar; raises `UserError` when it is missing, damaged or something else."""
    lower = path.name.lower()
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if lower.endswith(".zip"):
        return ZipSource(path)
    if lower.endswith(ARCHIVES):
        return TarSource(path)
    raise UserError(f"{path} is no folder and no archive ({' '.join(ARCHIVES)})")


def _damaged(path: Path, error: BaseException) -> UserError:
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"cannot read {path}: {error.strerror}")
    return UserError(f"{path} is cut short or damaged: {str(error) or type(error).__name__}")


def _clean(path: Path, name: str) -> str:
    """Normalise a name inside an archive; refuse one that points outside."""
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or re.match("[A-Za-z]:", name) or "\0" in name:
        raise UserError(f"{path} is refused: it holds the name {name!r}, which points outside the archive")
    return "/".join(part for part in parts if part not in ("", "."))


class FolderSource:
    """The files below a folder; hidden ones and hidden folders are left out."""

    def __init__(self, path: Path):
        self.path = path

    def names(self) -> list[str]:
        return list(self._walk())

    def _walk(self) -> Iterator[str]:
        seen: set[str] = set()  # a link to a folder above would be walked for ever
        for folder, folders, files in os.walk(self.path, onerror=self._fail, followlinks=True):
            real = os.path.realpath(folder)
            folders[:] = [] if real in seen else [f for f in folders if not f.startswith(".")]
            if real not in seen:
                seen.add(real)
                yield from ((Path(folder) / f).relative_to(self.path).as_posix() for f in files)

    @staticmethod
    def _fail(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise _damaged(self.path / name, error) from error


class ZipSource:
    """The files of a zip; each file's checksum is verified when it is read."""

    def __init__(self, path: Path):
        self.path = path
        self._handles = threading.local()
        self._entries = {
            _clean(path, entry.filename): entry for entry in self._open().infolist() if not entry.is_dir()
        }

    def _open(self) -> zipfile.ZipFile:
        # a forked child must not share the parent's position in the file
        if getattr(self._handles, "process", None) != os.getpid():
            try:
                self._handles.zip = zipfile.ZipFile(self.path)
            except (OSError, *_DAMAGED) as error:
                raise _damaged(self.path, error) from error
            self._handles.process = os.getpid()
        return self._handles.zip

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _handles=threading.local())

    def names(self) -> list[str]:
        return list(self._entries)

    def read(self, name: str) -> bytes:
        try:
            return self._open().read(self._entries[name])
        except (OSError, *_DAMAGED) as error:
            raise UserError(f"{self.path}: {name} is cut short or damaged: {error}") from error


class TarSource:
    """The files of a tar, compressed or not; it is walked as a whole, so a short one is found at once."""

    def __init__(self, path: Path):
        self.path = path
        self._memory = self._decompress()
        try:
            with self._stream() as stream:
                self._places = dict(self._index(stream))
        except (OSError, *_DAMAGED) as error:
            raise _damaged(path, error) from error

    def _decompress(self) -> bytes | None:
        for ending, unpack in _UNPACK.items():
            if self.path.name.lower().endswith(ending):
                try:
                    return unpack(self.path.read_bytes())
                except (OSError, *_DAMAGED) as error:
                    raise _damaged(self.path, error) from error
        return None

    def _stream(self) -> Any:
        return self.path.open("rb") if self._memory is None else io.BytesIO(self._memory)

    def _index(self, stream: Any) -> Iterator[tuple[str, tuple[int, int]]]:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                name = _clean(self.path, member.name)
                if member.isreg() and not member.issparse():
                    yield name, (member.offset_data, member.size)
                elif not member.isdir() and is_image(name):
                    raise UserError(f"{self.path} is refused: {name} is a link or a device, not a file")
            # tarfile takes a broken header for the end of the archive; the true end is a block of zeros
            stream.seek(tar.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise EOFError("the mark of its end is missing")

    def names(self) -> list[str]:
        return list(self._places)

    def read(self, name: str) -> bytes:
        start, size = self._places[name]
        if self._memory is not None:
            return self._memory[start : start + size]
        try:
            with self.path.open("rb") as stream:
                stream.seek(start)
                return stream.read(size)
        except OSError as error:
            raise _damaged(self.path, error) from error
