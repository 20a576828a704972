"""Claims as records: protocol, criteria and what the command refuses. Networks are trained for an epoch."""

import json
from dataclasses import replace

import pytest
import torch
from ittt import ITTT, across, digits, protocol, reproduce, tables
from ittt.cli import main
from ittt.protocol import PAPER, Way, change, errors, facts, pooled, relative
from paperkit import UserError, data, results

CIRCUMSTANCES = {"paper": "ittt", "command": "uv run --package ittt ittt reproduce x", "wall_s": 1.0}


CACHED = (tables.rows_of, tables.trials, tables.grid, digits.trials)


def few(split: str):
    """A batch of 64 test images and six more."""
    x, y = data.digits(split)
    return (x[:70], y[:70]) if split == "test" else (x, y)


@pytest.fixture(autouse=True, scope="module")
def short():
    """Training of an epoch or two, once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "EPOCHS", (1, 2))
        patch.setattr(tables, "TEST_ROWS", 20)
        patch.setattr(digits, "EPOCHS", 1)
        patch.setattr(digits, "digits", few)
        for group in ("images", "graphs"):  # making these sets takes seconds
            patch.delitem(protocol.GROUPS, group)
        for function in CACHED:
            function.cache_clear()
        yield
    for function in CACHED:
        function.cache_clear()


def record_of(name: str, fields: dict) -> dict:
    record = results.claim(**CIRCUMSTANCES, id=name, **{"preset": "none", **fields})
    assert results.check(record) == []
    return record


# ---- the protocol


def test_differences_are_relative_to_the_mean_error():
    assert relative([1.1, 2.0], [1.0, 2.0]) == pytest.approx([100 / 15, 0.0])
    with pytest.raises(UserError, match="no relative change"):
        relative([1.0], [0.0])
    task = digits.task("digits mlp")
    assert change(task, [3.0], [1.0], [0.0]) == [2.0]
    assert change(replace(task, unit="std"), [3.0], [1.0], [4.0]) == [50.0]
    assert pooled([[1.0, 2.0], [3.0, 6.0]]) == [2.0, 4.0]
    found = facts([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["t"] == pytest.approx(2 / (1 / 3**0.5))
    assert found["low"] < 2 < found["high"]


def test_tasks_are_found_by_name_and_by_group():
    assert list(protocol.tasks(["digits mlp"])) == ["digits mlp"]
    assert {task.group for task in protocol.tasks(["tables, 1 epochs"]).values()} == {"tables, 1 epochs"}
    assert "diabetes, 2 epochs" in protocol.tasks(["tables"])
    with pytest.raises(UserError, match="no task digit mlp"):
        protocol.tasks(["digit mlp"])


@pytest.mark.parametrize("gate", [0.0, 0.9])
@pytest.mark.parametrize("size", [8, 51])
def test_side_by_side_gives_the_errors_of_one_by_one(gate, size):
    task = tables.task("diabetes", 1)
    way = Way("it3", replace(PAPER, lr=1e-2, gate=gate))
    found = task.trials(2)
    alone = errors(replace(task, beside=False), found, way, "0.2", size)
    assert errors(task, found, way, "0.2", size) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("task", [tables.task("diabetes", 1), digits.task("digits mlp")])
def test_no_harm_rule_side_by_side_chooses_the_rates_of_one_by_one(task):
    found = task.trials(2)
    settings = replace(task.settings, lr=3e-2)
    rates = protocol.harmless_rates(task, found, settings, 8)
    assert protocol.harmless_rates(replace(task, beside=False), found, settings, 8) == pytest.approx(rates)
    way = Way("it3", settings, (0.0, 1e-2))
    each = [
        errors(task, [found[0]], Way("none", settings), task.shifted[0], 8),
        errors(task, [found[1]], Way("it3", replace(settings, lr=1e-2)), task.shifted[0], 8),
    ]
    assert errors(task, found, way, task.shifted[0], 8) == pytest.approx([value for (value,) in each])


def test_images_side_by_side_too():
    for task in digits.tasks():
        found = task.trials(2)
        trial = found[0]
        small = {name: (x[:20], y[:20]) for name, (x, y) in trial.tests.items()}
        found = [replace(trial, tests=small) for trial in found]
        alone = errors(replace(task, beside=False), found, Way("it3", task.settings), "0.5", 8)
        assert errors(task, found, Way("it3", task.settings), "0.5", 8) == pytest.approx(alone)


class Sealed(torch.Tensor):
    """Labels that nothing may touch."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise AssertionError("a label was read")


@pytest.mark.parametrize("task", [tables.task("diabetes", 1), digits.task("digits conv")])
def test_no_label_of_a_test_input_is_touched(task):
    """Predictions and the rates of the no-harm rule need none, whichever method; only errors do."""
    found = task.trials(2)[:1]
    level = task.shifted[-1]
    tests = {level: (found[0].tests[level][0], found[0].tests[level][1].as_subclass(Sealed))}
    sealed = [replace(found[0], tests=tests)]
    rates = protocol.harmless_rates(task, sealed, task.settings, 8)
    assert rates == protocol.harmless_rates(task, found, task.settings, 8)
    rows = protocol.ways(task.settings, "none", "it3", "un-frozen", "shuffled", "random")
    for way in [*rows.values(), Way("it3", task.settings, (1e-3,))]:
        (ours,), (theirs,) = (
            protocol.predictions(task, trials, way, level, 51) for trials in (sealed, found)
        )
        assert torch.equal(ours, theirs)
    with pytest.raises(AssertionError, match="was read"):
        _ = tests[level][1] + 0


def test_stronger_noise_is_more_of_the_same():
    x, y = torch.zeros(3, 4), torch.zeros(3)
    found = digits.noisy(x, y, 1)
    torch.testing.assert_close(found["1"][0], 2 * found["0.5"][0])
    assert torch.equal(found["0"][0], x)


# ---- claims


def test_tables_counts_tables_at_both_lengths():
    record = record_of("tables", tables.claim(2, ["diabetes"]))
    assert record["threshold"] == 1
    assert record["statistic"] in (0, 1)
    assert "it3, batch 51, 1 epochs" in record["arms"]
    assert "shuffled, batch 1, 1 epochs" not in record["arms"]
    errors_ = record["details"]["mean_absolute_error_in_standard_deviations"]["diabetes"]
    assert list(errors_["2 epochs, batch 8"]["none"]) == ["0", "0.05", "0.1", "0.15", "0.2"]


def test_anchor_matters_has_a_verdict_for_every_group_and_level():
    record = record_of("anchor-matters", across.anchor_matters(2, ["diabetes, 1 epochs", "digits mlp"]))
    assert list(record["arms"]) == [
        "tables, 1 epochs, level 0", "tables, 1 epochs, level 0.2",
        "digits mlp, level 0.5", "digits mlp, level 1",
    ]  # fmt: skip
    assert record["statistic"] == min(fact["t"] for fact in record["details"]["groups"].values())


def test_no_harm_bounds_every_task_at_every_batch_size():
    fields = across.no_harm(2, ["diabetes, 1 epochs", "digits mlp"])
    record = record_of("no-harm", fields)
    bounds = record["details"]["upper_ends"]
    assert list(bounds) == [
        "diabetes, 1 epochs, batch 51", "diabetes, 1 epochs, batch 8",
        "digits mlp, batch 64", "digits mlp, batch 8",
    ]  # fmt: skip
    assert record["statistic"] == 1 - max(bounds.values())
    kept = record["details"]["share_of_the_gain_kept"]["the paper's method"]
    assert set(kept["tasks"].values()) <= {1.0}


def test_no_harm_tells_what_is_not_shown():
    """Two cells above the bound: one whose mean is, and one that is only wide."""
    harms = {"one, batch 8": [1.5, 1.6, 1.4], "two, batch 4": [-1.0, 0.0, 2.0]}
    text = across.not_shown(harms, {"one": {8: (0.0, 1e-4, 1e-3)}, "two": {4: (0.0, 0.0, 1e-5)}})
    first, second = text.split(";")[0:3:2]
    assert "one, batch 8: +1.50" in first
    assert "itself too large, higher for 3 of 3" in first
    assert "2 of them adapted, at rates up to 0.001" in text
    assert "two, batch 4: +0.33" in second
    assert "small but unsure, higher for 1 of 3" in second


def test_controls_have_a_verdict_for_every_group():
    record = record_of("controls", across.controls(2, ["diabetes, 1 epochs", "digits mlp"]))
    assert list(record["details"]["groups"]) == [
        "tables, 1 epochs, against shuffled", "tables, 1 epochs, against random",
        "digits mlp, against shuffled", "digits mlp, against random",
    ]  # fmt: skip
    assert record["holds"] == (record["statistic"] >= 2)


def test_presence_compares_both_forms_at_both_lengths():
    record = record_of("presence", tables.presence(2, ["diabetes"]))
    assert record["statistic"] == min(lead["t"] for lead in record["details"]["differences"].values())
    assert set(record["details"]["copying"]) == {
        f"{form}, {epochs} epochs" for form in tables.FORMS for epochs in (1, 2)
    }


def test_copying_is_the_slope_over_the_signal():
    trial = tables.trials("diabetes", 2)[1][0]
    columns = trial.clean[0].shape[1]
    net = ITTT(torch.nn.Linear(columns + 1, 1), "concat", presence=False)
    torch.nn.init.constant_(net.model.weight, 0.25)
    assert tables.copying(replace(trial, net=net)) == pytest.approx(0.25, rel=1e-4)


# ---- the command


def test_command_writes_files_and_names_its_seeds(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "at_hand", lambda: ["diabetes"])
    assert main(["reproduce", "tables", "--seeds", "2", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "tables.json").read_text())
    assert record["command"] == "uv run --package ittt ittt reproduce tables --seeds 2"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nix"], "no claim nix"), (["tables", "--seeds", "1"], "no standard error"),
        (["all", "tables"], "leave the other ids out"), (["tables", "--seeds", "-1"], "--seeds"),
    ],
)  # fmt: skip
def test_command_refuses(words, text, capsys):
    assert main(["reproduce", *words]) == 2
    assert text in capsys.readouterr().err


def test_every_claim_is_there():
    for place in reproduce.CLAIMS.values():
        assert callable(reproduce.function(place))
    assert set(reproduce.SEEDS) <= set(reproduce.CLAIMS)
