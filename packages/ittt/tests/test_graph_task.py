"""Airfoils and cars as tasks: parts, network, the real commands, and their claims."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trimesh
from ittt import Settings, across, airfoils, bodies, cli, graph_claims, graph_tasks, graphs, page, protocol
from ittt.airfoils import Foil
from ittt.cli import main
from ittt.graph_claims import Seeds, conditions, explained, reason
from ittt.graph_config import AIRFOILS, CARS, GraphConfig
from ittt.graph_data import Shapes, graph_of, ring
from ittt.graphs import GraphNet, build, by_level, predicted, restored, train
from paperkit import UserError, results
from paperkit.run import RunOptions, checkpoints, load_checkpoint, read_metrics

SMOKE = replace(CARS["smoke"][0], shapes=80, batch=8)
FOILS = replace(AIRFOILS["smoke"][0], shapes=80, epochs=1)
KEPT = (across.RULE, "the paper's method")


def ratios(foils):
    """In NeuralFoil's place: thin and cambered is good."""
    values = [60 + 1000 * foil.camber - 100 * foil.thickness for foil in foils]
    return {"ratio": values, "confidence": [1.0] * len(values)}


@pytest.fixture(scope="module", autouse=True)
def labels():
    """No NeuralFoil in these tests: it takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(airfoils, "lift_to_drag", ratios)
        patch.setattr(airfoils.reproduction, "remember", lambda paper, words, make: make())
        graphs._load.cache_clear()
        yield
    graphs._load.cache_clear()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """One smoke run on bodies that the tests of this file read."""
    return train(SMOKE, RunOptions(out=str(tmp_path_factory.mktemp("cars") / "run")), "smoke")


@pytest.fixture(scope="module")
def foil_run(tmp_path_factory) -> Path:
    return train(FOILS, RunOptions(out=str(tmp_path_factory.mktemp("foils") / "run")), "smoke")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- parts and networks ------------------------------------------------------------------------------------


def rings(count, high=True):
    """Rings whose label is their number."""
    made = [graph_of(Foil(0.0, 0.4, 0.1 + i / 1000).outline(12), ring(12)) for i in range(count)]
    return Shapes.of("rings", made, [float(i) for i in range(count)], 10.0, high_is_outside=high)


@pytest.mark.parametrize(("high", "far"), [(True, range(80, 100)), (False, range(20))])
def test_the_best_are_outside_whatever_the_seed(high, far):
    shapes = rings(100, high)
    found = [shapes.parts(seed, 0.2, 10, 20) for seed in (0, 1)]
    for parts in found:
        assert sorted(parts.outside.tolist()) == list(far)
        everything = torch.cat([parts.learned, parts.clean, parts.inside, parts.outside])
        assert sorted(everything.tolist()) == list(range(100))
        assert [len(part) for part in (parts.learned, parts.clean, parts.inside)] == [50, 10, 20]
        assert torch.bincount(parts.levels).tolist() == [0, 5, 5, 5, 5]
        mildest = shapes.y[parts.outside[parts.levels == 1], 0].sort().values * 10
        assert mildest.tolist() == pytest.approx([80, 81, 82, 83, 84] if high else [15, 16, 17, 18, 19])
    assert torch.equal(found[0].outside, found[1].outside)
    assert not torch.equal(found[0].learned, found[1].learned)


def test_too_few_shapes_get_one_line():
    with pytest.raises(UserError, match="to learn from"):
        rings(20).parts(0, 0.2, 8, 8)
    with pytest.raises(UserError, match="leave 2 outside"):
        rings(20).parts(0, 0.1, 2, 2)


def test_graphs_carry_no_label():
    shapes = rings(4)
    assert all("y" not in graph for graph in shapes.graphs)
    assert shapes.y[:, 0].tolist() == pytest.approx([0, 0.1, 0.2, 0.3])


def test_the_network_is_its_sum_by_hand():
    """One convolution: standardised places, Gaussians of the edges, mean over neighbours, and the head."""
    torch.manual_seed(0)
    net = GraphNet(3, 2, GraphConfig(layers=1, channels=4))
    net.middle.copy_(torch.tensor([0.5, 0.0]))
    net.spread.copy_(torch.tensor([2.0, 0.1]))
    graph = graph_of(Foil(0.04, 0.4, 0.12).outline(9), ring(9))
    graph.x = torch.cat([graph.x, torch.full((9, 1), 0.7)], 1)
    conv = net.convs[0]
    x = torch.cat([(graph.x[:, :2] - net.middle) / net.spread, graph.x[:, 2:]], 1).double()
    rows = []
    for node in range(9):
        h = conv.root.weight.double() @ x[node] + conv.bias.double()
        for edge, (source, target) in enumerate(graph.edge_index.T.tolist()):
            if target == node:
                off = (graph.edge_attr[edge] - conv.mu).double() ** 2 / conv.sigma.double() ** 2
                weights = torch.exp(-off.sum(1) / 2)
                h = h + (weights[:, None] * (x[source] @ conv.g.double()).view(2, 4)).sum(0) / 2
        rows.append(torch.nn.functional.elu(h))
    expected = net.head.double()(torch.stack(rows).mean(0))
    net.float()
    batch = rings(1).batch(torch.tensor([0]))
    batch.x, batch.edge_index, batch.edge_attr = graph.x, graph.edge_index, graph.edge_attr
    batch.batch = torch.zeros(9, dtype=torch.long)
    torch.testing.assert_close(net(batch)[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_the_twin_has_the_same_layers_but_for_the_signal():
    net, plain = build(GraphConfig(layers=3, channels=8), 2)
    ours, theirs = (sum(p.numel() for p in part.parameters()) for part in (net, plain))
    assert ours - theirs == 8 * 2 + 8  # one more feature: two Gaussians' and the root's weights


def test_predictions_do_not_depend_on_the_batch(run):
    trained = restored(run)
    shapes, parts = graphs.load(trained.config)
    whole = predicted(trained.net, shapes, parts.inside, 0)
    one_by_one = predicted(trained.net, shapes, parts.inside, 1)
    torch.testing.assert_close(whole, one_by_one, rtol=1e-4, atol=1e-5)
    alone = trained.net.adapter(Settings(steps=1, lr=1e-3, per="instance"))
    order = parts.inside.flip(0)
    torch.testing.assert_close(
        predicted(lambda x: alone(x).prediction, shapes, order, 0).flip(0),
        predicted(lambda x: alone(x).prediction, shapes, parts.inside, 1),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def test_errors_by_level_are_means_in_the_labels_units():
    shapes = rings(100)
    parts = shapes.parts(0, 0.2, 10, 20)
    near, far = shapes.y[parts.inside] + 0.1, shapes.y[parts.outside] - 0.1 * parts.levels[:, None]
    found = by_level(shapes, parts, near, far)
    assert found == pytest.approx(
        {"inside": 1, "outside": 2.5, "level 1": 1, "level 2": 2, "level 3": 3, "level 4": 4}, rel=1e-4
    )


# ---- commands ----------------------------------------------------------------------------------------------


def test_run_folder_is_whole_and_learned_nothing_outside(run):
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["state"] == "finished"
    assert "stand in for cars" in manifest["data"]
    log = (run / "log.txt").read_text()
    assert "ZigZag, adapted" in log
    assert "level 4" in log
    assert restored(run).config == SMOKE


def test_killed_run_ends_in_the_same_weights(run, monkeypatch):
    batch, calls = graphs.batch, iter(range(1000))
    monkeypatch.setattr(
        graphs,
        "batch",
        lambda *words: batch(*words) if next(calls) < 5 else (_ for _ in ()).throw(OSError("x")),
    )
    with pytest.raises(OSError, match="x"):
        train(SMOKE, RunOptions(out="broken"), "smoke")
    monkeypatch.setattr(graphs, "batch", batch)
    assert main(["train", "--resume", "broken"]) == 0
    (ours, _), (theirs, _) = (load_checkpoint(checkpoints(folder)[-1]) for folder in (Path("broken"), run))
    for group in ("net", "plain", "scale"):
        assert all(torch.equal(ours[group][key], theirs[group][key]) for key in theirs[group])
    assert read_metrics(Path("broken")) == read_metrics(run)


def test_the_command_trains_on_airfoils(capsys):
    words = ["--shapes", "60", "--epochs", "1", "--outside", "0.2", "--no-harm", "--out", "found"]
    assert main(["train", "--task", "airfoils", "--preset", "smoke", *words]) == 0
    said = capsys.readouterr().out
    assert "60 of 60 NACA 4-digit airfoils" in said
    assert "no harm   lr" in said
    assert "adapted, F not frozen" in said


def test_dry_run_computes_no_label(capsys, monkeypatch):
    monkeypatch.setattr(airfoils, "load", lambda count: (_ for _ in ()).throw(AssertionError(count)))
    assert main(["train", "--task", "airfoils", "-n"]) == 0
    assert main(["train", "--task", "cars", "-n"]) == 0
    said = capsys.readouterr().out
    assert "2,000 airfoils" in said
    assert "stand in for cars" in said
    assert not Path("runs").exists()


def test_adapt_writes_a_row_for_every_outline(foil_run, capsys):
    folder = Path("outlines")
    folder.mkdir()
    for name, foil in (("thin", Foil(0.02, 0.4, 0.08)), ("thick", Foil(0.02, 0.4, 0.2))):
        lines = "\n".join(f"{x:.6f} {y:.6f}" for x, y in foil.outline(161))
        (folder / f"{name}.dat").write_text(f"{name}\n{lines}\n")
    assert main(["adapt", "outlines", "--run", str(foil_run), "--adapt.steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "no harm: learning rate" in said
    assert "2 shapes" in said
    with open("adapted.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["shape"] for row in rows] == ["thick", "thin"]
    trained = restored(foil_run)
    fine = airfoils.read_outline(folder / "thin.dat")
    alone = graph_of(airfoils.resampled(fine, 90), ring(90))
    before = trained.unit * float(trained.net(alone).detach())
    assert float(rows[1]["before"]) == pytest.approx(before, rel=1e-4)
    assert {row["abstain"] for row in rows} <= {"True", "False"}
    gap = trained.unit * float(trained.net.gap(alone))
    assert float(rows[1]["gap_before"]) == pytest.approx(gap, rel=1e-2, abs=1e-4)


def test_adapt_writes_a_row_for_every_mesh(run):
    folder = Path("meshes")
    folder.mkdir()
    for i, body in enumerate(bodies.draw(3)):
        mesh = body.mesh()
        trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).export(folder / f"body_{i}.ply")
    words = ["adapt", "meshes", "--run", str(run), "--out", "found.json", "--adapt.steps", "0"]
    assert main([*words, "--no-no-harm"]) == 0
    rows = json.loads(Path("found.json").read_text())
    trained = restored(run)
    shapes, _ = graphs.load(trained.config)
    expected = trained.unit * predicted(trained.net, shapes, torch.arange(3), 0)[:, 0]
    assert [row["prediction"] for row in rows] == pytest.approx(expected.tolist(), rel=1e-4)


def test_evaluate_writes_every_method(run, capsys):
    assert main(["evaluate", "--run", str(run), "--batches", "1", "4"]) == 0
    assert "mean gap" in capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())
    assert list(found["mae"]["4"]) == ["plain", "none", "it3", "un-frozen", "shuffled", "random"]
    assert "shuffled" not in found["mae"]["1"]
    assert set(found["gap"]) == {"inside", "outside"}
    assert found["mae"]["1"]["none"] == pytest.approx(found["mae"]["4"]["none"], rel=1e-3)


def test_report_shows_shapes_by_level(foil_run, capsys):
    assert main(["report", "--run", str(foil_run)]) == 0
    words = Path(capsys.readouterr().out.strip()).read_text()
    assert all(name in words for name in ("inside", "level 1", "level 4", "gap before"))
    sheets = page.outlines([torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.1]])], 33)
    dots = [tuple(place) for place in (sheets[0, 0] == 0).nonzero().tolist()]
    (top, middle), (low, left), (_, right) = dots
    assert (left, middle, right) == (4, 16, 28)
    assert low - top == 2  # a tenth of 24


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("train", "--task", "airfoils", "--folder", "x"), "--folder is for"),
        (("train", "--task", "cars", "--folder", "none"), "is no folder"),
        (("train", "--task", "planes"), "there are airfoils, cars, faces, roads"),
        (("train", "--task", "cars", "--outside", "1"), "--outside"),
        (("train", "--task", "cars", "--mask", "2"), "--mask"),
        (("train", "--task", "cars", "--lr", "0"), "--lr"),
        (("train", "--task", "cars", "--layers", "0"), "--layers"),
        (("train", "--task", "cars", "--adapt.norm", "batch"), "no batch norm"),
        (("train", "--task", "cars", "--shapes", "100", "--test", "90"), "to learn from"),
        (("adapt", "none"), "is no folder"),
        (("adapt", "none", "--out", "x.txt"), "must end in .csv"),
        (("evaluate", "--methods", "tnet"), "no method"),
        (("evaluate", "--batches", "0"), "--batches"),
    ],
)
def test_bad_words_are_one_line(run, capsys, words, text):
    given = ("--run", str(run)) if words[0] in ("adapt", "evaluate") else ()
    assert main([*words, *given]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_a_mesh_without_edges_is_refused(run, capsys):
    Path("points.obj").write_text("v 0 0 0\nv 1 0 0\n")
    assert main(["adapt", ".", "--run", str(run)]) == 2
    error = capsys.readouterr().err
    assert "points.obj" in error
    assert error.count("\n") == 1


def test_words_choose_the_command(run):
    assert cli.about(["train", "--task", "cars"]) == "cars"
    assert cli.about(["train", "--resume", str(run)]) == "cars"
    assert cli.about(["train", "--config", str(run / "config.json")]) == "cars"
    assert cli.about(["evaluate", "--run", str(run)]) == cli.about(["adapt", f"--run={run}"]) == "cars"
    assert cli.about(["train"]) == cli.about(["evaluate"]) == cli.about(["report"]) == cli.about([]) == ""


def test_an_unknown_task_is_told_what_there_is(capsys):
    assert cli.main(["train", "--task", "car"]) == 2
    error = "ittt: --task car (did you mean cars?): there are airfoils, cars, faces, roads\n"
    assert capsys.readouterr().err == error


def test_help_imports_neither_torch_nor_neuralfoil():
    code = (
        "import sys; from ittt.cli import main; main(['train', '--task', 'airfoils', '--help']); "
        "assert not {'torch', 'neuralfoil', 'aerosandbox'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- the claims --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """The claim on cars at smoke size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("figures"))
        patch.setitem(graph_claims.RECIPES, "cars", SMOKE)
        patch.setitem(graph_claims.BATCHES, "cars", (2, 4))
        patch.setattr(graph_claims, "MORE", {"5 steps": replace(graph_claims.PAPER, steps=2)})
        patch.setattr(graph_claims, "ONLINE", dict([*graph_claims.ONLINE.items()][:1]))
        yield graph_claims.figures("cars", 0)


def test_figures_are_what_an_adapter_says(figures, run):
    trained = restored(run)
    shapes, parts = graphs.load(SMOKE)
    adapter = trained.net.adapter(graph_claims.PAPER)
    found = [adapter(shapes.batch(rows)) for rows in parts.outside.split(4)]
    errors = (torch.cat([one.prediction for one in found]) - shapes.y[parts.outside]).abs() * shapes.unit
    row = figures["it3, batches of 4"]
    assert row["outside"] == pytest.approx(float(errors.mean()), rel=1e-4)
    after = shapes.unit * float(torch.cat([one.gap_after for one in found]).mean())
    assert row["gap after, outside"] == pytest.approx(after, rel=1e-3)
    excess = predicted(trained.net, shapes, parts.outside, 0) - shapes.y[parts.outside]
    assert row["too high, outside"] == pytest.approx(shapes.unit * float(excess.mean()), rel=1e-4)
    assert figures["none"]["outside"] == pytest.approx(shapes.unit * float(excess.abs().mean()), rel=1e-4)


def test_a_stream_is_scored_in_the_order_of_its_parts(run):
    """With a rate of nothing a stream is the network as it is, whatever the order of its shapes."""
    trained = restored(run)
    shapes, parts = graphs.load(SMOKE)
    still = replace(graph_claims.PAPER, reset=False, lr=0.0)
    found = graph_claims.streamed(trained, shapes, parts, still, 4)
    near, far = (predicted(trained.net, shapes, rows, 0) for rows in (parts.inside, parts.outside))
    assert found == pytest.approx(by_level(shapes, parts, near, far), rel=1e-4)


def test_the_claim_is_a_record(figures, monkeypatch):
    monkeypatch.setattr(graph_claims.reproduction, "remember", lambda *words: figures)
    record = results.claim(
        paper="ittt", id="cars", command="uv run --package ittt ittt reproduce cars", wall_s=1.0,
        preset="small", **graph_claims.cars(2),
    )  # fmt: skip
    assert results.check(record) == []
    assert record["stand_in"]
    assert record["threshold"] == 7
    assert record["statistic"] == sum(record["details"]["conditions"].values())


def test_shapes_take_part_in_the_claims_over_every_task(run, monkeypatch):
    """Without safeguards the errors are those of an adapter in the paper's batches; no harm, its record."""
    monkeypatch.setitem(graph_tasks.RECIPES, "cars", SMOKE)
    monkeypatch.setitem(graph_tasks.BATCHES, "cars", (8, 4))
    monkeypatch.setattr(graph_tasks, "_at_hand", lambda name: name == "cars")
    monkeypatch.setattr(graph_tasks, "kept", lambda *words: run)
    monkeypatch.setattr(protocol, "GROUPS", {"graphs": "ittt.graph_tasks:tasks"})
    monkeypatch.setattr(across, "GUARDS", {name: across.GUARDS[name] for name in KEPT})
    graph_tasks.trial.cache_clear()
    (task,) = protocol.tasks(["cars"]).values()
    (trial,) = task.trials(1)
    trained, (shapes, parts) = restored(run), graphs.load(SMOKE)
    for size in (4, 1):
        adapter = trained.net.adapter(task.settings)
        asked = torch.cat([adapter(shapes.batch(rows)).prediction for rows in parts.outside.split(size)])
        expected = shapes.unit * float((asked - shapes.y[parts.outside]).abs().mean())
        found = protocol.errors(task, [trial], protocol.Way("it3", task.settings), "outside", size)
        assert found == pytest.approx([expected], rel=1e-4)
    record = results.claim(
        paper="ittt", id="no-harm", command="uv run --package ittt ittt reproduce no-harm", wall_s=1.0,
        preset="none", **across.no_harm(2, ["cars"]),
    )  # fmt: skip
    assert results.check(record) == []
    assert list(record["details"]["upper_ends"]) == ["cars, batch 8", "cars, batch 4"]
    assert "stand in for cars" in record["data"]
    assert protocol.tasks(["cars"]).keys() == {"cars"}
    assert not task.anchor
    graph_tasks.trial.cache_clear()


def seeds(error, gap_after, inside):
    """Three seeds with these figures; not adapted, errors are 10 and gaps 2 in range and 4 outside."""
    each = []
    for noise in (-0.1, 0.0, 0.1):
        it3 = {
            "outside": error + noise, "inside": inside + noise, "gap before, outside": 4 + noise,
            "gap before, inside": 2.0, "gap after, outside": gap_after + 1.1 * noise,
            "too high, outside": -9.0, "moved up, outside": 0.01, "moved up, inside": 0.0,
        }  # fmt: skip
        rows = {f"it3, batches of {size}": it3 for size in (1, 4)}
        others = [f"it3, {words}, batches of 4" for words in graph_claims.MORE] + list(graph_claims.ONLINE)
        others += [f"{control}, batches of 4" for control in ("un-frozen", "shuffled", "random")]
        none = {"outside": 10 + 0.9 * noise, "inside": 5 + noise}
        each.append({"none": none, "plain": none, **rows, **dict.fromkeys(others, it3)})
    return Seeds(each)


@pytest.mark.parametrize(
    ("figures", "missed"),
    [
        ((9.0, 3.0, 5.0), ()),
        ((10.0, 3.0, 5.0), ("error outside falls",)),
        ((9.0, 4.5, 5.0), ("gap outside falls",)),
        ((9.0, 3.0, 6.0), ("no harm in range",)),
    ],
)
def test_conditions_tell_what_is_missed(figures, missed):
    found = seeds(*figures)
    asked = conditions(found, (1, 4))
    assert len(asked) == 7
    names = {condition for condition, holds in asked.items() if not holds}
    assert names == {f"{name}, batches of {size}" for name in missed for size in (1, 4)}
    text = explained(found, sorted(names), (1, 4))
    assert all(name in text for name in names)
    assert bool(text) == bool(names)


def test_reasons_follow_the_figures():
    assert "too short" in reason(40.0, 20.0, -30.0, 0.5, -0.1)
    assert "away from the labels" in reason(40.0, 20.0, -30.0, -5.0, 0.1)
    assert "confirms it" in reason(40.0, 1.0, -30.0, 5.0, 0.1)
    assert "confirms it" not in reason(40.0, 10.0, -30.0, 5.0, 0.1)
    assert "shifts all predictions" in reason(40.0, 10.0, -30.0, 5.0, 2.0)
    assert "shifts all predictions" not in reason(40.0, 10.0, -30.0, 5.0, -2.0)
