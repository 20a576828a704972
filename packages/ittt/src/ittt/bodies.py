"""A stand-in for cars: bodies of revolution whose drag is a formula's, by the friction of their surface.

Hoerner, Fluid-Dynamic Drag (1965), chapter VI, Eq. 28: a streamlined body of length l and diameter d has
C_D,wet / C_f = 1 + 1.5 (d / l)^1.5 + 7 (d / l)^3; C_f is a turbulent plate's, 0.455 / log10(Re)^2.58
(Prandtl and Schlichting). No flow is computed and none of these bodies is a car.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from ittt.graph_data import Shapes
from ittt.meshes import Mesh, graph_of_mesh

REYNOLDS = 1e7
"""Of the length."""
SLENDER, WIDEST, NOSE, TAIL = (2.0, 7.0), (0.25, 0.55), (1.6, 2.6), (1.4, 2.6)
"""Ranges of length / diameter, of the place of the largest diameter, and of the exponents of both ends."""
RINGS, SIDES = 12, 8
"""Circles of vertices between the ends, and vertices of each."""
UNIT = 0.03
"""Drag is divided by this, so that labels are near 1."""
STATIONS = 401
"""Points along the axis that surface and volume are summed over."""


@dataclass(frozen=True)
class Body:
    """A closed body of length 1, thickest at `widest`."""

    slender: float
    """Length / diameter."""
    widest: float
    nose: float
    """Exponent of the superellipse before the widest place: 2 is an ellipse, more is blunter."""
    tail: float
    """Exponent of the power law behind it."""

    def radius(self, x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """At places along the axis, 0 at the nose."""
        ahead = np.clip((self.widest - x) / self.widest, 0, 1)
        behind = np.clip((x - self.widest) / (1 - self.widest), 0, 1)
        shape = np.where(x < self.widest, (1 - ahead**self.nose) ** (1 / self.nose), 1 - behind**self.tail)
        return shape / (2 * self.slender)

    def surface_and_volume(self) -> tuple[float, float]:
        """Wetted area and volume, by frustums between stations that lie close at the ends."""
        x = (1 - np.cos(np.linspace(0, np.pi, STATIONS))) / 2
        r = self.radius(x)
        a, b, height = r[:-1], r[1:], np.diff(x)
        surface = np.pi * (a + b) * np.hypot(height, b - a)
        volume = np.pi * height * (a**2 + a * b + b**2) / 3
        return float(surface.sum()), float(volume.sum())

    def drag(self) -> float:
        """Drag coefficient referred to volume^(2/3), as for airships."""
        surface, volume = self.surface_and_volume()
        return friction(REYNOLDS) * form_factor(self.slender) * surface / volume ** (2 / 3)

    def mesh(self) -> Mesh:
        """Its surface: circles of `SIDES` vertices, each turned by half a side, and both ends."""
        x = (1 - np.cos(np.linspace(0, np.pi, RINGS + 2))) / 2
        r = self.radius(x[1:-1])
        turn = 2 * np.pi * (np.arange(SIDES) + np.arange(RINGS)[:, None] / 2) / SIDES
        circles = np.stack(
            [
                np.broadcast_to(x[1:-1, None], turn.shape),
                r[:, None] * np.cos(turn),
                r[:, None] * np.sin(turn),
            ],
            -1,
        )
        ends = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        return Mesh(np.concatenate([circles.reshape(-1, 3), ends]), _faces())


def form_factor(slender: float) -> float:
    """Drag over friction of a streamlined body by length / diameter (Hoerner, VI, Eq. 28)."""
    return 1 + 1.5 * slender**-1.5 + 7 * slender**-3


def friction(reynolds: float) -> float:
    """Friction coefficient of a smooth plate in turbulent flow (Prandtl and Schlichting)."""
    return 0.455 / np.log10(reynolds) ** 2.58


def _faces() -> Int64[np.ndarray, "f 3"]:
    """Two triangles for each side of each pair of neighbouring circles, and a fan at each end."""
    faces, nose, end = [], RINGS * SIDES, RINGS * SIDES + 1
    for side in range(SIDES):
        following = (side + 1) % SIDES
        for near in range(0, (RINGS - 1) * SIDES, SIDES):
            far = near + SIDES
            faces.append((near + side, near + following, far + side))
            faces.append((near + following, far + following, far + side))
        last = (RINGS - 1) * SIDES
        faces += [(nose, following, side), (end, last + side, last + following)]
    return np.array(faces, np.int64)


def draw(count: int) -> list[Body]:
    """`count` bodies, uniform over the ranges; always the same ones."""
    low, high = np.array([SLENDER, WIDEST, NOSE, TAIL]).T
    rows = np.random.Generator(np.random.Philox(key=11)).uniform(low, high, (count, 4))
    return [Body(*map(float, row)) for row in rows]


def load(count: int) -> Shapes:
    """`count` bodies as graphs with their drag; those of the lowest drag are the shifted ones."""
    bodies = draw(count)
    graphs = [graph_of_mesh(body.mesh(), 1.0) for body in bodies]
    return Shapes.of(
        f"{count:,} bodies of revolution that stand in for cars, drag by Hoerner's formula", graphs,
        [body.drag() for body in bodies], UNIT, high_is_outside=False, stand_in=True,
    )  # fmt: skip
