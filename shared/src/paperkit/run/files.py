"""Files that appear whole or not at all, and one line for what the file system refuses."""

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

from paperkit import UserError


def explain(error: OSError, path: Path) -> UserError:
    """One line for a file-system error at `path`: what is wrong and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"no space left while writing {path}: free some space or choose another --out")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"cannot write {path}: the folder is read-only; choose another --out")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(f"cannot write {path}: a file stands where a folder is needed; choose another --out")
    return UserError(f"cannot write {path}: {error.strerror or error}")


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str], mode: Literal["wb", "w"] = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; rename it to `path` when the block ends well, else remove it.

    Missing parent folders are made. `mode` is "wb" or "w" (UTF-8). Raises `UserError` when the disk is full
    or the folder cannot be written; then nothing is left behind and an older file at `path` is untouched.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # "x": no other file's content is touched, and the permissions are those of any new file.
        with open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        # The block may have failed on a file of its own: that is no failure to write this one.
        if error.filename is not None and not _concerns(error, temporary, target):
            raise
        raise explain(error, target) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _concerns(error: OSError, temporary: Path, target: Path) -> bool:
    return Path(os.fsdecode(error.filename)) in (temporary, target, *target.parents)


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` into a temporary folder beside `target`, then rename it there; else nothing is left.

    A folder that stands at `target` already is replaced. Raises `UserError` as `atomic` does.
    """
    temporary, old = (target.with_name(f".{target.name}.{word}") for word in ("tmp", "old"))
    try:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, content in files.items():
            with open(temporary / name, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
    except OSError as error:
        raise explain(error, target) from error
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `UserError` names the file when it is missing or corrupt."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: this is not a whole run folder") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is corrupt ({error}): restore it or start a new run") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is corrupt (no JSON object): restore it or start a new run")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically."""
    with atomic(path, "w") as stream:
        stream.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
