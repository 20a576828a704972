"""Figures of a trained network, each beside its ends: an untrained net below, real held-out images above."""

import math
from pathlib import Path

import torch
from jaxtyping import Float
from paperkit import metrics
from paperkit.run import find, from_json, read_json, write_json
from torch import Tensor

from ign import data
from ign.classifier import Judge, judge
from ign.config import EvaluateConfig, ReportConfig, TrainConfig
from ign.generate import IGN

CONFIDENT = 0.9
"""A sample counts as readable when the judge is at least this sure of some class."""
COVERED = 0.01
"""A class counts as covered when at least this share of the samples falls into it."""


def quality(
    samples: Float[Tensor, "n c h w"], held_out: Float[Tensor, "m c h w"], judge_: Judge
) -> dict[str, float]:
    """Readable share, the same balanced, classes covered, class entropy, KID, precision and recall.

    `balanced` counts each class up to its equal share only, so that one readable image repeated (which a
    collapsed or untrained net gives) is worth 1 / classes. `entropy` is 1 for equal shares. KID (unbiased,
    cubic kernel), precision and recall (k = 5) are on the judge's features against held-out images.
    """
    probabilities = judge_.probabilities(samples)
    confidence, label = probabilities.max(1)
    readable = torch.bincount(label[confidence >= CONFIDENT], minlength=probabilities.shape[1]).double()
    readable = readable / len(samples)
    share = torch.bincount(label, minlength=probabilities.shape[1]).double() / len(samples)
    entropy = -(share * share.clamp_min(1e-12).log()).sum() / math.log(len(share))
    real, fake = judge_.features(held_out), judge_.features(samples)
    overlap = metrics.precision_recall(real, fake, k=5)
    return {
        "readable": float(readable.sum()),
        "balanced": float(readable.clamp_max(1 / len(readable)).sum()),
        "classes": float((share >= COVERED).sum()),
        "entropy": float(entropy),
        "kid": metrics.kid(real, fake),
        "precision": overlap.precision,
        "recall": overlap.recall,
    }


def geometry(
    samples: Float[Tensor, "n c h w"],
    train: Float[Tensor, "m c h w"],
    held_out: Float[Tensor, "l c h w"],
) -> dict[str, float]:
    """Diversity (mean pairwise distance over the data's; 1 = as diverse) and memorisation (see below).

    `memorisation` is the median distance of a sample to its nearest training image over that of a held-out
    image: 1 = none, far below 1 = copying.
    """
    flat, reference, real = samples.flatten(1), train.flatten(1), held_out.flatten(1)
    return {
        "diversity": float(torch.pdist(flat[:1000]).mean() / torch.pdist(real[:1000]).mean()),
        "memorisation": float(
            nearest_distance(flat, reference).median() / nearest_distance(real, reference).median()
        ),
    }


def nearest_distance(queries: Float[Tensor, "n d"], keys: Float[Tensor, "m d"]) -> Float[Tensor, " n"]:
    return torch.cat([torch.cdist(part, keys).amin(1) for part in queries.split(500)])


def idempotence(
    ign: IGN, n: int, held_out: Float[Tensor, "m c h w"], k: int = 10, seed: int = 0
) -> dict[str, float]:
    """|f^(j+1)(z) - f^j(z)| for j = 1 … k, over the mean distance of two held-out images.

    Key `e2` is that of j = 1: how far the second application still moves. A constant f has e2 = 0, so it is
    read beside `diversity` only.
    """
    scale = torch.pdist(held_out.flatten(1)[:1000]).mean()
    y = ign.sample(n, 1, seed)
    found = {}
    for j in range(1, k + 1):
        following = ign.apply(y, 1, "fz")
        found[f"e{j + 1}"] = float((following - y).flatten(1).norm(dim=1).mean() / scale)
        y = following
    return found


def figures(
    ign: IGN, train: data.Images, test: data.Images, judge_: Judge, n: int, k: int, seed: int
) -> dict:
    """All figures after 1 … k applications, keyed "k1", "k2", …, with "idempotence"."""
    held_out, known = test.floats()[:1000], train.floats()[:20_000]
    found: dict[str, dict[str, float]] = {}
    for count in range(1, k + 1):
        samples = ign.sample(n, count, seed).cpu()
        found[f"k{count}"] = {**quality(samples, held_out, judge_), **geometry(samples, known, held_out)}
    found["idempotence"] = idempotence(ign, min(n, 500), held_out, seed=seed)
    return found


def ceiling(train: data.Images, test: data.Images, judge_: Judge, n: int) -> dict[str, float]:
    """The same figures of real training images, as if they were samples: what no sample should beat."""
    real = train.floats()[:n]
    return quality(real, test.floats()[:1000], judge_)


def evaluate(config: EvaluateConfig) -> Path:
    """`ign evaluate`: print the figures as a table and write evaluation.json into the run folder."""
    folder = find("ign", config.run)
    trained = from_json(TrainConfig, read_json(folder / "config.json"), str(folder / "config.json"))
    ign = IGN.load(folder, config.device)
    train, test = data.load(trained), data.load(trained, "test")
    judge_ = judge(train, test)
    found = figures(ign, train, test, judge_, config.n, config.k, config.seed)
    found["real"] = ceiling(train, test, judge_, config.n)
    names = list(found["k1"])
    print(
        f"judge: {judge_.accuracy:.1%} of held-out {test.name} right; {config.n} samples, seed {config.seed}"
    )
    print(f"{'':14}" + "".join(f"{name:>13}" for name in names))
    for row in [f"k{k}" for k in range(1, config.k + 1)] + ["real"]:
        print(f"{row:14}" + "".join(f"{found[row].get(name, float('nan')):13.3f}" for name in names))
    moves = "  ".join(f"{name} {value:.3f}" for name, value in found["idempotence"].items())
    print(f"how far application j still moves, over the distance of two images:\n  {moves}")
    settings = {"n": config.n, "seed": config.seed, "judge_accuracy": judge_.accuracy, "held_out": test.name}
    write_json(folder / "evaluation.json", {**settings, **found})
    return folder / "evaluation.json"


def report(config: ReportConfig) -> Path:
    """`ign report`: the run's page, with the package's claims beside it."""
    from paperkit import report as page

    from ign.reproduce import claims
    from ign.train import TITLE

    path = page.write(find("ign", config.run), TITLE, "arXiv 2311.01462", claims())
    print(path)
    return path
