"""The claims `inversion` and `edits`: what units that networks share are good for (spec 8b, 12.5).

Both use the run of `train` of each seed, trained and mined once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from paperkit import reproduction, rng
from torch import Tensor

from rosetta import invert, steer, zoo
from rosetta.config import TRAIN, MatchConfig, TrainConfig
from rosetta.hooks import record
from rosetta.invert import Settings
from rosetta.mining import Tables
from rosetta.steer import Pair, Steered
from rosetta.store import open_images

DATA = "FashionMNIST"
K = 1
"""Pairs are mutual best ones."""
MATCH = MatchConfig(draws=19, others=0)
TARGETS = 20
"""Images of codes that mining has not seen, to be found again."""
INVERSION = Settings(steps=100, rate=0.05, prior=0.64)
"""As in the pilot (12.5): minus the mean cosine + 0.01 |z|^2, which is 0.64 of the mean square of 64."""
HIGHEST_P = 0.01
EDITED = 30
"""Images that are shifted, enlarged and joined."""
EDIT = Settings(steps=300, rate=0.05, prior=0.0)
SHIFT, ZOOM = 0.25, 2.0
LEAST = {"shift": 0.8, "zoom": 0.8, "halves": 0.7}
"""Shares of trials that must go the way that was asked."""
Figures = dict[str, Any]


def run_of(seed: int) -> Path:
    """The trained and mined zoo of a seed; trained now, or by an earlier claim at this commit."""
    from rosetta.train import train

    return reproduction.trained("rosetta", config_of(seed), train)


def config_of(seed: int) -> TrainConfig:
    """Spec 12.7's budgets."""
    return replace(TRAIN["fashion"][0], data=DATA, seed=seed, match=MATCH)


# ---- Inversion ---------------------------------------------------------------------------------------------

ROSETTA, PARTNERS, RANDOM, MEAN = "shared pairs", "random partners", "random pairs", "mean image"
BEATEN = (PARTNERS, RANDOM, MEAN)
"""What the shared pairs must do better than."""


def inversion(seeds: int) -> dict[str, Any]:
    """Generated images found again from what networks see in them, through the units that they share."""
    found = [
        reproduction.remember("rosetta", f"inversion {seed}", lambda seed=seed: inversion_figures(seed))
        for seed in range(seeds)
    ]
    highest = {name: max(row["p"][name] for row in found) for name in BEATEN}
    failed = [f"{name}: p {p:.3g}" for name, p in highest.items() if p > HIGHEST_P]
    means = [{name: sum(values) / len(values) for name, values in row["errors"].items()} for row in found]
    return {
        "claim": "The units that a generator shares with networks invert it: a code found by them alone"
        " draws the image that the networks saw, where random units of the same layers do not",
        "source": "abstract; house criterion (spec 12.5)",
        "data": f"{DATA}, {TARGETS} generated images for each zoo",
        "metric": "image_mse", "unit": "squared difference of pixels in [-1, 1]", "better": "lower",
        "ours": [row[ROSETTA] for row in means],
        "against": (PARTNERS, [row[PARTNERS] for row in means]),
        "arms": {
            **{name: [row[name] for row in means] for name in means[0] if name not in (ROSETTA, PARTNERS)},
            "pairs": [float(row["pairs"]) for row in found],
            "pairs of untrained networks": [float(row["untrained pairs"]) for row in found],
        },
        "criterion": f"in every zoo, one-sided Wilcoxon over the targets: shared pairs have the lower error"
        f" than {', '.join(BEATEN)}, each with p <= {HIGHEST_P:g} (statistic: -log10 of the highest p)",
        "statistic": -math.log10(max(highest.values())), "threshold": -math.log10(HIGHEST_P),
        "details": {"highest p": highest, "settings": vars(INVERSION), "reading": _inversion_reading(means)},
        "explanation": f"Not met: {'; '.join(failed)}." if failed else "",
    }  # fmt: skip


def _inversion_reading(means: Sequence[dict[str, float]]) -> str:
    """What the two controls without a threshold say."""
    ratios = [row["untrained pairs"] / row[ROSETTA] for row in means]
    both = [row["pixels and pairs"] / row["pixels"] for row in means]
    return (
        f"Pairs of untrained networks have {min(ratios):.2f} to {max(ratios):.2f} times the error of trained"
        f" ones: near 1 the figure shows that matching works, not that features were learned. Pixels with"
        f" pairs have {min(both):.2f} to {max(both):.2f} times the error of pixels alone."
    )


def inversion_figures(seed: int) -> Figures:
    """Errors of every target under every way to find it, for one zoo."""
    folder = run_of(seed)
    return measure_inversion(steer.open_run(folder), folder, seed)


def measure_inversion(steered: Steered, folder: Path, seed: int) -> Figures:
    """The same for a zoo at hand."""
    targets = [steer.image_of(steered, code) for code in steered.codes(TARGETS, seed, "targets")]
    pairs = steer.shared_pairs(steered.tables, K)
    fresh = untrained(steered)
    fresh_pairs = steer.shared_pairs(fresh.tables, K)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        ROSETTA: _way(steered, pairs),
        PARTNERS: _way(steered, steer.with_random_partners(steered.tables, pairs, seed)),
        RANDOM: _way(steered, steer.random_pairs(steered.tables, pairs, seed)),
        "shuffled partners": _way(steered, steer.with_shuffled_partners(pairs)),
        "untrained pairs": _way(fresh, fresh_pairs),
        "pixels": _way(steered, [], pixels=1.0),
        "pixels and pairs": _way(steered, pairs, pixels=1.0),
    }
    errors = {name: [_error(way(x), x) for x in targets] for name, way in ways.items()}
    mean = open_images(folder / "generated" / "probes.npy").mean(0)
    others = [*targets[1:], targets[0]]
    errors[MEAN] = [_error(mean, x) for x in targets]
    errors["another image"] = [_error(y, x) for x, y in zip(targets, others, strict=True)]
    p = {name: _lower(errors[ROSETTA], errors[name]) for name in BEATEN}
    return {"errors": errors, "p": p, "pairs": len(pairs), "untrained pairs": len(fresh_pairs)}


def _lower(ours: Sequence[float], against: Sequence[float]) -> float:
    """p of the one-sided signed-rank test that ours are lower."""
    from scipy.stats import wilcoxon

    tested: Any = wilcoxon(ours, against, alternative="less")
    return float(tested.pvalue)


def _way(steered: Steered, pairs: Sequence[Pair], pixels: float = 0.0) -> Callable[[Tensor], Tensor]:
    settings = replace(INVERSION, pixels=pixels)
    if not pairs and not pixels:  # nothing to come near to: the image that the search starts from
        return lambda picture: steer.image_of(steered, steered.start)
    return lambda picture: steer.inverted(steered, picture, pairs, settings).image


def _error(image: Float[Tensor, "c s s2"], target: Float[Tensor, "c s s2"]) -> float:
    return float((image - target).square().mean())


def untrained(steered: Steered) -> Steered:
    """The trained generator beside networks of the same make that learned nothing, mined on its images."""
    config, source = steered.config, steered.source
    again = zoo.stages(replace(config, seed=config.seed + 1_000_000), *source.shape, source.classes)
    by_name = {stage.name: stage for stage in again}
    viewers = [zoo.network(by_name[v.name], source.probes[:1]) for v in steered.viewers]
    _, images = zoo.generated(steered.stages[zoo.GENERATOR], config.probes, config.seed)
    maps = [steered.tables.maps[0], *(record(viewer, images, 256) for viewer in viewers)]
    tables = Tables(maps, replace(steered.tables.config, others=0))
    return replace(steered, stages=by_name, tables=tables, viewers=tuple(viewers))


# ---- Edits -------------------------------------------------------------------------------------------------


def edits(seeds: int) -> dict[str, Any]:
    """Maps moved, enlarged and joined: the image follows."""
    found = [
        reproduction.remember("rosetta", f"edits {seed}", lambda seed=seed: edit_figures(seed))
        for seed in range(seeds)
    ]
    shares = {name: [_share(row[name]) for row in found] for name in found[0]}
    margins = {f"{name} >= {least:g}": min(shares[name]) - least for name, least in LEAST.items()}
    failed = [f"{name}: {value:+.3f}" for name, value in margins.items() if value < 0]
    return {
        "claim": "Changing the maps of a generator's shared units changes its image alike: moved, enlarged,"
        " or joined from two",
        "source": "Sec. on manipulations; house criterion (spec 8b)",
        "data": f"{DATA}, {EDITED} generated images for each zoo",
        "metric": "shift_followed", "unit": "share of trials", "better": "higher",
        "ours": shares["shift"], "against": ("random units of the same layers", shares["shift, random"]),
        "arms": {name: values for name, values in shares.items() if name not in ("shift", "shift, random")},
        "criterion": "in every zoo: shifted to either side the centre of mass goes that way in at least"
        f" {LEAST['shift']:.0%} of trials, enlarged the foreground grows in at least {LEAST['zoom']:.0%}, and"
        f" the halves of a joined image are nearer to their own sources in at least {LEAST['halves']:.0%}"
        " (statistic: the smallest margin)",
        "statistic": min(margins.values()), "threshold": 0.0,
        "details": {
            "margins": margins, "settings": vars(EDIT),
            "highest binomial p of the shift": max(_by_chance(row["shift"]) for row in found),
        },
        "explanation": f"Not met: {'; '.join(failed)}." if failed else "",
    }  # fmt: skip


def _share(trials: Sequence[bool]) -> float:
    return sum(trials) / len(trials)


def _by_chance(trials: Sequence[bool]) -> float:
    from scipy.stats import binomtest

    return float(binomtest(sum(trials), len(trials), alternative="greater").pvalue)


def edit_figures(seed: int) -> Figures:
    """Whether each trial went the way that was asked, for one zoo."""
    return measure_edits(steer.open_run(run_of(seed)), seed)


def measure_edits(steered: Steered, seed: int) -> Figures:
    """The same for a zoo at hand, with random units of the same layers beside the shared ones."""
    units = steer.matched_units(steer.shared_pairs(steered.tables, K))
    draw = rng.generator(seed, 0, "random units")
    others = [steer.other_unit(steered.tables.maps[0], unit, draw) for unit in units]
    codes = steered.codes(EDITED, seed, "edited")
    fresh = steered.codes(EDITED, seed, "joined")
    found: Figures = {}
    for name, chosen in (("", units), (", random", others)):
        trials = [_trial(steered, code, start, chosen) for code, start in zip(codes, fresh, strict=True)]
        found |= {
            f"shift{name}": [x for trial in trials for x in trial.shifted],
            f"zoom{name}": [trial.grown for trial in trials],
            f"halves{name}": [x for trial in trials for x in trial.nearer],
        }
    return found


@dataclass(frozen=True)
class Trial:
    """One image moved both ways, enlarged, and joined from its two moved versions."""

    shifted: tuple[bool, bool]
    grown: bool
    nearer: tuple[bool, bool]


def _trial(steered: Steered, code: Tensor, fresh: Tensor, units: Sequence[int]) -> Trial:
    before = steer.image_of(steered, code)
    change = partial(steer.edited, steered, code, units, settings=EDIT)
    left, right = change(edit=invert.shift(0.0, -SHIFT)), change(edit=invert.shift(0.0, SHIFT))
    larger = change(edit=invert.zoom(ZOOM))
    both = steer.joined(steered, left.code, right.code, fresh, units, EDIT)
    column = invert.centre_of_mass(before)[1]
    return Trial(
        (
            invert.centre_of_mass(left.image)[1] < column,
            invert.centre_of_mass(right.image)[1] > column,
        ),
        invert.foreground(larger.image) > invert.foreground(before),
        nearer_halves(both.image, left.image, right.image),
    )


def nearer_halves(
    image: Float[Tensor, "c s s2"], left: Float[Tensor, "c s s2"], right: Float[Tensor, "c s s2"]
) -> tuple[bool, bool]:
    """Whether its left half is nearer to that of `left`, and its right half to that of `right`."""
    middle = image.shape[2] // 2
    halves = [(x[..., :middle], x[..., middle:]) for x in (image, left, right)]
    own = [_error(halves[0][side], halves[1 + side][side]) for side in (0, 1)]
    other = [_error(halves[0][side], halves[2 - side][side]) for side in (0, 1)]
    return own[0] < other[0], own[1] < other[1]
