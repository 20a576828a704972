"""What a figure was made by: commit, versions, hardware, time.

Used by `paperkit.run` (manifests) and `paperkit.results` (result files) of every paper. Imports no torch.
"""

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import datetime
from pathlib import Path


def now() -> str:
    """The local time with its zone, ISO 8601, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def commit() -> tuple[str, bool]:
    """Commit of the working tree that holds this file, and whether that differs; ("unknown", False) without.

    Result files themselves do not count as a difference: one command writes several in a row.
    """
    here = Path(__file__).resolve()

    # Without optional locks a look at the status never stands in the way of somebody's commit.
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(here.parent), *words],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy inside somebody's repository
        changed = git("status", "--porcelain", "--", ":/", ":(top,exclude,glob)**/results/*.json")
        return git("rev-parse", "HEAD"), bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False


def versions(paper: str) -> dict[str, str]:
    """Python and the installed versions of the paper, of `paperkit`, and of what the paper declares."""
    names = {"numpy", "torch", "paperkit", paper}
    try:
        names |= {re.split(r"[^\w.-]", line)[0] for line in importlib.metadata.requires(paper) or []}
    except importlib.metadata.PackageNotFoundError:
        names.discard(paper)
    found = {"python": platform.python_version()}
    for name in sorted(names):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional part, or one for another platform
    return found


def hardware(device: str = "cpu") -> str:
    """The processor, the cores that this process may use, memory, and the GPU where `device` names one."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    text = f"{_processor()}, {cores} cores, {memory:.0f} GiB"
    if device.startswith("cuda"):
        import torch

        text = f"{torch.cuda.get_device_name(device)}; {text}"
    return text


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
