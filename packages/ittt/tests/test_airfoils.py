"""Airfoils: known ordinates of NACA shapes, the labels' own tool, outlines by file."""

import sys
import warnings

import numpy as np
import pytest
import torch
from ittt import airfoils
from ittt.airfoils import Foil, draw, lift_to_drag, read_outline, resampled
from ittt.graph_data import graph_of, ring
from paperkit import UserError

# Abbott and von Doenhoff, Theory of Wing Sections, appendix III: per cent of the chord.
NACA_0012 = {
    1.25: 1.894, 2.5: 2.615, 5: 3.555, 10: 4.683, 20: 5.737, 30: 6.002, 40: 5.803, 50: 5.294, 60: 4.563,
    70: 3.664, 80: 2.623, 90: 1.448, 95: 0.807, 100: 0.126,
}  # fmt: skip
NACA_2412 = {
    2.5: (2.99, -2.27), 5: (4.13, -3.01), 10: (5.63, -3.75), 20: (7.26, -4.23), 30: (7.88, -4.12),
    40: (7.80, -3.80), 50: (7.24, -3.34), 60: (6.36, -2.76), 70: (5.18, -2.14), 80: (3.75, -1.50),
    90: (2.08, -0.82), 95: (1.14, -0.48),
}  # fmt: skip


def sides(foil: Foil):
    """Upper and lower side of a fine outline, each with x rising."""
    points = foil.outline(4001)
    return points[:2001][::-1], points[2000:]


def test_naca_0012_has_the_published_ordinates():
    upper, lower = sides(Foil(0.0, 0.4, 0.12))
    for x, y in NACA_0012.items():
        assert np.interp(x / 100, *upper.T) * 100 == pytest.approx(y, abs=6e-4)
        assert np.interp(x / 100, *lower.T) * 100 == pytest.approx(-y, abs=6e-4)


def test_naca_2412_has_the_published_ordinates():
    upper, lower = sides(Foil(0.02, 0.4, 0.12))
    for x, (above, below) in NACA_2412.items():  # the published table is exact to 0.02
        assert np.interp(x / 100, *upper.T) * 100 == pytest.approx(above, abs=2e-2)
        assert np.interp(x / 100, *lower.T) * 100 == pytest.approx(below, abs=2e-2)


def test_mean_line_is_at_its_highest_at_its_position():
    foil = Foil(0.06, 0.35, 0.1)
    upper, lower = sides(foil)
    x = np.linspace(0.01, 0.99, 981)
    middle = (np.interp(x, *upper.T) + np.interp(x, *lower.T)) / 2
    assert x[middle.argmax()] == pytest.approx(0.35, abs=0.03)  # sides are drawn across the mean line
    line, slope = foil._camber_line(np.array([0.0, 0.35, 1.0]))
    assert line == pytest.approx([0, 0.06, 0], abs=1e-15)
    assert slope == pytest.approx([2 * 0.06 / 0.35, 0, -2 * 0.06 / 0.65])


def test_drawn_shapes_repeat_and_lie_in_their_ranges():
    foils, nodes = draw(300)
    assert draw(300) == (foils, nodes)
    rows = np.array([(foil.camber, foil.position, foil.thickness) for foil in foils])
    assert (rows >= [0, 0.2, 0.06]).all()
    assert (rows <= [0.09, 0.7, 0.24]).all()
    assert min(nodes) == 80
    assert max(nodes) == 100


def test_a_ring_goes_both_ways_and_knows_where_edges_lead():
    outline = Foil(0.02, 0.4, 0.12).outline(81)
    graph = graph_of(outline, ring(81))
    assert graph.x.shape == (81, 2)
    assert graph.edge_index.shape == (2, 162)
    assert "y" not in graph
    assert bool((torch.bincount(graph.edge_index[1]) == 2).all())
    source, target = graph.edge_index
    steps = (graph.x[source] - graph.x[target]).double()
    longest = float(steps.abs().max())
    torch.testing.assert_close(graph.edge_attr.double(), steps / (2 * longest) + 0.5, atol=1e-6, rtol=0)


def test_labels_are_those_of_neuralfoil(monkeypatch):
    pytest.importorskip("neuralfoil")
    with warnings.catch_warnings(action="ignore"):
        found = lift_to_drag([Foil(0.0, 0.4, 0.12), Foil(0.02, 0.4, 0.12)])
    # XFoil at alpha 5, Re 1e6, n 9: CL / CD is 65 to 70, and about 100 with two per cent of camber.
    assert found["ratio"][0] == pytest.approx(66, abs=6)
    assert found["ratio"][1] == pytest.approx(100, abs=8)
    assert min(found["confidence"]) > 0.9


def test_without_neuralfoil_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "neuralfoil", None)
    with pytest.raises(UserError, match="extra 'airfoils'"):
        lift_to_drag([])


def test_shapes_of_low_confidence_are_dropped(monkeypatch):
    labels = {"ratio": [100.0 + i for i in range(40)], "confidence": [0.7] * 4 + [0.9] * 36}
    monkeypatch.setattr(airfoils.reproduction, "remember", lambda *words: labels)
    shapes = airfoils.load(40)
    assert len(shapes.graphs) == len(shapes.y) == 36
    assert float(shapes.y[0]) * shapes.unit == pytest.approx(104)
    assert "36 of 40" in shapes.name


def test_an_outline_by_file_is_the_shape_again(tmp_path):
    foil = Foil(0.03, 0.45, 0.15)
    fine = foil.outline(301)
    path = tmp_path / "naca.dat"
    path.write_text("NACA\n" + "\n".join(f"{x:.6f} {y:.6f}" for x, y in fine))
    points = read_outline(path)
    np.testing.assert_allclose(points, fine, atol=1e-6)
    np.testing.assert_allclose(resampled(points, 90), resampled(fine, 90), atol=1e-5)
    flat = Foil(0.0, 0.4, 0.12)  # its x are those of the outline: the places agree exactly
    np.testing.assert_allclose(resampled(flat.outline(4001), 91), flat.outline(91), atol=2e-4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NACA\n1 0\n0 0\n1 0\n", "no outline"),
        ("NACA\n" + "1 zero\n" * 20, "no outline"),
        ("NACA\n" + "1 0 0\n" * 20, "no outline"),
        ("NACA\n" + "\n".join(f"{i / 10} 0.1" for i in range(11)), "Selig"),
        ("NACA\n" + "\n".join(f"{abs(10 - i)} 0.1" for i in range(21)), "chord 1"),
    ],
)
def test_bad_outlines_get_one_line(tmp_path, text, words):
    path = tmp_path / "bad.dat"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as raised:
        read_outline(path)
    assert "\n" not in str(raised.value)


def test_folders_without_outlines_get_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no outlines"):
        airfoils.list_outlines(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        airfoils.list_outlines(tmp_path / "none")
