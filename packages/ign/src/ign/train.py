"""`ign train`: one function from a configuration to a run folder."""

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from paperkit import UserError, images, parallel, report, rng
from paperkit.device import choose
from paperkit.run import Run, RunOptions
from torch import Tensor

from ign import data
from ign.config import TrainConfig
from ign.method import Metric, Naive, Noise, Objective, Shared, applications
from ign.model import (
    Network,
    batch_statistics,
    copy_statistics,
    estimate_statistics,
    network,
    update_average,
)
from ign.monitor import Look, look

TITLE = "Idempotent Generative Network"
ADVICE = "try --norm batch, or a lower --tight or --lr"
STATISTICS = (16, 250)
"""Batches, and images in each, from which the norms' statistics are estimated for use after training."""


def train(config: TrainConfig, options: RunOptions | None = None, preset: str = "") -> Path:
    """Train f and return the run folder; with `options.resume` go on with a run that stopped.

    The weights depend on `config` alone: not on interruptions, and up to rounding not on the number of
    processes. Raises `UserError` for bad input and when a loss is not finite.
    """
    options = options or RunOptions()
    device = choose(options.device, options.precision)
    parallel.launch(device)
    if config.net == "mlp":
        torch.set_num_threads(1)  # its steps are too short to share

    # What is learned, and from what.
    train_set = data.load(config)
    rng.seed_everything(config.seed)
    net = network(config, train_set.shape).to(device.device)
    average = copy.deepcopy(net).requires_grad_(False)
    noise = Noise(config.noise, train_set.shape).fit(train_set.floats().split(1000)).to(device.device)
    if device.device.type == "cuda":
        net, average = (module.to(memory_format=torch.channels_last) for module in (net, average))
    engine = fastest(config) if config.engine == "auto" else config.engine
    if engine == "naive":
        learner = Naive(net, copy.deepcopy(net), config.routing)
    else:
        learner = Shared(net, joint=engine == "joint")
    fused = device.device.type in ("cuda", "cpu")
    optimiser = torch.optim.Adam(net.parameters(), config.lr, betas=(0.5, 0.999), fused=fused)

    run = Run.open(
        "ign", TITLE, config, options, preset, config.seed,
        device=str(device.device), precision=device.precision, parameters=parameters(net),
        data=train_set.name, shape=list(train_set.shape),
    )  # fmt: skip
    if not run.begins(
        device=device,
        data=train_set.name,
        network=f"{config.net}, {parameters(net):,} parameters, engine {engine}",
    ):
        return run.folder

    start = run.goes_on({"net": net, "average": average}, optimiser)

    def evaluated() -> Network:
        return average if config.ema else net

    def save(step: int) -> None:
        if config.statistics == "common":
            copy_statistics(average, net)
        else:
            settle(evaluated(), noise, train_set, config.seed)
        weights = {"net": net.state_dict(), "average": evaluated().state_dict(), "noise": noise.state_dict()}
        run.save(step, weights, {"optimiser": optimiser.state_dict()}, config.keep)

    with run.guard():
        if not start:
            draw(run, 0, examine(evaluated(), noise, train_set, config.metric)[1])
        seen, since = 0, time.monotonic()
        for step in run.steps(start, config.steps):
            # One step: all three losses, one optimiser step (or two, one for each of the theorem's players).
            optimiser.param_groups[0]["lr"] = learning_rate(config, step)
            clean = data.batch(train_set, config, step)
            x = data.jitter(clean, config, step)
            target = (clean if config.jitter_target == "clean" else x).to(device.device)
            z = parallel.shard(data.white(noise, config.batch, config.seed, step)).to(device.device)
            x, z = x.to(device.device), noise(z)
            if config.dropout:
                rng.seed_everything(config.seed, f"dropout {step} {parallel.world()[0]}")
            total, values = objective(config, step), []
            for player in total.players() if config.alternate else (total,):
                optimiser.zero_grad(set_to_none=True)
                with device.autocast():
                    losses = learner.step(x, z, player, target)
                parallel.average_gradients(net.parameters())
                values.append(parallel.average(torch.stack([losses.rec, losses.idem, losses.tight])))
                run.check(step, *values[-1].tolist(), advice=ADVICE)
                optimiser.step()
            update_average(average, net, min(config.ema, step / (step + 9)))
            seen += config.batch

            # Once in a while: a look at samples, a line, a picture, a checkpoint.
            ended = step == config.steps
            telling, drawing, saving = (
                step % every == 0 or ended
                for every in (config.log_every, config.sample_every, config.save_every)
            )
            signs = Look()
            if drawing or saving:
                signs, strips = examine(evaluated(), noise, train_set, config.metric)
                if drawing:
                    draw(run, step, strips)
            (rec, _, tight), (_, idem, _) = values[0].tolist(), values[-1].tolist()
            if telling or drawing or saving:
                ratio = idem / max(rec, 1e-12)
                run.log(step, rec=rec, idem=idem, tight=tight, ratio=ratio, **signs.figures())
            if telling:
                speed = seen / max(time.monotonic() - since, 1e-9)
                run.say(
                    f"{step}/{config.steps}  d(x) {rec:.4f}  d(f(z)) {idem:.4f}  L_tight {tight:.4f}  "
                    f"{speed:,.0f} images/s  {run.eta(step, config.steps, start)}"
                )
            if signs.warning:
                run.say(f"warning   collapse at step {step}: {signs.warning}")
                if config.stop_on_collapse:
                    raise UserError(f"collapse at step {step}: {signs.warning}; {run.left()}; {ADVICE}")
            if saving or run.last:
                save(step)
    if run.main:
        run.say(f"samples   {sorted((run.folder / 'samples').glob('*.png'))[-1]}")
        run.say(f"report    {report.write(run.folder, TITLE, 'arXiv 2311.01462')}")
    return run.folder


# ---- the parts ---------------------------------------------------------------------------------------------


def parameters(net: torch.nn.Module) -> int:
    """How many numbers are learned."""
    return sum(parameter.numel() for parameter in net.parameters())


def fastest(config: TrainConfig) -> Literal["shared", "joint"]:
    """The engine that `auto` stands for: the faster one, as `ign bench step` measured on one CPU core.

    Both are exact, as all norms here know the roles. One call of twice the size wins where layers are small;
    batch norm must take larger maps apart and copy them together again.
    """
    small = config.net == "mlp" or (config.net == "dcgan" and config.norm != "batch")
    return "joint" if small else "shared"


def objective(config: TrainConfig, step: int) -> Objective:
    """The losses' weights at a step (from 1), with the ramps."""
    idem, tight = config.idem, config.tight
    if step < config.idem_ramp:
        idem = config.idem * step / config.idem_ramp
    if config.tight_start >= 0 and step < config.tight_ramp:
        tight = config.tight_start + (config.tight - config.tight_start) * step / config.tight_ramp
    return Objective(
        config.rec, idem, tight, config.metric, config.clamp, config.reference, config.clamp_gradient
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Constant, or falling linearly to `lr_final` over the second half."""
    if config.lr_final < 0:
        return config.lr
    fall = max(0.0, 2 * step / config.steps - 1)
    return config.lr + (config.lr_final - config.lr) * fall


def settle(net: Network, noise: Noise, train_set: data.Images, seed: int) -> None:
    """Estimate the norms' statistics of each role, with draws that depend on the seed alone."""
    if not net.norms():
        return
    batches, size = STATISTICS
    device = next(net.parameters()).device
    pairs = []
    for index in range(batches):
        rows = torch.randint(
            len(train_set.pixels), (size,), generator=rng.generator(seed, index, "statistics")
        )
        x = images.to_float(train_set.pixels[rows])
        z = noise(data.white(noise, size, seed, index, "statistics").to(device))
        pairs.append((x.to(device), z))
    estimate_statistics(net, pairs)


@torch.no_grad()
def examine(
    net: Network, noise: Noise, train_set: data.Images, metric: Metric
) -> tuple[Look, dict[str, Tensor]]:
    """256 samples under batch statistics: their signs of collapse, and rows z, f(z), f(f(z)) … x, f(x).

    Under several processes each makes the same ones, as the norms wait for all of them.
    """
    device = next(net.parameters()).device
    z = noise(data.white(noise, 256, 0, 0, "picture").to(device))
    rows = torch.randperm(len(train_set.pixels), generator=rng.generator(0, 0, "picture"))[:256]
    x = images.to_float(train_set.pixels[rows]).to(device)
    with batch_statistics(net):
        first, second, third = applications(net, z, 3)
        mirrored = net(x, ("x",))
    strips = {"z": z, "f(z)": first, "f(f(z))": second, "f(f(f(z)))": third, "x": x, "f(x)": mirrored}
    strips = {caption: strip.cpu() for caption, strip in strips.items()}
    signs = look(strips["f(z)"], strips["f(f(z))"], strips["x"], train_set.labels[rows], metric)
    return signs, strips


def draw(run: Run, step: int, strips: dict[str, Tensor], columns: int = 12) -> None:
    """samples/<step>.png."""
    if run.main:
        shown = {caption: list(strip[:columns]) for caption, strip in strips.items()}
        shown["z"] = list(data.visible(strips["z"])[:columns])
        images.write(run.folder / "samples" / f"{step:08d}.png", images.rows(shown))


def describe(config: TrainConfig) -> dict[str, str]:
    """What `--dry-run` adds: the data, the number of parameters, the number of epochs."""
    train_set = data.load(replace(config, download=False))
    net = network(config, train_set.shape)
    epochs = config.steps * config.batch / len(train_set.pixels)
    return {
        "data": f"{train_set.name}, images {'x'.join(map(str, train_set.shape))}",
        "network": f"{config.net}, {parameters(net):,} parameters",
        "length": f"{config.steps:,} steps of {config.batch} images ({epochs:.0f} epochs)",
    }
