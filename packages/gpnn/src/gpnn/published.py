"""`gpnn reproduce realism-diversity`: our samples beside the published ones of GPNN and of SinGAN.

Places50 and SIGD16 with one published sample of each method per image (cut out of the authors' user study by
ariel415el/GPDM), read from PAPERKIT_DATA/single-images. Ours are made as the authors made theirs: ratio 3/4,
nine levels, plain nearest neighbours, noise 1.25 on Places50 and 0.75 on SIGD16 (research notes, 1.1).
"""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from paperkit import UserError, images, results
from paperkit.data import data_root
from paperkit.resize import resize
from torch import Tensor
from tqdm import tqdm

from gpnn import metrics, tasks
from gpnn.config import ReproduceConfig
from gpnn.method import Settings, depth

QUALITY = 90
"""Of the JPEG through which every output goes: the published ones have been through another."""
LEVELS, NARROWEST = 9, 11
"""The authors' depth; the least coarsest side, for images smaller than theirs."""
MARGIN = 0.1
"""Less realism than this share of the published GPNN's mean cannot be told from none with so few images."""
NOTE = (
    "realism_half: at half size. frechet: features of the second fire module of SqueezeNet 1.0, over the "
    "variance of those of the source; not SIFID. departure: root mean square grey difference to the source, "
    "over its standard deviation. diversity: over the same, the standard deviation over diversity_samples."
)


@dataclass(frozen=True)
class Set:
    """A published set."""

    name: str
    noise: float
    suffix: str
    """Of the folders of published samples."""
    every: int
    """Each so-many-th image has all the seeds, for the diversity; the others one."""


SETS = (Set("SIGD16", 0.75, "", 1), Set("Places50", 1.25, "_high_var", 5))
PUBLISHED = {"gpnn": "GPNN", "singan": "SINGAN"}
SHOWN = ("realism", "frechet", "stay", "departure")
"""Figures that become arms; all of them stand in the rows."""


def files(root: Path, chosen: Set) -> list[dict[str, Path]]:
    """Source and published samples of each image. Raises `UserError` where any is missing."""
    place = root / "single-images"
    folder = place / chosen.name
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = []
    for name in images.natural_order(name for name in names if images.is_image(name)):
        row = {"source": folder / name}
        for method, label in PUBLISHED.items():
            sample = f"{chosen.name}_{label}{chosen.suffix}/{Path(name).stem}.png"
            row[method] = place / "published-results" / sample
        found.append(row)
    missing = [str(path) for row in found for path in row.values() if not path.exists()]
    if missing or not found:
        raise UserError(
            f"realism-diversity needs {missing[0] if missing else folder}: set PAPERKIT_DATA to a folder "
            f"with single-images/{chosen.name} and single-images/published-results (ariel415el/GPDM)"
        )
    return found


def through_jpeg(x: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """Written as a JPEG of QUALITY and read again."""
    buffer = io.BytesIO()
    images.to_pil(x.clamp(0, 1), 0, 1).save(buffer, "JPEG", quality=QUALITY)
    return images.to_float(images.decode(buffer.getvalue(), "sample.jpg"), 0, 1)


def samples(x: Float[Tensor, "3 h w"], noise: float, count: int) -> list[Float[Tensor, "3 h w"]]:
    """Ours, seed 0."""
    levels = min(LEVELS, depth((x.shape[1], x.shape[2]), 0.75, NARROWEST))
    settings = replace(Settings(), levels=levels)
    outputs = tasks.generate(x, count, 0, None, tasks.Noise("absolute", noise), settings)
    return [output.image.clamp(0, 1) for output in outputs]


class Judge:
    """The figures of outputs of one source, by one code for all methods."""

    def __init__(self, x: Float[Tensor, "3 h w"], frechet: metrics.SqueezeNetFrechet) -> None:
        self.x, self.half, self.frechet = x, halved(x), frechet
        self.spread = frechet.spread(x)
        self.natural = metrics.natural_distance(x), metrics.natural_distance(self.half)

    def __call__(self, y: Float[Tensor, "3 h w"]) -> dict[str, float]:
        """All figures of one output that has been through JPEG."""
        realism, stay = metrics.realism_and_stay(y, self.x, self.natural[0])
        half, _ = metrics.realism_and_stay(halved(y), self.half, self.natural[1])
        grey = self.x.mean(0)
        apart = float((y.mean(0) - grey).square().mean().sqrt() / grey.std(correction=0).clamp(min=1e-12))
        return {
            "realism": realism, "realism_half": half, "frechet": self.frechet(y, self.x) / self.spread,
            "stay": stay, "sharpness": metrics.sharpness(y, self.x), "departure": apart,
        }  # fmt: skip


def halved(x: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 s t"]:
    """Half as large: what compression did to single pixels hardly shows."""
    return resize(x, scale=0.5).clamp(0, 1)


def measure(chosen: Set, rows: list[dict[str, Path]], seeds: int, root: Path) -> list[dict[str, Any]]:
    """Figures of every method on every image; our diversity where there are several samples."""
    frechet, measured = metrics.SqueezeNetFrechet(root), []
    for number, row in enumerate(tqdm(rows, desc=chosen.name)):
        x = images.to_float(images.read(row["source"]), 0, 1)
        count = seeds if number % chosen.every == 0 else 1
        ours = [through_jpeg(y) for y in samples(x, chosen.noise, count)]
        judge = Judge(x, frechet)
        found: dict[str, Any] = {"set": chosen.name, "image": row["source"].name, "samples": count}
        found["ours"] = judge(ours[0])
        for method in PUBLISHED:
            y = images.to_float(images.read(row[method]), 0, 1)
            if y.shape != x.shape:
                raise UserError(f"{row[method]} is {tuple(y.shape[1:])}, its source {tuple(x.shape[1:])}")
            found[method] = judge(through_jpeg(y))
        if count > 1:
            found["diversity"] = metrics.diversity(ours, x)
        measured.append(found)
    return measured


def realism_diversity(config: ReproduceConfig) -> dict[str, Any]:
    """The record of the claim; `--seeds` samples of SIGD16 and of each fifth of Places50."""
    root = data_root()
    lists = [(each, files(root, each)) for each in SETS]
    rows = [row for each, paths in lists for row in measure(each, paths, config.seeds, root)]
    compared = {
        f"{method} {name} {figure}": _compared(rows, method, name, figure)
        for method in PUBLISHED
        for name in ("both", *(each.name for each in SETS))
        for figure in ("realism", "realism_half", "frechet")
    }
    gpnn, singan = compared["gpnn both realism"], compared["singan both realism"]
    statistic = min(
        gpnn["low"] / gpnn["against"] + MARGIN,
        gpnn["high"] / gpnn["against"],
        singan["low"] / singan["against"],
    )
    arms = {
        f"{name} {method} {figure}": [row[method][figure] for row in rows if row["set"] == name]
        for name in (each.name for each in SETS)
        for method in ("ours", *PUBLISHED)
        for figure in SHOWN
    }
    for each in SETS:
        several = [row["diversity"] for row in rows if row["set"] == each.name and "diversity" in row]
        arms |= {f"{each.name} ours diversity": several} if several else {}
    return {
        "claim": "Our samples are as real as the published ones of GPNN, and more so than those of SinGAN",
        "source": "main comparison (table not read); published samples by way of ariel415el/GPDM",
        "data": " and ".join(f"{each.name}, {len(paths)} images" for each, paths in lists),
        "metric": "realism", "unit": "1", "better": "lower", "ours": [row["ours"]["realism"] for row in rows],
        "against": ("SinGAN, published samples", [row["singan"]["realism"] for row in rows]), "arms": arms,
        "criterion": "realism, one sample of each method per image, all through one JPEG setting, over both "
        f"sets: 95 % paired bootstrap of published GPNN - ours wholly above -{MARGIN:.0%} of its mean and "
        "not wholly below 0, of SinGAN - ours wholly above 0 (statistic: the smallest of the three ends over "
        "the means, the margin added)",
        "statistic": statistic, "threshold": 0.0,
        "details": {
            "jpeg_quality": QUALITY, "noise": {each.name: each.noise for each in SETS}, "levels": LEVELS,
            "diversity_samples": config.seeds, "differences": compared, "rows": rows,
            "note": NOTE,
        },
    }  # fmt: skip


def _compared(rows: list[dict[str, Any]], method: str, name: str, figure: str) -> dict[str, float]:
    """The paired difference method - ours in a figure where lower is better."""
    some = [row for row in rows if name in ("both", row["set"])]
    ours, theirs = ([row[side][figure] for row in some] for side in ("ours", method))
    found = results.paired(ours, theirs, "lower")
    return {
        "ours": float(np.mean(ours)), "against": float(np.mean(theirs)), "difference": found.mean,
        "low": found.low, "high": found.high, "wins": found.wins, "losses": found.losses,
    }  # fmt: skip
