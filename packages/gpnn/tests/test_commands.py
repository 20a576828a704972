"""The real commands at smoke size, and bad input: one line, exit code 2."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gpnn.bench import CASES
from gpnn.cli import main
from gpnn.reproduce import CLAIMS, brute_force, period, stripes
from paperkit import images
from PIL import Image

TINY = ("--side", "40", "--steps", "1", "--coarse-steps", "1")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def said(capsys, *words):
    """Exit code and stderr of the command."""
    code = main(list(words))
    return code, capsys.readouterr().err


def test_train_says_what_to_do(capsys):
    code, error = said(capsys, "train", "--steps", "3")
    assert code == 2
    assert "gpnn generate" in error
    assert error.count("\n") == 1


def test_generate_without_words_but_smaller():
    assert main(["generate", "--preset", "smoke", "--side", "44", "--samples", "3", "--out", "out"]) == 0
    out = Path("out")
    assert {path.name for path in out.iterdir()} == {
        "config.json", "manifest.json", "metrics.jsonl", "figures.json", "grid.png", "images", "samples",
        "report.html", "provenance-sample-0.npz", "provenance-sample-1.npz", "provenance-sample-2.npz",
    }  # fmt: skip
    assert json.loads((out / "manifest.json").read_text())["state"] == "finished"
    field = np.load(out / "provenance-sample-1.npz")
    y = images.read(out / "images" / "sample-1.png")
    assert field["row"].shape == field["column"].shape == tuple(y.shape[1:])
    assert 0 <= json.loads((out / "figures.json").read_text())["sample-0"]["same_place"] <= 1
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["level"] for row in rows] == list(range(len(rows)))[::-1]
    assert main(["evaluate", "--run", "out"]) == 0
    found = json.loads((out / "evaluation.json").read_text())
    assert set(found["outputs"]) == {"sample-0.png", "sample-1.png", "sample-2.png"}
    assert found["diversity"] > 0
    assert main(["report", "--run", "out"]) == 0


@pytest.mark.parametrize(
    ("words", "output", "size"),
    [
        (("retarget", "coffee", "--width", "1.5"), "1-retargeted", (27, 60)),
        (
            ("retarget", "coffee", "--width", "1.5", "--gradual", "--search", "patchmatch"),
            "1-retargeted",
            (27, 60),
        ),
        (("reshuffle", "coffee", "--move", "2,2,8,8,14,20", "--keep"), "2-edited", (27, 40)),
        (("inpaint", "brick", "--hole", "10,10,8,8", "--colour", "mean"), "1-filled", (40, 40)),
        (
            ("inpaint", "brick", "--hole", "10,10,8,8", "--colour", "255,0,0", "--parity"),
            "1-filled",
            (40, 40),
        ),
        (("collage", "coffee", "chelsea", "--shrinkings", "1"), "1-collage", None),
        (("analogy", "gravel", "coffee", "--both"), "2-analogy", (27, 40)),
        (("texture", "gravel", "--height", "30", "--width", "50"), "sample-0", (30, 50)),
    ],
)
def test_every_task_writes_its_picture(words, output, size):
    assert main([*words, *TINY, "--out", "out"]) == 0
    y = images.read(f"out/images/{output}.png")
    assert size is None or tuple(y.shape[1:]) == size
    assert Path(f"out/provenance-{output}.npz").exists()
    assert Path("out/report.html").exists()


def test_edit_takes_two_files():
    x = torch.randint(0, 256, (3, 30, 34), dtype=torch.uint8)
    images.write("a.png", x)
    x[:, 5:15, 6:20] = 0
    images.write("b.png", x)
    assert main(["edit", "a.png", "b.png", *TINY, "--out", "out"]) == 0
    assert tuple(images.read("out/images/2-edited.png").shape) == (3, 30, 34)


def test_inpaint_takes_a_mask_file():
    mask = torch.zeros(1, 400, 600, dtype=torch.uint8)
    mask[:, 100:180, 200:300] = 255
    images.write("mask.png", mask)
    images.write("coffee.png", torch.randint(0, 256, (3, 400, 600), dtype=torch.uint8))
    assert main(["inpaint", "coffee.png", "--mask", "mask.png", *TINY, "--out", "out"]) == 0
    assert tuple(images.read("out/images/1-filled.png").shape[1:]) == (27, 40)


def test_a_sheet_of_analogy_settings():
    words = [
        "analogy",
        "gravel",
        "coffee",
        "--search-settings",
        "--side",
        "30",
        "--steps",
        "1",
        "--out",
        "out",
    ]
    assert main([*words, "--coarse-steps", "1"]) == 0
    assert images.read("out/settings.png").ndim == 3


def test_batch_goes_on_where_it_was(capsys):
    for name in ("a", "b"):
        images.write(f"in/{name}.png", torch.randint(0, 256, (3, 30, 32), dtype=torch.uint8))
    words = ["batch", "in", "--samples", "2", "--noise-kind", "absolute", *TINY, "--out", "made"]
    assert main(words) == 0
    before = images.read("made/b-1.png")
    Path("made/b-1.png").unlink()
    capsys.readouterr()
    assert main(words) == 0
    assert "1 images made, 1 were there" in capsys.readouterr().out
    assert torch.equal(images.read("made/b-1.png"), before)


def test_batch_in_two_processes_makes_each_image_once(monkeypatch):
    for name in ("a", "b", "c"):
        images.write(f"in/{name}.png", torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8))
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert main(["batch", "in", "--samples", "1", "--noise-kind", "absolute", *TINY, "--out", rank]) == 0
        made.append({path.name for path in Path(rank).iterdir()})
    assert made == [{"a-0.png", "c-0.png"}, {"b-0.png"}]


def test_dry_run_touches_nothing(capsys):
    assert main(["generate", "-n"]) == 0
    assert "coffee, 120x180" in capsys.readouterr().out
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "L", "P", "I;16"])
def test_every_kind_of_file_is_read_as_colour(mode):
    pixels = np.arange(30 * 32, dtype=np.uint16).reshape(30, 32)
    picture = Image.fromarray(pixels) if mode == "I;16" else Image.fromarray((pixels % 256).astype(np.uint8))
    name = "x.tif" if mode == "CMYK" else "x.png"
    (picture if mode == "I;16" else picture.convert(mode)).save(name)
    assert main(["generate", name, "--samples", "1", *TINY, "--noise-kind", "absolute", "--out", "out"]) == 0
    assert tuple(images.read("out/images/sample-0.png").shape) == (3, 30, 32)


def test_turned_files_are_upright_and_animations_give_their_first_frame():
    frame = Image.new("RGB", (32, 20), "white")
    exif = Image.Exif()
    exif[274] = 6
    frame.save("turned.jpg", exif=exif)
    black = Image.new("RGB", (20, 20), "black")
    frame.resize((20, 20)).save("moves.gif", save_all=True, append_images=[black])
    words = ["--samples", "1", *TINY, "--noise-kind", "absolute", "--levels", "1"]
    assert main(["generate", "turned.jpg", *words, "--out", "a"]) == 0
    assert tuple(images.read("a/images/sample-0.png").shape) == (3, 32, 20)
    assert main(["generate", "moves.gif", *words, "--out", "b"]) == 0
    assert int(images.read("b/images/sample-0.png").min()) == 255


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("genrate",), "did you mean generate"),
        (("generate", "nothing.png"), "nothing.png"),
        (("generate", "cofee"), "embedded photograph"),
        (("generate", "--samples", "0"), "at least 1"),
        (("generate", "--alpha", "-1"), "alpha"),
        (("generate", "--ratio", "1.5"), "ratio"),
        (("generate", "--side", "-3"), "side"),
        (("generate", "--side", "20", "--levels", "5"), "fewer levels"),
        (("generate", "--noise", "-1"), "negative"),
        (("generate", "--search", "fast"), "exact"),
        (("generate", "--device", "cuda:99"), "--device"),
        (("retarget", "--width", "0"), "positive"),
        (("retarget", "--height", "-1"), "positive"),
        (("edit", "coffee"), "two images"),
        (("reshuffle", "--move", "1,2,3"), "6 whole numbers"),
        (("reshuffle", "--side", "40", "--move", "0,0,90,8,1,1"), "inside"),
        (("inpaint", "--side", "40", "--hole", "0,0,90,90"), "inside"),
        (("inpaint", "--side", "40", "--hole", "0,0,40,40"), "whole image"),
        (("inpaint", "--side", "40", "--hole", "2,2,36,36", "--levels", "2"), "smaller hole"),
        (("inpaint", "--hole", "1,1,2,2", "--mask", "x.png"), "give one"),
        (("inpaint", "--mask", "x.png"), "x.png"),
        (("inpaint", "--side", "40", "--hole", "1,1,9,9", "--colour", "300,0,0"), "0..255"),
        (("collage", "coffee"), "two images"),
        (("batch",), "folder"),
        (("batch", "nowhere"), "nowhere"),
        (("batch", "."), "no images"),
        (("evaluate",), "no run"),
        (("report", "--run", "nowhere"), "nowhere"),
        (("reproduce", "identiti"), "did you mean identity"),
        (("bench", "oficial"), "did you mean official"),
        (("bench", "official", "--peer", "."), "applications.py"),
    ],
)
def test_bad_input_is_one_line(capsys, words, expected):
    code, error = said(capsys, *words)
    assert code == 2
    assert expected in error
    assert error.count("\n") == 1


def test_a_mask_of_another_size(capsys):
    images.write("mask.png", torch.full((1, 10, 10), 255, dtype=torch.uint8))
    code, error = said(capsys, "inpaint", "brick", "--side", "40", "--mask", "mask.png")
    assert code == 2
    assert "equal sizes" in error


def test_a_folder_that_is_not_empty_or_cannot_be_made(capsys):
    Path("full").mkdir()
    Path("full/x").write_text("x")
    assert "not empty" in said(capsys, "generate", "--preset", "smoke", "--out", "full")[1]
    assert "a file stands" in said(capsys, "generate", "--preset", "smoke", "--out", "full/x/y")[1]


# ---- reproduce


def test_claims_and_benchmarks_are_listed():
    assert list(CLAIMS)[:5] == ["exact-search", "identity", "key-schedule", "retarget-content", "inpaint"]
    assert set(CASES) == {"official", "scale", "efficient", "gpu"}


def test_brute_force_takes_the_lowest_of_equals():
    x = torch.rand(1, 3, 4).repeat(1, 1, 2)
    assert brute_force(x, x, math.inf, 3).tolist()[0] == 0
    assert brute_force(x, x, 5e-3, 3).tolist()[4] == 0


def test_period_of_stripes():
    for seed in (0, 1, 2):
        x, piece = stripes(96, seed)
        assert period(x) == piece


def test_a_claim_writes_its_file():
    assert main(["reproduce", "exact-search", "--side", "20", "--out", "."]) == 0
    record = json.loads(Path("exact-search.json").read_text())
    assert record["holds"]
    assert record["details"]["queries"] > 1000


def test_inpainting_takes_as_many_levels_as_the_hole_leaves(capsys):
    """A hole that leaves no key at the depth of its size: fewer levels, where none were asked for."""
    words = ["inpaint", "brick", "--side", "40", "--hole", "0,8,40,32", "--steps", "1", "--coarse-steps", "1"]
    assert main([*words, "--out", "a"]) == 0
    assert "0 levels" in capsys.readouterr().out
    code, error = said(capsys, *words, "--levels", "2", "--out", "b")
    assert code == 2
    assert "fewer levels or a smaller hole" in error


@pytest.mark.parametrize("words", [("generate", "--preset", "smoke"), ("batch", "in", *TINY)])
def test_a_folder_that_is_read_only(capsys, monkeypatch, words):
    images.write("in/a.png", torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8))

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere
    code, error = said(capsys, *words, "--noise-kind", "absolute", "--out", "locked/out")
    assert code == 2
    assert "read-only" in error
    assert error.count("\n") == 1
