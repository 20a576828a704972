"""One short run of `train` that several files read."""

from dataclasses import replace
from pathlib import Path

import pytest
from paperkit.run import RunOptions
from rosetta.config import TRAIN, MatchConfig, TrainConfig


@pytest.fixture(scope="session")
def smoke() -> TrainConfig:
    """Smaller than the preset: hardly trained, mined all the same."""
    return replace(
        TRAIN["smoke"][0], classifier_steps=12, masked_steps=6, generator_steps=8, limit=128, probes=48,
        match=MatchConfig(draws=2, others=1), save_every=10, log_every=5,
    )  # fmt: skip


@pytest.fixture(scope="session")
def run(smoke, tmp_path_factory) -> Path:
    """Its folder."""
    from rosetta.train import train

    return train(smoke, RunOptions(out=str(tmp_path_factory.mktemp("rosetta") / "run")), "smoke")
