"""`gpnn bench <id>`: time and memory, each case in processes of its own, ours and the peer's in turns.

The peer is a checkout of the authors' released code (WeizmannVision/DropTheGAN, commit 2e11285), named by
`--peer`, run by its own interpreter and unmodified: nothing of it stands here. Its functions draw their own
noise, which has no bearing on its time: it compares all pairs whatever the content.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from paperkit import UserError, results
from paperkit.resize import resize
from paperkit.run import suggest
from tqdm import tqdm

from gpnn.config import BenchConfig
from gpnn.reproduce import folder
from gpnn.session import read_image
from gpnn.tasks import DEFAULTS, automatic_depth

IMAGE = "coffee"

# Both print "wall cpu peak_kib" of one call after the imports and a warm-up at 48x72.
OURS = """
import resource, sys, time, numpy as np, torch
from gpnn import tasks
task, path, alpha = sys.argv[1], sys.argv[2], float(sys.argv[3])
x, small = (torch.from_numpy(np.load(p)) for p in (path, sys.argv[4]))
from dataclasses import replace
def call(x, levels):
    size = (x.shape[1], x.shape[2])
    s = replace(tasks.DEFAULTS[task], alpha=alpha, levels=levels, keys="blurred")
    if task == "generate":
        return tasks.generate(x, 1, 0, size, tasks.Noise("absolute", 0.75), s)
    return tasks.retarget(x, (size[0], round(0.6 * size[1])), False, s)
call(small, 2)
a, c = time.perf_counter(), time.process_time()
call(x, int(sys.argv[5]))
print(time.perf_counter() - a, time.process_time() - c, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
THEIRS = """
import resource, sys, time
sys.path.insert(0, sys.argv[6])
import numpy as np, torch
import applications
task, path, alpha = sys.argv[1], sys.argv[2], float(sys.argv[3])
x, small = (torch.from_numpy(np.load(p)) for p in (path, sys.argv[4]))
def call(x, levels):
    if task == "generate":
        return applications.generation(x, alpha=alpha, num_levels=levels)
    return applications.retargeting(x, (1.0, 0.6), alpha=alpha, num_levels=levels)
call(small, 2)
a, c = time.perf_counter(), time.process_time()
call(x, int(sys.argv[5]))
print(time.perf_counter() - a, time.process_time() - c, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@dataclass(frozen=True)
class Case:
    """One line of a benchmark."""

    task: str
    height: int
    alpha: float
    target: float
    peer: bool = True


CASES = {
    "official": {
        "93-inf": Case("generate", 93, float("inf"), 30),
        "93-0.005": Case("generate", 93, 5e-3, 10),
        "186-inf": Case("generate", 186, float("inf"), 30),
        "186-0.005": Case("generate", 186, 5e-3, 10),
        "93-retarget": Case("retarget", 93, 1e-3, 10),
    },
    "scale": {
        "0.05": Case("generate", 183, float("inf"), 3),
        "0.2": Case("generate", 365, float("inf"), 3),
        "1": Case("generate", 816, float("inf"), 3, peer=False),
        "4": Case("generate", 1633, float("inf"), 3, peer=False),
    },
}
ABSENT = {
    "efficient": "bench efficient (ariel415el/Efficient-GPNN) is not written yet",
    "gpu": "bench gpu is not written yet",
}


def bench(config: BenchConfig) -> list[Path]:
    """`gpnn bench`: run the benchmarks and write bench-*.json, one per case."""
    if config.id in ABSENT:
        raise UserError(f"{ABSENT[config.id]}; there are {', '.join(CASES)}")
    if config.id != "all" and config.id not in CASES:
        raise UserError(f"no benchmark {config.id}{suggest(config.id, CASES)}; there are {', '.join(CASES)}")
    if config.peer and not (Path(config.peer) / "applications.py").exists():
        raise UserError(f"--peer {config.peer} is no checkout of DropTheGAN: it has no applications.py")
    written = []
    for name in CASES if config.id == "all" else [config.id]:
        for label, case in CASES[name].items():
            if config.cases and label not in config.cases:
                continue
            written.append(_bench(config, name, label, case))
    if not written:
        raise UserError(f"no case {', '.join(config.cases)} in {config.id}")
    return written


def _bench(config: BenchConfig, name: str, label: str, case: Case) -> Path:
    since = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        x, small = read_image(IMAGE, 0), read_image(IMAGE, 72)
        x = resize(x, size=(case.height, round(case.height * x.shape[2] / x.shape[1]))).clamp(0, 1)
        size = (x.shape[1], x.shape[2])
        levels = automatic_depth("generate", [size], DEFAULTS[case.task].ratio)
        paths = [str(Path(scratch) / f"{stem}.npy") for stem in ("x", "small")]
        for path, each in zip(paths, (x, small), strict=True):
            np.save(path, each.numpy())
        words = [case.task, paths[0], str(case.alpha), paths[1], str(levels)]
        sides: dict[str, list[list[float]]] = {"ours": [], "theirs": []}
        both = bool(config.peer) and case.peer
        for _ in tqdm(range(config.repeats), desc=f"{name} {label}"):
            sides["ours"].append(_timed(sys.executable, OURS, words, config.threads))
            if both:
                python = config.peer_python or sys.executable
                sides["theirs"].append(_timed(python, THEIRS, [*words, config.peer], config.threads))
    wall, cpu, peak = np.array(sides["ours"]).T
    details = {"cpu_s": cpu.tolist(), "levels": levels, "size": list(size), "alpha": str(case.alpha)}
    against, theirs = None, None
    if both:
        wall_, cpu_, peak_ = np.array(sides["theirs"]).T
        against, theirs = ("official code, commit 2e11285", wall_.tolist()), float(np.median(peak_)) / 1024
        details |= {"cpu_s_official": cpu_.tolist(), "cpu_ratio": float(np.median(cpu_) / np.median(cpu))}
    record = results.benchmark(
        paper="gpnn", id=f"{name}-{label.replace('.', '-')}",
        claim=f"{case.task}, {size[0]}x{size[1]}, alpha {case.alpha:g}: {case.target:g} times as fast",
        command=f"uv run --package gpnn gpnn bench {name} --cases {label} --threads {config.threads}"
        + (" --peer PEER --peer-python PYTHON" if config.peer else ""),
        data=f"scikit-image {IMAGE}", ours=wall.tolist(), target=case.target, against=against,
        peak_mib=(float(np.median(peak)) / 1024, theirs), threads=config.threads, device="cpu",
        wall_s=time.monotonic() - since, details=details,
    )  # fmt: skip
    path = results.write(config.out or folder(), record)
    print(path, flush=True)
    return path


def _timed(python: str, script: str, words: list[str], threads: int) -> list[float]:
    """[wall, cpu, peak KiB] of one call in a fresh process, waiting threads asleep on both sides."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [python, "-c", script, *words], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise UserError(f"a timed process failed: {done.stderr.strip().splitlines()[-1:]}")
    return [float(word) for word in done.stdout.split()[-3:]]
