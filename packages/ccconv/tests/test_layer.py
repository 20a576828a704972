"""The layer: exact claims, windows, gradients, compilers and exports, bad input."""

import inspect
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from ccconv import CCConv1d, CCConv2d, CCConv3d, exact, method, resize
from ccconv.method import BORDERS, bspline, fold, grid
from paperkit import UserError
from torch.nn import functional as F

D = torch.float64


def largest(cases: dict[str, float]) -> float:
    assert cases
    return max(cases.values())


def test_resizing_equals_the_plain_sum_and_torch():
    assert largest(exact.resizing()) < 1e-10


def test_convs_are_members_of_the_family():
    cases = exact.convolutions()
    assert {name.split(",")[1].strip() for name in cases} >= {"transposed", "stride 2", "k3"}
    assert largest(cases) < 1e-12


def test_paths_equal_the_definition():
    assert largest(exact.paths(every=10)) < 1e-12


def test_conv_before_resampling_equals_the_definition():
    """Control points on input pixels: every border, sizes without a common factor, one axis down."""
    seen = set()
    for name, layer, x, call in exact.upward_cases():
        layer.path = "separable"
        made = layer.plan(x, **call)
        seen.add(tuple(bool(band.after) for band in made.bands))
        assert exact._gap(layer(x, **call), layer.oracle(x, **call)) < 1e-12, name
    assert seen == {(True, True), (True, False), (False, True)}


def test_gradients_of_conv_before_resampling():
    for name, layer, _ in list(exact.gradient_cases())[3:30:5]:  # each border, 8x10 -> 11x13
        x = torch.randn(1, 4, 8, 10, dtype=torch.float64, requires_grad=True)
        inputs, layer.path = [x, *layer.parameters()], "separable"
        ours, theirs = (
            torch.autograd.grad(call(x, (11, 13)).square().mean(), inputs) for call in (layer, layer.oracle)
        )
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize(("kind", "sizes"), [(CCConv1d, (9, 14)), (CCConv3d, (5, 6, 4, 7, 3, 9))])
def test_conv_before_resampling_in_other_dimensions(kind, sizes):
    """With and without `flat`, which the definition does not know, against `gather`."""
    half = len(sizes) // 2
    for flat in (False, True):
        layer = kind(2, 3, 3, flat=flat, path="separable", dtype=torch.float64)
        x = torch.randn(2, 2, *sizes[:half], dtype=torch.float64)
        y = layer(x, sizes[half:])
        layer.path = "gather"
        torch.testing.assert_close(y, layer(x, sizes[half:]), rtol=1e-12, atol=1e-12)


def test_shifts_flips_and_nested_grids():
    assert largest(exact.equivariance()) < 1e-12


def test_window_is_exact_where_rounding_would_choose():
    """Against Fractions, pixel by pixel: |i - u| <= w / 2r."""
    for length, n, s, w in (
        (64, 192, Fraction(3), 4),
        (512, 853, Fraction(5, 3), 4),
        (33, 17, Fraction(1, 2), 3),
    ):
        g = grid(length, n, s, Fraction(w))
        half = Fraction(w) / (2 * min(s, Fraction(1)))
        for j in (0, 1, n // 3, n // 2, n - 1):
            u = Fraction(length - 1, 2) + (j - Fraction(n - 1, 2)) / s
            inside = g.inside[j % g.phases]
            pixels = (g.left[j] + np.arange(g.taps))[inside]
            assert [i for i in range(-20, length + 20) if abs(i - u) <= half] == pixels.tolist()
            assert g.offset[j % g.phases][0] == float(min(s, Fraction(1)) * (int(g.left[j]) - u))


def test_bspline_sums_to_one_at_every_phase():
    for phase in (0.0, 0.3, 0.5):
        assert bspline(np.arange(-3, 4) + phase).sum() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("border", [b for b in BORDERS if b not in ("zeros", "renormalize")])
def test_borders_fold_as_often_as_needed(border):
    values = np.arange(4)
    mode = {"replicate": "edge", "reflect": "reflect", "symmetric": "symmetric", "circular": "wrap"}[border]
    assert fold(np.arange(-11, 15), 4, border).tolist() == np.pad(values, 11, mode)[:26].tolist()


@pytest.mark.parametrize("kind", ["interp", "mlp"])
def test_one_and_three_axes(kind):
    for layer_type, shape in ((CCConv1d, (9,)), (CCConv3d, (4, 5, 6))):
        layer = layer_type(4, 2, 3, kernel=kind, groups=2, hidden=4, dtype=D)
        x = torch.randn(2, 4, *shape, dtype=D)
        for size in (5, 8):
            for path in ("single", "polyphase", "separable", "gather"):
                layer.path = path
                torch.testing.assert_close(layer(x, size), layer.oracle(x, size), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["interp", "mlp", "bspline"])
def test_flat_keeps_a_constant_constant(kind):
    layer = CCConv2d(3, 4, 3, kernel=kind, flat=True, padding_mode="replicate", dtype=D)
    ones = torch.ones(1, 3, 8, 9, dtype=D)
    wanted = layer(ones)[:, :, :1, :1]
    for size in ((16, 13), (5, 7)):
        for path in ("single", "separable", "gather"):
            layer.path = path
            torch.testing.assert_close(layer(ones, size), wanted.expand(1, 4, *size), rtol=0, atol=1e-12)


def test_output_spacing_is_resize_then_conv_upwards_too():
    layer = CCConv2d(3, 4, 3, spacing="output", dtype=D)
    x = torch.randn(1, 3, 12, 12, dtype=D)
    for path in ("gather", "separable"):
        layer.path = path
        rows = resize(x, (20, 26), (Fraction(3, 2), 2), border="zeros")
        wanted = F.conv2d(rows, layer.kernel.weight, layer.bias)
        inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
        torch.testing.assert_close(layer(x, (18, 24))[inner], wanted[inner], rtol=0, atol=1e-12)


def test_window_makes_the_output_continuous_in_the_offset():
    torch.manual_seed(0)
    x, half = torch.randn(1, 1, 9, 9, dtype=D), Fraction(1, 2)
    jumps = {}
    for window in ("none", "hann"):
        layer = CCConv2d(1, 1, 3, kernel="mlp", window=window, dtype=D)
        near = [layer(x, offset=(half + Fraction(sign, 10**6))) for sign in (-1, 1)]
        jumps[window] = float((near[0] - near[1]).detach().abs().max())
    assert jumps["hann"] < 1e-5 < 1e-2 < jumps["none"]


@pytest.mark.parametrize("path", ["single", "polyphase", "separable", "gather"])
def test_gradients_of_gradients_with_kernels_sampled_again(path):
    torch.manual_seed(0)
    layer = CCConv2d(1, 2, 2, kernel="mlp", hidden=2, path=path, dtype=D)
    x = torch.randn(1, 1, 3, 3, dtype=D, requires_grad=True)
    inputs = (x, *layer.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: layer(x, (6, 2)), inputs)
    assert torch.autograd.gradgradcheck(lambda x, *_: layer(x, (6, 2)), (x, layer.kernel.mix))


def test_kernels_are_not_kept_for_the_backward_pass():
    def kept(recompute: bool) -> int:
        layer = CCConv2d(8, 8, 3, kernel="mlp", path="gather", recompute=recompute)
        found: dict[int, int] = {}

        def pack(value):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        # Outer hooks see only what inner ones leave to them.
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            layer(torch.randn(1, 8, 12, 12), 11)
        return sum(found.values())

    assert kept(recompute=True) < kept(recompute=False)


def test_parameters_changed_in_between_are_noticed():
    layer = CCConv2d(2, 2, 3, kernel="mlp", path="polyphase")
    y = layer(torch.randn(1, 2, 6, 6), 18)
    with torch.no_grad():
        layer.kernel.mix.add_(1)
    with pytest.raises(RuntimeError, match=r"in ?place"):
        y.sum().backward()


@pytest.mark.parametrize("kind", ["interp", "mlp"])
def test_initial_variance_is_that_of_a_conv(kind):
    torch.manual_seed(0)
    layer, conv = CCConv2d(32, 32, 3, kernel=kind, dtype=D), torch.nn.Conv2d(32, 32, 3)
    torch.testing.assert_close(exact._sampled(layer, 3).std().float(), conv.weight.std(), rtol=0.05, atol=0)


@pytest.mark.parametrize("path", ["single", "polyphase", "gather"])
def test_inference_follows_the_parameters(path):
    layer = CCConv2d(2, 2, 3, path=path).eval()
    x = torch.randn(1, 2, 6, 6)
    with torch.no_grad():
        before = layer(x, 12)
        assert torch.equal(before, layer(x, 12))
        layer.kernel.weight.mul_(2)
        after = layer(x, 12)
    bias = layer.bias[:, None, None]
    torch.testing.assert_close(after - bias, 2 * (before - bias))


# ---- Compilers and other runtimes


COMPILED = """
import warnings
warnings.simplefilter("error")
import torch
from ccconv import CCConv2d
for kind in ("interp", "mlp"):
    layer = CCConv2d(2, 3, 3, kernel=kind)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for side, call in ((8, {"size": 4}), (8, {"scale": 0.6}), (9, {"size": (7, 12)})):
        x = torch.randn(2, 2, side, side, requires_grad=True)
        ours, theirs = compiled(x, **call), layer(x, **call)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(torch.autograd.grad(ours.sum(), x), torch.autograd.grad(theirs.sum(), x))
print("equal")
"""


def test_compiles_as_one_graph_for_several_sizes():
    """In a fresh process: the checks of annotations under pytest are no part of what is compiled."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("border", ["zeros", "reflect", "symmetric", "renormalize"])
def test_baked_layer_exports(border):
    layer = CCConv2d(2, 3, 3, kernel="mlp", padding_mode=border)
    x = torch.randn(1, 2, 8, 10)
    for size in ((16, 5), (6, 15)):
        baked = layer.bake((8, 10), size)
        assert baked.output_size == size
        program = torch.export.export(baked, (x,))
        torch.testing.assert_close(program.module()(x), layer(x, size))


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_baked_layer_runs_in_onnxruntime(tmp_path):
    import onnxruntime
    import torch.onnx

    layer = CCConv2d(2, 3, 3, padding_mode="replicate")
    x = torch.randn(1, 2, 8, 8)
    torch.onnx.export(layer.bake(8, (12, 4)), (x,), str(tmp_path / "l.onnx"), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "l.onnx"), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, layer(x, (12, 4)).detach().numpy(), rtol=0, atol=1e-5)


def test_unbaked_layer_is_not_exported():
    with pytest.raises(UserError, match="bake"):
        torch.export.export(CCConv2d(2, 2, 3), (torch.zeros(1, 2, 8, 8),), strict=False)


# ---- Bad input


def unchecked(layer: CCConv2d, x: torch.Tensor):
    """The layer's checks for a tensor that the annotations would refuse first under pytest."""
    layer._check_input(x)
    return layer(x)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"in_channels": 0}, "groups"),
        ({"groups": 3}, "groups"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size"),
        ({"padding_mode": "mirror"}, "padding_mode"),
        ({"kernel": "spline"}, "kernel"),
        ({"kernel": "cubic"}, "groups"),
        ({"window": "hamming"}, "window"),
        ({"flat": True, "window": "hann"}, "flat"),
        ({"path": "fast"}, "path"),
        ({"spacing": "output", "kernel": "mlp"}, "spacing"),
    ],
)
def test_bad_layers(arguments, expected):
    with pytest.raises(UserError, match=expected):
        CCConv2d(**{"in_channels": 4, "out_channels": 4, **arguments})


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"size": 0}, "at least 1"),
        ({"size": -3}, "at least 1"),
        ({"size": True}, "whole numbers"),
        ({"size": (4, 4, 4)}, "entries"),
        ({"scale": 0}, "positive"),
        ({"scale": float("nan")}, "positive"),
        ({"scale": -1}, "positive"),
        ({"size": 40, "scale": 0.5}, "contradict"),
        ({"offset": float("inf")}, "finite"),
    ],
)
def test_bad_calls(call, expected):
    with pytest.raises(UserError, match=expected):
        CCConv2d(2, 2)(torch.zeros(1, 2, 8, 8), **call)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (torch.zeros(1, 2, 8, 8, dtype=torch.int64), "floating"),
        (torch.zeros(1, 2, 8, 8, dtype=torch.complex64), "floating"),
        (torch.zeros(1, 3, 8, 8), "channels"),
        (torch.zeros(1, 2, 8), "axes"),
        (torch.zeros(1, 2, 0, 8), "empty"),
    ],
)
def test_bad_inputs(x, expected):
    with pytest.raises(UserError, match=expected):
        unchecked(CCConv2d(2, 2), x)


@pytest.mark.parametrize("size", [2.5, (4, 3.0), float("nan")])
def test_sizes_are_whole_numbers(size):
    """Beyond the annotations, which would refuse these first under pytest."""
    with pytest.raises(UserError, match="whole numbers"):
        inspect.unwrap(method.resolve)((8, 8), size, None)


def test_reflect_needs_two_pixels_and_bake_a_common_factor():
    with pytest.raises(UserError, match="two pixels"):
        CCConv2d(2, 2, padding_mode="reflect")(torch.zeros(1, 2, 1, 8))
    with pytest.raises(UserError, match="common factor"):
        CCConv2d(2, 2).bake(64, 57)
    with pytest.raises(UserError, match="input_size"):
        CCConv2d(2, 2).bake((8, 8, 8))
    with pytest.raises(UserError, match="1 to 3 axes"):
        resize(torch.zeros(2, 2), 4)
    with pytest.raises(UserError, match="symmetric"):
        resize(torch.zeros(1, 1, 8, 8), 4, border="reflect")


@pytest.mark.parametrize("path", ["single", "polyphase", "separable", "gather"])
def test_reflect_folds_as_often_as_the_window_needs(path):
    """Windows of 12 and 24 pixels on an axis of 4: the mirror turns back and forth."""
    layer = CCConv2d(2, 3, 3, padding_mode="reflect", path=path, dtype=D)
    x = torch.randn(1, 2, 4, 4, dtype=D)
    for size in (2, 1):
        torch.testing.assert_close(layer(x, size), layer.oracle(x, size), rtol=0, atol=1e-12)


# ---- Against Pillow, and in float32


@pytest.mark.parametrize("size", [(16, 23), (80, 97), (9, 64)])
@pytest.mark.parametrize(("kernel", "name"), [("cubic", "BICUBIC"), ("linear", "BILINEAR")])
def test_pillow_resizes_alike(size, kernel, name):
    from PIL import Image

    image = np.random.default_rng(0).normal(size=(37, 41)).astype(np.float32)
    wanted = np.array(Image.fromarray(image).resize(size[::-1], getattr(Image.Resampling, name)))
    y = resize(torch.from_numpy(image)[None, None].double(), size, kernel=kernel, border="renormalize")
    np.testing.assert_allclose(y[0, 0].numpy(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["interp", "bspline", "mlp"])
@pytest.mark.parametrize("size", [(4, 5), (16, 20), (7, 9)])
def test_float32_is_float64_up_to_rounding(kind, size):
    torch.manual_seed(0)
    layer = CCConv2d(4, 6, 3, kernel=kind, hidden=5)
    x = torch.randn(2, 4, 8, 10)
    single = {}
    for path in ("single", "polyphase", "separable", "gather"):
        layer.path = path
        single[path] = layer(x, size)
    layer.double()
    wanted = layer.oracle(x.double(), size)
    for y in single.values():
        torch.testing.assert_close(y.double(), wanted, rtol=0, atol=1e-5)
