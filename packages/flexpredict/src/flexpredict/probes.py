"""Frozen features, and what simple classifiers make of them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from paperkit import rng
from torch import Tensor, nn
from torch.nn import functional as F

from flexpredict.data import Scale
from flexpredict.model import Encoder

NEIGHBOURS, TEMPERATURE = 20, 0.07
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Of the linear heads, per 256 images."""
DROPS = (8 / 28, 16 / 28, 24 / 28)
"""Parts of the training after which the heads' learning rate is divided by ten."""


@torch.no_grad()
def features(
    encoder: Encoder, pixels: UInt8[Tensor, "n c h w"], scale: Scale, last: int = 1, batch: int = 512
) -> Float[Tensor, "l n d"]:
    """Averages over the patches of the last blocks' outputs, each through the final norm (appendix C.1)."""
    device = encoder.pos_embed.device
    training = encoder.training
    encoder.eval()
    parts = [encoder.layers(scale(part.to(device)), last).mean(2).cpu() for part in pixels.split(batch)]
    encoder.train(training)
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class Split:
    """Features and labels to learn from and to test on."""

    x: Float[Tensor, "n d"]
    y: Int64[Tensor, " n"]
    x_test: Float[Tensor, "m d"]
    y_test: Int64[Tensor, " m"]


def accuracy(guess: Int64[Tensor, " m"], y: Int64[Tensor, " m"]) -> float:
    """Right answers in %."""
    return 100 * float((guess == y).double().mean())


def knn(split: Split, k: int = NEIGHBOURS) -> float:
    """Top 1 in % of the k nearest by cosine, weighted by exp(cosine / 0.07)."""
    known, asked = (F.normalize(x.float(), dim=1) for x in (split.x, split.x_test))
    votes = torch.zeros(len(asked), int(split.y.max()) + 1)
    near, index = (asked @ known.T).topk(min(k, len(known)), dim=1)
    votes.scatter_add_(1, split.y[index], (near / TEMPERATURE).exp())
    return accuracy(votes.argmax(1), split.y_test)


def logistic(
    split: Split, penalty: float = 1.0, intercept: bool = True, test_statistics: bool = False
) -> float:
    """Top 1 in % of an L2 logistic regression on standardised features.

    `penalty` is that on |w|^2 / 2 beside the sum of the losses. `test_statistics` standardises the test
    features by their own mean and deviation, as the released code does.
    """
    from sklearn.linear_model import LogisticRegression

    mean, std = _moments(split.x)
    mean_test, std_test = _moments(split.x_test) if test_statistics else (mean, std)
    x, x_test = (split.x.double() - mean) / std, (split.x_test.double() - mean_test) / std_test
    classifier = LogisticRegression(C=1 / penalty, fit_intercept=intercept, max_iter=300)
    with warnings.catch_warnings(action="ignore"):  # of iterations that ended early
        classifier.fit(x.numpy(), split.y.numpy())
    return accuracy(torch.from_numpy(np.asarray(classifier.predict(x_test.numpy()))), split.y_test)


def ridge(split: Split, penalty: float = 0.01) -> float:
    """Top 1 in % of ridge regression on one-hot labels, in closed form, on standardised features.

    `penalty` is that on |w|^2 beside the mean of the squared errors.
    """
    mean, std = _moments(split.x)
    x, x_test = (((each.double() - mean) / std).float() for each in (split.x, split.x_test))
    wanted = F.one_hot(split.y).float()
    system = x.T @ x + penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(system, x.T @ (wanted - wanted.mean(0)))
    return accuracy((x_test @ weights + wanted.mean(0)).argmax(1), split.y_test)


def _moments(x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    x = x.double()
    return x.mean(0), x.std(0).clamp_min(1e-8)


def few(y: Int64[Tensor, " n"], share: float, seed: int) -> Int64[Tensor, " m"]:
    """Positions of a part of the labels, drawn class by class, at least one of each."""
    order = torch.randperm(len(y), generator=rng.generator(seed, 0, "few"))
    chosen = []
    for label in y.unique():
        own = order[y[order] == label]
        chosen.append(own[: max(1, round(share * len(own)))])
    return torch.cat(chosen).sort().values


# ---- linear heads ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heads:
    """Top 1 in % of the head that did best on held-out training images, and all of them."""

    best: str
    test: float
    validation: dict[str, float]
    every_test: dict[str, float]


def linear_heads(
    x: Float[Tensor, "l n d"],
    y: Int64[Tensor, " n"],
    x_test: Float[Tensor, "l m d"],
    y_test: Int64[Tensor, " m"],
    epochs: int = 28,
    batch: int = 256,
    seed: int = 0,
    rates: Sequence[float] = LEARNING_RATES,
) -> Heads:
    """Train heads over {last, all given layers} x {batch norm, none} x `rates`, SGD as in the paper.

    A tenth of the training images chooses among them. Note: the paper's evaluation chose on the test images,
    and its features were of newly cropped images in every epoch; these are cached.
    """
    held = torch.randperm(len(y), generator=rng.generator(seed, 0, "held out"))
    fit, validate = held[max(1, len(y) // 10) :], held[: max(1, len(y) // 10)]
    inputs = {"last": (x[-1], x_test[-1])}
    if len(x) > 1:
        inputs[f"last {len(x)}"] = (_joined(x), _joined(x_test))
    classes = int(max(y.max(), y_test.max())) + 1
    scores: dict[str, tuple[float, float]] = {}
    for layers, (own, own_test) in inputs.items():
        for norm in ("batch norm", "no norm"):
            heads = [_head(own.shape[1], classes, norm == "batch norm", seed) for _ in rates]
            _fit(heads, rates, own[fit], y[fit], epochs, batch, seed)
            for rate, head in zip(rates, heads, strict=True):
                name = f"{layers}, {norm}, lr {rate:g}"
                scores[name] = (_score(head, own[validate], y[validate]), _score(head, own_test, y_test))
    best = max(scores, key=lambda name: scores[name][0])
    return Heads(
        best, scores[best][1], {k: v for k, (v, _) in scores.items()}, {k: t for k, (_, t) in scores.items()}
    )


def _joined(x: Float[Tensor, "l n d"]) -> Float[Tensor, "n e"]:
    return x.transpose(0, 1).flatten(1)


def _head(width: int, classes: int, norm: bool, seed: int) -> nn.Sequential:
    linear = nn.Linear(width, classes)
    nn.init.normal_(linear.weight, std=0.01, generator=rng.generator(seed, 0, "head"))
    nn.init.zeros_(linear.bias)
    return nn.Sequential(*([nn.BatchNorm1d(width, affine=True)] if norm else []), linear)


def _fit(
    heads: list[nn.Sequential],
    rates: Sequence[float],
    x: Tensor,
    y: Tensor,
    epochs: int,
    batch: int,
    seed: int,
) -> None:
    """SGD with Nesterov momentum, decay 5e-4, three drops of the rate; all heads see the same batches."""
    groups = [
        {"params": list(head.parameters()), "lr": rate * batch / 256}
        for head, rate in zip(heads, rates, strict=True)
    ]
    optimiser = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=5e-4)
    drops = [max(1, round(part * epochs)) for part in DROPS]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, sorted(set(drops)), 0.1)
    for epoch in range(epochs):
        order = torch.randperm(len(y), generator=rng.generator(seed, epoch, "heads"))
        for rows in order.split(batch):
            if len(rows) < 2:
                continue  # batch norm needs two
            optimiser.zero_grad()
            loss = torch.stack([F.cross_entropy(head(x[rows]), y[rows]) for head in heads]).sum()
            loss.backward()
            optimiser.step()
        schedule.step()
    for head in heads:
        head.eval()


@torch.no_grad()
def _score(head: nn.Sequential, x: Float[Tensor, "n d"], y: Int64[Tensor, " n"]) -> float:
    return accuracy(head(x).argmax(1), y)
