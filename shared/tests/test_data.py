"""The data root, embedded sets, random draws, batches by (seed, step), and one count of the real data."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from paperkit import UserError, data
from paperkit.data import root as data_root_module


def one_line(caught, *words):
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert str(word) in text
    return text


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- the data root ---


def test_the_root_is_the_argument_the_variable_or_the_cache(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.setenv("PAPERKIT_DATA", str(tmp_path / "a"))
    assert data.data_root(tmp_path / "b") == tmp_path / "b"
    assert data.data_root() == tmp_path / "a"
    monkeypatch.delenv("PAPERKIT_DATA")
    monkeypatch.setattr(data_root_module.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.data_root() == tmp_path / "cache" / "paperkit" / "data"
    assert not (tmp_path / "cache").exists()


def test_a_root_that_is_missing_or_a_file_or_unreadable_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERKIT_DATA", str(tmp_path / "none"))
    with pytest.raises(UserError, match="does not exist") as caught:
        data.open_set("MNIST")
    one_line(caught, tmp_path / "none", "PAPERKIT_DATA")
    put(tmp_path / "file", b"")
    with pytest.raises(UserError, match="is a file") as caught:
        data.open_set("MNIST", root=tmp_path / "file")
    assert "PAPERKIT_DATA" not in one_line(caught, tmp_path / "file")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:  # a folder's mode does not stop an administrator
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(UserError, match="cannot be read: Permission denied") as caught:
            data.open_set("MNIST", root=tmp_path)
    one_line(caught)


def test_embedded_sets_need_no_root(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERKIT_DATA", str(tmp_path / "none"))
    assert len(data.open_set("digits")) == 1297
    assert len(data.open_table("diabetes")) == 442


@pytest.mark.parametrize(
    "name", ["MNIST", "FashionMNIST", "cifar10", "celeba", "tiny-imagenet", "utkface", "Set5"]
)
def test_a_missing_set_says_file_size_source_and_place(tmp_path, name):
    with pytest.raises(UserError, match=r"is missing: put .* into .* \(.* [MG]B, from .*\)") as caught:
        data.open_set(name, root=tmp_path)
    public = name in ("MNIST", "FashionMNIST", "cifar10")
    assert ("--download" in one_line(caught, name, tmp_path)) == public


def test_download_is_refused_where_there_is_none(tmp_path):
    with pytest.raises(UserError, match="utkface has no public download") as caught:
        data.open_set("utkface", root=tmp_path, download=True)
    one_line(caught, tmp_path)


def test_an_unknown_name_suggests_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean MNIST") as caught:
        data.open_set("mnits", root=tmp_path)
    one_line(caught)
    with pytest.raises(UserError, match="names are digits, "):
        data.open_set("qqqqqq", root=tmp_path)
    with pytest.raises(UserError, match="open_pairs"):
        data.open_set("aerial-roads", root=tmp_path)


# --- embedded ---


def test_digits_are_exact_floats_and_the_splits_part_them():
    from sklearn.datasets import load_digits

    raw, labels = load_digits(return_X_y=True)
    x, y = data.digits()
    assert x.dtype == torch.float32
    assert x.shape == (1797, 1, 8, 8)
    assert torch.equal((x + 1) * 8, torch.from_numpy(raw).float().reshape(-1, 1, 8, 8))
    assert y.tolist() == labels.tolist()
    train, test = data.digits("train")[0], data.digits("test")[0]
    assert (len(train), len(test)) == (1297, 500)
    both = torch.cat([train, test]).flatten(1)
    order = sorted(range(1797), key=lambda i: both[i].tolist())
    expected = sorted(x.flatten(1).tolist())
    assert [both[i].tolist() for i in order] == expected


def test_the_digit_set_is_the_floats_in_bytes():
    opened = data.open_set("digits", "test")
    pixels, labels = opened.tensor()
    x, y = data.digits("test")
    assert torch.equal(pixels, ((x + 1) * 127.5).round().to(torch.uint8))
    assert torch.equal(labels, y)
    assert len(set(y.tolist())) == 10
    assert (opened.name, opened.stand_in, opened.classes[3]) == ("digits", False, "3")
    with pytest.raises(UserError, match="train, test and all, not 'val'"):
        data.open_set("digits", "val")


def test_photographs_and_faces_ship_with_the_wheel():
    photographs = data.open_set("photographs", "all")
    assert len(photographs) == 12
    for i in range(len(photographs)):
        image, label = photographs[i]
        assert image.shape[0] == 3
        assert min(image.shape[1:]) >= 300
        assert label == data.UNLABELLED
    assert torch.equal(data.photograph("astronaut"), photographs[0][0])
    with pytest.raises(UserError, match="there are astronaut, "):
        data.photograph("dog")
    faces, labels = data.open_set("lfw-subset").tensor()
    assert faces.shape == (200, 1, 25, 25)
    assert labels.tolist() == [1] * 100 + [0] * 100
    with pytest.raises(UserError, match="no splits"):
        data.open_set("photographs", "test")


# --- the common object ---


def test_subsets_are_random_nested_and_repeatable():
    digits = data.open_set("digits", "all")
    small, large = digits.subset(50, 3), digits.subset(100, 3)
    assert torch.equal(small.tensor()[0], large.tensor()[0][:50])
    assert not torch.equal(small.tensor()[0], digits.subset(50, 4).tensor()[0])
    assert torch.equal(digits.tensor(limit=50, seed=3)[0], small.tensor()[0])
    assert len({tuple(image.flatten().tolist()) for image in digits.subset(1797).tensor()[0]}) == len(
        {tuple(image.flatten().tolist()) for image in digits.tensor()[0]}
    )
    assert str(small) == "digits, 50 of 1,797"
    assert str(digits) == "digits, 1,797"
    assert small.subset(20).total == 1797
    image, label = small[7]
    assert torch.equal(image, small.tensor()[0][7])
    assert label == small.labels[7]
    with pytest.raises(IndexError):
        small[50]


def test_holdout_parts_the_set():
    digits = data.open_set("digits", "all").subset(100)
    rest, held = digits.holdout(30, 1)
    assert (len(rest), len(held)) == (70, 30)
    together = sorted([*rest._index.tolist(), *held._index.tolist()])
    assert together == sorted(digits._index.tolist())
    assert digits.holdout(30, 1)[1]._index.tolist() == held._index.tolist()


@pytest.mark.parametrize("n", [0, -1])
def test_sizes_below_one_are_refused(n):
    digits = data.open_set("digits")
    for ask in (digits.subset, digits.holdout):
        with pytest.raises(UserError, match="n must be at least 1"):
            ask(n)
    with pytest.raises(UserError, match="n must be at least 1"):
        digits.tensor(limit=n)
    with pytest.raises(UserError, match="size must be at least 1"):
        digits.tensor(size=n)


def test_more_than_there_is_is_refused():
    digits = data.open_set("digits")
    with pytest.raises(UserError, match="has no 1,298 images: ask for at most 1,297"):
        digits.tensor(limit=1298)
    with pytest.raises(UserError, match="nothing would be left"):
        digits.holdout(1297)
    with pytest.raises(UserError, match="a seed is"):
        digits.subset(3, seed=-1)


# --- batches by (seed, step) ---


def test_an_epoch_holds_every_position_once_and_drops_the_rest():
    for n, batch in [(10, 5), (10, 3), (7, 7), (1, 1)]:
        steps = n // batch
        epochs = [
            np.concatenate([data.batch_indices(n, batch, 4, e * steps + s) for s in range(steps)])
            for e in range(40)
        ]
        for epoch in epochs:
            assert len(set(epoch.tolist())) == steps * batch
            assert set(epoch.tolist()) <= set(range(n))
        assert n == 1 or len({tuple(epoch.tolist()) for epoch in epochs}) > 30
        assert set(np.concatenate(epochs).tolist()) == set(range(n))  # what is dropped changes


def test_a_batch_larger_than_the_set_repeats_it_evenly():
    for n, batch in [(3, 7), (1, 5), (4, 8), (6, 7)]:
        for step in range(5):
            counts = np.bincount(data.batch_indices(n, batch, 0, step), minlength=n)
            assert counts.sum() == batch
            assert counts.max() - counts.min() <= 1


def test_batches_depend_on_seed_and_step_only():
    once = [data.batch_indices(1000, 32, 9, step) for step in range(70)]
    for step in (69, 3, 40):  # in another order, after other sets
        data.batch_indices(17, 4, 1, 2)
        assert np.array_equal(data.batch_indices(1000, 32, 9, step), once[step])
    assert not np.array_equal(data.batch_indices(1000, 32, 10, 0), once[0])
    once[0][:] = 0  # a caller may write into its batch
    assert data.batch_indices(1000, 32, 9, 0).max() > 0


def philox(n, key, counter):
    """The first n words of Philox4x64-10 (Salmon et al. 2011) as NumPy counts: from counter + 1."""
    mask, words = 2**64 - 1, []
    for block in range(1, n // 4 + 2):
        c = [(counter + block) >> 64 * i & mask for i in range(4)]
        k0, k1 = key & mask, key >> 64
        for _ in range(10):
            p0, p1 = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = [p1 >> 64 ^ c[1] ^ k0, p1 & mask, p0 >> 64 ^ c[3] ^ k1, p0 & mask]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        words += c
    return words[:n]


def test_the_order_is_that_of_every_version_and_platform():
    for n, seed, epoch in [(10, 0, 0), (9, 123, 2), (8, 2**64 - 1, 7)]:
        words = philox(n, seed | epoch << 64, zlib.crc32(b"batches") << 192)
        assert data.batch_indices(n, n, seed, epoch).tolist() == sorted(range(n), key=words.__getitem__)
    assert data.batch_indices(10, 4, 123, 5).tolist() == [8, 1, 0, 6]


def test_places_in_an_epoch_are_uniform():
    first = np.array([data.batch_indices(8, 8, seed, 0) for seed in range(4000)])
    counts = np.stack([np.bincount(first[:, place], minlength=8) for place in range(8)])
    expected = 4000 / 8
    assert ((counts - expected) ** 2 / expected).sum() < 49 + 5 * np.sqrt(2 * 49)  # chi squared, 49 degrees


@pytest.mark.parametrize(("n", "batch", "step"), [(0, 1, 0), (5, 0, 0), (5, -1, 0), (5, 1, -1), (-2, 1, 0)])
def test_batches_of_bad_sizes_are_refused(n, batch, step):
    with pytest.raises(UserError, match="batches need n >= 1"):
        data.batch_indices(n, batch, 0, step)


def test_a_loader_resumes_where_it_stopped():
    digits = data.open_set("digits").subset(50)
    unbroken = iter(data.Loader(digits, 16, seed=5, flip=True))
    steps = [next(unbroken) for _ in range(9)]
    resumed = iter(data.Loader(digits, 16, seed=5, start=6, flip=True))
    for images, labels in steps[6:]:
        again, same = next(resumed)
        assert torch.equal(images, again)
        assert torch.equal(labels, same)


def test_processes_share_one_batch():
    digits = data.open_set("digits").subset(50)
    whole = next(iter(data.Loader(digits, 12, seed=1, start=3, flip=True)))[0]
    for rank in range(3):
        part = next(iter(data.Loader(digits, 12, seed=1, start=3, flip=True, rank=rank, processes=3)))[0]
        assert torch.equal(part, whole[rank::3])
    with pytest.raises(UserError, match="cannot be shared by 5 processes"):
        data.Loader(digits, 12, seed=1, processes=5)


def test_flips_mirror_about_half():
    digits = data.open_set("digits").subset(50)
    plain, flipped = iter(data.Loader(digits, 50, seed=1)), iter(data.Loader(digits, 50, seed=1, flip=True))
    mirrored = 0
    for _ in range(10):
        for before, after in zip(next(plain)[0], next(flipped)[0], strict=True):
            assert torch.equal(before, after) or torch.equal(before.flip(-1), after)
            mirrored += not torch.equal(before, after)
    assert 180 < mirrored < 320


# --- the real data, where PAPERKIT_DATA names it ---

ROOT = os.environ.get("PAPERKIT_DATA")
real = pytest.mark.skipif(not ROOT, reason="PAPERKIT_DATA names no real data")
SETS = [  # name, folder of the manifest, split there, our split, size of an image
    ("MNIST", "MNIST", "train", "train", (1, 28, 28)),
    ("MNIST", "MNIST", "test", "test", (1, 28, 28)),
    ("FashionMNIST", "FashionMNIST", "train", "train", (1, 28, 28)),
    ("FashionMNIST", "FashionMNIST", "test", "test", (1, 28, 28)),
    ("cifar10", "cifar10", "train", "train", (3, 32, 32)),
    ("cifar10", "cifar10", "test", "test", (3, 32, 32)),
    ("tiny-imagenet", "tiny-imagenet", "train", "train", (3, 64, 64)),
    ("tiny-imagenet", "tiny-imagenet", "val", "test", (3, 64, 64)),
    ("imagenet-sample", "imagenet-sample", None, "all", None),
    ("utkface", "utkface", None, "all", (3, 64, 64)),
]


def items(folder, split=None):
    manifest = json.loads((Path(ROOT or "") / folder / "MANIFEST.json").read_text(encoding="utf-8"))
    return manifest["items"] if split is None else manifest["items"][split]


@real
@pytest.mark.parametrize(("name", "folder", "split", "ours", "size"), SETS)
def test_every_set_has_the_images_that_its_manifest_counts(name, folder, split, ours, size):
    opened = data.open_set(name, ours)
    assert len(opened) == items(folder, split)
    drawn = opened.subset(100)
    for image, label in (drawn[i] for i in range(100)):
        assert size is None or tuple(image.shape) == size
        assert size is not None or min(image.shape[1:]) == 256
        assert label >= 0
    if opened.classes:  # all classes, equally many of each, but for MNIST
        counts = opened.labels.bincount(minlength=len(opened.classes))
        assert counts.min() == counts.max() or (name == "MNIST" and counts.min() > 850)
    stands_in = name in ("cifar10", "tiny-imagenet")
    assert (opened.stand_in, opened.name != name) == (stands_in, stands_in)


@real
def test_the_other_folders_hold_what_they_should():
    for split, theirs in (("train", "train"), ("test", "validation")):
        pairs = data.open_pairs(split)
        assert len(pairs) == items("aerial-roads", theirs)
        assert tuple(pairs.tensor()[0].shape[1:]) == (3, 400, 400)
        assert 0.05 < pairs.tensor()[1].float().mean() < 0.5
    assert [len(data.open_set(name)) for name in ("Set5", "Set14", "SIGD16", "Places50")] == [5, 14, 16, 50]
    samples = data.open_set("single-images/published-results/Places50_GPNN_high_var")
    assert isinstance(samples, data.FileSet)
    assert [name.split(".")[0] for name in samples.names] == [str(k) for k in range(1, 51)]
    assert data.open_frames("airballoons").shape == (20, 3, 144, 256)
    assert [len(data.list_clips(name)) for name in ("hpvaegan", "singangif")] == [10, 5]
    assert {len(clip.ours) for clip in data.list_clips("hpvaegan")} == {10}
    for name in data.UCI:
        table = data.open_table(name)
        assert len(table.test_rows) == 20
        assert all(round(0.1 * len(table)) - len(rows) in (0, 1) for rows in table.test_rows)
    ages = data.open_set("utkface", "all").labels
    assert ages.min() > 0
    assert ages.max() < 120
