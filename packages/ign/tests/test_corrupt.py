"""The corruptions: formulas, what they leave alone, determinism, strengths that mean nothing."""

import pytest
import torch
import torch.nn.functional as F
from ign.corrupt import CORRUPTIONS, STRENGTH, corrupt, gaussian_blur
from paperkit import UserError


def colour(n=6, side=24, channels=3):
    draw = torch.Generator().manual_seed(0)
    return torch.rand(n, channels, side, side, generator=draw) * 2 - 1


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_corruption_changes_images_and_is_fixed_by_the_seed(kind):
    x = colour()
    before = x.clone()
    once, again = corrupt(x, kind, seed=3), corrupt(x, kind, seed=3)
    assert torch.equal(once, again)
    assert torch.equal(x, before)
    assert once.shape == x.shape
    assert float((once - x).abs().max()) > 0.1
    random = kind in ("noise", "mask", "patches")
    assert torch.equal(once, corrupt(x, kind, seed=4)) is not random


@pytest.mark.parametrize("kind", [kind for kind in CORRUPTIONS if kind != "grey"])
def test_every_corruption_but_grey_fits_digits(kind):
    y = corrupt(colour(3, 8, 1), kind)
    assert y.shape == (3, 1, 8, 8)
    assert torch.isfinite(y).all()


def test_noise_has_its_deviation():
    x = colour(50)
    error = corrupt(x, "noise", 0.3) - x
    assert float(error.std()) == pytest.approx(0.3, rel=0.01)
    assert float(error.mean()) == pytest.approx(0.0, abs=0.005)


def test_grey_is_the_mean_of_the_channels():
    x = colour()
    expected = x.mean(1, keepdim=True).expand_as(x)
    torch.testing.assert_close(corrupt(x, "grey"), expected)
    torch.testing.assert_close(corrupt(x, "grey", 0.25), 0.75 * x + 0.25 * expected)


def test_sketch_is_brightness_over_blurred_brightness():
    x = colour(2, 24)
    offsets = torch.arange(-10, 11).double()
    kernel = torch.exp(-(offsets**2) / (2 * (0.3 * ((21 - 1) * 0.5 - 1) + 0.8) ** 2))
    plane = torch.outer(kernel, kernel) / kernel.sum() ** 2
    g = (x.double() + 1).mean(1, keepdim=True)
    blurred = F.conv2d(F.pad(g, (10,) * 4, mode="reflect"), plane[None, None])
    expected = (g / (blurred + 1e-10) - 1).clamp(-1, 1).expand(-1, 3, -1, -1)
    torch.testing.assert_close(corrupt(x, "sketch").double(), expected, rtol=0, atol=1e-5)


def test_sketch_of_a_flat_image_is_flat():
    torch.testing.assert_close(corrupt(torch.full((1, 1, 8, 8), 0.4), "sketch"), torch.zeros(1, 1, 8, 8))


def test_mask_blacks_out_one_rectangle():
    x = colour(20).clamp_min(-0.9)
    y = corrupt(x, "mask", 0.25)
    black = (y == -1).all(1)
    assert black.flatten(1).sum(1).tolist() == [6 * 6] * 20
    assert torch.equal(y[~black[:, None].expand_as(y)], x[~black[:, None].expand_as(x)])
    rows, columns = black.any(2), black.any(1)
    assert rows.sum(1).tolist() == columns.sum(1).tolist() == [6] * 20
    assert len({tuple(row) for row in rows.tolist()}) > 3
    assert bool((corrupt(x, "mask", 1.0) == -1).all())


def test_patches_are_so_many_and_so_large():
    x = colour(40)
    changed = (corrupt(x, "patches", 1) != x).any(1).flatten(1).sum(1)
    assert changed.tolist() == [36] * 40
    several = (corrupt(x, "patches", 4) != x).any(1).flatten(1).sum(1)
    assert int(several.max()) <= 4 * 36
    assert int(several.min()) > 36


def test_blur_keeps_the_mean_of_a_flat_image_and_spreads_a_point():
    torch.testing.assert_close(corrupt(torch.full((1, 3, 9, 9), 0.3), "blur"), torch.full((1, 3, 9, 9), 0.3))
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    blurred = gaussian_blur(point.double(), 1.5, 9)
    place = torch.arange(21).double() - 10
    assert float(blurred.sum()) == pytest.approx(1.0)
    assert float((blurred.sum((0, 1, 2)) * place**2).sum()) == pytest.approx(1.5**2, rel=1e-3)
    assert torch.equal(blurred, blurred.mT)


@pytest.mark.parametrize(
    ("kind", "strength", "word"),
    [("noise", 0.0, "positive"), ("blur", -2.0, "positive"), ("grey", 1.5, "at most 1"),
     ("mask", 2.0, "at most 1"), ("sketch", 2.0, "at least 3")],
)  # fmt: skip
def test_strengths_that_mean_nothing(kind, strength, word):
    with pytest.raises(UserError, match=word):
        corrupt(colour(), kind, strength)


def test_grey_of_grey_is_refused():
    with pytest.raises(UserError, match="colour"):
        corrupt(colour(2, 8, 1), "grey")


def test_every_corruption_has_a_default():
    assert set(STRENGTH) == set(CORRUPTIONS)
