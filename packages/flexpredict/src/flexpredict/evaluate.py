"""`flexpredict evaluate`: probes of a frozen encoder, on features that are computed once and kept."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from paperkit import UserError, images
from paperkit.data import ImageSet
from paperkit.device import Device, choose
from paperkit.run import (
    atomic,
    checkpoints,
    find,
    from_json,
    load_checkpoint,
    load_weights,
    read_json,
    write_json,
)
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from flexpredict import clevr, data, davis
from flexpredict.checkpoints import read
from flexpredict.config import EvaluateConfig, TrainConfig
from flexpredict.data import Scale
from flexpredict.model import Encoder
from flexpredict.probes import Split, features, few, knn, linear_heads, logistic

LAST = 4
"""Blocks whose outputs the larger linear heads see."""


@dataclass(frozen=True)
class Frozen:
    """An encoder, the scale of its pixels, and where it comes from."""

    encoder: Encoder
    scale: Scale
    config: TrainConfig | None
    place: Path
    """Folder for what is computed from it."""
    name: str


def frozen(config: EvaluateConfig) -> Frozen:
    """The encoder that a configuration names: of a run, or of a checkpoint file."""
    path = Path(config.weights)
    encoder = read(config.weights).encoder("target", config.heads or _heads(config.weights))
    if path.is_file():
        scale = Scale(torch.tensor(data.IMAGENET_MEAN), torch.tensor(data.IMAGENET_STD))
        return Frozen(encoder, scale, None, Path("."), path.name)
    folder = find("flexpredict", config.weights)
    stored = from_json(TrainConfig, read_json(folder / "config.json"), str(folder / "config.json"))
    kept = load_checkpoint(checkpoints(folder)[-1])[0]["scale"]
    return Frozen(encoder, Scale(kept["mean"], kept["std"]), stored, folder, str(folder))


def _heads(weights: str) -> int:
    """Attention heads of a run's encoder; 0 for a file."""
    if Path(weights).is_file():
        return 0
    stored = read_json(find("flexpredict", weights) / "config.json")
    return int(stored["net"]["heads"])


def evaluate(config: EvaluateConfig) -> Path:
    """Probe and print; writes and returns a JSON file. Raises `UserError` for sets that cannot be probed."""
    device = choose(config.device, "fp32")
    subject = frozen(config)
    subject.encoder.to(device.device)
    if config.probe == "davis":
        return _write(config, subject, {"weights": subject.name, "davis": _davis(config, subject)})
    train_set, test_set = sets(config, subject)
    x, y = extract(config, subject, train_set, device)
    x_test, y_test = extract(config, subject, test_set, device)
    split = Split(x[-1], y, x_test[-1], y_test)
    found: dict[str, Any] = {"weights": subject.name, "data": str(train_set), "test": str(test_set)}
    if config.probe in ("all", "knn"):
        found["knn"] = knn(split)
        print(f"20-NN                    {found['knn']:.2f} %", flush=True)
    if config.probe in ("all", "logistic"):
        rows = few(y, config.share, config.seed)
        part = replace(split, x=split.x[rows], y=y[rows])
        found["logistic"] = logistic(part, config.strength, False, config.test_statistics)
        found["logistic_images"] = len(rows)
        print(f"logistic, {len(rows):,} labels  {found['logistic']:.2f} %", flush=True)
    if config.probe in ("all", "linear"):
        heads = linear_heads(x, y, x_test, y_test, config.epochs, config.batch, config.seed)
        found["linear"] = vars(heads)
        print(
            f"linear                   {heads.test:.2f} % ({heads.best}, chosen on held-out training images)"
        )
    return _write(config, subject, found)


def _write(config: EvaluateConfig, subject: Frozen, found: dict[str, Any]) -> Path:
    out = Path(config.out) if config.out else subject.place / "evaluation.json"
    write_json(out, found)
    print(out)
    return out


def _davis(config: EvaluateConfig, subject: Frozen) -> dict[str, Any]:
    if not config.data:
        raise UserError("--probe davis: say with --data where the folder of DAVIS-2017 is")
    found = davis.evaluate(subject.encoder, subject.scale, Path(config.data), config.limit)
    print(f"J {found['J']:.2f}  F {found['F']:.2f}  J&F {found['J&F']:.2f} %", flush=True)
    return found


def sets(config: EvaluateConfig, subject: Frozen) -> tuple[ImageSet, ImageSet]:
    """Training and test images with labels."""
    name = config.data or (subject.config.data if subject.config else "")
    if not name:
        raise UserError(f"{subject.name} does not say what it was trained on: give --data")
    opened = [_open(name, split, config.limit) for split in ("train", "test")]
    for each in opened:
        if int(each.labels.min()) < 0:
            raise UserError(f"{each} has no labels: probes need class folders, or a set with labels")
    return opened[0], opened[1]


def _open(name: str, split: str, limit: int) -> ImageSet:
    if name not in clevr.TASKS:
        return data.open_split(TrainConfig(data=name, limit=limit), split)
    opened = clevr.open_clevr(name, split)
    return opened.subset(limit) if limit and split == "train" else opened


# ---- features, computed once -----------------------------------------------------------------------------


def extract(
    config: EvaluateConfig, subject: Frozen, opened: ImageSet, device: Device
) -> tuple[Float[Tensor, "l n d"], Int64[Tensor, " n"]]:
    """Pooled features of the last blocks, from the run's folder where they were computed before."""
    grid, patch = subject.encoder.grid, subject.encoder.patch
    size = config.size or grid[0] * patch
    last = min(LAST, len(subject.encoder.blocks))
    facts = [subject.name, _stamp(config.weights), str(opened), opened.split, size, last, config.limit]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    path = subject.place / "features" / f"{name}.safetensors"
    if path.exists():
        kept = load_weights(path)
        return kept["x"], kept["y"]
    squash = (config.data or "") in clevr.TASKS  # objects at the border count: no crop
    loader = DataLoader(_Fitted(opened, size, len(subject.scale.mean), squash), config.batch)
    parts = [(features(subject.encoder, pixels, subject.scale, last), y) for pixels, y in loader]
    x, y = torch.cat([part for part, _ in parts], 1), torch.cat([labels for _, labels in parts])
    from safetensors.torch import save

    with atomic(path) as stream:
        stream.write(save({"x": x.contiguous(), "y": y}))
    return x, y


def _stamp(weights: str) -> float:
    """When the weights were written."""
    path = Path(weights)
    if not path.is_file():
        path = checkpoints(find("flexpredict", weights))[-1]
    return path.stat().st_mtime


class _Fitted(Dataset[tuple[Tensor, int]]):
    """Images of one size and number of channels; cropped at the centre, or squashed into the square."""

    def __init__(self, opened: ImageSet, size: int, channels: int, squash: bool = False):
        self._images, self._size, self._channels, self._squash = opened, size, channels, squash

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> tuple[UInt8[Tensor, "c h w"], int]:
        image, label = self._images[i]
        if self._squash:
            image = squashed(image, self._size)
        image = images.fit(image, self._size, grey=self._channels == 1)
        return image.expand(self._channels, -1, -1) if len(image) == 1 else image, label


def squashed(image: UInt8[Tensor, "c h w"], size: int) -> UInt8[Tensor, "c s s"]:
    """The whole image as a square."""
    small = F.interpolate(image[None].float(), (size, size), mode="bilinear", antialias=True)
    return small[0].round().clamp(0, 255).to(torch.uint8)
