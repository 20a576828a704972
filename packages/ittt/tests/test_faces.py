"""Ages from faces: ranges, network, training, ways; with drawn pictures in the place of UTKFace."""

import pytest
import torch
from ittt import ITTT, faces
from ittt.faces import BASE, OFFICIAL, WAYS
from paperkit import UserError, results
from paperkit.data import ArraySet, Facts


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Twenty faces of every decade whose brightness is their age."""
    ages = torch.arange(1, 100).repeat_interleave(3)
    pixels = (ages * 2).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 64, 64).contiguous()
    pixels = (pixels + torch.randint(0, 20, pixels.shape, generator=torch.Generator().manual_seed(0))).byte()

    def opened(name: str, split: str) -> ArraySet:
        return ArraySet(Facts(name, "none", split), pixels.numpy(), ages.numpy(), ())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(faces, "open_set", opened)
    values = {"TRAIN": 64, "HELD": 8, "INSIDE": 16, "OUTSIDE": 32, "EPOCHS": 1, "BATCH": 16}
    for name, value in values.items():
        monkeypatch.setattr(faces, name, value)
    faces.load.cache_clear()
    yield
    faces.load.cache_clear()


def test_training_never_sees_an_age_out_of_range(small):
    learned, inside, outside = faces.load()
    for part in (learned, inside):
        assert float(part.y.min()) * 50 >= 20
        assert float(part.y.max()) * 50 <= 60 + 1e-4
    assert not bool(((outside.y * 50 >= 20 - 1e-4) & (outside.y * 50 <= 60 + 1e-4)).any())
    assert torch.allclose(learned.x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(learned.x.std((0, 2, 3)), torch.ones(3), atol=1e-3)


def test_too_few_faces_get_one_line(small, monkeypatch):
    monkeypatch.setattr(faces, "TRAIN", 1000)
    with pytest.raises(UserError, match="too few"):
        faces.load()


def test_the_network_takes_the_age_as_a_channel():
    net = faces.thin_resnet().eval()
    assert net(torch.zeros(2, 4, 64, 64)).shape == (2, 1)
    assert sum(p.numel() for p in net.parameters()) < 200_000


def test_ways_change_one_thing_at_a_time():
    assert len(WAYS) == 2 * 5 + 2
    assert WAYS[BASE].steps == 0
    assert WAYS["released"] == OFFICIAL
    assert WAYS["second pass, batch-frozen, 2 steps"] == OFFICIAL.__class__(
        steps=2, lr=5e-4, norm="batch-frozen", score="second", rollback=False, measure=False
    )
    net = ITTT(faces.thin_resnet(), "channel", neutral=-1.0, presence=False).eval()
    x = torch.randn(8, 3, 64, 64)
    first = net(x)
    second = net(x, net.from_output(first))
    assert torch.allclose(faces.predicted(net, x, WAYS[BASE], 4), first, atol=1e-5)
    assert torch.allclose(faces.predicted(net, x, WAYS["second pass, eval, 0 steps"], 4), second, atol=1e-5)


def test_training_learns_brightness(small, monkeypatch):
    monkeypatch.setattr(faces, "EPOCHS", 25)
    learned, inside, _ = faces.load()
    net = faces.train(0, learned)
    guess = 50 * (inside.y - learned.y.mean()).abs().mean()
    assert 50 * (net(inside.x) - inside.y).abs().mean() < guess
    assert not net.training


def test_the_claim_is_a_record(small, monkeypatch):
    monkeypatch.setattr(faces, "BATCHES", (8, 16))
    monkeypatch.setattr(faces, "OUTSIDE", 16)
    some = (BASE, "second pass, batch, 2 steps", "second pass, eval, 0 steps", "released")
    monkeypatch.setattr(faces, "WAYS", {name: WAYS[name] for name in some})
    record = results.claim(
        paper="ittt", id="faces", command="uv run --package ittt ittt reproduce faces", wall_s=1.0,
        preset="none", **faces.claim(2),
    )  # fmt: skip
    assert results.check(record) == []
    assert f"{BASE}, batches of 16" not in record["details"]["difference_to_unadapted_first_pass"]
    assert len(record["arms"]) == 2 * 2 + 1
