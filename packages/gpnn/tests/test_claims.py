"""What stands behind the result files: parity, published samples, feature distance, timed calls."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gpnn import bench, metrics, observe, parity, published, timing
from gpnn.cli import main
from gpnn.config import BenchConfig
from gpnn.method import Settings
from gpnn.reproduce import brute_force
from gpnn.search import matcher
from gpnn.session import read_image
from paperkit import UserError, images


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(parity.VARIABLE, raising=False)


class Frame:
    """Keys without a key set around them."""

    mask = None

    def __init__(self, keys):
        self.keys = keys


# ---- the search where its values leave the keys' range


@pytest.mark.parametrize("alpha", [math.inf, 5e-3, 1e-6])
@pytest.mark.parametrize("kind", ["pca", "exact", "faiss"])
def test_queries_far_outside_the_keys_range(alpha, kind):
    """As with much noise at the coarsest level; and the same keys again for queries near them."""
    if kind == "faiss":
        pytest.importorskip("faiss", reason="the extra faiss is not installed")
    x = read_image("coffee", 30)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    among = matcher(Frame(x), 7, kind, 2**26)
    for spread in (0.1, 50.0, 3e4, 0.01):
        y = x + spread * noise
        found, expected = among.search(y, alpha, None), brute_force(y, x, alpha, 7)
        if kind == "faiss":  # its candidates are float32: their keys may be as near as float32 tells
            least = matcher(Frame(x), 7, "exact", 2**26).search(y, alpha, None).score
            assert float(((found.score - least) / least).max()) < 1e-3
        else:
            assert torch.equal(found.index, expected)


def test_the_faiss_search_as_a_command():
    pytest.importorskip("faiss", reason="the extra faiss is not installed")
    words = ["retarget", "coffee", "--side", "40", "--steps", "1", "--coarse-steps", "1", "--levels", "1"]
    for kind in ("faiss", "exact"):
        assert main([*words, "--search", kind, "--out", kind]) == 0
    a, b = (images.read(f"{kind}/images/1-retargeted.png").int() for kind in ("faiss", "exact"))
    assert float(((a - b).abs() <= 1).double().mean()) > 0.99


# ---- parity


def test_parity_without_the_official_code_is_one_line(capsys):
    assert main(["reproduce", "parity", "--out", "."]) == 2
    error = capsys.readouterr().err
    assert parity.VARIABLE in error
    assert error.count("\n") == 1
    assert main(["reproduce", "parity", "--official", ".", "--out", "."]) == 2
    assert "applications.py" in capsys.readouterr().err


def test_choices_are_told_apart_by_their_score():
    x = read_image("coffee", 24)
    keys = x.flip(2)
    settings = Settings(alpha=5e-3)
    best = brute_force(x, keys, 5e-3, 7)
    same = parity.compare_choices(x, keys, best, best, settings)
    assert same["differ"] == same["excess"] == 0
    other = best.clone()
    other[3] = (best[3] + 1) % len(best)
    worse = parity.compare_choices(x, keys, best, other, settings)
    assert (worse["differ"], worse["no_worse"], worse["ties"]) == (1, 0, 0)
    assert worse["theirs_worse_by"] > 0
    better = parity.compare_choices(x, keys, other, best, settings)
    assert better["no_worse"] == 1
    assert better["excess"] == worse["theirs_worse_by"]


CHECKOUT = """
import torch
from torch.nn import functional as F
def find_normalized_nearest_neighbors(q, k, alpha):
    found = torch.cdist(q, k).min(2, keepdim=True)
    return found
def pnn(query, key, value, alpha):
    q, k, v = (F.unfold(x[None], 7).transpose(1, 2) for x in (query, key, value))
    _, index = find_normalized_nearest_neighbors(q, k, alpha)
    chosen = v[:, index[0, :, 0]].transpose(1, 2)
    size = query.shape[1:]
    return (F.fold(chosen, size, 7) / F.fold(torch.ones_like(chosen), size, 7))[0]
"""
APPLICATION = """
import gpnn, torch
def generation(image, noise_std, alpha, downscale_ratio, num_levels):
    y = image + noise_std * torch.randn_like(image)
    for _ in range(2):
        y = gpnn.pnn(y, key=image, value=image, alpha=alpha)
    return y
"""


def test_the_official_code_is_watched_from_outside(monkeypatch):
    """A checkout of the same shape: its steps are written down, and ours gives the same choices."""
    Path("checkout").mkdir()
    Path("checkout/gpnn.py").write_text(CHECKOUT)
    Path("checkout/applications.py").write_text(APPLICATION)
    monkeypatch.setattr(parity, "SIZE", (16, 20))
    monkeypatch.setitem(parity.TASKS, "generate", replace(parity.TASKS["generate"], levels=0))
    case = parity.Case("generate", parity.picture("coffee").double())
    seen = parity.run_official(Path("checkout"), case)
    assert int(seen["steps"]) == 2
    assert int(seen["level_1"]) == 1  # the same keys: one level
    noisy = case.image + parity.NOISE * case.noise()
    assert np.array_equal(seen["query_0"], noisy.numpy())
    assert np.array_equal(seen["output_1"], seen["result"])
    steps = parity.compare_steps(seen, case)
    assert steps["queries"] == 2 * 10 * 14
    assert steps["differ"] == steps["keys"] == 0
    assert 0 < steps["fold"] < 0.1  # a plain mean, not the weighted one


def test_a_checkout_that_fails_is_one_line(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nValueError: broken\n")
    monkeypatch.setattr(subprocess, "run", lambda *words, **more: failed)
    case = parity.Case("edit", torch.rand(3, 16, 16), torch.rand(3, 16, 16))
    with pytest.raises(UserError, match=r"failed: .*broken"):
        parity.run_official(Path("checkout"), case)


def test_relative_differences_are_of_means_over_images():
    rows = [
        {"task": task, side: 0, "ours": {k: 1.0 + n for k in ("realism", "completeness", "energy")},
         "official": {k: 2.0 for k in ("realism", "completeness", "energy")}}
        for task in parity.TASKS for n, side in ((0, "a"), (2, "b"))
    ]  # fmt: skip
    assert set(parity.relative(rows, "ours", "official").values()) == {0.0}


def test_every_input_of_parity_fits_either_codes_rounding():
    for _, case in parity.cases(torch.float32):
        height, width = case.size
        assert (height, width) == (math.ceil(height), math.ceil(parity.NARROW * 90)) or width == 90
        for n in range(case.settings.levels + 1):
            for side in (*case.size, *case.image.shape[1:]):
                ours = -(-side * round(100 * case.settings.ratio) ** n // 100**n)
                assert math.ceil(side * case.settings.ratio**n) == ours


# ---- published samples and the feature distance


@pytest.fixture
def data(monkeypatch):
    """A data folder with two small images of each set and a feature network of random weights."""
    from safetensors.torch import save_file
    from torchvision.models import squeezenet1_0

    torch.manual_seed(0)
    Path("data/weights").mkdir(parents=True)
    save_file(squeezenet1_0(weights=None).state_dict(), f"data/{metrics.WEIGHTS}")
    for chosen in published.SETS:
        for number, name in ((1, "coffee"), (2, "chelsea")):
            x = (255 * read_image(name, 40)).byte()
            images.write(f"data/single-images/{chosen.name}/{number}.jpg", x)
            for method, y in (("GPNN", x.flip(2)), ("SINGAN", x.roll(9, 2) ^ 21)):
                folder = f"data/single-images/published-results/{chosen.name}_{method}{chosen.suffix}"
                images.write(f"{folder}/{number}.png", y)
    monkeypatch.setenv("PAPERKIT_DATA", "data")


def test_features_tell_images_apart(data):
    frechet = metrics.SqueezeNetFrechet(Path("data"))
    x = read_image("coffee", 40)
    assert abs(frechet(x, x)) < 1e-6 * frechet.spread(x)
    near, far = frechet((x + 0.01 * torch.randn_like(x)).clamp(0, 1), x), frechet(torch.rand_like(x), x)
    assert 0 < near < far
    with pytest.raises(UserError, match="SqueezeNet"):
        metrics.SqueezeNetFrechet(Path("nowhere"))


def test_realism_diversity_writes_its_file(data):
    assert main(["reproduce", "realism-diversity", "--seeds", "2", "--out", "."]) == 0
    record = json.loads(Path("realism-diversity.json").read_text())
    rows = record["details"]["rows"]
    assert [(row["set"], row["samples"]) for row in rows] == [
        ("SIGD16", 2), ("SIGD16", 2), ("Places50", 2), ("Places50", 1)
    ]  # fmt: skip
    assert record["ours"]["n"] == 4
    assert all(row["ours"]["realism"] < row["singan"]["realism"] for row in rows)
    difference = record["details"]["differences"]["singan both realism"]
    assert difference["wins"] == 4
    assert record["arms"]["SIGD16 ours diversity"]["n"] == 2


def test_a_published_sample_that_is_missing_is_named(data, capsys):
    Path("data/single-images/published-results/SIGD16_GPNN/2.png").unlink()
    assert main(["reproduce", "realism-diversity", "--out", "."]) == 2
    error = capsys.readouterr().err
    assert "SIGD16_GPNN/2.png" in error
    assert error.count("\n") == 1


def test_jpeg_changes_little_and_keeps_the_size():
    x = read_image("coffee", 41)
    y = published.through_jpeg(x)
    assert y.shape == x.shape
    assert 0 < float((x - y).abs().mean()) < 0.05


# ---- benchmarks


def timed(times):
    """A stand-in for the timed process, which answers with the next of these."""
    answers = iter(times)
    return lambda python, words, threads: next(answers)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_benchmark_takes_turns_and_writes_medians(monkeypatch, threads):
    Path("peer").mkdir()
    Path("peer/applications.py").write_text("")
    sides = [[1.0, 0.5, 4096, 1024], [40.0, 20.0, 8192, 1024]]
    monkeypatch.setattr(bench, "_timed", timed(sides * 5))
    monkeypatch.setitem(bench.CASES, "official", {"93-inf": bench.Case("generate", 48, math.inf, 30)})
    written = bench.bench(BenchConfig("official", peer="peer", threads=threads, out="."))
    record = json.loads(written[0].read_text())
    assert written[0].name == f"bench-official-93-inf{'-2-threads' if threads == 2 else ''}.json"
    assert record["ratio"] == record["details"]["cpu_ratio"] == 40
    assert record["holds"]
    assert record["peak_mib"] == {"ours": 4.0, "against": 8.0}
    assert record["details"]["call_bytes_per_pixel"] == 3 * 2**20 / (48 * 64)
    assert "--peer PEER" in record["command"]


def test_without_a_peer_only_our_side_is_timed(monkeypatch):
    monkeypatch.setattr(bench, "_timed", timed([[1.0, 0.5, 4096, 1024]] * 5))
    monkeypatch.setitem(bench.CASES, "efficient", {"x": bench.Case("step", 40, 5e-3, 3, mode="exact")})
    record = json.loads(bench.bench(BenchConfig("efficient", out="."))[0].read_text())
    assert record["ratio"] is record["holds"] is None
    assert "--peer" not in record["command"]


@pytest.mark.parametrize("task", ["generate", "retarget", "step"])
def test_what_is_timed_is_the_real_call(task):
    given = bench.inputs(bench.Case(task, 40, 5e-3, 1))
    assert given["levels"] >= 2
    small = {name.removeprefix("small_"): x for name, x in given.items() if name.startswith("small_")}
    found = timing.ours({**given, **small, "levels": np.array(1)})
    if task == "step":
        key, query = (torch.from_numpy(small[name]) for name in ("key", "query"))
        assert torch.equal(found, brute_force(query, key, 5e-3, 7))
    else:
        image = found[0].image if task == "generate" else found.image
        assert image.shape == (3, 48, 64 if task == "generate" else 38)


def test_a_timed_process_prints_four_numbers():
    np.savez("in.npz", **bench.inputs(bench.Case("step", 40, math.inf, 1)))
    wall, cpu, peak, before = bench._timed(sys.executable, ["ours", "in.npz", "out.npy"], 1)
    assert min(wall, cpu) > 0
    assert peak >= before > 0
    with np.load("in.npz") as given:
        key, query = (torch.from_numpy(given[name]) for name in ("key", "query"))
    assert np.array_equal(np.load("out.npy"), brute_force(query, key, math.inf, 7).numpy())


def test_no_gpu_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "gpu"]) == 2
    error = capsys.readouterr().err
    assert "CUDA" in error
    assert error.count("\n") == 1


def test_what_bench_gpu_measures_on_any_device():
    case = replace(bench.CASES["gpu"]["batch"], height=30, samples=2)
    measured = bench.on_device(BenchConfig("gpu"), case, torch.device("cpu"))
    assert len(measured["ours"]) == 5
    assert measured["details"]["samples_per_s"] > 0
    work = bench.brute_force_work((30, 42), Settings(levels=1, steps=10))
    assert work == 2 * 147 * (10 * (24 * 36) ** 2 + (17 * 26) ** 2)
    assert bench.brute_force_work((30, 42), Settings(alpha=1.0, levels=1)) == 2 * work


def test_the_watcher_keeps_copies():
    class Theirs:
        """Two functions as theirs."""

        find_normalized_nearest_neighbors = staticmethod(lambda q, k: (q, torch.tensor([[[1], [0]]])))

        @classmethod
        def pnn(cls, query, key, value):
            cls.find_normalized_nearest_neighbors(query, key)
            return query.add_(1)

    watch = observe.Watch(Theirs)
    query = torch.zeros(2)
    Theirs.pnn(query, key=query, value=query)
    assert watch.arrays["index_0"].tolist() == [1, 0]
    assert watch.count == 1
    query.add_(5)
    assert watch.arrays["output_0"].tolist() == [1, 1]
