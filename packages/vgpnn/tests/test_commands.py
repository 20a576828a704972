"""The real commands, small; a run that was killed and resumed; bad input: one line, exit code 2."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from paperkit import images
from vgpnn import clips, method, session, video
from vgpnn.bench import CASES
from vgpnn.cli import main
from vgpnn.reproduce import CLAIMS

TINY = (
    "--side", "16", "--frames", "4", "--steps", "1", "--coarse-steps", "1", "--patch", "3", "5", "5",
    "--least-side", "10", "--ratio-space", "0.7", "--ratio-time", "0.7",
)  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PAPERKIT_DATA", raising=False)


def said(capsys, *words):
    """Exit code and stderr of the command."""
    code = main(list(words))
    return code, capsys.readouterr().err


def frames(name: str) -> torch.Tensor:
    return video.read(name).frames


def test_train_says_what_to_do(capsys):
    code, error = said(capsys, "train", "--steps", "3")
    assert code == 2
    assert "vgpnn generate" in error
    assert error.count("\n") == 1


def test_generate_evaluate_report():
    assert main(["generate", *TINY, "--samples", "2", "--out", "out"]) == 0
    out = Path("out")
    names = {path.name for path in out.iterdir()} - {"tensorboard"}
    assert names == {
        "config.json", "manifest.json", "metrics.jsonl", "log.txt", "figures.json", "sheet.png", "clips",
        "lossless", "samples", "report.html", "provenance-sample-0.npz", "provenance-sample-1.npz",
    }  # fmt: skip
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["state"] == "finished"
    assert manifest["verb"] == "generate"
    y = frames("out/lossless/sample-1.mkv")
    assert y.shape == (4, 3, 16, 28)
    field = np.load(out / "provenance-sample-1.npz")
    assert field["frame"].shape == (4, 16, 28)
    assert field["column"].max() < 28
    assert "data:image/png" in (out / "report.html").read_text()
    assert main(["evaluate", "--run", "out"]) == 0
    found = json.loads((out / "evaluation.json").read_text())
    assert set(found["outputs"]) == {"sample-0", "sample-1"}
    assert found["diversity"] > 0
    assert main(["report", "--run", "out"]) == 0


@pytest.mark.parametrize(
    ("words", "output", "shape"),
    [
        (("retarget", "--width", "1.5"), "1-retargeted", (4, 3, 16, 42)),
        (
            ("retarget", "--width", "1", "--length", "1.5", "--search", "patchmatch", "--rounds", "3"),
            "1-retargeted",
            (6, 3, 16, 28),
        ),
        (("inpaint", "--hole", "5,9,3,3", "--colour", "mean"), "1-filled", (4, 3, 16, 28)),
        (("inpaint", "--hole", "5,9,3,3", "--colour", "none", "--whole"), "1-filled", (4, 3, 16, 28)),
        (("loop", "--length", "1.5"), "loop-0", (6, 3, 16, 28)),
        (
            ("generate", "--samples", "1", "--length", "0.75", "--noise-kind", "auto"),
            "sample-0",
            (3, 3, 16, 28),
        ),
        (
            ("generate", "--samples", "1", "--noise-kind", "still", "--format", "webm"),
            "sample-0",
            (4, 3, 16, 28),
        ),
        (("analogy", "stand-in", "stand-in", "--flow", "ilk"), "4-analogy", (4, 3, 16, 28)),
        (("sketch", "stand-in", "stand-in"), "2-sketched", (4, 3, 16, 28)),
    ],
)
def test_every_task_writes_its_clip(words, output, shape):
    verb, *rest = words
    input_ = [] if verb in ("analogy", "sketch") else ["stand-in"]
    assert main([verb, *input_, *rest, *TINY, "--out", "out"]) == 0
    assert tuple(frames(f"out/lossless/{output}.mkv").shape) == shape
    ending = "webm" if "webm" in rest else "mp4"
    assert Path(f"out/clips/{output}.{ending}").exists()
    assert Path(f"out/provenance-{output}.npz").exists()


class Killed(BaseException):
    """What no code here catches."""


@pytest.mark.parametrize("search", ["exact", "patchmatch"])
def test_a_run_that_was_killed_goes_on_at_its_level(monkeypatch, search):
    words = ["generate", "stand-in", *TINY, "--samples", "2", "--search", search, "--rounds", "3"]
    assert main([*words, "--out", "whole"]) == 0
    made: list[int] = []
    level = session.Session._level

    def fail(self, problem, state):
        made.append(state.level)
        if state.level == 2:
            raise Killed
        level(self, problem, state)

    monkeypatch.setattr(session.Session, "_level", fail)
    with pytest.raises(Killed):
        main([*words, "--out", "cut"])
    monkeypatch.setattr(
        session.Session, "_level", lambda self, p, s: (made.append(s.level), level(self, p, s))
    )
    made.clear()
    assert main(["generate", "--resume", "cut"]) == 0
    assert made[0] == 2
    for name in ("clips/sample-0.mp4", "clips/sample-1.mp4", "lossless/sample-1.mkv", "metrics.jsonl"):
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes(), name
    assert not Path("cut/checkpoints").exists()


def test_finished_samples_of_a_preview_are_those_of_generate():
    assert main(["generate", *TINY, "--samples", "3", "--out", "all"]) == 0
    assert main(["preview", *TINY, "--samples", "3", "--share", "0.5", "--out", "coarse"]) == 0
    assert main(["finish", "coarse", "--choose", "2", "--out", "chosen"]) == 0
    assert [path.name for path in Path("chosen/clips").glob("sample-?.mp4")] == ["sample-2.mp4"]
    assert torch.equal(frames("chosen/lossless/sample-2.mkv"), frames("all/lossless/sample-2.mkv"))


def test_masks_from_files(capsys):
    clip = clips.stand_in(4, 16, 28)
    video.write("clip.mkv", clip)
    hole = torch.zeros(4, 3, 16, 28, dtype=torch.uint8)
    hole[1:3, :, 6:9, 8:11] = 255
    video.write("hole.mkv", hole)
    images.write("avoid.png", hole[1])
    words = ["inpaint", "clip.mkv", "--mask", "hole.mkv", "--avoid", "avoid.png", *TINY]
    assert main([*words, "--out", "out"]) == 0
    y = frames("out/lossless/1-filled.mkv")
    same = (y == clip).all(1)
    assert bool(same[hole[:, 0] == 0].all())
    assert not bool(same[hole[:, 0] > 0].all())
    field = np.load("out/provenance-1-filled.npz")
    inside = (field["row"] >= 6) & (field["row"] < 9) & (field["column"] >= 8) & (field["column"] < 11)
    assert not inside.any()
    images.write("wrong.png", torch.zeros(1, 16, 20, dtype=torch.uint8))
    code, error = said(capsys, "inpaint", "clip.mkv", "--mask", "wrong.png", *TINY)
    assert code == 2
    assert "one size" in error
    video.write("short.mkv", hole[:3])
    code, error = said(capsys, "inpaint", "clip.mkv", "--mask", "short.mkv", *TINY)
    assert code == 2
    assert "3 frames, the clip 4" in error


def test_guides_from_files():
    video.write("clip.mkv", clips.stand_in(4, 16, 28))
    video.write("guide.mkv", clips.stand_in(4, 16, 28).flip(3))
    words = ["analogy", "clip.mkv", "clip.mkv", "--content-guide", "guide.mkv", "--style-guide", "guide.mkv"]
    assert main([*words, *TINY, "--out", "out"]) == 0
    assert Path("out/samples/2-guide-of-the-content.png").exists()


def test_dry_run_touches_nothing(capsys):
    assert main(["generate", "-n"]) == 0
    assert "stand-in, 16x72x128 -> 13x72x128" in capsys.readouterr().out
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("genrate",), "did you mean generate"),
        (("generate", "nothing.mp4"), "nothing.mp4"),
        (("generate", "standin"), "stand-in"),
        (("generate", "--samples", "0"), "at least 1"),
        (("generate", "--alpha", "-1"), "alpha"),
        (("generate", "--ratio-space", "1.5"), "ratio"),
        (("generate", "--side", "-3"), "side"),
        (("generate", "--side", "6"), "below the coarsest level"),
        (("generate", "--frames", "2"), "below the coarsest level"),
        (("generate", "--start", "99"), "16 frames"),
        (("generate", "--noise", "-1"), "negative"),
        (("generate", "--search", "fast"), "exact"),
        (("generate", "--device", "cuda:99"), "--device"),
        (("generate", "--patch", "0", "7", "7"), "three numbers"),
        (("generate", "--length", "0"), "positive"),
        (("generate", "--length", "0.1"), "smaller than a patch"),
        (("retarget", "--width", "-1"), "positive"),
        (("retarget", "--height", "0.05"), "smaller than a patch"),
        (("inpaint", "--hole", "0,0,90,900"), "inside"),
        (("inpaint", "--hole", "0,0,72,128"), "whole clip"),
        (("inpaint", "--hole", "1,1,60,120"), "smaller hole"),
        (("inpaint", "--hole", "1,1,2,2", "--mask", "x.png"), "give one"),
        (("inpaint", "--mask", "x.png"), "x.png"),
        (("inpaint", "--colour", "300,0,0"), "0..255"),
        (("analogy", "stand-in"), "two clips"),
        (("analogy", "stand-in", "stand-in", "--content-guide", "x"), "give both"),
        (("analogy", "stand-in", "stand-in", "--flow", "raft"), "--weights"),
        (("analogy", "stand-in", "stand-in", "--flow", "raft", "--weights", "x.pth"), "no such file"),
        (("sketch",), "a sketch is needed"),
        (("finish",), "no run"),
        (("preview", "--share", "0"), "share"),
        (("evaluate",), "no run"),
        (("report", "--run", "nowhere"), "nowhere"),
        (("reproduce", "identiti"), "did you mean identity"),
        (("reproduce", "identity"), "videos is missing"),
        (("bench", "exakt"), "did you mean exact"),
        (("bench", "exact", "--cases", "7"), "no case 7"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(capsys, words, expected):
    code, error = said(capsys, *words)
    assert code == 2
    assert expected in error
    assert error.count("\n") == 1
    assert not list(Path("runs").rglob("*.*"))


def test_a_mask_that_marks_nothing_is_refused(capsys):
    images.write(Path("black.png"), torch.zeros(3, 72, 128, dtype=torch.uint8))
    code, error = said(capsys, "inpaint", "--mask", "black.png")
    assert code == 2
    assert "marks nothing" in error


def test_a_preview_is_no_run_to_finish_twice(capsys):
    assert main(["generate", *TINY, "--samples", "1", "--out", "out"]) == 0
    assert "no preview" in said(capsys, "finish", "out")[1]
    assert "nothing to go on with" in said(capsys, "generate", "--resume", "out")[1]
    assert "not empty" in said(capsys, "generate", *TINY, "--out", "out")[1]


def test_claims_and_benchmarks_are_listed():
    assert set(CLAIMS) == {
        "identity", "generation", "noise-dose", "shortening", "completeness", "retarget",
        "patchmatch-quality", "patchmatch-equivalence", "inpaint", "analogy-truth", "ablations", "memory",
    }  # fmt: skip
    assert set(CASES) == {"official", "limit", "exact"}


def test_levels_are_whole_steps():
    assert session.by((13, 72, 128)) == "13x72x128"
    assert method.grid_of((13, 72, 128), (3, 7, 7)) == (11, 66, 122)
