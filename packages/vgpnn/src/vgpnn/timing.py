"""Times one sample by one side of `bench official`. A script, run in a process of its own.

arguments: SIDE INPUTS OUTPUT [CHECKOUT]; SIDE is ours or released (nivha/single_video_generation, commit
bca419b). Prints wall seconds, processor seconds, and the peak memory in MiB after the call and before it
(after imports and a tiny sample). Only the side that is timed is imported: the released module has our name.

The released code runs as it is, but for what `PATCHED` says.
"""

import importlib
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

PATCHED = (
    "matplotlib, where it is not installed, is an empty module: it only writes frames, and none are written",
    "CUDA_VISIBLE_DEVICES is set to nothing and the device is the CPU",
    "output of the input's size (sthw 1, 1, 1): the command's default stops with an assertion",
    "called by get_vgpnn and forward as the command does; no video is written",
)
"""What is done to the released code so that it starts here."""

Given = Mapping[str, Any]
Call = Callable[[Given], np.ndarray]
"""From frames (t, h, w, 3), levels (0: all) and a seed to a video (3, t, h, w) in [-1, 1]."""


def ours(given: Given) -> np.ndarray:
    """Our sample by the preset `code`."""
    config, session = (importlib.import_module(f"vgpnn.{name}") for name in ("config", "session"))
    method, tasks = (importlib.import_module(f"vgpnn.{name}") for name in ("method", "tasks"))
    video = torch.from_numpy(given["frames"]).permute(0, 3, 1, 2).contiguous()
    shape = (len(video), *video.shape[2:])
    settings = session.flags_over(config.GENERATE["code"][0], tasks.settings_for("generate", shape))
    problem = tasks.generation(video, 1, int(given["seed"]), settings=settings)
    *_, state = method.passes(problem, stop=(int(given["levels"]) or problem.levels) - 1)
    return state.videos[0].numpy()


def released(given: Given) -> np.ndarray:
    """The released sample with the command's defaults, but for `PATCHED`."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    without("matplotlib", "pyplot", "animation")
    peer = importlib.import_module("vgpnn")
    torch.manual_seed(int(given["seed"]))
    with tempfile.TemporaryDirectory() as folder:
        for k, frame in enumerate(given["frames"], 1):
            Image.fromarray(frame).save(Path(folder) / f"{k}.png")
        frames, height = given["frames"].shape[:2]
        model, _ = peer.get_vgpnn(
            folder, 1, frames, torch.device("cpu"), height, (3, 15), (0.85, 0.85), 5, (3, 7, 7), (1, 1, 1),
            "median", vgpnn_type="pm",
        )  # fmt: skip
    noise = {0: torch.randn_like(model.q0)}
    made = model.forward(
        model.q0, noises_dict=noise, noises_amps={0: 5}, n_stages=int(given["levels"]) or None
    )
    return made[0].numpy()


def without(name: str, *parts: str) -> None:
    """Stand an empty module in for one that is not installed."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        whole = sys.modules[name] = types.ModuleType(name)
        for part in parts:
            sys.modules[f"{name}.{part}"] = types.ModuleType(f"{name}.{part}")
            setattr(whole, part, sys.modules[f"{name}.{part}"])


def peak_mib() -> float:
    """Largest resident memory so far (Linux). `paperkit` has it too, which the peer's interpreter lacks."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 2**10


def main(side: str, inputs: str, output: str, checkout: str = "") -> None:
    """Warm up on a tiny clip, then time one sample and keep it."""
    if checkout:
        sys.path.insert(0, checkout)  # ahead of this script's own folder, and of any installed package
    else:
        sys.path.pop(0)  # this script's own folder: its modules are found as vgpnn's
    call: Call = {"ours": ours, "released": released}[side]
    with np.load(inputs) as file:
        given = dict(file)
    call({**given, "frames": given["frames"][:5, :20, :24], "levels": 2})
    before = peak_mib()
    wall, cpu = time.perf_counter(), time.process_time()
    video = call(given)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    np.save(output, video)
    print(wall, cpu, peak_mib(), before)


if __name__ == "__main__":
    main(*sys.argv[1:])
