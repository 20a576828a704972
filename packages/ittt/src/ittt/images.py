"""Corrupted images (sections 4.2 and 4.7): data, networks, training, and rows of errors over corruptions.

Digits, MNIST, Fashion-MNIST and CIFAR-10, a fixed draw of each. The prediction is fed back as in the public
CIFAR code: a linear layer of it is added to the feature maps in the middle of the network.
"""

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from paperkit import UserError, parallel, report, rng
from paperkit.data import batch_indices, open_set
from paperkit.device import choose
from paperkit.images import to_float
from paperkit.run import Run, RunOptions, checkpoints, fill, find, from_json, load_checkpoint, read_json
from torch import Tensor, nn
from torch.nn import functional as F

from ittt.baselines import method
from ittt.corruptions import corrupt
from ittt.guard import harmless_lr
from ittt.image_config import ImageConfig
from ittt.loop import decay, descend, go_through
from ittt.model import ITTT
from ittt.settings import Settings
from ittt.weights import has_batch_norm, restate

TITLE = "IT3: Idempotent Test-Time Training"
SUBTITLE = "arXiv 2410.04201"
CLASSES = 10
ROWS = {
    "none": "not adapted",
    "bn": "batch statistics only",
    "it3": "adapted",
    "it3-bn": "adapted, batch statistics",
    "un-frozen": "adapted, F not frozen",
}
"""What is printed at the end; rows of batch statistics only for networks with batch norm."""


# ---- data --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """Images in [0, 1] with their classes: to learn from, held out of these, and test images."""

    name: str
    stand_in: bool
    x: Float[Tensor, "n c h w"]
    y: Int64[Tensor, " n"]
    x_clean: Float[Tensor, "k c h w"]
    y_clean: Int64[Tensor, " k"]
    x_test: Float[Tensor, "m c h w"]
    y_test: Int64[Tensor, " m"]


def load(config: ImageConfig) -> Pictures:
    """The images of a configuration; the same draw for every seed."""
    return _load(config.set_name, config.train, config.held_out, config.test)


@cache
def _load(data: str, train: int, held_out: int, test: int) -> Pictures:
    learned, tested = open_set(data, "train"), open_set(data, "test")
    if held_out >= len(learned):
        raise UserError(f"--held-out {held_out:,} leaves no image of {learned} to learn from")
    kept, count = min(train, len(learned) - held_out), min(test, len(tested))
    x, y = learned.subset(kept + held_out).tensor()
    x_test, y_test = tested.subset(count).tensor()
    x, x_test = to_float(x, 0.0, 1.0), to_float(x_test, 0.0, 1.0)
    words = (
        f"{learned.name}, {kept:,} of {len(learned):,} training and {count:,} of {len(tested):,} test images"
    )
    return Pictures(
        words, learned.stand_in, x[:kept], y[:kept], x[kept:], y[kept:], x_test, y_test
    )  # fmt: skip


# ---- networks ----------------------------------------------------------------------------------------------


class Standard(nn.Module):
    """Images in training standard deviations of each channel; `signal` more channels stay as they are."""

    mean: Tensor
    std: Tensor

    def __init__(self, x: Float[Tensor, "n c h w"], signal: int = 0):
        super().__init__()
        more = (0, 0, 0, 0, 0, signal)
        self.register_buffer("mean", F.pad(x.mean((0, 2, 3), keepdim=True)[0], more))
        self.register_buffer("std", F.pad(x.std((0, 2, 3), keepdim=True)[0], more, value=1.0))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return (x - self.mean) / self.std


def convnet(pictures: Pictures, norm: str, widths: tuple[int, int, int] = (16, 32, 32)) -> nn.Sequential:
    """Three strided convs, each with a norm and ReLU, and a linear layer; the layer `INJECTED` takes y."""
    side, layers = pictures.x.shape[-1], [Standard(pictures.x)]
    before = pictures.x.shape[1]
    for width, kernel in zip(widths, (5, 3, 3), strict=True):
        layers += [nn.Conv2d(before, width, kernel, 2, kernel // 2), normed(norm, width), nn.ReLU()]
        before, side = width, (side + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side * side, CLASSES))


INJECTED = "4"
"""The second conv of `convnet`."""


def normed(norm: str, width: int) -> nn.Module:
    """A norm of feature maps by name: none, group (of four channels each) or batch."""
    if norm == "none":
        return nn.Identity()
    return nn.GroupNorm(width // 4, width) if norm == "group" else nn.BatchNorm2d(width)


def resnet18(pictures: Pictures, norm: str) -> nn.Sequential:
    """torchvision's ResNet-18 whose stem keeps the size, for images of 28 to 64 pixels; y enters layer2."""
    from torchvision import models  # here: importing torchvision takes seconds

    net = models.resnet18(num_classes=CLASSES, norm_layer=lambda width: normed(norm, width))
    net.conv1 = nn.Conv2d(pictures.x.shape[1], 64, 3, 1, 1, bias=False)
    net.maxpool = nn.MaxPool2d(1)
    return nn.Sequential(Standard(pictures.x), net)


def layers(config: ImageConfig, pictures: Pictures) -> nn.Sequential:
    """The network without the signal, at step 0."""
    small = config.net == "small"
    return convnet(pictures, config.norm) if small else resnet18(pictures, config.norm)


def build(config: ImageConfig, pictures: Pictures) -> ITTT:
    """f at step 0."""
    rng.seed_everything(config.seed)
    small, model = config.net == "small", layers(config, pictures)
    neutral = config.neutral if config.neutral in ("uniform", "learned") else float(config.neutral)
    return ITTT(
        model, "feature", layer=INJECTED if small else "1.layer2", outputs=CLASSES, task="classes",
        neutral=neutral, presence=config.presence, smoothing=config.smoothing, width=0 if small else 128,
    )  # fmt: skip


# ---- training ----------------------------------------------------------------------------------------------


def train(config: ImageConfig, options: RunOptions | None = None, preset: str = "") -> Path:
    """Train f (Eq. 2), adapt to corrupted test images, and return the run folder.

    With `options.resume` go on with a run that stopped; the weights depend on `config` alone. Raises
    `UserError` for bad input and when a loss is not finite.
    """
    options = options or RunOptions()
    device = choose(options.device, options.precision)
    parallel.launch(device)
    if device.device.type == "cpu" and config.net == "small":
        torch.set_num_threads(1)  # its layers are too small to share

    # What is learned, and from what.
    pictures = load(config)
    net = build(config, pictures).to(device.device)
    optimiser = torch.optim.Adam(net.parameters(), config.lr)
    steps = length(config, pictures)
    run = Run.open(
        "ittt", TITLE, config, options, preset, config.seed,
        device=str(device.device), precision=device.precision, parameters=parameters(net), data=pictures.name,
    )  # fmt: skip
    if not run.begins(
        device=device,
        data=f"{pictures.name}; {len(pictures.x_clean)} held out",
        network=f"{config.net}, norm {config.norm}, {parameters(net):,} parameters",
    ):
        return run.folder

    start = run.goes_on({"net": net}, optimiser)

    def step_of(step: int) -> dict[str, float]:
        """One step of Eq. 2, two passes; the last one is followed by new statistics."""
        decay(optimiser, config.lr, step, steps)
        chosen = parallel.shard(
            torch.from_numpy(batch_indices(len(pictures.x), config.batch, config.seed, step - 1))
        )
        x, y = pictures.x[chosen].to(device.device), pictures.y[chosen].to(device.device)
        with device.autocast():
            loss = net.loss(x, y)
        found = descend(optimiser, {"loss": loss}, partial(run.check, step))
        if step == steps and config.restate and has_batch_norm(net):
            restate(net, pictures.x.to(device.device).split(500))
        return found

    net.train()
    look = partial(examine, net, pictures.x_clean, pictures.y_clean)
    go_through(
        run, config, optimiser, start, steps, step_of, look, lambda: {"net": net.state_dict()}, "images"
    )
    if run.main:
        net.eval()
        told = table(errors(net, pictures, adapted_config(net, pictures, config, run)), config)
        run.say(told)
        run.say(f"report    {report.write(run.folder, TITLE, SUBTITLE, notes=told)}")
    return run.folder


# ---- the parts ---------------------------------------------------------------------------------------------


def length(config: ImageConfig, pictures: Pictures) -> int:
    """Steps in all: whole batches of each epoch."""
    return config.epochs * max(1, len(pictures.x) // config.batch)


def train_plain(config: ImageConfig) -> nn.Module:
    """A plain twin on the CPU: the same layers, seed, order and rates, without the signal and its pass."""
    pictures = load(config)
    rng.seed_everything(config.seed, "plain")
    net = layers(config, pictures)
    optimiser, steps = torch.optim.Adam(net.parameters(), config.lr), length(config, pictures)
    for step in range(1, steps + 1):
        decay(optimiser, config.lr, step, steps)
        chosen = torch.from_numpy(batch_indices(len(pictures.x), config.batch, config.seed, step - 1))
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(net(pictures.x[chosen]), pictures.y[chosen]).backward()
        optimiser.step()
    return net.eval().requires_grad_(False)


def restored(where: str | Path) -> tuple[ITTT, ImageConfig]:
    """The network of a run folder (or `latest`) at its last checkpoint, ready to be asked, and its recipe."""
    folder = find("ittt", where)
    config = from_json(ImageConfig, read_json(folder / "config.json"), str(folder / "config.json"))
    saved = checkpoints(folder)
    if not saved:
        raise UserError(f"{folder} has no checkpoint yet: go on with ittt train --resume {folder}")
    net = build(config, load(config))
    fill(net, load_checkpoint(saved[-1])[0]["net"], folder)
    return net.eval().requires_grad_(False), config


def wrong(logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1 where the likeliest class is not the label, else 0."""
    return (logits.argmax(1) != y).float()


@torch.no_grad()
def examine(net: ITTT, x: Float[Tensor, "n c h w"], y: Int64[Tensor, " n"]) -> dict[str, float]:
    """Error in per cent, cross-entropy and mean gap, in evaluation mode."""
    was = net.training
    net.eval()
    device = next(net.parameters()).device
    parts = [(net(part.to(device)), net.gap(part.to(device))) for part in x.split(500)]
    logits, gaps = (torch.cat(kind).cpu() for kind in zip(*parts, strict=True))
    net.train(was)
    return {
        "error": 100 * float(wrong(logits, y).mean()),
        "cross_entropy": float(F.cross_entropy(logits, y)),
        "gap": float(gaps.mean()),
    }


def adapted_config(net: ITTT, pictures: Pictures, config: ImageConfig, run: Run) -> ImageConfig:
    """The configuration, with the learning rate of the no-harm rule where it is asked for."""
    if not config.no_harm:
        return config
    adapt = without_harm(net, pictures, config.adapt, config.adapt_batch)
    run.say(f"no harm   lr {adapt.lr:g}")
    return replace(config, adapt=adapt)


def without_harm(net: ITTT, pictures: Pictures, settings: Settings, size: int) -> Settings:
    """The settings with the learning rate of the no-harm rule, for batches of `size` (0: all images)."""
    device = next(net.parameters()).device
    parts = (batches(part.to(device), size or len(part)) for part in (pictures.x_clean, pictures.y_clean))
    return replace(settings, lr=harmless_lr(net, list(zip(*parts, strict=True)), settings, wrong))


def errors(net: ITTT, pictures: Pictures, config: ImageConfig) -> dict[str, dict[str, float]]:
    """Error in per cent of each of `ROWS` on clean and on corrupted test images."""
    size, found = config.adapt_batch or len(pictures.x_test), {}
    device = next(net.parameters()).device
    tests = {"clean": pictures.x_test} | {
        name: corrupt(pictures.x_test, name, config.severity) for name in config.corruptions
    }
    for row in ROWS:
        if config.norm != "batch" and row in ("bn", "it3-bn"):
            continue
        settings = replace(config.adapt, norm="eval") if row == "it3" else config.adapt
        calibration = None
        if config.adapt.gate or config.adapt.abstain:
            scored = "batch" if row == "it3-bn" or settings.norm == "batch" else "eval"
            calibration = net.calibrate([pictures.x_clean.to(device)], scored)
        predict = method(row, net, settings, calibration=calibration)
        found[row] = {}
        for name, x in tests.items():
            parts = batches(x.to(device), size)
            logits = torch.cat([predict(part) for part in parts]).cpu()
            found[row][name] = 100 * float(wrong(logits, pictures.y_test).mean())
    return found


def batches(x: Tensor, size: int) -> list[Tensor]:
    """Parts of `size` samples; one that is left over alone joins the last, as it has no batch statistics."""
    parts = list(x.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def table(found: dict[str, dict[str, float]], config: ImageConfig) -> str:
    """The errors as text."""
    names = next(iter(found.values()))
    lines = [
        f"error in per cent on the test images of {config.data}, corrupted at severity {config.severity}",
        " " * 26 + "".join(f"{name:>11}" for name in names),
    ]
    for row, values in found.items():
        lines.append(f"{ROWS[row]:26}" + "".join(f"{value:11.1f}" for value in values.values()))
    return "\n".join(lines)


def parameters(net: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(parameter.numel() for parameter in net.parameters())


def describe(config: ImageConfig) -> dict[str, str]:
    """What `--dry-run` adds: the data, the network, the length."""
    pictures = load(config)
    net = build(config, pictures)
    return {
        "data": pictures.name,
        "network": f"{config.net}, norm {config.norm}, {parameters(net):,} parameters",
        "length": f"{length(config, pictures):,} steps of {config.batch} images ({config.epochs} epochs)",
    }
