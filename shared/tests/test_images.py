"""Image files, conversions, grids and labelled rows."""

import io

import numpy as np
import pytest
import torch
from paperkit import UserError, images
from PIL import Image


def _pixels(h=5, w=7, c=3, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (c, h, w), dtype=np.uint8))


def _save(path, array, **options):
    Image.fromarray(np.asarray(array)).save(path, **options)


# --- values ---


def test_floats_and_bytes_are_inverse():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    for low, high in [(-1.0, 1.0), (0.0, 1.0), (-3.0, 5.0)]:
        assert torch.equal(images.to_uint8(images.to_float(every, low, high), low, high), every)
    assert images.to_float(every).min() == -1
    assert images.to_float(every).max() == 1


def test_bytes_round_and_clip():
    x = torch.tensor([-5.0, -1.0, -1 + 2 * 0.49 / 255, -1 + 2 * 0.51 / 255, 0.0, 1.0, 5.0])
    assert images.to_uint8(x).tolist() == [0, 0, 0, 1, 128, 255, 255]
    assert images.to_uint8(torch.tensor([0, 255], dtype=torch.uint8), 3.0, 4.0).tolist() == [0, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(UserError, match="not finite"):
        images.to_uint8(torch.tensor([0.0, bad]))


def test_an_empty_range_is_refused():
    with pytest.raises(UserError, match="low < high"):
        images.to_uint8(torch.zeros(1), 1.0, 1.0)


def test_fit_keeps_the_centre_and_the_shape():
    wide = torch.zeros(3, 10, 30, dtype=torch.uint8)
    wide[:, :, 10:20] = 200
    square = images.fit(wide, 10)
    assert square.shape == (3, 10, 10)
    assert bool((square == 200).all())
    assert images.fit(torch.zeros(4, 3, 9, 6, dtype=torch.uint8), 12).shape == (4, 3, 12, 12)


def test_grey_is_the_weighted_sum():
    colour = _pixels(40, 50)
    expected = (colour.double() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    assert (images.fit(colour, grey=True).double() - expected).abs().max() <= 0.51
    pillow = np.asarray(Image.fromarray(colour.permute(1, 2, 0).numpy()).convert("L"))
    assert np.array_equal(images.fit(colour[None], grey=True)[0, 0].numpy(), pillow)
    every = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert torch.equal(images.fit(every, grey=True), every[:1])
    assert torch.equal(images.fit(colour[:1], grey=True), colour[:1])


@pytest.mark.parametrize("size", [0, -3])
def test_sizes_below_one_are_refused(size):
    with pytest.raises(UserError, match="size must be at least 1"):
        images.fit(_pixels(), size)


# --- files ---


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tif"])
def test_what_was_written_is_read_again(tmp_path, suffix):
    image = _pixels()
    if suffix == ".webp":  # with loss: only the shape can be asked for
        assert images.read(images.write(tmp_path / "x.webp", image)).shape == image.shape
        return
    assert torch.equal(images.read(images.write(tmp_path / f"x{suffix}", image)), image)


def test_write_takes_floats_greys_and_adds_the_ending(tmp_path):
    x = torch.linspace(0, 1, 12).reshape(3, 4)
    path = images.write(tmp_path / "deep" / "x", x, low=0.0, high=1.0)
    assert path == tmp_path / "deep" / "x.png"
    assert torch.equal(images.read(path, "grey")[0], images.to_uint8(x, 0.0, 1.0))
    assert [entry.name for entry in path.parent.iterdir()] == ["x.png"]


def test_transparency_lies_over_white_or_is_kept(tmp_path):
    rgba = torch.zeros(4, 2, 2, dtype=torch.uint8)
    rgba[3, 0, 0], rgba[3, 0, 1] = 255, 51  # opaque black, one fifth black
    path = images.write(tmp_path / "x.png", rgba)
    assert torch.equal(images.read(path, "rgba"), rgba)
    assert images.read(path)[:, 0, 0].tolist() == [0, 0, 0]
    assert images.read(path)[:, 0, 1].tolist() == [204, 204, 204]
    assert images.read(path)[:, 1, 1].tolist() == [255, 255, 255]


def test_a_palette_with_transparency_lies_over_white(tmp_path):
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "x.png", transparency=1)
    assert images.read(tmp_path / "x.png").permute(1, 2, 0).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path):
    _save(tmp_path / "x.png", np.array([[0, 257, 32768, 65535]], np.uint16))
    assert images.read(tmp_path / "x.png", "grey").tolist() == [[[0, 1, 128, 255]]]


def test_float_pixels_are_refused(tmp_path):
    _save(tmp_path / "x.tif", np.zeros((2, 2), np.float32))
    with pytest.raises(UserError, match=r"x\.tif.*no stated range"):
        images.read(tmp_path / "x.tif")


def test_exif_turns_the_image_upright(tmp_path):
    picture = Image.fromarray(np.array([[0, 255]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees: the first column stands on top
    picture.save(tmp_path / "x.png", exif=exif)
    assert images.read(tmp_path / "x.png", "grey").tolist() == [[[0], [255]]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK"])
def test_every_kind_of_file_becomes_three_channels(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new(mode, (4, 3)).save(path)
    assert images.read(path).shape == (3, 3, 4)


def _png():
    buffer = io.BytesIO()
    _save(buffer, np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8), format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no image"),
        (b"hello, I am text", "no image"),
        (_png()[:200], "cut short or damaged"),
        (_png()[:60] + b"\0" * 40 + _png()[100:], "cut short or damaged"),
        (_png()[:20], "no image|cut short"),
    ],
)
def test_a_png_that_is_no_image_gets_one_line(tmp_path, data, message):
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        images.read(path)
    assert "broken.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read image .*none\.png: No such file"):
        images.read(tmp_path / "none.png")


def test_a_folder_is_read_in_natural_order(tmp_path):
    for k in (10, 2, 1):
        images.write(tmp_path / f"{k}.png", torch.full((1, 1, 1), k, dtype=torch.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._1.png").write_text("hidden")
    read = images.read_folder(tmp_path, "grey")
    assert [(name, int(image)) for name, image in read.items()] == [
        ("1.png", 1),
        ("2.png", 2),
        ("10.png", 10),
    ]


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="no images in"):
        images.read_folder(tmp_path)
    with pytest.raises(UserError, match="cannot read the folder"):
        images.read_folder(tmp_path / "none")


def test_natural_order_is_total():
    names = ["b", "a10", "a2", "a02", "10", "9", "", "a", "a1b2", "a1b10"]
    assert images.natural_order(names) == images.natural_order(reversed(names))
    assert images.natural_order(["a10", "a9", "10", "9"]) == ["9", "10", "a9", "a10"]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x.xyz", (3, 2, 2), "ending must be one of"),
        ("x.jpg", (4, 2, 2), "no transparency"),
        ("x.png", (2, 2, 2), "has the shape"),
        ("x.png", (1, 3, 2, 2), "has the shape"),
        ("x.png", (3, 0, 2), "has the shape"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, name, shape, message):
    with pytest.raises(UserError, match=message):
        images.write(tmp_path / name, torch.zeros(shape, dtype=torch.uint8))
    assert not list(tmp_path.iterdir())


def test_writing_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        images.write(tmp_path / "file" / "x.png", _pixels())


# --- pictures ---


def test_a_grid_places_every_pixel():
    tiles = torch.stack([_pixels(2, 3, seed=k) for k in range(5)])
    picture = images.grid(tiles, columns=3, pad=1, scale=2, background=7)
    assert picture.shape == (3, 2 * (4 + 1) + 1, 3 * (6 + 1) + 1)
    for k in range(5):
        y, x = 1 + (k // 3) * 5, 1 + (k % 3) * 7
        assert torch.equal(picture[:, y : y + 4 : 2, x : x + 6 : 2], tiles[k])
        assert torch.equal(picture[:, y + 1 : y + 4 : 2, x + 1 : x + 6 : 2], tiles[k])
    assert picture[:, 0].unique().tolist() == [7]
    assert picture[:, 6:10, 15:21].unique().tolist() == [7]  # the sixth place is empty


def test_a_grid_of_one_grey_float_has_its_frame():
    picture = images.grid(torch.zeros(1, 1, 8, 8), pad=2)
    assert picture.shape == (3, 36, 36)
    assert picture[:, 2:34, 2:34].unique().tolist() == [128]
    assert picture[:, :2].unique().tolist() == [255]


def test_a_grid_mixes_grey_and_colour():
    picture = images.grid([_pixels(4, 4, 1), _pixels(4, 4, 3)], pad=0, scale=1)
    assert torch.equal(picture[:, :, :4], _pixels(4, 4, 1).expand(3, -1, -1))


@pytest.mark.parametrize("options", [{"columns": 0}, {"scale": 0}, {"pad": -1}, {"columns": -2}])
def test_a_grid_refuses_sizes_below_one(options):
    with pytest.raises(UserError, match="must be at least"):
        images.grid(torch.zeros(2, 1, 4, 4), **options)


def test_a_grid_refuses_none_and_mixed_sizes():
    with pytest.raises(UserError, match="at least one image"):
        images.grid([])
    with pytest.raises(UserError, match="one size"):
        images.grid([_pixels(2, 2), _pixels(3, 3)])


def test_rows_hold_every_image_beside_its_caption():
    first, second = torch.stack([_pixels(8, 8, 1, k) for k in range(3)]), torch.zeros(2, 1, 8, 8)
    picture = images.rows({"z": first, "f(z)": second}, pad=2, scale=6)
    found = picture.unfold(1, 48, 1).unfold(2, 48, 1)[0]
    for tile in images.enlarge(first, 6):
        matches = (found == tile[0]).flatten(2).all(-1).nonzero()
        assert len(matches) == 1
    captions = picture[
        0, :, : int((found == images.enlarge(first, 6)[0, 0]).flatten(2).all(-1).nonzero()[0, 1])
    ]
    assert captions.min() < 100  # there is ink at the left
    assert picture[0, :4].unique().tolist() == [255]


def test_rows_with_heads_are_taller():
    tiles = {"x": torch.zeros(2, 1, 8, 8)}
    assert images.rows(tiles, heads=["a", "b"]).shape[1] > images.rows(tiles).shape[1]


def test_rows_refuse_none_and_mixed_sizes():
    with pytest.raises(UserError, match="no rows"):
        images.rows({})
    with pytest.raises(UserError, match=r"one size, got a \(2, 2\), b \(3, 3\)"):
        images.rows({"a": torch.zeros(1, 1, 2, 2), "b": torch.zeros(1, 1, 3, 3)})


def test_rows_refuse_what_the_font_cannot_draw():
    with pytest.raises(UserError, match="cannot draw 'θ' in the caption 'f_θ'"):
        images.rows({"f_θ": torch.zeros(1, 1, 8, 8)})
    with pytest.raises(UserError, match="cannot draw '²'"):
        images.rows({"x": torch.zeros(1, 1, 8, 8)}, heads=["x²"])
    text = "".join(map(chr, range(32, 127)))
    assert images.rows({text: torch.zeros(1, 1, 8, 8)}).shape[2] > 500


@pytest.mark.parametrize("options", [{"scale": 0}, {"pad": -1}, {"font_size": 0}])
def test_rows_refuse_sizes_below_one(options):
    with pytest.raises(UserError, match="must be at least"):
        images.rows({"x": torch.zeros(1, 1, 8, 8)}, **options)
