"""Graphs (section 4.5): the network, its training beside a plain twin, and rows of errors inside and outside.

Airfoils and cars. As in the public airfoils code the label is a further feature of every node.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from paperkit import UserError, parallel, report, rng
from paperkit.data import batch_indices
from paperkit.device import choose
from paperkit.run import Run, RunOptions, checkpoints, fill, find, from_json, load_checkpoint, read_json
from torch import Tensor, nn
from torch.nn import functional as F

from ittt import data
from ittt.baselines import Predict, method
from ittt.graph_config import GraphConfig
from ittt.graph_data import LEVELS, Parts, Shapes, quiet
from ittt.guard import Calibration, harmless_lr
from ittt.inject import extra_inputs
from ittt.inputs import Batch
from ittt.loop import decay, descend, go_through
from ittt.model import ITTT
from ittt.settings import Settings
from ittt.train import ROWS, SUBTITLE, TITLE, parameters, row_error

with quiet():
    from torch_geometric.nn import GMMConv, global_mean_pool

CPU = torch.device("cpu")


# ---- data and networks -------------------------------------------------------------------------------------


@cache
def _load(name: str, folder: str, shapes: int, nodes: int) -> Shapes:
    from ittt import airfoils, bodies, meshes

    if name == "airfoils":
        return airfoils.load(shapes)
    return meshes.load(folder, nodes) if folder else bodies.load(shapes)


def load(config: GraphConfig) -> tuple[Shapes, Parts]:
    """The shapes of a configuration, and its parts of them."""
    shapes = _load(config.task, config.folder, config.shapes, config.nodes)
    return shapes, shapes.parts(config.seed, config.outside, config.held_out, config.test)


class GraphNet(nn.Module):
    """Graph convolutions with ELU and skips, the mean over nodes, two linear layers: a number per graph.

    Nodes come with their place first, which is standardised (`standardise`), then with the signal.
    """

    middle: Tensor
    spread: Tensor

    def __init__(self, features: int, dimensions: int, config: GraphConfig):
        super().__init__()
        self.register_buffer("middle", torch.zeros(dimensions))
        self.register_buffer("spread", torch.ones(dimensions))
        widths = [features] + [config.channels] * (config.layers - 1)
        self.convs = nn.ModuleList(
            GMMConv(width, config.channels, dim=dimensions, kernel_size=config.kernels) for width in widths
        )
        self.head = nn.Sequential(
            nn.Linear(config.channels, config.channels), nn.ELU(), nn.Linear(config.channels, 1)
        )

    def forward(self, graphs: Batch) -> Float[Tensor, "b 1"]:
        place, signal = graphs.x.split([len(self.middle), graphs.x.shape[1] - len(self.middle)], 1)
        x = torch.cat([(place - self.middle) / self.spread, signal], 1)
        first, *others = self.convs
        h = F.elu(first(x, graphs.edge_index, graphs.edge_attr))
        for conv in others:
            h = h + F.elu(conv(h, graphs.edge_index, graphs.edge_attr))
        return self.head(global_mean_pool(h, graphs.batch))


def build(config: GraphConfig, dimensions: int) -> tuple[ITTT, GraphNet]:
    """f and its plain twin at step 0, for nodes in a plane or in space."""
    rng.seed_everything(config.seed)
    wide = GraphNet(dimensions + extra_inputs(1, config.presence), dimensions, config)
    net = ITTT(wide, "node", neutral=config.neutral, presence=config.presence)
    rng.seed_everything(config.seed, "plain")
    return net, GraphNet(dimensions, dimensions, config)


def standardise(net: ITTT, plain: GraphNet, shapes: Shapes, parts: Parts) -> None:
    """Let both networks see places in standard deviations of those they learn from."""
    places = shapes.batch(parts.learned).x
    spread = places.std(0)
    assert isinstance(net.model, GraphNet)
    for each in (net.model, plain):
        each.middle.copy_(places.mean(0))
        each.spread.copy_(spread.where(spread > 0, 1.0))  # an axis along which nothing varies says nothing


def dimensions(config: GraphConfig) -> int:
    """Of the space that the shapes lie in."""
    return 2 if config.task == "airfoils" else 3


# ---- training ----------------------------------------------------------------------------------------------


def train(config: GraphConfig, options: RunOptions | None = None, preset: str = "") -> Path:
    """Train f and its plain twin, adapt to shapes outside the range, and return the run folder.

    With `options.resume` go on with a run that stopped; the weights depend on `config` alone. Raises
    `UserError` for bad input and when a loss is not finite.
    """
    options = options or RunOptions()
    device = choose(options.device, options.precision)
    parallel.launch(device)
    if device.device.type == "cpu":
        torch.set_num_threads(1)  # its layers are too small to share

    # What is learned, and from what.
    shapes, parts = load(config)
    net, plain = build(config, dimensions(config))
    standardise(net, plain, shapes, parts)
    net, plain = net.to(device.device), plain.to(device.device)
    # One optimiser, as Adam treats each weight on its own.
    optimiser = torch.optim.Adam([*net.parameters(), *plain.parameters()], config.lr)
    steps = length(config, parts)
    run = Run.open(
        "ittt", TITLE, config, options, preset, config.seed,
        device=str(device.device), precision=device.precision, parameters=parameters(net), data=shapes.name,
    )  # fmt: skip
    if not run.begins(
        device=device,
        data=f"{shapes.name}; {words_of_parts(parts)}",
        network=f"{words(config)}, {parameters(net):,} parameters, and a plain twin",
    ):
        return run.folder

    start = run.goes_on({"net": net, "plain": plain}, optimiser)

    def step_of(step: int) -> dict[str, float]:
        """One step of both networks on the same graphs."""
        decay(optimiser, config.lr, step, steps)
        graphs, y = (part.to(device.device) for part in batch(shapes, parts, config, step))
        losses = {
            "zigzag": net.loss(graphs, y, data.mask(config, step)), "plain": F.mse_loss(plain(graphs), y),
        }  # fmt: skip
        return descend(optimiser, losses, partial(run.check, step))

    def weights() -> dict[str, Any]:
        scale = scale_of(net, shapes, parts)
        return {"net": net.state_dict(), "plain": plain.state_dict(), "scale": scale}

    look = partial(examine, net, plain, shapes, parts)
    go_through(run, config, optimiser, start, steps, step_of, look, weights, "graphs")
    if run.main:
        told = table(errors(net, plain, shapes, parts, settings_of(net, shapes, parts, config, run)), config)
        run.say(told)
        run.say(f"report    {report.write(run.folder, TITLE, SUBTITLE, notes=told)}")
    return run.folder


# ---- the parts ---------------------------------------------------------------------------------------------


def length(config: GraphConfig, parts: Parts) -> int:
    """Steps in all: whole batches of each epoch."""
    return config.epochs * max(1, len(parts.learned) // config.batch)


def batch(shapes: Shapes, parts: Parts, config: GraphConfig, step: int) -> tuple[Batch, Float[Tensor, "b 1"]]:
    """This process's graphs of a step (from 1)."""
    places = torch.from_numpy(batch_indices(len(parts.learned), config.batch, config.seed, step - 1))
    rows = parts.learned[parallel.shard(places)]
    return shapes.batch(rows), shapes.y[rows]


class Trained(NamedTuple):
    """What a run folder holds."""

    net: ITTT
    plain: GraphNet
    config: GraphConfig
    size: float
    unit: float
    calibration: Calibration
    folder: Path


def restored(where: str | Path) -> Trained:
    """The networks of a run folder (or `latest`) at its last checkpoint, ready to be asked."""
    folder = find("ittt", where)
    config = from_json(GraphConfig, read_json(folder / "config.json"), str(folder / "config.json"))
    saved = checkpoints(folder)
    if not saved:
        raise UserError(f"{folder} has no checkpoint yet: go on with ittt train --resume {folder}")
    weights, _ = load_checkpoint(saved[-1])
    net, plain = build(config, dimensions(config))
    for part, name in ((net, "net"), (plain, "plain")):
        fill(part, weights[name], folder)
        part.eval().requires_grad_(False)
    size, unit, gaps = (weights["scale"][name] for name in ("size", "unit", "gaps"))
    return Trained(net, plain, config, float(size), float(unit), Calibration(gaps), folder)


@torch.no_grad()
def examine(net: ITTT, plain: nn.Module, shapes: Shapes, parts: Parts) -> dict[str, float]:
    """Mean absolute errors on the held-out shapes, in the labels' own units, and the mean gap."""
    device = next(net.parameters()).device
    graphs, y = shapes.batch(parts.clean).to(device), shapes.y[parts.clean].to(device)
    return {
        "zigzag_mae": shapes.unit * float((net(graphs) - y).abs().mean()),
        "plain_mae": shapes.unit * float((plain(graphs) - y).abs().mean()),
        "gap": shapes.unit * float(net.gap(graphs).mean()),
    }


def calibrated(net: ITTT, shapes: Shapes, parts: Parts) -> Calibration:
    """The gaps of the held-out shapes."""
    return net.calibrate([shapes.batch(parts.clean).to(next(net.parameters()).device)])


def scale_of(net: ITTT, shapes: Shapes, parts: Parts) -> dict[str, Tensor]:
    """What new shapes are measured by: the units of places and labels, and the gaps of held-out shapes."""
    units = {"size": torch.tensor([shapes.size]), "unit": torch.tensor([shapes.unit])}
    return {**units, "gaps": calibrated(net, shapes, parts).gaps}


def settings_of(net: ITTT, shapes: Shapes, parts: Parts, config: GraphConfig, run: Run) -> GraphConfig:
    """The configuration, with the learning rate of the no-harm rule where it is asked for."""
    if not config.no_harm:
        return config
    adapt = without_harm(net, shapes, parts, config.adapt, config.adapt_batch)
    run.say(f"no harm   lr {adapt.lr:g}")
    return replace(config, adapt=adapt)


def without_harm(net: ITTT, shapes: Shapes, parts: Parts, settings: Settings, size: int) -> Settings:
    """The settings with the learning rate of the no-harm rule, for batches of `size` (0: all shapes)."""
    device = next(net.parameters()).device
    clean = [
        (shapes.batch(rows).to(device), shapes.y[rows].to(device))
        for rows in parts.clean.split(size or len(parts.clean))
    ]
    return replace(settings, lr=harmless_lr(net, clean, settings, row_error))


def errors(
    net: ITTT, plain: nn.Module, shapes: Shapes, parts: Parts, config: GraphConfig
) -> dict[str, dict[str, float]]:
    """Mean absolute error of each of `ROWS` in the labels' own units: inside, outside, and by level."""
    device, calibration, found = next(net.parameters()).device, calibrated(net, shapes, parts), {}
    for row in ROWS:
        predict = method(row, net, config.adapt, plain=plain, calibration=calibration)
        rows = (predicted(predict, shapes, part, config.adapt_batch, device) for part in tested(parts))
        found[row] = by_level(shapes, parts, *rows)
    return found


def predicted(
    predict: Predict, shapes: Shapes, rows: Int64[Tensor, " m"], size: int, device: torch.device = CPU
) -> Float[Tensor, "m 1"]:
    """Predictions of the shapes at `rows`, in batches of `size` (0: all at once)."""
    graphs = (shapes.batch(part).to(device) for part in rows.split(size or len(rows)))
    return torch.cat([predict(part) for part in graphs]).detach().cpu()


def tested(parts: Parts) -> tuple[Int64[Tensor, " i"], Int64[Tensor, " o"]]:
    """The rows to test on, inside and outside."""
    return parts.inside, parts.outside


def by_level(
    shapes: Shapes, parts: Parts, near: Float[Tensor, "i 1"], far: Float[Tensor, "o 1"]
) -> dict[str, float]:
    """Mean absolute errors in the labels' own units inside, outside, and at each level of the latter."""
    inside, outside = (
        shapes.unit * row_error(found, shapes.y[rows])
        for found, rows in zip((near, far), tested(parts), strict=True)
    )
    found = {"inside": float(inside.mean()), "outside": float(outside.mean())}
    return found | {
        f"level {level}": float(outside[parts.levels == level].mean()) for level in range(1, LEVELS + 1)
    }


def table(found: dict[str, dict[str, float]], config: GraphConfig) -> str:
    """The errors as text."""
    names = next(iter(found.values()))
    lines = [
        f"mean absolute error on test shapes of {config.task}, inside and outside the range trained on",
        " " * 24 + "".join(f"{name:>11}" for name in names),
    ]
    for row, values in found.items():
        lines.append(f"{ROWS[row]:24}" + "".join(f"{value:11.4g}" for value in values.values()))
    return "\n".join(lines)


def words(config: GraphConfig) -> str:
    """The network in a few words."""
    return f"{config.layers} graph convolutions of {config.channels} channels, neutral {config.neutral:g}"


def words_of_parts(parts: Parts) -> str:
    """How many shapes each part has."""
    counts: Sequence[tuple[str, Tensor]] = (
        ("to learn from", parts.learned), ("held out", parts.clean), ("to test on", parts.inside),
        ("outside", parts.outside),
    )  # fmt: skip
    return ", ".join(f"{len(rows):,} {name}" for name, rows in counts)


def describe(config: GraphConfig) -> dict[str, str]:
    """What `--dry-run` adds: the data, the network, the length; no label of an airfoil is computed."""
    net, _ = build(config, dimensions(config))
    found = {"network": f"{words(config)}, {parameters(net):,} parameters"}
    if config.task == "airfoils":
        return {"data": f"{config.shapes:,} airfoils, less those whose label is unsure", **found}
    shapes, parts = load(config)
    steps = f"{length(config, parts):,} steps of {config.batch} graphs ({config.epochs} epochs)"
    return {"data": f"{shapes.name}; {words_of_parts(parts)}", **found, "length": steps}
