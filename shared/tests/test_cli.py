"""The command line of a paper: presets before flags, a line for every mistake, nothing touched by a look."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paperkit import UserError, at_least, cli
from paperkit.run import checkpoints, read_json, write_json

HERE = Path(__file__).parent


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The made-up paper, in an empty working directory."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TOY_SEND", "UV", "UV_RUN_RECURSION_DEPTH"):
        monkeypatch.delenv(name, raising=False)
    import toy_paper

    return toy_paper


@pytest.fixture
def call(toy, capsys: pytest.CaptureFixture[str]):
    """`call("train", "--steps", "3")`: (exit code, stdout, stderr)."""

    def words(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(toy.PAPER, argv)
        return code, *capsys.readouterr()

    return words


@pytest.fixture
def refuse(call):
    """`refuse("train", "--x")`: the one line, of a command that exits with 2 and leaves no file.

    What only the paper can refuse comes after the head line that a run prints.
    """

    def words(*argv: str) -> str:
        before = files()
        code, out, error = call(*argv)
        assert code == 2
        assert not out or (out.startswith("toy · A Line") and out.count("\n") == 1)
        assert error.startswith("toy: ")
        assert error.count("\n") == 1
        assert error.endswith("\n")
        assert files() == before
        return error.removeprefix("toy: ").rstrip("\n")

    return words


def files() -> dict[str, tuple[int, int]]:
    """Every path below the working directory with its size and the time of its last change."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in Path.cwd().rglob("*")}


def resolved(toy, *argv: str):
    """The configuration and preset that the words after `train` mean."""
    command, preset, _ = cli.parse(toy.PAPER, "train", list(argv))
    return command.config, preset


# ---- presets, flags, files


def test_the_default_preset_is_small(toy) -> None:
    assert resolved(toy) == (toy.TrainConfig(), "small")


@pytest.mark.parametrize(
    "argv",
    [
        ["--preset", "paper", "--steps", "7"],
        ["--steps", "7", "--preset", "paper"],
        ["--preset=paper", "--steps=7"],
        ["--steps", "7", "--preset=smoke", "--preset", "paper"],
    ],
)
def test_a_flag_beats_the_preset_in_any_order(toy, argv: list[str]) -> None:
    assert resolved(toy, *argv) == (toy.TrainConfig(steps=7, lr=0.01), "paper")


def test_every_kind_of_flag(toy) -> None:
    line = "--flip --net curve --size 3 4 --limit 5 --inner.decay 0.5 --save-every 2 --lr 1e-3"
    config, _ = resolved(toy, *shlex.split(line))
    inner = toy.Inner(decay=0.5)
    assert config == toy.TrainConfig(
        flip=True, net="curve", size=(3, 4), limit=5, inner=inner, save_every=2, lr=1e-3
    )
    assert resolved(toy, "--limit", "None")[0].limit is None
    assert resolved(toy, "--flip", "--no-flip")[0].flip is False
    assert resolved(toy, "--save_every", "3")[0].save_every == 3


def test_the_configuration_of_a_run_is_taken_back(toy, call) -> None:
    words = shlex.split("--preset smoke --flip --size 3 4 --limit 5 --inner.decay 0.5 --lr 1e-3")
    assert call("train", "--out", "one", *words)[0] == 0
    assert call("train", "--out", "two", "--config", "one/config.json")[0] == 0
    assert Path("one/config.json").read_text() == Path("two/config.json").read_text()
    assert Path("one/metrics.jsonl").read_text() == Path("two/metrics.jsonl").read_text()
    assert read_json(Path("two/manifest.json"))["preset"] == ""
    config, preset = resolved(toy, "--config=one/config.json", "--steps", "9")
    assert (config.steps, config.size, preset) == (9, (3, 4), "")


def test_words_that_look_like_flags_can_be_values(call) -> None:
    assert call("show", "--", "--preset") == (0, "--preset\n", "")
    assert call("show", "--n", "2", "--", "-n") == (0, "-n\n-n\n", "")
    assert call("show", "my --preset photo.png") == (0, "my --preset photo.png\n", "")
    assert call("show", "a=--help") == (0, "a=--help\n", "")


# ---- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("trian", "no verb trian (did you mean train?); the verbs are train, show, break"),
        ("--preset smoke train", "the verb comes first, then --preset; the verbs are train, show, break"),
        ("generate", "a line generates nothing: toy train"),
        ("train --preset smok", "no preset smok (did you mean smoke?); the presets of train are: smoke, s"),
        ("show x --preset smoke", "no preset smoke; the presets of show are: none"),
        ("train --preset", "--preset needs a value"),
        ("train --preset --flip", "--preset needs a value"),
        ("train --preset=", "--preset needs a value"),
        ("train --resume", "--resume needs a value"),
        ("train --config", "--config needs a value"),
        ("train --preset smoke --config c.json", "--preset and --config both name a configuration"),
        ("train --stpes 5", "no flag --stpes (did you mean --steps?); see toy train --help"),
        ("train --presets smoke", "no flag --presets (did you mean --preset?)"),
        ("train --rseume x", "no flag --rseume (did you mean --resume?)"),
        ("train --inner.deacy 1", "no flag --inner.deacy (did you mean --inner.decay?)"),
        ("train --no-filp", "no flag --no-filp (did you mean --no-flip?)"),
        ("train --qqqqq=1", "no flag --qqqqq; see"),
        ("show --inptu x", "no flag --inptu"),
        ("show x --out y", "no flag --out"),
        ("train --steps abc", "--steps takes INT, not abc; see toy train --help"),
        ("train --steps 1.5", "--steps takes INT, not 1.5"),
        ("train --steps=", "--steps takes INT, not ; see"),
        ("train --lr fast", "--lr takes FLOAT, not fast"),
        ("train --save_every=x", "--save-every takes INT, not x"),
        ("train --size 1 a", "--size takes INT INT, not 1 a"),
        ("train --size 1", "--size needs 2 values"),
        ("train --limit x", "--limit takes None or INT, not x"),
        ("train --inner.decay x", "--inner.decay takes FLOAT, not x"),
        ("train --steps", "--steps needs a value"),
        ("train --steps --flip", "--steps needs a value"),
        ("train --net lien", "--net lien: choose from line, curve (did you mean line?)"),
        ("train --precision fp16", "--precision fp16: choose from auto, fp32, bf16"),
        ("train stray", "unexpected word stray; see"),
        ("train --steps 5 6", "unexpected word 6; see"),
        ("train --flip True", "unexpected word True (a switch takes no value: --flag or --no-flag)"),
        ("train -x", "unexpected word -x"),
        ("show", "input must be given; see toy show --help"),
        ("show a b", "unexpected word b"),
        ("train --steps 0", "--steps must be at least 1, not 0"),
        ("train --steps -3", "--steps must be at least 1, not -3"),
        ("train --device gpu", "--device gpu is no device"),
        ("train --device cpu --precision bf16", "--precision bf16 is for CUDA devices"),
        ("train --config none.json", "--config none.json: there is no such file"),
        ("train --config .", "--config .: there is no such file"),
        ("train --resume latest", "there is no run in runs/toy yet"),
        ("train --resume gone", "no run folder at gone"),
    ],
)
def test_every_mistake_is_one_line(refuse, words: str, message: str) -> None:
    assert message in refuse(*words.split())


def test_cuda_where_there_is_none(refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA GPU on this machine" in refuse("train", "--device", "cuda")


def test_long_values_are_not_torn(refuse) -> None:
    value = "x" * 300
    assert f"--steps takes INT, not {value};" in refuse("train", "--steps", value)


def test_configuration_files_that_do_not_fit(refuse) -> None:
    for content, words in (
        ("{", "corrupt"),
        ("[]", "no JSON object"),
        ('{"stpes": 3}', "bad.json: unknown key stpes (did you mean steps?)"),
        ('{"steps": true}', "bad.json: steps: True does not fit int"),
        ('{"inner": {"decay": "x"}}', "bad.json: inner: decay: 'x' does not fit float"),
        ('{"steps": 0}', "--steps must be at least 1"),
    ):
        Path("bad.json").write_text(content)
        assert words in refuse("train", "--config", "bad.json")


def test_a_bug_keeps_its_traceback(toy) -> None:
    with pytest.raises(ValueError, match="a bug with x"):
        cli.main(toy.PAPER, ["break", "x"])


def test_an_interrupt_outside_a_run_is_one_line(call, toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(toy, "show", interrupt)
    assert call("show", "x") == (130, "", "toy: interrupted\n")


# ---- looking


def test_a_dry_run_shows_and_touches_nothing(call) -> None:
    for flag in ("-n", "--dry-run"):
        code, out, error = call("train", flag, "--preset", "smoke", "--lr", "0.5")
        assert (code, error, files()) == (0, "", {})
        head, *facts = out.partition("{")[0].splitlines()
        assert head == "toy train · A Line (arXiv 0000.00000) · preset smoke"
        assert dict(row.split(maxsplit=1) for row in facts)["length"] == "4 steps"
        assert "device" in out
        assert "runs/toy/<time>-smoke-" in out
        assert json.loads(out[out.index("{") :])["lr"] == 0.5
    assert call("show", "-n", "x")[1].startswith("toy show · A Line")
    assert files() == {}


def test_a_dry_run_makes_the_same_mistakes(refuse) -> None:
    assert "at least 1" in refuse("train", "-n", "--steps", "0")
    assert "no run folder at gone" in refuse("train", "-n", "--resume", "gone")


def test_help_of_the_command_and_of_a_verb(call) -> None:
    for words in ((), ("-h",), ("--help",)):
        code, out, error = call(*words)
        assert (code, error) == (0, "")
        assert "train  Fit the line." in out
    for words in (("train", "--help"), ("train", "-h"), ("train", "--preset", "paper", "--help")):
        code, out, error = call(*words)
        assert (code, error, files()) == (0, "", {})
        for part in ("small (default): a second", "--flip", "--no-flip", "Optimiser steps", "--resume"):
            assert part in out
    assert "(default: 50)" in out


# ---- resume


def test_resume_takes_the_stored_configuration(call, refuse) -> None:
    assert call("train", "--preset", "smoke", "--lr", "0.01", "--out", "run")[0] == 0
    code, out, error = call("train", "--resume", "run")
    assert (code, error) == (0, "")
    assert out == ("toy · A Line (arXiv 0000.00000) · preset smoke\nrun is finished already: nothing to do\n")
    assert call("train", "--resume", "run", "--lr", "0.01")[0] == 0
    assert call("train", "--resume=run", "--preset", "smoke", "--lr", "0.01")[0] == 0


def test_resume_with_other_flags_lists_the_keys(call, refuse) -> None:
    assert call("train", "--preset", "smoke", "--out", "run")[0] == 0
    error = refuse("train", "--resume", "run", "--lr", "0.5", "--inner.decay", "1")
    assert "inner.decay: 0.0 -> 1.0; lr: 0.05 -> 0.5" in error
    assert "steps: 4 -> 50" in refuse("train", "--resume", "run", "--preset", "paper")
    assert "leave out --out x" in refuse("train", "--resume", "run", "--out", "x")


def test_resume_of_what_is_no_run_of_ours(refuse) -> None:
    Path("empty").mkdir()
    assert "no manifest.json" in refuse("train", "--resume", "empty")
    write_json(Path("foreign/manifest.json"), {"paper": "ign"})
    assert "is a run of ign, not of toy" in refuse("train", "--resume", "foreign")


def test_resume_of_a_damaged_run(call, refuse) -> None:
    assert call("train", "--nan-at", "12", "--out", "failed")[0] == 2
    for path, content, words in (
        ("config.json", "{", "config.json is corrupt"),
        ("manifest.json", "", "manifest.json is corrupt"),
        ("config.json", None, "config.json is missing"),
    ):
        shutil.copytree("failed", "run")
        (Path("run") / path).write_text(content) if content is not None else (Path("run") / path).unlink()
        assert words in refuse("train", "--resume", "run")
        shutil.rmtree("run")
    last = checkpoints(Path("failed"))[-1].name
    for name in ("net.safetensors", "state.pt"):
        shutil.copytree("failed", "run")
        path = Path("run/checkpoints") / last / name
        path.write_bytes(path.read_bytes()[:-20])
        code, _, error = call("train", "--resume", "run")
        assert code == 2
        assert f"{path} is corrupt" in error
        assert error.count("\n") == 1
        # What the line says helps.
        shutil.rmtree(path.parent)
        code, out, error = call("train", "--resume", "run")
        assert "step 6\n" in out
        assert "not finite at step 12" in error
        shutil.rmtree("run")


# ---- as a process


def test_a_process_exits_as_promised_and_help_brings_no_torch(tmp_path: Path) -> None:
    """One interpreter each: help of ours and of ign's, a bug, readers that go away, a full output."""
    environment = {**os.environ, "PYTHONPATH": str(HERE)}

    def python(code: str, **more) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
        )

    looked = python(
        "import sys; from toy_paper import PAPER; from paperkit.cli import main\n"
        "codes = [main(PAPER, words.split()) for words in ('--help', 'train --help', 'trian', 'train --x')]\n"
        "print(codes, [m for m in ('torch', 'numpy', 'accelerate') if m in sys.modules])"
    )
    assert looked.stdout.endswith("[0, 0, 2, 2] []\n"), looked.stderr

    script = (
        "import sys; from toy_paper import PAPER; from paperkit.cli import main; sys.exit(main(PAPER, {}))"
    )
    bug = python(script.format(["break", "x"]))
    assert bug.returncode == 1
    assert bug.stderr.startswith("Traceback")
    assert bug.stderr.endswith("ValueError: a bug with x\n")

    for words in (["--help"], ["train", "--help"], ["show", "x", "--n", "100000"]):
        read, write = os.pipe()
        os.close(read)
        gone = python(script.format(words), stdout=write)
        os.close(write)
        assert (gone.returncode, gone.stderr) == (141, ""), words

    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            told = python(script.format(["show", "x"]), stdout=full)
        assert told.returncode == 2
        assert told.stderr == "toy: cannot write the output: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


def test_flags_below_their_least_are_named():
    at_least(1, samples=1, read_ahead=2)
    with pytest.raises(UserError, match="--read-ahead must be at least 2, not 1"):
        at_least(2, samples=5, read_ahead=1)
    with pytest.raises(UserError, match="--limit must not be negative: -1"):
        at_least(0, limit=-1)
