"""Video files: read and write mp4, webm, gif, lossless mkv, animated PNG and folders of frames, by PyAV.

Used by every verb and as the library. A clip is uint8 frames (t, 3, h, w) with their rate; `to_unit` and
`to_frames` turn it into a video (3, t, h, w) in [-1, 1] and back, rounded to the nearest.

Colour: the matrix and range that a file states; where it states no matrix, BT.709 from 720 rows on and BT.601
below. Files written here state theirs. 4:2:0 files need even sizes: the last row or column is repeated. What
a clip cannot hold is dropped with a line in `Clip.notices`: transparency, sound, a varying frame rate.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from jaxtyping import Float, UInt8
from paperkit import UserError, images
from paperkit.run import atomic, write_folder
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

SUFFIXES = (".mp4", ".webm", ".gif", ".mkv", ".mov", ".avi", ".m4v", ".apng")
"""File names with these endings are videos; others may be too."""
RATE = Fraction(10)
"""Frames per second where nothing says otherwise: the released code's."""
_HIGH = 720
"""Rows from which an untagged file is taken for BT.709."""
_CAREFUL = int(Interpolation.BICUBIC) | int(Interpolation.ACCURATE_RND) | int(Interpolation.FULL_CHR_H_INT)
"""swscale's quick ways with colour at half resolution darken a clip by 1 to 2 of 255 (measured)."""
_KINDS = {
    ".mp4": ("mp4", "libx264", "yuv420p", {"preset": "medium"}),
    ".webm": ("webm", "libvpx-vp9", "yuv420p", {"b": "0"}),
    ".mkv": ("matroska", "ffv1", "bgr0", {}),
}
_QUALITY = {".mp4": 16, ".webm": 20}
"""Constant rate factor unless one is asked for."""


@dataclass(frozen=True)
class Clip:
    """Frames, how many of them a second shows, and what was dropped when they were read."""

    frames: UInt8[Tensor, "t 3 h w"]
    rate: Fraction = RATE
    name: str = "clip"
    notices: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height, width."""
        return self.frames.shape[0], self.frames.shape[2], self.frames.shape[3]


def to_unit(frames: UInt8[Tensor, "t c h w"]) -> Float[Tensor, "c t h w"]:
    """Frames as a video in [-1, 1]."""
    return images.to_float(frames).movedim(1, 0).contiguous()


def to_frames(video: Float[Tensor, "c t h w"]) -> UInt8[Tensor, "t c h w"]:
    """A video in [-1, 1] as frames, clipped and rounded."""
    return images.to_uint8(video.movedim(0, 1)).cpu().contiguous()


# ---- Reading


def read(path: str | os.PathLike[str]) -> Clip:
    """Read a video file or a folder of frames, upright, every frame once in its order.

    Raises `UserError`, one line with the name, for what is missing, empty, damaged or of varying size.
    """
    place = Path(path)
    if place.is_dir():
        return _read_folder(place)
    if not place.exists():
        raise UserError(f"no video at {place}: name a video file or a folder of frames")
    if place.stat().st_size == 0:
        raise UserError(f"{place} is empty: no video")
    try:
        with av.open(str(place)) as container:
            return _decode(container, place)
    except (av.FFmpegError, EOFError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        raise UserError(f"{place} is no video that can be read, or is damaged: {reason}") from error


def _read_folder(folder: Path) -> Clip:
    found = images.read_folder(folder)
    first = next(iter(found.values()))
    for name, frame in found.items():
        if frame.shape != first.shape:
            raise UserError(
                f"the frames of {folder} differ in size: {name} is {tuple(frame.shape[1:])}, the first "
                f"{tuple(first.shape[1:])}"
            )
    return Clip(torch.stack(list(found.values())), RATE, folder.name)


def _decode(container: Any, place: Path) -> Clip:
    if not container.streams.video:
        raise UserError(f"{place} holds no video")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    frames, times, turned, alpha = [], [], 0, False
    for frame in container.decode(stream):
        frames.append(_pixels(frame))
        times.append(frame.time)
        turned, alpha = int(getattr(frame, "rotation", 0) or 0), alpha or _see_through(frame)
        if frames[-1].shape != frames[0].shape:
            raise UserError(f"the frames of {place} differ in size: cut it where the size changes")
    if not frames:
        raise UserError(f"{place} holds no frames")
    notices = []
    if alpha:
        notices.append(f"{place.name}: transparency was dropped")
    if container.streams.audio:
        notices.append(f"{place.name}: sound was dropped")
    if _varies(times):
        notices.append(f"{place.name}: the frame rate varies; every frame is kept once, at the mean rate")
    rate = _mean_rate(times) if _varies(times) else stream.average_rate or stream.guessed_rate
    pixels = torch.from_numpy(np.stack([upright(frame, turned) for frame in frames]))
    return Clip(pixels.permute(0, 3, 1, 2).contiguous(), Fraction(rate or RATE), place.stem, tuple(notices))


def _pixels(frame: Any) -> np.ndarray:
    """A frame as RGB by the matrix and range that it states."""
    if frame.format.name.startswith(("rgb", "bgr", "gbr", "pal", "arg", "abg", "0rgb", "0bgr", "gray")):
        return frame.to_ndarray(format="rgb24")
    stated = int(frame.colorspace)
    matrix = {1: Colorspace.ITU709, 4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601,
              7: Colorspace.SMPTE240M, 9: Colorspace.BT2020, 10: Colorspace.BT2020}.get(stated)  # fmt: skip
    if matrix is None:
        matrix = Colorspace.ITU709 if frame.height >= _HIGH else Colorspace.ITU601
    full = int(frame.color_range) == 2 or frame.format.name.startswith("yuvj")
    turned = frame.reformat(
        format="rgb24",
        src_colorspace=matrix,
        src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=_CAREFUL,
    )
    return turned.to_ndarray()


def _see_through(frame: Any) -> bool:
    """Whether a frame has transparent pixels."""
    if not any(part.is_alpha for part in frame.format.components):
        return False
    return bool(frame.to_ndarray(format="rgba")[..., 3].min() < 255)


def upright(frame: np.ndarray, degrees: int) -> np.ndarray:
    """A frame (h, w, 3) turned by the file's rotation, counted against the clock in steps of 90."""
    return np.ascontiguousarray(np.rot90(frame, round(degrees / 90) % 4))


def _varies(times: list[Any]) -> bool:
    if len(times) < 3 or any(time is None for time in times):
        return False
    gaps = np.diff(np.array(times, float))
    return bool(gaps.max() > 1.5 * np.median(gaps) or gaps.min() < 0.5 * np.median(gaps))


def _mean_rate(times: list[Any]) -> Fraction:
    return Fraction((len(times) - 1) / max(1e-6, float(times[-1] - times[0]))).limit_denominator(1001)


# ---- Writing


def write(
    path: str | os.PathLike[str],
    frames: UInt8[Tensor, "t 3 h w"],
    rate: Fraction = RATE,
    quality: int | None = None,
) -> Path:
    """Write frames whole or not at all; returns the path. The ending says how:

    .mp4 (H.264), .webm (VP9), .mkv (FFV1, lossless), .gif, .png or .apng (animated PNG, lossless), none: a
    folder of PNG frames. `quality` is the constant rate factor of mp4 and webm, lower is better.
    Raises `UserError` for no frames, an unknown ending, a missing codec and a place that cannot be written.
    """
    target = Path(path)
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise UserError(f"a clip has the shape (frames, 3, h, w), got {tuple(frames.shape)}")
    suffix = target.suffix.lower()
    if not suffix:
        write_folder(target, {f"{n + 1:04d}.png": _png(frame) for n, frame in enumerate(frames)})
        return target
    if suffix in (".gif", ".png", ".apng"):
        data = _animation(frames, rate, "GIF" if suffix == ".gif" else "PNG")
    elif suffix in _KINDS:
        data = _encode(frames, rate, suffix, quality)
    else:
        known = " ".join([*_KINDS, ".gif", ".png"])
        raise UserError(f"cannot write {target}: the ending must be one of {known}, or none for a folder")
    with atomic(target) as stream:
        stream.write(data)
    return target


def _png(frame: Tensor) -> bytes:
    buffer = io.BytesIO()
    images.to_pil(frame).save(buffer, "PNG")
    return buffer.getvalue()


def _animation(frames: Tensor, rate: Fraction, form: str) -> bytes:
    """A GIF (a palette per frame, hundredths of a second) or an animated PNG, endless.

    Equal frames in a row become one that is shown longer.
    """
    pictures = [images.to_pil(frame) for frame in frames]
    buffer = io.BytesIO()
    if len(pictures) == 1:
        pictures[0].save(buffer, form)
        return buffer.getvalue()
    if form == "GIF":
        step = max(2, round(100 / rate)) * 10
        pictures = [picture.quantize(256, dither=Image.Dither.NONE) for picture in pictures]
        pictures[0].save(
            buffer, form, save_all=True, append_images=pictures[1:], duration=step, loop=0, disposal=1
        )
    else:
        pictures[0].save(
            buffer, form, save_all=True, append_images=pictures[1:], duration=float(1000 / rate), loop=0
        )
    return buffer.getvalue()


def _encode(frames: Tensor, rate: Fraction, suffix: str, quality: int | None) -> bytes:
    form, codec, pixels, options = _KINDS[suffix]
    options = dict(options)
    if suffix in _QUALITY:
        options["crf"] = str(_QUALITY[suffix] if quality is None else quality)
    if codec not in av.codecs_available:
        raise UserError(
            f"this build of PyAV has no encoder {codec}: write a folder of frames, or another ending"
        )
    subsampled = pixels == "yuv420p"
    frames = pad_even(frames) if subsampled else frames
    buffer = io.BytesIO()
    # bitexact: no random numbers in the file, the same clip is the same bytes.
    with av.open(buffer, "w", format=form, options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream(codec, rate=rate.limit_denominator(60_000), options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[2], frames.shape[3], pixels
        matrix = _tag(stream, frames.shape[2]) if subsampled else None
        for frame in _pictures(frames, pixels, matrix):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _tag(stream: Any, height: int) -> Any:
    """State the colours of a stream; returns their matrix."""
    high = height >= _HIGH
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = 1 if high else 6
    context.color_range = 1
    return Colorspace.ITU709 if high else Colorspace.ITU601


def _pictures(frames: Tensor, pixels: str, matrix: Any) -> Iterator[Any]:
    for frame in frames:
        picture = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
        if matrix is None:
            yield picture.reformat(format=pixels)
        else:
            yield picture.reformat(
                format=pixels,
                dst_colorspace=matrix,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                interpolation=_CAREFUL,
            )


def pad_even(frames: UInt8[Tensor, "t 3 h w"]) -> UInt8[Tensor, "t 3 _ _"]:
    """Repeat the last row or column of odd sizes, as 4:2:0 needs."""
    height, width = frames.shape[2:]
    if height % 2 == 0 and width % 2 == 0:
        return frames
    return F.pad(frames.float(), (0, width % 2, 0, height % 2), mode="replicate").to(torch.uint8)
