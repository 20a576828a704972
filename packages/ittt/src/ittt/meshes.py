"""Cars (section 4.5): a folder of surface meshes with a table of their drag, as graphs.

    cars/drag.csv          name,drag      one line for each mesh: its file's name, with or without ending
    cars/A_001.stl …       .obj, .ply, .stl or .off, triangles or polygons

So lie ShapeNet's cars and DrivAerNet's once their table has the two columns (a column called Average Cd, as
in DrivAerNet, is taken too). Reading them needs trimesh, of the extra `cars`.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64
from paperkit import UserError
from torch_geometric.data import Data

from ittt.graph_data import Shapes, both_ways, graph_of

ENDINGS = (".obj", ".ply", ".stl", ".off")
TABLE = "drag.csv"
DRAG = ("drag", "cd", "average cd", "drag_coefficient")
"""Names of the column of drag, in any case."""


@dataclass(frozen=True)
class Mesh:
    """A surface of triangles."""

    vertices: Float[np.ndarray, "n 3"]
    faces: Int64[np.ndarray, "f 3"]

    @property
    def size(self) -> float:
        """Its longest side along the axes."""
        return float(np.ptp(self.vertices, axis=0).max())


def read(path: Path) -> Mesh:
    """A mesh from a file; equal vertices are one. Raises `UserError` for one that cannot be read."""
    try:
        import trimesh
    except ImportError:
        raise UserError("meshes need trimesh: install ittt with the extra 'cars'") from None
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"{path} is no mesh: its name must end in {', '.join(ENDINGS)}")
    try:
        found = trimesh.load_mesh(path)
        vertices, faces = np.asarray(found.vertices, np.float64), np.asarray(found.faces, np.int64)
    except FileNotFoundError:
        raise UserError(f"there is no mesh {path}") from None
    except Exception as error:  # a reader of damaged files raises anything
        raise UserError(
            f"cannot read the mesh {path}: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error
    if not len(faces) or not len(vertices):
        raise UserError(f"{path} has no faces: a graph of it would have no edges")
    if not np.isfinite(vertices).all():
        raise UserError(f"{path} has a vertex that is no number: repair the mesh")
    return Mesh(vertices, faces)


def merged(mesh: Mesh, most: int) -> Mesh:
    """The mesh with its vertices merged by the cells of a grid, fine enough for at most `most` of them.

    A vertex becomes its cell's mean; faces that collapse are left out.
    """
    cells = 2 * int(np.ceil(np.sqrt(most)))
    while len(mesh.vertices) > most:
        cells = cells * 4 // 5
        if cells < 1:
            break
        place = np.floor((mesh.vertices - mesh.vertices.min(0)) / (mesh.size / cells + 1e-12)).astype(
            np.int64
        )
        _, owner = np.unique(place, axis=0, return_inverse=True)
        owner = owner.reshape(-1)
        if owner.max() + 1 <= most:
            return _clustered(mesh, owner)
    return mesh


def _clustered(mesh: Mesh, owner: Int64[np.ndarray, " n"]) -> Mesh:
    """One vertex for each owner, at the mean of its own."""
    count = np.bincount(owner)
    vertices = np.stack([np.bincount(owner, column) / count for column in mesh.vertices.T], 1)
    faces = owner[mesh.faces]
    whole = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 0] != faces[:, 2])
    return Mesh(vertices, faces[whole])


def graph_of_mesh(mesh: Mesh, size: float) -> Data:
    """The mesh's vertices and the edges of its faces; places from the middle of its box, in units of `size`.

    Raises `UserError` for a mesh without edges.
    """
    middle = (mesh.vertices.min(0) + mesh.vertices.max(0)) / 2
    sides = mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).T
    return graph_of((mesh.vertices - middle) / size, both_ways(sides))


def read_table(path: Path) -> dict[str, float]:
    """Name of a mesh -> its drag. Raises `UserError` for a table that is missing or damaged."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            head, *rows = [row for row in csv.reader(stream) if row] or [[]]
    except FileNotFoundError:
        raise UserError(f"{path} is missing: a table of the columns name,drag with a line per mesh") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path} as CSV: {error}") from error
    names = [cell.strip().lower() for cell in head]
    column = next((names.index(name) for name in DRAG if name in names[1:]), 0)
    if not column:
        raise UserError(f"{path} has no column of drag: its first line must be name,drag")
    found: dict[str, float] = {}
    for count, row in enumerate(rows, 2):
        try:
            value = float(row[column])
        except (IndexError, ValueError):
            value = float("nan")
        if not np.isfinite(value):
            raise UserError(f"{path}, line {count}: the drag is no number")
        found[_stem(row[0])] = value
    if not found:
        raise UserError(f"{path} has a line of names and no meshes")
    return found


def _stem(name: str) -> str:
    """The name without the ending of a mesh file."""
    path = Path(name.strip())
    return path.stem if path.suffix.lower() in ENDINGS else path.name


def list_meshes(folder: Path) -> dict[str, Path]:
    """Stem -> file of every mesh of a folder, sorted. Raises `UserError` where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name one of meshes ({', '.join(ENDINGS)})")
    found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in ENDINGS}
    if not found:
        raise UserError(f"{folder} holds no meshes ({', '.join(ENDINGS)})")
    return found


def load(folder: str, nodes: int) -> Shapes:
    """The cars of a folder; the unit of places is their mean size, that of drag the mean drag.

    Raises `UserError` for meshes without drag, drag without a mesh, and damaged files.
    """
    place = Path(folder)
    files, drag = list_meshes(place), read_table(place / TABLE)
    if lonely := sorted(files.keys() ^ drag.keys()):
        where = "has no line in" if lonely[0] in files else "has no mesh beside"
        raise UserError(f"{lonely[0]} {where} {place / TABLE}: each mesh needs a line and each line a mesh")
    meshes = [merged(read(path), nodes) for path in files.values()]
    labels = [drag[name] for name in files]
    size, unit = float(np.mean([mesh.size for mesh in meshes])), abs(float(np.mean(labels)))
    if not size or not unit:
        raise UserError(f"{place}: meshes or drag are all zero")
    graphs = [graph_of_mesh(mesh, size) for mesh in meshes]
    name = f"{len(files):,} cars of {place.name}"
    return Shapes.of(name, graphs, labels, unit, high_is_outside=False, size=size)
