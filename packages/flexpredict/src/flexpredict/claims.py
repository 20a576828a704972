"""The claims about the method that are exact or nearly so: no training beyond a few steps.

Each is a function from a number of seeds to the fields of `paperkit.results.claim` that are its own. Where
checks of several kinds meet, their errors are divided by their bounds, so that 1 is the limit for all.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from paperkit import UserError, parallel, rng
from torch import Tensor

from flexpredict import data, masks, method
from flexpredict.config import DIGITS, STOP_VITB16, PositionConfig
from flexpredict.step import first_state, gradient, groups, hidden, objective, schedule

Fields = dict[str, Any]


# ---- zero-noise ------------------------------------------------------------------------------------------

ARMS = {
    "skipped": PositionConfig("tied", 0.0, "std"),
    "times zero": PositionConfig("tied", 1.0, "std"),
    "official": PositionConfig("tied", 0.0, "std", mode="official"),
}
STEPS = 20


def zero_noise(seeds: int) -> Fields:
    """D1: without noise StoP is I-JEPA, bit for bit; the released code is not, once its bias has moved."""
    differences: dict[str, float] = {}
    control = math.inf
    for seed in range(seeds):
        plain = _short_run(seed, PositionConfig("none", 0.0, "std"))
        for name in ("skipped", "times zero"):
            differences[f"noise {name}, seed {seed}"] = _apart(_short_run(seed, ARMS[name]), plain)
        control = min(control, _apart(_short_run(seed, ARMS["official"]), plain))
    return {
        "claim": "Without noise the stochastic predictor is the deterministic one: losses, gradients, weights"
        f" after {STEPS} steps",
        "source": "eq. 2 and 6", "data": "digits", "metric": "largest_absolute_difference", "unit": "1",
        "better": "lower", "ours": [*differences.values(), 0.0 if control > 1e-3 else 1.0],
        "arms": {"mode official, which has to differ": [control]},
        "criterion": "exact: equal bits, and mode official (released code) differs by more than 0.001",
        "tolerance": 0.0, "details": {"differences": differences, "steps": STEPS},
    }  # fmt: skip


def _short_run(seed: int, position: PositionConfig) -> list[Tensor]:
    """Losses and gradients of every step and the weights at the end."""
    config = replace(DIGITS, seed=seed, position=position, steps=STEPS, warmup=2, limit=256)
    source = data.open_source(config)
    learner, average = first_state(config, source.shape)
    optimiser = torch.optim.AdamW(groups(learner, config), config.lr)
    stream, kept = data.batches(source, config, 0), []
    for step in range(1, STEPS + 1):
        schedule(optimiser, config, step)
        chosen, (normal, beside) = hidden(config, learner, step)
        if position == ARMS["times zero"] and normal is not None:
            normal = normal * 0.0
        loss, _ = objective(config, learner, average, next(stream), chosen, (normal, beside))
        optimiser.zero_grad()
        loss.backward()
        # The mask token has no gradient in mode official, which must not shift what is compared.
        kept += [loss.detach()] + [
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in learner.parameters()
        ]
        optimiser.step()
        method.update_average(average, learner.encoder, 0.99)
    return kept + [p.detach() for p in learner.parameters()]


def _apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


# ---- covariance ------------------------------------------------------------------------------------------

WIDTH, CONTEXT, SAMPLES = 16, 24, 100_000


def covariance(seeds: int) -> Fields:
    """D2: the noise that training draws has mean psi and covariance std^2 A A^T, token by token."""
    ratios: dict[str, float] = {}
    for seed in range(seeds):
        for name, ratio in covariance_errors(seed, SAMPLES).items():
            ratios[name] = max(ratio, ratios.get(name, 0.0))
    return {
        "claim": "Positions are psi + N(0, std^2 A A^T), independent over tokens, images and processes",
        "source": "eq. 3 to 5", "data": f"{SAMPLES:,} drawn pairs of tokens, float64", "unit": "1",
        "metric": "error_over_bound", "better": "lower", "ours": list(ratios.values()),
        "criterion": "exact within sampling error: covariance 3 standard errors (Frobenius), mean 4, "
        "correlations 5 (256 of each); twice the deviation is four times the covariance to 1e-9",
        "tolerance": 1.0, "details": {"error_over_bound": ratios, "seeds": seeds},
    }  # fmt: skip


def covariance_errors(seed: int, samples: int) -> dict[str, float]:
    """Each check's error over its bound."""
    position = method.StochasticPosition((4, 4), WIDTH, CONTEXT, 0.25).double()
    project = torch.nn.Linear(CONTEXT, WIDTH).double()
    rng_weight = rng.normal((WIDTH, CONTEXT), seed, 0, "projection").double() / 5
    project.weight.data.copy_(rng_weight)
    normal = method.keyed_normal(range(samples), (1, 2, CONTEXT), seed, 1).double()
    places = torch.tensor([[[3, 9]]]).expand(samples, 1, 2)
    with torch.no_grad():
        drawn = position(places, project, normal)[:, 0]
        position.std *= 2
        louder = position(places, project, normal)[:, 0]
    sigma = method.covariance(rng_weight, 0.25)
    off = drawn - position.psi[places[:, 0]]
    each = off.reshape(-1, WIDTH)
    found, twice = each.T @ each / len(each), (louder - position.psi[places[:, 0]]).reshape(-1, WIDTH)
    norm = sigma.square().sum()
    bound = 3 * torch.sqrt((sigma.trace() ** 2 + norm) / (len(each) * norm))
    se = (sigma.diagonal() / samples).sqrt()
    half = samples // 2
    return {
        "covariance": float((found - sigma).norm() / sigma.norm() / bound),
        "mean": float((off.mean(0) / se).abs().max()) / 4,
        "tokens apart": _correlation(off[:, 0], off[:, 1]),
        "processes apart": _correlation(each[:half], each[half : 2 * half]),
        "twice the deviation": float((twice.T @ twice / len(each) / found - 4).abs().max()) / 4e-9,
    }


def _correlation(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> float:
    """The largest correlation between columns of two samples, in units of 5 standard errors."""
    found = a.T @ b / len(a) / (a.square().mean(0).sqrt()[:, None] * b.square().mean(0).sqrt())
    return float(found.abs().max()) * math.sqrt(len(a)) / 5


# ---- masks -----------------------------------------------------------------------------------------------

COLLATES = 400
KEPT = {(14, 14): (52.5, 1.5), (16, 16): (71.0, 2.0)}
"""Context patches that `official` keeps of batches of 64, and how far the mean may be off (spec 4, 8)."""
SHAPES = {(6, 5), (5, 6), (6, 6), (7, 5), (8, 5)}
"""Target blocks of `official` on 14x14."""


def mask_facts(seeds: int) -> Fields:
    """D5: `official` has the released sampler's peculiarities, `unbiased` has none of them."""
    errors = {f"unbiased, seed {seed}": unbiased_error(seed, COLLATES) for seed in range(seeds)}
    means: dict[str, list[float]] = {}
    for grid, (expected, within) in KEPT.items():
        name = f"{grid[0]}x{grid[1]}"
        found = [official_facts(grid, seed, COLLATES) for seed in range(seeds)]
        means[f"kept on {name}"] = [each.kept for each in found]
        errors[f"kept on {name}"] = abs(sum(each.kept for each in found) / seeds - expected) / within
        wrong = sum(each.outside + (each.shapes != SHAPES and grid == (14, 14)) for each in found)
        errors[f"official on {name}"] = 2.0 * wrong
    return {
        "claim": "The released mask sampler never shows the last row or column and cuts contexts short;"
        " ours can do the same or neither",
        "source": "released mask sampler (spec 4)", "data": f"{COLLATES} batches of 64 for each seed",
        "metric": "error_over_bound", "unit": "1", "better": "lower", "ours": list(errors.values()),
        "arms": means,
        "criterion": "exact for official: five block shapes on 14x14, contexts inside the top left"
        " (G-1)x(G-1), mean kept 52.5 +- 1.5 (14x14) and 71 +- 2 (16x16); unbiased: fixed length, no overlap"
        " with targets, every cell of the grid in both roles, mirror images equally often within 5 SE",
        "tolerance": 1.0, "details": {"errors": errors, "seeds": seeds},
    }  # fmt: skip


@dataclass
class OfficialFacts:
    """What some steps of the official sampler showed."""

    shapes: set[tuple[int, int]] = field(default_factory=set)
    """(rows, columns) of target blocks."""
    outside: int = 0
    """Uses of cells in the last row or column."""
    kept: float = 0.0
    """Mean length of a context."""


def official_facts(grid: tuple[int, int], seed: int, steps: int) -> OfficialFacts:
    """Shapes of target blocks, cells outside the top left square, and the mean length of contexts."""
    found = OfficialFacts()
    for step in range(steps):
        drawn = masks.sample(STOP_VITB16.masks, grid, 64, seed, step)
        rows, columns = drawn.targets // grid[1], drawn.targets % grid[1]
        block = tuple(int(part[0, 0].max() - part[0, 0].min()) + 1 for part in (rows, columns))
        found.shapes.add((block[0], block[1]))
        for cells in (drawn.targets, drawn.context):
            at_edge = (cells // grid[1] == grid[0] - 1) | (cells % grid[1] == grid[1] - 1)
            found.outside += int(at_edge.sum())
        found.kept += drawn.context.shape[1] / steps
    return found


def unbiased_error(seed: int, steps: int, context: int = 40) -> float:
    """How far cells and their mirror images differ in use, over 5 standard errors; 2 for a broken promise."""
    grid = (14, 14)
    config = replace(STOP_VITB16.masks, sampler="unbiased", context=context)
    uses = {"context": torch.zeros(196), "targets": torch.zeros(196)}
    for step in range(steps):
        drawn = masks.sample(config, grid, 64, seed, step)
        overlap = (drawn.context[:, :, None] == drawn.targets.flatten(1)[:, None]).any()
        if drawn.context.shape[1] != context or bool(overlap):
            return 2.0
        for name, cells in (("context", drawn.context), ("targets", drawn.targets)):
            uses[name] += torch.bincount(cells.flatten(), minlength=196) / steps
    if any(float(use.min()) == 0 for use in uses.values()):
        return 2.0
    # A cell's uses are counts over independent images and blocks: their variance is at most their mean.
    worst = 0.0
    for use in uses.values():
        image = use.reshape(grid)
        for mirrored in (image.flip(0), image.flip(1)):
            se = ((image + mirrored) / steps).sqrt()
            worst = max(worst, float(((image - mirrored).abs() / se / 5).max()))
    return worst


# ---- world-size ------------------------------------------------------------------------------------------

WORLD = replace(DIGITS, batch=64, limit=512)


def world_size(seeds: int) -> Fields:
    """D6: two processes with half of the batch each have the loss and gradient of one with all of it."""
    differences: dict[str, float] = {}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as scratch:
            one, two = (_gradient(count, seed, Path(scratch, f"{count}.json")) for count in (1, 2))
        scale = max(map(abs, one["gradient"]))
        apart = max(abs(a - b) for a, b in zip(one["gradient"], two["gradient"], strict=True))
        differences[f"gradient, seed {seed}"] = apart / scale
        differences[f"loss, seed {seed}"] = abs(one["loss"] - two["loss"]) / abs(one["loss"])
        differences[f"target variance, seed {seed}"] = abs(one["variance"] - two["variance"])
    return {
        "claim": "Masks and noise belong to images: 1 x 64 and 2 x 32 give the same loss and gradient",
        "source": "house rule (spec 10)", "data": "digits, unbiased masks, gloo on the CPU",
        "metric": "largest_relative_difference", "unit": "1", "better": "lower",
        "ours": list(differences.values()), "criterion": "exact up to rounding: 1e-5 of the largest",
        "tolerance": 1e-5, "details": {"differences": differences},
    }  # fmt: skip


def _gradient(processes: int, seed: int, out: Path) -> dict[str, Any]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launcher = launcher if processes > 1 else []
    words = [sys.executable, *launcher, "-m", "flexpredict.claims", str(seed), str(out)]
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    if done.returncode:
        raise UserError(f"{processes} processes failed: {done.stderr.strip()[-300:]}")
    return json.loads(out.read_text())


def write_gradient(seed: int, out: Path) -> None:
    """One process's part of the comparison: the first writes loss and averaged gradient of one step."""
    from paperkit.device import choose

    device = choose("cpu", "fp32")
    parallel.launch(device)
    config = replace(WORLD, seed=seed)
    source = data.open_source(config)
    learner, average = first_state(config, source.shape)
    x = next(data.batches(source, config, 0))
    loss, variance = gradient(config, learner, average, x, *hidden(config, learner, 1), device)
    if parallel.world()[0] == 0:
        flat = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])
        found = {"loss": float(loss), "variance": float(variance), "gradient": flat.tolist()}
        out.write_text(json.dumps(found))
    parallel.leave()  # so that none is cut off while another still listens


if __name__ == "__main__":
    write_gradient(int(sys.argv[1]), Path(sys.argv[2]))
