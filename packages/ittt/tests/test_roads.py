"""Roads: scores by hand and against a slow reference, tiles, shifts, network, claim, verbs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ittt import ITTT, Settings, road_causes, road_claim, roads
from ittt.cli import main
from ittt.road_metrics import near, scores, scores_of
from ittt.strokes import strokes
from ittt.task_config import ROADS, RoadsConfig
from ittt.task_loop import fit
from paperkit import UserError, images, reproduction, results
from paperkit.run import checkpoints, load_checkpoint, read_metrics
from torch import nn

TINY = RoadsConfig(train=32, held_out=8, test=16, epochs=1)
FLAGS = ["--task", "roads", "--preset", "smoke", "--train", "16", "--batch", "8", "--adapt.steps", "1"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Quarters of the stand-in's tiles, for all that does not look at them."""

    def quarters(*words) -> tuple[torch.Tensor, ...]:
        return tuple(part[..., :32, :32] for part in strokes(*words))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roads, "strokes", quarters)
        patch.setattr(roads, "WIDTHS", (4, 8, 8))
        roads._strokes.cache_clear()
        yield
    roads._strokes.cache_clear()


@pytest.fixture
def whole(monkeypatch):
    """The tiles as they are."""
    monkeypatch.setattr(roads, "strokes", strokes)
    monkeypatch.setattr(roads, "WIDTHS", (16, 32, 48))
    roads._strokes.cache_clear()
    yield
    roads._strokes.cache_clear()


# ---- scores


def slow_near(mask: np.ndarray, tolerance: float) -> np.ndarray:
    """Every pixel against every pixel of the mask, in float64."""
    found = np.zeros_like(mask)
    for i, j in np.ndindex(mask.shape):
        for k, m in zip(*np.nonzero(mask), strict=True):
            found[i, j] |= np.hypot(np.float64(i - k), np.float64(j - m)) <= tolerance
    return found


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 1.5, 3.2])
def test_distances_are_those_of_a_slow_reference(tolerance: float):
    draw = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.2, 1.0):
        mask = draw.random((13, 17)) < share
        assert np.array_equal(near(mask, tolerance), slow_near(mask, tolerance))


def test_scores_by_hand():
    true, predicted = np.zeros((2, 7, 7), bool)
    true[3, :] = True  # a road from side to side: 7 pixels
    predicted[4, :4] = True  # four pixels one row below it
    predicted[0, 6] = True  # and one three rows above
    # Without tolerance nothing is right, and all is missed.
    assert scores_of(predicted, true, 0) == (0, 0, 0)
    # One pixel: four of five are right; columns 0 to 3 are found (4 is sqrt(2) away), three are missed.
    assert scores_of(predicted, true, 1) == pytest.approx((4 / 5, 4 / 7, 4 / (5 + 3)), abs=0, rel=1e-15)
    # Diagonals count: column 4 is found as well.
    assert scores_of(predicted, true, 1.5) == pytest.approx((4 / 5, 5 / 7, 4 / (5 + 2)), abs=0, rel=1e-15)
    assert scores_of(predicted, true, 3) == pytest.approx((1, 1, 1))


def test_nothing_of_nothing_is_whole():
    none, some = np.zeros((4, 4), bool), np.eye(4, dtype=bool)
    assert scores_of(none, none, 1) == (1, 1, 1)
    assert scores_of(none, some, 1) == (1, 0, 0)
    assert scores_of(some, none, 1) == (0, 1, 0)
    found = scores(torch.tensor(some)[None, None], torch.tensor(none)[None, None], 1)
    assert [float(column) for column in found] == [0, 100, 0]


# ---- tiles and shifts


def test_tiles_come_back_as_the_image():
    image = torch.rand(1, 3, 100, 130)
    tiles = roads.tiled(image, 64)
    assert tiles.shape == (6, 3, 64, 64)
    assert torch.equal(tiles[1], image[0, :, :64, 64:128])
    assert torch.equal(roads.untiled(tiles, 100, 130), image[0])
    assert torch.equal(tiles[5, :, -1], tiles[5, :, 35])  # the last row again


def test_the_aerial_tolerance_is_scaled_with_the_images(whole, monkeypatch):
    draw = torch.Generator().manual_seed(0)

    class Pairs:
        def tensor(self):
            x = torch.randint(0, 256, (2, 3, 400, 400), generator=draw, dtype=torch.uint8)
            return x, x[:, :1] > 250

    monkeypatch.setattr(roads, "open_pairs", lambda split: Pairs())
    roads._aerial.cache_clear()
    parts = roads.load(RoadsConfig(data="aerial-roads", train=100, held_out=4, test=3))
    roads._aerial.cache_clear()
    assert (len(parts.learned.x), len(parts.clean.x), len(parts.test.x)) == (4, 4, 3)
    assert parts.learned.x.shape[1:] == (3, 128, 128)
    assert parts.tolerance == pytest.approx(5 * 256 / 400)
    assert roads.load(TINY).tolerance == pytest.approx(parts.tolerance / 2)  # tiles of half the side


@pytest.mark.parametrize("kind", roads.KINDS)
def test_shifts_grow_and_repeat(kind: str):
    x = roads.load(TINY).test.x
    away = [float((roads.shift(x, kind, level, 0) - x).abs().mean()) for level in (0, *roads.LEVELS)]
    assert away == sorted(away)
    assert away[0] == 0
    shifted = roads.shift(x, kind, 2, 0)
    assert torch.equal(shifted, roads.shift(x, kind, 2, 0))
    assert not torch.equal(shifted, roads.shift(x, kind, 2, 1))
    assert float(shifted.min()) >= 0
    assert float(shifted.max()) <= 1
    with pytest.raises(UserError, match="levels 0 to 4"):
        roads.shift(x, kind, 5, 0)


def test_haze_takes_away_contrast_and_noise_adds_it():
    x = torch.full((4, 3, 64, 64), 0.4)
    noisy, hazy = (roads.shift(x, kind, 4, 0) for kind in roads.KINDS)
    light, always = roads.NOISE[3]
    assert float(noisy.std()) == pytest.approx((light * 0.4 + always**2) ** 0.5, rel=0.05)
    assert bool((hazy > 0.4).all())
    both = torch.cat([x, x + 0.2])
    hazy = roads.shift(both, "haze", 1, 0)
    assert float(hazy[4:].mean() - hazy[:4].mean()) == pytest.approx(0.2 * np.exp(-0.1), rel=0.05)


def test_strokes_are_painted_over_the_texture():
    x, y = strokes("brick", "train", 8, 0)
    assert torch.equal(x, strokes("brick", "train", 8, 0)[0])
    assert x.shape == (8, 3, 64, 64)
    assert 0.1 < float(y.float().mean()) < 0.5
    road, ground = (float(x[part.expand_as(x)].mean()) for part in (y, ~y))
    assert road > ground + 0.05  # tones are 0.5 to 0.8, the brick's mean is below
    ours, theirs = (strokes(name, "test", 8, 0)[0].mean() for name in ("gravel", "grass"))
    assert float(ours) != float(theirs)


# ---- network and training


def test_the_mask_is_a_channel_and_sides_must_fit():
    parts = roads.load(TINY)
    net = roads.build(TINY, parts).eval()
    first = net(parts.clean.x)
    assert first.shape == (8, 1, 32, 32)
    assert not torch.equal(net(parts.clean.x, net.from_output(first)), first)
    assert net.gap(parts.clean.x).shape == (8,)
    with pytest.raises(UserError, match="16 divides"):
        net(torch.zeros(1, 3, 60, 64))


def test_learning_finds_strokes_also_when_fed_none(whole):
    config = replace(TINY, train=64, epochs=15)
    parts = roads.load(config)
    net = roads.build(config, parts)
    fit(net, roads.loss(config, net, parts), roads.length(config, parts), config.lr)
    found = scores(net(parts.clean.x) > 0, parts.clean.y, parts.tolerance)
    always = scores(torch.ones_like(parts.clean.y), parts.clean.y, parts.tolerance)
    assert float(found.quality.mean()) > float(always.quality.mean()) + 10


# ---- the claim


def test_every_image_is_shown_once_under_each_kind():
    parts = roads.load(replace(TINY, test=32))
    for seed in (0, 3):
        tests = road_claim.conditions(parts, seed)
        assert list(tests) == ["clean", *roads.KINDS]
        for kind in roads.KINDS:
            assert sum(len(tiles.x) for tiles in tests[kind].values()) == 32
            level = tests[kind][f"{kind} {1 + seed % 4}"]
            assert torch.equal(level.y[:4], parts.test.y[:4])  # image 0
            assert torch.equal(
                level.x, roads.shift(parts.test.x[torch.arange(32) // 4 % 4 == 0], kind, 1 + seed % 4, seed)
            )


def test_the_claim_is_a_record_and_reads_no_shifted_mask(monkeypatch):
    """With other masks of the test tiles the predictions (the shares marked) stay what they were."""
    monkeypatch.setattr(road_claim, "RECIPE", TINY)
    monkeypatch.setattr(road_claim, "BATCHES", (8, 16))
    every = road_claim.ways
    kept = {"none", "it3 8", "it3 16", "bn 16", "plain", road_claim.STREAMED}
    monkeypatch.setattr(
        road_claim, "ways", lambda *words: {k: v for k, v in every(*words).items() if k in kept}
    )
    monkeypatch.setattr(road_claim, "harmless_lr", lambda *words: 1e-4)
    fields = road_claim.claim(2)
    record = results.claim(
        paper="ittt", id="roads", command="uv run --package ittt ittt reproduce roads", wall_s=1.0,
        preset="none", **fields,
    )  # fmt: skip
    assert results.check(record) == []
    gains = record["details"]["gain_over_tiles_and_seeds"]
    assert record["statistic"] == min(gains[name]["t"] for name in ("it3 8", "it3 16"))
    parts = roads.load(TINY)
    blind = replace(parts, test=roads.Tiles(parts.test.x, ~parts.test.y))
    ours = reproduction.remember("ittt", "roads 0", lambda: {})  # kept by the claim
    monkeypatch.setattr(roads, "load", lambda config: blind)
    kept &= {"it3 16", road_claim.STREAMED}
    theirs = road_claim.rows(0)
    for name in ("it3 16", road_claim.STREAMED):
        for where in road_claim.SHIFTED:
            assert ours[name][where]["marked"] == theirs[name][where]["marked"]
    assert ours["it3 16"]["noise 1"]["quality"] != theirs["it3 16"]["noise 1"]["quality"]


# ---- why steps harm


class Toy(nn.Module):
    """Logits 4 x + 2 signal of the first channel and the last."""

    def forward(self, x):
        return 4 * x[:, :1] + 2 * x[:, 3:]


def test_what_is_asked_of_each_tile():
    net = ITTT(Toy(), "channel", task="binary", neutral=-1.0)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(3, 3, 16, 16, generator=draw), torch.rand(3, 1, 16, 16, generator=draw) > 0.6
    found = road_causes.asked(net, roads.Tiles(x, y), 1.0)
    first, true = 4 * x[:, :1] - 2, y.float()
    own = first.sigmoid()
    gap = (4 * x[:, :1] + 2 * own).sigmoid() - own
    for i in range(3):
        error = true[i] - own[i]
        cosine = (gap[i] * error).sum() / (gap[i].norm() * error.norm())
        assert found["toward"][i] == pytest.approx(float(cosine), abs=1e-5)
        assert found["own"][i] == pytest.approx(float(gap[i].abs().mean()), rel=1e-5)
        moved = ((4 * x[i, :1] + 2 * true[i]).sigmoid() - true[i]).abs().mean()
        assert found["true"][i] == pytest.approx(float(moved), rel=1e-5)
        assert found["empty"][i] == pytest.approx(float((4 * x[i, :1]).sigmoid().mean()), rel=1e-5)
    assert found["missed"] == pytest.approx((100 - scores(first > 0, y, 1.0).quality).tolist())
    assert found["gap"] == pytest.approx(net.gap(x).tolist(), rel=1e-5)


def test_conditions_of_the_direction():
    right = {
        "toward": [0.1, 0.2, 0.3, 0.2], "true": [0.1, 0.2, 0.1, 0.1], "empty": [0.4, 0.4, 0.5, 0.4],
        "own": [0.1] * 4, "gap": [0.1, 0.2, 0.3, 0.4], "missed": [10.0, 20.0, 30.0, 45.0],
    }  # fmt: skip
    wrong = right | {"toward": [-0.1, 0.1, 0.2, -0.2], "true": right["empty"], "empty": right["true"]}
    wrong["missed"] = right["missed"][::-1]
    met = road_causes.conditions_of({"noise": right, "haze": wrong})
    assert [holds for condition, holds in met.items() if condition.endswith("noise")] == [True] * 3
    assert [holds for condition, holds in met.items() if condition.endswith("haze")] == [False] * 3


def test_the_direction_is_a_record(monkeypatch):
    monkeypatch.setattr(road_causes, "RECIPE", TINY)
    kept = ("not adapted", "2 steps")
    monkeypatch.setattr(road_causes, "OPERATIONS", {name: road_causes.OPERATIONS[name] for name in kept})
    record = results.claim(
        paper="ittt", id="roads-direction", command="uv run --package ittt ittt reproduce roads-direction",
        wall_s=1.0, preset="none", **road_causes.claim(2),
    )  # fmt: skip
    assert results.check(record) == []
    assert record["threshold"] == 6
    assert record["statistic"] == sum(record["details"]["conditions"].values())
    assert set(record["arms"]) == {f"{name}, {kind}" for name in kept for kind in ("clean", *roads.KINDS)}


# ---- the verbs


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """One smoke run that the tests of this file read."""
    folder = tmp_path_factory.mktemp("ittt") / "roads"
    assert main(["train", *FLAGS, "--out", str(folder)]) == 0
    return folder


def test_run_folder_is_whole_and_names_the_stand_in(run):
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["state"] == "finished"
    assert "stand-in" in manifest["data"]
    log = (run / "log.txt").read_text()
    assert "quality in per cent" in log
    assert "gravel" in log


def test_killed_run_ends_in_the_same_weights(run, monkeypatch):
    indices, calls = roads.batch_indices, iter(range(1000))
    monkeypatch.setattr(
        roads,
        "batch_indices",
        lambda *words: indices(*words) if next(calls) < 3 else (_ for _ in ()).throw(OSError("x")),
    )
    with pytest.raises(OSError, match="x"):
        main(["train", *FLAGS, "--out", "broken"])
    monkeypatch.setattr(roads, "batch_indices", indices)
    assert main(["train", "--resume", "broken"]) == 0
    ours, theirs = (load_checkpoint(checkpoints(folder)[-1]) for folder in (Path("broken"), run))
    assert all(torch.equal(ours[0]["net"][key], value) for key, value in theirs[0]["net"].items())
    assert read_metrics(Path("broken")) == read_metrics(run)


def test_a_folder_of_images_gets_masks_of_their_sizes(run, capsys):
    """Tiled where they are larger than a tile, filled up where smaller; without steps, what the net says."""
    from ittt.tasks import restored

    parts = roads.load(ROADS["smoke"][0])
    one = parts.test.x[0]
    images.write(Path("photos/one.png"), one, 0.0, 1.0)
    images.write(Path("photos/wide.png"), torch.cat([one, one], 2)[:, :25, :50], 0.0, 1.0)
    assert main(["adapt", "photos", "--run", str(run), "--adapt.steps", "0", "--adapt.abstain", "0"]) == 0
    assert "2 images" in capsys.readouterr().out
    masks = {name: images.read(Path(f"adapted-masks/{name}.png"), "grey") for name in ("one", "wide")}
    assert masks["one"].shape == (1, 32, 32)
    assert masks["wide"].shape == (1, 25, 50)
    assert set(masks["one"].flatten().tolist()) <= {0, 255}
    work = restored(run)
    stored = images.read(Path("photos/one.png")).float() / 255
    expected = work.net(stored[None])[0].sigmoid() > 0.5
    assert torch.equal(masks["one"] > 127, expected)
    rows = Path("adapted.csv").read_text().splitlines()
    assert rows[0].startswith("image,tiles,road")
    assert rows[2].startswith("wide.png,2,")
    images.write(Path("photos/one.jpg"), one, 0.0, 1.0)
    Path("empty").mkdir()
    for where, said in (
        ("photos", "a name of its own"),
        ("empty", "no images in empty"),
        ("no", "no folder"),
    ):
        assert main(["adapt", where, "--run", str(run)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_evaluate_compares_methods_over_conditions(run, capsys):
    words = ["evaluate", "--run", str(run), "--batches", "1", "8", "--methods", "none", "bn"]
    assert main([*words, "--adapt.steps", "1"]) == 0
    found = json.loads((run / "evaluation.json").read_text())["found"]
    assert (list(found["1"]), list(found["8"])) == (["none"], ["none", "bn"])
    assert found["1"]["none"] == pytest.approx(found["8"]["none"], abs=0.5)
    assert main(["evaluate", "--run", str(run), "--levels", "0.3"]) == 2
    assert "leave them out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "road"], "did you mean roads?"),
        (["--task", "roads", "--data", "mnist"], "choose from"),
        (["--task", "roads", "--mask", "2"], "--mask is a probability"),
        (["--task", "roads", "--train", "0"], "--train must be at least 1"),
        (["--task", "roads", "--adapt-batch", "1"], "--adapt-batch must be at least 2"),
    ],
)
def test_bad_flags_get_one_line(words, said, capsys):
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_missing_aerial_images_get_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PAPERKIT_DATA", str(tmp_path))
    roads._aerial.cache_clear()
    assert main(["train", "--task", "roads", "--data", "aerial-roads"]) == 2
    error = capsys.readouterr().err
    assert "aerial-roads" in error
    assert error.count("\n") == 1


def test_adapting_leaves_the_network_as_it_was(run):
    from ittt.tasks import restored

    work = restored(run)
    before = {name: value.clone() for name, value in work.net.state_dict().items()}
    work.measured("it3", Settings(steps=1), 8)
    assert all(torch.equal(value, before[name]) for name, value in work.net.state_dict().items())


def test_report_shows_every_condition(run, capsys):
    assert main(["report", "--run", str(run)]) == 0
    words = Path(capsys.readouterr().out.strip()).read_text()
    assert all(name in words for name in ("noise 2", "haze 4", "gravel", "gap before"))
    assert images.read(run / "samples" / "inputs.png").shape[1] > 7 * 32


def test_a_picture_shows_every_condition(run, capsys):
    assert main(["picture", "roads", "--run", str(run)]) == 0
    picture = images.read(Path("roads.png"))
    assert picture.shape[1] > 5 * 2 * 32  # input, road, before, after, gap
    assert picture.shape[2] > 7 * 2 * 32
    assert float(picture.float().std()) > 10
    assert main(["picture", "roads", "--run", str(run), "--out", "x.svg"]) == 2
    assert "must end in .png" in capsys.readouterr().err
