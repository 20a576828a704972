"""The run folder: what a run leaves, and runs that go on after anything.

`toy_paper.py` is the paper; commands that end by a signal run in forks of one subprocess.
"""

import contextlib
import json
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from paperkit import UserError, provenance
from paperkit.run import (
    Interrupted,
    Run,
    RunOptions,
    checkpoints,
    find,
    from_json,
    load_checkpoint,
    read_json,
    read_metrics,
    runs_folder,
    write_json,
)

HERE = Path(__file__).parent
Outcome = tuple[int, str, str]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The made-up paper, in an empty working directory."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TOY_SEND", "UV", "UV_RUN_RECURSION_DEPTH"):
        monkeypatch.delenv(name, raising=False)
    import toy_paper

    return toy_paper


@pytest.fixture(scope="module")
def forks() -> Iterator[Callable[..., Outcome]]:
    """`forks(argv, folder, environment)`: (exit status, stdout, stderr) of the toy's command."""
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "UV")}
    server = subprocess.Popen(
        [sys.executable, HERE / "toy_paper.py", "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=clean,
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def call(argv: list[str], folder: Path, environment: dict[str, str] | None = None) -> Outcome:
        print(json.dumps([argv, str(folder), environment or {}]), file=server.stdin, flush=True)
        status, out, error = json.loads(server.stdout.readline())
        return status, out, error

    yield call
    with server:  # closes its pipes, which ends it, and waits
        pass


@pytest.fixture(scope="module")
def unbroken(forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("unbroken")
    status, _, error = forks(["train", "--out", "run"], folder)
    assert (status, error) == (0, "")
    return folder / "run"


def only_run(folder: Path) -> Path:
    (found,) = (folder / "runs" / "toy").iterdir()
    return found


def assert_equal_runs(one: Path, other: Path) -> None:
    """Weights, optimiser state and metrics are equal bit for bit, and so are the configurations."""
    assert [path.name for path in checkpoints(one)] == [path.name for path in checkpoints(other)]
    for name in (path.name for path in checkpoints(one)):
        (a, x), (b, y) = (load_checkpoint(run / "checkpoints" / name) for run in (one, other))
        assert a["net"].keys() == b["net"].keys()
        assert all(torch.equal(a["net"][key], b["net"][key]) for key in a["net"])
        for moments, others in zip(
            x["optimiser"]["state"].values(), y["optimiser"]["state"].values(), strict=True
        ):
            assert all(torch.equal(moments[key], others[key]) for key in moments)
        assert x["optimiser"]["param_groups"] == y["optimiser"]["param_groups"]
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    assert (one / "config.json").read_text() == (other / "config.json").read_text()


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refusal(call: Callable[..., object], *words: Any, **named: Any) -> str:
    """The one line of a refusal."""
    with pytest.raises(UserError) as caught:
        call(*words, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A disk that is full after `size` bytes a file, as far as this process can tell."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


# ---- runs


def test_a_run_that_cannot_be_started_leaves_no_folder(toy) -> None:
    with file_size_limit(10):
        assert "no space left" in refusal(toy.train, toy.TrainConfig())
    assert list(Path("runs/toy").iterdir()) == []


def test_a_disk_that_is_full_in_the_middle_of_a_run(toy) -> None:
    with file_size_limit(1500):
        # The manifest fits, the checkpoint does not.
        assert "no space left" in refusal(toy.train, toy.TrainConfig(), RunOptions(out="full"))
    assert checkpoints(Path("full")) == []
    assert [path for path in everything(Path("full")) if "tmp" in path] == []
    toy.train(toy.TrainConfig(), RunOptions(resume="full"))
    assert read_json(Path("full/manifest.json"))["state"] == "finished"


def test_a_finished_run_has_all_its_parts(toy, capsys: pytest.CaptureFixture[str]) -> None:
    folder = toy.train(toy.TrainConfig(steps=12), preset="smoke")
    assert folder.parent == runs_folder("toy")
    assert folder.name.endswith("-smoke-s0")
    assert [path.name for path in checkpoints(folder)] == ["00000010", "00000012"], "the last two are kept"
    assert [row["step"] for row in read_metrics(folder)] == list(range(1, 13))
    assert (folder / "log.txt").read_text() == capsys.readouterr().out
    manifest = read_json(folder / "manifest.json")
    assert manifest["state"] == "finished"
    assert manifest["started"] <= manifest["ended"]
    for key in ("command", "commit", "dirty", "versions", "device", "hardware", "seed", "preset", "title"):
        assert key in manifest
    assert manifest["versions"]["torch"]
    assert from_json(toy.TrainConfig, read_json(folder / "config.json")) == toy.TrainConfig(steps=12)
    assert find("toy", "latest") == folder


@pytest.mark.parametrize(("keep", "left"), [(1, 1), (3, 3), (100, 6)])
def test_the_last_k_checkpoints_are_kept(toy, keep: int, left: int) -> None:
    folder = toy.train(toy.TrainConfig(save_every=4, keep=keep), RunOptions(out="run"))
    assert len(checkpoints(folder)) == left
    assert checkpoints(folder)[-1].name == "00000024"


def test_runs_of_one_second_get_folders_of_their_own(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = type("Frozen", (), {"__format__": lambda self, spec: "20250101-000000"})()
    clock = type("Clock", (), {"now": staticmethod(lambda: frozen)})
    monkeypatch.setattr("paperkit.run.folder.datetime", clock)
    monkeypatch.setattr("paperkit.run.folder.commit", lambda: ("unknown", False))
    config, gate, found = toy.TrainConfig(), threading.Barrier(8), []

    def start() -> None:
        gate.wait()
        found.append(Run.open("toy", "A Line", config, RunOptions(), "small").folder)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = sorted((folder.name for folder in found), key=len)
    assert sorted(names) == sorted(
        ["20250101-000000-small-s0", *(f"20250101-000000-small-s0-{k}" for k in range(2, 9))]
    )


def test_latest_is_the_run_that_was_started_last(toy) -> None:
    for name, started in (
        ("zebra", "2025-01-01T10:00:00+00:00"),
        ("best", "2025-01-01T12:00:00+03:00"),
        ("apple", "2025-01-01T12:30:00+02:00"),
    ):
        write_json(Path("runs/toy") / name / "manifest.json", {"paper": "toy", "started": started})
    (Path("runs/toy/broken")).mkdir()
    (Path("runs/toy/broken/manifest.json")).write_text("{")
    assert find("toy", "latest").name == "apple"


def test_folders_that_are_no_runs(toy) -> None:
    assert "there is no run in runs/toy yet" in refusal(find, "toy", "latest")
    assert "no run folder at gone" in refusal(find, "toy", "gone")
    Path("empty").mkdir()
    assert "no manifest.json" in refusal(find, "toy", "empty")
    write_json(Path("foreign/manifest.json"), {"paper": "ign"})
    assert "is a run of ign, not of toy" in refusal(find, "toy", "foreign")
    Path("file").write_text("")
    assert "no run folder at file" in refusal(find, "toy", "file")


def test_an_out_that_is_taken(toy) -> None:
    toy.train(toy.TrainConfig(steps=1), RunOptions(out="run"))
    before = Path("run/manifest.json").read_text()
    assert "not empty: choose another, or --resume run" in refusal(
        toy.train, toy.TrainConfig(), RunOptions(out="run")
    )
    assert Path("run/manifest.json").read_text() == before
    Path("file").write_text("")
    assert "a file stands" in refusal(toy.train, toy.TrainConfig(), RunOptions(out="file"))
    Path("fresh").mkdir()
    assert toy.train(toy.TrainConfig(steps=1), RunOptions(out="fresh")) == Path("fresh")


def test_resume_of_another_configuration_lists_the_keys(toy) -> None:
    toy.train(toy.TrainConfig(steps=4), RunOptions(out="run"))
    config = toy.TrainConfig(steps=5, inner=toy.Inner(decay=1.0))
    message = refusal(toy.train, config, RunOptions(resume="run"))
    assert "inner.decay: 0.0 -> 1.0; steps: 4 -> 5" in message
    assert "leave out --out there" in refusal(
        toy.train, toy.TrainConfig(steps=4), RunOptions(resume="run", out="there")
    )


def test_a_run_older_than_a_key_goes_on_with_its_default(toy) -> None:
    toy.train(toy.TrainConfig(steps=4), RunOptions(out="run"))
    stored = read_json(Path("run/config.json"))
    del stored["keep"]
    write_json(Path("run/config.json"), stored)
    toy.train(toy.TrainConfig(steps=4), RunOptions(resume="run"))
    assert "keep: 2 -> 3" in refusal(toy.train, toy.TrainConfig(steps=4, keep=3), RunOptions(resume="run"))


def test_a_finished_run_stays_as_it_is(toy, capsys: pytest.CaptureFixture[str]) -> None:
    toy.train(toy.TrainConfig(steps=4), RunOptions(out="run"))
    before = Path("run/manifest.json").read_text(), Path("run/metrics.jsonl").read_text()
    capsys.readouterr()
    toy.train(toy.TrainConfig(steps=4), RunOptions(resume="run"))
    assert capsys.readouterr().out == "run is finished already: nothing to do\n"
    assert (Path("run/manifest.json").read_text(), Path("run/metrics.jsonl").read_text()) == before


def test_a_run_that_another_process_writes_is_left_alone(toy) -> None:
    config = toy.TrainConfig(steps=4)
    Run.open("toy", "A Line", config, RunOptions(out="run"))
    manifest = read_json(Path("run/manifest.json"))
    assert manifest["process"]["pid"] == os.getpid()
    parent = psutil.Process(os.getppid())
    manifest["process"] |= {"pid": parent.pid, "created": parent.create_time()}
    write_json(Path("run/manifest.json"), manifest)
    assert f"is being written by process {parent.pid}" in refusal(toy.train, config, RunOptions(resume="run"))
    assert read_json(Path("run/manifest.json")) == manifest
    for changes in ({"created": 0.0}, {"host": "elsewhere"}, {"pid": 2**22 + 1}, {"pid": os.getpid()}):
        process = {**manifest["process"], **changes}
        write_json(Path("run/manifest.json"), {**manifest, "process": process})
        Run.open("toy", "A Line", config, RunOptions(resume="run"))
        write_json(Path("run/manifest.json"), manifest)


def test_restore_drops_what_came_after_the_checkpoint(toy) -> None:
    toy.train(toy.TrainConfig(steps=12), RunOptions(out="run"))
    manifest = read_json(Path("run/manifest.json"))
    write_json(Path("run/manifest.json"), {**manifest, "state": "failed", "error": "x"})
    Path("run/checkpoints/note").write_text("no checkpoint")
    Path("run/checkpoints/00000099.bak").mkdir()
    with open("run/metrics.jsonl", "a") as stream:
        stream.write('{"step": 13, "loss": 0.1}\n{"no": 1}\n{"step": 14, "lo')
    assert [row.get("step") for row in read_metrics(Path("run"))] == [*range(1, 14), None]
    run = Run.open("toy", "A Line", toy.TrainConfig(steps=12), RunOptions(resume="run"))
    saved = run.restore()
    assert saved is not None
    assert saved[0] == 12
    assert [row["step"] for row in run.metrics()] == list(range(1, 13))
    assert "error" not in read_json(Path("run/manifest.json"))


def test_a_fresh_run_has_nothing_to_restore(toy) -> None:
    run = Run.open("toy", "A Line", toy.TrainConfig(), RunOptions(out="run"))
    assert run.restore() is None
    assert read_metrics(Path("run")) == []


def test_a_failed_step_is_in_the_manifest_and_the_last_good_checkpoint_stays(toy) -> None:
    assert "not finite at step 13" in refusal(toy.train, toy.TrainConfig(nan_at=13), RunOptions(out="run"))
    manifest = read_json(Path("run/manifest.json"))
    assert manifest["state"] == "failed"
    last = Path("run/checkpoints/00000010")
    assert manifest["error"] == (
        f"UserError: the loss is not finite at step 13: nan; the last good checkpoint is {last}; "
        "try a lower --lr"
    )
    assert [path.name for path in checkpoints(Path("run"))] == ["00000005", "00000010"]


def test_signals_have_their_handlers_back_after_a_run(toy) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    toy.train(toy.TrainConfig(steps=2))
    with pytest.raises(UserError):
        toy.train(toy.TrainConfig(steps=2, nan_at=1))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_run_in_a_thread_of_a_program(toy) -> None:
    done: list[Path] = []
    thread = threading.Thread(target=lambda: done.append(toy.train(toy.TrainConfig(steps=3))))
    thread.start()
    thread.join()
    assert read_json(done[0] / "manifest.json")["state"] == "finished"


def test_a_signal_during_the_last_step_changes_nothing(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_SEND", "24:INT")
    folder = toy.train(toy.TrainConfig())
    assert read_json(folder / "manifest.json")["state"] == "finished"


def test_a_signal_while_the_processes_agree_is_not_lost(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def largest(value: int) -> int:
        calls.append(value)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return value

    monkeypatch.setattr("paperkit.parallel.largest", largest)
    with pytest.raises(Interrupted):
        toy.train(toy.TrainConfig(), RunOptions(out="run"))
    assert calls == [0, 0, 0, signal.SIGTERM]
    assert checkpoints(Path("run"))[-1].name == "00000004"


def test_a_stopped_run_raises_and_tells_how_to_go_on(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_SEND", "7:TERM")
    with pytest.raises(Interrupted, match="go on with: toy train --resume 'my run' --device cpu") as caught:
        toy.train(toy.TrainConfig(), RunOptions(out="my run", device="cpu"))
    assert caught.value.code == 143
    monkeypatch.delenv("TOY_SEND")
    toy.train(toy.TrainConfig(), RunOptions(resume="my run"))


def test_under_uv_the_command_to_go_on_is_uv_s(toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text("")
    uv.chmod(0o755)
    run = Run.open("toy", "A Line", toy.TrainConfig(), RunOptions(out="run"))
    monkeypatch.setenv("UV", str(uv))
    assert run.resume_command == "toy train --resume run", "uv started something else"
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    monkeypatch.setenv("PATH", str(uv.parent))
    assert run.resume_command == "uv run --package toy toy train --resume run"
    monkeypatch.setenv("PATH", "")
    assert run.resume_command == f"{uv} run --package toy toy train --resume run"


def test_the_command_to_go_on_names_the_verb_of_the_run(toy) -> None:
    run = Run.open("toy", "A Line", toy.TrainConfig(), RunOptions(out="run"), verb="generate")
    assert run.resume_command == "toy generate --resume run"


def test_the_board_has_the_metrics_once(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for TensorBoard: every step once, what came after the checkpoint purged, closed."""
    boards: list[dict[str, Any]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int | None):
            boards.append({"folder": folder, "purge": purge_step, "rows": [], "closed": False})

        def add_scalar(self, name: str, value: float, step: int) -> None:
            boards[-1]["rows"].append((name, value, step))

        def close(self) -> None:
            boards[-1]["closed"] = True

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "tensorboard")
    with pytest.raises(UserError):
        toy.train(toy.TrainConfig(nan_at=8), RunOptions(out="run"))
    with pytest.raises(UserError):
        toy.train(toy.TrainConfig(nan_at=8), RunOptions(resume="run"))
    metrics = [("loss", row["loss"], row["step"]) for row in read_metrics(Path("run"))]
    folder = str(Path("run/tensorboard"))
    assert boards == [
        {"folder": folder, "purge": None, "rows": metrics, "closed": True},
        {"folder": folder, "purge": 6, "rows": metrics[5:], "closed": True},
    ]


# ---- runs that end by a signal (in forks)


def test_killed_three_times_a_run_ends_as_if_unbroken(forks, unbroken: Path, tmp_path: Path) -> None:
    steps = sorted(random.Random().sample(range(1, 25), 3))
    for index, step in enumerate(steps):
        # The first may be killed before its first checkpoint: it starts again at step 0.
        argv = ["train", "--resume", "latest"] if index else ["train"]
        status, _, error = forks(argv, tmp_path, {"TOY_SEND": f"{step}:KILL"})
        assert status == -signal.SIGKILL, (steps, error)
        assert read_json(only_run(tmp_path) / "manifest.json")["state"] == "running"
    status, _, error = forks(["train", "--resume", "latest"], tmp_path)
    assert (status, error) == (0, ""), steps
    assert_equal_runs(only_run(tmp_path), unbroken)


def test_killed_before_its_first_checkpoint_a_run_starts_again(forks, unbroken: Path, tmp_path: Path) -> None:
    assert forks(["train"], tmp_path, {"TOY_SEND": "3:KILL"})[0] == -signal.SIGKILL
    assert checkpoints(only_run(tmp_path)) == []
    with open(only_run(tmp_path) / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 3, "lo')
    status, out, _ = forks(["train", "--resume", str(only_run(tmp_path))], tmp_path)
    assert status == 0
    assert "step 1\n" in out
    assert_equal_runs(only_run(tmp_path), unbroken)


@pytest.mark.parametrize(("name", "code"), [("INT", 130), ("TERM", 143)])
def test_a_signal_saves_and_the_printed_command_goes_on(
    forks, unbroken: Path, tmp_path: Path, name: str, code: int
) -> None:
    status, out, error = forks(["train", "--preset", "small"], tmp_path, {"TOY_SEND": f"7:{name}"})
    assert status == code
    assert error.count("\n") == 1, "one line"
    assert "stopping" in out
    run = only_run(tmp_path)
    assert read_json(run / "manifest.json")["state"] == "interrupted"
    assert [row["step"] for row in read_metrics(run)] == list(range(1, 9)), "one more step, saved"
    assert checkpoints(run)[-1].name == "00000008"
    command = shlex.split(error.partition("go on with: ")[2])
    assert command[0] == "toy"
    assert forks(command[1:], tmp_path)[0] == 0
    assert_equal_runs(run, unbroken)
    assert read_json(run / "manifest.json")["state"] == "finished"


@pytest.mark.parametrize("signals", ["7:INT 7:INT", "7:TERM 7:INT"])
def test_a_second_ctrl_c_ends_at_once(forks, unbroken: Path, tmp_path: Path, signals: str) -> None:
    status, _, error = forks(["train"], tmp_path, {"TOY_SEND": signals})
    assert (status, error) == (130, "toy: interrupted\n")
    run = only_run(tmp_path)
    assert [row["step"] for row in read_metrics(run)] == list(range(1, 7))
    assert read_json(run / "manifest.json")["state"] == "interrupted"
    assert forks(["train", "--resume", "latest"], tmp_path)[0] == 0
    assert_equal_runs(run, unbroken)


def test_a_second_term_changes_nothing(forks, tmp_path: Path) -> None:
    status, _, error = forks(["train"], tmp_path, {"TOY_SEND": "7:INT 7:TERM"})
    assert status == 130
    assert "stopped and saved" in error


# ---- provenance


def test_importing_the_run_folder_brings_no_torch() -> None:
    code = (
        "import sys, paperkit.run, paperkit.provenance, paperkit.results, paperkit.cli;"
        "print([m for m in ('torch', 'accelerate', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_hardware_and_time_are_one_line() -> None:
    assert "GiB" in provenance.hardware()
    assert "cores" in provenance.hardware("cpu")
    assert "\n" not in provenance.hardware()
    assert len(provenance.now()) == 25
