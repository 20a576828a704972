"""The released MNIST notebook replayed, and one correction at a time (spec E5): the claim `official-mnist`.

Facts are those of nikitadurasov/ittt, exps/mnist/mnist_ittt.ipynb. The network is f2(f1(x), y), which gives
class probabilities and a vector z. The notebook feeds "no label" as a class drawn at random, its second
application is f2(z, y0) and never sees x, and its divergence has the arguments the other way round.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from paperkit import reproduction, rng
from paperkit.data import batch_indices, open_set
from paperkit.images import to_float
from torch import Tensor, nn
from torch.nn import functional as F

from ittt.method import gap_of_distributions
from ittt.protocol import facts

CLASSES, BATCH, SIGMA = 10, 64, 1.5
EPOCHS = {"notebook": 2, "eq2": 1}
"""The notebook has 5; each epoch of all 60,000 images takes half a minute of one core."""
SHOWN = 512
"""Test images of every row but the replay itself, which takes all 10,000."""
PUBLISHED = (80.90, 87.09)
"""Accuracy in the notebook's output, not adapted and adapted, one seed."""


class Net(nn.Module):
    """f1: two convs and a linear layer to 50 features; f2: y added to these, then logits and z."""

    def __init__(self):
        super().__init__()
        self.f1 = nn.Sequential(
            nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.LeakyReLU(),
            nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.LeakyReLU(),
            nn.Flatten(), nn.Linear(320, 50), nn.LeakyReLU(),
        )  # fmt: skip
        self.signal = nn.Sequential(nn.Linear(CLASSES, 50), nn.LeakyReLU())
        self.f2 = nn.Sequential(nn.Linear(50, 50), nn.LeakyReLU(), nn.Linear(50, CLASSES + 50))

    def decode(
        self, h: Float[Tensor, "b 50"], y: Float[Tensor, "b 10"]
    ) -> tuple[Float[Tensor, "b 10"], Float[Tensor, "b 50"]]:
        """(logits, z) of features and a signal."""
        found = self.f2(h + self.signal(y))
        return found[:, :CLASSES], found[:, CLASSES:]


@dataclass(frozen=True)
class Replay:
    """What the notebook does at test time; a correction changes one field."""

    steps: int = 10
    lr: float = 1e-3
    neutral: str = "random"
    """What stands for "no label": a class drawn at random at every step, or uniform."""
    gap: str = "legacy-js"
    second: str = "z"
    """The second application: f2(z, y0), or F(x, y0)."""
    carry: bool = True
    """Adam's moments go from batch to batch."""
    frozen: bool = True


CORRECTIONS = {
    "uniform signal": {"neutral": "uniform"},
    "Jensen-Shannon": {"gap": "js"},
    "second application sees x": {"second": "x"},
    "fresh Adam": {"carry": False},
    "2 steps": {"steps": 2},
}
PROPER = Replay(neutral="uniform", gap="js", second="x", carry=False)
"""All corrections at once: the paper's form, for a network trained by Eq. 2."""
ON_EQ2 = {
    "Eq. 2, 10 steps": PROPER,
    "Eq. 2, 2 steps": replace(PROPER, steps=2),
    "Eq. 2, 10 steps, F not frozen": replace(PROPER, frozen=False),
}


# ---- training ----------------------------------------------------------------------------------------------


def train(recipe: str, seed: int, x: Float[Tensor, "n 1 28 28"], y: Int64[Tensor, " n"], epochs: int) -> Net:
    """Adam 1e-3, batches of 64; "notebook": a true label in three batches of four, else random classes, and
    f2 on its own z and prediction; "eq2": both terms of Eq. 2, with a uniform signal."""
    rng.seed_everything(seed, "official")
    net = Net()
    optimiser = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    draw = rng.generator(seed, 0, "official training")
    for step in range(epochs * (len(x) // BATCH)):
        rows = torch.from_numpy(batch_indices(len(x), BATCH, seed, step))
        labels, h = y[rows], net.f1(x[rows])
        if recipe == "eq2":
            known, unknown = F.one_hot(labels, CLASSES).float(), _uniform(len(rows))
            outputs = [net.decode(h, signal)[0] for signal in (known, unknown)]
        else:
            random = torch.randint(0, CLASSES, (len(rows),), generator=draw)
            true = bool(torch.rand((), generator=draw) > 0.25)
            first, z = net.decode(h, F.one_hot(labels if true else random, CLASSES).float())
            outputs = [first, net.decode(z, first.softmax(1))[0]]
        loss = torch.stack([F.cross_entropy(output, labels) for output in outputs]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return net.eval()


def _uniform(count: int) -> Float[Tensor, "b 10"]:
    return torch.full((count, CLASSES), 1 / CLASSES)


# ---- test time ---------------------------------------------------------------------------------------------


def adapt(net: Net, x: Float[Tensor, "n 1 28 28"], how: Replay, seed: int) -> Float[Tensor, "n 10"]:
    """Logits of all images, adapted to in batches of 64; every batch starts from the trained weights.

    The prediction is that of the weights after the last step, with the signal that stands for "no label".
    """
    f = Net()
    f.load_state_dict(net.state_dict())
    net.requires_grad_(False)
    optimiser = torch.optim.Adam(f.parameters(), how.lr, fused=True)
    draw, found = rng.generator(seed, 0, "official signal"), []
    for part in x.split(BATCH):
        f.load_state_dict(net.state_dict())
        if not how.carry:
            optimiser = torch.optim.Adam(f.parameters(), how.lr, fused=True)
        for _ in range(how.steps):
            first, z = f.decode(f.f1(part), signal(how, len(part), draw))
            anchor = net if how.frozen else f
            h = z if how.second == "z" else anchor.f1(part)
            second, _ = anchor.decode(h, first.softmax(1))
            loss = gap_of_distributions(first.log_softmax(1), second.log_softmax(1), how.gap).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            found.append(f.decode(f.f1(part), signal(how, len(part), draw))[0])
    return torch.cat(found)


def signal(how: Replay, count: int, draw: torch.Generator) -> Float[Tensor, "b 10"]:
    """What is fed where no label is known."""
    if how.neutral == "uniform":
        return _uniform(count)
    return F.one_hot(torch.randint(0, CLASSES, (count,), generator=draw), CLASSES).float()


def error(logits: Float[Tensor, "n 10"], y: Int64[Tensor, " n"]) -> float:
    """In per cent."""
    return 100 * float((logits.argmax(1) != y).float().mean())


# ---- the claim ---------------------------------------------------------------------------------------------


def rows(seed: int, images: int = 60_000, tests: int = 10_000, shown: int = SHOWN) -> dict[str, Any]:
    """Every row's error of one seed, with noise and clean."""
    learned = open_set("MNIST", "train").subset(images)
    x, y = learned.tensor()
    x_test, y_test = open_set("MNIST", "test").subset(tests).tensor()
    x, x_test = ((to_float(part, 0.0, 1.0) - 0.1307) / 0.3081 for part in (x, x_test))
    noise = SIGMA * rng.normal(tuple(x_test.shape), seed, 0, "official noise")
    found: dict[str, Any] = {"noise": {}, "clean": {}}
    legacy = train("notebook", seed, x, y, EPOCHS["notebook"])

    # 1. The replay on all test images, beside both ways not to adapt.
    for name, how in {
        "notebook, not adapted": Replay(steps=0),
        "not adapted, uniform signal": Replay(steps=0, neutral="uniform"),
        "notebook": Replay(),
    }.items():
        found["noise"][f"{name}, all"] = error(adapt(legacy, x_test + noise, how, seed), y_test)

    # 2. One correction at a time, and the same without noise, on fewer images.
    ways = {
        "notebook, not adapted": Replay(steps=0),
        "not adapted, uniform signal": Replay(steps=0, neutral="uniform"),
        "notebook": Replay(),
        **{name: replace(Replay(), **changes) for name, changes in CORRECTIONS.items()},
    }
    few, labels = x_test[:shown], y_test[:shown]
    _table(found, legacy, ways, few, noise[:shown], labels, seed)

    # 3. Training by Eq. 2.
    proper = train("eq2", seed, x, y, EPOCHS["eq2"])
    ways = {"Eq. 2, not adapted": replace(PROPER, steps=0), **ON_EQ2}
    _table(found, proper, ways, few, noise[:shown], labels, seed)
    return found


def kept(seed: int) -> dict[str, Any]:
    """The rows of a seed, made once at each commit: `ittt audit mnist` and the claim share them."""
    return reproduction.remember("ittt", f"official {seed}", partial(rows, seed))


def _table(
    found: dict[str, Any], net: Net, ways: dict[str, Replay], x: Tensor, noise: Tensor, y: Tensor, seed: int
) -> None:
    for name, how in ways.items():
        found["noise"][name] = error(adapt(net, x + noise, how, seed), y)
        found["clean"][name] = error(adapt(net, x, how, seed), y)


def claim(seeds: int) -> dict[str, Any]:
    """The notebook's gain over its own seeds, and what each of its choices is worth."""
    each = [kept(seed) for seed in range(seeds)]
    noisy = {name: [row["noise"][name] for row in each] for name in each[0]["noise"]}
    clean = {name: [row["clean"][name] for row in each] for name in each[0]["clean"]}
    before, after = noisy["notebook, not adapted, all"], noisy["notebook, all"]
    gain, published = [b - a for a, b in zip(after, before, strict=True)], PUBLISHED[1] - PUBLISHED[0]
    told = facts(gain)

    def less(cells: dict[str, list[float]], name: str, other: str) -> dict[str, float]:
        return facts([a - b for a, b in zip(cells[name], cells[other], strict=True)])

    base = {name: "Eq. 2, not adapted" if name.startswith("Eq. 2") else "not adapted, uniform signal"
            for name in clean}  # fmt: skip
    return {
        "claim": "The released MNIST notebook, replayed over seeds, gains what its output shows: 6.2 points "
        "of accuracy under noise of 1.5 standard deviations",
        "source": "nikitadurasov/ittt, exps/mnist/mnist_ittt.ipynb, output of its last cells",
        "data": "MNIST, 60,000 training and 10,000 test images",
        "metric": "top1_error_noise_1.5", "unit": "%", "better": "lower",
        "ours": after, "against": ("not adapted, a class at random for the signal", before),
        "arms": {**noisy, **{f"{name}, clean": values for name, values in clean.items()}},
        "paper_value": (100 - PUBLISHED[1], "output of the notebook: accuracy 0.8709, one seed"),
        "criterion": "mean gain over the notebook's own unadapted row within 3 points of the published 6.19 "
        "(3 - distance)",
        "statistic": 3 - abs(told["mean"] - published), "threshold": 0.0,
        "details": {
            "gain": told, "published": {"not adapted": PUBLISHED[0], "adapted": PUBLISHED[1]},
            "gain_against_a_uniform_signal_without_adaptation": facts(
                [b - a for a, b in zip(after, noisy["not adapted, uniform signal, all"], strict=True)]
            ),
            "change_of_error_by_row": {
                name: {"noise": less(noisy, name, base[name]), "clean": less(clean, name, base[name])}
                for name in clean if name != base[name]
            },
            "read_it_so": "change against the same network, not adapted, fed a uniform signal; negative is a "
            "gain; every row under the first three changes one choice of the notebook",
            "reduced": f"{EPOCHS['notebook']} epochs of training instead of 5 (Eq. 2: {EPOCHS['eq2']}); "
            f"corrections and clean rows on {SHOWN:,} of 10,000 test images",
        },
    }  # fmt: skip
