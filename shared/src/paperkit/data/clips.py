"""Videos: folders of frames as arrays, and lists of the benchmark's files. Used by vgpnn.

Decoding mp4 files is not done here.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from paperkit import UserError, images
from paperkit.data.root import Known, Root, find

VIDEOS = Known(
    "videos",
    "videos/{airballoons,benchmark,gallery}",
    "18 MB",
    "the VGPNN project page",
    "of their repository, research use",
)
BENCHMARKS = ("hpvaegan", "singangif")


@dataclass(frozen=True)
class Clip:
    """A real clip of the benchmark with the published samples of VGPNN (`ours`) and of the GAN (`theirs`)."""

    name: str
    real: Path
    ours: tuple[Path, ...]
    theirs: tuple[Path, ...]


def open_frames(name_or_path: str | Path, root: Root = None) -> UInt8[Tensor, "t 3 h w"]:
    """Read a folder of numbered frames, in the order of their numbers: a path, or a folder below videos/.

    Raises `UserError` when it is missing, empty, or its frames differ in size.
    """
    path = Path(name_or_path)
    folder = path if path.is_dir() else find(VIDEOS, root, [f"videos/{name_or_path}"])
    frames = list(images.read_folder(folder).values())
    if len({frame.shape for frame in frames}) > 1:
        raise UserError(f"the frames in {folder} differ in size")
    return torch.stack(frames)


def list_videos(root: Root = None) -> dict[str, Path]:
    """Every mp4 file of the set: its name below videos/ -> its path."""
    folder = find(VIDEOS, root, ["videos"])
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.mp4")}
    return {name: found[name] for name in images.natural_order(found)}


def list_clips(benchmark: str, root: Root = None) -> tuple[Clip, ...]:
    """The clips of "hpvaegan" or "singangif"; raises `UserError` for samples without a real clip."""
    if benchmark not in BENCHMARKS:
        raise UserError(f"no video benchmark {benchmark!r}: there are {' and '.join(BENCHMARKS)}")
    folder = find(VIDEOS, root, [f"videos/benchmark/{benchmark}"])
    grouped: dict[str, dict[str, list[Path]]] = {}
    for name in images.natural_order(path.name for path in folder.glob("*.mp4")):
        match = re.fullmatch(r"(.+)_(gt|ours|theirs)\d*\.mp4", name)
        if match:
            grouped.setdefault(match[1], {}).setdefault(match[2], []).append(folder / name)
    lonely = [clip for clip, kinds in grouped.items() if "gt" not in kinds]
    if lonely or not grouped:
        raise UserError(f"{folder} has no real clip {lonely[0] if lonely else '<name>'}_gt.mp4")
    return tuple(
        Clip(name, kinds["gt"][0], tuple(kinds.get("ours", ())), tuple(kinds.get("theirs", ())))
        for name, kinds in grouped.items()
    )
