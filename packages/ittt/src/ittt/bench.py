"""`ittt bench <id>`: time and memory of adaptation, each side in turns with the other (spec 9).

id         cases                          against
torch-ttt  mlp, conv                      the IT3 engine of torch-ttt: same layers, steps, batch and rate
loop       stacked, rank-one              one instance after another, by our own loop
cost       mlp, conv, resnet18, resnet50  a plain forward pass of the same network (the paper's Tables 2 to 5)

The ResNets take images of ImageNet's size: on a GPU, or where they are named.

Aims stand here and were fixed before anything was timed.
"""

import copy
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from paperkit import UserError, reproduction, results
from paperkit.device import choose
from paperkit.timing import Call, growth_mib, in_own_process, in_turns, median_ms, waiting
from torch import Tensor, nn

from ittt.adapt import look
from ittt.config import BenchConfig
from ittt.inject import extra_inputs
from ittt.model import ITTT
from ittt.networks import Perceptron
from ittt.settings import Settings

BARE = Settings(steps=3, lr=1e-3, rollback=False, measure=False)
"""What torch-ttt does: three steps, and a prediction after them."""
INSTANCES = 64
TABLES_2_TO_5 = "inference 4 to 6 times a plain forward pass, memory 7.4 GB against 4.5 GB (Tables 2 to 5)"


@dataclass(frozen=True)
class Case:
    """One comparison: our call, the other side's, and how many times as fast ours must be."""

    claim: str
    data: str
    against: str
    target: float
    calls: Callable[[torch.device], dict[str, Call]]
    """Device -> the calls "ours" and "against", and more that go into the details."""
    gpu: bool = False
    """Whether it takes a GPU, unless it is named."""


def bench(config: BenchConfig) -> list[Path]:
    """Run benchmarks and write bench-*.json, one per case; returns the paths."""
    names, written = reproduction.chosen(config.id, CASES, "benchmark"), []
    known = [case for name in names for case in CASES[name]]
    if unknown := [case for case in config.cases if case not in known]:
        raise UserError(f"no case {unknown[0]} in {config.id}; there are {', '.join(dict.fromkeys(known))}")
    torch.set_num_threads(config.threads)
    device = choose(config.device, "fp32").device
    for name in names:
        for label, case in CASES[name].items():
            if label in config.cases or not (config.cases or (case.gpu and device.type == "cpu")):
                written.append(_run(config, name, label, case, device))
    return written


ROUND = 0.02
"""Seconds that a call is repeated for within a round: the calls of tiny networks take a millisecond."""
MEASURED = "import sys; from ittt.bench import print_growth; print_growth(*sys.argv[1:])"


def print_growth(side: str, name: str, label: str, device: str, threads: str) -> None:
    """Print the memory in MiB that a side of a case needs beyond its process and networks, once warm."""
    torch.set_num_threads(int(threads))
    place = choose(device, "fp32").device
    call = CASES[name][label].calls(place)[side]
    call()
    call()
    print(growth_mib(call, place))


def _run(config: BenchConfig, name: str, label: str, case: Case, device: torch.device) -> Path:
    print(f"ittt bench {name} --cases {label}", flush=True)
    since = time.monotonic()
    times = in_turns(case.calls(device), config.repeats, ROUND, waiting(device))
    rest = {
        side: values
        for side, values in times.items()
        if side not in ("ours", "against", *PARTS, *THEIRS) and not side.startswith(LARGE)
    }
    words = (name, label, config.device, str(config.threads))
    peaks = {side: in_own_process(MEASURED, side, *words) for side in ("ours", "against")}
    suffix = "" if device.type == "cpu" else f"-{device.type}"
    words = f"--cases {label} --repeats {config.repeats} --threads {config.threads}"
    words += f" --device {config.device}" if suffix else ""
    record = results.benchmark(
        paper="ittt", id=f"{name}-{label}{suffix}", claim=case.claim, data=case.data,
        command=f"uv run --package ittt ittt bench {name} {words}", target=case.target,
        ours=times["ours"], against=(case.against, times["against"]),
        peak_mib=(peaks["ours"], peaks["against"]), threads=config.threads, device=str(device),
        wall_s=time.monotonic() - since, details=_details(name, times, rest, peaks),
        explanation=_why(name, case.target, times),
    )  # fmt: skip
    path = results.write(config.out or reproduction.folder(__file__), record)
    print(f"{path}: ratio {record['ratio']:.2f}, target {record['target']:.2f}", flush=True)
    return path


def at_large(times: dict[str, list[float]]) -> float:
    """A step's time over a plain forward pass's, at the large batch."""
    return median_ms(times[f"{LARGE}, one step"]) / median_ms(times[f"{LARGE}, forward"])


def _details(name: str, times: dict[str, list[float]], rest: Any, peaks: dict[str, float]) -> dict[str, Any]:
    base = median_ms(times["against"])
    found: dict[str, Any] = {
        "median_ms": {side: median_ms(values) for side, values in times.items()},
        "ratios": {
            side: base / median_ms(values) for side, values in {"ours": times["ours"], **rest}.items()
        },
    }
    if name == "cost":
        found["cost"] = {side: 1 / ratio for side, ratio in found["ratios"].items()}
        found["memory"] = peaks["ours"] / peaks["against"] if peaks["against"] else None
        found["paper"] = TABLES_2_TO_5
        found["parts_in_plain_forward_passes"] = {part: median_ms(times[part]) / base for part in PARTS}
        if f"{LARGE}, forward" in times:
            found[f"cost_at_{LARGE}"] = at_large(times)
    return found


def _why(name: str, target: float, times: dict[str, list[float]]) -> str:
    """What is known where the target is missed."""
    if median_ms(times["against"]) >= target * median_ms(times["ours"]):
        return ""
    if name == "torch-ttt":
        return _beside_theirs(times, target)
    if name == "cost":
        base = median_ms(times["against"])
        parts = [f"{part} {median_ms(times[part]) / base:.1f}" for part in PARTS]
        whole = median_ms(times["ours"]) / base
        rest = whole - sum(median_ms(times[part]) / base for part in PARTS)
        told = f"Of {whole:.1f} plain forward passes: {', '.join(parts)}, checks and the report {rest:.1f}."
        if f"{LARGE}, forward" not in times:
            return told
        large = at_large(times)
        why = "; the difference is PyTorch's time per call on small tensors" if large < 0.8 * whole else ""
        return f"{told} With {LARGE} the same step costs {large:.1f}{why}."
    return ""


def _beside_theirs(times: dict[str, list[float]], target: float) -> str:
    """What each side's three steps are made of, and the ratio that the networks' passes alone would allow."""
    found = {side: median_ms(values) for side, values in times.items()}
    passes, optimiser, reset, predicting = (found[part] for part in PARTS)
    most = found["against"] / (BARE.steps * passes + predicting)
    verdict = "below the target whatever else is saved" if most < target else "the rest decides"
    return (
        f"Of our {found['ours']:.2f} ms {BARE.steps} x {passes:.2f} are {PARTS[0]}, {BARE.steps} x "
        f"{optimiser:.2f} {PARTS[1]}, {reset:.2f} {PARTS[2]}, {predicting:.2f} {PARTS[3]}; of their "
        f"{found['against']:.2f} ms {BARE.steps} x {found[THEIRS[0]]:.2f} are {THEIRS[0]}, "
        f"{found[THEIRS[1]]:.2f} {THEIRS[1]}. With passes and predictions alone on our side the ratio is "
        f"{most:.2f}: {verdict}. A frozen F saves the weights' gradient of one pass in two, and what comes "
        "before the signal."
    )


# ---- what is timed -----------------------------------------------------------------------------------------


RESNETS = ("resnet18", "resnet50")


def layers(label: str, extra: int = 0) -> nn.Sequential:
    """The tables' perceptron (mlp), the digits' conv net (conv) or a ResNet, the same weights each time."""
    torch.manual_seed(0)
    if label in RESNETS:
        from torchvision import models  # here: importing torchvision takes seconds

        net = getattr(models, label)()
        return nn.Sequential(*list(net.children())[:-1], nn.Flatten(), net.fc)
    if label == "mlp":
        return Perceptron(13 + extra, (30, 20, 10)).layers
    return nn.Sequential(
        nn.Conv2d(1 + extra, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 16, 10),
    )  # fmt: skip


def batch(label: str, device: torch.device) -> Tensor:
    """51 rows of 13 columns, 64 images of 8x8, or for ResNets 128 images of 224x224 (two on a CPU)."""
    draw = torch.Generator().manual_seed(1)
    shapes = {"mlp": (51, 13), "conv": (64, 1, 8, 8)}
    large = (128 if device.type == "cuda" else 2, 3, 224, 224)
    return torch.randn(shapes.get(label, large), generator=draw).to(device)


def network(label: str) -> ITTT:
    """The layers, fed at their input; a ResNet behind its second stage."""
    if label in RESNETS:
        return ITTT(layers(label), "feature", layer="5", outputs=1000, task="classes", neutral="uniform")
    outputs, place = (1, "concat") if label == "mlp" else (10, "channel")
    model = layers(label, extra_inputs(outputs))
    return ITTT(model, place, outputs=outputs, task="regression" if label == "mlp" else "classes")


def torch_ttt(label: str) -> Callable[[torch.device], dict[str, Call]]:
    """Ours, fed after the first layer as torch-ttt's is, against its engine."""

    def make(device: torch.device) -> dict[str, Call]:
        try:
            module = importlib.import_module("torch_ttt.engine.it3_engine")  # not a dependency
        except ModuleNotFoundError:
            raise UserError("bench torch-ttt compares with torch-ttt: uv pip install torch-ttt") from None
        x, outputs = batch(label, device), 1 if label == "mlp" else 10
        words = {"num_steps": BARE.steps, "lr": BARE.lr}
        engine = module.IT3Engine(layers(label).to(device), "0", optimization_parameters=words)
        engine.train()
        engine(x)  # builds its embedding
        engine.eval()
        task = "regression" if label == "mlp" else "classes"
        net = ITTT(layers(label).to(device), "feature", outputs=outputs, task=task, layer="0")
        ours, guarded = (net.adapter(settings) for settings in (BARE, Settings(steps=3, lr=1e-3)))

        def passes() -> None:
            engine.ttt_forward(x)[1].backward()
            engine.zero_grad()

        def copied() -> None:
            torch.optim.Adam(copy.deepcopy(engine).model.parameters(), lr=BARE.lr)

        return {
            "ours": lambda: ours(x),
            "against": lambda: engine(x),
            "with the gap measured and rollback": lambda: guarded(x),
            **parts(net, x), **dict(zip(THEIRS, (passes, copied), strict=True)),
        }  # fmt: skip

    return make


def loop(kind: str) -> Callable[[torch.device], dict[str, Call]]:
    """64 instances, one step each: side by side or by the shortcut, against one after another."""

    def make(device: torch.device) -> dict[str, Call]:
        draw = torch.Generator().manual_seed(1)
        x = torch.randn((INSTANCES, 13), generator=draw).to(device)
        net = network("mlp").to(device)
        base = replace(BARE, steps=1, per="instance")
        calls = {}
        for side, method in (("ours", kind), ("against", "loop")):
            adapter = net.adapter(replace(base, method=method))
            calls[side] = lambda adapter=adapter: adapter(x)
        return calls

    return make


def cost(label: str) -> Callable[[torch.device], dict[str, Call]]:
    """One step, and two and three, against a plain forward pass."""

    def make(device: torch.device) -> dict[str, Call]:
        net, x = network(label).to(device).eval(), batch(label, device)

        def plain() -> Tensor:
            return forward(net, x)

        calls: dict[str, Call] = {"against": plain, **parts(net, x)}
        if label not in RESNETS:
            many = torch.cat([x] * MANY)
            large = net.adapter(replace(BARE, steps=1))
            calls[f"{LARGE}, forward"] = lambda: forward(net, many)
            calls[f"{LARGE}, one step"] = lambda: large(many)
        for steps, side in ((1, "ours"), (2, "two steps"), (3, "three steps")):
            adapter = net.adapter(replace(BARE, steps=steps))
            calls[side] = lambda adapter=adapter: adapter(x)
        return calls

    return make


@torch.no_grad()
def forward(net: ITTT, x: Tensor) -> Tensor:
    """A plain forward pass."""
    return net(x)


PARTS = ("both applications and the backward pass", "the optimiser", "the reset", "predicting")
"""What a step is made of, each timed alone."""
THEIRS = ("their passes and gradients", "their copy of the network, with its optimiser")
"""Of torch-ttt's engine: a step without its optimiser, and what comes before the first."""
MANY = 16
LARGE = f"{MANY} times the batch"


def parts(net: ITTT, x: Tensor) -> dict[str, Call]:
    """The `PARTS` of one step on a batch."""
    settings = replace(BARE, steps=1)
    copies = net.adapter(settings).shared
    copies.begin(x, settings)

    def backward() -> None:
        look(copies, x, settings, adapting=True).gaps.mean().backward()
        copies.clear()

    calls = (
        backward, copies.optimiser.step, lambda: copies.reset(False),
        lambda: look(copies, x, settings, measure=False),
    )  # fmt: skip
    return dict(zip(PARTS, calls, strict=True))


def _torch_ttt() -> str:
    try:
        return f"torch-ttt {version('torch-ttt')}"
    except PackageNotFoundError:
        return "torch-ttt"


_SIZES = {
    "mlp": "51 rows, 13 columns, perceptron 30-20-10", "conv": "64 images of 8x8, two convs",
    **{label: f"images of 224x224 (128 on a GPU, 2 on a CPU), {label}" for label in RESNETS},
}  # fmt: skip
CASES: dict[str, dict[str, Case]] = {
    "torch-ttt": {
        label: Case(
            "Three steps on a batch: 1.5 times the samples a second of torch-ttt's engine",
            f"random; {_SIZES[label]}", _torch_ttt(), 1.5, torch_ttt(label),
        )
        for label in ("mlp", "conv")
    },
    "loop": {
        kind: Case(
            f"{INSTANCES} instances {words}: {target:g} times as fast as one after another",
            f"random; {INSTANCES} rows of 13 columns, perceptron 30-20-10, one step each",
            "one instance after another", target, loop(kind),
        )
        for kind, words, target in (
            ("stacked", "side by side", 5.0), ("rank-one", "by the rank-one shortcut", 20.0)
        )
    },
    "cost": {
        label: Case(
            "One step costs at most six plain forward passes", f"random; {_SIZES[label]}",
            "plain forward pass", 1 / 6, cost(label), gpu=label in RESNETS,
        )
        for label in ("mlp", "conv", *RESNETS)
    },
}  # fmt: skip
