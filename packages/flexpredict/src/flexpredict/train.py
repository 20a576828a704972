"""`flexpredict train`: one function from a configuration to a run folder, with probes at the end."""

import copy
import time
from pathlib import Path

import torch
from paperkit import UserError, images, parallel, report
from paperkit.device import choose
from paperkit.run import Run, RunOptions, fill, write_json
from torch import nn

from flexpredict import data, diagnostics, fsdp, method
from flexpredict.checkpoints import moments, own_predictor, read, sizes_of
from flexpredict.config import TrainConfig
from flexpredict.model import Encoder, Learner
from flexpredict.probing import probe_set, table
from flexpredict.step import build, first_state, gradient, groups, hidden, schedule

TITLE = "StoP / FlexPredict: stochastic positions in masked image modelling"
SUBTITLE = "arXiv 2308.00566"
SHOWN = 12
"""Images in a picture."""
PROBES = "probes.json"
"""File of a run with the figures of its last table."""


def train(config: TrainConfig, options: RunOptions | None = None, preset: str = "") -> Path:
    """Train encoder and predictor, probe the averaged encoder, and return the run folder.

    With `options.resume` go on with a run that stopped; the weights depend on `config` alone. Raises
    `UserError` for bad input and when the loss is not finite.
    """
    options = options or RunOptions()
    device = choose(options.device, options.precision)
    parallel.launch(device)
    if device.device.type == "cpu" and config.net.width < 256:
        torch.set_num_threads(1)  # its steps are too short to share

    # What is learned, and from what.
    share = len(parallel.shard(torch.arange(config.batch)))
    if share % config.accumulate:
        raise UserError(
            f"--accumulate {config.accumulate} does not divide a process's {share} images: choose a "
            f"divisor of {share}"
        )
    source = data.open_source(config)
    learner, average = first_state(config, source.shape, device.device)
    optimiser = torch.optim.AdamW(
        groups(learner, config), config.lr, fused=device.device.type in ("cuda", "cpu")
    )
    if config.weights:
        start_from(config.weights, learner, average, optimiser)
    initial = copy.deepcopy(average)
    run = Run.open(
        "flexpredict", TITLE, config, options, preset, config.seed,
        device=str(device.device), precision=device.precision, parameters=parameters(learner),
        data=str(source.set), shape=list(source.shape), noise_std=learner.predictor.position.std,
    )  # fmt: skip
    if not run.begins(
        device=device,
        data=source.set,
        network=words(learner),
        positions=position_words(config, learner),
    ):
        return run.folder
    start = run.goes_on({"learner": learner, "average": average}, optimiser)
    shown, followed = learner, average  # whole, for what is told and saved
    if fsdp.wanted() and parallel.world()[1] > 1:
        shown, followed = copy.deepcopy((learner, average))
        fsdp.share_out(learner, average, optimiser)
        run.say("sharded   weights, gradients and moments over the processes (FSDP)")
    probe = probe_set(config, source)
    if probe is None:
        run.say("probes    none: the set has no labels, or no test split")

    with run.guard():
        seen, since = 0, time.monotonic()
        stream = data.batches(source, config, start)
        for step in run.steps(start, config.steps):
            # One step: hide blocks, predict them at noisy positions, follow the encoder slowly.
            schedule(optimiser, config, step)
            x = next(stream).to(device.device, non_blocking=True)
            chosen, noise = hidden(config, learner, step)
            loss, variance = gradient(config, learner, average, x, chosen, noise, device)
            value = float(loss)
            run.check(step, value, advice="try a lower --lr or a longer --warmup")
            optimiser.step()
            method.update_average(average, learner.encoder, method.momentum(step, config.steps, *config.ema))
            seen += config.batch

            # Once in a while: a line, a probe, a checkpoint.
            ended = step == config.steps
            telling, probing, saving = (
                step % every == 0 or ended
                for every in (config.log_every, config.probe_every, config.save_every)
            )
            if probing or saving or run.last:
                fsdp.gathered(learner, shown)
                fsdp.gathered(average, followed)
            if telling or probing:
                found = {
                    "loss": value,
                    "target_variance": float(variance),
                    "context": chosen.context.shape[1],
                }
                if probing:
                    found |= diagnostics.figures(shown.predictor)
                    found |= probe.quick(followed) if probe else {}
                run.log(step, **found)
                speed = seen / max(time.monotonic() - since, 1e-9)
                run.say(
                    f"{step}/{config.steps}  loss {value:.4f}  target variance {float(variance):.3f}"
                    + (f"  20-NN {found['knn']:.1f} %" if "knn" in found else "")
                    + f"  {speed:,.0f} images/s  {run.eta(step, config.steps, start)}"
                )
                if warned := stuck(config, step, float(variance)):
                    run.say(f"warning   {warned}")
            if probing and source.memory and run.main and config.position.source != "none":
                draw(run, step, shown, source, config)
            if saving or run.last:
                weights = {
                    "learner": shown.state_dict(), "average": followed.state_dict(),
                    "scale": vars(source.scale),
                }  # fmt: skip
                run.save(step, weights, {"optimiser": fsdp.whole(optimiser.state_dict())}, config.keep)
    fsdp.gathered(average, followed)
    if run.main:
        found = probe.compare(initial, followed) if probe else {}
        write_json(run.folder / PROBES, found)
        told = ending(found, run.metrics()[-1]["target_variance"])
        run.say(told)
        run.say(f"report    {report.write(run.folder, TITLE, SUBTITLE, notes=told)}")
    return run.folder


# ---- the parts ---------------------------------------------------------------------------------------------


def start_from(file: str, learner: Learner, average: Encoder, optimiser: torch.optim.Optimizer) -> None:
    """Fill the networks from a checkpoint file, and AdamW's moments where a released file has them.

    Raises `UserError` that says what the file holds.
    """
    found = read(file)
    sizes, own = found.sizes(), sizes_of(learner.encoder.state_dict(), "the configuration")
    if sizes != own:
        raise UserError(f"--weights {file}: this file is {sizes}; the configuration is {own}")
    fill(learner.encoder, found.encoder_weights("context"), file)
    fill(average, found.encoder_weights("target"), file)
    if found.predictor is not None:
        fill(learner.predictor, own_predictor(found.predictor), file)
    known = dict(learner.named_parameters())
    for name, state in moments(found).items():
        if name in known and known[name].requires_grad:
            device = known[name].device
            optimiser.state[known[name]] = {key: value.float().to(device) for key, value in state.items()}


def stuck(config: TrainConfig, step: int, variance: float) -> str:
    """What to say of targets that are alike for all images, '' where nothing is wrong or it is too early."""
    late = step >= diagnostics.STUCK_AFTER * config.steps
    if config.objective != "features" or not late or variance >= diagnostics.STUCK:
        return ""
    return (
        f"the targets hardly differ between images (variance {variance:.2f}): the encoder tells positions "
        "only, and a low loss means just that; give it more --steps, or a higher --lr"
    )


def draw(run: Run, step: int, learner: Learner, source: data.Source, config: TrainConfig) -> None:
    """samples/<step>.png: where the predictor is unsure."""
    assert source.memory is not None
    seen = source.memory.pixels[:SHOWN]
    device = learner.encoder.pos_embed.device
    picture = diagnostics.uncertainty_picture(learner, seen, source.scale(seen.to(device)), config.masks)
    images.write(run.folder / "samples" / f"{step:08d}.png", picture)


def ending(probes: dict[str, dict[str, float]], variance: float) -> str:
    """The last words of a run: probes beside random weights and raw pixels, and the targets' variance."""
    told = table(probes) if probes else "no probe"
    return (
        f"{told}\ntarget variance {variance:.2f} (0 = the targets tell positions only, and a low loss means "
        "nothing; 1 = content only)"
    )


def parameters(module: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def words(learner: Learner) -> str:
    """The networks, as printed."""
    rows, columns = learner.encoder.grid
    return (
        f"encoder of {parameters(learner.encoder):,} parameters on {rows}x{columns} patches, "
        f"predictor of {parameters(learner.predictor):,}"
    )


def position_words(config: TrainConfig, learner: Learner) -> str:
    """The noise, as printed: standard deviation and variance, as the two are easily mistaken."""
    position = learner.predictor.position
    if position.source == "none":
        return "no noise (deterministic)"
    return (
        f"{position.source}, standard deviation {position.std:.4g} (variance {position.std**2:.4g}), "
        f"mode {position.mode}, {config.position.tokens} tokens"
    )


def describe(config: TrainConfig) -> dict[str, str]:
    """What `--dry-run` adds: the data, the networks, the number of epochs.

    A set that is not at hand is said to be missing where the recipe alone tells the images' size.
    """
    length = f"{config.steps:,} steps of {config.batch:,} images"
    side = config.size or data.RECIPE_SIZE
    shape = (3, side, side)
    try:
        opened = data.open_split(config, "train", download=False)
    except UserError as error:
        if config.recipe == "none":
            raise
        said = f"not at hand: {error}"
    else:
        if config.recipe == "none":
            first = opened[0][0]
            shape = (len(first), config.size or first.shape[1], config.size or first.shape[2])
        said = f"{opened}, images {'x'.join(map(str, shape))}"
        length += f" ({config.steps * config.batch / len(opened):.0f} epochs)"
    with torch.device("meta"):
        learner = build(config, shape)
    return {"data": said, "network": words(learner), "length": length}
