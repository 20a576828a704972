"""Any-scale super-resolution: the heads, the training, the verb, bad input."""

from pathlib import Path

import pytest
import torch
from ccconv import anyscale, sr
from ccconv.cli import main
from ccconv.config import SRConfig
from ccconv.sr import patches, trained
from ccconv.upscaler import HEADS, Upscaler, _at, enlarged, pair, projected, reduced
from paperkit import data, images
from paperkit.run import checkpoints

TINY = SRConfig(width=4, blocks=1, steps=4, batch=2, patch=8, save_every=2)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_starts_at_the_enlargement_and_learns(head):
    torch.manual_seed(0)
    net, x = Upscaler(head, 4, 1), torch.rand(2, 3, 9, 7)
    scale = pair([2.5, 1.5])
    y = net(x, (22, 11), scale)
    torch.testing.assert_close(y, enlarged(x, (22, 11), scale))
    y.square().sum().backward()
    assert any(float(p.grad.abs().sum()) > 0 for p in net.head.parameters() if p.grad is not None)


def test_liif_neighbours_are_weighted_by_area():
    """A read-out of the features alone is their bilinear interpolation."""
    net = Upscaler("liif", 4, 1).head
    net.mlp = torch.nn.Sequential(torch.nn.Linear(40, 1))
    with torch.no_grad():
        net.mlp[0].weight.zero_()
        net.mlp[0].bias.zero_()
        net.mlp[0].weight[0, 4] = 1  # the middle tap of the first channel
    f = torch.rand(1, 4, 6, 6)
    y = net(f, (12, 12), pair(2))
    wanted = torch.nn.functional.interpolate(f[:, :1], (12, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)


def test_meta_head_reads_the_pixel_above_left():
    f = torch.arange(16.0).reshape(1, 1, 4, 4)
    place = torch.arange(8) / 2
    assert _at(f, place.floor(), place.floor())[0, 0, :, 0].tolist() == [0, 0, 4, 4, 8, 8, 12, 12]
    assert projected(4, 8, pair(2)[0]).tolist() == [-0.25, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25]


def test_reduced_and_enlarged_share_their_centre():
    image = torch.rand(3, 50, 41)
    small, large = reduced(image, pair([2.7, 3.0]))
    assert small.shape == (1, 3, 18, 13)
    assert large.shape == (1, 3, 49, 39)
    flipped = reduced(large[0].flip(1, 2), pair([2.7, 3.0]))[0]
    torch.testing.assert_close(flipped.flip(2, 3), small, rtol=0, atol=1e-5)


def test_training_goes_on_where_it_was(monkeypatch, tmp_path):
    kept = tmp_path / "kept"
    photos = [data.photograph("coffee")]
    whole = trained(TINY, photos)
    monkeypatch.setattr(sr, "patches", lambda *words: patches(*words) if words[2] < 4 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trained(TINY, photos, folder=kept)
    monkeypatch.undo()
    broken = trained(TINY, photos, folder=kept)
    assert [path.name for path in checkpoints(kept)] == ["00000002", "00000004"]
    for ours, theirs in zip(broken.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_short_training_comes_above_the_cubic_enlargement():
    """Where the recipe kills the ReLUs, or settles on adding nothing, this is 0 dB."""
    photo = data.photograph("coffee")
    config = SRConfig(width=8, blocks=1, steps=150, batch=4, patch=12, seed=100)
    net = trained(config, [photo[:, :, :400]])
    image = {"rest": photo[:, 100:260, 420:580].float() / 255}
    assert anyscale.scores(net, image, (2, 2))[0] > anyscale.scores(None, image, (2, 2))[0] + 0.1


def test_patches_come_by_step():
    photos = [data.photograph("coffee")]
    small, large = patches(photos, TINY, 3)
    again = patches(photos, TINY, 3)
    assert torch.equal(small, again[0])
    assert small.shape == (2, 3, 8, 8)
    assert 8 <= large.shape[-1] <= 32
    assert float(large.min()) >= 0


def test_sr_enlarges_a_file(capsys):
    images.write("in.png", data.photograph("coffee")[:, :20, :30])
    words = ["--steps", "2", "--width", "4", "--blocks", "1", "--batch", "2", "--patch", "8"]
    assert main(["sr", "in.png", "--scale", "1.7", *words]) == 0
    assert images.read("enlarged.png").shape == (3, 34, 51)
    assert "training on photographs" in capsys.readouterr().out
    assert main(["sr", "in.png", "--scale", "2", "1.5", "--out", "two.png", *words]) == 0
    assert images.read("two.png").shape == (3, 40, 45)
    assert "training" not in capsys.readouterr().out


def test_claim_on_tiny_networks(monkeypatch):
    monkeypatch.setattr(anyscale, "SMALL", TINY)
    monkeypatch.setattr(anyscale, "CUT", 48)
    monkeypatch.setattr(anyscale, "TEST", ("chelsea", "camera"))
    monkeypatch.setattr(anyscale, "SEEN", ((2, 2),))
    monkeypatch.setattr(anyscale, "UNSEEN", ((2, 3.3),))
    monkeypatch.setattr(anyscale, "TIMED", (2,))
    monkeypatch.setenv("PAPERKIT_DATA", str(Path.cwd()))
    found = anyscale.any_scale_sr(2)
    assert found["details"]["missing"] == ["Set5", "Set14"]
    assert set(found["details"]["checks"]) == {
        "above cubic at x2", "within 0.1 dB of liif", "within 0.1 dB of meta",
        "3 times faster than liif at 2", "3 times faster than meta at 2",
    }  # fmt: skip
    assert len(found["ours"]) == 2


def test_psnr_is_that_of_luma():
    a = torch.full((1, 3, 8, 8), 0.5)
    assert anyscale.psnr(a + 0.1, a, 2) == pytest.approx(
        -20 * torch.tensor(0.1 * 219 / 255).log10().item(), abs=1e-4
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("in.png", "--scale", "0"), "--scale"),
        (("in.png", "--scale", "2", "2", "2"), "--scale"),
        (("in.png", "--out", "x.jpg"), ".png"),
        (("nowhere.png",), "nowhere.png"),
        (("in.png", "--lr", "0"), "--lr"),
        (("in.png", "--data", "digits"), "of 8 px a side"),
    ],
)
def test_bad_sr_is_one_line(capsys, words, expected):
    images.write("in.png", data.photograph("coffee")[:, :8, :8])
    assert main(["sr", *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
