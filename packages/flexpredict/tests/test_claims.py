"""The claims that train, with networks of a few steps or known figures in place of the real ones."""

import json
from dataclasses import replace

import pytest
import torch
from flexpredict import collapse, controlled, learns, networks, noninferior, propagation_claim, toy
from flexpredict.config import TRAIN, NetConfig
from flexpredict.probes import Split
from flexpredict.step import first_state
from paperkit import results

NET = NetConfig(2, 16, 1, 2, 8, 1, 2)
TINY = replace(
    TRAIN["smoke"][0],
    steps=4,
    warmup=1,
    log_every=2,
    probe_every=2,
    save_every=4,
    net=NET,
    batch=16,
    limit=60,
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(fields) -> dict:
    """The record that a claim's fields make, through the schema's checks."""
    record = results.claim(paper="flexpredict", id="x", command="x", wall_s=1.0, **fields)
    assert results.check(json.loads(json.dumps(record))) == []
    return record


def test_learns_trains_each_network_once(monkeypatch):
    monkeypatch.setattr(learns, "TRAIN", {"small": (TINY, "")})
    record = written(learns.claim(2))
    for arm in learns.ARMS:
        trained, initial = (record["arms"][f"{arm}, {part}, knn"]["mean"] for part in learns.PARTS[:2])
        margin = record["details"]["margins"][f"{arm}: 20-NN, points above 8"]
        assert margin == pytest.approx(trained - initial - 8)
    assert not record["holds"]
    assert "points of 20-NN" in record["explanation"]
    kept = networks.pixels_kept(replace(TINY, seed=1, position=learns.NOISELESS))
    assert all(0.1 < part < 1 for part in kept.values())
    monkeypatch.setattr(networks, "train", None)  # nothing is left to train
    assert written(learns.claim(2))["arms"] == record["arms"]


def test_what_a_linear_map_gives_back():
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    half = torch.cat([x[:, :2], torch.zeros(200, 2)], 1)
    labels = torch.zeros(100, dtype=torch.int64)
    whole, part = (Split(each[:100], labels, each[100:], labels) for each in (x, half))
    assert networks.explained(whole, whole) == pytest.approx(1, abs=1e-4)
    assert networks.explained(part, whole) == pytest.approx(0.5, abs=0.1)


def figures(config) -> dict:
    """Known figures in place of a trained network's: noise costs 10 points of 20-NN at its loudest."""
    knn = 70 + config.seed - (10 if config.position.noise == 0.6 else 2 * (config.position.source == "tied"))
    row = {"logistic": 80.0, "ridge": 40.0, "knn": knn, "rankme": 20.0}
    return {"trained": row, "random weights": {**row, "knn": 50.0 - config.seed}, "variance": 0.5}


def test_noninferior_is_guarded_at_the_published_noise_alone(monkeypatch):
    monkeypatch.setattr(noninferior, "probed", figures)
    record = written(noninferior.claim(3))
    assert record["holds"]
    assert record["details"]["difference to deterministic"]["NSR 0.6, knn"]["mean"] == -10
    assert record["details"]["margins"]["NSR 0.15, knn: above -8 points"] == 6
    monkeypatch.setattr(noninferior, "GUARDS", {"knn": 1.0, "linear": 4.0})
    broken = written(noninferior.claim(3))
    assert not broken["holds"]
    assert "NSR 0.15, knn: above -1 points: -1.00" in broken["explanation"]
    assert written(noninferior.cifar_claim(9))["ours"]["n"] == noninferior.CIFAR_SEEDS
    assert "context, knn" in written(noninferior.placement_claim(2))["arms"]


def test_collapse_measures_energy_against_the_start(monkeypatch):
    """Norms at the end that are known parts of those at the start."""
    parts = {"tied": 0.8, "untied": 0.4, "fixed": 1.0, "none": 1.0, "tied 0.6": 0.7}
    monkeypatch.setattr(collapse, "RECIPE", TINY)

    def curve(config, key):
        arm = next(name for name in parts if collapse.recipe(name, config.seed) == config)
        learner, _ = first_state(config, (1, 8, 8))
        own = learner.predictor.position.own or learner.predictor.predictor_embed
        noise = config.position.noise + config.seed / 100
        return [
            parts[arm] * float(own.weight.detach().norm())
            if key.startswith("norm_") and key != "norm_mask_token"
            else noise
        ]

    monkeypatch.setattr(collapse, "curve", curve)
    record = written(collapse.claim(2))
    assert record["ours"]["values"] == pytest.approx([0.64, 0.64])
    assert record["against"]["values"] == pytest.approx([0.16, 0.16])
    assert record["holds"]
    told = record["details"]["figure 4"]
    assert (told["A smaller than without noise"], told["A smaller at 0.6 than at 0.15"]) == (2, 2)
    assert (
        told["correlation of the mask token with the noise"]
        > 0.9
        > 0
        > (told["correlation of A's energy with the noise"])
    )


def test_claims_on_pictures(monkeypatch):
    """The embedded photographs stand in for CIFAR-10, which a test does not have."""
    small = replace(TINY, data="photographs", size=32, limit=0, net=replace(NET, patch=4))
    monkeypatch.setattr(propagation_claim, "CIFAR", small)
    monkeypatch.setattr(propagation_claim, "CLIPS", range(2))
    found = written(propagation_claim.claim(2))
    assert all(0 < found["arms"][f"{arm}, trained, steady, J&F"]["mean"] <= 100 for arm in learns.ARMS)
    assert found["arms"]["raw pixels, steady, J"]["mean"] > 20
    # Two runs of a few steps are their random weights still; positions make a difference to them.
    apart = {
        light: found["details"]["gain over random weights"][f"stochastic, {light}"]["mean"]
        for light in propagation_claim.LIGHTS
    }
    assert all(abs(gain) < 10 for gain in apart.values())
    told = {way: found["arms"][f"stochastic, random weights{way}, steady, J"]["mean"]
            for way in ("", " without positions")}  # fmt: skip
    assert told[""] != told[" without positions"]
    assert "In steady light random weights reach" in found["explanation"]


def test_effects_are_paired_over_the_other_factors(monkeypatch):
    rows = {
        (method, augmentation, sampler): [
            {"trained": {"knn": 10 * (method == "stochastic") + 3 * (sampler == "official") + seed}}
            for seed in range(2)
        ]
        for method in learns.ARMS for augmentation in controlled.RECIPES for sampler in controlled.SAMPLERS
    }  # fmt: skip
    found = controlled.effects(rows, "knn")
    assert [round(each["mean"], 9) for each in found.values()] == [10, 0, 3]
    assert all(each["pairs"] == 8 for each in found.values())
    official = controlled.recipe(("stochastic", "crop and photometric", "official"), 1)
    assert (official.recipe, official.masks.sampler, official.position.source) == ("stop", "official", "tied")


def test_toy_explains_what_it_missed():
    ratios = {name: [0.5, 0.4] for name in toy.ARMS | toy.BESIDE}
    assert "tied 1 ends at 0.40 to 0.50" in toy._why(-0.05, ratios)
    assert toy._why(0.0, ratios) == ""
