"""A generator steered by shared units: the verbs `invert` and `edit`, their claims, ablation, settings."""

from pathlib import Path

import pytest
import torch
from paperkit import UserError, images, rng
from rosetta import causal_claim, guide, settings_claim, steer, steer_claims, store, zoo
from rosetta.cli import main
from rosetta.invert import Settings, foreground
from rosetta.maps import Maps
from rosetta.method import best_buddies
from rosetta.mining import stored_tables
from rosetta.similarity import table
from rosetta.steer import Steered

K = 10
"""The zoo is hardly trained: with fewer it may share nothing above chance."""


@pytest.fixture(scope="module")
def steered(run) -> Steered:
    return steer.open_run(run)


@pytest.fixture(scope="module")
def pairs(steered) -> list[steer.Pair]:
    return steer.shared_pairs(steered.tables, K)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- what is steered


def test_the_generator_of_the_run_draws_its_probes_and_has_their_maps(run, steered):
    codes = rng.normal((48, 64), steered.config.seed, 0, "probes")
    probes = store.open_images(run / "generated" / "probes.npy")
    with torch.no_grad():
        image, maps = steered.generator.run(codes[5:6])
    assert float((image - probes[5]).abs().max()) <= 1 / 127
    layer = steered.tables.maps[0].data[1][slice(5, 6)][0, 3]
    unit = steered.tables.maps[0].offsets[1] + 3
    back = maps(unit) * steered.generator.std[unit] + steered.generator.mean[unit]
    torch.testing.assert_close(back.float(), layer, atol=1e-4, rtol=1e-4)
    assert [v.name for v in steered.viewers] == [m.model for m in steered.tables.maps[1:]]


def test_shared_pairs_are_best_buddies_above_permuted_images(steered, pairs):
    assert pairs
    pivot, *others = steered.tables.maps
    for number, maps in enumerate(others):
        scores = table(pivot, maps)
        wanted = best_buddies(scores, K)
        top = max(steered.tables.null(0, number + 1, "images", draw).largest for draw in range(2))
        found = {(u, v) for u, j, v in pairs if j == number}
        assert found <= {(u, v) for u, v in wanted.nonzero().tolist() if scores[u, v] > top}
        assert all(scores[u, v] > top for u, v in found)
    assert steer.matched_units(pairs) == sorted({u for u, _, _ in pairs})


def test_controls_stay_in_their_layers(steered, pairs):
    zoo_maps = steered.tables.maps
    partners = steer.with_random_partners(steered.tables, pairs, 0)
    both = steer.random_pairs(steered.tables, pairs, 0)
    assert partners == steer.with_random_partners(steered.tables, pairs, 0)
    assert partners != steer.with_random_partners(steered.tables, pairs, 1)
    for (u, j, v), (u1, j1, v1), (u2, j2, v2) in zip(pairs, partners, both, strict=True):
        assert (u1, j1, j2) == (u, j, j)
        assert v not in (v1, v2)
        assert u2 != u
        assert zoo_maps[j + 1].place(v1)[0] == zoo_maps[j + 1].place(v2)[0] == zoo_maps[j + 1].place(v)[0]
        assert zoo_maps[0].place(u2)[0] == zoo_maps[0].place(u)[0]
        assert zoo_maps[j + 1].alive[v1]
        assert zoo_maps[0].alive[u2]
    shuffled = steer.with_shuffled_partners(pairs)
    assert [u for u, _, _ in shuffled] == [u for u, _, _ in pairs]
    assert sorted((j, v) for _, j, v in shuffled) == sorted((j, v) for _, j, v in pairs)
    lonely = Maps("one", ["layer"], [torch.rand(4, 1, 2, 2)])
    with pytest.raises(UserError, match="no other unit to compare 0 with"):
        steer.other_unit(lonely, 0, torch.Generator())


def test_goals_of_a_picture_come_from_the_partners_maps(steered, pairs):
    picture = steered.source.probes[3]
    goals = steered.goals(picture, pairs[:1])
    unit, viewer, other = pairs[0]
    assert goals[0].unit == unit
    assert (
        goals[0].map.shape
        == steered.tables.maps[viewer + 1].grids[steered.tables.maps[viewer + 1].place(other)[0]]
    )
    found = steer.inverted(steered, picture, [], Settings(steps=60, prior=0.0, pixels=1.0))
    start = steer.image_of(steered, steered.start)
    assert (found.image - picture).square().mean() < (start - picture).square().mean()


# ---- the verbs


def test_invert_writes_pictures_and_names_the_pairs(run, capsys):
    words = ["invert", str(run), "--k", "10", "--steps", "3", "--count", "2"]
    assert main(words) == 0
    *lines, place = capsys.readouterr().out.splitlines()
    assert Path(place) == run / "samples" / "inverted.png"
    assert images.read(place).shape[0] == 3
    assert all("stages." in line and ("CNN-" in line or "MAE/" in line) for line in lines)
    images.write("drawn.png", torch.rand(1, 20, 16))
    assert main([*words, "--picture", "drawn.png"]) == 0


@pytest.mark.parametrize(
    "words",
    [["shift", "--right", "-0.25"], ["zoom"], ["paste"], ["unit", "--unit", "stages.1/3"], ["align"]],
    ids=lambda words: words[0],
)
def test_every_edit_writes_its_picture(run, capsys, monkeypatch, words):
    kind, *more = words
    # The classifier is hardly trained: it may see one class everywhere.
    monkeypatch.setattr(guide, "_classes", lambda steered, codes: [0, 1, 0, 1])
    assert main(["edit", kind, str(run), "--k", "10", "--steps", "2", "--count", "4", *more]) == 0
    said, place = capsys.readouterr().out.splitlines()
    assert said.startswith("centre of mass moved by")
    assert Path(place) == run / "samples" / f"{kind}.png"
    assert images.read(place).shape[0] == 3


def test_bad_input_is_one_line(run, capsys):
    Path("bare").mkdir()
    for words, message in (
        (["edit", "unit", str(run)], "needs --unit LAYER/CHANNEL"),
        (["edit", "unit", str(run), "--unit", "stages.9/3"], "the generator's layers are stages.0"),
        (["edit", "unit", str(run), "--unit", "stages.1/32"], "stages.1 has 32 units"),
        (["edit", "zoom", str(run), "--by", "0"], "a zoom needs a factor above 0"),
        (["invert", "bare"], "is no run folder"),
        (["invert", str(run), "--k", "11"], "stored tables hold the 10 best"),
        (["invert", str(run), "--k", "10", "--rate", "0"], "a positive rate"),
    ):
        assert main(words) == 2, words
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        assert message in said, said
    with pytest.raises(UserError, match="has no mined generator"):
        steer.open_run(Path("bare"))
    assert len(guide._classes(steer.open_run(run), torch.zeros(3, 64))) == 3
    with pytest.raises(UserError, match="all images are of one class"):
        guide._of_another_class(0, [3, 3])
    assert guide._of_another_class(1, [4, 3, 3]) == 0


# ---- the claims


@pytest.fixture
def claims(run, monkeypatch):
    """The claims' modules over the short run."""
    for module in (steer_claims, causal_claim, settings_claim):
        monkeypatch.setattr(module.reproduction, "remember", lambda paper, words, make: make())
    monkeypatch.setattr(steer_claims, "run_of", lambda seed: run)
    monkeypatch.setattr(steer_claims, "K", K)


def whole(record: dict) -> bool:
    """Whether every arm has a figure for each seed, and the verdict and the explanation agree."""
    lengths = {len(values) for values in record["arms"].values()} | {len(record["ours"])}
    failed = record["statistic"] < record["threshold"]
    return lengths == {1} and bool(record.get("explanation", "")) == failed


def test_inversion_measures_every_way(claims, monkeypatch):
    monkeypatch.setattr(steer_claims, "TARGETS", 3)
    monkeypatch.setattr(steer_claims, "INVERSION", Settings(steps=2, rate=0.05, prior=0.64))
    record = steer_claims.inversion(1)
    assert whole(record)
    controls = {"untrained pairs", "shuffled partners", "random pairs", "mean image", "another image"}
    assert controls | {"pixels", "pixels and pairs"} <= record["arms"].keys()
    assert "Pairs of untrained networks have" in record["details"]["reading"]


def test_edits_are_measured_beside_random_units(claims, monkeypatch):
    monkeypatch.setattr(steer_claims, "EDITED", 2)
    monkeypatch.setattr(steer_claims, "EDIT", Settings(steps=2, prior=0.0))
    record = steer_claims.edits(1)
    assert whole(record)
    assert set(record["arms"]) == {"zoom", "halves", "zoom, random", "halves, random"}
    assert all(0 <= share <= 1 for values in record["arms"].values() for share in values)


def test_halves_and_foreground():
    dark, bright = -torch.ones(1, 4, 4), torch.ones(1, 4, 4)
    mixed = torch.cat([dark[..., :2], bright[..., 2:]], 2)
    assert steer_claims.nearer_halves(mixed, dark, bright) == (True, True)
    assert steer_claims.nearer_halves(mixed, bright, dark) == (False, False)
    assert steer_claims.nearer_halves(dark, dark, bright) == (True, False)
    assert foreground(mixed) == 0.5
    assert foreground(mixed - 0.6 * (mixed > 0), least=1.5) == 0.0


def test_chances_of_trials_and_of_ranks_are_exact():
    assert steer_claims._by_chance([True] * 10) == pytest.approx(2.0**-10)
    assert steer_claims._lower([0.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == pytest.approx(2.0**-6)


def test_units_that_answer_with_their_mean(run, steered):
    stage = steered.stages["CNN-A"]
    maps = stored_tables(run / "real").maps[0]
    network = zoo.network(stage, steered.source.probes[:1])
    net, pixels = stage.modules["net"].eval(), steered.source.probes[:5]
    last = range(maps.offsets[2], maps.offsets[3])
    with torch.no_grad():
        before = net(pixels)
        with causal_claim.without(network, maps, []):
            assert torch.equal(net(pixels), before)
        with causal_claim.without(network, maps, list(last)):
            one_for_all = net(pixels)
        assert torch.equal(net(pixels), before)
        mean = maps.measure().mean[list(last)].float()
        torch.testing.assert_close(one_for_all, net.head(mean).expand(5, -1), atol=1e-5, rtol=1e-5)


def test_sets_of_like_and_of_random_units():
    data = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([1.0, 2.0, 1.1, 2.2, 9.0])
    maps = Maps("m", ["a", "b"], [data * scale[:, None, None], data[:, :3]])
    assert causal_claim.alike(maps, [0, 1]) == [2, 3]
    assert causal_claim.alike(maps, [5, 6, 7]) == []
    chosen = causal_claim.random_set(maps, [0, 1, 6], torch.Generator().manual_seed(0))
    assert [maps.place(unit)[0] for unit in chosen] == [0, 0, 1]
    assert len(set(chosen)) == 3


def test_held_out_images_follow_the_probes(steered):
    pixels, labels = causal_claim.held_out("digits", 0, 48)
    assert len(pixels) == len(labels) == 452
    more, _ = causal_claim.held_out("digits", 0, 40)
    assert torch.equal(more[:8], steered.source.probes[40:])
    assert torch.equal(more[8:], pixels)


def test_causal_claim_over_a_short_run(claims, monkeypatch):
    monkeypatch.setattr(causal_claim, "DRAWS", 3)
    record = causal_claim.causal(1)
    assert whole(record)
    assert {"stars: shared", "buddies: random", "buddies: units", "accuracy before"} <= record["arms"].keys()
    low, high = (record["arms"][f"buddies: random, {end}"][0] for end in ("low", "high"))
    assert low <= record["arms"]["buddies: random"][0] <= high


def test_settings_are_compared_on_the_same_images(claims, monkeypatch):
    monkeypatch.setattr(settings_claim, "IMAGES", (24, 500))
    monkeypatch.setattr(settings_claim, "FEW", 16)
    monkeypatch.setattr(settings_claim, "DRAWS", 2)
    record = settings_claim.ablations(1)
    assert whole(record)
    found = {key: values[0] for key, values in record["arms"].items()}
    assert found["mutual-10: matches"] >= found["mutual-3: matches"] >= record["ours"][0]
    assert found["float64: largest difference of a score"] < 1e-5
    assert found["float64: in common"] > 0.9
    assert found["pearson: in common"] == 1.0
    assert {"24 images: matches", "spearman: matches", "official: in common"} <= found.keys()
    assert "500 images: matches" not in found
