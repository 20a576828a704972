"""Classifiers and their commands: train, resume, evaluate, report, the experiments' parts, bad input."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ccconv import ScaleEnsemble, data, keypoint, sizes
from ccconv.cli import main
from ccconv.config import TRAIN, TrainConfig
from ccconv.evaluate import chains, ensemble
from ccconv.model import Classifier, cost, matched, parameters
from ccconv.train import build, learning_rate, train
from paperkit.run import RunOptions, checkpoints, load_checkpoint, read_metrics

SMOKE = TRAIN["smoke"][0]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """One smoke run that the tests of this file read."""
    return train(SMOKE, RunOptions(out=str(tmp_path_factory.mktemp("ccconv") / "run")), "smoke")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- train


def test_run_folder_is_whole(run):
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["state"] == "finished"
    assert manifest["data"] == "digits, 1,297"
    assert [row["step"] for row in read_metrics(run)] == [10, 20, 30, 40]
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "accuracy over image size.png",
        "kernels of layer 1.png",
        "kernels of layer 2.png",
        "kernels of layer 3.png",
    ]
    assert [path.name for path in checkpoints(run)] == ["00000030", "00000040"]


def test_killed_run_ends_in_the_same_weights(run, monkeypatch):
    """A step that dies after the checkpoint of step 20, then --resume."""
    batch, calls = data.batch, iter(range(1000))
    monkeypatch.setattr(
        data,
        "batch",
        lambda *words: batch(*words) if next(calls) < 26 else (_ for _ in ()).throw(OSError("x")),
    )
    with pytest.raises(OSError, match="x"):
        train(SMOKE, RunOptions(out="broken"), "smoke")
    monkeypatch.setattr(data, "batch", batch)
    assert json.loads(Path("broken/manifest.json").read_text())["state"] == "failed"
    assert main(["train", "--resume", "broken"]) == 0
    (ours, state), (theirs, other) = (
        load_checkpoint(checkpoints(folder)[-1]) for folder in (Path("broken"), run)
    )
    assert all(torch.equal(ours["net"][key], theirs["net"][key]) for key in theirs["net"])
    for number, rows in other["optimiser"]["state"].items():
        assert all(torch.equal(state["optimiser"]["state"][number][key], rows[key]) for key in rows)
    assert read_metrics(Path("broken")) == read_metrics(run)


def test_evaluate_writes_accuracies_by_size(run, capsys):
    assert main(["evaluate", "--run", str(run), "--sizes", "9", "16", "--ensemble"]) == 0
    assert "9 px" in capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())
    assert set(found["accuracy"]) == {"9", "16"}
    assert len(found["maps"]) == 5
    assert main(["evaluate", "--run", str(run), "--sizes", "12", "--maps", "13", "7", "3"]) == 0
    assert json.loads((run / "evaluation.json").read_text())["maps"] == [[13, 7, 3]]


def test_report_has_the_kernels_and_the_claims(run, capsys):
    assert main(["report", "--run", str(run)]) == 0
    page = Path(capsys.readouterr().out.strip()).read_text()
    assert "kernels of layer 1" in page.lower()
    assert "One function serves all sizes" in page
    assert "continuous" in page


def test_dry_run_names_the_network(capsys):
    assert main(["train", "--layer", "strided", "-n"]) == 0
    said = capsys.readouterr().out
    assert "strided 12-24-24, maps 16-8-4, 8,314 parameters" in said
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--widths", "8", "8"), "one each per layer"),
        (("--maps", "16", "8", "0"), "at least 1"),
        (("--layer", "strided", "--maps", "16", "7", "4"), "must divide"),
        (("--layer", "blur", "--loose", "0.2"), "--loose"),
        (("--layer", "strided", "--kernel", "mlp"), "--kernel"),
        (("--loose", "1"), "--loose"),
        (("--lr", "0"), "--lr"),
        (("--draw", "0"), "at least 1"),
        (("--steps", "0"), "--steps"),
        (("--layer", "cx"), "choose from cc, strided"),
        (("--data", "photographs"), "no labels"),
    ],
)
def test_bad_training_is_one_line(capsys, words, expected):
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--maps", "3", "3"), "--maps needs 3"),
        (("--maps", "3", "3", "3", "--ensemble"), "leave one"),
        (("--sizes", "0"), ">= 1"),
    ],
)
def test_bad_evaluation_is_one_line(run, capsys, words, expected):
    assert main(["evaluate", "--run", str(run), *words]) == 2
    assert expected in capsys.readouterr().err


# ---- networks and their twins


@pytest.mark.parametrize("layer", ["cc", "strided", "blur", "resize-conv", "conv-resize"])
def test_twins_have_the_same_parameters_and_maps(layer):
    config = TrainConfig(layer=layer)
    net = Classifier(config, 1, 10)
    assert parameters(net) == 8314
    seen = []
    for block in net.blocks:
        block.register_forward_hook(lambda _module, _inputs, y: seen.append(y.shape[-1]))
    net(torch.rand(2, 1, 16, 16))
    assert tuple(seen) == config.maps


def test_free_layers_keep_their_maps_at_any_image_size():
    net = Classifier(TrainConfig(), 1, 10)
    seen = []
    net.blocks[1].register_forward_hook(lambda _module, _inputs, y: seen.append(y.shape[-1]))
    net(torch.rand(1, 1, 23, 23))
    net(torch.rand(1, 1, 23, 23), (11, 9, 3))
    assert seen == [8, 9]


def test_matched_twin_has_the_wanted_parameters():
    wider = matched(TrainConfig(layer="strided"), 25_066, 1, 10)
    assert parameters(Classifier(wider, 1, 10)) == pytest.approx(25_066, rel=0.03)


def test_ensemble_of_logits_is_the_wrapper_of_the_package():
    config = replace(SMOKE, widths=(4, 4, 4))
    net = build(config, sizes.held_out()).eval()
    found = ensemble(net, sizes.held_out(), 16, 2, chains(config.maps))
    named = [{f"blocks.{i}.conv": n for i, n in enumerate(maps)} for maps in chains(config.maps)]
    x = sizes.held_out().at(16, margin=2)
    with torch.no_grad():
        torch.testing.assert_close(found, ScaleEnsemble(net, named)(x))


def test_sizes_and_maps_are_drawn_by_step():
    config = replace(TrainConfig(), draw=(10, 12, 16), loose=0.3)
    drawn = {data.side(config, step) for step in range(1, 40)}
    assert drawn == {10, 12, 16}
    chain = [data.maps(config, step) for step in range(1, 40)]
    assert chain == [data.maps(config, step) for step in range(1, 40)]
    assert {maps[1] for maps in chain} == {6, 7, 8, 9, 10}
    assert data.maps(TrainConfig(), 1) is None
    assert learning_rate(config, 1) == config.lr
    assert learning_rate(config, config.steps) < 0.01 * config.lr


# ---- the experiments' parts


def test_gradual_networks_cost_the_same():
    known = sizes.arms()
    spent = [cost(Classifier(known[f"{kind} interp, varied"], 1, 10), 16) for kind in ("gradual", "one step")]
    assert spent[1] / spent[0] == pytest.approx(1, abs=0.03)


def test_shifts_move_whole_pixels():
    class Seen(torch.nn.Module):
        def forward(self, x):
            return x[:, 0, 5, :]

    still, moved = (sizes.shifted_logits(Seen(), *step) for step in ((0, 0), (0, 2)))
    torch.testing.assert_close(moved[:, 2:], still[:, :-2])
    down = sizes.shifted_logits(Seen(), -1, 0)
    assert not torch.equal(down, still)


def test_drift_of_the_read_out_is_predicted():
    assert [keypoint.predicted(side) for side in (64, 65, 66, 72)] == [0, -3.5, -3, 0]


def test_canvases_have_the_digit_where_they_say():
    x, place = keypoint.canvases(65, 4, 0, 0, "test")
    rows = x.sum((1, 3))
    for number in range(4):
        centre = float(place[number, 0]) + 32
        box = rows[number, int(centre - 3.5) : int(centre + 4.5)]
        assert float(box.sum()) == pytest.approx(float(rows[number].sum()), rel=1e-6)


def test_views_that_name_different_classes():
    views = [torch.eye(3)[[0, 1, 2, 0]], torch.eye(3)[[0, 1, 1, 0]], torch.eye(3)[[0, 2, 2, 0]]]
    assert sizes.disagreement(views) == 50


def test_why_chains_gain_little_tells_its_figures():
    name = "cc interp, loose"
    views = ("one chain", "five chains", "five far chains", "five chains, mean of probabilities")
    found = {
        f"{name}, {view}": [90.0 + i, 91.0 + 2 * i] for i, view in enumerate((*views, "five input sizes"))
    }
    text = sizes.why_chains_gain_little(found, {f"{name}, five chains": [4.0, 5.0]})
    assert "gain +1.50 points" in text
    assert "4.5 % of the digits; one chain has 9.5 % wrong" in text


def test_why_gradual_gains_nothing_tells_its_figures():
    found = {
        f"{chain} {kernel}, varied": values
        for kernel in ("interp", "mlp")
        for chain, values in (("gradual", [91.0, 93.0]), ("one step", [90.0, 90.0]))
    }
    text = sizes.why_gradual_gains_nothing(
        found, found, {"gradual mlp, varied": 30, "one step mlp, varied": 4}
    )
    assert text.count("+2.00 points (t = 2.00)") == 4
    assert "7.5 times the FLOPs" in text
