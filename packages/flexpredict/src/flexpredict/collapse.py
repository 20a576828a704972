"""The claim `collapse`: in the network too, noise with a matrix of its own is trained away, and tied noise
is not (E3b); what louder noise does to A and to the mask token (E4, the paper's Figure 4)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paperkit import results

from flexpredict import data
from flexpredict.config import TRAIN, PositionConfig, TrainConfig
from flexpredict.learns import NOISELESS
from flexpredict.networks import curve
from flexpredict.step import first_state

NSR, LOUD = 0.15, 0.6
ARMS = {
    "tied": PositionConfig("tied", NSR, "nsr"),
    "untied": PositionConfig("untied", NSR, "nsr"),
    "fixed": PositionConfig("fixed", NSR, "nsr"),
    "none": NOISELESS,
    f"tied {LOUD}": PositionConfig("tied", LOUD, "nsr"),
}
BESIDE = 3
"""At most so many seeds of the arms that are reported only; tied and untied have all."""
UNTIED_MOST, TIED_LEAST, SHARE = 0.35, 0.4, 0.5
"""Energy of the noise at the end over that at the start: of untied, of tied, of one over the other."""
RECIPE = replace(
    TRAIN["small"][0], steps=1000, warmup=100, probe_every=200, save_every=1000, decay_projection=False
)
"""A does not decay, so that what shrinks it is the noise."""


def recipe(arm: str, seed: int) -> TrainConfig:
    """The configuration of one network."""
    return replace(RECIPE, seed=seed, position=ARMS[arm])


def claim(seeds: int) -> dict[str, Any]:
    """Energies of the noise, seed by seed, and the directions of Figure 4."""
    counts = {name: seeds if name in ("tied", "untied") else min(seeds, BESIDE) for name in ARMS}
    ratios = {name: [energy(name, seed) for seed in range(count)] for name, count in counts.items()}
    tokens = {
        name: [curve(recipe(name, seed), "norm_mask_token")[-1] for seed in range(count)]
        for name, count in counts.items()
    }
    tied, untied = ratios["tied"], ratios["untied"]
    margins = {
        f"untied at most {UNTIED_MOST}": UNTIED_MOST - max(untied),
        f"tied at least {TIED_LEAST}": min(tied) - TIED_LEAST,
        f"untied at most {SHARE} of tied": min(SHARE * a - b for a, b in zip(tied, untied, strict=True)),
    }
    return {
        "claim": "In a vision transformer noise with a matrix of its own is trained away, tied noise stays",
        "source": "section 3.2; Figure 4 (its directions)", "preset": "small, 1,000 steps, A without decay",
        "data": "digits, 1,297 train", "metric": "energy_of_noise_end_over_start", "unit": "1",
        "better": "higher", "ours": tied, "against": ("untied", untied),
        "arms": {
            **{f"energy of A, {name}": values for name, values in ratios.items() if name != "fixed"},
            **{f"mask token, {name}": values for name, values in tokens.items()},
            **{
                f"20-NN, {name}": [curve(recipe(name, seed), "knn")[-1] for seed in range(count)]
                for name, count in counts.items()
            },
        },
        "criterion": f"in every seed untied <= {UNTIED_MOST}, tied >= {TIED_LEAST}, untied <= {SHARE} of tied"
        " (statistic: smallest margin); Figure 4's directions reported",
        "statistic": min(margins.values()), "threshold": 0.0,
        "details": {
            "margins": margins, "steps": RECIPE.steps, "noise to position energy": NSR,
            "figure 4": directions(ratios, tokens),
        },
        "explanation": _why(margins),
    }  # fmt: skip


def energy(arm: str, seed: int) -> float:
    """|A|^2 at the end over that at the start, of the matrix that the noise goes through.

    Without noise, of the projection that the noise would share.
    """
    config = recipe(arm, seed)
    key = "norm_projection" if arm in ("none", "fixed") else "norm_noise"
    learner, _ = first_state(config, data.open_source(config).shape)
    own = learner.predictor.position.own
    matrix = learner.predictor.predictor_embed if own is None else own
    return (curve(config, key)[-1] / float(matrix.weight.detach().norm())) ** 2


def directions(ratios: dict[str, list[float]], tokens: dict[str, list[float]]) -> dict[str, Any]:
    """E4: in how many seeds |A| falls with the noise, and the rank correlations over all seeds."""
    levels = {"none": 0.0, "tied": NSR, f"tied {LOUD}": LOUD}
    count = min(len(ratios[name]) for name in levels)

    def correlation(values: dict[str, list[float]]) -> float:
        pairs = [(level, v) for name, level in levels.items() for v in values[name][:count]]
        return results.spearman([a for a, _ in pairs], [b for _, b in pairs]).rho

    return {
        "seeds": count,
        "A smaller than without noise": _fewer(ratios["tied"], ratios["none"]),
        f"A smaller at {LOUD} than at {NSR}": _fewer(ratios[f"tied {LOUD}"], ratios["tied"]),
        "correlation of A's energy with the noise": correlation(ratios),
        "correlation of the mask token with the noise": correlation(tokens),
        "mean mask token": {name: sum(tokens[name][:count]) / count for name in levels},
    }


def _fewer(ours: Sequence[float], theirs: Sequence[float]) -> int:
    return sum(a < b for a, b in zip(ours, theirs, strict=False))


def _why(margins: dict[str, float]) -> str:
    broken = [f"{name}: by {-margin:.3f}" for name, margin in margins.items() if margin < 0]
    return f"Not met: {'; '.join(broken)}." if broken else ""
