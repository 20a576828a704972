"""Resampling against a transcription of the published formulas, torch, Pillow, closed forms, gradients."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from paperkit import UserError
from paperkit.resize import KERNELS, blocks, output_length, resize, taps
from PIL import Image

generator = np.random.default_rng(0)


# ---- The oracle: spec ccconv 2.2 and 6.1 in float64 NumPy, one axis at a time, by padding


def oracle_kernel(name: str, x: np.ndarray) -> np.ndarray:
    a = np.abs(x)
    if name == "cubic":
        inner = (1.5 * a**3 - 2.5 * a**2 + 1) * (a <= 1)
        return inner + (-0.5 * a**3 + 2.5 * a**2 - 4 * a + 2) * ((a > 1) & (a <= 2))
    if name == "linear":
        return (1 - a) * (a <= 1)
    if name == "box":
        return ((x >= -0.5 - 1e-12) & (x < 0.5 - 1e-12)) * 1.0
    lobes = int(name[-1])
    pi = np.pi * x + (x == 0) * 1e-20
    return lobes * np.sin(pi) * np.sin(pi / lobes) / pi**2 * (a < lobes) * (x != 0) + (x == 0)


def oracle_axis(
    x: np.ndarray, axis: int, scale: float, size: int, kernel: str, mode: str | None, antialias: bool
):
    x = np.moveaxis(x, axis, 0)
    length = x.shape[0]
    u = np.arange(size) / scale + (length - 1) / 2 - (size - 1) / (2 * scale)
    r = min(scale, 1.0) if antialias else 1.0
    width = {"cubic": 4, "linear": 2, "box": 1, "lanczos2": 4, "lanczos3": 6}[kernel] / r
    eps = 1e-10
    left = np.ceil(u - width / 2 - eps).astype(int)
    index = left[:, None] + np.arange(math.ceil(width - eps))
    weight = r * oracle_kernel(kernel, r * (index - u[:, None]))
    if mode is None:  # renormalize
        weight = weight * ((index >= 0) & (index < length))
        index = index.clip(0, length - 1)
        if np.abs(weight.sum(1)).min() < 1e-9:
            return None  # a window without any input pixel
    weight = weight / weight.sum(1, keepdims=True)
    if mode is not None:
        before, after = max(0, -index.min()), max(0, index.max() - length + 1)
        x = np.pad(x, [(before, after)] + [(0, 0)] * (x.ndim - 1), mode=mode)
        index = index + before
    y = np.einsum("nk,nk...->n...", weight, x[index])
    return np.moveaxis(y, 0, axis)


MODES = {"zeros": "constant", "replicate": "edge", "reflect": "symmetric", "renormalize": None}
SCALES = [Fraction(1, 3), Fraction(1, 2), 0.37, Fraction(7, 8), 1, 1.5, Fraction(5, 3), 3, math.pi / 2]


@pytest.mark.parametrize("border", MODES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("antialias", [True, False])
def test_equals_published_formulas(kernel, border, antialias):
    for scale in SCALES:
        for length in (5, 16, 37):
            natural = math.ceil(float(scale) * length - 1e-9)
            for size in {natural, natural + 1, max(1, natural - 2)}:
                x = generator.standard_normal((3, length))
                options = {"axes": [1], "kernel": kernel, "border": border, "antialias": antialias}
                z = oracle_axis(x, 1, float(scale), size, kernel, MODES[border], antialias)
                if z is None:
                    with pytest.raises(UserError, match="without any input"):
                        resize(x, scale, size, **options)
                    continue
                y = resize(x, scale, size, **options)
                assert y.shape == z.shape
                np.testing.assert_allclose(y, z, rtol=0, atol=1e-10)


def test_axes_with_different_scales_in_three_dimensions():
    x = generator.standard_normal((7, 2, 20, 31))
    y = resize(x, scale=(Fraction(1, 2), 1.7, Fraction(3, 4)), size=(4, 33, 24), axes=(0, 2, -1))
    z = oracle_axis(x, 0, 0.5, 4, "cubic", "symmetric", True)
    z = oracle_axis(z, 2, 1.7, 33, "cubic", "symmetric", True)
    z = oracle_axis(z, 3, 0.75, 24, "cubic", "symmetric", True)
    np.testing.assert_allclose(y, z, rtol=0, atol=1e-10)
    tensor = resize(torch.from_numpy(x), (Fraction(1, 2), 1.7, Fraction(3, 4)), (4, 33, 24), axes=(0, 2, -1))
    np.testing.assert_array_equal(tensor.numpy(), y)


@pytest.mark.parametrize(
    ("before", "after"), [((37, 41), (16, 23)), ((20, 24), (40, 72)), ((101, 77), (33, 90))]
)
@pytest.mark.parametrize(("kernel", "mode"), [("cubic", "bicubic"), ("linear", "bilinear")])
def test_renormalize_equals_torch_antialias(before, after, kernel, mode):
    x = torch.from_numpy(generator.standard_normal((2, 3, *before)))
    ours = resize(x, size=after, kernel=kernel, border="renormalize")
    theirs = F.interpolate(x, size=after, mode=mode, antialias=True, align_corners=False)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_box_equals_area_at_whole_factors():
    x = torch.from_numpy(generator.standard_normal((1, 2, 24, 30)))
    theirs = F.interpolate(x, size=(8, 15), mode="area")
    torch.testing.assert_close(resize(x, size=(8, 15), kernel="box"), theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "pillow"), [("cubic", 3), ("linear", 2), ("lanczos3", 1)])
def test_renormalize_equals_pillow(name, pillow):
    x = generator.standard_normal((30, 41)).astype(np.float32)
    theirs = np.asarray(Image.fromarray(x).resize((19, 55), Image.Resampling(pillow)))
    np.testing.assert_allclose(resize(x, size=(55, 19), kernel=name, border="renormalize"), theirs, atol=1e-5)


def test_whole_image_of_several_blocks():
    """Blocks of the banded matrix meet without a seam."""
    x = generator.standard_normal((300, 2))
    for size in (129, 200, 511):
        y = resize(x, size=size, axes=[0], border="replicate")
        z = oracle_axis(x, 0, size / 300, size, "cubic", "edge", True)
        np.testing.assert_allclose(y, z, rtol=0, atol=1e-10)


# ---- Exact windows


@pytest.mark.parametrize("length", [2, 64, 500, 4096])
@pytest.mark.parametrize(
    "scale", [Fraction(3), Fraction(5, 3), Fraction(7, 8), Fraction(1, 16), Fraction(16, 15)]
)
@pytest.mark.parametrize("support", [1, 3, 4])
def test_windows_are_exact_for_any_kernel(length, scale, support):
    """Integers i with u - w/2r <= i < u + w/2r, by cross-multiplied integers."""
    size = output_length(length, scale)
    index, offset, weight = taps(length, size, scale, np.ones_like, True, support)
    p, q = scale.numerator, scale.denominator
    for j in {0, 1, size // 3, size // 2, size - 1} & set(range(size)):
        twice = 2 * q * j + p * (length - 1) - q * (size - 1)  # 2 p u
        reach = support * max(p, q)  # 2 p * w / 2r
        window = [
            i
            for i in range(-(-(twice - reach) // (2 * p)), twice // p + support * 17)
            if 2 * p * i < twice + reach
        ]
        assert index[j][weight[j] > 0].tolist() == window
        distances = [float(min(scale, 1) * Fraction(2 * p * i - twice, 2 * p)) for i in window]
        assert offset[j][weight[j] > 0].tolist() == distances


def test_taps_are_cached_and_read_only():
    first = taps(10, 5, Fraction(1, 2))
    assert taps(10, 5, Fraction(1, 2)) is first
    with pytest.raises(ValueError, match="read-only"):
        first.weight[0, 0] = 1


def test_decimal_scales_mean_their_fraction():
    assert output_length(100, 0.01) == 1
    assert output_length(30, 0.1) == 3
    assert output_length(7, 1 / 3) == 3
    x = generator.standard_normal((9, 9))
    np.testing.assert_array_equal(resize(x, 2 / 3), resize(x, Fraction(2, 3)))


# ---- Invariances


@pytest.mark.parametrize("border", ["replicate", "reflect", "renormalize"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_constants_stay(kernel, border):
    x = np.full((11, 13), 0.7)
    for size in (1, 5, 40):
        np.testing.assert_allclose(resize(x, size=size, kernel=kernel, border=border), 0.7, rtol=1e-14)


def test_zeros_darken_only_the_border():
    y = resize(np.ones(40), size=20, axes=[0], border="zeros")
    assert y[0] < 0.99
    np.testing.assert_allclose(y[3:-3], 1, rtol=1e-14)


@pytest.mark.parametrize("border", MODES)
def test_flip(border):
    x = generator.standard_normal(21)
    for scale, size in ((0.6, 14), (1.4, 29)):
        y = resize(x, scale, size, axes=[0], border=border)
        z = resize(x[::-1], scale, size, axes=[0], border=border)
        np.testing.assert_allclose(z[::-1], y, atol=1e-13)


def test_unit_scale_is_identity_and_crops_to_the_centre():
    x = generator.standard_normal((8, 8))
    np.testing.assert_array_equal(resize(x, 1), x)
    np.testing.assert_allclose(resize(x, 1, 6), x[1:-1, 1:-1], atol=1e-15)


def test_reflect_when_the_pad_exceeds_the_axis():
    x = np.array([1.0, 2.0])
    y = resize(x, Fraction(1, 8), 1, axes=[0])
    np.testing.assert_allclose(y, oracle_axis(x, 0, 1 / 8, 1, "cubic", "symmetric", True), atol=1e-14)


# ---- Types, gradients


def test_float64_is_computed_in_float64_and_half_in_float32():
    x = generator.standard_normal((50, 50))
    reference = resize(x, size=(70, 20))
    single = resize(torch.from_numpy(x).float(), size=(70, 20))
    assert single.dtype == torch.float32
    assert 1e-9 < np.abs(single.numpy() - reference).max() < 2e-6
    half = torch.from_numpy(x).half()
    torch.testing.assert_close(
        resize(half, size=(70, 20)), resize(half.float(), size=(70, 20)).half(), rtol=0, atol=0
    )
    assert resize(x.astype(np.float16), size=5).dtype == np.float16


def test_numpy_views_and_read_only_arrays():
    x = generator.standard_normal((20, 20))
    view = x[::-1, ::2]
    np.testing.assert_array_equal(resize(view, size=7), resize(view.copy(), size=7))
    view.setflags(write=False)
    np.testing.assert_array_equal(resize(view, size=7), resize(view.copy(), size=7))
    np.testing.assert_array_equal(resize(x.astype(">f8"), size=7), resize(x, size=7))


@pytest.mark.parametrize("border", MODES)
def test_gradients(border):
    x = torch.from_numpy(generator.standard_normal((2, 6, 5))).requires_grad_()
    for size in ((4, 7), (9, 3)):
        assert torch.autograd.gradcheck(lambda t, n=size: resize(t, size=n, border=border), (x,))
        assert torch.autograd.gradgradcheck(lambda t, n=size: resize(t, size=n, border=border) ** 2, (x,))


def test_cached_weights_serve_autograd_after_inference_mode():
    blocks.cache_clear()
    with torch.inference_mode():
        resize(torch.ones(9, 9), size=5)
    x = torch.ones(9, 9, requires_grad=True)
    resize(x, size=5).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.sum(), torch.tensor(25.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "scale, size or both"),
        ({"size": 0}, "positive whole"),
        ({"scale": 0}, "positive number"),
        ({"scale": -1.0}, "positive number"),
        ({"scale": float("nan")}, "positive number"),
        ({"scale": (0.5, 0.5, 0.5)}, "3 entries for 2 axes"),
        ({"size": 4, "axes": (0, 5)}, "do not exist"),
        ({"size": 4, "axes": (1, -1)}, "named twice"),
        ({"size": 4, "kernel": "quintic"}, "unknown kernel"),
        ({"size": 4, "border": "wrap"}, "unknown kernel or border"),
        ({"size": 60, "scale": 1, "border": "renormalize"}, "without any input"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        resize(np.ones((6, 6)), **arguments)
    assert "\n" not in str(caught.value)


def test_integers_and_empty_axes_are_refused():
    with pytest.raises(UserError, match="floating-point"):
        resize(np.ones((6, 6), np.uint8), size=3)
    with pytest.raises(UserError, match="empty"):
        resize(np.ones((6, 0)), size=3)
    with pytest.raises(UserError, match="support"):
        taps(4, 2, Fraction(1, 2), np.ones_like)
