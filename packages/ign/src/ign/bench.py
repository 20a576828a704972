"""`ign bench <id>`: the timings that the README quotes, each variant in turns with the others."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paperkit import UserError, reproduction, results, rng, timing
from paperkit.run import suggest
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ign import peer
from ign.config import TRAIN, BenchConfig, TrainConfig
from ign.method import Naive, Objective, Shared, distance
from ign.model import Network, network
from ign.train import fastest

VARIANTS = ("floor", "naive", "shared", "joint", "compiled")
"""One plain auto-encoder step f(x); the engines of `ign.method`; the default engine under torch.compile."""
TARGETS = {"shared": 0.85, "joint": 0.78}
"""What each engine may cost of the naive one; set before anything was timed."""


@dataclass(frozen=True)
class Case:
    """A network, image shape and batch size to take steps with."""

    config: TrainConfig
    shape: tuple[int, int, int]

    def __str__(self) -> str:
        c = self.config
        size = "x".join(map(str, self.shape))
        return f"{c.net} {c.width}, code {c.code}, {c.norm} norm, {size}, batch {c.batch}"


MAIN = Case(TrainConfig(net="dcgan", width=16, code=64), (1, 28, 28))
OTHERS = (
    Case(TrainConfig(net="dcgan", width=16, code=64, norm="group"), (1, 28, 28)),
    Case(TrainConfig(net="hybrid", width=12, code=24), (1, 28, 28)),
    Case(TrainConfig(net="unet", width=8, code=32), (1, 28, 28)),
    Case(TrainConfig(), (1, 8, 8)),
)
LARGE = Case(replace(TRAIN["paper"][0], batch=32), (3, 64, 64))
"""Where memory is measured: the paper's network, beside which torch itself is small."""


def bench(config: BenchConfig) -> list[Path]:
    """Run one benchmark, or all, and write the result files; returns their paths."""
    if config.id != "all" and config.id not in BENCHES:
        raise UserError(
            f"no benchmark {config.id}{suggest(config.id, BENCHES)}; there are {', '.join(BENCHES)}"
        )
    if config.peer and config.id not in (*PEERS, "all"):
        raise UserError(f"--peer is for {', '.join(PEERS)}, not for {config.id}")
    written = []
    for name in BENCHES if config.id == "all" else [config.id]:
        if config.id == "all" and name in PEERS and not config.peer:
            print(f"ign bench {name}: left out, as --peer names no checkout to compare with", flush=True)
            continue
        if config.id == "all" and name == "gpu" and not torch.cuda.is_available():
            print("ign bench gpu: left out, as there is no CUDA device", flush=True)
            continue
        print(f"ign bench {name}", flush=True)
        since = time.monotonic()
        record = BENCHES[name](config)
        words = f"--repeats {config.repeats} --threads {config.threads}"
        words += " --peer CHECKOUT" if name in PEERS else ""
        package = "--group bench ign" if name in PEERS else "ign"
        record = results.benchmark(
            paper="ign", id=name, command=f"uv run --package ign {package} bench {name} {words}",
            threads=config.threads, wall_s=time.monotonic() - since, **record,
        )  # fmt: skip
        path = results.write(config.out or reproduction.folder(__file__), record)
        ratio = "only our side" if record["ratio"] is None else f"ratio {record['ratio']:.2f}"
        print(f"{path}: {ratio}", flush=True)
        written.append(path)
    return written


# ---- step ------------------------------------------------------------------------------------------------


def step(config: BenchConfig) -> dict[str, Any]:
    """One optimiser step of every engine, and the floor of a plain auto-encoder step."""
    torch.set_num_threads(config.threads)
    default = fastest(MAIN.config)
    limit = TARGETS[default]
    times, rows = {}, {}
    for case in (MAIN, *OTHERS):
        times[case] = in_turns(variants(case, compiled=case is MAIN), config.repeats, str(case))
        rows[str(case)] = summary(times[case])
        print(f"{case}\n{table(rows[str(case)])}", flush=True)
    peaks = {name: peak_mib(name, config.threads) for name in VARIANTS[:4]}
    return {
        "claim": f"The default step ({default}) costs at most {limit} of the naive one, at the same gradient",
        "data": f"random images, {MAIN}", "ours": times[MAIN][default].wall,
        "against": ("naive: a refreshed copy, four applications (public code)", times[MAIN]["naive"].wall),
        "target": 1 / limit, "peak_mib": (peaks[default], peaks["naive"]), "device": "cpu",
        "details": {
            "time": "zero_grad, engine step, Adam step; ratios of medians: on the clock, of processor time",
            "targets_of_naive": TARGETS,
            "variants": "floor = one auto-encoder step f(x); compiled = the default under torch.compile",
            "default": {str(case): fastest(case.config) for case in (MAIN, *OTHERS)},
            "cases": rows, "peak_mib": {"network": str(LARGE), **peaks},
        },
    }  # fmt: skip


def variants(case: Case, compiled: bool) -> dict[str, Callable[[], object]]:
    """Each variant's step, on networks of its own that start alike."""
    return {name: stepper(case, name) for name in (VARIANTS if compiled else VARIANTS[:4])}


def stepper(case: Case, name: str) -> Callable[[], object]:
    """One optimiser step of a variant."""
    rng.seed_everything(0)
    net = network(case.config, case.shape)
    optimiser = torch.optim.Adam(net.parameters(), 1e-4, betas=(0.5, 0.999), fused=True)
    x = rng.normal((case.config.batch, *case.shape), 0, 0, "x").clamp(-1, 1)
    z = rng.normal(tuple(x.shape), 0, 0, "z")
    backward = _backward(case, net, name)

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        backward(x, z)
        optimiser.step()

    return run


def _backward(case: Case, net: Network, name: str) -> Callable[[torch.Tensor, torch.Tensor], object]:
    objective = Objective()
    if name == "floor":
        return lambda x, z: distance(net(x, ("x",)), x, "l2").mean().backward()
    if name == "naive":
        engine = Naive(net, copy.deepcopy(net))
    else:
        kind = fastest(case.config) if name == "compiled" else name
        called = torch.compile(net) if name == "compiled" else net
        engine = Shared(called, kind == "joint")  # pyright: ignore[reportArgumentType]
    return lambda x, z: engine.step(x, z, objective)


@dataclass
class Times:
    """Seconds of each repetition on the clock, and of this process on the processor."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def in_turns(steps: Mapping[str, Callable[[], object]], repeats: int, label: str = "") -> dict[str, Times]:
    """Times of each step, one after the other, `repeats` rounds after three to warm up."""
    times = {name: Times() for name in steps}
    for turn in tqdm(range(repeats + 3), desc=label, disable=None, leave=False):
        for name, run in steps.items():
            clock, processor = time.perf_counter(), time.process_time()
            run()
            if turn >= 3:
                times[name].wall.append(time.perf_counter() - clock)
                times[name].processor.append(time.process_time() - processor)
    return times


def summary(times: Mapping[str, Times]) -> dict[str, dict[str, float]]:
    """Of each variant the median milliseconds, and their ratios to naive's and to the floor's."""
    wall = {name: float(np.median(each.wall)) for name, each in times.items()}
    processor = {name: float(np.median(each.processor)) for name, each in times.items()}
    return {
        name: {
            "wall_ms": round(1e3 * wall[name], 3),
            "of_naive": round(wall[name] / wall["naive"], 3),
            "of_floor": round(wall[name] / wall["floor"], 3),
            "processor_of_naive": round(processor[name] / processor["naive"], 3),
        }
        for name in times
    }


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A summary as lines of text."""
    columns = list(next(iter(rows.values())))
    lines = [" " * 10 + "".join(f"{column:>20}" for column in columns)]
    for name, row in rows.items():
        lines.append(f"{name:10}" + "".join(f"{row[column]:20.3f}" for column in columns))
    return "\n".join(lines)


def peak_mib(name: str, threads: int) -> float:
    """Peak memory of a process, torch included, that takes two steps of a variant on `LARGE`."""
    return timing.in_own_process(f"from ign.bench import print_peak; print_peak({name!r}, {threads})")


def print_peak(name: str, threads: int) -> None:
    """Print this process's peak memory in MiB after two steps of a variant on `LARGE`."""
    torch.set_num_threads(threads)
    run = stepper(LARGE, name)
    run()
    run()
    print(timing.peak_mib())


# ---- peer ------------------------------------------------------------------------------------------------


def against_peer(config: BenchConfig) -> dict[str, Any]:
    """One step of our default engine and of the public implementation on its very network."""
    if not config.peer:
        raise UserError("bench peer times another implementation: name a checkout of it by --peer")
    other = peer.Peer(Path(config.peer).absolute())
    times, loading = peer.step_times(other, PEER_BATCH, config.repeats, config.threads)
    medians = {row: float(np.median(values)) for row, values in times.items()}
    peak = partial(peer.peak_mib, other, threads=config.threads, batch=PEER_BATCH)
    return {
        "claim": "Our default step is at least 1.2 times as fast as public code's on the latter's network",
        "data": f"random images 1x32x32, batch {PEER_BATCH}, DCGAN 64-128-256",
        "ours": times["ours"], "against": (other.version, times["peer"]), "target": 1.2,
        "peak_mib": (peak("ours"), peak("peer")),
        "device": "cpu",
        "details": {
            "ratio_of_own_net": round(medians["peer"] / medians["ours_own_net"], 3),
            "own_net": "the same layers in our network, whose norms keep statistics for each role",
            "loading_ms": round(1e3 * loading, 3),
            "time": "theirs: from one call of its logger to the next, the loading of a batch included; ours: "
                    "noise, zero_grad, engine step, Adam step, losses read; in turns in one process",
        },
    }  # fmt: skip


# ---- gpu -------------------------------------------------------------------------------------------------


def on_gpu(config: BenchConfig) -> dict[str, Any]:
    """Images per second of training on CUDA in fp32 and bf16, with and without torch.compile."""
    if not torch.cuda.is_available():
        raise UserError("bench gpu needs a CUDA device, and there is none here")
    case = Case(replace(TRAIN["paper"][0], batch=256), LARGE.shape)
    peak = matrix_peak("cuda")
    rows, times = {}, {}
    for name in ("fp32", "bf16", "bf16 compiled"):
        torch.cuda.reset_peak_memory_stats()
        run, flops = gpu_step(case, "cuda", bf16="bf16" in name, compiled="compiled" in name)
        times[name] = synchronised(run, config.repeats, "cuda")
        median = float(np.median(times[name]))
        rows[name] = {
            "images_per_s": case.config.batch / median, "share_of_peak": flops / median / peak,
            "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
        }  # fmt: skip
    return {
        "claim": "Training in bf16 under torch.compile is no slower than without", "data": f"random, {case}",
        "ours": times["bf16 compiled"], "against": ("bf16, not compiled", times["bf16"]), "target": 1.0,
        "peak_mib": (rows["bf16 compiled"]["peak_mib"], rows["bf16"]["peak_mib"]),
        "device": torch.cuda.get_device_name(),
        "details": {"rows": rows, "peak_flops_of_a_bf16_product_of_8192": peak,
                    "flops": "of the step's convolutions and products, as torch counts them"},
    }  # fmt: skip


def gpu_step(case: Case, device: str, bf16: bool, compiled: bool) -> tuple[Callable[[], object], float]:
    """One optimiser step of the default engine on a device, and its arithmetic in operations."""
    rng.seed_everything(0)
    net = network(case.config, case.shape).to(device)
    optimiser = torch.optim.Adam(net.parameters(), 1e-4, betas=(0.5, 0.999), fused=True)
    x = rng.normal((case.config.batch, *case.shape), 0, 0, "x").clamp(-1, 1).to(device)
    z = rng.normal(tuple(x.shape), 0, 0, "z").to(device)
    called = torch.compile(net) if compiled else net
    engine = Shared(called, fastest(case.config) == "joint")  # pyright: ignore[reportArgumentType]
    objective = Objective()

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            engine.step(x, z, objective)
        optimiser.step()

    with FlopCounterMode(display=False) as counter:
        Shared(net).step(x, z, objective)
    return run, float(counter.get_total_flops())


def synchronised(run: Callable[[], object], repeats: int, device: str) -> list[float]:
    """Seconds of each repetition until the device is done, after three to warm up."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    taken = []
    for turn in range(repeats + 3):
        wait()
        since = time.perf_counter()
        run()
        wait()
        if turn >= 3:
            taken.append(time.perf_counter() - since)
    return taken


def matrix_peak(device: str, side: int = 8192) -> float:
    """Operations per second of a square bf16 matrix product, the median of ten."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / float(np.median(synchronised(lambda: a @ b, 10, device)))


BENCHES: dict[str, Callable[[BenchConfig], dict[str, Any]]] = {
    "step": step, "peer": against_peer, "gpu": on_gpu,
}  # fmt: skip
PEERS: tuple[str, ...] = ("peer",)
PEER_BATCH = 64
"""The benchmarks that compare with a checkout of another implementation, named by --peer."""
