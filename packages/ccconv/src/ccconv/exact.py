"""The exact claims as cases: {case: largest difference} against an independent computation.

Used by `ccconv reproduce` and by the tests. Everything is float64 and random numbers are seeded.
"""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction

import numpy as np
import torch
from paperkit.resize import cubic
from torch import Tensor, nn
from torch.nn import functional as F

from ccconv import method
from ccconv.conversion import from_conv
from ccconv.drift import align
from ccconv.functional import resize
from ccconv.layer import CCConv2d

D = torch.float64
Cases = dict[str, float]
SIZES = ((37, 41, 16, 23), (20, 24, 40, 72), (64, 31, 9, 127), (50, 33, 50, 30))
SCALES = (Fraction(1, 3), 0.5, 0.37, 7 / 8, 1.0, 1.5, Fraction(5, 3), 3.0, math.pi / 2)


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def plain_resize(x: Tensor, n: int, s: float, border: str) -> Tensor:
    """The maths of a cubic resize of the last axis, sum by sum, with rounding where it falls; the oracle."""
    length, rows = x.shape[-1], []
    r = min(float(s), 1.0)
    for j in range(n):
        u = j / float(s) + (length - 1) / 2 - (n - 1) / (2 * float(s))
        pixels = range(math.ceil(u - 2 / r - 1), math.floor(u + 2 / r + 1) + 1)
        weights = {i: float(cubic(np.array([r * (i - u)]))[0]) for i in pixels if abs(i - u) * r < 2}
        total = sum(weights.values())
        row = torch.zeros_like(x[..., 0])
        for i, weight in weights.items():
            if border == "replicate" or 0 <= i < length:
                row = row + weight / total * x[..., min(max(i, 0), length - 1)]
        rows.append(row)
    return torch.stack(rows, -1)


def resizing() -> Cases:
    """`resize` and the fixed layer against the plain sum, and against F.interpolate(antialias=True)."""
    found = {}
    for s in SCALES:
        for border in ("zeros", "replicate"):
            n = max(1, math.ceil(float(s) * 21) - 1)  # n != s N
            x = _random(1, 2, 3, 21)
            layer = CCConv2d(2, 2, 1, groups=2, kernel="cubic", padding_mode=border, dtype=D)
            wanted = plain_resize(x, n, float(s), border)
            found[f"resize, s={float(s):.3f}, {border}"] = _gap(
                resize(x, (3, n), (1, s), border=border), wanted
            )
            found[f"layer, s={float(s):.3f}, {border}"] = _gap(layer(x, (3, n), (1, s)), wanted)
    for h, w, m, n in SIZES:
        for mode, kernel in (("bicubic", "cubic"), ("bilinear", "linear")):
            x = _random(1, 2, h, w)
            layer = CCConv2d(2, 2, 1, groups=2, kernel=kernel, padding_mode="renormalize", dtype=D)
            wanted = F.interpolate(x, (m, n), mode=mode, antialias=True)
            found[f"{mode}, {h}x{w} to {m}x{n}"] = _gap(layer(x, (m, n)), wanted)
    x = _random(1, 2, 24, 36)
    layer = CCConv2d(2, 2, 1, groups=2, kernel="box", padding_mode="renormalize", dtype=D)
    found["box is the mean of blocks"] = _gap(layer(x, (8, 9)), F.interpolate(x, (8, 9), mode="area"))
    return found


def convolutions() -> Cases:
    """An ordinary conv, a strided one, a transposed one, and resize-then-conv as members of the family."""
    found = {}
    for kind in ("interp", "mlp"):
        torch.manual_seed(0)
        for k in (1, 3, 5):
            layer = CCConv2d(4, 6, k, kernel=kind, groups=2, dtype=D)
            weight = _sampled(layer, k)
            x = _random(2, 4, 9, 12)
            same = F.conv2d(x, weight, layer.bias, padding=k // 2, groups=2)
            found[f"{kind}, k{k}, s=1"] = _gap(layer(x), same)
        layer = CCConv2d(4, 6, 3, kernel=kind, antialias=False, dtype=D)
        weight = _sampled(layer, 3)
        for size, delta in ((9, 0), (10, -0.5)):
            x = _random(2, 4, size, size, seed=1)
            same = F.conv2d(x, weight, layer.bias, stride=2, padding=1)
            y = layer(x, same.shape[2:], 0.5, delta)
            found[f"{kind}, stride 2, N={size}, delta={delta:g}"] = _gap(y, same)
        for t, w in ((2, 3), (3, 2), (3, 3)):
            layer = CCConv2d(4, 6, w, kernel=kind, dtype=D)
            k = t * w
            if (k - t) % 2 or t * (w - 1) % 2:
                continue
            taps = (k / 2 - torch.arange(k, dtype=D) - 0.5) / t
            mesh = torch.stack(torch.meshgrid(taps, taps, indexing="ij"), -1)
            inside = (taps.abs() <= float(layer.geometry.support(0, Fraction(t))) / 2).to(D)
            if kind == "interp":
                continue  # its support is k + 3: more taps than t w
            f = layer.kernel(mesh) * (inside[:, None] * inside)[..., None, None]
            x = _random(2, 4, 7, 6)
            same = F.conv_transpose2d(x, f.permute(3, 2, 0, 1), layer.bias, stride=t, padding=(k - t) // 2)
            found[f"{kind}, transposed, t={t}, w={w}"] = _gap(layer(x, scale=t), same)
    for s in (Fraction(1, 2), Fraction(1, 3), Fraction(7, 8), Fraction(23, 37)):
        layer = CCConv2d(3, 4, 3, flat=True, dtype=D)
        x = _random(1, 3, 74, 56)
        y = layer(x, scale=s)
        rows = resize(x, tuple(n + 2 for n in y.shape[2:]), s, border="zeros")
        same = F.conv2d(rows, layer.kernel.mix, layer.bias)
        found[f"resize, then conv, s={s}"] = _gap(y, same)
    for k, t, p, size in (
        (3, 2, 1, 16),
        (7, 2, 3, 33),
        (4, 2, 1, 18),
        (1, 2, 0, 9),
        (4, 4, 0, 22),
        (5, 3, 0, 20),
    ):
        conv = nn.Conv2d(3, 4, k, t, p, dtype=D)
        x = _random(1, 3, size, size)
        found[f"from_conv, k{k} t{t} p{p}, N={size}"] = _gap(from_conv(conv, size)(x), conv(x))
    return found


def _sampled(layer: CCConv2d, k: int) -> Tensor:
    """f on whole numbers: (out, in/groups, k, k)."""
    axis = torch.arange(k, dtype=D) - (k - 1) / 2
    mesh = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    return layer.kernel(mesh).permute(2, 3, 0, 1)


def path_cases() -> Iterable[tuple[str, CCConv2d, Tensor, dict]]:
    """Layers, inputs and calls over kernels, borders, phases and groups."""
    calls = (
        {"size": (4, 5)}, {"size": (16, 20)}, {"size": (7, 9)}, {"scale": (Fraction(3, 2), 0.5)},
        {"scale": (math.pi / 2, 0.37)}, {"size": (5, 11), "scale": (0.6, 1.1), "offset": (0.25, -0.5)},
    )  # fmt: skip
    for kind in ("interp", "bspline", "mlp"):
        for number, border in enumerate(method.BORDERS):
            for antialias in (True, False):
                torch.manual_seed(number)
                window = "hann" if number % 2 else "none"
                layer = CCConv2d(
                    4, 6, (3, 2 + number % 3), groups=1 + number % 2, kernel=kind, padding_mode=border,
                    antialias=antialias, window=window, hidden=5, dtype=D,
                )  # fmt: skip
                for call in calls:
                    name = f"{kind}, {border}, antialias={antialias}, {call}"
                    yield name, layer, _random(2, 4, 8, 10), call
    yield from upward_cases()


def upward_cases() -> Iterable[tuple[str, CCConv2d, Tensor, dict]]:
    """Those in which control points stand on input pixels on one axis or both: see `axis.Bands`."""
    calls = (
        {"size": (13, 17)}, {"size": (16, 30)}, {"size": (13, 7)}, {"size": (5, 23)},
        {"size": (9, 14), "scale": (math.pi / 2, 1.1), "offset": (0.25, -0.5)},
    )  # fmt: skip
    for kind in ("interp", "bspline"):
        for number, border in enumerate(method.BORDERS):
            torch.manual_seed(number)
            sides, groups = (3, 2 + number % 3), 1 + number % 2
            layer = CCConv2d(4, 6, sides, groups=groups, kernel=kind, padding_mode=border, dtype=D)
            for call in calls:
                yield f"{kind}, {border}, kernel {sides}, {call}", layer, _random(2, 4, 8, 10), call


def paths(every: int = 1) -> Cases:
    """Every path's output and gradients against the definition (unfold, sample everywhere, one einsum).

    `every` takes each so-manieth case only.
    """
    found = {}
    for name, layer, x, call in list(path_cases())[::every]:
        wanted = layer.oracle(x, **call)
        for path in ("single", "polyphase", "separable", "gather"):
            layer.path = path
            found[f"{path}, {name}"] = _gap(layer(x, **call), wanted)
    for name, layer, size in list(gradient_cases())[::every]:
        x = _random(2, 4, 8, 10).requires_grad_()
        inputs = [x, *layer.parameters()]
        wanted = torch.autograd.grad(layer.oracle(x, size).square().mean(), inputs)
        for path in ("single", "polyphase", "separable", "gather"):
            layer.path = path
            ours = torch.autograd.grad(layer(x, size).square().mean(), inputs)
            gap = max(_gap(a, b) for a, b in zip(ours, wanted, strict=True))
            found[f"gradient, {path}, {name}, {size}"] = gap
    return found


def gradient_cases() -> Iterable[tuple[str, CCConv2d, tuple[int, int]]]:
    """Layers and output sizes whose gradients are compared, of inputs of 8x10."""
    for kind, borders in (("interp", method.BORDERS), ("mlp", ("zeros",))):
        for border in borders:
            torch.manual_seed(0)
            layer = CCConv2d(4, 6, 3, kernel=kind, padding_mode=border, hidden=5, dtype=D)
            for size in ((4, 5), (16, 20), (7, 9), (11, 13), (11, 7)):
                yield f"{kind}, {border}", layer, size


def equivariance() -> Cases:
    """Shifts, flips, and one function sampled at two scales."""
    found = {}
    for kind in ("interp", "mlp"):
        torch.manual_seed(0)
        layer = CCConv2d(3, 4, 3, kernel=kind, dtype=D)
        x = _random(1, 3, 12, 40)
        for s, shift in ((Fraction(1, 2), 4), (Fraction(2, 3), 3), (Fraction(3, 2), 2)):
            moved = torch.zeros_like(x)
            moved[..., shift:] = x[..., :-shift]
            step = int(s * shift)
            a, b = layer(x, scale=s), layer(moved, scale=s)
            inner = slice(8, -8)
            found[f"{kind}, shift by {shift}, s={s}"] = _gap(
                a[..., inner], b[..., 8 + step : b.shape[-1] - 8 + step]
            )
        for size in (23, 24):
            for n in (11, 12, 17, 31):
                y = _random(1, 3, size, size)
                flipped = _flipped(layer)
                found[f"{kind}, flip, N={size}, n={n}"] = _gap(flipped(y.flip(-1), n), layer(y, n).flip(-1))
        fine = CCConv2d(3, 4, 3, kernel=kind, antialias=False, dtype=D)
        fine.load_state_dict(layer.state_dict())
        coarse_n, s, x = 9, Fraction(1, 2), _random(1, 3, 24, 24)
        coarse = fine(x, coarse_n, s)
        dense = fine(x, 2 * coarse_n - 1, 2 * s)
        found[f"{kind}, coarse grid within the fine one"] = _gap(dense[..., ::2, ::2], coarse)
    return found


def _flipped(layer: CCConv2d) -> nn.Module:
    """The layer with f(-d) along the last axis."""

    class Mirrored(nn.Module):
        def forward(self, x: Tensor, n: int) -> Tensor:
            def f(d: Tensor) -> Tensor:
                return layer.kernel(d * d.new_tensor([1.0, -1.0]))

            x = x.to(D)
            made = method.resolve(x.shape[2:], n, None)
            grids = [
                method.grid(length, each[0], each[1], layer.geometry.support(axis, each[1]))
                for axis, (length, each) in enumerate(zip(x.shape[2:], made, strict=True))
            ]
            return method.naive(x, grids, f, layer.bias)

    return Mirrored()


# ---- Drift -----------------------------------------------------------------------------------------------


def chain(layers: int, kernel: int = 3, stride: int = 2, padding: int = 1) -> nn.Sequential:
    """Strided convs of one channel with constant kernels: their centroids are the windows' centres."""
    convs = [nn.Conv2d(1, 1, kernel, stride, padding, bias=False, dtype=D) for _ in range(layers)]
    for conv in convs:
        nn.init.ones_(conv.weight)
    return nn.Sequential(*convs)


def measured_drift(model: Callable[[Tensor], Tensor], size: int, step: Fraction | float) -> float:
    """Centroid of the input gradient of an output near the middle, minus where the aligned grid puts it."""
    x = torch.zeros(1, 1, size, size, dtype=D, requires_grad=True)
    y = model(x)
    j = y.shape[-1] // 2
    (gradient,) = torch.autograd.grad(y[0, 0, j, j], x)
    profile = gradient[0, 0].sum(0)
    centre = float((profile * torch.arange(size, dtype=D)).sum() / profile.sum())
    return centre - ((size - 1) / 2 + (j - (y.shape[-1] - 1) / 2) * float(step))


def drift_formula() -> Cases:
    """Predicted against measured drift of chains of convs, transposed convs and pools."""
    found = {}
    for layers in (1, 2, 3):
        for kernel, padding in ((3, 1), (4, 1), (5, 2), (2, 0)):
            for size in (128, 129, 130, 131):
                net = chain(layers, kernel, 2, padding)
                predicted = float(align(net, size)[-1].drift[-1])
                found[f"{layers} convs, k{kernel} p{padding}, N={size}"] = abs(
                    measured_drift(net, size, 2**layers) - predicted
                )
    for k, p, q in ((3, 1, 1), (4, 1, 0), (2, 0, 0), (3, 1, 0)):
        up = nn.ConvTranspose2d(1, 1, k, 2, p, q, bias=False, dtype=D)
        nn.init.ones_(up.weight)
        found[f"transposed, k{k} p{p} q{q}"] = abs(_transposed(up) - float(method.transposed_drift(2, q)))
    for size in (256, 257, 262):
        net = nn.Sequential(*[CCConv2d(1, 1, 3, scale=0.5, bias=False, dtype=D) for _ in range(3)])
        for layer in net:
            nn.init.ones_(layer.kernel.weight)  # pyright: ignore
        found[f"3 continuous layers, N={size}"] = abs(measured_drift(net, size, 8))
    return found


def _transposed(up: nn.Module, size: int = 20) -> float:
    """Where output pixels read, averaged over one period, minus where the aligned grid of s = 2 puts them."""
    x = torch.zeros(1, 1, size, size, dtype=D)
    x[0, 0, 9, 9] = 1
    y = up(x).detach()[0, 0].sum(0)
    n = len(y)
    landed = float((y * torch.arange(n, dtype=D)).sum() / y.sum())
    return (9 - (size - 1) / 2) - (landed - (n - 1) / 2) / 2


def drift_sizes(sizes: Iterable[int] = range(64, 81)) -> dict[int, tuple[float, float]]:
    """Per input size: drift of four k3 p1 t2 convs and of four continuous layers, in pixels."""
    convs = chain(4)
    layers = nn.Sequential(*[CCConv2d(1, 1, 3, scale=0.5, bias=False, dtype=D) for _ in range(4)])
    return {n: (float(align(convs, n)[-1].drift[-1]), float(align(layers, n)[-1].drift[-1])) for n in sizes}
