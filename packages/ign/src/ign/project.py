"""The verbs that take images: `ign project` moves them onto the manifold, `ign drift` says how far off."""

import csv
import io
from pathlib import Path

import torch
from jaxtyping import Float
from paperkit import UserError, images
from paperkit.data import open_set
from paperkit.run import atomic
from torch import Tensor

from ign import data
from ign.config import DriftConfig, ProjectConfig
from ign.corrupt import STRENGTH, corrupt
from ign.generate import IGN, trained


def project(config: ProjectConfig) -> Path:
    """`ign project`: each image through f as a PNG, and rows.png: x, y = corrupted x, f(y), f(f(y)).

    Without files, held-out images of the run's data set are corrupted and only rows.png is written.
    """
    ign = IGN.load(config.run, config.device)
    named = read_inputs([config.input], ign.shape) if config.input else {}
    x = torch.stack(list(named.values())) if named else held_out(config.run, config.seed)[: config.n]
    given, strips = x, {"x": x}
    if config.corrupt:
        given = corrupt(x, config.corrupt, config.strength if config.strength > 0 else None, config.seed)
        strips["y, corrupted"] = given
    once, name = ign.project(given).cpu(), "y" if config.corrupt else "x"
    strips |= {f"f({name})": once, f"f(f({name}))": ign.project(given, 2).cpu()}
    out = Path(config.out)
    for name, image in zip(named, ign.project(given, config.k).cpu(), strict=False):
        images.write(out / Path(name).with_suffix(".png"), image)
    shown = {caption: list(strip[:12].clamp(-1, 1)) for caption, strip in strips.items()}
    images.write(out / "rows.png", images.rows(shown))
    place = f"into {out} (see rows.png)" if named else f"in {out / 'rows.png'}"
    print(f"{len(x)} images projected {place}; drift {ign.drift(given).mean():.4f} on average")
    if config.corrupt:
        strength = config.strength if config.strength > 0 else STRENGTH[config.corrupt]
        before, after = ((y - x).square().mean().sqrt() for y in (given, once))
        print(f"{config.corrupt} {strength:g}: rms distance to x {before:.3f}, after f {after:.3f}")
    return out


def drift(config: DriftConfig) -> Path:
    """`ign drift`: a table of each image's drift, beside that of held-out images of the run's data set."""
    ign = IGN.load(config.run, config.device)
    named = read_inputs(list(config.inputs), ign.shape)
    drifts = ign.drift(torch.stack(list(named.values()))).tolist()
    known = ign.drift(held_out(config.run, 0)[:2000]).cpu()
    shares = [float((known < value).float().mean()) for value in drifts]
    out = Path(config.out)
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["image", "drift", "share_of_held_out_below"])
    writer.writerows(zip(named, drifts, shares, strict=True))
    with atomic(out, "w") as stream:
        stream.write(table.getvalue())
    width = max(len(name) for name in named)
    print(f"{'image':{width}}  {'drift':>8}  held-out images with less")
    order = sorted(zip(named, drifts, shares, strict=True), key=lambda row: -row[1])
    for name, value, share in order[: config.lines]:
        print(f"{name:{width}}  {value:8.4f}  {share:.1%}")
    median, high = known.quantile(torch.tensor([0.5, 0.95])).tolist()
    if len(order) > config.lines:
        print(f"… {len(order) - config.lines} more in {out}")
    print(f"{len(known)} held-out images: median {median:.4f}, 95 % below {high:.4f}; the table is {out}")
    return out


def read_inputs(paths: list[str], shape: tuple[int, int, int]) -> dict[str, Float[Tensor, "c h w"]]:
    """The images in files, folders, zips or tars, fitted to a network's shape, in [-1, 1].

    Raises `UserError` for a path that is missing or holds no image.
    """
    channels, height, width = shape
    side = height if height == width else None
    named: dict[str, Tensor] = {}
    for path in paths:
        for name, image in _read(Path(path)).items():
            fitted = images.to_float(images.fit(image, side, channels == 1)).expand(channels, -1, -1)
            if tuple(fitted.shape) != shape:
                raise UserError(f"{name} has the shape {tuple(fitted.shape)}, this network takes {shape}")
            named[name if name not in named else f"{path}/{name}"] = fitted
    return named


def _read(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise UserError(f"{path} does not exist: name an image file or a folder of images")
    if path.is_dir():
        return images.read_folder(path)
    if images.is_image(path.name):
        return {path.name: images.read(path)}
    opened = open_set(path, "all")
    return {f"{path.stem}-{index}.png": opened[index][0] for index in range(len(opened))}


def held_out(run: str, seed: int) -> Float[Tensor, "n c h w"]:
    """The held-out images of a run's data set, in random order, in [-1, 1]."""
    test = data.load(trained(run), "test")
    order = torch.randperm(len(test.pixels), generator=torch.Generator().manual_seed(seed))
    return images.to_float(test.pixels[order])
