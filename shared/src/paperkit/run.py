"""The run folder: atomic files, configuration, manifest, metrics, log, checkpoints, resume, signals.

Used by every paper that writes anything. Importing this module does not import torch.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from paperkit import UserError


def explain(error: OSError, path: Path) -> UserError:
    """One line for a file-system error at `path`: what is wrong and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left while writing {path}: free some space or choose another --out")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"cannot write {path}: the folder is read-only; choose another --out")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(f"cannot write {path}: a file stands where a folder is needed; choose another --out")
    return UserError(f"cannot write {path}: {error.strerror or error}")


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; rename it to `path` when the block ends well, else remove it.

    Missing parent folders are made. `mode` is "wb" or "w" (UTF-8). Raises `UserError` when the disk is full
    or the folder cannot be written; then nothing is left behind and an older file at `path` is untouched.
    """
    target = Path(path)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        with open(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise explain(error, target) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
