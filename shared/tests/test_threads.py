"""Chunks over threads: each number once, errors come through, also after a fork."""

import os
import sys
import threading

import pytest
from paperkit.threads import parallel


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("count", "chunk"), [(0, 3), (1, 3), (7, 3), (9, 3), (1000, 1)])
def test_each_number_is_taken_once(count, chunk, threads):
    seen, lock = [], threading.Lock()

    def call(start, stop):
        with lock:
            seen.extend(range(start, stop))

    parallel(count, chunk, threads, call)
    assert sorted(seen) == list(range(count))


def test_two_threads_work_at_the_same_time():
    both = threading.Barrier(2, timeout=30)
    parallel(2, 1, 2, lambda start, stop: both.wait())
    assert both.n_waiting == 0


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_comes_through(threads):
    def call(start, stop):
        if start == 4:
            raise ZeroDivisionError("of chunk 4")

    with pytest.raises(ZeroDivisionError, match="chunk 4"):
        parallel(8, 1, threads, call)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    parallel(8, 1, 2, lambda start, stop: None)
    child = os.fork()
    if not child:
        parallel(8, 1, 2, lambda start, stop: None)  # would wait for ever for threads that did not come along
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
