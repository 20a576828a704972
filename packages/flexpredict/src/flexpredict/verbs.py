"""The verbs `inspect`, `convert` and `report`."""

from pathlib import Path

from paperkit import report
from paperkit.run import find

from flexpredict.checkpoints import (
    HEADS,
    Checkpoint,
    contradiction,
    looks_untrained,
    positions_apart,
    read,
    write,
)
from flexpredict.config import ConvertConfig, InspectConfig, ReportConfig
from flexpredict.method import noise_to_signal
from flexpredict.train import SUBTITLE, TITLE

SAME = 1e-5
"""Stored positions closer than this to sines and cosines are those."""
STD = 0.25
"""Noise at which a predictor's loudness is told: the paper's for ViT-B and ViT-L."""


def inspect(config: InspectConfig) -> dict[str, str]:
    """`flexpredict inspect`: what a checkpoint holds, by its shapes and values; prints and returns it."""
    checkpoint = read(config.file)
    sizes, weights = checkpoint.sizes(), checkpoint.encoder_weights(config.part)
    found = {"file": checkpoint.source, "layout": checkpoint.layout, "encoder": str(sizes)}
    if odd := contradiction(Path(checkpoint.source).name, sizes):
        found["name"] = odd
    heads = HEADS.get(sizes.width)
    found["heads"] = f"{heads} (as published for this width)" if heads else "not in the shapes: say --heads"
    count = sum(v.numel() for k, v in weights.items() if k != "pos_embed")
    found["parameters"] = f"{count:,}"
    if sizes.frames == 1:
        apart = positions_apart(weights, sizes)
        kind = "sines and cosines" if apart < SAME else "others, kept as they are stored"
        found["positions"] = f"{kind} (largest difference {apart:.1e})"
    both = checkpoint.target and checkpoint.context
    found["parts"] = "averaged and trained encoder" if both else "one encoder"
    found |= _predictor(checkpoint)
    found |= {key: str(value) for key, value in checkpoint.facts.items()}
    width = max(map(len, found))
    print("\n".join(f"{name:<{width}}  {words}" for name, words in found.items()))
    return found


def _predictor(checkpoint: Checkpoint) -> dict[str, str]:
    weights = checkpoint.predictor
    if weights is None or "predictor_embed.weight" not in weights:
        return {"predictor": "none"}
    a = weights["predictor_embed.weight"]
    depth = len({key.split(".")[1] for key in weights if key.startswith("predictor_blocks.")})
    found = {
        "predictor": f"width {len(a)}, {depth} blocks",
        "A": f"norm {float(a.norm()):.3f}; noise of deviation {STD} would have "
        f"{float(noise_to_signal(a, STD)):.3f} of the positions' energy",
    }
    if "mask_token" in weights:
        token = weights["mask_token"]
        asleep = looks_untrained(token)
        found["mask token"] = f"mean {float(token.mean()):.4f}, deviation {float(token.std()):.4f}: " + (
            "may be as drawn, N(0, 0.02): the predictor did not use it" if asleep else "was trained"
        )
    if checkpoint.stepped is not None:
        found["optimiser"] = f"moments of {checkpoint.stepped} parameters"
    return found


def convert(config: ConvertConfig) -> Path:
    """`flexpredict convert`: the same weights in another layout; prints and returns the file's path."""
    path = write(read(config.file), config.layout, Path(config.out), config.part, config.heads)
    print(path)
    return path


def write_report(config: ReportConfig) -> Path:
    """`flexpredict report`: the run's page."""
    path = report.write(find("flexpredict", config.run), TITLE, SUBTITLE)
    print(path)
    return path
