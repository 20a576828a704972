"""`ccconv bench <id>`: the timings that the README quotes, each variant in turns with the others (spec 9.3).

Aims stand here and were fixed before anything was timed. A benchmark of several cells writes the times of the
cell that is worst against its own aim, so that it holds only where every cell does.
"""

import contextlib
import importlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from paperkit import UserError, reproduction, results, suggest
from paperkit.timing import Call, growth_mib, in_own_process, in_turns, median_ms
from torch import Tensor
from torch.nn import functional as F

from ccconv import charges, paths
from ccconv.axis import Plan
from ccconv.config import BenchConfig
from ccconv.functional import resize
from ccconv.layer import CCConv2d

SCALES = tuple(map(Fraction, ("1", "1/2", "2", "7/8", "3/2", "25/28", "37/100")))
SHAPES = ((8, 32, 64), (1, 64, 128), (32, 64, 32))
"""(batch, channels in and out, input side)."""
COPRIME = (8, 32, 64, 57)
"""Batch, channels, input and output side of the case in which every output pixel has its own kernel."""


def bench(config: BenchConfig) -> list[Path]:
    """Run one benchmark, or all, and write the result files; returns their paths."""
    if config.id != "all" and config.id not in BENCHES:
        raise UserError(
            f"no benchmark {config.id}{suggest(config.id, BENCHES)}; there are {', '.join(BENCHES)}"
        )
    if config.peer and config.id not in PEERS:
        raise UserError(f"--peer is for {', '.join(PEERS)}, not for {config.id}")
    torch.set_num_threads(config.threads)
    written = []
    for name in BENCHES if config.id == "all" else [config.id]:
        print(f"ccconv bench {name}", flush=True)
        since = time.monotonic()
        record = BENCHES[name](config)
        words = f"--repeats {config.repeats} --threads {config.threads}"
        peer = " --peer PEER" if name in PEERS and config.peer else ""
        record = results.benchmark(
            paper="ccconv", id=name, command=f"uv run --package ccconv ccconv bench {name} {words}{peer}",
            threads=config.threads, device="cpu", wall_s=time.monotonic() - since, **record,
        )  # fmt: skip
        path = results.write(config.out or reproduction.folder(__file__), record)
        ratio = "only our side" if record["ratio"] is None else f"ratio {record['ratio']:.2f}"
        print(f"{path}: {ratio}, target {record['target']:.2f}", flush=True)
        written.append(path)
    return written


@dataclass
class Cell:
    """One comparison: our times, the rival's, and how much slower than it we may be (None: no aim)."""

    name: str
    ours: list[float]
    against: list[float]
    aim: float | None = None

    @property
    def cost(self) -> float:
        """Our time over the rival's, medians."""
        return median_ms(self.ours) / median_ms(self.against)

    @property
    def room(self) -> float:
        """Aim over cost: at least 1 where the aim is met."""
        return float("inf") if self.aim is None else self.aim / self.cost

    def row(self) -> dict[str, float]:
        """As it stands in a file."""
        found = {
            "ours_ms": round(median_ms(self.ours), 4),
            "against_ms": round(median_ms(self.against), 4),
            "cost": round(self.cost, 3),
        }
        return found if self.aim is None else {**found, "aim": self.aim}


def worst(cells: list[Cell], rival: str) -> dict[str, Any]:
    """The fields of a record for several cells: the times of the one with the least room."""
    for cell in cells:
        aim = "" if cell.aim is None else f", aim {cell.aim:.2f}"
        print(
            f"  {cell.name:44} {median_ms(cell.ours):9.3f} ms, {cell.cost:6.2f} of the rival{aim}", flush=True
        )
    least = min(cells, key=lambda cell: cell.room)
    missed = [cell.name for cell in cells if cell.room < 1]
    return {
        "ours": least.ours, "against": (f"{rival}; cell {least.name}", least.against),
        "target": 1 / (least.aim or 1.0),
        "explanation": f"aims missed by {len(missed)} of {len(cells)} cells: {'; '.join(missed)}"
        if missed
        else "",
        "details": {
            "cells": {cell.name: cell.row() for cell in cells},
            "cost": "our median over the rival's; the record has the cell with the least room to its aim",
        },
    }  # fmt: skip


# ---- What is timed ---------------------------------------------------------------------------------------


def layer_of(kernel: str, channels: int, **words: Any) -> CCConv2d:
    """A layer for timing."""
    torch.manual_seed(0)
    return CCConv2d(channels, channels, 3, kernel=kernel, **words)


def forward(layer: Callable[..., Tensor], x: Tensor, **call: Any) -> Call:
    """A forward pass without gradients."""

    def run() -> Tensor:
        with torch.no_grad():
            return layer(x, **call)

    return run


def both(layer: Callable[..., Tensor], x: Tensor, **call: Any) -> Call:
    """A forward and a backward pass, gradients of input and weights."""
    x = x.clone().requires_grad_()

    def run() -> None:
        layer(x, **call).sum().backward()
        x.grad = None

    return run


def conv_like(made: Plan, channels: int, taps: int) -> tuple[Callable[[Tensor], Tensor], tuple[int, int]]:
    """F.conv2d with `taps` taps a side and the output size of a call, and the input side that it needs.

    Strides are those of a call with one phase; with several the taps stand at every pixel.
    """
    strides = [axis.stride if axis.phases == 1 else 1 for axis in made.axes]
    sides = [(axis.size - 1) * t + taps for axis, t in zip(made.axes, strides, strict=True)]
    conv = torch.nn.Conv2d(channels, channels, taps, (strides[0], strides[1]))
    return conv, (sides[0], sides[1])


def taps_of(made: Plan) -> int:
    """Taps a side that the call's kernels really read."""
    axis = made.axes[0].samples
    read = axis.taper != 0 if axis.basis is None else axis.basis.abs().sum(2) > 1e-12
    return int(read.sum(1).max())


def example(name: str, which: str, peer: str = "") -> Call:
    """The call of a benchmark whose memory is measured: `ours` or `against`."""
    batch, channels, side, size = COPRIME
    if name.startswith("naive"):
        return coprime(which, name.endswith("train"))
    if name == "resizeright":
        x, ours = torch.rand(1, 3, 512, 512), which == "ours"
        if ours:
            return partial(resize, x, (871, 871), 1.7, border="replicate")
        words = {"scale_factors": 1.7, "out_shape": (1, 3, 871, 871), "pad_mode": "replicate"}
        return partial(peer_of(peer)[0].resize, x, **words)
    x = torch.randn(batch, channels, side, side)
    if name == "today":
        layer = layer_of("interp", channels) if which == "ours" else Today(channels)
        return both(layer, x, size=(size, size))
    if which == "ours":
        return both(layer_of("mlp", channels), x, scale=2)
    return both(torch.nn.ConvTranspose2d(channels, channels, 6, 2, 2), x)


def peaks(name: str, config: BenchConfig, both_ours: bool = False) -> tuple[float, float | None]:
    """Memory of both sides in a benchmark's example, MiB beyond the process; None where there is no peer."""
    found: list[float | None] = []
    for which in ("ours", "ours" if both_ours else "against"):
        peer = str(Path(config.peer).resolve()) if config.peer else ""
        if which == "against" and name in PEERS and not peer:
            found.append(None)
            continue
        found.append(in_own_process(MEASURED, name, which, peer, str(config.threads)))
    return found[0] or 0.0, found[1]


MEASURED = "import sys; from ccconv.bench import print_growth; print_growth(*sys.argv[1:])"


def print_growth(name: str, which: str, peer: str, threads: str) -> None:
    """Print the memory in MiB that one side's example needs beyond this process and its arguments."""
    torch.set_num_threads(int(threads))
    run = example(name, which, peer)
    F.conv2d(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 3, 3))  # loads what torch loads late
    print(growth_mib(run))


# ---- bench conv ------------------------------------------------------------------------------------------


def conv(config: BenchConfig) -> dict[str, Any]:
    """Against F.conv2d of equal output, channels and taps; x2 against F.conv_transpose2d."""
    cells = []
    for batch, channels, side in SHAPES if config.repeats >= 10 else SHAPES[:1]:
        for s in SCALES:
            cells += conv_cells(batch, channels, side, s, config.repeats)
    found = worst(cells, "F.conv2d or F.conv_transpose2d")
    if "transposed" in found["explanation"]:
        found["explanation"] += (
            ". Up by 2 it is one conv of four times the channels over the window that four phases share; one "
            "conv per phase, a gather and a resampling per axis are slower (bench paths)"
        )
    found["claim"] = "Where it has few phases a layer costs little more than F.conv2d with as many taps"
    return {"data": "random maps", "peak_mib": peaks("conv", config), **found}


def conv_cells(batch: int, channels: int, side: int, s: Fraction, repeats: int) -> list[Cell]:
    """All comparisons of one shape and scale."""
    x = torch.randn(batch, channels, side, side)
    cells = []
    for kernel in ("mlp", "interp"):
        layer = layer_of(kernel, channels)
        made = layer.plan(x, scale=s)
        taps = taps_of(made) if kernel == "mlp" else 3
        rival, sides = conv_like(made, channels, taps)
        rival_x, name = torch.randn(batch, channels, *sides), f"conv of {taps} taps"
        if s == 2 and kernel == "mlp":
            rival, rival_x = torch.nn.ConvTranspose2d(channels, channels, 6, 2, 2), x
            name = "transposed conv of 6 taps"
        baked = layer_of(kernel, channels).eval()
        baked.load_state_dict(layer.state_dict())
        # Apart from each other: what a backward pass gives back to the system, the next call has to fetch.
        times = in_turns(
            {
                "cached": forward(baked, x, scale=s),
                "sampled": forward(layer, x, scale=s),
                "rival": forward(rival, rival_x),
            },
            repeats,
        ) | in_turns(
            {"both": both(layer, x, scale=s), "rival both": both(rival, rival_x)},
            repeats,
        )
        head = f"{kernel} {batch}x{channels}x{side}, s={s}, {name}"
        aim = {Fraction(1): 1.05, Fraction(1, 2): 1.1, Fraction(2): 0.7, Fraction(7, 8): 4.0}.get(s)
        sampled = 1.3 if s == 1 and batch >= 8 else None
        if kernel == "interp":
            aim = sampled = None
        cells += [
            Cell(f"{head}, cached", times["cached"], times["rival"], aim),
            Cell(f"{head}, sampled", times["sampled"], times["rival"], sampled),
            Cell(f"{head}, forward and backward", times["both"], times["rival both"]),
        ]
    return cells


# ---- bench naive -----------------------------------------------------------------------------------------


def coprime(which: str, train: bool = False) -> Call:
    """Our layer, also one that keeps its kernels for the backward pass, or the definition."""
    batch, channels, side, size = COPRIME
    layer = layer_of("mlp", channels, recompute=which != "kernels kept")
    x, call = torch.randn(batch, channels, side, side), layer.oracle if which == "against" else layer
    return both(call, x, size=size) if train else forward(call, x, size=size)


def naive(config: BenchConfig) -> dict[str, Any]:
    """Against unfold and einsum where every output pixel has its own kernel."""
    cells, memory, kept = [], {}, 0.0
    for train in (False, True):
        sides = ("ours", "against", *(["kernels kept"] if train else []))
        times = in_turns({which: coprime(which, train) for which in sides}, config.repeats)
        kept = median_ms(times["kernels kept"]) if train else 0.0
        name = "forward and backward" if train else "forward"
        cells.append(Cell(name, times["ours"], times["against"], 1 / 5))
        memory[name] = peaks("naive train" if train else "naive", config)
    found = worst(cells, "unfold, all kernels sampled, one einsum")
    less = {name: naive / max(ours, 1e-3) for name, (ours, naive) in memory.items()}
    found["details"] |= {"peak_mib": memory, "times_less_memory": less, "aim_of_memory": 10}
    if min(less.values()) < 10:
        found["explanation"] += f" memory: {min(less.values()):.1f} times less, 10 were aimed at"
    if found["explanation"]:
        found["explanation"] += (
            ". The backward pass samples all kernels once more and differentiates them; kept instead of "
            f"sampled again it takes {kept:.0f} ms"
        )
    batch, channels, side, size = COPRIME
    return {
        "claim": "Where all phases differ the layer is 5 times faster than unfold and einsum, in a tenth of "
        "the memory",
        "data": f"random maps {batch}x{channels}x{side}x{side} to {size}x{size}, mlp",
        "peak_mib": memory["forward"], **found,
    }  # fmt: skip


# ---- bench today -----------------------------------------------------------------------------------------


class Today(torch.nn.Module):
    """What people write today: an antialiased cubic resize, then a conv."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The conv of the resized map."""
        return self.conv(F.interpolate(x, size, mode="bicubic", antialias=True))


def today(config: BenchConfig) -> dict[str, Any]:
    """`interp` against F.interpolate(antialias=True), then F.conv2d, at any scale."""
    cells = []
    for batch, channels, side in SHAPES if config.repeats >= 10 else SHAPES[:1]:
        x = torch.randn(batch, channels, side, side)
        for s in SCALES[1:]:
            layer, rival = layer_of("interp", channels), Today(channels)
            size = layer.plan(x, scale=s).sizes
            pair = (size[0], size[1])
            times = in_turns(
                {
                    "ours": forward(layer, x, size=pair),
                    "rival": forward(rival, x, size=pair),
                    "both": both(layer, x, size=pair),
                    "rival both": both(rival, x, size=pair),
                },
                config.repeats,
            )
            head = f"{batch}x{channels}x{side} to {pair[0]}"
            cells += [
                Cell(f"{head}, forward", times["ours"], times["rival"], 1.5),
                Cell(f"{head}, forward and backward", times["both"], times["rival both"], 1.5),
            ]
    return {
        "claim": "The layer with kernel interp costs at most 1.5 of an antialiased resize and a conv, at any "
        "scale",
        "data": "random maps", "peak_mib": peaks("today", config),
        **worst(cells, "F.interpolate(bicubic, antialias=True), then F.conv2d"),
    }  # fmt: skip


# ---- bench resizeright -----------------------------------------------------------------------------------


def resizeright(config: BenchConfig) -> dict[str, Any]:
    """Our `resize` against ResizeRight's on one colour image of 512 px."""
    x = torch.rand(1, 3, 512, 512)
    peer, revision = peer_of(config.peer) if config.peer else (None, "")
    cells, gaps = [], {}
    for s in (0.37, 1.7):
        n = -(-int(s * 51200) // 100)
        calls: dict[str, Call] = {"ours": partial(resize, x, (n, n), s, border="replicate")}
        if peer is not None:
            calls["peer"] = partial(
                peer.resize, x, scale_factors=s, out_shape=(1, 3, n, n), pad_mode="replicate"
            )
            gaps[f"s={s}"] = float(
                (torch.as_tensor(calls["peer"]()) - torch.as_tensor(calls["ours"]())).abs().max()
            )
        times = in_turns(calls, config.repeats)
        cells.append(Cell(f"512 to {n}", times["ours"], times.get("peer", times["ours"]), 1 / 3))
    found = worst(cells, f"ResizeRight, commit {revision}")
    if peer is None:
        found |= {"against": None, "explanation": ""}
    found["details"]["largest_difference_of_the_outputs"] = gaps
    return {
        "claim": "resize is 3 times faster than ResizeRight on the CPU, at 0.37 and 1.7 of 512 px",
        "data": "one random image, 3x512x512", "peak_mib": peaks("resizeright", config), **found,
    }  # fmt: skip


def peer_of(place: str) -> tuple[Any, str]:
    """The module of a checkout of ResizeRight, and its commit. Raises `UserError` where it is none."""
    where = Path(place)
    if not (where / "resize_right.py").is_file():
        raise UserError(
            f"--peer {place} holds no resize_right.py: name a checkout of assafshocher/ResizeRight"
        )
    sys.path.insert(0, str(where))
    try:
        module = importlib.import_module("resize_right")
    finally:
        sys.path.remove(str(where))
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        words = ["git", "-C", str(where), "rev-parse", "HEAD"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return module, done.stdout.strip()[:7]
    return module, "unknown"


# ---- bench paths: the cost model -------------------------------------------------------------------------


FAR, SLOW = 30, 4
"""Paths that the model puts this many times beyond its choice are not tried; those that then take this many
times as long as the fastest are tried once and not timed any further."""


def path_times(config: BenchConfig) -> list[dict[str, Any]]:
    """Of every case each path's median time and terms of its cost, and which path the model chooses."""
    rows = []
    for batch, channels, side in SHAPES if config.repeats >= 10 else ((2, 8, 16),):
        x = torch.randn(batch, channels, side, side)
        for kernel in ("mlp", "interp"):
            for s in SCALES:
                for mode in MODES:
                    rows.append(path_row(kernel, x, s, mode, config.repeats))
                    times, chosen = rows[-1]["times"], rows[-1]["chosen"]
                    best = min(times, key=lambda path: median_ms(times[path]))
                    shown = "  ".join(f"{path} {median_ms(values):.2f}" for path, values in times.items())
                    print(f"  {rows[-1]['case']:42} chosen {chosen:10} best {best:10} {shown}", flush=True)
    return rows


MODES: tuple[paths.Mode, ...] = ("training", "forward", "kept")


def path_row(kernel: str, x: Tensor, s: Fraction, mode: paths.Mode, repeats: int) -> dict[str, Any]:
    """One case: paths in turns."""
    batch, channels, side = x.shape[:3]
    layer = layer_of(kernel, channels)
    made = layer.plan(x, scale=s)
    words = (made, layer.geometry, batch, (channels, channels, 1), layer.hidden, mode)
    found, chosen = paths.cost(*words), paths.choose(*words)
    timed = both if mode == "training" else forward
    calls, once = {}, {}
    for path in (path for path, value in found.items() if value < FAR * found[chosen]):
        calls[path] = timed(layer_of(kernel, channels, path=path).train(mode != "kept"), x, scale=s)
        calls[path]()
        since = time.perf_counter()
        calls[path]()
        once[path] = time.perf_counter() - since
    limit = SLOW * min(once.values())
    calls = {path: call for path, call in calls.items() if path == chosen or once[path] <= limit}
    return {
        "case": f"{kernel} {batch}x{channels}x{side}, s={s}, {mode}", "mode": mode, "chosen": chosen,
        "times": in_turns(calls, repeats), "once": once,
        "terms": {paths.priced(path, layer.geometry): paths.terms(*words)[path] for path in found},
    }  # fmt: skip


def choice(config: BenchConfig) -> dict[str, Any]:
    """The path that the cost model chooses against the fastest of each case, in training and inference."""
    rows = path_times(config)
    chosen, best = [0.0] * config.repeats, [0.0] * config.repeats
    for row in rows:
        fastest = min(row["times"], key=lambda path: median_ms(row["times"][path]))
        for turn in range(config.repeats):
            chosen[turn] += row["times"][row["chosen"]][turn]
            best[turn] += row["times"][fastest][turn]
    return {
        "claim": "The paths that the cost model chooses take at most 1.15 of the fastest ones' time",
        "data": "random maps, sum over all cases", "ours": chosen,
        "against": ("the fastest path of each case, known afterwards", best), "target": 1 / 1.15,
        "peak_mib": peaks("conv", config, both_ours=True),
        "details": {
            "cases": {
                row["case"]: {
                    "chosen": row["chosen"],
                    **{path: round(median_ms(values), 3) for path, values in row["times"].items()},
                }
                for row in rows
            },
            "unit": "ms; training: forward and backward; forward: kernels sampled; kept: kernels at hand",
            "charges_that_fit_these_times": {table: charges.fitted(rows, table) for table in paths.CHARGES},
        },
    }  # fmt: skip


BENCHES: Mapping[str, Callable[[BenchConfig], dict[str, Any]]] = {
    "conv": conv,
    "naive": naive,
    "today": today,
    "resizeright": resizeright,
    "paths": choice,
}
PEERS = ("resizeright",)
"""The benchmarks that compare with a checkout of another implementation, named by --peer."""
