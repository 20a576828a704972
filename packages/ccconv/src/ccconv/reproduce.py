"""`ccconv reproduce <id>`: each claim of the README, run again, as one result file.

Criteria stand here in code and were fixed before the runs.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from paperkit import reproduction

from ccconv import anyscale, exact, keypoint, pretrained, sizes
from ccconv.config import ReproduceConfig
from ccconv.drift import align

SPREAD = "derived here; the paper's abstract claims consistency and alignment, its body could not be read"


def claims() -> list[dict[str, Any]]:
    """The claims of the package's result files; none in an installed copy."""
    return reproduction.written(reproduction.folder(__file__))


def reproduce(config: ReproduceConfig) -> list[Path]:
    """Run one claim, or all, and write the result files; returns their paths."""
    wanted, seeds = reproduction.chosen(config.id, CLAIMS), config.seeds or 5
    torch.set_num_threads(1)  # tensors of a few hundred numbers

    def command(name: str) -> str:
        words = f"uv run --package ccconv ccconv reproduce {name}"
        return f"{words} --seeds {seeds}" if name in SEEDED else words

    place = Path(config.out) if config.out else reproduction.folder(__file__)
    return reproduction.run("ccconv", {name: partial(CLAIMS[name], seeds) for name in wanted}, place, command)


def _exact(cases: exact.Cases, claim: str, tolerance: float, unit: str = "1") -> dict[str, Any]:
    limit = f"exact: at most {tolerance:g} in every case"
    worst = dict(sorted(cases.items(), key=lambda case: -case[1])[:10])
    return {
        "claim": claim, "source": SPREAD, "data": "random, float64", "metric": "largest_difference",
        "preset": "none", "better": "lower", "unit": unit, "ours": list(cases.values()), "criterion": limit,
        "tolerance": tolerance, "details": {"cases": len(cases), "worst": worst},
    }  # fmt: skip


def exact_resize() -> dict[str, Any]:
    """Against the plain sum and F.interpolate(antialias=True)."""
    text = "A fixed kernel is the antialiased cubic, linear or box resize at any size, scale and border"
    return _exact(exact.resizing(), text, 1e-10)


def exact_conv() -> dict[str, Any]:
    """Against F.conv2d, F.conv_transpose2d and resize-then-conv."""
    text = "Ordinary, strided and transposed convs and resize-then-conv are members of the family"
    return _exact(exact.convolutions(), text, 1e-12)


def exact_paths() -> dict[str, Any]:
    """Against unfold and einsum."""
    text = "All four fast paths equal the naive definition, with their gradients, at any size and border"
    return _exact(exact.paths(), text, 1e-12)


def exact_equivariance() -> dict[str, Any]:
    """Shifts, flips, nested grids."""
    text = "Whole shifts and flips of the input move the output alike; a coarse grid lies within a fine one"
    return _exact(exact.equivariance(), text, 1e-12)


def drift_formula() -> dict[str, Any]:
    """Predicted against measured centroids."""
    text = "A layer's drift is -rho/2 input pixels, (N + 2p - k) mod t halved; continuous layers have none"
    return _exact(exact.drift_formula(), text, 1e-6, "px")


def drift_sizes() -> dict[str, Any]:
    """Drift over input sizes, and of ResNets."""
    sweep = exact.drift_sizes()
    tables = {}
    for name in ("resnet18", "resnet50"):
        with torch.device("meta"):
            model = torchvision.models.get_model(name, weights=None)
        for size in (224, 225):
            rows = [row for row in align(model, size) if row.kind in ("conv", "max pool")]
            tables[f"{name} at {size}"] = {row.layer: float(row.drift[-1]) for row in rows}
    return {
        "claim": "Over input sizes 64 to 80 the grid of four stride-2 convs drifts by up to 7.5 px and back "
        "to 0; that of continuous layers never moves",
        "source": SPREAD, "data": "none: grids only", "metric": "largest_drift",
        "unit": "px", "preset": "none", "better": "lower",
        "ours": [abs(ours) for _, ours in sweep.values()],
        "against": ("four convs k3 p1 t2", [abs(theirs) for theirs, _ in sweep.values()]),
        "criterion": "exact: at most 1e-9 px at every size", "tolerance": 1e-9,
        "details": {"sweep": {str(n): list(v) for n, v in sweep.items()}, "torchvision": tables},
    }  # fmt: skip


CLAIMS: dict[str, Callable[[int], dict[str, Any]]] = {
    "exact-resize": lambda _: exact_resize(),
    "exact-conv": lambda _: exact_conv(),
    "exact-paths": lambda _: exact_paths(),
    "exact-equivariance": lambda _: exact_equivariance(),
    "drift-formula": lambda _: drift_formula(),
    "drift-sizes": lambda _: drift_sizes(),
    "drift-consequence": keypoint.drift_consequence,
    "convert": pretrained.convert_claim,
    **sizes.CLAIMS,
    **anyscale.CLAIMS,
}
SEEDED = ("drift-consequence", *sizes.CLAIMS, *anyscale.CLAIMS)
"""Claims that learn, at seeds 0, 1, …; five of them, unless the command says otherwise."""
