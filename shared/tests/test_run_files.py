"""Files that are whole or absent, configurations as JSON, checkpoints that are data and nothing else."""

import contextlib
import errno
import json
import os
import pickle
import random
import resource
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from paperkit import UserError
from paperkit.run import (
    FORMAT,
    atomic,
    differences,
    fill,
    from_json,
    load_checkpoint,
    load_foreign,
    load_weights,
    read_json,
    save_checkpoint,
    to_json,
    write_folder,
    write_json,
)


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refusal(call: Callable[..., object], *words: Any, **named: Any) -> str:
    """The one line of a refusal."""
    with pytest.raises(UserError) as caught:
        call(*words, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- files


def test_an_atomic_file_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with atomic(target, "w") as stream:
        stream.write("ä")
        assert not target.exists()
    assert target.read_bytes() == "ä".encode()
    for failure in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(failure), atomic(target) as stream:  # noqa: PT012
            stream.write(b"half")
            raise failure
    assert target.read_bytes() == "ä".encode()
    assert everything(tmp_path) == ["new", "new/file.txt"]


def test_an_atomic_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with atomic(tmp_path / "atomic"):
        pass
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_another_file_s_failure_is_not_blamed_on_this_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()
    assert everything(tmp_path) == []


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "a file stands where a folder is needed" in refusal(
        write_json, tmp_path / "file" / "a.json", {"a": 1}
    )
    assert "a file stands where a folder is needed" in refusal(
        write_folder, tmp_path / "file" / "a", {"b": b""}
    )


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "read-only"),
        (errno.EACCES, "read-only"),
        (errno.ENOSPC, "no space left"),
        (errno.EIO, "Input/output"),
    ],
)
def test_what_the_file_system_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    write_json(tmp_path / "old.json", {"a": 1})
    write_folder(tmp_path / "folder", {"a": b"1"})

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    assert words in refusal(write_json, tmp_path / "old.json", {"a": 2})
    assert words in refusal(write_folder, tmp_path / "folder", {"a": b"2"})
    assert read_json(tmp_path / "old.json") == {"a": 1}
    assert everything(tmp_path) == ["folder", "folder/a", "old.json"]
    assert (tmp_path / "folder" / "a").read_bytes() == b"1"


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", {"x": b"1", "y": b"2"})
    (tmp_path / ".a.tmp").mkdir()  # left by a kill
    (tmp_path / ".a.tmp" / "half").write_text("")
    write_folder(tmp_path / "a", {"x": b"3"})
    assert everything(tmp_path) == ["a", "a/x"]
    assert (tmp_path / "a" / "x").read_bytes() == b"3"


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A disk that is full after `size` bytes a file, as far as this process can tell."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoints" / "00000001", 1, {"net": {"w": torch.zeros(3)}}, {})
    before = everything(tmp_path)
    with file_size_limit(20_000):
        large = {"net": {"w": torch.zeros(10_000)}}
        message = refusal(save_checkpoint, tmp_path / "checkpoints" / "00000002", 2, large, {})
        assert "no space left" in message
        assert "00000002" in message
        assert "no space left" in refusal(write_json, tmp_path / "a.json", {"a": "x" * 30_000})
    assert everything(tmp_path) == before


def test_json_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    assert "is missing" in refusal(read_json, path)
    for content in (b'{"a": 1', b"", b"[1]", b"\xff\xfe"):
        path.write_bytes(content)
        message = refusal(read_json, path)
        assert str(path) in message
        assert "corrupt" in message
    assert "cannot read" in refusal(read_json, tmp_path)


# ---- configurations


@dataclass(frozen=True)
class Part:
    """A nested configuration."""

    a: int = 1
    b: float = 0.5


@dataclass(frozen=True)
class Whole:
    """Every kind of field."""

    name: str
    pair: tuple[int, float] = (1, 2.0)
    many: tuple[str, ...] = ()
    choice: Literal["x", 1] = "x"
    limit: int | None = None
    either: int | str = 3
    where: Path = Path("a")
    flag: bool = False
    part: Part = field(default_factory=Part)
    maybe: Part | None = None


def test_a_configuration_survives_json() -> None:
    for config in (
        Whole("n"),
        Whole("n", (3, 4.5), ("p", "q"), 1, 7, "word", Path("b/c"), True, Part(2, 3.0), Part(4)),
    ):
        text = json.dumps(to_json(config))
        assert from_json(Whole, json.loads(text)) == config


def test_an_int_does_for_a_float_and_nothing_else_bends() -> None:
    read = from_json(Part, {"b": 2})
    assert read == Part(b=2.0)
    assert type(read.b) is float
    for key, value in (("a", True), ("a", 1.0), ("a", "1"), ("a", None), ("b", True), ("b", "0.5")):
        message = refusal(from_json, Part, {key: value}, "f.json")
        assert message.startswith(f"f.json: {key}: {value!r} does not fit")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 3),
        ("pair", [1]),
        ("pair", [1, 2.0, 3]),
        ("pair", "ab"),
        ("pair", [1, "x"]),
        ("many", [1]),
        ("choice", "y"),
        ("choice", True),
        ("limit", 1.5),
        ("either", 1.5),
        ("either", None),
        ("where", 3),
        ("flag", 0),
        ("part", 3),
        ("part", {"a": "x"}),
        ("maybe", [1]),
    ],
)
def test_values_that_do_not_fit(key: str, value: object) -> None:
    assert "does not fit" in refusal(from_json, Whole, {"name": "n", key: value})


def test_keys_that_are_unknown_or_missing() -> None:
    assert "unknown key nam (did you mean name?)" in refusal(from_json, Whole, {"name": "n", "nam": 1})
    message = refusal(from_json, Whole, {"name": "n", "part": {"c": 1}}, "f")
    assert message.startswith("f: part: unknown key c")
    assert "f: maybe: unknown key z" in refusal(from_json, Whole, {"name": "n", "maybe": {"z": 1}}, "f")
    assert "the key name is missing" in refusal(from_json, Whole, {})


def test_differences_name_the_keys() -> None:
    one, other = Whole("n"), Whole("m", part=Part(a=2))
    assert differences(to_json(one), to_json(other)) == ["name: n -> m", "part.a: 1 -> 2"]
    assert differences(to_json(one), to_json(one)) == []


# ---- checkpoints


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints" / "00000007"
    state = {"moments": [torch.ones(2), 3, "x", None, 0.5], "nested": {1: (True,)}}
    save_checkpoint(folder, 7, {"net": {"w": torch.arange(4.0)}, "average": {}}, state)
    return folder


def test_a_checkpoint_comes_back(checkpoint: Path) -> None:
    weights, state = load_checkpoint(checkpoint)
    assert weights["average"] == {}
    assert torch.equal(weights["net"]["w"], torch.arange(4.0))
    assert torch.equal(state["moments"][0], torch.ones(2))
    assert state["moments"][1:] == [3, "x", None, 0.5]
    assert state["nested"] == {1: (True,)}


def test_tied_transposed_and_trained_weights_can_be_saved(tmp_path: Path) -> None:
    tied = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    group = {"a": tied, "b": tied, "t": tied.detach().T, "i": images, "half": torch.ones(2).bfloat16()}
    save_checkpoint(tmp_path / "1", 1, {"net": group}, {})
    loaded = load_weights(tmp_path / "1" / "net.safetensors")
    assert all(torch.equal(loaded[key], group[key]) for key in group)
    assert loaded["half"].dtype == torch.bfloat16


def test_weights_of_other_libraries_can_be_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "hub.safetensors", {"format": "pt"})
    assert torch.equal(load_weights(tmp_path / "hub.safetensors")["w"], torch.ones(2))


class Attack:
    """Pickled, it runs a command when it is loaded."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", ["torch", "pickle", "hidden"])
def test_pickled_code_is_refused_and_not_run(checkpoint: Path, tmp_path: Path, protocol: str) -> None:
    proof = tmp_path / "executed"
    attack = Attack(f"touch {shlex.quote(str(proof))}")
    if protocol == "pickle":
        (checkpoint / "state.pt").write_bytes(pickle.dumps(attack))
    else:
        content = {"format": FORMAT, "groups": ["net"], "state": [attack]} if protocol == "hidden" else attack
        torch.save(content, checkpoint / "state.pt")
    message = refusal(load_checkpoint, checkpoint)
    assert str(checkpoint / "state.pt") in message
    assert "was not opened" in message
    assert not proof.exists()
    os.system(attack.command)
    assert proof.exists(), "the attack is one"


@pytest.mark.parametrize("name", ["state.pt", "net.safetensors"])
def test_files_that_are_cut_short_or_missing_are_named(checkpoint: Path, name: str) -> None:
    path = checkpoint / name
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        message = refusal(load_checkpoint, checkpoint)
        assert str(path) in message
        assert "corrupt" in message
    path.unlink()
    assert f"{path} is missing" in refusal(load_checkpoint, checkpoint)


def test_damaged_bytes_end_in_one_line(checkpoint: Path) -> None:
    """Whatever a byte is changed to, the file is refused by one line, or the change was in no content."""
    draw = random.Random(0)
    for name in ("state.pt", "net.safetensors"):
        path = checkpoint / name
        whole = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] = draw.randrange(256)
            path.write_bytes(damaged)
            with contextlib.suppress(UserError):
                load_checkpoint(checkpoint)
        path.write_bytes(draw.randbytes(1000))
        assert str(path) in refusal(load_checkpoint, checkpoint)
        path.write_bytes(whole)
    load_checkpoint(checkpoint)


def test_newer_and_foreign_formats(checkpoint: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, checkpoint / "net.safetensors", {"paperkit_format": str(FORMAT + 1)})
    assert "newer version" in refusal(load_checkpoint, checkpoint)
    for content, words in (
        ({"format": FORMAT + 1, "groups": [], "state": {}}, "newer version"),
        ({"format": "x", "groups": [], "state": {}}, "no checkpoint of ours"),
        ({"state": {}}, "no checkpoint of ours"),
        ([1], "no checkpoint of ours"),
        ({"format": FORMAT, "groups": []}, "lacks state"),
    ):
        torch.save(content, checkpoint / "state.pt")
        assert words in refusal(load_checkpoint, checkpoint)


def test_files_of_other_programs_are_data_or_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.save({"model": {"w": torch.ones(2)}, "epoch": 3}, tmp_path / "their.pth")
    found = load_foreign(tmp_path / "their.pth")
    assert found["epoch"] == 3
    assert torch.equal(found["model"]["w"], torch.ones(2))
    save_file({"w": torch.ones(1)}, tmp_path / "their.safetensors")
    assert torch.equal(load_foreign(tmp_path / "their.safetensors")["w"], torch.ones(1))
    torch.save(Attack(f"touch {shlex.quote(str(tmp_path / 'ran'))}"), tmp_path / "code.pth")
    assert "perhaps code, and was not opened" in refusal(load_foreign, tmp_path / "code.pth")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "torn.pth").write_bytes((tmp_path / "their.pth").read_bytes()[:-40])
    assert "damaged" in refusal(load_foreign, tmp_path / "torn.pth")
    assert "no such file" in refusal(load_foreign, tmp_path / "none.pth")


def test_fill_names_the_key_that_does_not_fit() -> None:
    net = torch.nn.Linear(2, 3)
    good = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    assert "lacks bias" in refusal(fill, net, {"weight": good["weight"]}, "f")
    assert "unknown scale" in refusal(fill, net, {**good, "scale": torch.ones(1)}, "f")
    message = refusal(fill, net, {**good, "weight": torch.ones(2, 3)}, Path("f"))
    assert message.startswith("f: weight has shape (2, 3) instead of (3, 2)")
    fill(net, good, "f")
    assert torch.equal(net.weight, torch.ones(3, 2))
