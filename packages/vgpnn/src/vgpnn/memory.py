"""Memory between the levels of a pass. Used by `method`."""

import ctypes
import sys


def give_back() -> None:
    """Return memory that a level no longer uses to the system: glibc keeps blocks below 32 MiB otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
