"""The benchmarks: the timed script beside a stand-in for the released code, figures, and what is written."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from paperkit import UserError
from vgpnn import bench, clips, limits, timing
from vgpnn.bench import Case, cross_over, last_level, quality
from vgpnn.config import BenchConfig
from vgpnn.video import to_unit

PEER = """
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

class Model:
    def forward(self, q0, noises_dict, noises_amps, n_stages):
        assert noises_dict[0].shape == q0.shape and noises_amps == {0: 5}
        return self.video[:, :, : n_stages or 99]

def get_vgpnn(folder, first, last, device, height, *settings, vgpnn_type):
    frames = [pil_to_tensor(Image.open(f"{folder}/{k}.png")) for k in range(first, last + 1)]
    model = Model()
    model.video = torch.stack(frames, 1)[None] / 127.5 - 1
    model.q0 = model.video[:, :, :3]
    return model, model.video
"""
"""With the released module's name and calls; its sample is the clip's first frames."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "peer"
    (folder / "pnn").mkdir(parents=True)
    (folder / "pnn" / "patch_match.py").touch()
    (folder / "vgpnn.py").write_text(PEER)
    return folder


def frames(count: int = 6) -> np.ndarray:
    return clips.stand_in(count, 20, 24).permute(0, 2, 3, 1).numpy()


def test_the_timed_script_runs_the_module_of_the_checkout(checkout, tmp_path):
    np.savez(tmp_path / "in.npz", frames=frames(), levels=4, seed=1)
    words = ["released", str(tmp_path / "in.npz"), str(tmp_path / "out.npy"), str(checkout)]
    wall, cpu, peak, before = bench._timed(sys.executable, words, 1)
    expected = to_unit(torch.from_numpy(frames()).permute(0, 3, 1, 2))[:, :4]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected.numpy(), atol=1e-6)
    assert 0 < before <= peak
    assert min(wall, cpu) >= 0


def test_our_sample_stops_at_a_level_of_the_released_ratios():
    given = {"frames": frames(), "levels": np.array(4), "seed": np.array(0)}
    made = torch.from_numpy(timing.ours(given))
    target = bench._target(to_unit(torch.from_numpy(frames()).permute(0, 3, 1, 2)), 4)
    # of six levels, as 20 rows shrink by 0.85 to 17 and 15, and 6 frames to 6, 5, 4, 4 and 3
    assert made.shape == target.shape == (3, 5, 15, 18)


def test_a_failed_process_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"a timed process failed: .*nowhere"):
        bench._timed(sys.executable, ["ours", str(tmp_path / "nowhere.npz"), "out.npy"], 1)


def test_the_record_beside_the_released_code(checkout, tmp_path, monkeypatch):
    monkeypatch.setitem(bench.CASES, "official", {"tiny": Case(20, 6, turns=2)})
    monkeypatch.setattr(bench.results, "LONG", 300.0)

    def timed(python: str, words: list[str], threads: int) -> list[float]:
        with np.load(words[1]) as given:
            video = to_unit(torch.from_numpy(given["frames"]).permute(0, 3, 1, 2))
            noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(int(given["seed"])))
        np.save(words[2], (video + (0.1 * noise if words[0] == "released" else 0)).numpy())
        return [200.0, 190.0, 900.0, 400.0] if words[0] == "released" else [2.0, 1.9, 500.0, 400.0]

    monkeypatch.setattr(bench, "_timed", timed)
    config = BenchConfig("official", peer=str(checkout), out=str(tmp_path))
    (path,) = bench.bench(config)
    record = json.loads(path.read_text())
    assert record["id"] == "official-tiny"
    assert record["ratio"] == pytest.approx(100)
    assert record["holds"]
    assert record["against"]["values"] == [200.0, 200.0]  # two turns: more than five minutes
    assert record["ours"]["values"] == [2.0] * 5
    figures = record["details"]["quality"]
    assert figures["ours"]["realism"] == pytest.approx(0, abs=1e-9)
    assert figures["ours"]["diversity"] == 0
    assert figures["released"]["realism"] > 1e-3
    assert figures["released"]["diversity"] > 0
    assert "PEER" in record["command"]
    assert record["details"]["released_code_patched"] == list(timing.PATCHED)


def test_what_is_no_checkout_or_no_case_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no pnn/patch_match\.py"):
        bench.bench(BenchConfig("official", peer=str(tmp_path)))
    with pytest.raises(UserError, match="no case 7 of limit: there are 48"):
        bench.bench(BenchConfig("limit", cases=("7",)))


def test_quality_of_one_sample_has_no_diversity():
    x = to_unit(torch.from_numpy(frames()).permute(0, 3, 1, 2))
    found = quality(x, {"ours": [x]})["ours"]
    assert found["diversity"] is None
    assert found["same_place"] == 1
    with pytest.raises(UserError, match="a sample of"):
        quality(x, {"ours": [x[:, :4]]})


def test_the_cross_over_lies_on_a_line_through_the_logarithms():
    assert cross_over([(50, 8.0), (100, 4.0), (400, 0.25)]) == 200
    assert cross_over([(100, 4.0), (400, 2.0)]) is None


def test_exact_writes_every_size_and_the_worst_for_auto(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(bench.CASES, "exact", {"a": Case(18), "b": Case(20)})
    monkeypatch.setattr(bench, "_row", lambda config, case: ROWS[case.side])
    (path,) = bench.bench(BenchConfig("exact", out=str(tmp_path)))
    record = json.loads(path.read_text())
    assert record["ratio"] == pytest.approx(0.5)  # 10,000 keys: auto is exact, 1 s against 0.5 s
    assert not record["holds"]
    assert "At 10000 keys auto takes exact" in record["explanation"]
    crossing = record["details"]["cross_over_keys"]
    assert crossing == round(5000 * 2 ** (math.log(2) / math.log(4)))
    assert "--switch KEYS" in capsys.readouterr().out


ROWS = {
    18: bench.Row(5000, {"exact": [1.0] * 5, "patchmatch": [2.0] * 5}, {}),
    20: bench.Row(10_000, {"exact": [1.0] * 5, "patchmatch": [0.5] * 5}, {}),
}


def test_a_straight_loop_adds_up_squares():
    a, b = np.arange(20, dtype=np.float32), np.ones(20, dtype=np.float32)
    assert limits._straight(a, b, 2, 5) == 1 + 4 + 9
    assert limits._again(a, b, 3, 0, 2) == (1 + 0 + 1) + (0 + 1 + 4)


def test_work_is_counted_in_element_comparisons():
    x = to_unit(clips.stand_in(4, 18, 20))
    problem, state = last_level(x)
    queries = 2 * 12 * 14
    work = {**limits.kernels(problem, state), **limits.searches(problem, state)}
    assert work["patches, a sample's field"][1] == queries * 441
    assert work["exact search"][1] == 5 * queries**2 * 441
    assert work["patchmatch search"][1] == 5 * queries * (14 * 20 + 1) * 441
    for call, _ in work.values():
        call()
