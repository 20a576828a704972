"""`ign reproduce <id>`: each claim of the README, run again, as one result file.

Criteria and seeds stand here in code and were fixed before the runs.
"""

import copy
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from paperkit import UserError, reproduction, rng
from paperkit.run import RunOptions, checkpoints, load_checkpoint, read_metrics
from tqdm import tqdm

from ign import baselines, data, experiments, projection, quality, ring, theorem
from ign.classifier import judge
from ign.config import TRAIN, ReproduceConfig
from ign.evaluate import ceiling, idempotence
from ign.evaluate import quality as quality_of
from ign.generate import IGN
from ign.method import Naive, Objective, Shared, single_graph
from ign.model import build
from ign.train import train


def claims() -> list[dict[str, Any]]:
    """The claims of the package's result files; none in an installed copy."""
    return reproduction.written(reproduction.folder(__file__))


def reproduce(config: ReproduceConfig) -> list[Path]:
    """Run one claim, or all, and write the result files; returns their paths."""
    names = reproduction.chosen(config.id, CLAIMS)
    if config.peer and config.id not in (*PEERS, "all"):
        raise UserError(f"--peer is for {', '.join(PEERS)}, not for {config.id}")
    if config.id == "all" and not config.peer:
        for name in PEERS:
            print(f"ign reproduce {name}: left out, as --peer names no checkout to compare with", flush=True)
        names = [name for name in names if name not in PEERS]

    def seeds(name: str) -> int:
        return config.seeds or SEEDS.get(name, 5)

    def run(name: str) -> dict[str, Any]:
        return PEERS[name](seeds(name), config.peer) if name in PEERS else CLAIMS[name](seeds(name))

    def command(name: str) -> str:
        words = f"ign reproduce {name} --seeds {seeds(name)}"
        peer = name in PEERS
        return f"uv run --package ign {'--group bench ' * peer}{words}{' --peer CHECKOUT' * peer}"

    place = Path(config.out) if config.out else reproduction.folder(__file__)
    return reproduction.run("ign", {name: partial(run, name) for name in names}, place, command)


# ---- gradient-routing ------------------------------------------------------------------------------------


NETS = (("mlp", (1, 8, 8), 16), ("hybrid", (1, 8, 8), 4), ("dcgan", (3, 16, 16), 4))


def gradient_routing(seeds: int) -> dict[str, Any]:
    """The fast engines against plain autograd of the single graph, or the naive engine where clamped."""
    objectives = {
        "listing": Objective(),
        "appendix without clamp": Objective(20, 20, 2.5, "l1"),
        "no tightness": Objective(tight=0.0),
        "clamp on x": Objective(20, 20, 2.5, "l1", clamp=1.5),
        "clamp on x with gradient": Objective(20, 20, 2.5, "l1", clamp=1.5, clamp_gradient=True),
        "clamp on z": Objective(20, 20, 2.5, "l1", clamp=1.5, reference="z"),
    }
    worst: dict[str, float] = {}
    for seed in range(seeds):
        for kind, shape, width in (
            ("mlp", (1, 8, 8), 16),
            ("hybrid", (1, 8, 8), 4),
            ("dcgan", (3, 16, 16), 4),
        ):
            for norm in ("batch", "group", "none"):
                rng.seed_everything(seed, f"{kind}-{norm}")
                net = build(kind, shape, width, 6, norm).double()  # pyright: ignore[reportArgumentType]
                x = torch.rand(8, *shape, dtype=torch.float64) * 2 - 1
                z = torch.randn(8, *shape, dtype=torch.float64)
                for name, objective in objectives.items():
                    case = f"{name}, {kind}, {norm}"
                    worst[case] = max(worst.get(case, 0.0), _routing_error(net, x, z, objective))
    return {
        "claim": "The shared second application gives exactly the routed gradient of all three losses",
        "source": "section 2 (losses and their gradient paths); identity of the single graph derived here",
        "preset": "none", "data": "random, float64", "metric": "largest_relative_gradient_difference",
        "unit": "1", "better": "lower", "ours": list(worst.values()),
        "criterion": "exact: at most 1e-12 of the gradient's norm in float64", "tolerance": 1e-12,
        "details": {"cases": worst, "seeds": seeds},
    }  # fmt: skip


def _routing_error(net, x, z, objective: Objective) -> float:
    """The larger relative error of the two fast engines in the gradient of all parameters."""

    def gradient(fill: Callable[[], object]) -> torch.Tensor:
        net.zero_grad()
        fill()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    if objective.clamp:
        oracle = gradient(lambda: Naive(net, copy.deepcopy(net)).step(x, z, objective))
    else:
        oracle = gradient(lambda: single_graph(net, x, z, objective).backward())
    fast = [gradient(lambda joint=joint: Shared(net, joint).step(x, z, objective)) for joint in (False, True)]
    return max(float((each - oracle).norm() / oracle.norm()) for each in fast)


# ---- small-samples ---------------------------------------------------------------------------------------


def small_samples(seeds: int) -> dict[str, Any]:
    """The default preset on real digits: readable samples of all classes, beside both ends."""
    config, _ = TRAIN["small"]
    train_set, test_set = data.load(config), data.load(config, "test")
    with tempfile.TemporaryDirectory() as scratch:
        judge_ = judge(train_set, test_set, Path(scratch))
        if judge_.accuracy < 0.95:
            raise UserError(
                f"the judge is right in {judge_.accuracy:.1%} of held-out digits, 95 % are needed"
            )
        rows: dict[str, list[dict[str, float]]] = {"k1": [], "k2": [], "untrained": []}
        held_out = test_set.floats()
        for seed in tqdm(range(seeds), desc="seeds"):
            run = train(
                replace(config, seed=seed), RunOptions(out=f"{scratch}/{seed}", device="cpu"), "small"
            )
            ign, blank = IGN.load(run), experiments.untrained(replace(config, seed=seed), train_set)
            for k in (1, 2):
                found = quality_of(ign.sample(1000, k, seed), held_out, judge_)
                rows[f"k{k}"].append(found | idempotence(ign, 500, held_out, k=1, seed=seed))
            rows["untrained"].append(quality_of(blank.sample(1000, 1, seed), held_out, judge_))
        best = ceiling(train_set, test_set, judge_, 1000)

    def arm(row: str, key: str) -> list[float]:
        return [found[key] for found in rows[row]]

    whole = zip(
        arm("k1", "readable"), arm("k1", "classes"), arm("k1", "kid"), arm("untrained", "kid"), strict=True
    )
    passed = [share if classes == 10 and kid < 0.5 * blank else 0.0 for share, classes, kid, blank in whole]
    arms = {f"{key}_{row}": arm(row, key) for row in rows for key in rows[row][0]}
    return {
        "claim": "One application of f turns white noise into readable digits of all ten classes",
        "source": "abstract; section 4 (MNIST samples, no score)", "preset": "small", "data": train_set.name,
        "metric": "balanced_readable_share_k1", "unit": "1", "better": "higher",
        "ours": arm("k1", "balanced"), "against": ("untrained net", arm("untrained", "balanced")),
        "arms": {**arms, **{f"{key}_real": [value] for key, value in best.items()}},
        "criterion": "in every seed: ten classes, KID below half the untrained net's, readable share >= 0.85",
        "statistic": min(passed), "threshold": 0.85,
        "details": {
            "judge_accuracy": judge_.accuracy,
            "readable": "share of 1,000 samples that the judge names with confidence >= 0.9",
            "balanced": "the same with each class counted up to a tenth: an untrained net repeats one image",
            "real": "1,000 training digits as if they were samples: the ceiling",
        },
    }  # fmt: skip


# ---- resume ----------------------------------------------------------------------------------------------


def resume(seeds: int) -> dict[str, Any]:
    """Kill -9 at three random moments and resume, against an unbroken run: weights, optimiser, metrics."""
    differences: dict[str, float] = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as scratch:
            whole, broken = Path(scratch, "whole"), Path(scratch, "broken")
            _command(seed, whole, ()).wait()
            for step in sorted(random.Random(seed).sample(range(2, 50), 3)):
                process = _command(seed, broken, ("--resume", str(broken)) if broken.exists() else ())
                _kill_at(process, broken, step)
            _command(seed, broken, ("--resume", str(broken))).wait()
            for name, value in compare(whole, broken).items():
                differences[f"{name}, seed {seed}"] = value
    return {
        "claim": "A run that is killed three times and resumed ends bit for bit like an unbroken one",
        "source": "house rule", "preset": "smoke", "data": "digits", "metric": "largest_absolute_difference",
        "unit": "1", "better": "lower", "ours": list(differences.values()),
        "criterion": "exact: weights, optimiser state and metrics equal", "tolerance": 0.0,
        "details": {"differences": differences, "seeds": seeds},
    }  # fmt: skip


def _command(seed: int, out: Path, resume: tuple[str, ...]) -> subprocess.Popen:
    fresh = (
        "--preset",
        "smoke",
        "--log-every",
        "1",
        "--save-every",
        "7",
        "--seed",
        str(seed),
        "--out",
        str(out),
    )
    words = [sys.executable, "-c", "import sys; from ign.cli import main; sys.exit(main())", "train"]
    return subprocess.Popen(
        [*words, *(resume or fresh)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _kill_at(process: subprocess.Popen, run: Path, step: int) -> None:
    """Kill -9 as soon as the run has logged `step`."""
    while process.poll() is None:
        rows = read_metrics(run)
        if rows and rows[-1]["step"] >= step:
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(0.002)


def compare(a: Path, b: Path) -> dict[str, float]:
    """Largest absolute differences of two runs' last checkpoints and metrics; 0 = bit for bit."""
    (weights_a, state_a), (weights_b, state_b) = (load_checkpoint(checkpoints(run)[-1]) for run in (a, b))
    return {
        "weights": _difference(weights_a, weights_b),
        "optimiser": _difference(state_a, state_b),
        "metrics": _difference(read_metrics(a), read_metrics(b)),
    }


def _difference(a: Any, b: Any) -> float:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return max((_difference(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return max((_difference(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape:
        return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b)
    return 0.0 if a == b else float("inf")


CLAIMS: dict[str, Callable[[int], dict[str, Any]]] = {
    "gradient-routing": gradient_routing,
    "small-samples": small_samples,
    "resume": resume,
    "theorem-tabular": theorem.tabular,
    "ring-onestep": ring.onestep,
    "ring-drift": ring.drift_map,
    "ring-tightness": ring.tightness,
    **experiments.CLAIMS,
    "baselines": baselines.baselines,
    "projection": projection.projection,
    "mnist-quality": quality.mnist_quality,
}
PEERS: dict[str, Callable[[int, str], dict[str, Any]]] = {"mnist-quality": quality.mnist_quality}
"""The claims that compare with a checkout of another implementation, named by --peer."""
SEEDS = {"theorem-tabular": 20, "ring-onestep": 10, "ring-drift": 10}
"""How many seeds a claim has by default, where not five."""
