"""Folders and archives of images, CelebA, tables, pairs and clips: built small, and damaged in every way."""

import gzip
import io
import json
import os
import pickle
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from paperkit import UserError, data
from paperkit.data import sources
from paperkit.data.catalogue import open_set
from PIL import Image


def one_line(caught, *words):
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert str(word) in text
    return text


def png(value, size=(3, 2)):
    """A PNG of one grey value; `size` is (height, width)."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def make_zip(path, files, compression=zipfile.ZIP_STORED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path, files, mode="w:xz"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def make_folder(path, files):
    for name, content in files.items():
        put(path / name, content)
    return path


MAKERS = {
    "folder": make_folder,
    "x.zip": make_zip,
    "deflated.zip": lambda p, f: make_zip(p, f, zipfile.ZIP_DEFLATED),
    "x.tar": lambda p, f: make_tar(p, f, "w"),
    "x.tar.gz": lambda p, f: make_tar(p, f, "w:gz"),
    "x.tgz": lambda p, f: make_tar(p, f, "w:gz"),
    "x.tar.xz": make_tar,
    "x.tar.bz2": lambda p, f: make_tar(p, f, "w:bz2"),
}
TWO_CLASSES = {"cat/10.png": png(10), "cat/2.png": png(2), "ant/1.png": png(1), "ant/readme.txt": b"no image"}


# --- layouts ---


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("wrapped", ["", "set/", "a/b/", "./"])
def test_class_folders_are_read_alike(tmp_path, kind, wrapped):
    files = {wrapped + name: content for name, content in TWO_CLASSES.items()}
    path = MAKERS[kind](tmp_path / kind, files)
    opened = open_set(path)
    assert opened.classes == ("ant", "cat")
    assert opened.labels.tolist() == [0, 1, 1]
    assert [int(opened[i][0][0, 0, 0]) for i in range(3)] == [1, 2, 10]
    assert opened[0][0].shape == (3, 3, 2)
    assert (opened.name, opened.licence, opened.stand_in) == (kind.split(".")[0], "unknown", False)
    assert opened.tensor()[0].shape == (3, 3, 3, 2)
    if not kind.endswith("folder"):
        assert [entry.name for entry in tmp_path.iterdir()] == [kind]  # nothing was unpacked


@pytest.mark.parametrize("kind", MAKERS)
def test_flat_images_have_no_label_and_stand_in_natural_order(tmp_path, kind):
    files = {f"{k}.png": png(k) for k in (10, 2, 1)} | {"__MACOSX/._1.png": b"x", "._2.png": b"x"}
    opened = open_set(MAKERS[kind](tmp_path / kind, files), "all")
    assert [int(opened[i][0][0, 0, 0]) for i in range(len(opened))] == [1, 2, 10]
    assert opened.classes == ()
    assert set(opened.labels.tolist()) == {data.UNLABELLED}
    with pytest.raises(UserError, match="has no splits: open all of it and use holdout"):
        open_set(tmp_path / kind, "test")


def test_splits_are_folders_or_archives_and_share_the_training_classes(tmp_path):
    train = {"ant/1.png": png(1), "cat/2.png": png(2)}
    folders = {f"train/{name}": content for name, content in train.items()} | {"val/cat/3.png": png(3)}
    make_folder(tmp_path / "folders", folders)
    make_zip(tmp_path / "one.zip", {f"set/{name}": content for name, content in folders.items()})
    make_zip(tmp_path / "two" / "train.zip", train)
    make_tar(tmp_path / "two" / "val.tar.xz", {"dogs/cat/3.png": png(3), "dogs/ant/4.png": png(4)})
    for place, expected in (("folders", [1]), ("one.zip", [1]), ("two", [0, 1])):
        assert open_set(place, root=tmp_path).labels.tolist() == [0, 1]
        for split in ("test", "val"):
            test = open_set(place, split, root=tmp_path)
            assert (test.classes, test.labels.tolist(), test.split) == (("ant", "cat"), expected, split)
        with pytest.raises(UserError, match="has no split 'all': it has train, val"):
            open_set(place, "all", root=tmp_path)


def test_test_images_without_labels_give_way_to_validation(tmp_path):
    files = {"train/a/1.png": png(1), "train/b/1.png": png(1), "val/b/2.png": png(2), "test/3.png": png(3)}
    opened = open_set(make_folder(tmp_path / "x", files), "test")
    assert len(opened) == 1
    assert (int(opened[0][0][0, 0, 0]), opened[0][1]) == (2, 1)


def test_a_class_that_training_has_not_is_refused(tmp_path):
    make_folder(tmp_path / "x", {"train/a/1.png": png(1), "test/b/1.png": png(1)})
    with pytest.raises(UserError, match="has the class 'b'; the classes are a"):
        open_set(tmp_path / "x", "test")
    make_folder(tmp_path / "y", {"train/a/1.png": png(1), "test/1.png": png(1)})
    with pytest.raises(UserError, match="images outside class folders"):
        open_set(tmp_path / "y", "test")


def test_a_folder_that_cannot_be_read_is_no_short_set(tmp_path, monkeypatch):
    make_folder(tmp_path / "x", TWO_CLASSES)
    there = os.scandir

    def scandir(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return there(path)

    monkeypatch.setattr(os, "scandir", scandir)  # a folder's mode does not stop an administrator
    with pytest.raises(UserError, match=r"cannot read .*cat: Permission denied"):
        open_set(tmp_path / "x")


def test_an_archive_alone_in_its_folder_is_meant(tmp_path):
    make_zip(tmp_path / "set" / "images.zip", TWO_CLASSES)
    put(tmp_path / "set" / "MANIFEST.json", json.dumps({"licence": "ours"}).encode())
    assert (len(open_set("set", root=tmp_path)), open_set("set", root=tmp_path).licence) == (3, "ours")
    make_zip(tmp_path / "set" / "more.zip", TWO_CLASSES)
    with pytest.raises(UserError, match=r"several archives \(images\.zip, more\.zip\): name one"):
        open_set("set", root=tmp_path)


def test_a_folder_with_a_loop_of_links_is_walked_once(tmp_path):
    make_folder(tmp_path / "x", {"a/1.png": png(1), "b/1.png": png(1)})
    (tmp_path / "x" / "a" / "up").symlink_to(tmp_path / "x")
    assert len(open_set(tmp_path / "x")) == 2


def test_images_of_several_sizes_need_a_size(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"1.png": png(1, (8, 8)), "2.png": png(2, (8, 12))})
    with pytest.raises(UserError, match="differ in size"):
        open_set(path).tensor()
    x, _ = open_set(path).tensor(size=6)
    assert x.shape == (2, 3, 6, 6)
    assert open_set(path).tensor(size=6, grey=True)[0].flatten(1).unique(dim=1).flatten().tolist() == [1, 2]


# --- damage ---


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:\\evil.png", "..\\evil.png"]
)
@pytest.mark.parametrize("kind", ["x.zip", "x.tar", "x.tar.gz", "x.tar.xz"])
def test_a_name_that_points_outside_is_refused(tmp_path, kind, name):
    path = MAKERS[kind](tmp_path / kind, {"ok.png": png(1), name: png(2)})
    with pytest.raises(UserError, match=r"is refused: it holds the name .* points outside") as caught:
        open_set(path)
    one_line(caught, path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_in_a_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = kind, "target"
        archive.addfile(member)
    with pytest.raises(UserError, match="is a link or a device"):
        open_set(tmp_path / "x.tar")


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "folder"])
def test_a_truncated_archive_is_never_a_short_set(tmp_path, kind):
    path = MAKERS[kind](tmp_path / kind, {f"{k}.png": png(k, (40, 40)) for k in range(20)})
    whole = path.read_bytes()
    for length in {*np.linspace(0, len(whole) - 1, 23).astype(int).tolist(), 512, 1024, len(whole) - 9}:
        if length >= len(whole):
            continue
        path.write_bytes(whole[:length])
        if kind == "x.tar" and len(whole) - length < 20 * 512 and not any(whole[length - 512 : length]):
            continue  # only padding behind the mark of the end is missing
        with pytest.raises(UserError, match=r"is cut short or damaged|no images in") as caught:
            open_set(path)
        one_line(caught, path)


def test_a_broken_header_inside_a_tar_is_no_end(tmp_path):
    path = make_tar(tmp_path / "x.tar", {"1.png": png(1), "2.png": png(2)}, "w")
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        content[archive.getmember("2.png").offset + 150] ^= 0x55  # within the checksum
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.tar is cut short or damaged: the mark of its end is missing"):
        open_set(path)


@pytest.mark.parametrize("kind", ["x.zip", "deflated.zip"])
def test_a_zip_with_a_wrong_checksum_names_the_file(tmp_path, kind):
    path = MAKERS[kind](tmp_path / kind, {"1.png": png(1), "2.png": png(2)})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        content[archive.getinfo("2.png").header_offset + 30 + len("2.png") + 25] ^= 0x55
    path.write_bytes(content)
    opened = open_set(path)
    assert int(opened[0][0][0, 0, 0]) == 1
    with pytest.raises(UserError, match=r"2\.png is cut short or damaged") as caught:
        opened.tensor()
    one_line(caught, path)


def test_an_image_that_is_none_is_named_with_its_archive(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"1.png": b"I am text"})
    with pytest.raises(UserError, match=r"x\.zip: 1\.png is no image"):
        open_set(path)[0]


def test_what_is_no_set_is_refused(tmp_path):
    put(tmp_path / "x.csv", b"1,2")
    with pytest.raises(UserError, match="is no folder and no archive"):
        open_set(tmp_path / "x.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in"):
        open_set(tmp_path / "empty")
    with pytest.raises(UserError, match="no data set and no folder or archive"):
        open_set(tmp_path / "none")
    put(tmp_path / "y.zip", b"no zip")
    with pytest.raises(UserError, match=r"y\.zip is cut short or damaged: File is not a zip file"):
        open_set(tmp_path / "y.zip")


# --- threads and processes ---


@pytest.mark.parametrize("kind", ["folder", "deflated.zip", "x.tar", "x.tar.xz"])
def test_sixteen_threads_read_the_right_pixels(tmp_path, kind):
    opened = open_set(MAKERS[kind](tmp_path / kind, {f"{k}.png": png(k, (30, 30)) for k in range(200)}))
    start = threading.Barrier(16)

    def check(thread):
        start.wait()
        order = np.random.default_rng(thread).permutation(200)
        return all(bool((opened[int(k)][0] == int(k)).all()) for k in order)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(check, range(16)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12, Linux
@pytest.mark.parametrize("kind", ["deflated.zip", "x.tar.xz"])
def test_worker_processes_read_the_right_pixels(tmp_path, kind):
    opened = open_set(MAKERS[kind](tmp_path / kind, {f"{k}.png": png(k, (30, 30)) for k in range(60)}))
    assert int(opened[5][0][0, 0, 0]) == 5  # the parent's handle is open when the workers start
    batches = iter(data.Loader(opened, 20, seed=2, workers=2))
    for step in range(6):
        seen = next(batches)[0]
        assert seen.shape == (20, 3, 30, 30)
        assert seen[:, 0, 0, 0].tolist() == data.batch_indices(60, 20, 2, step).tolist()
    del batches


@pytest.mark.parametrize("kind", MAKERS)
def test_a_set_travels_to_a_spawned_worker(tmp_path, kind):
    opened = open_set(MAKERS[kind](tmp_path / kind, TWO_CLASSES))
    again = pickle.loads(pickle.dumps(opened))
    assert torch.equal(again.tensor()[0], opened.tensor()[0])


def test_every_source_tells_its_names(tmp_path):
    for kind, make in MAKERS.items():
        source = sources.open_source(make(tmp_path / kind, TWO_CLASSES))
        assert sorted(source.names()) == sorted(TWO_CLASSES)
        assert source.read("cat/2.png") == TWO_CLASSES["cat/2.png"]


# --- sets by name ---


def test_tiny_imagenet_in_part_says_so(tmp_path):
    make_zip(tmp_path / "tiny-imagenet" / "train.zip", {"n1/a.JPEG": png(1), "n2/b.JPEG": png(2)})
    make_zip(tmp_path / "tiny-imagenet" / "val.zip", {"n2/c.JPEG": png(3)})
    opened = open_set("tiny-imagenet", "test", root=tmp_path)
    assert (opened.name, opened.stand_in, opened.labels.tolist()) == ("tiny-imagenet-2", True, [1])
    assert opened.note == "1 of the published 10,000 images; 2 of 200 classes"
    make_folder(tmp_path / "imagenet", {"train/1.png": png(1), "val/2.png": png(2)})
    with pytest.raises(UserError, match="not laid out as imagenet: it needs class folders"):
        open_set("imagenet", root=tmp_path)


def test_utkface_labels_are_ages(tmp_path):
    path = make_zip(tmp_path / "utkface" / "images.zip", {"7_0_0_1.jpg": png(7), "61_1_2_0.jpg": png(61)})
    opened = open_set("utkface", root=tmp_path)
    assert [(int(opened[i][0][0, 0, 0]), opened[i][1]) for i in range(2)] == [(7, 7), (61, 61)]
    make_zip(path, {"old_0_0_1.jpg": png(7)})
    with pytest.raises(UserError, match=r"old_0_0_1\.jpg does not begin with an age"):
        open_set("utkface", root=tmp_path)


def test_imagenet_sample_counts_its_classes(tmp_path):
    files = {f"n{k:08d}_big_cat{k}.png": png(k % 256, (1, 1)) for k in range(1000)}
    make_zip(tmp_path / "imagenet-sample" / "images.zip", files)
    opened = open_set("imagenet-sample", root=tmp_path)
    assert (opened[300][1], opened.classes[300]) == (300, "big cat300")
    make_zip(tmp_path / "imagenet-sample" / "images.zip", dict(list(files.items())[:999]))
    with pytest.raises(UserError, match="needs one image for each of 1,000 classes, and holds 999"):
        open_set("imagenet-sample", root=tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_celeba_follows_its_lists(tmp_path, zipped):
    folder = tmp_path / "celeba"
    faces = {f"img_align_celeba/{k:06d}.jpg": png(k) for k in range(1, 7)}
    make_zip(folder / "img_align_celeba.zip", faces) if zipped else make_folder(folder, faces)
    put(folder / "list_eval_partition.txt", b"".join(b"%06d.jpg %d\n" % (k, k % 3) for k in range(1, 7)))
    for split, expected in (
        ("train", [3, 6]),
        ("val", [1, 4]),
        ("test", [2, 5]),
        ("all", [1, 2, 3, 4, 5, 6]),
    ):
        opened = open_set("celeba", split, root=tmp_path)
        assert [int(opened[i][0][0, 0, 0]) for i in range(len(opened))] == expected
        assert set(opened.labels.tolist()) == {-1}
    put(folder / "identity_CelebA.txt", b"".join(b"%06d.jpg %d\n" % (k, 100 + k) for k in range(1, 7)))
    assert open_set("celeba", root=tmp_path).labels.tolist() == [103, 106]
    with (folder / "list_eval_partition.txt").open("a") as stream:
        stream.write("000009.jpg 0\n")
    with pytest.raises(UserError, match=r"lacks 1 of the 3 images .* the first is 000009\.jpg"):
        open_set("celeba", root=tmp_path)
    put(folder / "list_eval_partition.txt", b"000001.jpg\n")
    with pytest.raises(UserError, match=r"list_eval_partition\.txt is damaged"):
        open_set("celeba", root=tmp_path)


# --- tables, pairs, clips ---


def make_table(root, rows=20):
    folder = root / "uci" / "yacht"
    values = np.random.default_rng(0).standard_normal((rows, 4))
    text = "".join(",".join(repr(float(v)) for v in row) + "\n" for row in values)
    put(folder / "data.csv.gz", gzip.compress(text.encode()))
    columns = {"features": [0, 2, 3], "target": 1, "rows": rows}
    put(folder / "columns.json", json.dumps(columns).encode())
    put(folder / "test_splits.json", json.dumps({str(k): [k, k + 5] for k in range(3)}).encode())
    return values, folder


def test_a_table_is_read_exactly(tmp_path):
    values, _ = make_table(tmp_path)
    table = data.open_table("yacht", root=tmp_path)
    assert table.x.dtype == torch.float64
    assert np.array_equal(table.x.numpy(), values[:, [0, 2, 3]])
    part = table.split(2)
    assert np.array_equal(part.y_test.numpy(), values[[2, 7], 1])
    assert np.array_equal(part.x_train.numpy(), np.delete(values, [2, 7], 0)[:, [0, 2, 3]])
    for k in (-1, 3):
        with pytest.raises(UserError, match="has the splits 0 to 2"):
            table.split(k)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("data.csv.gz", lambda b: b[:-30], "data.csv.gz is cut short or damaged"),
        ("data.csv.gz", lambda b: gzip.compress(b"1,2,3,4\n" * 19), "declares 20 rows and it holds 19"),
        ("data.csv.gz", lambda b: gzip.compress(b"1,2,3,x\n" * 20), "could not convert"),
        ("data.csv.gz", lambda b: gzip.compress(b"1,2,3,nan\n" * 20), "no table of finite numbers"),
        ("data.csv.gz", lambda b: gzip.compress(b"1,2\n" * 20), "has 2 columns"),
        ("data.csv.gz", lambda b: gzip.compress(b"1,2\n1,2,3\n"), "cut short or damaged"),
        ("data.csv.gz", lambda b: b"text", "cut short or damaged"),
        ("columns.json", lambda b: b"{", "columns.json is cut short or damaged"),
        ("columns.json", lambda b: b"{}", "columns.json or test_splits.json is damaged"),
        ("test_splits.json", lambda b: b'{"0": [1, 20]}', "a row outside 0..19"),
        ("test_splits.json", lambda b: b'{"0": [1, 1]}', "split 0 is no set of rows"),
        ("test_splits.json", lambda b: b'{"0": []}', "split 0 is no set of rows"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, file, content, message):
    _, folder = make_table(tmp_path)
    put(folder / file, content((folder / file).read_bytes()))
    with pytest.raises(UserError, match=message.replace(".", r"\.")) as caught:
        data.open_table("yacht", root=tmp_path)
    one_line(caught)


def test_missing_and_unknown_tables_are_one_line(tmp_path):
    with pytest.raises(UserError, match="energy is missing: put uci/energy/"):
        data.open_table("energy", root=tmp_path)
    with pytest.raises(UserError, match="no table 'iris': there are diabetes, "):
        data.open_table("iris", root=tmp_path)


def test_diabetes_is_raw_and_its_splits_repeat():
    table = data.open_table("diabetes")
    assert table.x.shape == (442, 10)
    assert (table.y.min(), table.y.max()) == (25, 346)
    assert table.x[:, 0].max() > 70  # ages in years: not scaled over all rows
    assert len({tuple(rows.tolist()) for rows in table.test_rows}) == 20
    assert {len(rows) for rows in table.test_rows} == {44}
    assert torch.equal(table.test_rows[7], data.open_table("diabetes").test_rows[7])


def test_pairs_match_by_stem(tmp_path):
    folder = tmp_path / "aerial-roads" / "validation"
    for k in (10, 9):
        put(folder / "images" / f"s{k}.png", png(k))
        put(folder / "masks" / f"s{k}.png", png(118 + k))
    pairs = data.open_pairs("test", root=tmp_path)
    found, masks = pairs.tensor()
    assert found[:, 0, 0, 0].tolist() == [9, 10]
    assert masks[:, 0, 0, 0].tolist() == [False, True]
    put(folder / "masks" / "s10.png", png(1, (9, 9)))
    with pytest.raises(UserError, match=r"s10\.png is \(9, 9\), its image is \(3, 2\)"):
        pairs[1]
    put(folder / "images" / "s11.png", png(1))
    with pytest.raises(UserError, match="s11 has no partner"):
        data.open_pairs("test", root=tmp_path)
    with pytest.raises(UserError, match="aerial-roads is missing"):
        data.open_pairs("train", root=tmp_path)


def test_frames_stand_in_the_order_of_their_numbers(tmp_path):
    make_folder(tmp_path / "videos" / "balloon", {f"{k}.png": png(k) for k in (10, 9, 1)})
    assert data.open_frames("balloon", root=tmp_path)[:, 0, 0, 0].tolist() == [1, 9, 10]
    put(tmp_path / "videos" / "balloon" / "11.png", png(1, (9, 9)))
    with pytest.raises(UserError, match="differ in size"):
        data.open_frames(tmp_path / "videos" / "balloon")
    with pytest.raises(UserError, match="videos is missing"):
        data.open_frames("none", root=tmp_path)


def test_clips_are_grouped(tmp_path):
    folder = tmp_path / "videos" / "benchmark" / "singangif"
    for name in ("a_b_gt", "a_b_ours0", "a_b_ours10", "a_b_ours2", "a_b_theirs0", "z_gt"):
        put(folder / f"{name}.mp4", b"")
    clips = data.list_clips("singangif", root=tmp_path)
    assert [(c.name, c.real.name, len(c.ours), len(c.theirs)) for c in clips] == [
        ("a_b", "a_b_gt.mp4", 3, 1),
        ("z", "z_gt.mp4", 0, 0),
    ]
    assert [path.name for path in clips[0].ours][-1] == "a_b_ours10.mp4"
    assert len(data.list_videos(root=tmp_path)) == 6
    put(folder / "y_ours0.mp4", b"")
    with pytest.raises(UserError, match=r"no real clip y_gt\.mp4"):
        data.list_clips("singangif", root=tmp_path)
    with pytest.raises(UserError, match="there are hpvaegan and singangif"):
        data.list_clips("davis", root=tmp_path)
