"""`flexpredict bench <id>`: time and memory, each side in turns with the other (spec 9).

id        against                                                    target
step      the released I-JEPA loop (`--peer`), same sizes and masks  1.0 on a CPU, 1.3 on a GPU
masks     its mask collator (`--peer`), live                         2.0
overhead  our own deterministic step                                 1 / 1.02
loader    nothing: images per second of the input pipeline alone     none

Aims stand here and were fixed before anything was timed. Nothing of the other code enters this repository.
"""

import copy
import importlib
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paperkit import UserError, reproduction, results, rng
from paperkit.device import choose
from paperkit.timing import Call, growth_mib, in_turns, waiting
from torch import nn

from flexpredict import data, masks, method
from flexpredict.config import STOP_VITB16, BenchConfig, PositionConfig, TrainConfig
from flexpredict.step import first_state, groups, hidden, objective

PEER = "facebookresearch/ijepa"
GRID = (14, 14)


def bench(config: BenchConfig) -> list[Path]:
    """Run one benchmark, or all; returns the result files' paths. Raises `UserError` for an unknown id."""
    torch.set_num_threads(config.threads)
    return [_run(config, name) for name in reproduction.chosen(config.id, CASES, "benchmark")]


def _run(config: BenchConfig, name: str) -> Path:
    device = choose(config.device, "fp32").device
    make, claim, what, target, against = CASES[name]
    calls = make(config, device)
    since = time.monotonic()
    times = in_turns(calls, config.repeats, wait=waiting(device))
    peaks = {side: growth_mib(call, device) for side, call in calls.items()}
    target = 1.3 if name == "step" and device.type == "cuda" else target
    beside = f"{against}{_commit(config.peer)}" if config.peer and "peer" in against else against
    words = f"--repeats {config.repeats} --batch {config.batch} --threads {config.threads}"
    words += f" --device {config.device}" if device.type != "cpu" else ""
    words += " --peer CHECKOUT" if "against" in calls and name in ("step", "masks") else ""
    record = results.benchmark(
        paper="flexpredict", id=name if device.type == "cpu" else f"{name}-{device.type}", claim=claim,
        data=what.format(batch=config.batch), ours=times["ours"], target=target,
        against=(beside, times["against"]) if "against" in times else None,
        command=f"uv run --package flexpredict flexpredict bench {name} {words}",
        peak_mib=(peaks["ours"], peaks.get("against")), threads=config.threads, device=str(device),
        wall_s=time.monotonic() - since,
        details={"images_per_s": {side: config.batch / float(np.median(t)) for side, t in times.items()}},
    )  # fmt: skip
    path = results.write(config.out or reproduction.folder(__file__), record)
    print(f"{path}: {float(np.median(times['ours'])):.4g} s" + _ratio(record), flush=True)
    return path


def _ratio(record: dict[str, Any]) -> str:
    return "" if record["ratio"] is None else f", ratio {record['ratio']:.3f}, target {record['target']:.3f}"


def _commit(peer: str) -> str:
    done = subprocess.run(
        ["git", "-C", peer, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return f" at {done.stdout.strip()}" if done.returncode == 0 else ""


# ---- one training step -----------------------------------------------------------------------------------


def _settings(config: BenchConfig, position: PositionConfig) -> TrainConfig:
    return replace(STOP_VITB16, batch=config.batch, position=position)


def _our_step(config: BenchConfig, position: PositionConfig, device: torch.device) -> Call:
    """One step at ViT-B: masks and noise drawn, targets, loss, gradient, AdamW, EMA."""
    settings = _settings(config, position)
    learner, average = first_state(settings, (3, 224, 224), device)
    optimiser = torch.optim.AdamW(groups(learner, settings), 1e-4, fused=True)
    x = rng.normal((config.batch, 3, 224, 224), 0).to(device)

    def step() -> None:
        loss, _ = objective(settings, learner, average, x, *hidden(settings, learner, 1))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        method.update_average(average, learner.encoder, 0.996)
        float(loss.detach())

    return step


DETERMINISTIC = PositionConfig("none", 0.0, "std")


def step(config: BenchConfig, device: torch.device) -> dict[str, Call]:
    """Our I-JEPA and StoP steps, and the released I-JEPA loop's on the same images and masks."""
    calls = {
        "ours": _our_step(config, DETERMINISTIC, device),
        "stochastic": _our_step(config, STOP_VITB16.position, device),
    }
    if config.peer:
        calls["against"] = _peer_step(config, device)
    return calls


def overhead(config: BenchConfig, device: torch.device) -> dict[str, Call]:
    """Stochastic against deterministic."""
    return {
        "ours": _our_step(config, STOP_VITB16.position, device),
        "against": _our_step(config, DETERMINISTIC, device),
    }


def _peer_step(config: BenchConfig, device: torch.device) -> Call:
    """The released modules put together as their loop does, masks given."""
    helper, mask_utils, tensors = (
        _peer(config.peer, name) for name in ("src.helper", "src.masks.utils", "src.utils.tensors")
    )
    encoder, predictor = helper.init_model(device, 16, "vit_base", 224, 6, 384)
    average = copy.deepcopy(encoder).requires_grad_(False)
    both: list[nn.Module] = [encoder, predictor]
    plain = [p for net in both for n, p in net.named_parameters() if p.ndim == 1 or n.endswith("bias")]
    spared = set(map(id, plain))
    rest = [p for net in both for p in net.parameters() if id(p) not in spared and p.requires_grad]
    optimiser = torch.optim.AdamW([{"params": rest}, {"params": plain, "weight_decay": 0}], 1e-4)
    x = rng.normal((config.batch, 3, 224, 224), 0).to(device)
    drawn = masks.sample(STOP_VITB16.masks, GRID, config.batch, 0, 1).to(device)
    context, targets = [drawn.context], list(drawn.targets.unbind(1))

    def call() -> None:
        with torch.no_grad():
            wanted = nn.functional.layer_norm(average(x), (768,))
            wanted = mask_utils.apply_masks(wanted, targets)
            wanted = tensors.repeat_interleave_batch(wanted, config.batch, repeat=1)
        loss = nn.functional.smooth_l1_loss(predictor(encoder(x, context), context, targets), wanted)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            for online, slow in zip(encoder.parameters(), average.parameters(), strict=True):
                slow.data.mul_(0.996).add_(0.004 * online.detach().data)
        float(loss.detach())

    return call


def _peer(folder: str, name: str) -> Any:
    """A module of the other checkout."""
    if not (Path(folder) / "src" / "helper.py").is_file():
        raise UserError(f"--peer {folder} is no checkout of {PEER}: it has no src/helper.py")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


# ---- masks, loader ---------------------------------------------------------------------------------------


def mask_calls(config: BenchConfig, device: torch.device) -> dict[str, Call]:
    """Masks of a batch at 14x14, drawn anew in every call."""
    steps = iter(range(10**9))
    calls: dict[str, Call] = {
        "ours": lambda: masks.sample(STOP_VITB16.masks, GRID, config.batch, 0, next(steps))
    }
    if config.peer:
        collator = _peer(config.peer, "src.masks.multiblock").MaskCollator(
            input_size=224, patch_size=16, enc_mask_scale=(0.85, 1.0), pred_mask_scale=(0.15, 0.2),
            aspect_ratio=(0.75, 1.5), nenc=1, npred=4, min_keep=10,
        )  # fmt: skip
        images = [torch.zeros(1)] * config.batch
        calls["against"] = lambda: collator(images)
    return calls


def loader(config: BenchConfig, device: torch.device) -> dict[str, Call]:
    """Batches of StoP's recipe from the embedded photographs, in this process."""
    settings = replace(STOP_VITB16, data="photographs", batch=config.batch, workers=0)
    stream = data.batches(data.open_source(settings), settings, 0)
    return {"ours": lambda: next(stream)}


CASES: dict[str, tuple[Callable[[BenchConfig, torch.device], dict[str, Call]], str, str, float, str]] = {
    "step": (
        step, "One I-JEPA training step takes no longer than the released loop's",
        "random; {batch} images of 224x224, ViT-B/16, fp32", 1.0, f"peer {PEER}",
    ),
    "masks": (
        mask_calls, "Masks of a batch are drawn twice as fast as by the released collator",
        "{batch} images, 14x14 patches", 2.0, f"peer {PEER}",
    ),
    "overhead": (
        overhead, "Stochastic positions cost at most 2 % of a step",
        "random; {batch} images of 224x224, ViT-B/16, fp32", 1 / 1.02, "deterministic step",
    ),
    "loader": (
        loader, "Images of StoP's recipe per second and process",
        "scikit-image photographs; batches of {batch} crops of 224x224", 1.0, "nothing",
    ),
}  # fmt: skip
"""Function, claim, data, target, and what the other side is."""
