"""Cars: bodies of revolution in closed form, meshes and tables by file."""

import math
import sys

import numpy as np
import pytest
import trimesh
from ittt import bodies, meshes
from ittt.bodies import Body, draw, form_factor, friction
from ittt.meshes import Mesh, graph_of_mesh, merged, read, read_table
from paperkit import UserError

CUBE = trimesh.creation.box((2.0, 1.0, 1.0))


# ---- the stand-in ------------------------------------------------------------------------------------------


def test_form_factor_and_friction_by_hand():
    assert form_factor(4.0) == pytest.approx(1 + 1.5 / 8 + 7 / 64)
    assert form_factor(1e9) == pytest.approx(1)
    assert friction(1e7) == pytest.approx(0.455 / 7**2.58)


def test_surface_and_volume_of_an_ellipsoid():
    """Nose an ellipse; the tail's parabola has a volume in closed form too."""
    body = Body(slender=3.0, widest=0.5, nose=2.0, tail=2.0)
    _, volume = body.surface_and_volume()
    r = 1 / 6
    half_ellipsoid = 2 / 3 * math.pi * r**2 * 0.5
    paraboloid = math.pi * r**2 * 0.5 * (1 - 2 / 3 + 1 / 5)  # integral of (1 - u^2)^2
    assert volume == pytest.approx(half_ellipsoid + paraboloid, rel=1e-4)


def test_surface_of_a_slender_ellipsoid():
    body = Body(slender=2.5, widest=0.999999, nose=2.0, tail=2.0)  # half an ellipsoid, its nose ahead
    surface, _ = body.surface_and_volume()
    a, b = 1.0, 0.2
    e = math.sqrt(1 - b**2 / a**2)
    half = math.pi * b**2 * (1 + a / (b * e) * math.asin(e))
    assert surface == pytest.approx(half + math.pi * b**2, rel=2e-3)  # and the disc that closes it


def test_drag_has_a_least_body_between_blunt_and_slender():
    drags = [Body(slender, 0.4, 2.0, 2.0).drag() for slender in (2.0, 4.0, 7.0)]
    assert drags[1] < drags[0]
    assert drags[1] < drags[2]
    assert 0.015 < min(drags) < 0.03  # airships of the time: 0.02 to 0.03


def test_a_bodys_mesh_is_closed_and_has_its_volume():
    body = Body(4.0, 0.4, 2.0, 2.0)
    mesh = body.mesh()
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert solid.is_watertight
    assert solid.is_winding_consistent
    assert abs(solid.volume) == pytest.approx(body.surface_and_volume()[1], rel=0.15)
    graph = graph_of_mesh(mesh, 1.0)
    assert graph.x.shape == (bodies.RINGS * bodies.SIDES + 2, 3)
    assert graph.edge_index.shape[1] == 2 * len(solid.edges_unique)


def test_bodies_repeat_and_are_named_as_a_stand_in():
    assert draw(20) == draw(20)
    shapes = bodies.load(20)
    assert shapes.stand_in
    assert "stand in for cars" in shapes.name
    assert float(shapes.y.mean()) == pytest.approx(1, abs=0.4)
    order = shapes.y[:, 0].argsort(descending=True)
    parts = shapes.parts(0, 0.2, 2, 4)
    assert set(parts.outside.tolist()) == set(order[-4:].tolist())


# ---- meshes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".obj", ".ply", ".stl", ".off"])
def test_meshes_of_every_kind(tmp_path, ending):
    path = tmp_path / f"cube{ending}"
    CUBE.export(path)
    mesh = read(path)
    assert mesh.vertices.shape == (8, 3)
    assert mesh.faces.shape == (12, 3)
    assert mesh.size == pytest.approx(2)


def test_a_cubes_graph():
    graph = graph_of_mesh(Mesh(CUBE.vertices.view(np.ndarray) + 5, CUBE.faces.view(np.ndarray)), 2.0)
    assert graph.x.abs().amax(0).tolist() == pytest.approx([0.5, 0.25, 0.25])
    assert graph.edge_index.shape == (2, 36)  # twelve edges and six diagonals, both ways
    assert float(graph.edge_attr.min()) == 0
    assert float(graph.edge_attr.max()) == 1


def test_merging_keeps_the_shape_and_the_bound():
    ball = trimesh.creation.icosphere(4)
    mesh = Mesh(np.asarray(ball.vertices), np.asarray(ball.faces))
    for most in (1000, 200, 30):
        small = merged(mesh, most)
        assert len(small.vertices) <= most
        assert len(small.vertices) > most / 4
        assert len(small.faces) > 0
        assert small.faces.max() < len(small.vertices)
        radii = np.linalg.norm(small.vertices, axis=1)
        assert radii.max() <= 1 + 1e-9
    assert merged(mesh, len(mesh.vertices)) is mesh


def test_a_mesh_without_faces_or_edges_is_refused(tmp_path):
    path = tmp_path / "points.obj"
    path.write_text("v 0 0 0\nv 1 0 0\n")
    with pytest.raises(UserError, match=r"points\.obj"):
        read(path)
    with pytest.raises(UserError, match="no edges"):
        graph_of_mesh(Mesh(np.zeros((3, 3)), np.empty((0, 3), np.int64)), 1.0)


def test_damaged_and_missing_meshes_get_one_line(tmp_path, monkeypatch):
    path = tmp_path / "bad.ply"
    path.write_bytes(b"ply\nformat binary_little_endian 1.0\nelement vertex 9\n\x00\x01")
    for place in (path, tmp_path / "none.stl", tmp_path / "car.txt"):
        with pytest.raises(UserError, match=place.name) as raised:
            read(place)
        assert "\n" not in str(raised.value)
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(UserError, match="extra 'cars'"):
        read(path)


# ---- a folder of cars --------------------------------------------------------------------------------------


def folder_of(place, count, table=None):
    """Boxes as cars."""
    for i in range(count):
        trimesh.creation.box((4.0, 1.0 + i / 10, 1.0)).export(place / f"car_{i:02}.stl")
    rows = table or "Design,Average Cd\n" + "".join(f"car_{i:02},{0.3 + i / 100}\n" for i in range(count))
    (place / "drag.csv").write_text(rows)
    return place


def test_a_folder_of_cars(tmp_path):
    shapes = meshes.load(str(folder_of(tmp_path, 6)), 1000)
    assert not shapes.stand_in
    assert not shapes.high_is_outside
    assert shapes.size == pytest.approx(4)
    assert (shapes.y[:, 0] * shapes.unit).tolist() == pytest.approx([0.3, 0.31, 0.32, 0.33, 0.34, 0.35])
    assert float(shapes.y.mean()) == pytest.approx(1)
    assert shapes.graphs[3].x[:, 0].abs().max() == 0.5


def test_names_with_and_without_endings_and_other_columns(tmp_path):
    path = tmp_path / "drag.csv"
    path.write_text("file,area,DRAG\nA.1.stl,2,0.5\nB,2,0.25\n\n")
    assert read_table(path) == {"A.1": 0.5, "B": 0.25}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("name,weight\ncar_00,1\n", "no column of drag"),
        ("name,drag\ncar_00,big\n", "line 2: the drag is no number"),
        ("name,drag\ncar_00,nan\n", "line 2: the drag is no number"),
        ("name,drag\ncar_00\n", "line 2: the drag is no number"),
        ("name,drag\n", "no meshes"),
        ("name,drag\ncar_00,1\n", "car_01 has no line"),
        ("name,drag\ncar_00,1\ncar_01,1\ncar_02,1\n", "car_02 has no mesh"),
    ],
)
def test_bad_tables_get_one_line(tmp_path, table, words):
    with pytest.raises(UserError, match=words) as raised:
        meshes.load(str(folder_of(tmp_path, 2, table)), 1000)
    assert "\n" not in str(raised.value)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(UserError, match="is no folder"):
        meshes.load(str(tmp_path / "none"), 10)
    with pytest.raises(UserError, match="holds no meshes"):
        meshes.load(str(tmp_path), 10)
    CUBE.export(tmp_path / "car.stl")
    with pytest.raises(UserError, match=r"drag\.csv is missing"):
        meshes.load(str(tmp_path), 10)
