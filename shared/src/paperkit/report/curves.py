"""Small line charts as inline SVG, one metric each: ticks, logarithmic scale, downsampling.

Used by `paperkit.report`. Colours and fonts come from the page's style sheet: one chart
is right in light and dark.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 360, 176
LEFT, RIGHT, TOP, BOTTOM = 46, 58, 10, 24
MOST_POINTS = 2000

Point = tuple[float, float]


def panel(name: str, points: Sequence[Point]) -> str:
    """A figure with the curve of one metric over steps; points that are not finite leave a gap.

    The scale is logarithmic where every value is positive and the largest is over 100 times the smallest.
    """
    finite = [p for p in points if math.isfinite(p[1])]
    if not finite:
        return (
            f'<figure class="curve"><figcaption>{escape(name)}</figcaption>'
            f'<p class="quiet">no finite value in {len(points)} records</p></figure>'
        )
    scale = _scale([y for _, y in finite])
    notes = " · ".join(
        word
        for word in (
            "log scale" if scale.log else "",
            f"{len(points) - len(finite)} not finite" if len(finite) < len(points) else "",
        )
        if word
    )
    caption = f'<figcaption>{escape(name)}<span class="quiet">{notes}</span></figcaption>'
    return f'<figure class="curve">{caption}{_svg(name, points, finite, scale)}</figure>'


def figure(value: float | int, digits: int = 4) -> str:
    """A number in so many significant digits, as ×10ⁿ where it is very small or very large."""
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.{min(digits, 3) - 1}e}".split("e")
        times = {"1": "", "-1": "-"}.get(f"{float(mantissa):g}", f"{float(mantissa):g}×")
        text = f"{times}10{_superscript(int(exponent))}"
    elif abs(value) >= 10 ** max(digits, 4):
        text = f"{value:,.0f}".replace(",", "\u202f")
    else:
        text = f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    return text.replace("-", "−")


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: the lowest and the highest of each equal share of the sequence, ends kept.

    Every spike survives, which averaging or picking each n-th point would lose.
    """
    if len(points) <= most:
        return list(points)
    buckets = most // 2 - 1
    kept = [points[0]]
    for i in range(buckets):
        share = range(1 + i * (len(points) - 2) // buckets, 1 + (i + 1) * (len(points) - 2) // buckets)
        low, high = min(share, key=lambda j: points[j][1]), max(share, key=lambda j: points[j][1])
        kept += [points[j] for j in sorted({low, high})]
    return [*kept, points[-1]]


class _Scale(NamedTuple):
    low: float
    high: float
    log: bool
    ticks: list[float]

    def place(self, value: float, start: float, end: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return start + (value - low) / (high - low) * (end - start)


def _scale(values: Sequence[float]) -> _Scale:
    low, high = min(values), max(values)
    if low > 0 and high > 100 * low:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        every = max(1, math.ceil((last - first) / 4))
        ticks = [10.0**e for e in range(first, last + 1, every) if low / 1.5 <= 10.0**e <= high * 1.5]
        return _Scale(min([low, *ticks]), max([high, *ticks]), True, ticks)
    if low == high:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (-1.0, 1.0)
    ticks = ticks_between(low, high)
    return _Scale(min([low, *ticks]), max([high, *ticks]), False, ticks)


def ticks_between(low: float | int, high: float | int, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that lie in low … high, about as many as asked."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12 - math.floor(math.log10(step))) + 0.0 for i in range(first, last + 1)]


def _svg(name: str, points: Sequence[Point], finite: Sequence[Point], scale: _Scale) -> str:
    steps = [x for x, _ in points]
    first, last = min(steps), max(steps)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first or 1) * (right - LEFT)

    def y(value: float) -> float:
        return scale.place(value, float(bottom), float(TOP))

    lines = [
        f'<line class="rule" x1="{LEFT}" x2="{right}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y(t) + 3.5:.1f}" text-anchor="end">{_tick(t)}</text>'
        for t in scale.ticks
    ]
    marks = [t for t in (ticks_between(first, last, 3) if last > first else [first]) if t == int(t)]
    lines += [
        f'<text class="tick" x="{x(t):.1f}" y="{HEIGHT - 7}" text-anchor="middle">{_tick(t)}</text>'
        for t in marks
    ]
    for stretch in _runs(points):
        run = thin(stretch, max(4, MOST_POINTS * len(stretch) // len(points)))
        path = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in run)
        lines.append(f'<polyline class="line" points="{path}"/>')
        if len(points) <= 15 or len(run) == 1:
            lines += [f'<circle class="dot" cx="{x(s):.1f}" cy="{y(v):.1f}" r="2"/>' for s, v in run]
    end_x, end_y = x(finite[-1][0]), y(finite[-1][1])
    lines.append(f'<circle class="dot" cx="{end_x:.1f}" cy="{end_y:.1f}" r="3"/>')
    lines.append(
        f'<text class="last" x="{end_x + 7:.1f}" y="{end_y + 4:.1f}">{figure(finite[-1][1], 3)}</text>'
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_words(name, finite))}">'
        f"{''.join(lines)}</svg>"
    )


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """The stretches between values that are not finite."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _words(name: str, finite: Sequence[Point]) -> str:
    """The curve for those who hear it."""
    low, high = min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])
    ends = f"starts at {figure(finite[0][1])}, ends at {figure(finite[-1][1])}"
    lowest, highest = (f"{figure(value)} at step {figure(step)}" for step, value in (low, high))
    steps = f"{figure(finite[0][0])} to {figure(finite[-1][0])}"
    return f"{name} over steps {steps}: {ends}, lowest {lowest}, highest {highest}"


def _tick(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / size:g}{letter}".replace("-", "−")
    return figure(value, 3)


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
