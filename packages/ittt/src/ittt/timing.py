"""Timing of calls in turns, and the memory that one needs on top of what its process holds already."""

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from paperkit import UserError

if TYPE_CHECKING:
    from ittt.config import BenchConfig

Call = Callable[[], object]
WARM = 5
"""Rounds before the first that counts."""
ROUND = 0.02
"""Seconds that a call is repeated for within a round: the calls of tiny networks take a millisecond."""


def in_turns(calls: Mapping[str, Call], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call, one after the other, `repeats` rounds after some to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    counts = {name: max(1, round(ROUND / seconds(call, device, WARM))) for name, call in calls.items()}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call, device, counts[name]))
    return times


def seconds(call: Call, device: torch.device, count: int) -> float:
    """Wall time of a call, mean over `count`, the device's work included."""
    _wait(device)
    since = time.perf_counter()
    for _ in range(count):
        call()
    _wait(device)
    return (time.perf_counter() - since) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median(times: list[float]) -> float:
    """In milliseconds."""
    return 1e3 * float(np.median(times))


def peak_mib(name: str, label: str, side: str, config: "BenchConfig") -> float:
    """Memory in MiB that one side of a case needs beyond its process and networks, in its own process."""
    words = ", ".join(map(repr, (name, label, side, config.device, config.threads)))
    code = f"from ittt.timing import print_peak; print_peak({words})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the memory of {name} {label} could not be measured: {done.stderr.strip()[-200:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def print_peak(name: str, label: str, side: str, device: str, threads: int) -> None:
    """Print the growth of memory at its peak during one call after two to warm up, in MiB."""
    from paperkit.device import choose

    torch.set_num_threads(threads)
    place = choose(device, "fp32").device
    call = importlib.import_module("ittt.bench").CASES[name][label].calls(place)[side]
    call()
    call()
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        print(json.dumps((torch.cuda.max_memory_allocated() - before) / 2**20))
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    call()
    # The kernel's counts lag by a fraction of a MiB, so a call that needs nothing can seem to give back.
    print(json.dumps(max(0, status("VmHWM") - before) / 2**10))


def status(key: str) -> int:
    """A figure of this process in KiB. Raises `UserError` where the system does not tell it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError as error:
        raise UserError("memory is measured on Linux only: run this benchmark there") from error
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
