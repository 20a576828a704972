"""Airfoils (section 4.5, spec E6): NACA 4-digit shapes as rings of nodes, and their lift-to-drag ratio.

The paper has its ratios from XFoil; here they are NeuralFoil's (Sharpe, arXiv 2503.16323), which is itself a
network, fitted to XFoil: what is learned here is a network's answer. It is installed by the extra `airfoils`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from paperkit import UserError, reproduction

from ittt.graph_data import Shapes, graph_of, ring

ALPHA, REYNOLDS = 5.0, 1e6
"""Angle of attack in degrees, and Reynolds number of the chord."""
CONFIDENCE = 0.8
"""Shapes of which NeuralFoil is less sure than this are dropped."""
UNIT = 100.0
"""Ratios are divided by this: labels are then near 1, and 0, which stands for no label, is none."""
OUTLINE = 161
"""Points of the outline that the ratio is computed from, whatever the number of nodes."""
THICKNESS = (0.2969, -0.1260, -0.3516, 0.2843, -0.1015)
"""Coefficients of sqrt(x), x, x^2, x^3, x^4 (NACA report 460, Eq. for the thickness): trailing edge open."""


@dataclass(frozen=True)
class Foil:
    """A NACA 4-digit airfoil; 2412 has camber 0.02, position 0.4, thickness 0.12 (shares of the chord)."""

    camber: float
    position: float
    thickness: float

    def outline(self, points: int) -> Float[np.ndarray, "points 2"]:
        """Points from the trailing edge over the upper side, the nose and the lower side back to it.

        They lie close where the shape bends: x = (1 + cos a) / 2 at equal steps of a.
        """
        angle = np.linspace(0, 2 * np.pi, points)
        x = (1 + np.cos(angle)) / 2
        half = 5 * self.thickness * (THICKNESS[0] * np.sqrt(x) + np.polyval([*THICKNESS[:0:-1], 0.0], x))
        line, slope = self._camber_line(x)
        tilt, side = np.arctan(slope), np.where(angle <= np.pi, 1.0, -1.0)
        return np.stack([x - side * half * np.sin(tilt), line + side * half * np.cos(tilt)], 1)

    def _camber_line(self, x: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
        """Height and slope of the mean line: two parabolas that meet at the position of the camber."""
        m, p = self.camber, self.position
        scale = m / np.where(x < p, p, 1 - p) ** 2
        return scale * (np.where(x < p, 0.0, 1 - 2 * p) + 2 * p * x - x**2), scale * 2 * (p - x)


CAMBER, POSITION, THICK = (0.0, 0.09), (0.2, 0.7), (0.06, 0.24)
"""Ranges that shapes are drawn from (spec E6)."""
NODES = (80, 100)
"""Fewest and most nodes of a ring."""


def draw(count: int) -> tuple[list[Foil], list[int]]:
    """`count` shapes and how many nodes each has, uniform over their ranges; always the same ones."""
    draws = np.random.Generator(np.random.Philox(key=7))
    low, high = np.array([CAMBER, POSITION, THICK]).T
    foils = [Foil(*map(float, row)) for row in draws.uniform(low, high, (count, 3))]
    return foils, draws.integers(NODES[0], NODES[1] + 1, count).tolist()


def lift_to_drag(foils: Sequence[Foil]) -> dict[str, Any]:
    """Lift-to-drag ratio and NeuralFoil's confidence of each shape, at `ALPHA` and `REYNOLDS`.

    Raises `UserError` without NeuralFoil.
    """
    try:
        import neuralfoil  # here: it takes seconds
    except ImportError:
        raise UserError("airfoils need NeuralFoil: install ittt with the extra 'airfoils'") from None
    found: dict[str, list[float]] = {"ratio": [], "confidence": []}
    for foil in foils:
        aero = neuralfoil.get_aero_from_coordinates(
            foil.outline(OUTLINE).astype(np.float64), ALPHA, REYNOLDS, model_size="xlarge"
        )
        lift, drag, sure = (float(np.squeeze(aero[key])) for key in ("CL", "CD", "analysis_confidence"))
        found["ratio"].append(lift / drag)
        found["confidence"].append(sure)
    return found


def load(count: int) -> Shapes:
    """`count` airfoils with their ratios, less those that NeuralFoil is not sure of."""
    foils, nodes = draw(count)
    labels = reproduction.remember("ittt", f"airfoils {count}", lambda: lift_to_drag(foils))
    sure = [i for i, value in enumerate(labels["confidence"]) if value >= CONFIDENCE]
    graphs = [graph_of(foils[i].outline(nodes[i]), ring(nodes[i])) for i in sure]
    return Shapes.of(
        f"{len(sure):,} of {count:,} NACA 4-digit airfoils, lift-to-drag ratio by NeuralFoil (a network)",
        graphs, [labels["ratio"][i] for i in sure], UNIT, high_is_outside=True,
    )  # fmt: skip


# ---- outlines by file --------------------------------------------------------------------------------------


def list_outlines(folder: Path) -> dict[str, Path]:
    """Stem -> file of every .dat of a folder, sorted. Raises `UserError` where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name one of outlines (.dat)")
    found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".dat"}
    if not found:
        raise UserError(f"{folder} holds no outlines (.dat)")
    return found


def read_outline(path: Path) -> Float[np.ndarray, "n 2"]:
    """Points of a .dat file in Selig's order: a line of words, then x y from trailing edge to trailing edge.

    Raises `UserError` for a file of another kind.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        points = np.array([[float(word) for word in line.split()] for line in lines[1:] if line.strip()])
    except ValueError:
        points = np.empty((0, 0))
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 10 or not np.isfinite(points).all():
        raise UserError(f"{path} is no outline: after a line of words each line must be x y, ten or more")
    nose = int(points[:, 0].argmin())
    rising = np.concatenate([-np.diff(points[: nose + 1, 0]), np.diff(points[nose:, 0])])
    if not 0 < nose < len(points) - 1 or (rising < 0).any() or not 0.9 < np.ptp(points[:, 0]) < 1.1:
        raise UserError(
            f"{path} is not in Selig's order (trailing edge, upper side, nose, lower side), chord 1"
        )
    return points


def resampled(points: Float[np.ndarray, "n 2"], count: int) -> Float[np.ndarray, "count 2"]:
    """The outline at the places of `Foil.outline`, by straight lines between its points."""
    angle = np.linspace(0, 2 * np.pi, count)
    x, nose = (1 + np.cos(angle)) / 2, int(points[:, 0].argmin())
    upper, lower = points[: nose + 1][::-1], points[nose:]
    sides = (np.interp(x, side[:, 0], side[:, 1]) for side in (upper, lower))
    return np.stack([x, np.where(angle <= np.pi, *sides)], 1)
