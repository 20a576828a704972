"""The corruptions: range, seeds, published parameters, closed forms, severity, and the published files."""

import io
import math

import numpy as np
import pytest
import torch
from ittt.corrupted_sets import PUBLISHED, open_cifar_c, open_imagenet_c
from ittt.corruptions import FAMILIES, NAMES, SEVERITIES, corrupt
from paperkit import UserError, images
from paperkit.data import photograph
from PIL import Image


def pictures(side: int, channels: int, n: int = 4) -> torch.Tensor:
    """Parts of a photograph, in [0, 1]."""
    photo = images.to_float(photograph("astronaut"), 0.0, 1.0)
    parts = [photo[:, 60 * i : 60 * i + 4 * side : 4, 70 * i : 70 * i + 4 * side : 4] for i in range(n)]
    x = torch.stack(parts)
    return x if channels == 3 else x.mean(1, keepdim=True)


def distance(x: torch.Tensor, name: str, severity: int) -> float:
    return float((corrupt(x, name, severity) - x).square().mean().sqrt())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("side", "channels"), [(28, 1), (32, 3), (64, 3), (8, 1)])
def test_range_and_shape_at_every_size(name: str, side: int, channels: int):
    x = pictures(side, channels)
    kept = x.clone()
    for severity in (1, 5):
        found = corrupt(x, name, severity)
        assert found.shape == x.shape
        assert found.dtype == x.dtype
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
        if side > 8:
            assert float((found - x).abs().mean()) > 1e-3
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(name: str):
    x = pictures(32, 3)
    assert torch.equal(corrupt(x, name, 3, 7), corrupt(x, name, 3, 7))
    drawn = name not in ("defocus", "zoom", "brightness", "contrast", "pixelate", "jpeg")
    assert torch.equal(corrupt(x, name, 3, 7), corrupt(x, name, 3, 8)) != drawn


@pytest.mark.parametrize("name", NAMES)
def test_severity_zero_is_the_image(name: str):
    x = pictures(28, 1)
    assert torch.equal(corrupt(x, name, 0), x)


# Not so by the published values: glass blurs what it moved, motion 3 and 4 differ in the tail of a Gaussian
# alone, snow has fewer flakes at 3 than at 2, frost weighs the image less from 3 on, elastic's corners move
# less and less.
RISING = [name for name in NAMES if name not in ("glass", "motion", "snow", "frost", "elastic")]


@pytest.mark.parametrize("name", RISING)
@pytest.mark.parametrize("side", [28, 32])
def test_each_severity_is_further_away(name: str, side: int):
    x = pictures(side, 3, n=6)
    away = [distance(x, name, severity) for severity in range(6)]
    assert away == sorted(away)
    assert away[5] > 1.3 * away[1]


@pytest.mark.parametrize("name", ["glass", "motion", "snow", "frost"])
def test_the_last_severity_is_further_away_than_the_first(name: str):
    x = pictures(32, 3, n=6)
    assert distance(x, name, 5) > 1.2 * distance(x, name, 1)


def test_the_published_values():
    # hendrycks/robustness at ca36008, ImageNet-C/create_c/make_cifar_c.py, read on their own.
    assert len(NAMES) == 15
    assert sum(map(len, FAMILIES.values())) == 15
    assert all(len(values) == 5 for values in SEVERITIES.values())
    assert SEVERITIES["gaussian"] == (0.04, 0.06, 0.08, 0.09, 0.10)
    assert SEVERITIES["shot"][2] == 100
    assert SEVERITIES["impulse"][4] == 0.07
    assert SEVERITIES["defocus"][4] == (1.5, 0.1)
    assert SEVERITIES["glass"][3] == (0.25, 1, 2)
    assert SEVERITIES["motion"][4] == (9, 2.5)
    assert SEVERITIES["snow"][3] == (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85)
    assert SEVERITIES["frost"][4] == (0.75, 0.45)
    assert SEVERITIES["fog"][2] == (0.75, 2.5)
    assert SEVERITIES["contrast"] == (0.75, 0.5, 0.4, 0.3, 0.15)
    assert SEVERITIES["elastic"][1] == (0.05, 0.2, 0.07)
    assert SEVERITIES["jpeg"] == (80, 65, 58, 50, 40)
    steps = [len(np.arange(1, end, 0.01)) for end in (1.06, 1.11, 1.16, 1.21, 1.26)]
    assert [round((most - 1) / 0.01) + 1 for most in SEVERITIES["zoom"]] == steps


# ---- closed forms ------------------------------------------------------------------------------------------


def test_noises_have_their_moments():
    x = torch.full((64, 1, 32, 32), 0.5)
    assert float(corrupt(x, "gaussian", 3).std()) == pytest.approx(0.08, rel=0.02)
    assert float(corrupt(x, "shot", 3).var()) == pytest.approx(0.5 / 100, rel=0.03)
    found = corrupt(x, "impulse", 5)
    assert float((found == 0).float().mean()) == pytest.approx(0.035, rel=0.06)
    assert float((found == 1).float().mean()) == pytest.approx(0.035, rel=0.06)


def test_blurs_leave_a_flat_image_alone_and_spread_a_point():
    flat = torch.full((2, 3, 32, 32), 0.4)
    point = torch.zeros(3, 1, 33, 33)
    point[:, :, 16, 16] = 1
    for name in ("defocus", "glass", "motion", "zoom", "pixelate", "elastic"):
        assert torch.allclose(corrupt(flat, name, 5), flat, atol=1e-5)
    for name in ("defocus", "motion"):
        assert torch.allclose(corrupt(point, name, 5).sum((1, 2, 3)), torch.ones(3), atol=1e-4)
    disk = corrupt(point, "defocus", 5)[0, 0, 15:18, 15:18]  # radius 1.5: 3 by 3 pixels
    assert torch.allclose(disk, torch.full((3, 3), 1 / 9), atol=1e-4)


def test_motion_goes_one_way_within_45_degrees():
    point = torch.zeros(50, 1, 33, 33)
    point[:, :, 16, 16] = 1
    smeared = corrupt(point, "motion", 3)
    rows, columns = (torch.arange(33.0) - 16 for _ in range(2))
    right = (smeared.sum(2)[:, 0] * columns).sum(1)
    down = (smeared.sum(3)[:, 0] * rows).sum(1)
    assert bool((right < -0.5).all())
    assert bool((down.abs() <= right.abs() + 0.1).all())


def test_contrast_brightness_and_fog_by_formula():
    x = pictures(32, 3)
    mean = x.mean((2, 3), keepdim=True)
    assert torch.allclose(corrupt(x, "contrast", 4), (x - mean) * 0.3 + mean, atol=1e-6)
    grey = pictures(32, 1)
    assert torch.allclose(corrupt(grey, "brightness", 2), (grey + 0.1).clamp(0, 1), atol=1e-6)
    oracle = [_brighter(*pixel, 0.2) for pixel in x[0].flatten(1).T.tolist()]
    assert torch.allclose(corrupt(x, "brightness", 4)[0].flatten(1).T, torch.tensor(oracle), atol=1e-5)
    fog = corrupt(torch.ones(8, 1, 32, 32), "fog", 5)  # (1 + 1.5 p) / 2.5 with p from 0 to 1
    assert float(fog.min()) >= 1 / 2.5 - 1e-6
    assert float(fog.max()) == pytest.approx(1)


def _brighter(red: float, green: float, blue: float, more: float) -> tuple[float, float, float]:
    import colorsys

    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    return colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + more))


def test_pixelate_is_pillows_box_and_jpeg_is_pillows_jpeg():
    x = images.to_float(images.to_uint8(pictures(32, 3), 0.0, 1.0), 0.0, 1.0)
    for image, small, coded in zip(x, corrupt(x, "pixelate", 5), corrupt(x, "jpeg", 5), strict=True):
        picture = images.to_pil(image, 0.0, 1.0)
        boxed = picture.resize((20, 20), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
        assert torch.allclose(small, _tensor(boxed), atol=1.01 / 255)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=40)
        assert torch.equal(coded, _tensor(Image.open(stream)))


def _tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def test_glass_takes_every_pixel_from_beside():
    x = torch.arange(32.0).expand(1, 1, 32, 32) / 31
    found = corrupt(x, "glass", 1) * 31  # its blur of 0.05 pixels is none
    assert set((x * 31 - found).round().flatten().tolist()) == {0.0, 1.0}


def test_elastic_first_severity_is_affine():
    ramp = torch.linspace(0.3, 0.7, 64).expand(6, 1, 64, 64).contiguous()
    inner = corrupt(ramp, "elastic", 1)[:, 0, 20:44, 20:44]
    bend = inner[:, 2:] - 2 * inner[:, 1:-1] + inner[:, :-2]
    assert float(bend.abs().max()) < 1e-5
    wavy = corrupt(ramp, "elastic", 5)[:, 0, 20:44, 20:44]
    assert float((wavy[:, 2:] - 2 * wavy[:, 1:-1] + wavy[:, :-2]).abs().max()) > 1e-3


# ---- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "name", "severity", "words"),
    [
        (torch.zeros(1, 1, 8, 8), "fogg", 1, "did you mean fog"),
        (torch.zeros(1, 1, 8, 8), "fog", 6, "severities go from 0"),
        (torch.zeros(1, 1, 8, 9), "fog", 1, "square images"),
        (torch.zeros(1, 2, 8, 8), "fog", 1, "one or three channels"),
        (torch.full((1, 1, 8, 8), 255.0), "fog", 1, "divide bytes by 255"),
        (torch.full((1, 1, 8, 8), math.nan), "fog", 1, r"in \[0, 1\]"),
    ],
)
def test_bad_input_gets_one_line(x: torch.Tensor, name: str, severity: int, words: str):
    with pytest.raises(UserError, match=words):
        corrupt(x, name, severity)


# ---- the published files -----------------------------------------------------------------------------------


def cifar_c(folder, rows: int = 50_000) -> None:
    """Files of the published shape; pixel (0, 0) of each image holds its severity."""
    pixels = np.lib.format.open_memmap(folder / "fog.npy", "w+", np.uint8, (rows, 32, 32, 3))
    pixels[:, 0, 0, 1] = np.arange(rows) // 10_000 + 1
    np.save(folder / "labels.npy", np.tile(np.arange(10, dtype=np.uint8), rows // 10))


def test_cifar_c(tmp_path):
    cifar_c(tmp_path)
    opened = open_cifar_c(tmp_path, "fog", 3)
    image, label = opened[17]
    assert len(opened) == 10_000
    assert image.shape == (3, 32, 32)
    assert image[:, 0, 0].tolist() == [0, 3, 0]
    assert label == 7
    for name, severity, words in (
        ("frost", 1, "frost.npy is missing"),
        ("fog", 6, "from 1 to 5"),
        ("fogg", 1, "did you mean fog"),
    ):
        with pytest.raises(UserError, match=words):
            open_cifar_c(tmp_path, name, severity)
    (tmp_path / "frost.npy").write_bytes(b"no numbers")
    with pytest.raises(UserError, match="is damaged"):
        open_cifar_c(tmp_path, "frost", 1)
    np.save(tmp_path / "snow.npy", np.zeros((3, 32, 32, 3), np.uint8))
    with pytest.raises(UserError, match=r"not uint8 of \(50000, 32, 32, 3\)"):
        open_cifar_c(tmp_path, "snow", 1)


@pytest.mark.parametrize("below", ["", "noise/"])
def test_imagenet_c(tmp_path, below: str):
    for wnid in ("n01", "n02"):
        images.write(
            tmp_path / f"{below}gaussian_noise/5/{wnid}/a.png", torch.zeros(3, 8, 8, dtype=torch.uint8)
        )
    opened = open_imagenet_c(tmp_path, "gaussian", 5)
    assert opened.labels.tolist() == [0, 1]
    with pytest.raises(UserError, match="neither fog/1 nor weather/fog/1"):
        open_imagenet_c(tmp_path, "fog", 1)


def test_published_names_are_fifteen():
    assert len(set(PUBLISHED.values())) == 15
