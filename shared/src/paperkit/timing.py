"""Timing of variants in turns, and the memory that a call needs. Used by the benchmarks of all papers."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from paperkit import UserError

if TYPE_CHECKING:
    import torch

Call = Callable[[], object]
WARM = 3
"""Rounds before the first that counts."""


def in_turns(
    calls: Mapping[str, Call],
    repeats: int,
    round_s: float = 0.0,
    wait: Call = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call, one after the other, `repeats` rounds after some to warm up.

    A call much shorter than `round_s` is repeated within a round until that time has passed, and counts with
    its mean. `wait` returns when the device has done what it was given.
    """
    first = {name: _seconds(call, WARM, wait, clock) for name, call in calls.items()}
    counts = {name: max(1, round(round_s / max(spent, 1e-9))) for name, spent in first.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(_seconds(call, counts[name], wait, clock))
    return times


def waiting(device: "torch.device") -> Call:
    """A call that returns when the device has done what it was given."""
    if device.type != "cuda":
        return lambda: None
    import torch

    return partial(torch.cuda.synchronize, device)


def _seconds(call: Call, count: int, wait: Call, clock: Callable[[], float]) -> float:
    wait()
    since = clock()
    for _ in range(count):
        call()
    wait()
    return (clock() - since) / count


def median_ms(times: list[float]) -> float:
    """In milliseconds, of seconds."""
    return 1e3 * statistics.median(times)


# ---- Memory


def in_own_process(code: str, *words: str) -> float:
    """The number that Python code prints last, run in a process of its own; `words` are its sys.argv[1:].

    Raises `UserError` with the last line of what went wrong there.
    """
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"a measured process failed: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def growth_mib(call: Call, device: "torch.device | None" = None) -> float:
    """Memory in MiB that a call needs at its peak, on top of what is held before it.

    Of a CUDA device what torch allocates there, else of this process (Linux).
    """
    if device is not None and device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    call()
    # The kernel's counts lag by a fraction of a MiB, so a call that needs nothing can seem to give back.
    return max(0, _status("VmHWM") - before) / 2**10


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB, its parent's left out.

    On Linux the figure of `getrusage` starts at what the parent held when it started this process.
    """
    if Path("/proc/self/status").exists():
        return _status("VmHWM") / 2**10
    import resource  # here: Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _status(key: str) -> int:
    """A figure of this process in KiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError as error:
        raise UserError("memory is measured on Linux only: run this benchmark there") from error
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
