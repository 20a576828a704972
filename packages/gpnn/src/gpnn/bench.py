"""`gpnn bench <id>`: time and memory, each call in a process of its own, ours and the peer's in turns.

id         what                                                             peer (--peer CHECKOUT)
official   whole generation and retargeting                                 WeizmannVision/DropTheGAN 2e11285
scale      whole generation from 0.05 to 4 megapixels, time and memory      the same, for the smallest
efficient  the search of one step on equal patches                          ariel415el/Efficient-GPNN f575f76
gpu        seconds per sample and samples per second on a CUDA device       (published: 2 s on a V100)

Peers are run by their own interpreter and unmodified: nothing of them stands here. The released functions
draw their own noise, which has no bearing on their time: they compare all pairs whatever the content.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from paperkit import UserError, reproduction, results
from paperkit.resize import resize
from paperkit.run import suggest
from torch import Tensor
from tqdm import tqdm

from gpnn import tasks
from gpnn.config import BenchConfig
from gpnn.method import Settings, Source, down, level_size, up
from gpnn.session import read_image

IMAGE = "coffee"
INF = float("inf")


@dataclass(frozen=True)
class Case:
    """One line of a benchmark."""

    task: str
    """generate, retarget, or step: the search of one step."""
    height: int
    alpha: float
    target: float
    peer: bool = True
    mode: str = ""
    """Of Efficient-GPNN: exact, or its quickest."""
    samples: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Four by three, as the pilot's pictures."""
        return self.height, round(self.height * 4 / 3)


CASES = {
    "official": {
        "93-inf": Case("generate", 93, INF, 30),
        "93-0.005": Case("generate", 93, 5e-3, 10),
        "186-inf": Case("generate", 186, INF, 30),
        "186-0.005": Case("generate", 186, 5e-3, 10),
        "93-retarget": Case("retarget", 93, 1e-3, 10),
    },
    "scale": {
        "0.05": Case("generate", 194, INF, 3),
        "0.2": Case("generate", 387, INF, 3, peer=False),
        "1": Case("generate", 866, INF, 3, peer=False),
        "4": Case("generate", 1732, INF, 3, peer=False),
    },
    "efficient": {
        "exact-93-inf": Case("step", 93, INF, 3, mode="exact"),
        "exact-93-0.005": Case("step", 93, 5e-3, 3, mode="exact"),
        "exact-186-inf": Case("step", 186, INF, 3, mode="exact"),
        "exact-186-0.005": Case("step", 186, 5e-3, 3, mode="exact"),
        "ivf-186-inf": Case("step", 186, INF, 1, mode="ivf"),
    },
    "gpu": {
        "single": Case("generate", 180, INF, 1, peer=False),
        "batch": Case("generate", 180, INF, 1, peer=False, samples=16),
    },
}


@dataclass(frozen=True)
class Peer:
    """Another implementation."""

    name: str
    side: str
    file: str
    """One that a checkout of it has."""


OFFICIAL = Peer("official code, commit 2e11285", "official", "applications.py")
EFFICIENT = Peer("Efficient-GPNN, commit f575f76", "efficient", "utils/NN_modules.py")
PEERS = {"official": OFFICIAL, "scale": OFFICIAL, "efficient": EFFICIENT}


def bench(config: BenchConfig) -> list[Path]:
    """`gpnn bench`: run the benchmarks and write bench-*.json, one per case."""
    if config.id != "all" and config.id not in CASES:
        raise UserError(f"no benchmark {config.id}{suggest(config.id, CASES)}; there are {', '.join(CASES)}")
    if config.id == "gpu" and not torch.cuda.is_available():
        raise UserError("bench gpu needs a CUDA GPU, this machine has none: run it where there is one")
    chosen = (
        [config.id] if config.id != "all" else [n for n in CASES if n != "gpu" or torch.cuda.is_available()]
    )
    peers = {PEERS[name] for name in chosen if name in PEERS}
    if config.peer and not any((Path(config.peer) / peer.file).exists() for peer in peers):
        files = " or ".join(sorted(peer.file for peer in peers))
        raise UserError(f"--peer {config.peer} is no checkout of {config.id}'s peer: it has no {files}")
    written = []
    for name in chosen:
        for label, case in CASES[name].items():
            if not config.cases or label in config.cases:
                written.append((_on_gpu if name == "gpu" else _in_turns)(config, name, label, case))
    if not written:
        raise UserError(f"no case {', '.join(config.cases)} in {config.id}")
    return written


def picture(size: tuple[int, int]) -> Float[Tensor, "3 h w"]:
    """The middle of the photograph at this size."""
    x = read_image(IMAGE, 0)
    wide = round(x.shape[1] * size[1] / size[0])
    left = (x.shape[2] - wide) // 2
    return resize(x[:, :, left : left + wide], size=size).clamp(0, 1)


def step_images(size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Keys and queries of a first step at the finest level: the source's and a sample's blurred copies."""
    x = picture(size)
    settings = replace(tasks.defaults("generate", [size]), steps=2)
    sample = tasks.generate(x, 1, 0, None, tasks.Noise("relative", 8.0), settings)[0].image
    coarse = level_size(size, settings.ratio, 1)
    query = up(down(sample, coarse, settings.ratio), size, settings.ratio)
    return {"key": Source.of(x, replace(settings, levels=1)).blurred(0)[0].numpy(), "query": query.numpy()}


def inputs(case: Case) -> dict[str, np.ndarray]:
    """What a timed process reads."""
    settings = tasks.DEFAULTS["generate" if case.task == "step" else case.task]
    levels = tasks.automatic_depth("generate", [case.size], settings.ratio)
    given = {"task": case.task, "alpha": case.alpha, "levels": levels, "mode": case.mode}
    images = {"image": picture(case.size).numpy(), "small_image": picture((48, 64)).numpy()}
    if case.task == "step":
        small = step_images((48, 64))
        images = {**step_images(case.size), **{f"small_{name}": x for name, x in small.items()}}
    return {name: np.asarray(value) for name, value in {**given, **images}.items()}


def _in_turns(config: BenchConfig, name: str, label: str, case: Case) -> Path:
    """One benchmark of two sides, or of ours alone."""
    since, load, peer = time.monotonic(), os.getloadavg()[0], PEERS[name]
    both = case.peer and bool(config.peer) and (Path(config.peer) / peer.file).exists()
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(scratch) / "in.npz"
        found = {side: Path(scratch) / f"{side}.npy" for side in (["ours", "theirs"] if both else ["ours"])}
        np.savez(given, **inputs(case))  # pyright: ignore[reportArgumentType]
        calls = {"ours": [sys.executable, "ours", str(given), str(found["ours"])]}
        if both:
            python, checkout = config.peer_python or sys.executable, str(Path(config.peer).resolve())
            calls["theirs"] = [python, peer.side, str(given), str(found["theirs"]), checkout]
        times = _turns(calls, config, f"{name} {label}")
        details: dict[str, Any] = {"size": list(case.size), "alpha": str(case.alpha), "load_before": load}
        if both and found["theirs"].exists():
            a, b = np.load(found["ours"]), np.load(found["theirs"])
            details["share_of_equal_indices"] = float((a == b).mean())
    wall, cpu, peak, before = np.array(times["ours"]).T
    details |= {"cpu_s": cpu.tolist(), "call_mib": float(np.median(peak - before)) / 1024}
    details["call_bytes_per_pixel"] = 1024 * float(np.median(peak - before)) / (case.size[0] * case.size[1])
    against, theirs, explanation = None, None, ""
    if both:
        wall_, cpu_, peak_, _ = np.array(times["theirs"]).T
        against, theirs = (f"{peer.name} {case.mode}".strip(), wall_.tolist()), float(np.median(peak_)) / 1024
        details |= {"cpu_s_peer": cpu_.tolist(), "cpu_ratio": float(np.median(cpu_) / np.median(cpu))}
        busy = {"ours": float(np.median(cpu / wall)), "theirs": float(np.median(cpu_ / wall_))}
        details["threads_busy"] = busy
        if np.median(wall_) < case.target * np.median(wall):
            explanation = why(busy, details["cpu_ratio"], config.threads, case)
    many = f"-{config.threads}-threads" if config.threads > 1 else ""
    return _write(
        config, f"{name}-{label.replace('.', '-')}{many}", name, label, case,
        {"ours": wall.tolist(), "against": against, "peak_mib": (float(np.median(peak)) / 1024, theirs),
         "threads": config.threads, "device": "cpu", "details": details, "explanation": explanation,
         "wall_s": time.monotonic() - since},
    )  # fmt: skip


def why(busy: dict[str, float], ratio: float, threads: int, case: Case) -> str:
    """What the figures say where the target is missed; for the record's explanation."""
    if threads == 1:
        return f"In processor time the ratio is {ratio:.1f}."
    return (
        f"Ours keeps {busy['ours']:.2f} of {threads} threads busy, the other side {busy['theirs']:.2f}: at "
        f"{case.size[0]}x{case.size[1]} trees, principal directions, resizing and Python, which one thread "
        f"does, are a large part of ours. In processor time the ratio is {ratio:.1f}."
    )


def _turns(calls: dict[str, list[str]], config: BenchConfig, title: str) -> dict[str, list[list[float]]]:
    """What `timing` prints of each side, one after the other; a side that has taken minutes stops first."""
    times: dict[str, list[list[float]]] = {side: [] for side in calls}
    for _ in tqdm(range(config.repeats), desc=title):
        for side, (python, *words) in calls.items():
            if sum(turn[0] for turn in times[side]) < results.LONG:
                times[side].append(_timed(python, words, config.threads))
    return times


def _write(config: BenchConfig, id: str, name: str, label: str, case: Case, measured: dict[str, Any]) -> Path:
    command = f"uv run --package gpnn gpnn bench {name} --cases {label} --threads {config.threads}"
    command += " --peer PEER" if measured["against"] else ""
    command += " --peer-python PYTHON" if measured["against"] and config.peer_python else ""
    goal = f"{case.target:g} times as fast" if case.peer else "time and memory"
    record = results.benchmark(
        paper="gpnn", id=id, command=command, data=f"scikit-image {IMAGE}", target=case.target,
        claim=f"{case.task}, {case.size[0]}x{case.size[1]}, alpha {case.alpha:g}: {goal}",
        **measured,
    )  # fmt: skip
    path = results.write(config.out or reproduction.folder(__file__), record)
    print(path, flush=True)
    return path


def _timed(python: str, words: list[str], threads: int) -> list[float]:
    """What `timing` prints of one call in a fresh process; waiting threads are asleep on both sides."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    script = str(Path(__file__).with_name("timing.py"))
    done = subprocess.run(
        [python, script, *words], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise UserError(f"a timed process failed: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    return [float(word) for word in done.stdout.split()[-4:]]


# ---- GPU


def _on_gpu(config: BenchConfig, name: str, label: str, case: Case) -> Path:
    return _write(config, f"{name}-{label}", name, label, case, on_device(config, case, torch.device("cuda")))


def on_device(config: BenchConfig, case: Case, device: torch.device) -> dict[str, Any]:
    """Seconds per sample on one device, samples per second, and the share of its matrix products' peak."""
    since, size = time.monotonic(), (case.height, round(case.height * 25 / 18))
    x = picture(size).to(device)
    settings = replace(tasks.defaults("generate", [size]), alpha=case.alpha)

    def call(count: int) -> None:
        tasks.generate(x, count, 0, None, tasks.Noise("absolute", 0.75), settings)

    call(1)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    walls = [seconds(lambda: call(case.samples), device) / case.samples for _ in range(config.repeats)]
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else 0.0
    work, best = brute_force_work(size, settings), matrix_peak(device)
    median = float(np.median(walls))
    return {
        "ours": walls, "against": None, "peak_mib": (peak, None), "threads": config.threads,
        "device": str(device), "wall_s": time.monotonic() - since,
        "details": {
            "size": list(size), "samples": case.samples, "samples_per_s": 1 / median,
            "brute_force_flop_per_sample": work, "matrix_peak_flop_per_s": best,
            "share_of_matrix_peak": work / median / best,
            "published": "2 s per 250x180 sample on a V100 (official README)",
        },
    }  # fmt: skip


def seconds(call: Any, device: torch.device) -> float:
    """Wall time of a call, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def brute_force_work(size: tuple[int, int], settings: Settings) -> float:
    """FLOP of comparing all pairs of patches in every step: 2 N_q N_k d per search, two with finite alpha."""
    total = 0.0
    for n in range(settings.levels + 1):
        rows, columns = (side - settings.patch + 1 for side in level_size(size, settings.ratio, n))
        steps = settings.coarse_steps if n == settings.levels else settings.steps
        total += steps * 2 * (rows * columns) ** 2 * 3 * settings.patch**2
    return total * (2 if np.isfinite(settings.alpha) else 1)


def matrix_peak(device: torch.device, side: int = 4096) -> float:
    """Measured FLOP per second of a large float32 matrix product, TF32 off."""
    side = side if device.type == "cuda" else 512
    a = torch.ones(side, side, device=device)
    seconds(lambda: a @ a, device)
    return 2 * side**3 / min(seconds(lambda: a @ a, device) for _ in range(5))
