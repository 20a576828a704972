"""The real commands at smoke size: train, resume, match, browse, query, mine by one and two; bad input."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from paperkit import UserError, images, parallel
from paperkit.device import choose
from paperkit.run import RunOptions, checkpoints, load_checkpoint, read_metrics
from rosetta import dictionary, own, planted, store, zoo, zoo_claim
from rosetta import train as train_module
from rosetta.cli import main
from rosetta.config import MatchConfig, MineConfig
from rosetta.mining import Tables
from rosetta.train import train


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- train


def test_run_folder_is_whole(run):
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["state"] == "finished"
    log = (run / "log.txt").read_text()
    for words in (
        "CNN-A x CNN-B",
        "star of 4",
        "untrained>t*",
        "i.i.d.",
        "permuted",
        "right on held-out images",
    ):
        assert words in log
    assert "i.i.d." in (run / "report.html").read_text()
    for name, models in (
        ("real", ["CNN-A", "CNN-B", "MAE", "CNN-A again"]),
        ("generated", ["generator", "CNN-A", "CNN-B", "MAE"]),
    ):
        held = dictionary.read(run / name / "dictionary")
        assert held.models == models
        assert (run / name / "browser.html").stat().st_size > 10_000
    assert images.read(run / "samples" / "generated.png").ndim == 3
    assert {row["step"] for row in read_metrics(run)} >= {5, 10, 12, 17}


def test_run_killed_in_training_and_stopped_before_mining_ends_in_the_same(run, smoke, monkeypatch):
    calls = iter(range(1000))

    def dying(self, *words):
        if next(calls) == 25:  # in the third network, after the checkpoint of step 20
            raise OSError("x")
        return step(self, *words)

    step, conclude = zoo.Stage.step, train_module.conclude
    monkeypatch.setattr(zoo.Stage, "step", dying)
    with pytest.raises(OSError, match="x"):
        train(smoke, RunOptions(out="broken"), "smoke")
    monkeypatch.setattr(zoo.Stage, "step", step)
    monkeypatch.setattr(train_module, "conclude", lambda *words: (_ for _ in ()).throw(OSError("y")))
    with pytest.raises(OSError, match="y"):
        train(smoke, RunOptions(resume="broken"), "smoke")
    monkeypatch.setattr(train_module, "conclude", conclude)
    assert main(["train", "--resume", "broken"]) == 0
    ours, theirs = (load_checkpoint(checkpoints(f)[-1])[0] for f in (Path("broken"), run))
    for group, weights in theirs.items():
        assert all(torch.equal(ours[group][key], value) for key, value in weights.items())
    assert read_metrics(Path("broken")) == read_metrics(run)
    one, two = (dictionary.read(f / "real" / "dictionary") for f in (Path("broken"), run))
    assert one.chains == two.chains
    assert one.manifest["counts"] == two.manifest["counts"]


def test_each_network_learns(smoke):
    config = replace(smoke, classifier_steps=80, masked_steps=60, limit=0)
    source = zoo.open_source(config)
    found = {s.name: s for s in zoo_claim.learned(config, source)}
    assert zoo.accuracy(found["CNN-A"], source) > 0.6
    assert zoo.accuracy(found["CNN-B"], source) > 0.4
    fresh = {s.name: s for s in zoo_claim.viewers(config, source)}
    assert zoo.masked_error(found["MAE"], source) < 0.8 * zoo.masked_error(fresh["MAE"], source)


def test_figures_of_the_claim_on_a_tiny_zoo(smoke, monkeypatch):
    monkeypatch.setattr(zoo_claim, "MATCH", MatchConfig(draws=2, others=1))
    monkeypatch.setattr(zoo_claim, "HALVES", 2)
    monkeypatch.setitem(zoo_claim.TRAIN, "fashion", (smoke, ""))
    monkeypatch.setattr(zoo_claim.reproduction, "remember", lambda paper, words, make: make())
    found = zoo_claim._claim("digits", 1)
    assert len(found["ours"]) == 1
    assert np.isfinite(found["statistic"])
    assert {"trained A-B halves", "untrained A-B CKA", "trained A-A again matches", "trained stars"} <= found[
        "arms"
    ].keys()
    assert (found["statistic"] >= 0) == (found["explanation"] == "")


# ---- the verbs that read a run


def test_match_again_browse_query_diff_merge(run, capsys):
    assert main(["match", str(run), "--k", "3", "--chain", "clique", "--out", "three"]) == 0
    assert "clique of 4" in capsys.readouterr().out
    three = dictionary.read(Path("three"))
    assert three.manifest["match"]["k"] == 3
    assert three.manifest["chain"] == "clique"
    assert main(["match", str(run), "--probes", "generated", "--k", "1", "--back", "5", "--out", "back"]) == 0
    assert main(["browse", "three", "--out", "three.html"]) == 0
    assert Path("three.html").exists()
    capsys.readouterr()
    assert main(["query", str(run), "--unit", "CNN-A/stages.1/3", "--top", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert not any("CNN-A/" in line for line in lines)
    images.write("drawn.png", torch.rand(1, 8, 8))
    assert main(["query", str(run), "--map", "drawn.png", "--image", "3", "--model", "MAE"]) == 0
    assert capsys.readouterr().out.count("MAE/blocks") == 10
    assert main(["diff", str(run), "three"]) == 0
    assert "models    CNN-A, CNN-B, MAE, CNN-A again" in capsys.readouterr().out
    assert main(["report", str(run)]) == 0


def test_bad_input_is_one_line(run, capsys):
    Path("there").mkdir()
    for words, message in (
        (["match", str(run), "--k", "20"], "stored tables hold the 10 best"),
        (["match", str(run), "--probes", "x"], "--probes x: "),
        (["browse", "nowhere"], "holds no dictionary"),
        (["query", str(run)], "give --unit MODEL/LAYER/CHANNEL or --map"),
        (["query", str(run), "--unit", "CNN-A/stages.1/9999"], "no unit CNN-A/stages.1/9999"),
        (["merge", str(run), str(run), "there"], "saw different probes|both dictionaries hold|only stars"),
        (["convert", "none.pkl", "out"], "there is no such file"),
        (["train", "--size", "30"], "does not divide by 4: try"),
        (["train", "--probes", "5000"], "holds out 500 images"),
        (["train", "--data", "photographs"], "has no"),
        (["mine", "tv:resnet18"], "two networks or more"),
        (["mine", "tv:resnet18@untrained", "tv:resnet19@untrained"], "torchvision has no model resnet19"),
        (["mine", "tv:resnet18@untrained", "tv:vgg11@untrained", "--layers", "x"], "NAME=VALUE"),
        (["reproduce", "nothing"], "no claim nothing"),
    ):  # fmt: skip
        assert main(words) == 2, words
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        assert any(part in said for part in message.split("|")), said
    assert list(Path("there").iterdir()) == []
    assert not Path("out").exists()


# ---- mine

ZOO = ["tv:shufflenet_v2_x0_5@untrained", "tv:squeezenet1_1@untrained"]
WORDS = [
    *ZOO, "--images", "digits", "--split", "test", "--limit", "12", "--size", "32", "--batch", "4",
    "--match.draws", "2", "--match.others", "0",
    "--layers", "shufflenet=stage[23]", "squeezenet=features.[57]",
]  # fmt: skip


def test_networks_of_ones_own_are_mined_and_go_on_after_a_stop(monkeypatch, capsys):
    assert main(["mine", *WORDS, "-n"]) == 0
    said = capsys.readouterr().out
    assert "stage2: " in said
    assert "GiB on disk" in said
    assert not Path("runs").exists()
    assert main(["mine", *WORDS, "--out", "whole"]) == 0
    take, calls = store.Recording.take, iter(range(100))

    def dying(self, x):
        if next(calls) == 3:
            raise OSError("x")
        take(self, x)

    monkeypatch.setattr(store.Recording, "take", dying)
    with pytest.raises(OSError, match="x"):
        main(["mine", *WORDS, "--out", "cut"])
    assert main(["mine", "--resume", "cut"]) == 0
    assert next(calls) == 3 + 1 + 3  # the other batches once each, nothing twice
    whole, cut = (dictionary.read(Path(name) / "dictionary") for name in ("whole", "cut"))
    assert whole.chains == cut.chains
    assert whole.manifest["models"] == cut.manifest["models"]
    assert main(["match", "whole", "--k", "2"]) == 0


def one_of_two(rank: int, port: int) -> None:
    """What `torchrun` has each of two processes do: tables of planted maps, then the real command."""
    where = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port
    }  # fmt: skip
    os.environ.update({name: str(value) for name, value in where.items()})
    AcceleratorState._reset_state(reset_partial_state=True)  # of the process that forked: it was alone
    parallel.launch(choose("cpu"))
    maps = [m.part(slice(rank * 20, rank * 20 + 20)) for m in planted.plant(0, 0.3).maps]
    dead = [int(m.measure().dead.sum()) for m in maps]
    found = Tables(maps, MatchConfig(double=True)).observed(0, 1).rows
    told = {"scores": found.scores.tolist(), "partners": found.partners.tolist(), "dead": dead}
    Path(f"told-{rank}.json").write_text(json.dumps(told))
    failed = main(["mine", *WORDS, "--out", "two", "--device", "cpu"])
    parallel.leave()
    sys.exit(failed)


@pytest.mark.skipif(
    torch.cuda.is_available() or "fork" not in multiprocessing.get_all_start_methods(),
    reason="forks this process: to import all anew twice takes longer than any other test",
)
def test_two_processes_give_the_tables_and_the_dictionary_of_one():
    """An exact reduction: sums in float64 about means; then the real command."""
    assert main(["mine", *WORDS, "--out", "one"]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with warnings.catch_warnings(action="ignore"):  # Python 3.12 warns of threads, which nothing waits for
        fork = multiprocessing.get_context("fork")
        started = [fork.Process(target=one_of_two, args=(rank, port), daemon=True) for rank in range(2)]
        for process in started:
            process.start()
    for process in started:
        process.join(300)
    assert [process.exitcode for process in started] == [0, 0]
    told, also = (json.loads(Path(f"told-{rank}.json").read_text()) for rank in range(2))
    assert told == also
    maps = [m.part(slice(0, 40)) for m in planted.plant(0, 0.3).maps]
    assert told["dead"] == [int(m.measure().dead.sum()) for m in maps] == [3, 3, 3]
    found = Tables(maps, MatchConfig(double=True)).observed(0, 1).rows
    assert told["partners"] == found.partners.tolist()
    finite = found.scores.isfinite()
    assert (
        float((torch.tensor(told["scores"], dtype=torch.float64) - found.scores)[finite].abs().max()) < 1e-12
    )

    one, two = (dictionary.read(Path(name) / "dictionary") for name in ("one", "two"))
    assert one.manifest["probes"] == two.manifest["probes"]
    scores = [dict(zip(map(tuple, d.tensors["0-1.units"].tolist()), d.tensors["0-1.r"].tolist(), strict=True))
              for d in (one, two)]  # fmt: skip
    shared = scores[0].keys() & scores[1].keys()
    assert len(shared) >= 0.98 * len(scores[0])
    # The maps differ in float32: each process runs the networks on batches of other images.
    assert max(abs(scores[0][pair] - scores[1][pair]) for pair in shared) < 1e-5


def test_maps_of_another_network_are_not_mixed():
    config = MineConfig(
        tuple(ZOO), images="digits", split="test", limit=4, size=32, layers=("squeezenet=features.5",)
    )
    probes = own.open_probes(config)
    one, other = (own.ready(config, words, probes, torch.device("cpu")) for words in ZOO)
    store.Recording(Path("maps"), one, 4)
    with pytest.raises(UserError, match="holds maps of another network or of other images"):
        store.Recording(Path("maps"), other, 4)
    with pytest.raises(UserError, match="is not whole"):
        store.open_maps(Path("maps"))


# ---- the command line


def test_help_imports_no_torch():
    code = (
        "import sys; from rosetta.cli import main; main(['--help']); main(['mine', '--help']);"
        "print('torch' in sys.modules, 'timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
    assert all(verb in done.stdout for verb in ("train", "mine", "match", "browse", "query"))
