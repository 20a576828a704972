"""Image files and pictures: read, write, convert, grids, labelled rows. Used by every paper.

One convention: an image is a uint8 tensor (channels, height, width), 0 is black and 255 is white. Networks
see floats by `to_float`, which maps 0..255 onto [-1, 1], and what they make comes back by `to_uint8`.
"""

import io
import os
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from paperkit import UserError
from paperkit.run import atomic

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
"""File names with these endings, in any case, are images."""

Mode = Literal["rgb", "grey", "rgba"]
"""What a file is read as: 3 or 1 channels with transparency laid over white, or 4 channels."""

_PIL_MODE = {"rgb": "RGB", "grey": "L", "rgba": "RGBA"}
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF"}
_BROKEN = (
    OSError,
    SyntaxError,  # Pillow's word for a broken PNG chunk
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


# ---------------------------------------------------------------------------------------------------------
# Values


def to_uint8(x: Tensor, low: float = -1.0, high: float = 1.0) -> UInt8[Tensor, "..."]:
    """Map [low, high] onto 0..255, rounded to the nearest and clipped; uint8 passes through.

    Raises `UserError` when a value is not finite or high <= low: such a picture would lie.
    """
    if x.dtype == torch.uint8:
        return x
    if not high > low:
        raise UserError(f"the range of an image needs low < high, got [{low:g}, {high:g}]")
    x = x.detach().float()
    if not bool(torch.isfinite(x).all()):
        raise UserError("an image holds values that are not finite: nothing was drawn")
    return ((x - low) * (255 / (high - low))).round().clamp(0, 255).to(torch.uint8)


def to_float(x: UInt8[Tensor, "..."], low: float = -1.0, high: float = 1.0) -> Float[Tensor, "..."]:
    """Map 0..255 onto [low, high] in float32; the inverse of `to_uint8`."""
    return x.float() * ((high - low) / 255) + low


def fit(
    image: UInt8[Tensor, "*batch c h w"], size: int | None = None, grey: bool = False
) -> UInt8[Tensor, "*batch d s t"]:
    """Resize the shorter side to `size` pixels, antialiased, and crop the centre square; then one channel if
    `grey`.

    Grey is 0.299 R + 0.587 G + 0.114 B. Raises `UserError` when `size` is not positive.
    """
    if size is not None:
        check_positive(size=size)
        image = image if tuple(image.shape[-2:]) == (size, size) else _shrink(image, size)
    return _grey(image) if grey and image.shape[-3] == 3 else image


def _shrink(image: Tensor, size: int) -> Tensor:
    # Here: importing torchvision takes seconds.
    from torchvision.transforms.v2.functional import center_crop, resize

    return center_crop(resize(image, [size], antialias=True), [size, size])


def _grey(image: Tensor) -> Tensor:
    """As Pillow rounds it; torchvision's weights sum to 0.9999, which would turn grey 200 into 199."""
    red, green, blue = image.int().unbind(-3)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8).unsqueeze(-3)


def check_positive(**sizes: int) -> None:
    """Raise `UserError` with the argument's name when one of `sizes` is below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")


# ---------------------------------------------------------------------------------------------------------
# Files


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names with numbers by their value: 2.png stands before 10.png."""

    def key(name: str) -> tuple[list[tuple[bool, int, str]], str]:
        parts = re.split(r"(\d+)", name)
        return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts], name

    return sorted(names, key=key)


def is_image(name: str) -> bool:
    """Whether a file name ends as an image's does and is no hidden file (`._x.png` of macOS archives)."""
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(SUFFIXES) and not base.startswith(".") and not name.startswith("__MACOSX/")


def read(path: str | os.PathLike[str], mode: Mode = "rgb") -> UInt8[Tensor, "c h w"]:
    """Read an image file, turned upright by its EXIF orientation.

    16-bit pixels are reduced to 8 bits; of an animation the first frame is read. Raises `UserError`, one line
    with the file's name, when the file is missing, is cut short or is no image.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror or error}") from error
    return decode(data, str(path), mode)


def decode(data: bytes, name: str, mode: Mode = "rgb") -> UInt8[Tensor, "c h w"]:
    """Decode the bytes of an image file as `read` does; `name` stands in the error's line."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.array(_convert(ImageOps.exif_transpose(image), mode))
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name} is no image that can be read ({len(data):,} bytes)") from error
    except _BROKEN as error:
        raise UserError(f"{name} is cut short or damaged: {_first_line(error)}") from error
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1).contiguous()


def _convert(image: Image.Image, mode: Mode) -> Image.Image:
    if image.mode == "F":
        raise ValueError("float pixels have no stated range")
    if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255 instead of scaling it
        image = Image.fromarray(_reduce_16_bit(np.asarray(image)))
    if mode != "rgba" and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(_PIL_MODE[mode])


def _reduce_16_bit(pixels: np.ndarray) -> np.ndarray:
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("32-bit pixels have no stated range")
    return np.round(pixels / 257).astype(np.uint8)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def read_folder(path: str | os.PathLike[str], mode: Mode = "rgb") -> dict[str, UInt8[Tensor, "c h w"]]:
    """Read every image that lies directly in a folder: file name -> image, in natural order.

    Raises `UserError` when the folder is missing or holds no image, or when one of its images cannot be read.
    """
    folder = Path(path)
    try:
        names = natural_order(entry.name for entry in folder.iterdir() if is_image(entry.name))
    except OSError as error:
        raise UserError(f"cannot read the folder {path}: {error.strerror or error}") from error
    if not names:
        raise UserError(f"no images in {path} (looked for {' '.join(SUFFIXES)})")
    return {name: read(folder / name, mode) for name in names}


def write(
    path: str | os.PathLike[str], image: Tensor, low: float = -1.0, high: float = 1.0, quality: int = 95
) -> Path:
    """Write an image (c, h, w) or (h, w) with c = 1, 3 or 4, uint8 or float in [low, high]; returns the path.

    The file's ending says the format, and `.png` is added where there is none. `quality` counts for JPEG and
    WebP. Raises `UserError` for an unknown ending, another shape, or a place that cannot be written.
    """
    target = Path(path)
    target = target if target.suffix else target.with_name(target.name + ".png")
    form = _FORMATS.get(target.suffix.lower())
    if form is None:
        raise UserError(f"cannot write {target}: the ending must be one of {' '.join(_FORMATS)}")
    picture = to_pil(image, low, high)
    if form == "JPEG" and picture.mode == "RGBA":
        raise UserError(f"cannot write {target}: JPEG has no transparency; write a .png")
    options: dict[str, Any] = {"quality": quality} if form in ("JPEG", "WEBP") else {}
    with atomic(target) as stream:
        picture.save(stream, format=form, **options)
    return target


def to_pil(image: Tensor, low: float = -1.0, high: float = 1.0) -> Image.Image:
    """Turn a tensor (c, h, w) or (h, w), uint8 or float in [low, high], into a Pillow image."""
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[0] not in (1, 3, 4)) or 0 in image.shape:
        raise UserError(f"an image has the shape (h, w) or (1, 3 or 4, h, w), got {tuple(image.shape)}")
    pixels = to_uint8(image, low, high).cpu()
    pixels = pixels if pixels.ndim == 2 else rearrange(pixels, "c h w -> h w c")
    return Image.fromarray(pixels.squeeze(-1).numpy() if image.shape[0] == 1 else pixels.numpy())


# ---------------------------------------------------------------------------------------------------------
# Pictures of many images

Images = Tensor | Sequence[Tensor]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def stack(images: Images, low: float = -1.0, high: float = 1.0) -> UInt8[Tensor, "n c h w"]:
    """Stack images of one size, uint8 or float in [low, high], each (c, h, w) or (h, w), as uint8."""
    each = [image if image.ndim == 3 else image[None] for image in images]
    if not each:
        raise UserError("a picture needs at least one image, got none")
    shapes = {tuple(image.shape[-2:]) for image in each}
    if len(shapes) > 1:
        raise UserError(f"the images of one picture need one size, got {sorted(shapes)}")
    channels = max(image.shape[0] for image in each)
    same = [image.expand(channels, -1, -1) if image.shape[0] == 1 else image for image in each]
    return torch.stack([to_uint8(image, low, high).cpu() for image in same])


def enlarge(images: UInt8[Tensor, "n c h w"], scale: int) -> UInt8[Tensor, "n c sh sw"]:
    """Repeat every pixel `scale` times in both directions: exact for tiny images such as 8x8 digits."""
    check_positive(scale=scale)
    return repeat(images, "n c h w -> n c (h s) (w t)", s=scale, t=scale)


def grid(
    images: Images,
    columns: int | None = None,
    pad: int = 2,
    scale: int | None = None,
    *,
    low: float = -1.0,
    high: float = 1.0,
    background: int = 255,
) -> UInt8[Tensor, "3 gh gw"]:
    """Lay images out in rows of `columns` (default: nearly square), `pad` pixels apart.

    `images` is (n, c, h, w) or a list of (c, h, w), uint8 or float in [low, high]. `scale` repeats pixels; by
    default images below 32 pixels are enlarged to 32 or more. Raises `UserError` for no images or sizes below
    1.
    """
    tiles = stack(images, low, high)
    columns = columns if columns is not None else int(np.ceil(np.sqrt(len(tiles))))
    check_positive(columns=columns)
    if pad < 0:
        raise UserError(f"pad must be at least 0, got {pad}")
    tiles = enlarge(tiles, scale if scale is not None else _scale_to(tiles, 32))
    columns = min(columns, len(tiles))
    # Every tile has its padding at the left and above, the sheet the last ones at the right and below.
    colour = tiles.expand(-1, 3, -1, -1) if tiles.shape[1] == 1 else tiles
    framed = F.pad(colour, (pad, 0, pad, 0), value=background)
    empty = framed.new_full((-len(tiles) % columns, *framed.shape[1:]), background)
    sheet = rearrange(torch.cat([framed, empty]), "(g k) c h w -> c (g h) (k w)", k=columns)
    return F.pad(sheet, (0, pad, 0, pad), value=background)


def _scale_to(tiles: UInt8[Tensor, "n c h w"], least: int) -> int:
    return max(1, -(-least // min(tiles.shape[-2:])))


def rows(
    labelled: Mapping[str, Images],
    pad: int = 3,
    scale: int | None = None,
    heads: Sequence[str] = (),
    *,
    low: float = -1.0,
    high: float = 1.0,
    font_size: int = 15,
) -> UInt8[Tensor, "3 ph pw"]:
    """Draw one row of images per entry with its caption at the left, and optional `heads` above the columns.

    `rows({"z": z, "f(z)": f(z)})`: the values as in `grid`, all of one size; dark text on white. By default
    images below 48 pixels are enlarged to 48 or more. Raises `UserError` when the rows' images differ in
    size, and for a letter that Pillow's built-in font has not (it has Latin ones, no Greek, no superscripts).
    """
    if pad < 0:
        raise UserError(f"pad must be at least 0, got {pad}")
    check_positive(font_size=font_size)
    strips = {caption: stack(images, low, high) for caption, images in labelled.items()}
    if not strips or len({tuple(tiles.shape[-2:]) for tiles in strips.values()}) > 1:
        raise UserError(f"labelled rows need images of one size, got {_sizes(strips)}")
    first = next(iter(strips.values()))
    scale = scale if scale is not None else _scale_to(first, 48)
    tiles = {caption: enlarge(images, scale) for caption, images in strips.items()}
    font = ImageFont.load_default(font_size)
    for text in (*labelled, *heads):
        _check_letters(text, font)
    return _draw_rows(tiles, pad, list(heads), font)


def _check_letters(text: str, font: Font) -> None:
    """Refuse what would be drawn as an empty box, the picture of a code that is no character."""
    box = _drawn("\uffff", font)
    unknown = [letter for letter in text if _drawn(letter, font) == box]
    if unknown:
        raise UserError(f"the built-in font cannot draw {unknown[0]!r} in the caption {text!r}: spell it out")


def _drawn(letter: str, font: Font) -> bytes:
    sheet = Image.new("L", (64, 64))
    ImageDraw.Draw(sheet).text((0, 0), letter, 255, font)
    return sheet.tobytes()


def _sizes(strips: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{caption} {tuple(tiles.shape[-2:])}" for caption, tiles in strips.items()) or "no rows"


def _draw_rows(
    tiles: Mapping[str, Tensor],
    pad: int,
    heads: list[str],
    font: Font,
) -> UInt8[Tensor, "3 ph pw"]:
    # 1. Measure: the widest caption sets the left margin, the heads' line the upper one.
    margin = 3 * pad + 4
    height, width = next(iter(tiles.values())).shape[-2:]
    left = margin + int(np.ceil(max(font.getlength(caption) for caption in tiles))) + margin
    line = int(np.ceil(font.getbbox("Ag|")[3]))
    top = margin + line + pad if heads else margin
    columns = max(len(images) for images in tiles.values())
    size = (left + columns * (width + pad) - pad + margin, top + len(tiles) * (height + pad) - pad + margin)
    # 2. Draw captions to the right, close to their row; heads centred above their column.
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    ink = (45, 45, 45)
    for column, head in enumerate(heads):
        middle = left + column * (width + pad) + width // 2
        draw.text((middle, top - 2 * pad), head, ink, font, anchor="ms")
    for row, (caption, images) in enumerate(tiles.items()):
        y = top + row * (height + pad)
        draw.text((left - margin, y + height // 2), caption, ink, font, anchor="rm")
        for column, image in enumerate(images):
            sheet.paste(to_pil(image).convert("RGB"), (left + column * (width + pad), y))
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).contiguous()
