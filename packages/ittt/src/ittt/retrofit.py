"""A pretrained network retrofitted (spec 10.5): the claim `retrofit`.

SqueezeNet v1.0 with its ImageNet weights names half of Tiny-ImageNet's classes. A zero branch is added to its
seventh fire module: before fine-tuning f(x, y) is the published network, bit for bit, whatever y. Then what
follows the branch is fine-tuned by Eq. 2, and corrupted images are adapted to.
"""

from functools import cache, partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from paperkit import UserError, reproduction, rng
from paperkit.data import batch_indices, data_root, open_set
from paperkit.images import to_float
from paperkit.run import fill, load_weights
from torch import Tensor, nn
from torch.nn import functional as F

from ittt.baselines import method
from ittt.corruptions import corrupt
from ittt.image_tasks import points
from ittt.model import ITTT
from ittt.protocol import facts
from ittt.settings import Settings

FILE = "weights/squeezenet1_0_deepcomp.safetensors"
SIDE = 96
"""Images of 64 pixels are enlarged to so many; the network was trained at 227, but this is for a CPU."""
BRANCH, WIDTH = "11", 512
"""The seventh fire module in `squeezenet`, and its channels."""
EACH, SHOWN = 50, 100
"""Training images of each class; test images of each seed."""
EPOCHS, BATCH, LR = 2, 50, 3e-4
CORRUPTIONS, SEVERITY = ("gaussian", "defocus", "contrast", "pixelate", "jpeg"), 3
SETTINGS = Settings(steps=1, lr=1e-4, rollback=False, measure=False)
"""One step; a tenth of the rate of small networks, as is usual for pretrained weights."""
ROWS = ("none", "it3", "un-frozen")


class Named(NamedTuple):
    """Half of the classes that both the data set and the network know."""

    names: list[str]
    tiny: list[int]
    """Their labels in Tiny-ImageNet."""
    imagenet: list[int]
    """Their places among ImageNet's 1,000."""


class Enlarge(nn.Module):
    """Images in [0, 1], enlarged to `SIDE` and scaled as ImageNet's."""

    mean: Tensor
    std: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        return (F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True) - self.mean) / self.std


@cache
def named() -> Named:
    """Every second one of the classes in common, in the order of their WordNet ids."""
    known: Any = open_set("imagenet-sample", "all")
    places = {PurePosixPath(name).name.split("_")[0]: i for i, name in enumerate(known.names)}
    tiny = open_set("tiny-imagenet", "train").classes
    common = [(label, places[wnid], wnid) for label, wnid in enumerate(tiny) if wnid in places][::2]
    if not common:
        raise UserError("Tiny-ImageNet and imagenet-sample have no class in common: name both by WordNet ids")
    return Named([wnid for *_, wnid in common], [label for label, *_ in common], [p for _, p, _ in common])


def squeezenet(classes: list[int]) -> nn.Sequential:
    """The published network, its logits those of `classes` alone. Raises `UserError` without its weights."""
    from torchvision import models  # here: importing torchvision takes seconds

    path = data_root() / FILE
    if not path.exists():
        raise UserError(f"{FILE} is missing below the data folder (PAPERKIT_DATA): put SqueezeNet v1.0 there")
    net = models.squeezenet1_0()
    fill(net, load_weights(path), path)
    last = nn.Conv2d(WIDTH, len(classes), 1)
    whole = net.classifier[1]
    assert isinstance(whole, nn.Conv2d)
    assert whole.bias is not None
    last.load_state_dict({"weight": whole.weight[classes], "bias": whole.bias[classes]})
    model = nn.Sequential(Enlarge(), *net.features, last, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return model.eval()


def retrofitted(model: nn.Module, classes: int) -> ITTT:
    """The model with a zero branch for the signal."""
    return ITTT(
        model, "feature", layer=BRANCH, outputs=classes, task="classes", neutral="uniform", presence=True,
        width=WIDTH, retrofit=True,
    )  # fmt: skip


def pictures(split: str, count: int, skip: int = 0) -> tuple[Float[Tensor, "n 3 64 64"], Int64[Tensor, " n"]]:
    """Images of the named classes in random order, and their places among these."""
    found = open_set("tiny-imagenet", split)  # pyright: ignore[reportArgumentType]
    place = {label: i for i, label in enumerate(named().tiny)}
    kept = [i for i, label in enumerate(found.labels.tolist()) if label in place]
    order = torch.randperm(len(kept), generator=rng.generator(0, 0, f"retrofit {split}"))
    chosen = [kept[i] for i in order[skip : skip + count].tolist()]
    if len(chosen) < count:
        raise UserError(f"tiny-imagenet has {len(kept)} {split} images of these classes, not {skip + count}")
    items = [found[i] for i in chosen]
    x = to_float(torch.stack([image for image, _ in items]), 0.0, 1.0)
    return x, torch.tensor([place[label] for _, label in items])


# ---- before and after fine-tuning --------------------------------------------------------------------------


@torch.no_grad()
def identity(x: Float[Tensor, "n 3 64 64"]) -> dict[str, float]:
    """Largest difference of logits from the published network's, for several signals."""
    classes = named().imagenet
    plain, net = squeezenet(classes), retrofitted(squeezenet(classes), len(classes)).eval()
    expected = plain(x)
    signals = {
        "f(x, 0)": None,
        "f(x, f(x, 0))": expected.softmax(1),
        "f(x, one-hot)": F.one_hot(torch.arange(len(x)) % len(classes), len(classes)).float(),
        "f(x, noise)": rng.normal((len(x), len(classes)), 0, 0, "retrofit signal"),
    }
    return {name: float((net(x, signal) - expected).abs().max()) for name, signal in signals.items()}


def fine_tuned(seed: int, x: Float[Tensor, "n 3 64 64"], y: Int64[Tensor, " n"]) -> ITTT:
    """Eq. 2 through what follows the branch; the modules before it stay as published."""
    classes = named().imagenet
    net = retrofitted(squeezenet(classes), len(classes))
    learned = [
        p for name, p in net.named_parameters()
        if f"model.{BRANCH}.branch" in name or int(name.split(".")[1]) > int(BRANCH)
    ]  # fmt: skip
    optimiser = torch.optim.Adam(learned, LR, fused=True)
    for step in range(EPOCHS * (len(x) // BATCH)):
        rows = torch.from_numpy(batch_indices(len(x), BATCH, seed, step))
        call = net.resumed(x[rows])  # what comes before the branch, once
        signals: tuple[Any, ...] = (net.from_target(y[rows]), None)
        loss = torch.stack([net.task.loss(call(signal), y[rows]) for signal in signals]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return net.eval()


def rows_of(seed: int) -> dict[str, dict[str, float]]:
    """Errors in per cent of the published network and of the fine-tuned one under every row."""
    x, y = pictures("train", EACH * len(named().tiny))
    x_test, y_test = pictures("test", SHOWN, seed * SHOWN)
    published, net = squeezenet(named().imagenet), fine_tuned(seed, x, y)
    found: dict[str, dict[str, float]] = {}
    for name in ("clean", *CORRUPTIONS):
        images = x_test if name == "clean" else corrupt(x_test, name, SEVERITY, seed)
        with torch.no_grad():
            found.setdefault("published", {})[name] = float(points(published(images), y_test).mean())
            found.setdefault("gap", {})[name] = float(net.gap(images).mean())
        for row in ROWS:
            predict = method(row, net, SETTINGS)
            logits = torch.cat([predict(part) for part in images.split(BATCH)])
            found.setdefault(row, {})[name] = float(points(logits, y_test).mean())
    return found


def claim(seeds: int) -> dict[str, Any]:
    """Identity before fine-tuning, exact; what fine-tuning and adaptation then do, reported."""
    x, _ = pictures("test", SHOWN)
    differences = identity(x)
    each = [
        reproduction.remember("ittt", f"retrofit {seed}", partial(rows_of, seed)) for seed in range(seeds)
    ]

    def less(row: str, other: str, *names: str) -> dict[str, float]:
        return facts([sum(e[row][n] - e[other][n] for n in names) / len(names) for e in each])

    pairs = {
        "fine-tuned minus published": ("none", "published"),
        "adapted minus fine-tuned": ("it3", "none"),
        "un-frozen minus fine-tuned": ("un-frozen", "none"),
    }
    return {
        "claim": "Retrofitted, a pretrained network is unchanged bit for bit, whatever it is fed back, until "
        "it is fine-tuned",
        "source": "spec 10.5; not in the paper",
        "data": f"Tiny-ImageNet, {len(named().tiny)} of the classes that the network names, {EACH} training "
        f"images each, {SHOWN} test images per seed",
        "stand_in": open_set("tiny-imagenet", "train").stand_in,
        "metric": "largest_difference", "unit": "1", "better": "lower", "ours": list(differences.values()),
        "criterion": "exact: no difference at all", "tolerance": 0.0,
        "arms": {f"{row}, {n}, error": [e[row][n] for e in each]
                 for row in ("published", *ROWS) for n in ("clean", *CORRUPTIONS)},
        "details": {
            "differences": differences,
            "errors_and_gap": {
                row: {n: sum(e[row][n] for e in each) / len(each) for n in ("clean", *CORRUPTIONS)}
                for row in ("published", "gap", *ROWS)
            },
            "differences_of_error": {
                name: {"clean": less(a, b, "clean"), f"five corruptions at severity {SEVERITY}":
                       less(a, b, *CORRUPTIONS)}
                for name, (a, b) in pairs.items()
            },
            "settings": {"steps": SETTINGS.steps, "lr": SETTINGS.lr, "epochs": EPOCHS, "fine_tuning_lr": LR},
            "reduced": f"images enlarged to {SIDE} pixels, not 227; {EPOCHS} epochs of {EACH} images each, "
            "through the last fire module and the classifier alone; five corruptions",
        },
    }  # fmt: skip
