"""Experiment E1: IGN in two dimensions, where density, fixed points and drift can be seen and counted.

A ring of eight Gaussians or two moons, the plain MLP, no norm, no clamp; all seeds of an arm train as one
stacked network. The claims `ring-onestep`, `ring-drift` and `ring-tightness` of `reproduce`, and the
networks that `ign theorem` draws, come from here.
"""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from paperkit import images, results, rng
from torch import Tensor, nn
from tqdm import tqdm

from ign import draw
from ign.method import Objective, Roles, Shared

WIDTHS = (2, 128, 128, 128, 2)
SLOPE = 0.2
BATCH = 256
STEPS = 4000
SAMPLES = 2000
"""Samples of each seed that a measure is taken from."""

# ---- data --------------------------------------------------------------------------------------------------

Name = Literal["ring", "turned", "moons"]


@dataclass(frozen=True)
class Mixture:
    """Equal Gaussians at `points`, each of which belongs to one of the equally heavy `modes`."""

    points: Float[Tensor, "m 2"]
    mode: Int[Tensor, " m"]
    std: float = 0.03

    @property
    def modes(self) -> int:
        return int(self.mode.max()) + 1

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n 2"]:
        """Draw n points, float32."""
        which = torch.randint(len(self.points), (n,), generator=generator)
        return self.points[which] + self.std * torch.randn(n, 2, generator=generator)

    def shares(self, y: Float[Tensor, "n 2"]) -> Float[Tensor, " k"]:
        """Share of the samples within 3 std of the points of each mode; their sum is the precision."""
        distance, nearest = torch.cdist(y.double(), self.points.double()).min(1)
        hits = self.mode[nearest[distance <= 3 * self.std]]
        return torch.bincount(hits, minlength=self.modes).double() / len(y)


def mixture(name: Name) -> Mixture:
    """Eight Gaussians of radius 0.7, four of them on the axes; the same turned by 22.5 degrees, so that none
    is; or two moons, whose eight quarter-arcs count as modes."""
    if name != "moons":
        angle = torch.arange(8) * (math.pi / 4) + (math.pi / 8 if name == "turned" else 0.0)
        return Mixture(0.7 * torch.stack([angle.cos(), angle.sin()], 1), torch.arange(8))
    angle = (torch.arange(128) + 0.5) * (math.pi / 128)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    return Mixture(torch.cat([upper, -upper]) / 2, torch.arange(8).repeat_interleave(32))


# ---- the stacked network -----------------------------------------------------------------------------------


def mlp(seed: int) -> nn.Sequential:
    """f of one seed: 2-128-128-128-2, LeakyReLU, tanh output."""
    rng.seed_everything(seed, "ring")
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(WIDTHS):
        layers += [nn.Linear(i, o), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers[:-1], nn.Tanh())


class Stack(nn.Module):
    """The networks `mlp(seed)` of several seeds side by side: one batched product for each layer."""

    def __init__(self, seeds: Sequence[int]):
        super().__init__()
        each = [[layer for layer in mlp(seed) if isinstance(layer, nn.Linear)] for seed in seeds]
        layers = list(zip(*each, strict=True))
        self.weights = nn.ParameterList(torch.stack([one.weight.T for one in layer]) for layer in layers)
        self.biases = nn.ParameterList(torch.stack([one.bias[None] for one in layer]) for layer in layers)

    def forward(self, y: Float[Tensor, "s b 2"], roles: Roles = ()) -> Float[Tensor, "s b 2"]:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            y = F.leaky_relu(torch.baddbmm(bias, y, weight), SLOPE)
        return torch.tanh(torch.baddbmm(self.biases[-1], y, self.weights[-1]))


def train(
    data: Mixture,
    objective: Objective,
    seeds: Sequence[int],
    steps: int = STEPS,
    alternating: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Stack:
    """Train one network for each seed; Adam 1e-3, betas (0.5, 0.999), batch 256.

    `alternating` plays the theorem's two players in turn, each with its own Adam: L_rec + l_t L_tight, then
    L_idem. The numbers drawn depend on the seed alone, so arms share data and noise.
    """
    net = Stack(seeds).to(dtype)
    # `Shared` averages over the stack as over a batch: times its size, each network has its own gradient.
    rec, idem, tight = (len(seeds) * weight for weight in (objective.rec, objective.idem, objective.tight))
    players = [Objective(rec, idem, tight)]
    if alternating:
        players = [Objective(rec, 0.0, tight), Objective(0.0, idem, 0.0)]
    adams = [torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.999), fused=True) for _ in players]
    engine, draws = Shared(net), [rng.generator(seed, 0, "ring") for seed in seeds]
    for _ in tqdm(range(steps), desc=f"l_t {objective.tight:g}", leave=False, mininterval=5):
        x = torch.stack([data.sample(BATCH, draw) for draw in draws]).to(dtype)
        z = torch.stack([torch.randn(BATCH, 2, generator=draw) for draw in draws]).to(dtype)
        for player, adam in zip(players, adams, strict=True):
            adam.zero_grad()
            engine.step(x, z, player)
            adam.step()
    return net.requires_grad_(False)


# ---- measures ----------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(net: Stack, data: Mixture, seeds: Sequence[int], n: int = SAMPLES) -> dict[str, list[float]]:
    """Figures of each seed's network from n samples, n new data and n uniform points of the square.

    precision: share of f(z) within 3 std of a mode. modes: how many hold a quarter of their mass or more.
    least, heaviest: share of the lightest and of the heaviest mode over its true share (1 / l_t at most, says
    the theorem). overlap: mass common to samples and data, by modes. spread: rms std of f(z). e2, rec: mean
    |f(f(z)) - f(z)| and |f(x) - x| over the mean distance of two data. auc, auc_fz: that of the drift,
    uniform against data and against f(z).
    """
    draws = [rng.generator(seed, 0, "ring measure") for seed in seeds]
    x = torch.stack([data.sample(n, draw) for draw in draws])
    z = torch.stack([torch.randn(n, 2, generator=draw) for draw in draws])
    square = torch.stack([2 * torch.rand(n, 2, generator=draw) - 1 for draw in draws])
    h = net(z)
    drift_x, drift_h, drift_u = ((net(y) - y).square().mean(-1) for y in (x, h, square))
    rows: dict[str, list[float]] = {}
    for i in range(len(seeds)):
        shares = data.shares(h[i])
        relative, scale = shares * data.modes, torch.pdist(x[i]).mean()
        found = {
            "precision": shares.sum(),
            "modes": (relative >= 0.25).sum(),
            "least": relative.min(),
            "heaviest": relative.max(),
            "overlap": shares.clamp_max(1 / data.modes).sum(),
            "spread": h[i].var(0).mean().sqrt(),
            "e2": (2 * drift_h[i]).sqrt().mean() / scale,
            "rec": (2 * drift_x[i]).sqrt().mean() / scale,
            "auc": auc(drift_u[i], drift_x[i]),
            "auc_fz": auc(drift_u[i], drift_h[i]),
        }
        for key, value in found.items():
            rows.setdefault(key, []).append(float(value))
    return rows


def auc(high: Float[Tensor, " n"], low: Float[Tensor, " m"]) -> float:
    """Chance that a draw of `high` exceeds a draw of `low`, ties by half: the area under the ROC curve."""
    ordered = low.sort().values
    below, upto = torch.searchsorted(ordered, high), torch.searchsorted(ordered, high, right=True)
    return float((below + upto).double().mean() / (2 * len(low)))


@cache
def arm(
    name: Name, objective: Objective, seeds: int, steps: int = STEPS, alternating: bool = False
) -> dict[str, list[float]]:
    """Train and measure seeds 0, 1, … under one objective; kept, as several claims share arms."""
    data, numbers, since = mixture(name), range(seeds), time.monotonic()
    net = train(data, objective, numbers, steps, alternating)
    seconds = (time.monotonic() - since) / seeds
    return measure(net, data, numbers) | {"train_s": [seconds] * seeds}


# ---- pictures ----------------------------------------------------------------------------------------------


def playground_arms(tight: float) -> dict[str, Objective]:
    """The arms that `ign theorem` shows: the full loss at two weights l_t, and each term left out."""
    weights = sorted({tight, 0.5})
    full = {f"full, l_t = {weight:g}": Objective(tight=weight) for weight in weights}
    return full | {
        "without L_tight": Objective(tight=0.0),
        "without L_idem": Objective(idem=0.0, tight=tight),
        "without L_rec": Objective(rec=0.0, tight=tight),
    }


@torch.no_grad()
def picture(nets: dict[str, Stack], data: Mixture, seed: int, n: int = 100_000) -> UInt8[Tensor, "3 h w"]:
    """Densities of f(x), f(z) and f(f(z)) and the drift of the plane, a row for each one-seed network."""
    generator = rng.generator(seed, 0, "ring picture")
    x, z = data.sample(n, generator), torch.randn(n, 2, generator=generator)
    rows = {"data x, noise z": [draw.density(x), draw.density(z)]}
    plane = draw.plane()
    for name, net in nets.items():
        fx, fz = net(x[None]), net(z[None])
        moved = net(plane.flatten(0, 1)[None])[0].view_as(plane)
        drift = draw.drift_map((moved - plane).square().mean(-1))
        rows[name] = [*(draw.density(y[0]) for y in (fx, fz, net(fz))), drift]
    heads = ("f(x)", "f(z)", "f(f(z))", "drift: bright = still")
    return images.rows(rows, pad=6, scale=1, heads=heads)


# ---- claims ------------------------------------------------------------------------------------------------
# Criteria: specification of the experiments, section E1, fixed before any of these runs.

FULL, NO_IDEM, NO_REC = Objective(), Objective(idem=0.0), Objective(rec=0.0)
SETTING: dict[str, Any] = {
    "source": "section 2 (losses); experiment ours, as the paper has no score in two dimensions",
    "preset": "ring: MLP 2-128-128-128-2, weights 1 / 1 / 0.1, squared error, 4,000 steps of 256",
    "data": "synthetic: ring of 8 Gaussians, radius 0.7, std 0.03", "unit": "1", "better": "higher",
}  # fmt: skip


def onestep(seeds: int) -> dict[str, Any]:
    """E1 a: one application puts samples onto the data, because of L_idem."""
    ours, without = arm("ring", FULL, seeds), arm("ring", NO_IDEM, seeds)
    few = min(seeds, 3)
    moons, moons_without = arm("moons", FULL, few), arm("moons", NO_IDEM, few)
    wins = [a >= 1.5 * b for a, b in zip(ours["precision"], without["precision"], strict=True)]
    keys = ("modes", "e2", "spread")
    return SETTING | {
        "claim": "In two dimensions one application of f lands on the data, and the idempotence term does it",
        "metric": "precision_k1", "ours": ours["precision"], "against": ("l_i = 0", without["precision"]),
        "arms": {f"{key}, full": ours[key] for key in keys}
        | {f"{key}, l_i = 0": without[key] for key in keys}
        | {"two moons, full": moons["precision"], "two moons, l_i = 0": moons_without["precision"]},
        "criterion": "one-step precision at least 1.5 times that of l_i = 0 in at least 80 % of the seeds",
        "statistic": sum(wins) / seeds, "threshold": 0.8,
        "details": {
            "precision": f"share of {SAMPLES:,} samples f(z) within 3 std of a mode",
            "modes": "of 8, that hold at least a quarter of their mass",
            "difference": vars(results.paired(ours["precision"], without["precision"])),
            "ring": {"full": ours, "l_i = 0": without},
            "moons": {"full": moons, "l_i = 0": moons_without},
        },
    }  # fmt: skip


def drift_map(seeds: int) -> dict[str, Any]:
    """E1 c: the drift tells data from the background, because of L_rec; the tightness term is not needed."""
    ours, without, loose = (arm("ring", o, seeds) for o in (FULL, NO_REC, Objective(tight=0.0)))
    margin = float(np.mean(ours["auc"]) - np.mean(without["auc"]))
    return SETTING | {
        "claim": "The drift D(f(y), y) tells data from a uniform background, and reconstruction does it",
        "metric": "auroc_drift", "ours": ours["auc"], "against": ("no L_rec", without["auc"]),
        "arms": {"l_t = 0": loose["auc"], "modes, no L_rec": without["modes"], "e2, no L_rec": without["e2"]},
        "criterion": "mean AUROC at least 0.9 and at least 0.3 above that without L_rec: smaller margin",
        "statistic": min(float(np.mean(ours["auc"])) - 0.9, margin - 0.3), "threshold": 0.0,
        "details": {
            "against_no_tightness": vars(results.paired(ours["auc"], loose["auc"])),
            "against_no_reconstruction": vars(results.paired(ours["auc"], without["auc"])),
            "background": f"{SAMPLES:,} uniform points of the square [-1, 1]^2, modes not cut out",
            "all_measures": {"full": ours, "no L_rec": without, "l_t = 0": loose},
        },
    }  # fmt: skip


SWEEP = (0.0, 0.05, 0.125, 0.25, 0.5, 0.9, 1.0)
OTHERS = ("least", "overlap", "precision")
"""Other measures of coverage that the theorem's bound could speak of; precision beside them."""
SHORT_SWEEP = (0.0, 0.25, 0.9)


def tightness(seeds: int) -> dict[str, Any]:
    """E1 b: does coverage grow with l_t, as the theorem's bound on the joint optimum does?"""
    sweep = {l_t: arm("ring", Objective(tight=l_t), seeds) for l_t in SWEEP}
    few = min(seeds, 3)
    long = {l_t: arm("ring", Objective(tight=l_t), few, 2 * STEPS) for l_t in SHORT_SWEEP}
    turns = {l_t: arm("ring", Objective(tight=l_t), few, STEPS, True) for l_t in SHORT_SWEEP}
    turned = arm("turned", Objective(tight=0.25), few)
    modest = {l_t: rows for l_t, rows in sweep.items() if l_t <= 0.5}
    rho, limit = correlation(sweep, "modes")
    variants = {f"{key} instead of modes": correlation(sweep, key) for key in OTHERS} | {
        "modes, l_t up to 0.5": correlation(modest, "modes"),
        "modes, 8,000 steps": correlation(long, "modes"),
        "modes, players in turn": correlation(turns, "modes"),
    }
    arms = {f"modes, l_t = {l_t:g}": rows["modes"] for l_t, rows in sweep.items()}
    return SETTING | {
        "claim": "Coverage grows with the tightness weight, as the theorem's bound on the optimum does",
        "source": "theorem of section 3 (eq. 19: l_t P_theta <= P_x at the optimum); prediction ours",
        "metric": "spearman_lt_modes", "ours": rho, "arms": arms,
        "criterion": "Spearman of l_t with modes covered, mean over seeds, above the 95 % quantile under"
        " permutations of l_t within seeds (one-sided 5 %)",
        "statistic": float(np.mean(rho)), "threshold": max(limit, 1e-9),
        "details": {
            "variants": {name: {"rho": float(np.mean(r)), "needed": q} for name, (r, q) in variants.items()},
            "sweep": {f"{l_t:g}": rows for l_t, rows in sweep.items()},
            "twice_the_steps": {f"{l_t:g}": rows for l_t, rows in long.items()},
            "players_in_turn": {f"{l_t:g}": rows for l_t, rows in turns.items()},
            "turned_ring": {"0.25": turned},
            "bound": "heaviest: share of the heaviest mode over its true share; the theorem allows 1 / l_t",
        },
        "explanation": _why(sweep, turned),
    }  # fmt: skip


def _why(sweep: dict[float, dict[str, list[float]]], turned: dict[str, list[float]]) -> str:
    """What a pilot on seeds 100 and 101 suggested, in the figures of this run."""

    def mean(key: str, *weights: float) -> float:
        return float(np.mean([sweep[weight][key] for weight in weights]))

    heaviest = max(max(rows["heaviest"]) for l_t, rows in sweep.items() if 0 < l_t <= 0.5)
    return (
        f"Modes covered are {mean('modes', 0.0):.1f} of 8 at l_t = 0, {mean('modes', 0.25):.1f} at 0.25 and"
        f" {mean('modes', 0.9, 1.0):.1f}"
        " at 0.9 and 1. From 0.05 to 0.5 the theorem's bound is not at work: no"
        f" mode holds more than {heaviest:.1f} times its share, where 1 / l_t is 2 or more. At 0.9 and 1 the"
        f" players are not at an optimum: e2 is {mean('e2', 0.9, 1.0):.2f} of the data's mean distance"
        f" ({mean('e2', 0.25):.2f} at 0.25; 0 at an optimum), precision {mean('precision', 0.9, 1.0):.2f}"
        f" ({mean('precision', 0.25):.2f} at 0.25). Which modes are lost depends on where they stand: on the"
        f" ring turned by 22.5 degrees, which puts none on an axis of the output, l_t = 0.25 covers"
        f" {np.mean(turned['modes']):.1f}."
    )


def correlation(rows: dict[float, dict[str, list[float]]], key: str) -> tuple[list[float], float]:
    """Spearman of l_t with a measure in each seed, and the 95 % quantile of their mean under permutations.

    A seed whose measure is the same at every l_t counts as 0: no association.
    """
    weights = list(rows)
    table = np.array([found[key] for found in rows.values()]).T
    live = [row for row in table if np.ptp(row) > 0]
    generator = np.random.default_rng(0)

    def ranks(values: np.ndarray) -> np.ndarray:
        order = (values[:, None] > values).sum(1) + (values[:, None] >= values).sum(1) - 1.0
        return (order - order.mean()) / np.linalg.norm(order - order.mean())

    rho = [results.spearman(weights, row).rho if np.ptp(row) > 0 else 0.0 for row in table]
    shuffled = np.argsort(generator.random((10_000, len(live), len(weights))), -1)
    by_weight = ranks(np.array(weights))[shuffled]
    null = (
        np.einsum("dsw,sw->d", by_weight, np.array([ranks(row) for row in live])) / len(table)
        if live
        else [0]
    )
    return rho, float(np.quantile(null, 0.95))
