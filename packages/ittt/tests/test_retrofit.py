"""The retrofitted SqueezeNet, with random weights in the place of the published ones."""

import pytest
import torch
from ittt import retrofit
from paperkit import UserError, results
from paperkit.data import ArraySet, Facts
from torchvision import models

CLASSES = [3, 500, 999]


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A data folder with SqueezeNet's file."""
    torch.manual_seed(0)
    net = models.squeezenet1_0()
    (tmp_path / "weights").mkdir()
    (tmp_path / retrofit.FILE).touch()
    monkeypatch.setattr(retrofit, "load_weights", lambda path: net.state_dict())
    monkeypatch.setenv("PAPERKIT_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(retrofit, "SIDE", 64)
    return net.eval()


def test_the_model_is_the_published_one_at_the_classes(published):
    x = torch.rand(2, 3, 64, 64)
    found = retrofit.squeezenet(CLASSES)(x)
    scale = [torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    expected = published((x - scale[0]) / scale[1])[:, CLASSES]
    assert torch.allclose(found, expected, atol=1e-5)


def test_identity_is_exact_and_ends_with_training(published, monkeypatch):
    monkeypatch.setattr(retrofit, "named", lambda: retrofit.Named(["a", "b", "c"], [0, 1, 2], CLASSES))
    x, y = torch.rand(6, 3, 64, 64), torch.tensor([0, 1, 2, 0, 1, 2])
    assert set(retrofit.identity(x).values()) == {0.0}
    monkeypatch.setattr(retrofit, "BATCH", 3)
    net, plain = retrofit.fine_tuned(0, x, y), retrofit.squeezenet(CLASSES)
    assert not torch.equal(net(x), plain(x))
    assert not torch.equal(net(x), net(x, torch.eye(3).repeat(2, 1)))
    before = [(name, value) for name, value in net.named_parameters() if name.startswith("model.1.")]
    for name, value in before:  # what lies before the branch stays as published
        assert torch.equal(value, plain.get_parameter(name.removeprefix("model.")))


def test_missing_weights_get_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERKIT_DATA", str(tmp_path))
    with pytest.raises(UserError, match="put SqueezeNet"):
        retrofit.squeezenet(CLASSES)


def images_of(split: str, n: int = 12) -> ArraySet:
    generator = torch.Generator().manual_seed(len(split))
    pixels = torch.randint(0, 256, (n, 3, 64, 64), generator=generator, dtype=torch.uint8)
    classes = [f"n{i}" for i in range(4)]
    return ArraySet(
        Facts("tiny-imagenet", "none", split), pixels.numpy(), (torch.arange(n) % 4).numpy(), classes
    )


def test_the_claim_is_a_record(published, monkeypatch):
    monkeypatch.setattr(retrofit, "named", lambda: retrofit.Named(["a", "b", "c"], [0, 1, 3], CLASSES))
    monkeypatch.setattr(retrofit, "open_set", lambda name, split: images_of(split))
    for name, value in {"EACH": 2, "SHOWN": 4, "BATCH": 2, "EPOCHS": 1, "CORRUPTIONS": ("contrast",)}.items():
        monkeypatch.setattr(retrofit, name, value)
    x, y = retrofit.pictures("test", 9)
    assert len({tuple(image.flatten()[:9].tolist()) for image in x}) == 9
    assert set(y.tolist()) == {0, 1, 2}
    again, _ = retrofit.pictures("test", 4, 4)
    assert torch.equal(again, x[4:8])
    with pytest.raises(UserError, match="has 9 test images"):
        retrofit.pictures("test", 4, 6)
    record = results.claim(
        paper="ittt", id="retrofit", command="uv run --package ittt ittt reproduce retrofit", wall_s=1.0,
        preset="none", **retrofit.claim(2),
    )  # fmt: skip
    assert results.check(record) == []
    assert record["holds"]
    assert set(record["details"]["errors_and_gap"]) == {"published", "gap", "none", "it3", "un-frozen"}
