"""`ccconv train`: one function from a configuration to a run folder."""

import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from paperkit import UserError, images, parallel, report, rng
from paperkit.device import choose
from paperkit.run import Run, RunOptions, checkpoints, fill, find, from_json, load_checkpoint, read_json
from torch import Tensor, nn
from torch.nn import functional as F

from ccconv import data
from ccconv.config import TrainConfig
from ccconv.layer import CCConv2d
from ccconv.model import Classifier, cost, parameters

TITLE = "From Discrete to Continuous Convolution Layers"
SUBTITLE = "arXiv 2006.11120"


def train(config: TrainConfig, options: RunOptions | None = None, preset: str = "") -> Path:
    """Train a classifier and return the run folder; with `options.resume` go on with a run that stopped.

    The weights depend on `config` alone: not on interruptions, and up to rounding not on the number of
    processes. Raises `UserError` for bad input and when a loss is not finite.
    """
    options = options or RunOptions()
    device = choose(options.device, options.precision)
    parallel.launch(device)
    if max(config.size, *config.draw, 1) <= 32 and device.device.type == "cpu":
        torch.set_num_threads(1)  # its steps are too short to share

    # What is learned, and from what.
    train_set, test_set = data.load(config), data.load(config, "test")
    net = build(config, train_set).to(device.device)
    optimiser = torch.optim.AdamW(net.parameters(), config.lr, weight_decay=config.decay)
    run = Run.open(
        "ccconv", TITLE, config, options, preset, config.seed,
        device=str(device.device), precision=device.precision, parameters=parameters(net),
        data=train_set.name,
    )  # fmt: skip
    if not run.begins(
        device=device,
        data=f"{train_set.name}, {train_set.classes} classes",
        network=f"{words(config)}, {parameters(net):,} parameters",
    ):
        return run.folder

    start = run.goes_on({"net": net}, optimiser)

    with run.guard():
        seen, since = 0, time.monotonic()
        for step in run.steps(start, config.steps):
            # One step, at one image size and one chain of hidden sizes.
            optimiser.param_groups[0]["lr"] = learning_rate(config, step)
            x, labels = data.batch(train_set, config, step)
            x, labels = x.to(device.device), labels.to(device.device)
            optimiser.zero_grad(set_to_none=True)
            with device.autocast():
                loss = F.cross_entropy(net(x, data.maps(config, step)), labels)
            loss.backward()
            parallel.average_gradients(net.parameters())
            loss = float(parallel.average(loss.detach()))
            run.check(step, loss)
            optimiser.step()
            seen += config.batch

            # Once in a while: a test, a line, a checkpoint.
            ended = step == config.steps
            telling, testing, saving = (
                step % every == 0 or ended
                for every in (config.log_every, config.test_every, config.save_every)
            )
            if testing:
                found = accuracy(predict(net, test_set, config.size, config.margin), test_set)
                run.log(step, loss=loss, accuracy=found)
                run.say(f"{step}/{config.steps}  {found:.1f} % of {test_set.name} at {config.size} px")
            elif telling:
                run.log(step, loss=loss)
            if telling:
                speed = seen / max(time.monotonic() - since, 1e-9)
                run.say(
                    f"{step}/{config.steps}  loss {loss:.4f}  {speed:,.0f} images/s  "
                    f"{run.eta(step, config.steps, start)}"
                )
            if saving or run.last:
                state = {"optimiser": optimiser.state_dict()}
                run.save(step, {"net": net.state_dict()}, state, config.keep)
    if run.main:
        draw(run.folder, net.cpu(), test_set, config)
        run.say(f"report    {report.write(run.folder, TITLE, SUBTITLE)}")
    return run.folder


# ---- the parts ---------------------------------------------------------------------------------------------


def build(config: TrainConfig, images_: data.Images) -> Classifier:
    """The network at step 0."""
    rng.seed_everything(config.seed)
    return Classifier(config, images_.pixels.shape[1], images_.classes)


def load(where: str | Path) -> tuple[Classifier, TrainConfig]:
    """The network of a run folder (or `latest`) at its last checkpoint, and its configuration."""
    folder = find("ccconv", where)
    config = from_json(TrainConfig, read_json(folder / "config.json"), str(folder / "config.json"))
    saved = checkpoints(folder)
    if not saved:
        raise UserError(f"{folder} has no checkpoint yet: go on with ccconv train --resume {folder}")
    net = build(config, data.load(config))
    fill(net, load_checkpoint(saved[-1])[0]["net"], folder)
    return net.eval(), config


def words(config: TrainConfig) -> str:
    """The network in a few words."""
    kind = f"cc {config.kernel}" if config.layer == "cc" else config.layer
    return f"{kind} {'-'.join(map(str, config.widths))}, maps {'-'.join(map(str, config.maps))}"


def learning_rate(config: TrainConfig, step: int) -> float:
    """A cosine from `lr` to 0."""
    return config.lr * (1 + math.cos(math.pi * (step - 1) / config.steps)) / 2


@torch.no_grad()
def predict(
    net: nn.Module,
    images_: data.Images,
    size: int,
    margin: int,
    maps: tuple[int, ...] | None = None,
    chunk: int = 500,
) -> Float[Tensor, "n k"]:
    """Logits of all images at a side, through feature maps of sides `maps` (None: the trained ones)."""
    device = next(net.parameters()).device
    net.eval()
    rows = torch.arange(len(images_.pixels)).split(chunk)
    found = [net(images_.at(size, part, margin).to(device), maps).float().cpu() for part in rows]
    net.train()
    return torch.cat(found)


def accuracy(logits: Float[Tensor, "n k"], images_: data.Images) -> float:
    """Per cent right."""
    return 100 * float((logits.argmax(1) == images_.labels).double().mean())


def draw(folder: Path, net: Classifier, test_set: data.Images, config: TrainConfig) -> None:
    """samples/: accuracy over image sizes, and the kernels of continuous layers as surfaces."""
    from ccconv.page import curve, surfaces

    sizes = sorted({round(config.size * share / 8) for share in range(4, 17)} - {0})
    found = {n: accuracy(predict(net, test_set, n, config.margin), test_set) for n in sizes}
    images.write(folder / "samples" / "accuracy over image size.png", curve(found, config))
    if config.layer != "cc":
        return
    sides = config.draw or (config.size,)
    shown = sorted({sides[0], config.size, sides[-1]})
    for number, block in enumerate(net.blocks):
        own = config.maps[number - 1]
        before = shown if number == 0 else sorted({max(1, own * share // 4) for share in (3, 4, 5)})
        assert isinstance(block.conv, CCConv2d)
        sheet = surfaces(block.conv, before, config.maps[number])
        images.write(folder / "samples" / f"kernels of layer {number + 1}.png", sheet)


def describe(config: TrainConfig) -> dict[str, str]:
    """What `--dry-run` adds: the data, the number of parameters, the number of epochs."""
    train_set = data.load(replace(config, download=False))
    net = build(config, train_set)
    epochs = config.steps * config.batch / len(train_set.pixels)
    return {
        "data": f"{train_set.name}, {train_set.classes} classes",
        "network": f"{words(config)}, {parameters(net):,} parameters, {cost(net, config.size):,} FLOPs",
        "length": f"{config.steps:,} steps of {config.batch} images ({epochs:.0f} epochs)",
    }
