"""Timing of variants in turns, and the memory that a call needs on top of what its process holds already."""

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from paperkit import UserError

Call = Callable[[], object]
WARM = 3
"""Rounds before the first that counts."""


def in_turns(calls: Mapping[str, Call], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, one after the other, `repeats` rounds after some to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + WARM):
        for name, call in calls.items():
            since = time.perf_counter()
            call()
            if turn >= WARM:
                times[name].append(time.perf_counter() - since)
    return times


def median(times: list[float]) -> float:
    """In milliseconds."""
    return 1e3 * float(np.median(times))


def peak_mib(call: str, threads: int) -> float:
    """Memory in MiB that `module:function` (which returns a call) needs beyond its process and arguments.

    In a process of its own; a first, small conv has loaded what torch loads late.
    """
    code = f"from ccconv.timing import print_peak; print_peak({call!r}, {threads})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def print_peak(call: str, threads: int) -> None:
    """Print the growth of this process's memory at its peak during one call, in MiB."""
    torch.set_num_threads(threads)
    place, _, arguments = call.partition("(")
    module, function = place.split(":")
    made = getattr(importlib.import_module(module), function)
    run = made(*json.loads(f"[{arguments.rstrip(')')}]"))
    torch.nn.functional.conv2d(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 3, 3))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    run()
    # The kernel's counts lag by a fraction of a MiB, so a call that needs nothing can seem to give back.
    print(json.dumps(max(0, status("VmHWM") - before) / 2**10))


def status(key: str) -> int:
    """A figure of this process in KiB. Raises `UserError` where the system does not tell it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError as error:
        raise UserError("memory is measured on Linux only: run this benchmark there") from error
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
