"""Ages from faces: ranges, network, training, ways, verbs; with drawn pictures in the place of UTKFace."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ittt import ITTT, face_claim, faces
from ittt.cli import main
from ittt.face_claim import BASE, OFFICIAL, PAIRS, PAPER, WAYS, way
from ittt.task_config import FacesConfig
from ittt.task_loop import fit
from paperkit import UserError, images, reproduction, results
from paperkit.data import ArraySet, Facts

SMALL = FacesConfig(train=64, held_out=16, inside=16, outside=32, epochs=1, batch=16)
FLAGS = {
    "train": 32, "held-out": 16, "inside": 8, "outside": 8, "epochs": 1, "batch": 16, "adapt-batch": 8
}  # fmt: skip


def drawn(side: int):
    """What opens three faces of every age whose brightness is their age."""
    ages = torch.arange(1, 100).repeat_interleave(3)
    pixels = (ages * 2).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, side, side).contiguous()
    pixels = (pixels + torch.randint(0, 20, pixels.shape, generator=torch.Generator().manual_seed(0))).byte()
    return lambda name, split: ArraySet(Facts(name, "none", split), pixels.numpy(), ages.numpy(), ())


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(faces, "open_set", drawn(64))
    faces._load.cache_clear()
    yield
    faces._load.cache_clear()


# ---- data and network


def test_training_never_sees_an_age_out_of_range():
    parts = faces.load(SMALL)
    for part in (parts.learned, parts.clean, parts.inside):
        assert float(part.y.min()) * 50 >= 20
        assert float(part.y.max()) * 50 <= 60 + 1e-4
    age = parts.outside.y * 50
    assert not bool(((age >= 20 - 1e-4) & (age <= 60 + 1e-4)).any())
    seen = {tuple(x.flatten()[:50].tolist()) for x in parts.learned.x}
    assert not any(tuple(x.flatten()[:50].tolist()) in seen for x in (*parts.clean.x, *parts.inside.x))


def test_too_few_faces_get_one_line():
    with pytest.raises(UserError, match=r"123 faces of 20 to 60 years, 1,032 were asked for"):
        faces.load(replace(SMALL, train=1000))


def test_the_network_takes_the_age_as_a_channel():
    parts = faces.load(SMALL)
    net = faces.build(SMALL, parts).eval()
    assert net(parts.clean.x).shape == (16, 1)
    assert sum(p.numel() for p in net.parameters()) < 200_000
    assert not torch.equal(net(parts.clean.x), net(parts.clean.x, torch.ones(16, 1)))
    standard = net.model[0]
    told = standard(torch.cat([parts.learned.x, torch.full((64, 1, 64, 64), -1.0)], 1))
    torch.testing.assert_close(told[:, :3].mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    assert bool((told[:, 3] == -1).all())


def test_training_learns_brightness():
    config = replace(SMALL, epochs=12)
    parts = faces.load(config)
    net = faces.build(config, parts)
    fit(net, faces.loss(config, net, parts), faces.length(config), config.lr)
    guess = faces.years(parts.learned.y.mean().expand(16, 1), parts.inside.y).mean()
    assert faces.years(net(parts.inside.x), parts.inside.y).mean() < guess
    assert not net.training


# ---- the claim


def test_ways_change_one_thing_at_a_time():
    assert WAYS[BASE].steps == 0
    assert WAYS["released"] == OFFICIAL
    assert WAYS[way("second", "batch-frozen", 2)] == replace(OFFICIAL, carry_state=False)
    assert set(PAIRS) | set(PAIRS.values()) <= set(WAYS)
    assert len(PAIRS) == 6
    for name, base in PAIRS.items():
        norm = "eval" if WAYS[name].norm == "batch-frozen" else WAYS[name].norm
        assert WAYS[base] == replace(WAYS[name], steps=0, norm=norm)
    net = ITTT(faces.thin_resnet(torch.rand(8, 3, 64, 64)), "channel", neutral=-1.0, presence=False).eval()
    x = torch.randn(8, 3, 64, 64)
    first = net(x)
    second = net(x, net.from_output(first))
    assert torch.allclose(face_claim.predicted(net, x, WAYS[BASE], 4), first, atol=1e-5)
    assert torch.allclose(face_claim.predicted(net, x, WAYS[way("second", "eval", 0)], 4), second, atol=1e-5)


def test_levels_part_the_faces_out_of_range():
    outside = faces.Faces(torch.zeros(4, 3, 64, 64), torch.tensor([[19.0], [61], [66], [95]]) / 50)
    found = {name: chosen.tolist() for name, chosen in face_claim.levels(outside).items()}
    assert found["1 to 5"] == [True, True, False, False]
    assert found["6 to 10"] == [False, False, True, False]
    assert found["over 20"] == [False, False, False, True]
    assert found["younger"] == [True, False, False, False]


def test_the_claim_is_a_record(monkeypatch):
    monkeypatch.setattr(faces, "open_set", drawn(32))
    monkeypatch.setattr(face_claim, "RECIPE", replace(SMALL, train=16, inside=8, outside=16))
    monkeypatch.setattr(face_claim, "BATCHES", (16,))
    monkeypatch.setattr(face_claim, "harmless_lr", lambda *words: 1e-4)
    monkeypatch.setattr(face_claim, "LEVELS", {"1 to 5": (1, 5), "over 5": (6, 200)})
    kept = {way("first", norm, steps) for norm in ("eval", "batch") for steps in (0, 2)} | {"released"}
    monkeypatch.setattr(face_claim, "WAYS", {name: WAYS[name] for name in kept})
    monkeypatch.setattr(face_claim, "PAIRS", {name: PAIRS[name] for name in kept & set(PAIRS)})
    record = results.claim(
        paper="ittt", id="faces", command="uv run --package ittt ittt reproduce faces", wall_s=1.0,
        preset="none", **face_claim.claim(2),
    )  # fmt: skip
    assert results.check(record) == []
    judged = record["details"]["steps_against_none"]
    assert record["statistic"] == -max(row["t"] for row in judged.values())
    assert set(judged) == kept & set(PAIRS)
    assert (
        f"{PAPER}, restated statistics, batches of 16"
        in record["details"]["difference_to_unadapted_first_pass"]
    )
    kept_rows = reproduction.remember("ittt", "faces 0", lambda: {})
    assert "the paper's own form moves" in face_claim.why([kept_rows], judged)


# ---- the verbs


def test_train_evaluate_and_adapt(capsys, monkeypatch):
    monkeypatch.setattr(faces, "open_set", drawn(32))
    words = [word for name, value in FLAGS.items() for word in (f"--{name}", str(value))]
    assert main(["train", "--task", "faces", "--preset", "smoke", *words, "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert "mean absolute error in years" in said
    assert "younger" in said
    words = ["evaluate", "--run", "run", "--batches", "1", "4", "--methods", "none", "it3", "bn"]
    assert main([*words, "--adapt.steps", "1"]) == 0
    assert "batches of 1\n" in capsys.readouterr().out
    for i, x in enumerate(faces.load(SMALL).outside.x[:3]):
        images.write(Path(f"faces/{i}.png"), x, 0.0, 1.0)
    assert main(["adapt", "faces", "--run", "run", "--adapt.steps", "1"]) == 0
    said = capsys.readouterr().out
    assert "no harm: learning rate" in said
    assert "3 images" in said
    with open("adapted.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image"] for row in rows] == ["0.png", "1.png", "2.png"]
    assert all(abs(float(row["age"])) < 1000 for row in rows)
    images.write(Path("faces/9.png"), torch.zeros(3, 70, 80), 0.0, 1.0)
    assert main(["adapt", "faces", "--run", "run"]) == 2
    error = capsys.readouterr().err
    assert "80 x 70 pixels: give faces aligned and resized to 32 x 32" in error
    assert error.count("\n") == 1
    assert main(["evaluate", "--run", "run", "--methods", "plain"]) == 2
    assert "no plain twin" in capsys.readouterr().err
