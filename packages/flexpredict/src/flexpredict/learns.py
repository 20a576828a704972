"""The claim `learns`: the encoder is better than its random weights, with noise and without (E1, digits)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from paperkit import reproduction, results
from paperkit.run import checkpoints as saved
from paperkit.run import from_json, load_checkpoint, read_json, read_metrics

from flexpredict import data
from flexpredict.checkpoints import read
from flexpredict.config import TRAIN, PositionConfig, TrainConfig
from flexpredict.data import Scale, Source
from flexpredict.probing import Probe, probe_set
from flexpredict.train import build, train

ARMS = {
    "deterministic": PositionConfig("none", 0.0, "std"),
    "stochastic": PositionConfig("tied", 0.15, "nsr"),
}
LEAST_GAIN, LEAST_VARIANCE = 8.0, 0.3
"""Mean gain of 20-NN over random weights, and the least variance of targets at the end (spec 14.7)."""


def claim(seeds: int) -> dict[str, Any]:
    """Both arms, every seed: probes of the trained encoder, of its initial weights, of raw pixels."""
    found = {name: [measure(seed, name) for seed in range(seeds)] for name in ARMS}
    margins: dict[str, float] = {}
    for name, rows in found.items():
        trained, initial = ([row[part] for row in rows] for part in ("trained", "random weights"))
        knn = results.paired([row["knn"] for row in trained], [row["knn"] for row in initial])
        line = results.paired([row["logistic"] for row in trained], [row["logistic"] for row in initial])
        rank = sum(a["rankme"] - b["rankme"] for a, b in zip(trained, initial, strict=True)) / seeds
        margins |= {
            f"{name}: 20-NN, standard errors above 2": knn.t - 2,
            f"{name}: 20-NN, points above {LEAST_GAIN:g}": knn.mean - LEAST_GAIN,
            f"{name}: logistic, points": line.mean,
            f"{name}: least target variance above {LEAST_VARIANCE}": min(row["variance"] for row in rows)
            - LEAST_VARIANCE,
            f"{name}: effective rank, gain": rank,
        }
    broken = [name for name, margin in margins.items() if margin < 0]
    arms = {
        f"{name}, {part}, {key}": [row[part][key] for row in found[name]]
        for name in ARMS
        for part in ("trained", "random weights", "raw pixels")
        for key in ("logistic", "knn", "rankme")
    }
    variances = {f"{name}, target variance": [row["variance"] for row in found[name]] for name in ARMS}
    return {
        "claim": "Trained on digits the encoder is better than its random weights by 20-NN, with stochastic"
        " positions and without",
        "source": "house criterion (spec 14.7)", "preset": "small",
        "data": "digits, 1,297 train and 500 test", "metric": "top1_20nn_test", "unit": "%",
        "better": "higher", "ours": arms["stochastic, trained, knn"],
        "against": ("random weights", arms["stochastic, random weights, knn"]),
        "arms": {**arms, **variances},
        "criterion": "in both arms: 20-NN better by > 2 standard errors and 8 points, logistic regression"
        " not worse in the mean, target variance >= 0.3 in every seed, effective rank not lower"
        " (statistic: the smallest margin)",
        "statistic": min(margins.values()), "threshold": 0.0,
        "details": {"margins": margins, "steps": TRAIN["small"][0].steps},
        "explanation": _why(margins, broken),
    }  # fmt: skip


def _why(margins: dict[str, float], broken: list[str]) -> str:
    if not broken:
        return ""
    return "Not met: " + "; ".join(f"{name}: {margins[name]:.2f}" for name in broken) + "."


def measure(seed: int, arm: str) -> dict[str, Any]:
    """The figures of one run, trained now or at this commit before."""
    config = replace(TRAIN["small"][0], seed=seed, position=ARMS[arm])
    folder = reproduction.trained("flexpredict", config, train)
    return reproduction.remember("flexpredict", f"learns {arm} {seed}", lambda: _figures(folder))


def _figures(folder: Path) -> dict[str, Any]:
    from paperkit import rng

    config = from_json(TrainConfig, read_json(folder / "config.json"))
    source: Source = data.open_source(config)
    rng.seed_everything(config.seed)
    initial = build(config, source.shape).encoder
    kept = load_checkpoint(saved(folder)[-1])[0]["scale"]
    probe = probe_set(config, source)
    assert probe is not None
    probe = Probe(probe.fit, probe.test, Scale(kept["mean"], kept["std"]))
    trained = read(folder).encoder("target", config.net.heads)
    return {**probe.compare(initial, trained), "variance": read_metrics(folder)[-1]["target_variance"]}
