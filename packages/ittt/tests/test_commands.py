"""The real commands: train, resume, adapt, evaluate, report, bad input; and the table task's parts."""

import csv
import html
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ittt import Settings, data, page
from ittt.cli import main
from ittt.config import TRAIN, TrainConfig
from ittt.guard import harmless, harmless_lr
from ittt.train import ROWS, build, load, row_error, train
from paperkit import parallel
from paperkit.device import choose
from paperkit.run import RunOptions, checkpoints, load_checkpoint, read_metrics
from torch import distributed as dist

SMOKE = TRAIN["smoke"][0]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """One smoke run that the tests of this file read."""
    return train(SMOKE, RunOptions(out=str(tmp_path_factory.mktemp("ittt") / "run")), "smoke")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- train


def test_run_folder_is_whole_and_has_four_rows(run):
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["state"] == "finished"
    assert manifest["data"] == "diabetes, 358 rows"
    assert [row["step"] for row in read_metrics(run)] == [10, 20, 30, 40]
    assert [path.name for path in checkpoints(run)] == ["00000030", "00000040"]
    log, page = (run / "log.txt").read_text(), (run / "report.html").read_text()
    for words in ROWS.values():
        assert words in log
        assert words in page


def test_killed_run_ends_in_the_same_weights(run, monkeypatch):
    """A step that dies after the checkpoint of step 20, then --resume."""
    batch, calls = data.batch, iter(range(1000))
    monkeypatch.setattr(
        data,
        "batch",
        lambda *words: batch(*words) if next(calls) < 26 else (_ for _ in ()).throw(OSError("x")),
    )
    with pytest.raises(OSError, match="x"):
        train(SMOKE, RunOptions(out="broken"), "smoke")
    monkeypatch.setattr(data, "batch", batch)
    assert json.loads(Path("broken/manifest.json").read_text())["state"] == "failed"
    assert main(["train", "--resume", "broken"]) == 0
    (ours, state), (theirs, other) = (
        load_checkpoint(checkpoints(folder)[-1]) for folder in (Path("broken"), run)
    )
    for group in ("net", "plain", "scale"):
        assert all(torch.equal(ours[group][key], theirs[group][key]) for key in theirs[group])
    for number, rows in other["optimiser"]["state"].items():
        assert all(torch.equal(state["optimiser"]["state"][number][key], rows[key]) for key in rows)
    assert read_metrics(Path("broken")) == read_metrics(run)
    assert (
        Path("broken/log.txt").read_text().splitlines()[-6:-1]
        == (run / "log.txt").read_text().splitlines()[-6:-1]
    )


def test_masked_training_resumes_as_if_unbroken(monkeypatch):
    config = replace(SMOKE, mask=0.5, steps=20)
    whole = train(config, RunOptions(out="whole"))
    batch, calls = data.batch, iter(range(1000))
    monkeypatch.setattr(
        data,
        "batch",
        lambda *words: batch(*words) if next(calls) < 15 else (_ for _ in ()).throw(OSError("x")),
    )
    with pytest.raises(OSError, match="x"):
        train(config, RunOptions(out="broken"))
    monkeypatch.setattr(data, "batch", batch)
    train(config, RunOptions(resume="broken"))
    ours, theirs = (load(folder).net.state_dict() for folder in ("broken", str(whole)))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def one_of_two(rank: int, port: int, words: list[str]) -> None:
    """A process as torchrun starts it: `accelerate launch` starts only one without a GPU and MPI."""
    alone = parallel.launch(choose("cpu", "fp32"))
    type(alone.state)._reset_state(reset_partial_state=True)  # it knows this process as one alone
    where = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in where.items()})
    failed = main(words)
    Path(f"rank{dist.get_rank()}of{dist.get_world_size()}").touch()
    dist.destroy_process_group()
    sys.exit(failed)


@pytest.mark.skipif(
    torch.cuda.is_available() or "fork" not in multiprocessing.get_all_start_methods(),
    reason="forks this process: to import all anew twice takes longer than any other test",
)
def test_two_processes_give_the_curve_of_one():
    config = ["--preset", "smoke", "--mask", "0.5", "--steps", "10", "--adapt.steps", "1", "--no-no-harm"]
    assert main(["train", *config, "--out", "one"]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["train", *config, "--out", "two", "--device", "cpu"]
    with warnings.catch_warnings(
        action="ignore"
    ):  # Python 3.12 warns of threads, which nothing here waits for
        fork = multiprocessing.get_context("fork")
        started = [
            fork.Process(target=one_of_two, args=(rank, port, words), daemon=True) for rank in range(2)
        ]
        for process in started:
            process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, 0]
    assert {path.name for path in Path().glob("rank*")} == {"rank0of2", "rank1of2"}
    one, two = (read_metrics(Path(name)) for name in ("one", "two"))
    assert [row["step"] for row in two] == [row["step"] for row in one] == [10]
    assert two[0] == pytest.approx(one[0], abs=1e-4)


def test_no_harm_rule_is_printed(capsys):
    assert main(["train", "--preset", "smoke", "--steps", "5"]) == 0
    assert "no harm   lr" in capsys.readouterr().out
    assert main(["train", "--preset", "smoke", "--steps", "5", "--no-no-harm"]) == 0
    assert "no harm" not in capsys.readouterr().out


def test_dry_run_names_data_and_network(capsys):
    assert main(["train", "-n"]) == 0
    said = capsys.readouterr().out
    assert "diabetes, 358 rows, 10 columns, 44 test rows" in said
    assert "perceptron 30-20-10" in said
    assert not Path("runs").exists()


def test_help_imports_no_torch():
    code = (
        "import sys; from ittt.cli import main; main(['train', '--help']); assert 'torch' not in sys.modules"
    )
    for words in (code, code.replace("'train', ", "")):
        done = subprocess.run(
            [sys.executable, "-c", words], capture_output=True, text=True, check=False, env=os.environ
        )
        assert done.returncode == 0, done.stderr


# ---- adapt


def rows_of(run: Path, count: int = 30) -> torch.Tensor:
    """Test rows in the table's own units."""
    trained = load(run)
    rows = data.load(trained.config).x_test[:count]
    return rows * trained.scale.x_std + trained.scale.x_mean


def write(path: str, rows, names=()) -> str:
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([names] if names else [])
        writer.writerows(rows)
    return path


def test_adapt_writes_what_the_adapter_says(run, capsys):
    cells = rows_of(run).double().tolist()
    file = write("rows.csv", cells, names=list("abcdefghij"))
    words = ["adapt", file, "--run", str(run), "--batch", "16", "--adapt.lr", "1e-3"]
    assert main([*words, "--no-no-harm"]) == 0
    assert "30 rows" in capsys.readouterr().out
    with open("adapted.csv") as stream:
        found = list(csv.DictReader(stream))
    trained = load(run)
    x = trained.scale.x(torch.tensor(cells))
    adapter = trained.net.adapter(Settings(steps=3))
    expected = torch.cat([trained.scale.units(adapter(part).prediction) for part in x.split(16)])[:, 0]
    ours = torch.tensor([float(row["prediction"]) for row in found])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-2)
    assert [int(row["row"]) for row in found] == list(range(30))
    assert {row["abstain"] for row in found} <= {"True", "False"}
    assert main(["adapt", file, "--run", str(run), "--adapt.gate", "0.5", "--out", "found.json"]) == 0
    assert "no harm: learning rate" in capsys.readouterr().out
    assert len(json.loads(Path("found.json").read_text())) == 30


def test_adapt_fills_in_means_where_asked(run):
    cells = rows_of(run, 4).tolist()
    cells[1][2] = ""
    file = write("holes.csv", cells)
    assert main(["adapt", file, "--run", str(run), "--missing", "mean", "--adapt.steps", "0"]) == 0
    trained = load(run)
    x = trained.scale.x(rows_of(run, 4))
    x[1, 2] = 0
    with open("adapted.csv") as stream:
        found = torch.tensor([float(row["prediction"]) for row in csv.DictReader(stream)])
    torch.testing.assert_close(
        found, trained.scale.units(trained.net(x).detach())[:, 0], rtol=1e-4, atol=1e-2
    )


@pytest.mark.parametrize(
    ("rows", "names", "text"),
    [
        ([[1] * 9 + [""]], list("abcdefghij"), "row 1: j is empty"),
        ([[1] * 9 + ["nan"]], list("abcdefghij"), "row 1: j holds 'nan'"),
        ([[1] * 10, [1] * 9 + ["high"]], (), "row 2: column 10 holds 'high'"),
        ([[1] * 11], (), "11 columns, the network takes 10"),
        ([[1] * 10, [1] * 9], (), "row 2: 9 cells instead of 10"),
        ([], list("abcdefghij"), "no rows"),
        ([], (), "has no rows"),
    ],
)
def test_bad_rows_are_one_line(run, capsys, rows, names, text):
    file = write("rows.csv", rows, names)
    assert main(["adapt", file, "--run", str(run)]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("adapt", "none.csv"), "there is no file"),
        (("adapt", "rows.csv", "--out", "x.txt"), "must end in .csv"),
        (("train", "--data", "iris"), "no table"),
        (("train", "--held-out", "1"), "--held-out"),
        (("train", "--levels", "1.5"), "--levels"),
        (("train", "--mask", "2"), "--mask"),
        (("train", "--widths", "0"), "--widths"),
        (("train", "--lr", "0"), "--lr"),
        (("train", "--steps", "0"), "--steps"),
        (("train", "--split", "20"), "splits 0 to 19"),
        (("train", "--adapt.norm", "batch"), "no batch norm"),
        (("train", "--adapt.lr", "-1"), "lr must be"),
        (("train", "--adapt.anchor", "frozn"), "choose from frozen"),
        (("evaluate", "--methods", "tnet"), "no method"),
        (("evaluate", "--batches", "0"), "--batches"),
        (("adaptt",), "no verb"),
    ],
)
def test_bad_words_are_one_line(run, capsys, words, text):
    given = ("--run", str(run)) if words[0] in ("adapt", "evaluate") else ()
    assert main([*words, *given]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


# ---- evaluate, report


def test_evaluate_writes_every_method(run, capsys):
    words = ["--levels", "0", "0.2", "--batches", "1", "44", "--draws", "1", "--adapt.steps", "1"]
    assert main(["evaluate", "--run", str(run), *words]) == 0
    assert "mean gap" in capsys.readouterr().out
    found = json.loads((run / "evaluation.json").read_text())
    assert list(found["mae"]["44"]) == ["plain", "none", "it3", "un-frozen", "shuffled", "random"]
    assert "shuffled" not in found["mae"]["1"]
    assert set(found["gap"]) == {"0", "0.2"}
    trained = load(run)
    rows = data.load(trained.config)
    plain = row_error(trained.plain(rows.x_test).detach(), rows.y_test).mean()
    assert found["mae"]["1"]["plain"]["0"] == pytest.approx(float(plain), rel=1e-5)


def test_report_has_errors_and_gaps_by_level_and_pictures(run, capsys):
    assert main(["report", "--run", str(run)]) == 0
    path = Path(capsys.readouterr().out.strip())
    words = path.read_text()
    assert "gap before" in words
    assert 'alt="Inputs"' in words
    subject = page.of_table(run)
    found = page.measured(subject, replace(SMOKE.adapt, lr=1e-3))
    assert list(found) == ["0 % missing", "20 % missing"]
    trained, line = load(run), found["20 % missing"]
    rows = data.load(trained.config)
    one = trained.net.adapter(replace(SMOKE.adapt, lr=1e-3))(data.drop(rows.x_test, 0.2, 0))
    expected = [row_error(one.before, rows.y_test), row_error(one.prediction, rows.y_test)]
    expected += [one.gap_before, one.gap_after]
    assert line == pytest.approx([float(values.mean()) for values in expected])
    assert page.text(subject, SMOKE.adapt) in html.unescape(words)


def test_report_tells_what_the_no_harm_rule_allows(run):
    subject = page.of_table(run)
    for rate, words in ((0.0, "allows no step"), (1e-5, "steps of 1e-05"), (SMOKE.adapt.lr, "")):
        parts = page.told(replace(subject, rule=lambda settings, rate=rate: replace(settings, lr=rate)))
        assert len(parts) == 1 + bool(words)
        assert words in parts[-1]
    assert len(page.told(replace(subject, rule=None))) == 1


# ---- the table task


def test_table_is_standardised_by_the_rows_that_are_learned():
    rows = data.load(TrainConfig(split=3))
    torch.testing.assert_close(rows.x.mean(0), torch.zeros(10), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows.x.std(0), torch.ones(10), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows.y.std(0), torch.ones(1), rtol=0, atol=1e-5)
    assert (len(rows.x), len(rows.x_clean), len(rows.x_test)) == (358, 40, 44)
    joined = torch.cat([rows.x, rows.x_clean, rows.x_test])
    assert len(joined.unique(dim=0)) == 442
    assert float(rows.x_test.mean(0).abs().max()) > 1e-3


def test_missing_entries_are_nested_and_repeat():
    x = torch.ones(2000, 10)
    some, more = data.drop(x, 0.1, 0), data.drop(x, 0.2, 0)
    assert float((some == 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert float((more == 0).float().mean()) == pytest.approx(0.2, abs=0.01)
    assert bool((more[some == 0] == 0).all())
    assert torch.equal(data.drop(x, 0.0, 0), x)
    assert not torch.equal(data.drop(x, 0.2, 1), more)


def test_twin_has_the_same_layers_but_for_the_signals_columns():
    net, plain = build(TrainConfig(), 10)
    ours, theirs = (sum(p.numel() for p in part.parameters()) for part in (net, plain))
    assert ours - theirs == 30
    net, _ = build(TrainConfig(presence=True), 10)
    assert sum(p.numel() for p in net.parameters()) - theirs == 2 * 30
    biases = [p for name, p in plain.named_parameters() if name.endswith("bias")]
    assert len(biases) == 4
    assert not any(bool(bias.any()) for bias in biases)


def test_no_harm_rule_takes_the_largest_rate_that_harms_little():
    net, _ = build(TrainConfig(widths=(8,)), 10)
    rows = data.load(TrainConfig())
    clean = [(rows.x_clean, rows.y_clean)]
    settings, shares = Settings(steps=1, lr=10.0, rollback=False), (1.0, 1e-10, 0.1, 1e-4)
    shown = {}
    for share in shares:
        one = net.adapter(replace(settings, lr=share * settings.lr))(rows.x_clean)
        before, after = (row_error(y, rows.y_clean) for y in (one.before, one.prediction))
        shown[share * settings.lr] = harmless(before, after)
    rising = [shown[lr] for lr in sorted(shown)]
    assert rising[0]
    assert not rising[-1]
    passed = rising.index(False)  # what comes after the first failure does not count
    assert harmless_lr(net, clean, settings, row_error, shares) == sorted(shown)[passed - 1]
    assert harmless_lr(net, clean, settings, row_error, (1.0,)) == 0


def test_harmless_is_an_upper_end_below_one_per_cent():
    before = torch.linspace(1, 3, 50)
    assert harmless(before, before)
    assert not harmless(before, 1.02 * before)
    noise = torch.tensor([-1.0, 1.0]).repeat(25)
    rise = (0.01 * before - 0.3 * noise).double()
    width = 1.6449 * float(rise.std()) / 50**0.5
    assert harmless(before, before + 0.3 * noise) == (float(rise.mean()) > width)
    assert not harmless(before, before + 0.3 * noise)  # shown neither way
    assert not harmless(before, before + 0.3 * noise, most=0.1)  # they move too much either way
    assert harmless(before, before + 0.09 * noise, most=0.1)


def test_no_answer_may_turn_wrong():
    before = torch.tensor([100.0, 0.0, 0.0, 100.0])
    assert not harmless(before, before)  # four answers show nothing
    many = before.repeat(100)  # of 400 none turned wrong: at most 0.75 % do, of an error of 50 %
    assert not harmless(many, many)
    assert harmless(many, many, most=0.016)
    assert not harmless(many, many, most=0.014)
    turned = many.clone()
    turned[1] = 100.0
    assert not harmless(many, turned, most=0.5)
