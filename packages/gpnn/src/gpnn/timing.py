"""Times one call of one side of a benchmark. A script, run by `bench` in a process of its own.

arguments: SIDE INPUTS OUTPUT [CHECKOUT]; SIDE is ours, official (WeizmannVision/DropTheGAN, commit 2e11285)
or efficient (ariel415el/Efficient-GPNN, commit f575f76). Prints wall seconds, processor seconds, and the peak
memory in KiB after the call and before it (after imports and a small warm-up). Only the side that is timed is
imported: their modules have names of ours.
"""

import importlib
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

Given = Mapping[str, Any]
Call = Callable[[Given], Any]


def ours(given: Given) -> Any:
    """Our task, or our search of one step."""
    if str(given["task"]) == "step":
        nearest = importlib.import_module("paperkit.nearest")
        patches = [nearest.Patches(torch.from_numpy(given[name]), 7) for name in ("key", "query")]
        return nearest.Index(patches[0]).search(patches[1], float(given["alpha"])).index
    tasks, dataclasses = importlib.import_module("gpnn.tasks"), importlib.import_module("dataclasses")
    x, task = torch.from_numpy(given["image"]), str(given["task"])
    settings = dataclasses.replace(
        tasks.DEFAULTS[task], alpha=float(given["alpha"]), levels=int(given["levels"]), keys="blurred"
    )
    if task == "generate":
        return tasks.generate(x, 1, 0, None, tasks.Noise("absolute", 0.75), settings)
    return tasks.retarget(x, (x.shape[1], round(0.6 * x.shape[2])), False, settings)


def official(given: Given) -> Any:
    """The released code's application."""
    applications = importlib.import_module("applications")
    x, task = torch.from_numpy(given["image"]), str(given["task"])
    common = {"alpha": float(given["alpha"]), "num_levels": int(given["levels"])}
    if task == "generate":
        return applications.generation(x, **common)
    return applications.retargeting(x, (1.0, 0.6), **common)


def efficient(given: Given) -> Any:
    """Efficient-GPNN's search of one step, its exact mode or its quickest one (which knows no alpha)."""
    modules = importlib.import_module("utils.NN_modules")
    alpha = float(given["alpha"])
    rows = [
        torch.nn.functional.unfold(torch.from_numpy(given[name])[None], 7)[0].T.contiguous()
        for name in ("key", "query")
    ]
    exact = str(given["mode"]) == "exact"
    search = (
        modules.PytorchNNLowMemory(alpha=alpha if alpha < np.inf else None) if exact else modules.FaissIVF()
    )
    search.init_index(rows[0])
    return search.search(rows[1])


def peak_kib() -> float:
    """Peak memory of this process; what `getrusage` says starts on Linux at what the parent held."""
    status = Path("/proc/self/status")
    if status.exists():
        return float(
            next(row for row in status.read_text().splitlines() if row.startswith("VmHWM")).split()[1]
        )
    import resource  # here: Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform == "darwin" else 1)


def main(side: str, inputs: str, output: str, checkout: str = "") -> None:
    """Warm up on the small inputs (small_image, ...), then time one call."""
    if checkout:
        sys.path.insert(0, checkout)  # ahead of this script's own folder, and of any installed package
    else:
        sys.path.pop(0)  # this script's own folder: its modules are found as gpnn's
    call: Call = {"ours": ours, "official": official, "efficient": efficient}[side]
    with np.load(inputs) as file:
        given = dict(file)
    small = {
        name: given.pop(f"small_{name}") for name in ("image", "key", "query") if f"small_{name}" in given
    }
    call({**given, **small, "levels": np.array(2)})
    before = peak_kib()
    wall, cpu = time.perf_counter(), time.process_time()
    found = call(given)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if isinstance(found, torch.Tensor) and found.dtype == torch.int64:
        np.save(output, found.numpy())
    print(wall, cpu, peak_kib(), before)


if __name__ == "__main__":
    main(*sys.argv[1:])
