"""The judge of samples: a small convolutional classifier of the same data, trained once and kept.

Its confidence says whether a sample is a readable digit, its 64 penultimate features carry KID and the like.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from paperkit import UserError, images, rng
from paperkit.data import batch_indices
from paperkit.run import load_weights, runs_folder
from torch import Tensor, nn

from ign.data import Images

STEPS = {"small": (1500, 64), "large": (3000, 128)}
"""(steps, batch) of training, below and from 10,000 images on."""
LARGE = 16
"""From this side on the maps are halved after the first convolution: a quarter of the arithmetic."""
CHUNK = 100
"""Images per pass of the judge: larger maps leave the processor's caches and cost twice the time."""
DEAD = 1e-6
"""Deviation at or below which a feature counts as constant."""
SHIFT = {8: 1, 28: 2, 32: 2}
"""Pixels of random shift in training, by image side."""


class Classifier(nn.Module):
    """Three convolutions, 64 features, one linear layer. Images are (n, c, h, w) in [-1, 1]."""

    def __init__(self, channels: int, side: int, classes: int):
        super().__init__()
        early = side >= LARGE
        inner = side // 8 if early else side // 4
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU(),
            *([nn.MaxPool2d(2)] if early else []),
            nn.Conv2d(32, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, 1, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * inner * inner, 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, classes)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.head(self.body(x))


@dataclass(frozen=True)
class Judge:
    """A trained classifier in eval mode with its accuracy on held-out images."""

    net: Classifier
    accuracy: float
    spread: Float[Tensor, " 64"]
    """Deviation of each feature over real training images, by which features are divided. Infinite for a
    feature that is constant over them (a dead unit): it has no scale, so it is left out."""

    @torch.no_grad()
    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 64"]:
        """Penultimate features, each divided by its deviation over the real training images."""
        return torch.cat([self.net.body(part) for part in x.split(CHUNK)]) / self.spread

    @torch.no_grad()
    def probabilities(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Class probabilities."""
        return torch.cat([self.net(part).softmax(1) for part in x.split(CHUNK)])


def judge(train: Images, test: Images, cache: Path | None = None) -> Judge:
    """The classifier of a labelled set; trained on first use (seconds to a minute) and kept in `cache`.

    Raises `UserError` for a set without labels.
    """
    classes = int(train.labels.max()) + 1
    if classes < 2:
        raise UserError(f"{train.name} has no labels: the judge needs a labelled data set")
    channels, side, _ = train.shape
    name = "".join(
        c if c.isalnum() else "-" for c in f"{train.name}-{'x'.join(map(str, train.shape))}".lower()
    )
    path = (cache or runs_folder("ign") / "judges") / f"{name}.safetensors"
    net = Classifier(channels, side, classes)
    if path.exists():
        from paperkit.run import fill

        fill(net, load_weights(path), path)
    else:
        _fit(net, train)
        _keep(net, path)
    net.eval().requires_grad_(False)
    hits = torch.cat([net(part).argmax(1) for part in test.floats().split(CHUNK)]) == test.labels
    features = torch.cat([net.body(part) for part in train.floats()[:10_000].split(CHUNK)])
    spread = features.std(0)
    spread = torch.where(spread > DEAD, spread, torch.inf)
    return Judge(net, float(hits.float().mean()), spread)


def _fit(net: Classifier, train: Images) -> None:
    """Adam, one-cycle learning rate, random shifts; deterministic."""
    steps, size = STEPS["small" if len(train.pixels) < 10_000 else "large"]
    with torch.random.fork_rng(devices=[]):
        rng.seed_everything(0, "judge")
        for module in net.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # pyright: ignore[reportCallIssue]
        optimiser = torch.optim.Adam(net.parameters(), 1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        net.train()
        for step in range(steps):
            rows = torch.from_numpy(batch_indices(len(train.pixels), size, 0, step))
            x = _shifted(images.to_float(train.pixels[rows]), step)
            loss = F.cross_entropy(net(x), train.labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()


def _shifted(x: Float[Tensor, "n c h w"], step: int) -> Float[Tensor, "n c h w"]:
    reach = SHIFT.get(x.shape[-1], x.shape[-1] // 16)
    down, right = torch.randint(-reach, reach + 1, (2,), generator=rng.generator(0, step, "shift")).tolist()
    padded = F.pad(x, (reach,) * 4, value=-1.0)
    height, width = x.shape[-2:]
    return padded[..., reach + down : reach + down + height, reach + right : reach + right + width]


def _keep(net: Classifier, path: Path) -> None:
    from paperkit.run import atomic
    from safetensors.torch import save

    with atomic(path) as stream:
        stream.write(save({key: value.contiguous() for key, value in net.state_dict().items()}))


def labels_of(judge_: Judge, x: Float[Tensor, "n c h w"]) -> Int64[Tensor, " n"]:
    """The judge's class of each image."""
    return judge_.probabilities(x).argmax(1)
