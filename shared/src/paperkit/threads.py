"""Compiled work on several threads of Python. Used by `paperkit.nearest` and gpnn.

Threads of OpenMP spin at the barrier that ends every loop; on a machine that others use too, many short loops
lose more by that than they win (gpnn spec 11.2). The call must release the interpreter lock (numba: nogil).
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache


@lru_cache(maxsize=8)
def workers(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: starting them for each search would cost as much as a small search."""
    return ThreadPoolExecutor(threads, "nearest")


if hasattr(os, "register_at_fork"):  # threads do not live on in a forked process
    os.register_at_fork(after_in_child=workers.cache_clear)


def parallel(count: int, chunk: int, threads: int, call: Callable[[int, int], None]) -> None:
    """call(start, stop) over chunks by threads of Python, this one among them: nobody spins at a barrier."""
    starts = deque(range(0, count, chunk))

    def work() -> None:
        while starts:
            try:
                start = starts.popleft()
            except IndexError:  # another thread was quicker
                return
            call(start, min(start + chunk, count))

    others = [workers(threads).submit(work) for _ in range(min(threads, len(starts)) - 1)]
    work()
    for other in others:
        other.result()
