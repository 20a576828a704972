"""Images: data, networks, training through the run folder, rows of errors, and the command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ittt import Settings, image_verbs, images, page
from ittt.cli import about, main
from ittt.config import EvaluateConfig
from ittt.corruptions import NAMES
from ittt.image_config import CORRUPTIONS, IMAGES, ImageConfig
from paperkit import UserError
from paperkit.images import read
from paperkit.run import RunOptions, checkpoints, load_checkpoint, read_metrics

SMOKE = replace(IMAGES["smoke"][0], data="digits")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """One smoke run that the tests of this file read."""
    return images.train(SMOKE, RunOptions(out=str(tmp_path_factory.mktemp("ittt") / "run")), "smoke")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- data and networks


def test_draws_are_apart_and_the_same_for_every_seed():
    pictures = images.load(ImageConfig(data="digits", train=300, held_out=50, test=100))
    assert (len(pictures.x), len(pictures.x_clean), len(pictures.x_test)) == (300, 50, 100)
    assert float(pictures.x.min()) == 0
    assert float(pictures.x.max()) == 1
    other = images.load(ImageConfig(data="digits", train=300, held_out=50, test=100, seed=3))
    assert torch.equal(other.x, pictures.x)
    learned = {tuple(image.flatten().tolist()) for image in pictures.x}
    assert not any(tuple(image.flatten().tolist()) in learned for image in pictures.x_clean)


def test_a_small_set_gives_what_it_has():
    pictures = images.load(ImageConfig(data="digits"))
    assert (len(pictures.x), len(pictures.x_clean), len(pictures.x_test)) == (797, 500, 500)
    with pytest.raises(UserError, match="leaves no image"):
        images.load(ImageConfig(data="digits", held_out=1297))


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
@pytest.mark.parametrize("side", [8, 28, 32])
def test_networks_take_every_size_and_feed_the_signal_back(norm: str, side: int):
    x = torch.rand(6, 1, side, side)
    y = torch.arange(6)
    pictures = images.Pictures("random", True, x, y, x, y, x, y)
    net = images.build(ImageConfig(data="digits", norm=norm), pictures)
    net.eval()
    first = net(x)
    assert first.shape == (6, 10)
    second = net(x, net.from_output(first))
    assert not torch.equal(first, second)
    assert torch.allclose(net.resumed(x)(net.from_output(first)), second, atol=1e-6)
    # The signal enters behind the first conv: what comes before does not see it.
    assert "model.4.branch.0.weight" in dict(net.named_parameters())


def test_resnet_is_the_published_size_and_takes_small_images():
    x, y = torch.rand(2, 3, 32, 32), torch.arange(2)
    pictures = images.Pictures("random", True, x, y, x, y, x, y)
    net = images.build(replace(IMAGES["paper"][0], norm="batch"), pictures).eval()
    assert net(x).shape == (2, 10)
    assert 11.1e6 < images.parameters(net) < 11.3e6  # 11.17 million, and the branch
    assert not torch.equal(net(x), net(x, torch.eye(10)[:2]))


def test_standardised_by_the_training_images():
    x = torch.rand(50, 3, 4, 4) * torch.tensor([0.1, 0.5, 1.0]).view(1, 3, 1, 1)
    found = images.Standard(x)(x)
    assert torch.allclose(found.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(found.std((0, 2, 3)), torch.ones(3), atol=1e-4)


# ---- training


def test_run_folder_is_whole(run):
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["state"] == "finished"
    assert manifest["data"] == "digits, 256 of 1,297 training and 64 of 500 test images"
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4]
    log = (run / "log.txt").read_text()
    for words in images.ROWS.values():
        assert words in log


def test_evaluate_compares_methods_over_corruptions(run, capsys):
    words = ["evaluate", "--run", str(run), "--batches", "32", "--adapt.steps", "1"]
    assert main([*words, "--adapt.lr", "0"]) == 0
    assert "batches of 32" in capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())["error"]["32"]
    assert list(found) == list(image_verbs.METHODS)
    assert list(found["none"]) == ["clean", "gaussian"]
    assert found["none"] == found["it3"]  # a rate of nothing
    asked = EvaluateConfig()
    assert image_verbs.chosen(asked, SMOKE, 1) == ["none", "it3", "un-frozen", "random"]
    assert "it3-bn" not in image_verbs.chosen(asked, replace(SMOKE, norm="group"), 32)
    assert main([*words, "--levels", "0.3"]) == 2
    assert "leave them out" in capsys.readouterr().err
    assert main([*words, "--methods", "plain"]) == 2
    assert "needs plain" in capsys.readouterr().err


def test_report_shows_every_severity(run, capsys):
    assert main(["report", "--run", str(run)]) == 0
    words = Path(capsys.readouterr().out.strip()).read_text()
    assert all(f"gaussian {severity}" in words for severity in range(1, 6))
    inputs = read(run / "samples" / "inputs.png")
    assert inputs.shape[2] > 6 * 48  # clean and five severities
    subject = page.of_images(run)
    found = page.measured(subject, replace(subject.settings, lr=0.0))
    net, pictures = images.restored(run)[0], images.load(SMOKE)
    wrong = 100 * float(images.wrong(net(pictures.x_test), pictures.y_test).mean())
    assert found["clean"].error_before == found["clean"].error_after == pytest.approx(wrong)


def test_killed_run_ends_in_the_same_weights(run, monkeypatch):
    indices, calls = images.batch_indices, iter(range(1000))
    monkeypatch.setattr(
        images,
        "batch_indices",
        lambda *words: indices(*words) if next(calls) < 3 else (_ for _ in ()).throw(OSError("x")),
    )
    with pytest.raises(OSError, match="x"):
        images.train(SMOKE, RunOptions(out="broken"), "smoke")
    monkeypatch.setattr(images, "batch_indices", indices)
    assert main(["train", "--resume", "broken"]) == 0
    ours, theirs = (load_checkpoint(checkpoints(folder)[-1]) for folder in (Path("broken"), run))
    assert all(torch.equal(ours[0]["net"][key], value) for key, value in theirs[0]["net"].items())
    for number, rows in theirs[1]["optimiser"]["state"].items():
        assert all(torch.equal(ours[1]["optimiser"]["state"][number][key], rows[key]) for key in rows)
    assert read_metrics(Path("broken")) == read_metrics(run)


def test_the_network_of_a_run_is_the_trained_one(run):
    net, config = images.restored(run)
    assert config == SMOKE
    saved = load_checkpoint(checkpoints(run)[-1])[0]["net"]
    assert all(torch.equal(value, saved[name]) for name, value in net.state_dict().items())
    assert not net.training


def test_stored_statistics_are_those_of_what_predicts(run):
    net, config = images.restored(run)
    x = images.load(config).x
    first = net.model[1](net.model[0](x))
    torch.testing.assert_close(net.model[2].running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert config.restate


def test_plain_twin_learns_and_is_by_seed(run):
    twin = images.train_plain(replace(SMOKE, epochs=8))
    pictures = images.load(SMOKE)
    assert float(images.wrong(twin(pictures.x), pictures.y).mean()) < 0.5
    again = images.train_plain(replace(SMOKE, epochs=8))
    assert torch.equal(twin(pictures.x_test), again(pictures.x_test))


def test_adaptation_never_changes_the_network(run):
    net, config = images.restored(run)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = images.errors(net, images.load(config), replace(config, adapt=Settings(steps=1, norm="batch")))
    assert list(found) == list(images.ROWS)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_rows_with_gates_are_calibrated_under_their_own_statistics(run):
    net, config = images.restored(run)
    gated = replace(config, adapt=Settings(steps=1, gate=0.9, abstain=0.1))
    found = images.errors(net, images.load(config), gated)
    assert all(0 <= value <= 100 for row in found.values() for value in row.values())


def test_learning_learns():
    config = replace(SMOKE, train=700, epochs=10, norm="group", test_every=1000, log_every=1000)
    folder = images.train(config, RunOptions(out="learned"))
    net, _ = images.restored(folder)
    pictures = images.load(config)
    assert images.examine(net, pictures.x_test, pictures.y_test)["error"] < 15


def test_a_lone_last_image_joins_its_neighbours():
    assert [len(part) for part in images.batches(torch.zeros(9, 1), 4)] == [4, 5]
    assert [len(part) for part in images.batches(torch.zeros(8, 1), 4)] == [4, 4]
    assert [len(part) for part in images.batches(torch.zeros(1, 1), 4)] == [1]


# ---- the command


def test_the_command_knows_every_corruption():
    assert CORRUPTIONS == NAMES


def test_the_words_decide_which_train_is_meant(run, tmp_path):
    assert about(["train", "--data", "Fashion-MNIST"]) == "images"
    assert about(["train", "--data=cifar10"]) == "images"
    assert about(["train", "--resume", str(run)]) == "images"
    assert about(["train", "--config", str(run / "config.json")]) == "images"
    assert about(["train", "--task", "roads", "--data", "strokes"]) == "roads"
    for words in (["train"], ["train", "--data", "bostonHousing"], ["evaluate", "--data", "mnist"]):
        assert about(words) == ""
    assert about(["train", "--resume", str(tmp_path)]) == ""


def test_dry_run_of_images(capsys):
    assert main(["train", "--data", "digits", "-n"]) == 0
    printed = capsys.readouterr().out
    assert "digits, 797 of 1,297 training and 500 of 500 test images" in printed
    assert "steps of 64 images" in printed


def test_no_harm_rule_on_images(capsys):
    words = ["train", "--data", "digits", "--preset", "smoke", "--norm", "group"]
    assert main(words) == 0
    assert "no harm   lr" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "digits", "--norm", "group", "--adapt.norm", "batch"], "needs --norm batch"),
        (["--data", "digits", "--severity", "6"], "from 1 to 5"),
        (["--data", "digits", "--train", "0"], "--train must be at least 1"),
        (["--data", "digits", "--smoothing", "1"], "--smoothing is a share"),
        (["--data", "digits", "--corruptions", "fogg"], "did you mean fog"),
    ],
)
def test_bad_flags_get_one_line(words, said, capsys):
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


# ---- adapt


def test_a_folder_of_images_is_adapted_to(run, capsys):
    from paperkit.images import write

    pictures = images.load(SMOKE)
    for i in range(5):
        write(
            Path(f"faulty/{i}.png"), pictures.x_test[i].repeat_interleave(2, 1).repeat_interleave(2, 2), 0, 1
        )
    words = ["adapt", "faulty", "--run", str(run), "--adapt.norm", "batch", "--batch", "4"]
    assert main([*words, "--out", "found.json"]) == 0
    assert "5 images" in capsys.readouterr().out
    rows = json.loads(Path("found.json").read_text())
    assert [row["image"] for row in rows] == [f"{i}.png" for i in range(5)]
    assert all(row["prediction"] in "0123456789" and 0.1 <= row["probability"] <= 1 for row in rows)
    Path("empty").mkdir()
    for where, said in (("nowhere", "is no folder"), ("empty", "no image")):
        assert main(["adapt", where, "--run", str(run)]) == 2
        assert said in capsys.readouterr().err
