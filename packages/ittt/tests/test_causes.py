"""Causes of harm in closed form, and in words."""

import math
from dataclasses import replace

import pytest
import torch
from ittt import ITTT, causes, tables
from ittt.protocol import PAPER, Task, Trial
from ittt.train import row_error


class Steered(torch.nn.Module):
    """f(x, signal) = x_0 + share (signal - x_0) where a signal comes: the gap is known."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 0.5]))

    def forward(self, x):
        return (self.weight[0] * x[:, 0] + self.weight[1] * (x[:, 2] != 0.0))[:, None]


def steered(labels: torch.Tensor) -> tuple[Task, list[Trial]]:
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    trial = Trial(ITTT(Steered(), "concat").eval(), None, (x, labels), {"0": (x, labels)})
    task = Task(
        name="steered", group="steered", data="three rows", trials=lambda _: [trial], error=row_error,
        unit="std", clean="0", shifted=("0",), anchor=("0",), sizes=(3,), settings=replace(PAPER, lr=1e-9),
    )  # fmt: skip
    return task, [trial]


def test_aim_is_where_the_truth_lies_along_the_gap():
    first = torch.tensor([[1.0], [2.0], [4.0]])  # f(x, 0); fed back, each rises by one half
    for share in (1.0, 0.25, -2.0):
        found = causes.cause(*steered(first + 0.5 * share), "0")
        assert found["aim"] == pytest.approx(share, rel=1e-5)
        assert found["along"] == pytest.approx(0, abs=1e-5)
        assert found["aside"] == pytest.approx(0, abs=1e-5)


def test_error_changes_as_the_three_numbers_say(monkeypatch):
    gap, moved = torch.full((3, 1), 0.5), torch.tensor([[0.5], [0.0], [0.25]])
    first = torch.tensor([[1.0], [2.0], [4.0]])
    monkeypatch.setattr(causes, "predictions", lambda *_: [first + moved])
    labels = first + torch.tensor([[0.3], [-0.2], [0.4]])
    found = causes.cause(*steered(labels), "0")
    aside = moved - found["along"] * gap
    assert found["aside"] == pytest.approx(float(aside.norm() / gap.norm()))
    change = float((first + moved - labels).square().sum() - (first - labels).square().sum())
    told = found["along"] ** 2 - 2 * found["along"] * found["aim"] + found["aside"] ** 2
    luck = 2 * float((aside * (labels - first)).sum())
    assert change == pytest.approx(float(gap.square().sum()) * told - luck, rel=1e-4)


def test_reasons_in_words():
    cells = {
        "a": {"aim": -0.1, "along": 0.2, "aside": 0.1}, "b": {"aim": 0.1, "along": 0.9, "aside": 0.1},
        "c": {"aim": 0.8, "along": 0.2, "aside": 0.9}, "d": {"aim": 0.8, "along": 0.5, "aside": 0.1},
    }  # fmt: skip
    words = [causes.reason(one) for one in cells.values()]
    assert len(set(words)) == 4
    assert causes.told(cells).count("aim") == 4
    assert causes.told({}) == ""


def test_causes_of_a_real_task_are_numbers(monkeypatch):
    monkeypatch.setattr(tables, "EPOCHS", (1,))
    tables.trials.cache_clear()
    task = tables.task("diabetes", 1)
    found = causes.cause(task, task.trials(2), "0.2")
    tables.trials.cache_clear()
    assert found["aside"] >= 0
    assert all(map(math.isfinite, found.values()))
