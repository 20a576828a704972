"""`ittt adapt FOLDER` with a run on images: what comes of every image file. Used by `verbs`."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from paperkit import UserError
from paperkit.data import open_set
from paperkit.images import fit, natural_order, read_folder, to_float
from paperkit.run import find, read_json
from torch import Tensor

from ittt import images
from ittt.config import AdaptConfig
from ittt.image_config import is_images


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
