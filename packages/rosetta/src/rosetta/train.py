"""`rosetta train`: a small zoo, trained and mined in one run; every count is printed beside its null."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from paperkit import UserError, images, parallel, report
from paperkit.device import choose
from paperkit.run import Run, RunOptions, fill
from torch import Tensor

from rosetta import browse, dictionary, mining, pictures, store, zoo
from rosetta.config import MatchConfig, TrainConfig
from rosetta.hooks import record
from rosetta.maps import Maps
from rosetta.mining import Tables
from rosetta.zoo import GENERATOR, MEMBERS, Source, Stage

TITLE = "Rosetta neurons: the units that different networks share"
SUBTITLE = "arXiv 2306.09346"
SHEET = 5
"""Chains in the picture of a run."""


def train(config: TrainConfig, options: RunOptions | None = None, preset: str = "") -> Path:
    """Train the zoo, mine it on held-out and on generated images, and return the run folder.

    With `options.resume` go on with a run that stopped; weights and dictionaries depend on `config` alone.
    Raises `UserError` for bad input and when a loss is not finite.
    """
    options = options or RunOptions()
    device = choose(options.device, options.precision)
    if parallel.world()[1] > 1:
        raise UserError("train runs on one process: its networks are too small to share (mine does)")
    source = zoo.open_source(config)
    found = zoo.stages(config, *source.shape, source.classes)
    for stage in found:
        for module in stage.modules.values():
            module.to(device.device)
    total = sum(stage.steps for stage in found)
    run = Run.open(
        "rosetta", TITLE, config, options, preset, config.seed, device=str(device.device),
        precision="fp32", data=source.name, parameters=parameters(found),
    )  # fmt: skip
    if not run.begins(device=device, data=source.name, zoo=words(found)):
        return run.folder
    start, notes = restore(run, found), ""

    with run.guard():
        step = start
        for step in run.steps(start, total):
            # One step of the network whose turn it is.
            stage, local = zoo.at(found, step)
            for module in stage.modules.values():
                module.train()
            batch = config.batch * (2 if stage.name == "MAE" else 1)
            losses = stage.step(source, batch, local)
            run.check(step, *losses.values(), advice="another --seed")

            # Once in a while: a line, a checkpoint.
            ended = local == stage.steps
            if local % config.log_every == 0 or ended:
                run.log(step, **{f"{stage.name}: {key}": value for key, value in losses.items()})
                told = "  ".join(f"{key} {value:.3f}" for key, value in losses.items())
                run.say(f"{step}/{total}  {stage.name}  {told}  {run.eta(step, total, start)}")
            if step % config.save_every == 0 or run.last:
                save(run, step, found, config.keep)
        if step == total:
            notes = conclude(run, config, source, found)
    run.say(f"report    {report.write(run.folder, TITLE, SUBTITLE, notes=notes)}")
    return run.folder


# ---- Checkpoints -------------------------------------------------------------------------------------------


def save(run: Run, step: int, found: Sequence[Stage], keep: int) -> None:
    """All networks and all optimisers."""
    weights = {
        f"{number}-{key}": module.state_dict()
        for number, stage in enumerate(found)
        for key, module in stage.modules.items()
    }
    state = [{key: o.state_dict() for key, o in stage.optimisers.items()} for stage in found]
    run.save(step, weights, {"optimisers": state}, keep)


def restore(run: Run, found: Sequence[Stage]) -> int:
    """Fill everything from the last checkpoint; the step after which it was made, else 0."""
    if not (saved := run.restore()):
        return 0
    start, weights, state = saved
    for number, stage in enumerate(found):
        for key, module in stage.modules.items():
            fill(module, weights[f"{number}-{key}"], run.folder)
        for key, optimiser in stage.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][number][key])
    run.say(f"goes on after step {start}")
    return start


# ---- What the zoo shares -----------------------------------------------------------------------------------


def conclude(run: Run, config: TrainConfig, source: Source, found: Sequence[Stage]) -> str:
    """Quality of the networks, both dictionaries with pictures and browser; returns notes for the report."""
    by_name = {stage.name: stage for stage in found}
    lines = [quality(by_name, source)]
    run.say(lines[0])
    fresh = zoo.stages(replace(config, seed=config.seed + 1_000_000), *source.shape, source.classes)
    fresh_by_name = {stage.name: stage for stage in fresh}
    codes, made = zoo.generated(by_name[GENERATOR], config.probes, config.seed)
    images.write(run.folder / "samples" / "generated.png", images.grid(made[:64]))
    for name, probes, given in (("real", source.probes, None), ("generated", made, codes)):
        trained = maps_of(by_name, probes, given)
        untrained = maps_of(fresh_by_name, probes, given)
        run.say(f"mining    {name} images: {', '.join(m.model for m in trained)}")
        mined = mining.mine(Tables(trained, config.match, run.folder / name / "tables"))
        few = replace(config.match, others=0)  # of the twin only matches above its threshold are told
        control = mining.mine(Tables(untrained, few, run.folder / name / "untrained"))
        hashes = [store.weights_hash(by_name[m.model].modules["net"]) for m in trained]
        about = dictionary.describe(f"{name}, {source.name}", probes)
        keep(run.folder / name, trained, probes, about, hashes, config.match)
        built = dictionary.build(mined, "star", probes, about, hashes, control)
        write_dictionary(run.folder / name, built)
        rows = mining.counts(mined, control)
        run.say(mining.as_text(rows))
        lines += [f"{name.capitalize()} images.", *mining.as_words(rows)]
        best = mined.chains["star"].found[:SHEET]
        if best:
            images.write(run.folder / "samples" / f"{name}-chains.png", pictures.sheet(probes, trained, best))
    run.say(READING)
    run.say(f"browser   {run.folder / 'real' / 'browser.html'}")
    return "\n\n".join([*lines, READING])


READING = (
    "found>t*: matches above every score of tables with one network's images permuted; untrained, rotated,"
    " shifted: the same of fresh weights, of another basis, of maps moved about. found: all mutual matches;"
    " i.i.d., permuted, scattered: as many as independent noise, permuted images and scattered pixels have."
    " A count means something only beside these."
)


def keep(
    place: Path,
    maps: Sequence[Maps],
    probes: Tensor,
    about: Mapping[str, Any],
    hashes: Sequence[str],
    match: MatchConfig,
) -> None:
    """Maps and probes, for `match` to go on with."""
    folders = [store.folder_name(m.model) for m in maps]
    for folder, each in zip(folders, maps, strict=True):
        store.write_maps(place / "maps" / folder, each)
    store.write_images(place / "probes.npy", probes)
    store.note_mined(place, folders, match, about, hashes)


def write_dictionary(place: Path, built: dictionary.Dictionary) -> None:
    """Dictionary and browser below `place`."""
    dictionary.write(place / "dictionary", built)
    browse.write(place / "browser.html", built)


def maps_of(by_name: dict[str, Stage], probes: Tensor, codes: Float[Tensor, "n z"] | None) -> list[Maps]:
    """Maps of the networks that look at images; with codes, the generator that made them heads the zoo."""
    names = list(MEMBERS) if codes is None else list(MEMBERS[:3])
    inputs = dict.fromkeys(names, probes)
    if codes is not None:
        inputs = {GENERATOR: codes, **inputs}
    return [record(zoo.network(by_name[name], x[:2]), x, 256) for name, x in inputs.items()]


def quality(by_name: dict[str, Stage], source: Source) -> str:
    """How well the networks do what they were trained for."""
    told = [f"{name} {100 * zoo.accuracy(by_name[name], source):.1f} %" for name in MEMBERS if name != "MAE"]
    error = zoo.masked_error(by_name["MAE"], source)
    spread = float(source.probes.var())
    return f"right on held-out images: {', '.join(told)}; MAE error {error:.3f} of variance {spread:.3f}"


def parameters(found: Sequence[Stage]) -> int:
    """How many numbers are learned."""
    modules = [m for stage in found for key, m in stage.modules.items() if key != "average"]
    return sum(p.numel() for module in modules for p in module.parameters())


def words(found: Sequence[Stage]) -> str:
    """The zoo, as printed."""
    return ", ".join(f"{stage.name} ({stage.steps:,} steps)" for stage in found)


def describe(config: TrainConfig) -> dict[str, str]:
    """What `--dry-run` adds: data, networks and steps, tables."""
    source = zoo.open_source(config)
    found = zoo.stages(config, *source.shape, source.classes)
    return {
        "data": f"{source.name}, images {source.shape[0]}x{source.shape[1]}x{source.shape[1]}",
        "zoo": f"{words(found)}; {parameters(found):,} parameters",
        "tables": f"{tables_of(config.match, 4)} of 4 networks on {config.probes:,} images, four times"
        " (real, generated; trained, untrained)",
    }


def tables_of(match: MatchConfig, models: int) -> str:
    """How many tables a zoo needs."""
    pairs = models * (models - 1) // 2
    return f"{pairs} pairs x {1 + match.draws + 3 * match.others} tables"
