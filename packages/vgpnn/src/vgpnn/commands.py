"""The verbs that make clips. Each reads clips, builds a problem, solves it level by level, writes outputs.

Used by `cli`.
"""

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool
from paperkit import UserError, images
from paperkit.device import choose
from paperkit.resize import resize
from paperkit.run import RunOptions, find, from_json, read_json
from torch import Tensor

from vgpnn import clips, tasks, video
from vgpnn import config as c
from vgpnn.method import Problem, State, outputs
from vgpnn.pyramid import shape_of
from vgpnn.session import Session, flags_over, session, settings_of, sheet, unpack


def describe(config: Any) -> dict[str, str]:
    """For --dry-run: the clips, what they are shrunk to, and the levels."""
    facts = {}
    for part in dataclasses.fields(config):
        name = getattr(config, part.name)
        if part.name in ("input", "content", "style", "sketch") and name:
            clip = clips.open_clip(name)
            shown = clips.prepare(clip, config.frames, config.start, config.side)
            facts[part.name] = (
                f"{name}, {'x'.join(map(str, clip.shape))} -> {'x'.join(map(str, shown.shape))}"
            )
    facts["device"] = str(choose("auto").device)
    facts["threads"] = str(torch.get_num_threads())
    return facts


def _write(work: Session, problem: Problem, state: State, x: Tensor, names: list[str]) -> None:
    """Outputs with provenance, a contact sheet, and how much of each is copied in place."""
    made = outputs(problem, state)
    rates, rows = [], {"input": x}
    for name, output in zip(names, made, strict=True):
        figures = work.output(name, output, shape_of(x), problem.loop)
        rates.append(f"{figures['same_place']:.0%}")
        rows[name] = output.video
    _sheet(work, rows)
    if problem.shape == shape_of(x):
        work.note(f"patches at their own place in the input (100% = a copy): {', '.join(rates)}")
    work.close()


def _sheet(work: Session, rows: dict[str, Tensor]) -> None:
    shown = dict(list(rows.items())[:9])
    if len({tuple(row.shape[2:]) for row in shown.values()}) <= 3:
        images.write(work.folder / "sheet.png", sheet(shown))


def _shown(work: Session, name: str, x: Tensor) -> None:
    work.show(f"0-{name}", x)
    work.keep(name, x)


# ---- drawn from noise


def generate(config: c.GenerateConfig, options: RunOptions, preset: str) -> None:
    """`vgpnn generate`: samples, where their patches came from, and a contact sheet."""
    with session("generate", config, options, preset) as work:
        _, x = work.clip(config.input)
        _shown(work, "input", x)
        problem = _generation(config, x, list(range(config.samples)))
        state = work.solve(problem)
        if state is not None:
            _write(work, problem, state, x, [f"sample-{k}" for k in problem.numbers])


def _generation(config: c.GenerateConfig, x: Tensor, numbers: list[int]) -> Problem:
    shape = tasks.scaled_shape(shape_of(x), (config.length, config.height, config.width))
    settings = settings_of(config, "generate", shape_of(x))
    noise = tasks.Noise(config.noise_kind, config.noise)
    return tasks.generation(x, numbers, config.seed, shape, noise, settings)


def preview(config: c.PreviewConfig, options: RunOptions, preset: str) -> None:
    """`vgpnn preview`: coarse samples, kept to be finished by `vgpnn finish`."""
    with session("preview", config, options, preset) as work:
        _, x = work.clip(config.input)
        _shown(work, "input", x)
        problem = _generation(config, x, list(range(config.samples)))
        state = work.solve(problem, _stop(problem, config.share))
        if state is None:
            return
        rows = {}
        for k, shown in zip(problem.numbers, state.videos, strict=True):
            larger = resize(shown, size=shape_of(x)[1:], axes=(2, 3), kernel="box", antialias=False)
            work.show(f"sample-{k}", larger)
            rows[f"{k}"] = larger
        images.write(work.folder / "sheet.png", sheet(rows))
        work.note(f"finish the ones you like: vgpnn finish {work.folder} --choose 0 1")


def _stop(problem: Problem, share: float) -> int:
    """The last level such that the levels up to it hold `share` of all voxels."""
    sizes = torch.tensor([float(torch.tensor(problem.shape_at(n)).prod()) for n in range(problem.levels)])
    fitting = (sizes.cumsum(0) <= share * sizes.sum()).nonzero()[:, 0]
    return int(fitting[-1]) if len(fitting) else 0


def finish(config: c.FinishConfig, options: RunOptions, preset: str) -> None:
    """`vgpnn finish`: go on with chosen samples of a preview, in a folder of its own."""
    from paperkit.run import checkpoints, load_checkpoint

    folder = find("vgpnn", config.run)
    manifest = read_json(folder / "manifest.json")
    if manifest.get("verb") != "preview" or not checkpoints(folder):
        raise UserError(f"{folder} is no preview: name the folder that vgpnn preview wrote")
    before = from_json(c.PreviewConfig, read_json(folder / "config.json"), str(folder / "config.json"))
    chosen = list(config.choose) or list(range(before.samples))
    if bad := [k for k in chosen if not 0 <= k < before.samples]:
        raise UserError(f"the preview has samples 0 to {before.samples - 1}, not {bad[0]}")
    with session("finish", config, options, preset, before) as work:
        _, x = work.clip(before.input)
        _shown(work, "input", x)
        weights, facts = load_checkpoint(checkpoints(folder)[-1])
        state = unpack(weights["state"], facts, work.device)
        parts = [[kind[k] for k in chosen] for kind in (state.videos, state.fields, state.distances)]
        kept = State(state.level, parts[0], parts[1], parts[2])
        problem = _generation(before, x, chosen)
        done = work.solve(problem, begin=kept)
        if done is not None:
            _write(work, problem, done, x, [f"sample-{k}" for k in chosen])


def loop(config: c.LoopConfig, options: RunOptions, preset: str) -> None:
    """`vgpnn loop`: clips that lead into themselves."""
    with session("loop", config, options, preset) as work:
        _, x = work.clip(config.input)
        _shown(work, "input", x)
        frames = tasks.scaled_shape(shape_of(x), (config.length, 1.0, 1.0))[0]
        settings = settings_of(config, "loop", shape_of(x), (frames, *shape_of(x)[1:]))
        noise = tasks.Noise(config.noise_kind, config.noise)
        problem = tasks.looping(x, config.samples, config.seed, frames, noise, settings)
        state = work.solve(problem)
        if state is not None:
            _write(work, problem, state, x, [f"loop-{k}" for k in problem.numbers])


# ---- from the clip itself


def retarget(config: c.RetargetConfig, options: RunOptions, preset: str) -> None:
    """`vgpnn retarget`: the clip at another size or length, beside plain resizing."""
    with session("retarget", config, options, preset) as work:
        _, x = work.clip(config.input)
        _shown(work, "input", x)
        shape = tasks.scaled_shape(shape_of(x), (config.length, config.height, config.width))
        settings = settings_of(config, "retarget", shape_of(x), shape)
        problem = tasks.retargeting(x, shape, config.seed, settings)
        work.show("2-plainly-resized", resize(x, size=shape, axes=(1, 2, 3)))
        state = work.solve(problem)
        if state is not None:
            _write(work, problem, state, x, ["1-retargeted"])


def inpaint(config: c.InpaintConfig, options: RunOptions, preset: str) -> None:
    """`vgpnn inpaint`: a hole filled, its colour as the cue."""
    with session("inpaint", config, options, preset) as work:
        _, x = work.clip(config.input)
        hole = _hole(config, x)
        x = _painted(config.colour, x, hole)
        _shown(work, "painted", x)
        settings = flags_over(config, tasks.settings_for_hole(shape_of(x), hole))
        avoid = None if not config.avoid else _mask(config, config.avoid, x, "--avoid")
        problem = tasks.inpainting(x, hole, not config.whole, avoid, config.seed, settings)
        state = work.solve(problem)
        if state is not None:
            _write(work, problem, state, x, ["1-filled"])


def _hole(config: c.InpaintConfig, x: Tensor) -> Bool[Tensor, "t h w"]:
    if config.mask:
        return _mask(config, config.mask, x, "--mask")
    t, h, w = shape_of(x)
    words = config.hole or f"{h // 3},{w // 3},{h // 4},{w // 6}"
    top, left, height, width = numbers(words, 4, "--hole")
    if min(height, width) < 1 or top + height > h or left + width > w:
        raise UserError(f"--hole {words} leaves the frames of {h}x{w}: move it inside")
    hole = torch.zeros(t, h, w, dtype=torch.bool, device=x.device)
    hole[:, top : top + height, left : left + width] = True
    return hole


def _mask(config: Any, name: str, x: Tensor, flag: str) -> Bool[Tensor, "t h w"]:
    """White of an image (for all frames) or video, shrunk as the clip was: any white makes a voxel white."""
    shape = shape_of(x)
    single = images.is_image(name) and not name.lower().endswith((".gif", ".apng"))
    found = images.read(name, "grey")[None] if single else clips.open_clip(name).frames.float().mean(1, True)
    white = (found.float() > 127).float().movedim(1, 0)
    if white.shape[1] == 1:
        white = white.expand(-1, shape[0], -1, -1)
    elif white.shape[1] != shape[0]:
        last = config.start + config.frames if config.frames else white.shape[1]
        white = white[:, config.start : last]
    if white.shape[1] != shape[0]:
        raise UserError(
            f"{flag} has {white.shape[1]} frames, the clip {shape[0]}: give as many, or one image"
        )
    ratio = white.shape[2] / white.shape[3] / (shape[1] / shape[2])
    if shape_of(white) != shape:
        if not 0.97 < ratio < 1.03 or white.shape[2] < shape[1]:
            raise UserError(
                f"{flag} is {white.shape[2]}x{white.shape[3]}, the clip {shape[1]}x{shape[2]}: give one size"
            )
        white = torch.nn.functional.adaptive_max_pool3d(white[None], shape)[0]
    return (white[0] > 0.5).to(x.device)


def _painted(words: str, x: Tensor, hole: Tensor) -> Tensor:
    if not words:
        return x
    if words == "none":
        return tasks.without_cue(x, hole)
    if words == "mean":
        colour = x[:, ~hole].mean(1)
    else:
        values = numbers(words, 3, "--colour")
        if max(values) > 255:
            raise UserError(f"--colour takes numbers of 0..255, not {words}")
        colour = torch.tensor(values, device=x.device) / 127.5 - 1
    return torch.where(hole, colour.to(x)[:, None, None, None], x)


def numbers(words: str, count: int, flag: str) -> list[int]:
    """Whole numbers with commas between."""
    parts = words.split(",")
    if len(parts) != count or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"{flag} takes {count} whole numbers with commas between, not {words!r}")
    return [int(part) for part in parts]


# ---- two clips


def analogy(config: c.AnalogyConfig, options: RunOptions, preset: str) -> None:
    """`vgpnn analogy`: the layout and motion of one clip in the look of another."""
    from vgpnn import guidance

    with session("analogy", config, options, preset) as work:
        _, b = work.clip(config.style, None if config.style_frames < 0 else config.style_frames)
        _, a = work.clip(config.content)
        _shown(work, "content", a)
        _shown(work, "style", b)
        if config.content_guide:
            guides = [
                _guide(config, name, x) for name, x in ((config.content_guide, a), (config.style_guide, b))
            ]
        else:
            flow = guidance.estimator(config.flow, config.weights)
            bins = (config.content_bins, config.style_bins)
            guides = [guidance.motion(x, n, flow) for x, n in zip((a, b), bins, strict=True)]
        work.show("2-guide-of-the-content", guides[0][:1].expand(3, -1, -1, -1) * 2 - 1)
        work.show("3-guide-of-the-style", guides[1][:1].expand(3, -1, -1, -1) * 2 - 1)
        settings = settings_of(config, "analogy", shape_of(a), shape_of(b))
        problem = tasks.analogies(
            a, b, guides[0], guides[1], config.seed, config.guide_weight, config.until, settings
        )
        state = work.solve(problem)
        if state is not None:
            _write_pair(work, problem, state, a, b, "4-analogy")


def _guide(config: c.AnalogyConfig, name: str, x: Tensor) -> Tensor:
    """Guide channels of a file, in [0, 1], at the clip's size and length."""
    guide = (video.to_unit(clips.open_clip(name).frames).to(x) + 1) / 2
    frames = shape_of(x)[0]
    guide = guide[:, config.start : config.start + frames] if guide.shape[1] > frames else guide
    if guide.shape[1] != frames:
        raise UserError(f"the guide {name} has {guide.shape[1]} frames, the clip {frames}: give as many")
    return resize(guide, size=shape_of(x)[1:], axes=(2, 3))


def sketch(config: c.SketchConfig, options: RunOptions, preset: str) -> None:
    """`vgpnn sketch`: a moving sketch in the look of a clip."""
    with session("sketch", config, options, preset) as work:
        _, b = work.clip(config.style, None if config.style_frames < 0 else config.style_frames)
        _, a = work.clip(config.sketch)
        _shown(work, "sketch", a)
        _shown(work, "style", b)
        settings = settings_of(config, "sketch", shape_of(a), shape_of(b))
        problem = tasks.sketches(a, b, config.seed, settings)
        state = work.solve(problem)
        if state is not None:
            _write_pair(work, problem, state, a, b, "2-sketched")


def _write_pair(work: Session, problem: Problem, state: State, a: Tensor, b: Tensor, name: str) -> None:
    output = outputs(problem, state)[0]
    work.output(name, output, shape_of(b))
    _sheet(work, {"content": a, "style": b, name[2:]: output.video})
    work.close()
