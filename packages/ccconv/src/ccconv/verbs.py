"""The verbs `align` and `picture`."""

from pathlib import Path

import torch
from paperkit import UserError, images, suggest

from ccconv.config import AlignConfig, PictureConfig
from ccconv.drift import align, table
from ccconv.page import one_filter


def align_model(config: AlignConfig) -> None:
    """`ccconv align`: the drift of every layer of a torchvision network, or the total over sizes."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if config.model not in names:
        raise UserError(f"torchvision has no network {config.model}{suggest(config.model, names)}")
    with torch.device("meta"):
        model = torchvision.models.get_model(config.model, weights=None)
    if not config.sweep:
        print(table(align(model, config.size)))
        return
    for size in range(config.size, config.size + config.sweep):
        rows = [row for row in align(model, size) if row.kind not in ("meeting", "adaptive pool")]
        drift = float(rows[-1].drift[-1]) if rows else 0.0
        print(f"{size:6}  {drift:+8.2f} px")


def picture(config: PictureConfig) -> Path:
    """`ccconv picture`: f as a grey surface, with the points where scales 1/2, 1 and 3 sample it."""
    path = Path(config.out)
    if path.suffix.lower() != ".png":
        raise UserError(f"--out {config.out} must end in .png")
    images.write(path, one_filter(config.kernel, config.seed))
    print(path)
    return path
