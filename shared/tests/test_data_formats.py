"""idx files and CIFAR-10's pickles: the published layouts built small, and every way to damage them."""

import gzip
import io
import os
import pickle
import pickletools
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from paperkit import UserError, data
from PIL import Image

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


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


def make_tar(path, files, mode="w:xz"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


# --- idx ---


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def make_mnist(root, name="MNIST", zipped=True, n=12):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    labels = (np.arange(n) % 10).astype(np.uint8)
    for prefix in ("train", "t10k"):
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            content = idx(array)
            file = root / name / "raw" / f"{prefix}-{kind}-ubyte"
            put(
                file.with_name(file.name + ".gz") if zipped else file,
                gzip.compress(content) if zipped else content,
            )
    return pixels, labels


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_idx_files_open_zipped_or_not(tmp_path, name, zipped):
    pixels, labels = make_mnist(tmp_path, name, zipped)
    for split in ("train", "test"):
        opened = data.open_set(name, split, root=tmp_path)
        x, y = opened.tensor()
        assert np.array_equal(x[:, 0].numpy(), pixels)
        assert y.tolist() == labels.tolist()
        assert (opened.name, len(opened.classes), opened[3][0].shape) == (name, 10, (1, 28, 28))
        assert (opened.stand_in, opened.note[:20]) == (True, "12 of the published ")
    assert len(data.open_set("fashion-mnist" if name == "FashionMNIST" else "mnist", root=tmp_path)) == 12
    with pytest.raises(UserError, match="splits train and test, not 'all'"):
        data.open_set(name, "all", root=tmp_path)


def test_torchvision_reads_the_same_idx_files(tmp_path):
    from torchvision.datasets import MNIST

    make_mnist(tmp_path, zipped=False)
    theirs = MNIST(str(tmp_path), train=False)
    ours = data.open_set("MNIST", "test", root=tmp_path)
    assert torch.equal(theirs.data, ours.tensor()[0][:, 0])
    assert torch.equal(theirs.targets, ours.labels)


def _break(content, how):
    return {
        "cut": content[:-5],
        "cut header": content[:7],
        "empty": b"",
        "too long": content + b"\0\0",
        "magic": b"\0\0\x0d\x03" + content[4:],
        "axes": b"\0\0\x08\x01" + content[4:],
    }[how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", r"is cut short: it declares \(12, 28, 28\), 9,408 bytes, and holds 9,403"),
        ("cut header", "is no idx file"),
        ("empty", "is no idx file"),
        ("too long", "has bytes too many"),
        ("magic", "is no idx file of bytes"),
        ("axes", "is no idx file of bytes with 3 axes"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_idx_file_is_named(tmp_path, how, message, zipped):
    make_mnist(tmp_path, zipped=zipped)
    file = tmp_path / "MNIST" / "raw" / f"train-images-idx3-ubyte{'.gz' if zipped else ''}"
    content = gzip.decompress(file.read_bytes()) if zipped else file.read_bytes()
    content = _break(content, how)
    file.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(UserError, match=message) as caught:
        data.open_set("MNIST", root=tmp_path)
    one_line(caught, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-20], "is cut short"),
        (lambda b: b[:3000] + bytes([b[3000] ^ 1]) + b[3001:], "is damaged"),
        (lambda b: b[:-8] + b"\0\0\0\0" + b[-4:], "is damaged: CRC check failed"),
        (lambda b: b"no gzip" + b, "is damaged: Not a gzipped file"),
    ],
)
def test_a_damaged_gzip_file_is_named(tmp_path, change, message):
    make_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        data.open_set("MNIST", root=tmp_path)
    one_line(caught, file)


def test_images_and_labels_must_agree(tmp_path):
    make_mnist(tmp_path, zipped=False)
    file = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    file.write_bytes(idx(np.zeros(11, np.uint8)))
    with pytest.raises(UserError, match=r"holds 12 images, .* holds 11 labels"):
        data.open_set("MNIST", root=tmp_path)
    file.write_bytes(idx(np.full(12, 10, np.uint8)))
    with pytest.raises(UserError, match="holds the label 10; the last class is 9"):
        data.open_set("MNIST", root=tmp_path)
    file.unlink()
    with pytest.raises(UserError, match="MNIST is missing"):
        data.open_set("MNIST", root=tmp_path)


# --- CIFAR-10 ---


def py2_batch(pixels, labels):
    """What Python 2's cPickle wrote for a batch, protocol 2: byte strings, NumPy's old module path."""

    def string(text):
        return b"U" + bytes([len(text)]) + text

    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
    shape = b"M" + struct.pack("<H", len(pixels)) + b"M\x00\x0c\x86"
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R(K\x03" + string(b"|") + b"NNN"
    dtype += b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    state = b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", pixels.size) + pixels.tobytes() + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    name = string(b"batch_label") + string(b"training batch 1 of 5")
    return b"\x80\x02}(" + name + string(b"labels") + numbers + string(b"data") + array + state + b"u."


def make_cifar(folder, n=4):
    rng = np.random.default_rng(0)
    made = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels, labels = rng.integers(0, 256, (n, 3072), dtype=np.uint8), rng.integers(0, 10, n)
        put(folder / name, py2_batch(pixels, labels.tolist()))
        made[name] = pixels, labels
    return made


@pytest.mark.parametrize("place", ["cifar-10-batches-py", "cifar10/cifar-10-batches-py"])
def test_cifar_pickles_open_in_torchvisions_layout(tmp_path, place):
    made = make_cifar(tmp_path / place)
    opened = data.open_set("cifar10", root=tmp_path)
    x, y = opened.tensor()
    assert np.array_equal(
        x.numpy(), np.concatenate([made[f"data_batch_{i}"][0] for i in range(1, 6)]).reshape(x.shape)
    )
    assert y.tolist() == np.concatenate([made[f"data_batch_{i}"][1] for i in range(1, 6)]).tolist()
    assert (opened.name, opened.stand_in, opened.classes) == ("cifar10", True, tuple(CLASSES))
    assert "20 of the published 50,000" in opened.note
    test = data.open_set("cifar10", "test", root=tmp_path)
    assert np.array_equal(test[2][0].flatten().numpy(), made["test_batch"][0][2])


def test_the_py2_batch_of_this_test_is_what_pickle_reads(tmp_path):
    pixels = np.arange(6144, dtype=np.uint8).reshape(2, 3072)
    names = {
        arg for opcode, arg, _ in pickletools.genops(py2_batch(pixels, [1, 2])) if opcode.name == "GLOBAL"
    }
    assert names == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}


def test_a_batch_that_numpy_writes_today_opens(tmp_path):
    made = make_cifar(tmp_path / "cifar-10-batches-py")
    pixels, labels = made["test_batch"]
    content = pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, protocol=4)
    put(tmp_path / "cifar-10-batches-py" / "test_batch", content)
    assert np.array_equal(
        data.open_set("cifar10", "test", root=tmp_path).tensor()[0].flatten(1).numpy(), pixels
    )


class _Evil:
    def __init__(self, call, *args):
        self.call = call, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("nested", [True, False])
def test_pickled_code_is_refused_and_never_run(tmp_path, protocol, nested):
    make_cifar(tmp_path / "cifar-10-batches-py")
    evil = _Evil(os.mkdir, str(tmp_path / "was-run"))
    content = pickle.dumps({"data": evil, "labels": [1]} if nested else evil, protocol=protocol)
    put(tmp_path / "cifar-10-batches-py" / "test_batch", content)
    with pytest.raises(UserError, match=r"is refused: it asks for (posix|nt)\.mkdir") as caught:
        data.open_set("cifar10", "test", root=tmp_path)
    one_line(caught, "test_batch")
    assert not (tmp_path / "was-run").exists()
    pickle.loads(content)  # the same bytes do run where nothing refuses them
    assert (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    "name",
    ["builtins eval", "numpy load", "numpy.core.multiarray ndarray", "os system", "numpy.testing measure"],
)
def test_every_other_name_is_refused(tmp_path, name):
    make_cifar(tmp_path / "cifar-10-batches-py")
    module, attribute = name.split()
    put(tmp_path / "cifar-10-batches-py" / "test_batch", f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(UserError, match="is refused"):
        data.open_set("cifar10", "test", root=tmp_path)


def test_a_pickle_cannot_change_the_classes_that_stand_in(tmp_path):
    from paperkit.data import cifar

    make_cifar(tmp_path / "cifar-10-batches-py")
    put(tmp_path / "cifar-10-batches-py" / "test_batch", b"cnumpy\ndtype\n}U\x04codeK\x01sb.")
    before = dict(vars(cifar._Dtype))
    with pytest.raises(UserError, match="cut short or damaged"):
        data.open_set("cifar10", "test", root=tmp_path)
    assert dict(vars(cifar._Dtype)) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda p: py2_batch(p, [1, 2, 3, 4])[:-2000], "cut short or damaged"),
        (lambda p: b"", "cut short or damaged"),
        (lambda p: py2_batch(p, [1, 2, 3]), r"pixels \(4, 3072\) with 3 labels"),
        (lambda p: py2_batch(p, [1, 2, 3, 11]), "not within 0..9"),
        (lambda p: pickle.dumps({b"labels": [1]}), "no data and labels"),
        (lambda p: pickle.dumps([1]), "no data and labels"),
        (lambda p: pickle.dumps({b"data": p.astype(np.int16), b"labels": [1] * 4}, 4), "not unsigned bytes"),
        (lambda p: pickle.dumps({b"data": p[:, :7].copy(), b"labels": [1] * 4}, 4), r"pixels \(4, 7\)"),
        (lambda p: pickle.dumps({b"data": p, b"labels": ["x"] * 4}, 4), "is damaged"),
    ],
)
def test_a_damaged_batch_is_named(tmp_path, content, message):
    pixels = make_cifar(tmp_path / "cifar-10-batches-py")["test_batch"][0]
    put(tmp_path / "cifar-10-batches-py" / "test_batch", content(pixels))
    with pytest.raises(UserError, match=message) as caught:
        data.open_set("cifar10", "test", root=tmp_path)
    one_line(caught, "test_batch")


def test_a_missing_batch_is_named(tmp_path):
    make_cifar(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(UserError, match=r"cannot read .*data_batch_3: No such file"):
        data.open_set("cifar10", root=tmp_path)


def test_cifar_archives_are_named_for_what_they_are(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 0, 0)).save(buffer, "JPEG")
    make_tar(tmp_path / "cifar10" / "train.tar.xz", {f"{name}/0.jpg": buffer.getvalue() for name in CLASSES})
    make_tar(
        tmp_path / "cifar10" / "test.tar.xz", {f"{name}/0.png": png(9, (32, 32)) for name in CLASSES[:3]}
    )
    train = data.open_set("cifar10", root=tmp_path)
    assert (train.name, train.stand_in, train.labels.tolist()) == ("cifar10-jpeg", True, list(range(10)))
    assert "JPEG re-encoding" in train.note
    test = data.open_set("cifar10", "test", root=tmp_path)
    assert (test.name, test.classes, test.labels.tolist()) == ("cifar10", tuple(CLASSES), [0, 1, 2])
    make_tar(tmp_path / "cifar10" / "test.tar.xz", {"wolf/0.png": png(9), "cat/0.png": png(9)})
    with pytest.raises(UserError, match="the class 'wolf'"):
        data.open_set("cifar10", "test", root=tmp_path)


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    from torchvision.datasets import utils

    def fail(*args, **options):
        raise OSError("no route\nto host")

    monkeypatch.setattr(utils, "download_and_extract_archive", fail)
    with pytest.raises(UserError, match=r"download of cifar10 failed \(no route\)") as caught:
        data.open_set("cifar10", root=tmp_path, download=True)
    one_line(caught, tmp_path)


def test_a_download_is_opened(tmp_path, monkeypatch):
    from torchvision.datasets import utils

    def fetch(url, folder, **options):
        make_cifar(Path(folder) / "cifar-10-batches-py")

    monkeypatch.setattr(utils, "download_and_extract_archive", fetch)
    assert len(data.open_set("cifar10", root=tmp_path, download=True)) == 20
    monkeypatch.undo()
    assert (
        len(data.open_set("cifar10", "test", root=tmp_path, download=True)) == 4
    )  # there: nothing is fetched
