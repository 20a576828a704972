"""Configurations and presets of every verb; their docstrings are the `--help`. Imports no torch."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from paperkit import UserError, at_least
from tyro.conf import Positional


@dataclass(frozen=True)
class Common:
    """What every task takes beside its videos. 0, -1 and "task" leave a choice to the task."""

    frames: int = 13
    """Take so many frames of a clip; 0 = all."""
    start: int = 0
    """First frame, counted from 0."""
    side: int = 72
    """Shrink clips to this shorter side in pixels; 0 = as they are (the paper's benchmark has 144)."""

    ratio_time: float = 0.0
    """Frames of a level over those of the finer one; 0 = the task's."""
    ratio_space: float = 0.0
    """The same for height and width."""
    least_frames: int = 0
    """Frames of the coarsest level; 0 = the task's."""
    least_side: int = 0
    """Shorter side of the coarsest level: large keeps the layout, small dissolves it; 0 = the task's."""
    patch: tuple[int, int, int] = (0, 0, 0)
    """Frames, height, width of a patch; zeros = the task's."""
    patch_limit: float = 3.0
    """Millions of voxels of a level above which it takes patches of 3x5x5 (the released code: 7.5)."""
    steps: int = 0
    """Searches per level; 0 = the task's. One above 3 million voxels."""
    coarse_steps: int = 0
    """Searches at the coarsest level; 0 = the task's."""
    alpha: float = 0.0
    """Completeness, in mean squares: small keeps all of the source, inf looks at coherence alone; 0 = the
    task's."""
    vote: Literal["median", "mean", "gaussian"] = "median"
    """How overlapping patches become a voxel."""
    search: Literal["auto", "exact", "patchmatch"] = "auto"
    """exact; patchmatch: approximate, memory linear in voxels; auto: exact where there are few keys."""
    switch: int = 0
    """Keys up to which auto is exact; 0 = the shipped count. `vgpnn bench exact` measures yours."""
    rounds: int = 0
    """Rounds of PatchMatch; 0 = the task's (20, analogies 15)."""
    identity_candidate: bool = False
    """PatchMatch also tries the key of the same place, as the released code does: more copies."""
    memory: int = 256
    """Working memory of a search and of a vote, in MiB."""
    format: Literal["mp4", "webm", "gif", "mkv", "png"] = "mp4"
    """What clips are written as; mkv and png (animated) are lossless."""
    rate: float = 0.0
    """Frames per second of the outputs; 0 = the input's."""

    def __post_init__(self):
        for name in (
            "frames",
            "start",
            "side",
            "least_frames",
            "least_side",
            "steps",
            "coarse_steps",
            "rounds",
            "switch",
        ):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} must not be negative: {getattr(self, name)}")
        for name in ("ratio_time", "ratio_space"):
            value = getattr(self, name)
            if value and not 0.1 <= value < 1:
                raise UserError(
                    f"--{name.replace('_', '-')} must be in [0.1, 1) (0: the task's), not {value}"
                )
        if math.isnan(self.alpha) or self.alpha < 0:
            raise UserError(f"--alpha must be positive or inf (0: the task's), not {self.alpha}")
        if min(self.patch) < 0 or (0 in self.patch and any(self.patch)):
            raise UserError(f"--patch takes three numbers from 1 on, not {self.patch}")
        if not self.patch_limit > 0:
            raise UserError(f"--patch-limit must be positive, not {self.patch_limit}")
        if self.memory < 1:
            raise UserError(f"--memory must be at least 1, not {self.memory}")
        if not (math.isfinite(self.rate) and self.rate >= 0):
            raise UserError(f"--rate must be a number of frames per second, not {self.rate}")


def _ratios(**ratios: float) -> None:
    for name, ratio in ratios.items():
        if not (math.isfinite(ratio) and ratio > 0):
            raise UserError(f"--{name} is a positive ratio, output over input, not {ratio}")


@dataclass(frozen=True)
class Drawn(Common):
    """What samples drawn from noise take."""

    input: Positional[str] = "stand-in"
    """A video file, a folder of frames, "stand-in", or a name below PAPERKIT_DATA/videos."""
    samples: int = 4
    """How many."""
    seed: int = 0
    """Seed of the noise and of PatchMatch."""
    noise: float = 5.0
    """Standard deviation of the noise at the coarsest level (values are in [-1, 1]; the paper: 2 to 5)."""
    noise_kind: Literal["voxel", "still", "auto"] = "voxel"
    """voxel; still: the same in every frame; auto: per voxel, as strong as patches differ."""

    def __post_init__(self):
        super().__post_init__()
        at_least(1, samples=self.samples)
        if not (math.isfinite(self.noise) and self.noise >= 0) or self.seed < 0:
            raise UserError(f"--noise and --seed must not be negative: {self.noise}, {self.seed}")


@dataclass(frozen=True)
class GenerateConfig(Drawn):
    """Different clips with the patches of one."""

    length: float = 1.0
    """Frames, output over input: 0.5 lets motions of different times meet."""
    height: float = 1.0
    """Ratio of the heights."""
    width: float = 1.0
    """Ratio of the widths."""

    def __post_init__(self):
        super().__post_init__()
        _ratios(length=self.length, height=self.height, width=self.width)


SMALL = GenerateConfig()
GENERATE = {
    "smoke": (
        replace(SMALL, side=36, frames=8, samples=2, steps=2), "two samples of 8 frames, in seconds"
    ),
    "small": (SMALL, "four samples, 13 frames of 72 pixels, a minute or two on a laptop CPU"),
    "paper": (
        replace(SMALL, side=144, samples=10),
        "10 samples of 13x144x256, ratios 0.87 and 0.82, noise 5, 5 searches per level",
    ),
    "code": (
        replace(SMALL, side=144, samples=10, ratio_time=0.85, ratio_space=0.85, search="patchmatch",
                identity_candidate=True, patch_limit=7.5),
        "the released code's settings: ratios 0.85, PatchMatch at every level, same-place candidates",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PreviewConfig(GenerateConfig):
    """Coarse samples to choose from; `finish` makes the chosen ones."""

    samples: int = 16
    """How many."""
    share: float = 0.1
    """Go so far up the pyramid as its levels hold this share of all voxels."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise UserError(f"--share must be in (0, 1], not {self.share}")


@dataclass(frozen=True)
class FinishConfig:
    """The chosen samples of a preview, at full size."""

    run: Positional[str] = "latest"
    """Folder of the preview, or latest."""
    choose: tuple[int, ...] = ()
    """Numbers of the samples; none = all."""


@dataclass(frozen=True)
class LoopConfig(Drawn):
    """Clips whose last frame leads into the first."""

    samples: int = 1
    """How many."""
    noise: float = 0.0
    """Noise at the coarsest level; 0: the clip itself, with a seam that is grown over."""
    length: float = 1.0
    """Frames, output over input."""

    def __post_init__(self):
        super().__post_init__()
        _ratios(length=self.length)


@dataclass(frozen=True)
class RetargetConfig(Common):
    """The clip at another size or length, its patches kept."""

    input: Positional[str] = "stand-in"
    """A video file, a folder of frames, "stand-in", or a name below PAPERKIT_DATA/videos."""
    length: float = 1.0
    """Ratio of the frames, output over input: the pace stays."""
    height: float = 1.0
    """Ratio of the heights."""
    width: float = 0.6
    """Ratio of the widths."""
    seed: int = 0
    """Seed of PatchMatch."""

    def __post_init__(self):
        super().__post_init__()
        _ratios(length=self.length, height=self.height, width=self.width)


@dataclass(frozen=True)
class InpaintConfig(Common):
    """Fill a hole; its painted colour says with what."""

    input: Positional[str] = "stand-in"
    """A video file, a folder of frames, "stand-in", or a name below PAPERKIT_DATA/videos."""
    mask: str = ""
    """White where the hole is: an image for all frames, or a video or folder of as many frames."""
    hole: str = ""
    """Or a box ROW,COLUMN,HEIGHT,WIDTH in pixels after --side, in every frame."""
    colour: str = ""
    """Paint the hole first: RED,GREEN,BLUE of 0..255, or "mean"; "none": no cue, remove; default: as it is
    in the input."""
    avoid: str = ""
    """White where nothing may be copied from, beside the hole: an image or a video."""
    whole: bool = False
    """Write the whole clip as it was synthesised, not only the hole."""
    seed: int = 0
    """Seed of PatchMatch."""

    def __post_init__(self):
        super().__post_init__()
        if self.mask and self.hole:
            raise UserError("--mask and --hole both say where the hole is: give one of them")


@dataclass(frozen=True)
class AnalogyConfig(Common):
    """The layout and motion of one clip in the look of another."""

    content: Positional[str] = "stand-in"
    """Whose layout and motion are kept."""
    style: Positional[str] = ""
    """Whose patches are taken."""
    flow: Literal["tvl1", "ilk", "raft"] = "tvl1"
    """Optical flow whose strength guides: scikit-image's TV-L1 or iterative Lucas-Kanade, or RAFT."""
    weights: str = ""
    """For raft: a file of torchvision's raft_large weights (.safetensors, or .pth)."""
    content_bins: int = 4
    """Levels that the content's strength of motion is told apart in."""
    style_bins: int = 8
    """The same of the style."""
    content_guide: str = ""
    """Guide channels from a file instead: an image folder or video as long as the content."""
    style_guide: str = ""
    """The same for the style."""
    guide_weight: float = 1.0
    """Weight of the guide beside the colours."""
    until: float = 0.5
    """Share of the levels, from the coarsest, that see the guide beside the colours."""
    style_frames: int = -1
    """Frames of the style; -1 = as --frames."""
    seed: int = 0
    """Seed of PatchMatch."""

    def __post_init__(self):
        super().__post_init__()
        at_least(1, content_bins=self.content_bins, style_bins=self.style_bins)
        if bool(self.content_guide) != bool(self.style_guide):
            raise UserError("--content-guide and --style-guide go together: give both")
        if not (math.isfinite(self.guide_weight) and self.guide_weight >= 0 and 0 <= self.until <= 1):
            raise UserError("--guide-weight must not be negative and --until must be in [0, 1]")
        if not self.style:
            raise UserError("two clips are needed, whose motion and whose look: vgpnn analogy CONTENT STYLE")


@dataclass(frozen=True)
class SketchConfig(Common):
    """A sketch that moves, in the look of a clip."""

    sketch: Positional[str] = ""
    """The sketch: a video file or a folder of frames."""
    style: Positional[str] = "stand-in"
    """Whose patches are taken."""
    style_frames: int = -1
    """Frames of the style; -1 = as --frames."""
    seed: int = 0
    """Seed of PatchMatch."""

    def __post_init__(self):
        super().__post_init__()
        if not self.sketch:
            raise UserError("a sketch is needed: vgpnn sketch SKETCH [STYLE]")


@dataclass(frozen=True)
class EvaluateConfig:
    """Figures of a run's outputs against its input."""

    run: str = "latest"
    """Run folder, or latest."""


@dataclass(frozen=True)
class ReportConfig:
    """One page about a run."""

    run: str = "latest"
    """Run folder, or latest."""


@dataclass(frozen=True)
class ReproduceConfig:
    """A claim of the README, run again."""

    id: Positional[str] = "all"
    """Result file to write, or all."""
    seeds: int = 3
    """How many seeds, 0, 1, ..."""
    side: int = 0
    """Shorter side of the clips in pixels; 0 = the claim's."""
    out: str = ""
    """Folder for the JSON; by default the package's results folder."""

    def __post_init__(self):
        at_least(1, seeds=self.seeds)


@dataclass(frozen=True)
class BenchConfig:
    """Time and memory, beside another implementation where one is named."""

    id: Positional[str] = "all"
    """official, limit, exact, or all."""
    peer: str = ""
    """Checkout of the released code (nivha/single_video_generation); without it only our side is timed."""
    peer_python: str = ""
    """Its interpreter; default: this one."""
    repeats: int = 5
    """Timed turns of each side, at least 5; fewer of a side that has taken five minutes."""
    threads: int = 1
    """Threads of both sides."""
    out: str = ""
    """Folder for the JSON; by default the package's results folder."""
    cases: tuple[str, ...] = field(default_factory=tuple)
    """Names of single cases; none = all of the benchmark."""

    def __post_init__(self):
        if self.repeats < 5 or self.threads < 1:
            raise UserError("--repeats must be at least 5 and --threads at least 1")
