"""`ittt train`: one function from a configuration to a run folder, with four rows of errors at the end."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from paperkit import UserError, parallel, report, rng
from paperkit.device import choose
from paperkit.run import Run, RunOptions, checkpoints, fill, find, from_json, load_checkpoint, read_json
from torch import Tensor, nn
from torch.nn import functional as F

from ittt import data
from ittt.baselines import method
from ittt.config import TrainConfig
from ittt.data import Rows, Scale
from ittt.guard import Calibration, harmless_lr
from ittt.inject import extra_inputs
from ittt.loop import descend, go_through
from ittt.model import ITTT
from ittt.networks import Perceptron
from ittt.settings import Settings

TITLE = "IT3: Idempotent Test-Time Training"
SUBTITLE = "arXiv 2410.04201"
ROWS = {
    "plain": "plain network",
    "none": "ZigZag, not adapted",
    "it3": "ZigZag, adapted",
    "un-frozen": "adapted, F not frozen",
}
"""What is printed at the end: two baselines, the method, and the ablation of its anchor."""


def train(config: TrainConfig, options: RunOptions | None = None, preset: str = "") -> Path:
    """Train f and its plain twin, adapt to test rows with missing entries, and return the run folder.

    With `options.resume` go on with a run that stopped; the weights depend on `config` alone. Raises
    `UserError` for bad input and when a loss is not finite.
    """
    options = options or RunOptions()
    device = choose(options.device, options.precision)
    parallel.launch(device)
    if device.device.type == "cpu":
        torch.set_num_threads(1)  # its steps are too short to share

    # What is learned, and from what.
    rows = data.load(config)
    net, plain = build(config, rows.columns)
    net, plain = net.to(device.device), plain.to(device.device)
    # One optimiser, as Adam treats each weight on its own.
    optimiser = torch.optim.Adam([*net.parameters(), *plain.parameters()], config.lr)
    run = Run.open(
        "ittt", TITLE, config, options, preset, config.seed,
        device=str(device.device), precision=device.precision, parameters=parameters(net), data=rows.name,
    )  # fmt: skip
    if not run.begins(
        device=device,
        data=f"{rows.name}, split {config.split}; {len(rows.x_clean)} for calibration",
        network=f"{words(config)}, {parameters(net):,} parameters, and a plain twin",
    ):
        return run.folder

    start = run.goes_on({"net": net, "plain": plain}, optimiser)

    def step_of(step: int) -> dict[str, float]:
        """One step of both networks on the same rows."""
        x, y = (part.to(device.device) for part in data.batch(rows, config, step))
        losses = {"zigzag": net.loss(x, y, data.mask(config, step)), "plain": F.mse_loss(plain(x), y)}
        return descend(optimiser, losses, partial(run.check, step))

    def weights() -> dict[str, Any]:
        return {"net": net.state_dict(), "plain": plain.state_dict(), "scale": vars(rows.scale)}

    look = partial(examine, net, plain, rows)
    go_through(run, config, optimiser, start, config.steps, step_of, look, weights, "rows")
    if run.main:
        told = table(errors(net, plain, rows, settings_of(net, rows, config, run)), config)
        run.say(told)
        run.say(f"report    {report.write(run.folder, TITLE, SUBTITLE, notes=told)}")
    return run.folder


# ---- the parts ---------------------------------------------------------------------------------------------


def build(config: TrainConfig, columns: int) -> tuple[ITTT, Perceptron]:
    """f and its plain twin at step 0; the twin has the same layers without the signal's columns."""
    rng.seed_everything(config.seed)
    wide = Perceptron(columns + extra_inputs(1, config.presence), config.widths)
    net = ITTT(wide, "concat", neutral=config.neutral, presence=config.presence)
    rng.seed_everything(config.seed, "plain")
    return net, Perceptron(columns, config.widths)


class Trained(NamedTuple):
    """What a run folder holds."""

    net: ITTT
    plain: Perceptron
    config: TrainConfig
    scale: Scale
    folder: Path


def load(where: str | Path) -> Trained:
    """The networks of a run folder (or `latest`) at its last checkpoint."""
    folder = find("ittt", where)
    config = from_json(TrainConfig, read_json(folder / "config.json"), str(folder / "config.json"))
    saved = checkpoints(folder)
    if not saved:
        raise UserError(f"{folder} has no checkpoint yet: go on with ittt train --resume {folder}")
    weights, _ = load_checkpoint(saved[-1])
    scale = Scale(**weights["scale"])
    net, plain = build(config, len(scale.x_mean))
    fill(net, weights["net"], folder)
    fill(plain, weights["plain"], folder)
    return Trained(net.eval(), plain.eval(), config, scale, folder)


def calibrated(trained: Trained) -> Calibration:
    """The gaps of the run's clean rows."""
    return trained.net.calibrate([data.load(trained.config).x_clean])


@torch.no_grad()
def examine(net: ITTT, plain: nn.Module, rows: Rows) -> dict[str, float]:
    """Mean absolute errors on the clean rows, in standard deviations of the label, and the mean gap."""
    device = next(net.parameters()).device
    x, y = rows.x_clean.to(device), rows.y_clean.to(device)
    net.eval()
    found = {
        "zigzag_mae": float((net(x) - y).abs().mean()),
        "plain_mae": float((plain(x) - y).abs().mean()),
        "gap": float(net.gap(x).mean()),
    }
    net.train()
    return found


def settings_of(net: ITTT, rows: Rows, config: TrainConfig, run: Run) -> TrainConfig:
    """The configuration, with the learning rate of the no-harm rule where it is asked for."""
    if not config.no_harm:
        return config
    adapt = without_harm(net, rows, config.adapt, config.adapt_batch)
    run.say(f"no harm   lr {adapt.lr:g}")
    return replace(config, adapt=adapt)


def without_harm(net: ITTT, rows: Rows, settings: Settings, size: int) -> Settings:
    """The settings with the learning rate of the no-harm rule, for batches of `size` (0: all rows)."""
    device = next(net.parameters()).device
    parts = (part.to(device).split(size or len(part)) for part in (rows.x_clean, rows.y_clean))
    return replace(settings, lr=harmless_lr(net, list(zip(*parts, strict=True)), settings, row_error))


def errors(net: ITTT, plain: nn.Module, rows: Rows, config: TrainConfig) -> dict[str, dict[str, float]]:
    """Mean absolute error of each of `ROWS` at each level of missing entries, in standard deviations."""
    device = next(net.parameters()).device
    y, size = rows.y_test.to(device), config.adapt_batch or len(rows.x_test)
    needs = config.adapt.gate or config.adapt.abstain
    calibration = net.calibrate([rows.x_clean.to(device)]) if needs else None
    found: dict[str, dict[str, float]] = {}
    for name in ROWS:
        predict = method(name, net, config.adapt, plain=plain, calibration=calibration)
        found[name] = {}
        for level in config.levels:
            x = data.drop(rows.x_test, level, config.seed).to(device)
            found[name][f"{level:g}"] = mean_error(torch.cat([predict(part) for part in x.split(size)]), y)
    return found


def mean_error(predictions: Float[Tensor, "n k"], y: Float[Tensor, "n k"]) -> float:
    """Mean absolute error."""
    return float(row_error(predictions, y).mean())


def row_error(predictions: Float[Tensor, "n k"], y: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Absolute error of each row."""
    return (predictions - y).abs().mean(1)


def table(found: dict[str, dict[str, float]], config: TrainConfig) -> str:
    """The errors as text."""
    levels = next(iter(found.values()))
    head = "missing entries" + " " * 9 + "".join(f"{100 * float(level):8g} %" for level in levels)
    lines = [f"mean absolute error on the test rows of {config.data}, in standard deviations", head]
    for name, values in found.items():
        lines.append(f"{ROWS[name]:24}" + "".join(f"{value:10.4f}" for value in values.values()))
    return "\n".join(lines)


def words(config: TrainConfig) -> str:
    """The network in a few words."""
    return f"perceptron {'-'.join(map(str, config.widths))}, neutral {config.neutral:g}"


def parameters(net: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(parameter.numel() for parameter in net.parameters())


def describe(config: TrainConfig) -> dict[str, str]:
    """What `--dry-run` adds: the data, the number of parameters, the number of epochs."""
    rows = data.load(config)
    net, _ = build(config, rows.columns)
    return {
        "data": f"{rows.name}, {rows.columns} columns, {len(rows.x_test)} test rows",
        "network": f"{words(config)}, {parameters(net):,} parameters",
        "length": f"{config.steps:,} steps of {config.batch} rows "
        f"({config.steps * config.batch / len(rows.x):.0f} epochs)",
    }
