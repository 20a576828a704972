"""Four ways to compute a continuous convolution, all equal to `method.naive`, and the choice among them.

single      one strided conv whose outputs are all phases, then a pixel shuffle; few phases
polyphase   one strided conv per phase, results interleaved
separable   a resampling with the kernel's basis functions, then one conv: cost independent of the phases.
            Where control points stand on input pixels (s >= 1) first the conv, then the resampling
gather      one matrix product per row of phases: the fallback for sizes without a common factor
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from paperkit.resize import resize_axis
from torch import Tensor
from torch.nn import functional as F

from ccconv.axis import CARDINAL, Axis, Geometry, Plan, Samples, total
from ccconv.kernels import Kernel, MLPKernel

PATHS = ("single", "polyphase", "separable", "gather")
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
GROUPS, OUT, LATE = "xyz", "pqr", "tuv"


def apply(
    x: Float[Tensor, "b c *n"],
    plan: Plan,
    kernel: Kernel,
    geometry: Geometry,
    bias: Float[Tensor, " o"] | None,
    groups: int,
    path: str,
    recompute: bool,
) -> Float[Tensor, "b o *m"]:
    """The layer by one path. With `recompute` the sampled kernels are not kept for the backward pass."""
    gains = [axis.gain for axis in plan.axes if axis.gain is not None]
    inner = None if gains else bias
    if path == "separable":
        y = separable(x, plan, kernel, geometry, inner, groups)
    else:
        run = {"single": single, "polyphase": polyphase, "gather": gather}[path]
        y = run(x, plan, kernel, geometry, inner, groups, recompute)
    return scaled(y, outer(gains), bias) if gains else y


def outer(gains: Sequence[Tensor]) -> Float[Tensor, "*m"]:
    """The product of one gain per axis, for every output."""
    result = gains[0]
    for gain in gains[1:]:
        result = result[..., None] * gain
    return result


def scaled(
    y: Float[Tensor, "b o *m"], gain: Float[Tensor, "*m"], bias: Tensor | None
) -> Float[Tensor, "b o *m"]:
    """Each output times its gain (`renormalize`), plus the bias."""
    y = y * gain
    return y if bias is None else y + bias.reshape(-1, *[1] * gain.ndim)


Terms = dict[str, dict[str, float]]
"""Of each path what it does: numbers of products, of numbers copied, of calls, …; see `CHARGES`."""
Mode = Literal["training", "forward", "kept"]
"""Forward and backward; forward alone; forward with sampled kernels that are at hand already (inference)."""
CHARGES: dict[str, Terms] = {
    "training": {
        "gather": {"products": 0.105, "copied": 3.88, "sampled": 0.370, "kernels": 1.27, "calls": 3.78e5},
        "polyphase": {
            "products": 0.0547, "written": 4.26, "read": 4.67, "sampled": 0, "kernels": 35.6, "calls": 1.79e5,
        },
        "single": {"products": 0.0541, "written": 7.94, "sampled": 2.15, "kernels": 8.36},
        "separable mlp": {"resampled": 0.415, "products": 0.305, "sampled": 2.91, "calls": 1.16e5},
        "separable": {"resampled": 0.105, "products": 0.0676, "calls": 2.82e5},
    },
    "forward": {
        "gather": {"products": 0.0252, "copied": 2.08, "sampled": 0.00141, "kernels": 1.68, "calls": 0},
        "polyphase": {
            "products": 0.019, "written": 1.64, "read": 0.414, "sampled": 0, "kernels": 5.8,
            "calls": 46400,
        },
        "single": {"products": 0.017, "written": 1.82, "sampled": 0.139, "kernels": 5},
        "separable mlp": {"resampled": 0.0985, "products": 0.147, "sampled": 0.777, "calls": 141000},
        "separable": {"resampled": 0.0466, "products": 0.0231, "calls": 95000},
    },
}  # fmt: skip
"""Nanoseconds of each on one thread, as `ccconv bench paths` fits them to times of all paths.

What a call costs shows only in small maps: it comes from some of 4x16x24x24, which the benchmark leaves out.
"""


def cost(
    plan: Plan,
    geometry: Geometry,
    batch: int,
    channels: tuple[int, int, int],
    hidden: int,
    mode: Mode = "training",
) -> dict[str, float]:
    """Estimated nanoseconds of each path that applies. `channels` is (in, out, groups)."""
    charges = CHARGES["training" if mode == "training" else "forward"]
    found = {}
    for path, values in terms(plan, geometry, batch, channels, hidden, mode).items():
        each = charges[priced(path, geometry)]
        found[path] = sum(each[term] * value for term, value in values.items())
    return found


def priced(path: str, geometry: Geometry) -> str:
    """The name in `CHARGES` of a path: `separable` does something else for `mlp`."""
    return "separable mlp" if path == "separable" and geometry.kernel == "mlp" else path


def terms(
    plan: Plan,
    geometry: Geometry,
    batch: int,
    channels: tuple[int, int, int],
    hidden: int,
    mode: Mode = "training",
) -> Terms:
    """What each path that applies does: products of a conv and of a resampling, numbers written, read and
    copied for every phase, kernels used and the products that sampled them, calls."""
    axes = plan.axes
    inputs, out, groups = channels[0], channels[1], channels[2]
    phases, taps = total([axis.phases for axis in axes]), total([axis.taps for axis in axes])
    basis = hidden + 1 if geometry.kernel == "mlp" else total(geometry.kernel_size)
    pairs = out * inputs // groups
    kernels = phases * taps * pairs
    sampled = 0 if mode == "kept" else kernels * basis
    read = batch * inputs * total([axis.high - axis.low for axis in axes])
    pixels = batch * total(plan.sizes)
    written = pixels * out
    whole = batch * total([axis.groups * axis.phases for axis in axes]) * taps * pairs
    common = total([axis.starts[-1] + axis.taps for axis in axes])
    rows = phases / axes[-1].phases
    found: Terms = {
        "gather": {
            "products": pixels * taps * pairs, "copied": pixels * taps * inputs, "sampled": sampled,
            "kernels": kernels, "calls": rows,
        }
    }  # fmt: skip
    if phases <= 256:
        found["polyphase"] = {
            "products": whole, "written": written, "read": phases * read, "sampled": sampled,
            "kernels": kernels, "calls": phases,
        }  # fmt: skip
    if phases <= 64 and common <= 8 * taps:
        found["single"] = {
            "products": whole * common / taps, "written": written, "sampled": sampled,
            "kernels": kernels * common / taps,
        }  # fmt: skip
    if geometry.kernel == "mlp":
        found["separable"] = {
            "resampled": pixels * taps * inputs * basis, "products": pixels * pairs * basis,
            "sampled": phases * taps * basis * basis, "calls": rows,
        }  # fmt: skip
    elif plan.bands is not None:
        found["separable"] = separable_terms(plan, geometry, batch, channels)
    return found


def separable_terms(
    plan: Plan, geometry: Geometry, batch: int, channels: tuple[int, int, int]
) -> dict[str, float]:
    """What `separable` does for kernels that are products of one-dimensional ones."""
    assert plan.bands is not None
    inputs, out, groups = channels
    lengths, resampled, products = [axis.length for axis in plan.axes], 0.0, 0.0
    late = [number for number in plan.order if plan.bands[number].after]
    for number, band in ((n, plan.bands[n]) for n in plan.order if n not in late):
        resampled += batch * inputs * total(lengths) / lengths[number] * band.products
        lengths[number] = band.rows
    if geometry.kernel in CARDINAL:
        each = zip(plan.bands, geometry.kernel_size, plan.sizes, strict=True)
        lengths = [band.rows - k + 1 if band.after else n for band, k, n in each]
        products = batch * total(lengths) * total(geometry.kernel_size) * out * inputs / groups
    for number in late:
        resampled += batch * out * total(lengths) / lengths[number] * plan.bands[number].products
        lengths[number] = plan.sizes[number]
    calls = sum(len(band.before) + len(band.after) for band in plan.bands)
    return {"resampled": resampled, "products": products, "calls": calls}


def choose(
    plan: Plan,
    geometry: Geometry,
    batch: int,
    channels: tuple[int, int, int],
    hidden: int,
    mode: Mode = "training",
) -> str:
    """The cheapest path by `cost`."""
    found = cost(plan, geometry, batch, channels, hidden, mode)
    return min(found, key=lambda name: found[name])


def leanest(plan: Plan, geometry: Geometry, channels: tuple[int, int, int], hidden: int) -> str:
    """The path with the fewest multiplications for one image."""
    found = terms(plan, geometry, 1, channels, hidden)
    kinds = ("products", "resampled", "sampled")
    return min(found, key=lambda path: sum(found[path].get(kind, 0) for kind in kinds))


# ---- Borders, and kernels that are sampled again in the backward pass ------------------------------------


def pad(x: Float[Tensor, "b c *n"], axes: Sequence[Axis | None]) -> Float[Tensor, "b c *p"]:
    """x at the positions low .. high of every axis, by the border's rule; axes that are None stay."""
    zeros: list[int] = []
    for number, axis in enumerate(axes):
        if axis is None:
            zeros = [0, 0, *zeros]
        elif axis.fold is not None:
            x = x.index_select(2 + number, axis.fold)
            zeros = [0, 0, *zeros]
        else:
            start, stop = max(axis.low, 0), min(axis.high, axis.length)
            if (start, stop) != (0, axis.length):
                x = x.narrow(2 + number, start, stop - start)
            zeros = [start - axis.low, axis.high - stop, *zeros]
    return F.pad(x, zeros) if any(zeros) else x


@contextlib.contextmanager
def forgotten(weight: Tensor, again: Callable[[], Tensor], sources: Sequence[Tensor]) -> Iterator[None]:
    """Inside, autograd keeps no sampled kernel but samples it again when the backward pass asks for it."""
    place = weight.untyped_storage().data_ptr()
    versions = [source._version for source in sources]
    memory: list[Tensor] = []

    def pack(value: Tensor):
        if value.untyped_storage().data_ptr() != place:
            return value
        return tuple(value.shape), value.stride(), value.storage_offset()

    def unpack(packed):
        if isinstance(packed, Tensor):
            return packed
        if [source._version for source in sources] != versions:
            raise RuntimeError(
                "a kernel's parameters were changed in place between the forward and backward pass"
            )
        if not memory:
            with torch.no_grad():
                memory.append(again())
        return memory[0].as_strided(*packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def sampled(
    samples: Sequence[Samples], kernel: Kernel, geometry: Geometry, recompute: bool, groups: int = 0
) -> tuple[Tensor, contextlib.AbstractContextManager[None]]:
    """The kernels of all phases as `kernel.weights` lays them out, and the context in which to use them."""
    weight = kernel.weights(samples, geometry, groups)
    if not (recompute and weight.requires_grad and weight.numel() > 4 * kernel.mix.numel()):
        return weight, contextlib.nullcontext()
    sources = list(kernel.parameters())
    return weight, forgotten(weight, lambda: kernel.weights(samples, geometry, groups), sources)


def interleave(parts: Sequence[Tensor], axes: Sequence[Axis], rest: int = 0) -> Float[Tensor, "b o *m"]:
    """Outputs of all phases, each (b, o, groups...), in order; the last `rest` axes have no phases left."""
    count = len(axes) - rest
    if len(parts) > 1:
        g, p, late = GROUPS[:count], OUT[:count], LATE[:rest]
        sizes = {letter: axis.phases for letter, axis in zip(p, axes, strict=False)}
        inputs = f"({' '.join(p)}) b o {' '.join(g)} {' '.join(late)}"
        pairs = " ".join(f"({a} {b})" for a, b in zip(g, p, strict=True))
        y = rearrange(torch.stack(list(parts)), f"{inputs} -> b o {pairs} {' '.join(late)}", **sizes)
    else:
        y = parts[0]
    for number, axis in enumerate(axes[:count]):
        if y.shape[2 + number] != axis.size:
            y = y.narrow(2 + number, 0, axis.size)
    return y


# ---- The paths -------------------------------------------------------------------------------------------


def single(
    x: Tensor,
    plan: Plan,
    kernel: Kernel,
    geometry: Geometry,
    bias: Tensor | None,
    groups: int,
    recompute: bool = False,
) -> Tensor:
    """One conv over the window common to all phases; its outputs are out x phases, shuffled into pixels."""
    weight, context = sampled([axis.samples for axis in plan.axes], kernel, geometry, recompute)
    with context:
        return single_with(x, plan.axes, weight, bias, groups)


def single_with(x: Tensor, axes: Sequence[Axis], weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """`single` with kernels (phases..., out, in, taps...) given."""
    count = len(axes)
    conv, phases = CONV[count], [axis.phases for axis in axes]
    stride = [axis.stride for axis in axes]
    if total(phases) == 1:
        weight = weight[(0,) * count]
        before, after = [-axis.low for axis in axes], [axis.high - axis.length for axis in axes]
        if before == after and min(before) >= 0 and all(axis.fold is None for axis in axes):
            return conv(x, weight, bias, stride, before, 1, groups)
        return conv(pad(x, axes), weight, bias, stride, 0, 1, groups)
    joint = torch.cat([
        F.pad(weight[which], _window(axes, which))[:, None] for which in product(*map(range, phases))
    ], 1).flatten(0, 1)  # fmt: skip
    repeated = None if bias is None else bias.repeat_interleave(total(phases))
    y = conv(pad(x, axes), joint, repeated, stride, 0, 1, groups)
    g, p = GROUPS[:count], OUT[:count]
    pairs = " ".join(f"({a} {b})" for a, b in zip(g, p, strict=True))
    sizes = dict(zip(p, phases, strict=True))
    y = rearrange(y, f"b (o {' '.join(p)}) {' '.join(g)} -> b o {pairs}", **sizes)
    return interleave([y], axes)


def _window(axes: Sequence[Axis], which: Sequence[int]) -> list[int]:
    """Zeros on either side of one phase's kernel in the common window, in F.pad's order."""
    result: list[int] = []
    for axis, p in zip(axes, which, strict=True):
        result = [axis.starts[p], axis.starts[-1] - axis.starts[p], *result]
    return result


def polyphase(
    x: Tensor,
    plan: Plan,
    kernel: Kernel,
    geometry: Geometry,
    bias: Tensor | None,
    groups: int,
    recompute: bool = False,
) -> Tensor:
    """One strided conv per combination of phases, results interleaved without in-place writes."""
    weight, context = sampled([axis.samples for axis in plan.axes], kernel, geometry, recompute)
    with context:
        return polyphase_with(x, plan.axes, weight, bias, groups)


def polyphase_with(
    x: Tensor, axes: Sequence[Axis], weight: Tensor, bias: Tensor | None, groups: int
) -> Tensor:
    """`polyphase` with kernels (phases..., out, in, taps...) given."""
    x, conv = pad(x, axes), CONV[len(axes)]
    stride = [axis.stride for axis in axes]
    parts = []
    for which in product(*(range(axis.phases) for axis in axes)):
        part = x
        for number, (axis, p) in enumerate(zip(axes, which, strict=True)):
            part = part.narrow(2 + number, axis.starts[p], axis.extent)
        parts.append(conv(part, weight[which], bias, stride, 0, 1, groups))
    return interleave(parts, axes)


def gather(
    x: Tensor,
    plan: Plan,
    kernel: Kernel,
    geometry: Geometry,
    bias: Tensor | None,
    groups: int,
    recompute: bool = False,
) -> Tensor:
    """Windows of the last axis side by side, then one product per combination of the other axes' phases.

    Only one row's kernels exist at a time: memory grows with n, not with n^D.
    """

    def multiply(windows: Tensor, which: tuple[int, ...]) -> Tensor:
        weight, context = sampled(_row(plan.axes, which), kernel, geometry, recompute, groups)
        with context:
            return products(windows, weight[(0,) * len(which)])

    return _rows(x, plan.axes, multiply, bias)


def gather_with(x: Tensor, axes: Sequence[Axis], weight: Tensor, bias: Tensor | None) -> Tensor:
    """`gather` with kernels (phases..., groups, taps..., in, out) given."""
    return _rows(x, axes, lambda windows, which: products(windows, weight[which]), bias)


def products(windows: Tensor, weight: Float[Tensor, "m g *t i o"]) -> Float[Tensor, "b c *r n"]:
    """Each phase m of the last axis: its windows (b, rows..., m, z, t, c, outer taps...) times its kernel."""
    outer = (windows.ndim - 5) // 2
    rows, taps = " ".join(GROUPS[:outer]), " ".join(OUT[:outer])
    sizes = {"m": len(weight), "g": weight.shape[1]}
    counts = dict(zip(("b", *GROUPS[:outer]), windows.shape, strict=False))
    left, right = f"b {rows} m z t (g i) {taps}", f"(m g) (b {rows} z) ({taps} t i)"
    # Channels innermost: what is copied lies together.
    y = torch.bmm(rearrange(windows, f"{left} -> {right}", g=sizes["g"]), weight.flatten(2, -2).flatten(0, 1))
    return rearrange(y, f"(m g) (b {rows} z) o -> b (g o) {rows} (z m)", **sizes, **counts)


def separable(
    x: Tensor, plan: Plan, kernel: Kernel, geometry: Geometry, bias: Tensor | None, groups: int
) -> Tensor:
    """Resample with each basis function of the kernel, then mix: never samples a kernel."""
    if isinstance(kernel, MLPKernel):
        mix = rearrange(kernel.mix, "(g o) i h -> g o i h", g=groups)

        def contract(windows: Tensor, which: tuple[int, ...]) -> Tensor:
            phi = kernel.features(_row(plan.axes, which), geometry.flat, geometry.window)
            phi = phi.flatten(0, len(which)).flatten(1, -2)  # m t h
            rows, taps = " ".join(GROUPS[: len(which)]), " ".join(OUT[: len(which)])
            left, right = f"b {rows} m z t (g i) {taps}", f"b g i ({rows}) m z ({taps} t)"
            patches = rearrange(windows, f"{left} -> {right}", g=groups)
            resampled = torch.einsum("bgiymzt,mth->bgiymzh", patches, phi)
            y = torch.einsum("bgiymzh,goih->bgoymz", resampled, mix)
            counts = dict(zip(GROUPS[: len(which)], windows.shape[1:], strict=False))
            return rearrange(y, f"b g o ({rows}) m z -> b (g o) {rows} (z m)", **counts)

        return _rows(x, plan.axes, contract, bias)
    assert plan.bands is not None
    early, late = ([n for n in plan.order if getattr(plan.bands[n], w)] for w in ("before", "after"))
    for number in early:
        x = resize_axis(x, 2 + number, plan.bands[number].before)
    if geometry.kernel not in CARDINAL:
        return x if bias is None else x + bias.reshape(-1, *[1] * len(plan.bands))
    x = pad(x, [axis if number in late else None for number, axis in enumerate(plan.axes)])
    stride = [band.stride for band in plan.bands]
    # A matrix after the conv would weigh the bias too.
    y = CONV[len(plan.bands)](x, kernel.mix, None if late else bias, stride, 0, 1, groups)
    for number in late:
        y = resize_axis(y, 2 + number, plan.bands[number].after)
    return y if bias is None or not late else y + bias.reshape(-1, *[1] * len(plan.bands))


def _row(axes: Sequence[Axis], which: Sequence[int]) -> list[Samples]:
    """Samples of one phase of every axis but the last, whose phases all stay."""
    return [*(axis.samples.phase(p) for axis, p in zip(axes, which, strict=False)), axes[-1].samples]


def _rows(
    x: Tensor,
    axes: Sequence[Axis],
    contract: Callable[[Tensor, tuple[int, ...]], Tensor],
    bias: Tensor | None,
) -> Tensor:
    """The frame of `gather`: `contract` takes windows (b, rows..., m, z, t, c, outer taps...) and phases."""
    *outer, last = axes
    x = pad(x, axes).movedim(1, -1)
    x = x.index_select(x.ndim - 2, last.reads).unflatten(-2, (last.phases, last.groups, last.taps))
    parts = []
    for which in product(*(range(axis.phases) for axis in outer)):
        part = x
        for number, (axis, p) in enumerate(zip(outer, which, strict=True)):
            part = part.narrow(1 + number, axis.starts[p], axis.extent)
            part = part.unfold(1 + number, axis.taps, axis.stride)
        parts.append(contract(part, which)[..., : last.size])
    y = interleave(parts, axes, rest=1) if outer else parts[0]
    return y if bias is None else y + bias.reshape(-1, *[1] * len(axes))
