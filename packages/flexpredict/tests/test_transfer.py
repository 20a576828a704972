"""What an encoder is taken to: propagation of masks, J and F, DAVIS, CLEVR, released optimisers."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flexpredict import checkpoints, clevr, clips, davis, evaluate, propagation, segments
from flexpredict.checkpoints import moments, read, write
from flexpredict.cli import main
from flexpredict.clips import Clip
from flexpredict.config import DIGITS, NetConfig
from flexpredict.masks import Masks
from flexpredict.method import gather
from flexpredict.model import Encoder, Learner
from flexpredict.propagation import Protocol
from flexpredict.train import start_from
from paperkit import UserError, images
from PIL import Image

NET = NetConfig(14, 16, 1, 2, 8, 1, 2)
SMALL = replace(DIGITS, net=replace(NET, patch=4))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- J and F


def stripes(*columns: int) -> np.ndarray:
    """A 10x10 mask whose row i is on up to `columns[i]` (one number: all rows)."""
    ends = columns * 10 if len(columns) == 1 else columns
    return np.arange(10)[None] < np.array(ends)[:, None]


def test_areas_and_outlines_by_hand():
    true = stripes(5)
    assert segments.jaccard(stripes(6), true) == 50 / 60
    assert segments.jaccard(stripes(0), stripes(0)) == 1
    # Outlines are the pixels left of the border; one pixel apart is near enough at this size, three are not.
    assert segments.outline(true).nonzero()[1].tolist() == [4] * 10
    assert segments.outline_score(stripes(6), true) == 1
    assert segments.outline_score(stripes(8), true) == 0
    assert segments.outline_score(stripes(10), true) == 0
    assert segments.outline_score(stripes(10), stripes(0)) == 1
    # A step: of its 14 pixels of outline 6 lie near the straight one, of whose 10 pixels 6 lie near it.
    step = stripes(*[5] * 5, *[9] * 5)
    assert segments.outline(step).sum() == 14
    assert segments.outline_score(step, true) == pytest.approx(2 * (6 / 14) * (6 / 10) / (6 / 14 + 6 / 10))


def test_first_and_last_frame_and_background_do_not_count():
    true = np.stack([stripes(5).astype(int)] * 4)
    found = true.copy()
    found[0], found[3], found[1] = 0, 0, stripes(6)
    assert segments.clip_scores(found, true) == pytest.approx((100 * (50 / 60 + 1) / 2, 100))


def test_a_disk_holds_what_is_within_its_radius():
    assert segments.disk(1).sum() == 5
    assert segments.disk(2).sum() == 13


# ---- propagation


def slow_propagate(features, first, protocol):
    """One cell and one source at a time."""
    frames, rows, columns = features.shape[:3]
    known = {0: first}
    for now in range(1, frames):
        known[now] = torch.zeros_like(first)
        sources = [0, *range(max(1, now - protocol.before), now)]
        for r, c in itertools.product(range(rows), range(columns)):
            found = []
            for source, i, j in itertools.product(sources, range(rows), range(columns)):
                if abs(i - r) <= protocol.radius and abs(j - c) <= protocol.radius:
                    likeness = float(features[now, r, c] @ features[source, i, j])
                    found.append((np.exp(likeness / protocol.temperature), known[source][:, i, j]))
            found = sorted(found, key=lambda each: -each[0])[: protocol.most]
            total = sum(weight for weight, _ in found)
            known[now][:, r, c] = sum(weight / total * label for weight, label in found)
    return torch.stack([known[t] for t in range(frames)])


def test_propagation_equals_the_slow_reference():
    features = torch.nn.functional.normalize(torch.randn(5, 3, 4, 6, dtype=torch.float64), dim=-1)
    first = torch.rand(2, 3, 4, dtype=torch.float64)
    protocol = Protocol(before=2, radius=1, most=3)
    found = propagation.propagate(features, first, protocol)
    torch.testing.assert_close(found, slow_propagate(features, first, protocol))


def test_labels_follow_a_patch_that_moves():
    features = torch.eye(12).reshape(1, 3, 4, 12).repeat(3, 1, 1, 1)
    features[1], features[2] = features[0].roll(1, 1), features[0].roll(2, 1)
    first = torch.zeros(2, 3, 4)
    first[1, 1, 0] = 1
    first[0] = 1 - first[1]
    found = propagation.propagate(features, first, Protocol(most=1)).argmax(1)
    assert found.nonzero().tolist() == [[0, 1, 0], [1, 1, 1], [2, 1, 2]]


def test_soft_labels_become_pixels():
    mask = torch.zeros(8, 12, dtype=torch.int64)
    mask[:4, 4:8] = 2
    soft = propagation.soft_labels(mask, (2, 3), 2)
    assert soft.shape == (3, 2, 3)
    assert soft[2].nonzero().tolist() == [[0, 1]]
    found = propagation.hard_labels(soft, 4, (8, 12))
    assert found.shape == (8, 12)
    assert found[1, 6] == 2
    assert set(found.unique().tolist()) == {0, 2}  # object 1 has no label anywhere


def test_clips_are_what_their_masks_say():
    pictures = clips.photographs()
    one, again = clips.clip(pictures, 3), clips.clip(pictures, 3)
    assert torch.equal(one.frames, again.frames)
    assert one.masks.shape == (clips.FRAMES, clips.SIDE, clips.SIDE)
    assert not torch.equal(one.masks[0], one.masks[-1])
    assert all(0.02 < float(mask.float().mean()) < 0.6 for mask in one.masks)
    outside = (one.masks[0] == 0) & (one.masks[1] == 0)
    assert float((one.frames[0] - one.frames[1])[:, outside].abs().mean()) < 0.2


def test_filmed_clips_change_in_light_and_grain_alone():
    steady = Clip(torch.full((6, 3, 32, 32), 0.5), torch.zeros(6, 32, 32, dtype=torch.int64))
    filmed = clips.filmed(steady, 4)
    assert torch.equal(filmed.frames, clips.filmed(steady, 4).frames)
    assert torch.equal(filmed.masks, steady.masks)
    light = filmed.frames.mean((1, 2, 3)) / 0.5
    assert float((light - 1).abs().max()) < clips.EXPOSURE + 0.01
    assert float(light.std()) > 0.05
    assert float(filmed.frames[0].std()) == pytest.approx(clips.GRAIN, rel=0.1)


# ---- DAVIS


def davis_folder(still: bool) -> Path:
    """Two clips of four frames of 60x100 with one and two objects."""
    root = Path("DAVIS")
    for name, objects in (("one", 1), ("two", 2)):
        for t in range(4):
            frame, mask = np.full((60, 100, 3), 90, np.uint8), np.zeros((60, 100), np.uint8)
            for label in range(1, objects + 1):
                left = 10 + 30 * (label - 1) + (0 if still else 4 * t)
                mask[15:45, left : left + 25] = label
                frame[mask == label] = (250, 40 * label, 10)
            for part, ending, made in (("JPEGImages", "jpg", frame), ("Annotations", "png", mask)):
                place = root / part / "480p" / name
                place.mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(made)
                if ending == "png":
                    picture = picture.convert("P")
                    picture.putdata(mask.flatten().tolist())
                picture.save(place / f"{t:05d}.{ending}", quality=95)
    return root


def test_davis_by_the_real_command(monkeypatch, capsys):
    """Patch 14, a grid that is not square and not the encoder's own, two objects."""
    monkeypatch.setattr(davis, "SHORT", 84)
    root = davis_folder(still=True)
    torch.manual_seed(0)
    encoder = Encoder(NET, 3, (4, 4))
    torch.save({f"module.{k}": v for k, v in encoder.state_dict().items()}, "net.pth")
    words = ["evaluate", "net.pth", "--heads", "2", "--probe", "davis"]
    assert main(words) == 2
    assert "--data" in capsys.readouterr().err
    assert main([*words, "--data", str(root), "--device", "cpu"]) == 0
    found = json.loads(Path("evaluation.json").read_text())["davis"]
    assert set(found["clips"]) == {"one", "two"}
    assert 60 < found["J"] <= 100  # nothing moves: what is lost is lost at the patches' borders
    assert found["J&F"] == pytest.approx((found["J"] + found["F"]) / 2)
    assert main([*words, "--data", str(root), "--limit", "1"]) == 0
    assert len(json.loads(Path("evaluation.json").read_text())["davis"]["clips"]) == 1


def test_davis_sizes():
    assert davis.fitted((480, 854), 16) == (480, 832)
    assert davis.fitted((480, 854), 14) == (476, 854)
    assert davis.fitted((1920, 1080), 16) == (832, 480)


def test_davis_folders_that_are_none(capsys):
    assert main(["evaluate", "x.pth", "--probe", "davis"]) == 2
    capsys.readouterr()
    with pytest.raises(UserError, match="JPEGImages/480p"):
        davis.clips(Path("."))
    root = davis_folder(still=True)
    (root / "Annotations/480p/two/00002.png").unlink()
    with pytest.raises(UserError, match="4 frames and 3 masks"):
        davis.clips(root)
    with pytest.raises(UserError, match="not a picture of object numbers"):
        davis.read_mask(root / "JPEGImages/480p/one/00000.jpg")


# ---- CLEVR


def test_clevr_labels(monkeypatch):
    monkeypatch.setenv("PAPERKIT_DATA", ".")
    depths = {"train": [[8.2, 12.0, 9.0], [10.5] * 4], "val": [[7.0] * 3, [9.7] * 10, [9.0] * 5]}
    for part, scenes in depths.items():
        told = []
        for i, each in enumerate(scenes):
            name = f"CLEVR_{part}_{i:06d}.png"
            images.write(Path("CLEVR_v1.0/images", part, name), torch.rand(3, 10, 20) * 2 - 1)
            told.append({"image_filename": name, "objects": [{"pixel_coords": [1, 2, d]} for d in each]})
        Path("CLEVR_v1.0/scenes").mkdir(exist_ok=True)
        Path(f"CLEVR_v1.0/scenes/CLEVR_{part}_scenes.json").write_text(json.dumps({"scenes": told}))
    assert clevr.open_clevr("clevr-count", "train").labels.tolist() == [0, 1]
    assert clevr.open_clevr("clevr-count", "test").labels.tolist() == [0, 7, 2]
    assert clevr.open_clevr("clevr-dist", "train").labels.tolist() == [1, 5]
    assert clevr.open_clevr("clevr-dist", "test").labels.tolist() == [0, 4, 3]
    assert (len(clevr.classes("clevr-count")), len(clevr.classes("clevr-dist"))) == (8, 6)
    assert evaluate.squashed(clevr.open_clevr("clevr-dist", "test")[0][0], 8).shape == (3, 8, 8)
    Path("CLEVR_v1.0/scenes/CLEVR_val_scenes.json").write_text("{}")
    with pytest.raises(UserError, match="fetch it again"):
        clevr.open_clevr("clevr-dist", "test")


# ---- the released optimiser, and the order of its blocks


def test_released_moments_find_their_parameters():
    """AdamW's groups as the released code makes them, with numbers for what never had a gradient."""
    torch.manual_seed(0)
    learner = Learner(SMALL, 3, (4, 4))
    for parameter in learner.parameters():
        parameter.grad = torch.randn_like(parameter)
    ours = torch.optim.AdamW(learner.parameters(), 1e-3)
    ours.step()
    own = {name: ours.state[p] for name, p in learner.named_parameters()}
    encoder, predictor = learner.encoder.state_dict(), learner.predictor.state_dict()
    published = checkpoints._published_predictor(predictor)
    source = checkpoints.Checkpoint("x", "run", encoder, encoder, published)
    write(source, "stop", Path("plain.pth"))
    content = torch.load("plain.pth", weights_only=True)
    state, sizes, number = {}, [], 0
    for plain in (False, True):
        for part in ("encoder", "predictor"):
            keys = [k.removeprefix("module.") for k, w in content[part].items()
                    if (w.ndim == 1 or "bias" in k) == plain]  # fmt: skip
            sizes.append(list(range(number, number + len(keys))))
            for key in keys:
                if "pos_embed" not in key:
                    state[number] = own[f"{part}.{key}"]
                number += 1
    content["opt"] = {"state": state, "param_groups": [{"params": each} for each in sizes]}
    torch.save(content, "trained.pth")
    found = moments(read("trained.pth"))
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name]["exp_avg"], own[name]["exp_avg"]) for name in own)
    fresh = Learner(SMALL, 3, (4, 4))
    optimiser = torch.optim.AdamW(fresh.parameters(), 1e-3)
    start_from("trained.pth", fresh, Encoder(SMALL.net, 3, (4, 4)), optimiser)
    for name, p in fresh.named_parameters():
        assert torch.equal(optimiser.state[p]["exp_avg_sq"], own[name]["exp_avg_sq"]), name
    content["opt"]["param_groups"].pop()
    torch.save(content, "broken.pth")
    with pytest.raises(UserError, match="its optimiser has groups of"):
        moments(read("broken.pth"))


def test_two_contexts_of_an_image_pair_with_targets_batch_by_batch():
    """D5: predictions of the first contexts come first, so targets are repeated whole, not one by one."""
    torch.manual_seed(0)
    learner, pictures = Learner(SMALL, 3, (4, 4)).eval(), torch.randn(2, 3, 16, 16)
    contexts = torch.tensor([[[0, 1, 2], [3, 7, 11]], [[4, 5, 6], [0, 4, 8]]])  # image, context
    targets = torch.tensor([[[12, 13], [14, 15]], [[9, 10], [13, 14]]])
    both = Masks(contexts.transpose(0, 1).reshape(4, 3), targets.repeat(2, 1, 1))
    found = learner(pictures.repeat(2, 1, 1, 1), both)
    for context, image in itertools.product(range(2), range(2)):
        alone = Masks(contexts[image : image + 1, context], targets[image : image + 1])
        own = learner(pictures[image : image + 1], alone)
        torch.testing.assert_close(found[2 * context + image], own[0])
    everywhere = torch.arange(32.0).reshape(2, 16, 1)
    wanted = gather(everywhere, targets).repeat(2, 1, 1, 1)
    assert torch.equal(gather(everywhere.repeat(2, 1, 1), both.targets), wanted)
    wrong = gather(everywhere, targets).repeat_interleave(2, 0)
    assert not torch.equal(wrong, wanted)


def test_dry_run_of_the_paper_without_its_data(monkeypatch, capsys):
    monkeypatch.setenv("PAPERKIT_DATA", ".")
    assert main(["train", "-n", "--preset", "stop_vitb16"]) == 0
    said = capsys.readouterr().out
    assert "not at hand" in said
    assert "14x14 patches" in said
    assert "375,000 steps of 2,048" in said
