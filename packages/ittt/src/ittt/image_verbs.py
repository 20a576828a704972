"""`ittt adapt FOLDER` and `ittt evaluate` with a run on images. Used by `verbs` and `evaluate`."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from paperkit import UserError
from paperkit.data import open_set
from paperkit.images import fit, natural_order, read_folder, to_float
from paperkit.run import find, read_json, write_json
from torch import Tensor

from ittt import images
from ittt.baselines import method
from ittt.config import AdaptConfig, EvaluateConfig
from ittt.corruptions import corrupt
from ittt.image_config import ImageConfig, is_images
from ittt.model import ITTT


def is_image_run(where: str) -> bool:
    """Whether a run folder (or `latest`) was trained on images."""
    return is_images(str(read_json(find("ittt", where) / "config.json").get("data", "")))


def adapt_images(config: AdaptConfig) -> list[dict[str, Any]]:
    """One row per image file of a folder: its class before and after adaptation, and what that did.

    Raises `UserError` for a folder without images, for one image alone under batch statistics, and for what
    reading a damaged file raises.
    """
    net, recipe = images.restored(config.run)
    pictures, classes = images.load(recipe), open_set(recipe.set_name, "test").classes
    names, x = read_images(Path(config.rows), pictures.x)
    calibration, settings = None, config.adapt
    if config.no_harm:
        settings = images.without_harm(net, pictures, settings, config.batch)
        print(f"no harm: learning rate {settings.lr:g}")
    if config.adapt.gate or config.adapt.abstain:
        scored = "batch" if config.adapt.norm == "batch" else "eval"
        calibration = net.calibrate([pictures.x_clean], scored)
    adapter, rows = net.adapter(settings, calibration), []
    for part in images.batches(x, config.batch or len(x)):
        found = adapter(part)
        for facts, after, before in zip(
            found.rows(), found.prediction.softmax(1), found.before.softmax(1), strict=True
        ):
            rows.append(
                {
                    "image": names[len(rows)], "prediction": classes[int(after.argmax())],
                    "probability": float(after.max()), "before": classes[int(before.argmax())], **facts,
                }
            )  # fmt: skip
    return rows


METHODS = ("none", "bn", "tent", "eta", "it3", "it3-bn", "un-frozen", "shuffled", "random")
"""What `evaluate` compares unless it is told; at batches of one without those of `TOGETHER`."""
TOGETHER = ("bn", "tent", "eta", "it3-bn", "shuffled")
"""Methods of a batch's statistics, and the one that feeds each image another's prediction."""


def evaluate(config: EvaluateConfig) -> Path:
    """Print errors by method, batch size and corruption, and write evaluation.json into the run folder."""
    if config.levels != EvaluateConfig().levels or config.draws != EvaluateConfig().draws:
        raise UserError(
            "--levels and --draws are of tables: this run's corruptions are fixed, leave them out"
        )
    net, recipe = images.restored(config.run)
    pictures = images.load(recipe)
    tests = {"clean": pictures.x_test} | {
        name: corrupt(pictures.x_test, name, recipe.severity) for name in recipe.corruptions
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    for size in config.batches:
        found[str(size)] = {
            name: errors(net, pictures, tests, config, name, size) for name in chosen(config, recipe, size)
        }
        print(f"error in per cent, severity {recipe.severity}, batches of {size}")
        print(" " * 16 + "".join(f"{name:>11}" for name in tests))
        for name, row in found[str(size)].items():
            print(f"{name:16}" + "".join(f"{value:11.1f}" for value in row.values()))
    path = find("ittt", config.run) / "evaluation.json"
    write_json(path, {"data": pictures.name, "severity": recipe.severity, "error": found})
    return path


def chosen(config: EvaluateConfig, recipe: ImageConfig, size: int) -> list[str]:
    """The methods asked for, or those that this network and a batch of this size allow."""
    if config.methods != EvaluateConfig().methods:
        return list(config.methods)
    left_out = TOGETHER if size == 1 else () if recipe.norm == "batch" else ("bn", "it3-bn")
    return [name for name in METHODS if name not in left_out]


def errors(
    net: ITTT,
    pictures: images.Pictures,
    tests: dict[str, Tensor],
    config: EvaluateConfig,
    name: str,
    size: int,
) -> dict[str, float]:
    """A method's error in per cent on each of the test sets."""
    settings, calibration = config.adapt, None
    if settings.gate or settings.abstain:
        scored = "batch" if name == "it3-bn" or settings.norm == "batch" else "eval"
        calibration = net.calibrate([pictures.x_clean], scored)
    ask = method(name, net, settings, calibration=calibration)
    return {
        where: 100
        * float(images.wrong(torch.cat([ask(x) for x in images.batches(x, size)]), pictures.y_test).mean())
        for where, x in tests.items()
    }


def read_images(folder: Path, like: Float[Tensor, "n c h w"]) -> tuple[list[str], Float[Tensor, "m c h w"]]:
    """Names and images in [0, 1] of a folder, cut to the size and colours that the network was trained on."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: a run on images adapts to the image files of one")
    grey = like.shape[1] == 1
    found = read_folder(folder, "grey" if grey else "rgb")
    names = natural_order(found)
    if not names:
        raise UserError(f"{folder} holds no images")
    return names, to_float(torch.stack([fit(found[name], like.shape[-1], grey) for name in names]), 0.0, 1.0)
