"""Whole networks: conversion, drift, hidden sizes; and the commands."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torchvision
from ccconv import (
    CCConv2d,
    ScaleEnsemble,
    align,
    convert,
    exact,
    from_conv,
    hidden_sizes,
    sizes_for_budget,
)
from ccconv.cli import main
from ccconv.drift import table
from ccconv.hidden import flops
from paperkit import UserError
from torch import nn

D = torch.float64


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def small_resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=5).eval()


def test_drift_is_predicted():
    assert max(exact.drift_formula().values()) < 1e-6
    sweep = exact.drift_sizes(range(64, 68))
    assert sweep == {64: (-7.5, 0), 65: (0, 0), 66: (-0.5, 0), 67: (-1, 0)}


def test_resnet_drifts_by_half_a_cell(small_resnet):
    rows = align(small_resnet, 224)
    assert [float(row.drift[0]) for row in rows if row.kind == "conv"] == [
        -0.5,
        -3.5,
        -3.5,
        -7.5,
        -7.5,
        -15.5,
        -15.5,
    ]
    assert max(row.cells for row in align(small_resnet, 225)) == 0
    assert "largest drift: 0.484" in table(rows)


def test_grids_that_disagree_where_they_meet_are_reported():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv2d(1, 1, 3, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear")

        def forward(self, x):
            return x + self.up(self.down(x))

    meeting = [row for row in align(Net(), 16) if row.kind == "meeting"]
    assert [row.drift for row in meeting] == [(Fraction(-1, 2), Fraction(-1, 2))]


@pytest.mark.parametrize("build", ["resnet18", "mobilenet_v2"])
def test_converted_torchvision_networks_agree_at_the_trained_size(build):
    torch.manual_seed(0)
    model = torchvision.models.get_model(build, weights=None, num_classes=5).eval()
    made = convert(model, 64)
    assert made.converted
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(made.model(x), model(x), rtol=1e-5, atol=1e-5)
        assert made.model(torch.randn(1, 3, 70, 55)).shape == (1, 5)
    assert all(not isinstance(module, CCConv2d) for module in model.modules())


def test_converted_timm_stem():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3).eval()
    made = convert(model, 32)
    assert made.converted == ["patch_embed.proj"]
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(made.model(x), model(x), rtol=0, atol=1e-5)


def test_what_cannot_be_converted_is_named_and_left():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, 2, 1, dilation=2),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 2, 3, 2, 1),
        nn.ConvTranspose2d(2, 1, 2, 2),
    )
    made = convert(model, 32)
    assert made.converted == ["2"]
    assert set(made.left) == {"0", "1", "3"}
    assert "dilation" in made.left["0"]
    assert "0: left, dilation" in str(made)
    assert type(made.model[0]) is nn.Conv2d


def test_a_conv_with_two_names_is_replaced_under_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.Conv2d(1, 2, 3, 2, 1)

        def forward(self, x):
            return self.first(x) + self.second(x.flip(3))

    model, x = Twice(), torch.randn(1, 1, 16, 16)
    made = convert(model, 16).model
    assert made.first is made.second
    assert isinstance(made.second, CCConv2d)
    torch.testing.assert_close(made(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 5, 2)), 3, "does not run at size 3"),
        (nn.Sequential(nn.Linear(2, 2)), 8, "no convolution"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, 2)), 0, "positive"),
    ],
)
def test_models_that_cannot_be_run_are_not_converted(model, size, expected):
    for call in (convert, align):
        with pytest.raises(UserError, match=expected):
            call(model, size)


def test_from_conv_of_a_network_kernel_solves_for_its_weights():
    conv = nn.Conv2d(3, 4, 3, padding=1, dtype=D)
    layer = from_conv(conv, kernel="mlp")
    x = torch.randn(1, 3, 8, 8, dtype=D)
    assert layer.residual < 1e-6
    torch.testing.assert_close(layer(x), conv(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(2, 2), "Linear"),
        (nn.Conv2d(1, 1, 3, dilation=2), "dilation"),
        (nn.Conv2d(1, 1, 3, 2), "trained at"),
        (nn.Conv2d(1, 1, 2, padding="same"), "uneven"),
    ],
)
def test_bad_conversions(module, expected):
    with pytest.raises(UserError, match=expected):
        from_conv(module)


def net() -> nn.Sequential:
    return nn.Sequential(
        CCConv2d(1, 4, 3, scale=0.5),
        nn.ReLU(),
        CCConv2d(4, 4, 3, scale=0.5),
        nn.ReLU(),
        CCConv2d(4, 2, 3, scale=0.5),
    )


def test_hidden_sizes_hold_inside_only():
    model, x = net(), torch.randn(1, 1, 32, 32)
    with hidden_sizes(model, {"0": 20, "4": (6, 5)}):
        assert model[0](x).shape[2:] == (20, 20)
        assert model(x).shape[2:] == (6, 5)
    assert model[0](x).shape[2:] == (16, 16)
    with pytest.raises(UserError, match="no continuous layer"), hidden_sizes(model, {"1": 3}):
        pass


def test_ensemble_is_the_mean_of_its_chains():
    model, x = net(), torch.randn(2, 1, 32, 32)
    chains = [{"0": 16, "4": 4}, {"0": 19, "4": 4}]
    each = []
    for chain in chains:
        with hidden_sizes(model, chain):
            each.append(model(x))
    torch.testing.assert_close(ScaleEnsemble(model, chains)(x), (each[0] + each[1]) / 2)
    with pytest.raises(UserError, match="different shapes"):
        ScaleEnsemble(model, [{"4": 4}, {"4": 5}])(x)
    with pytest.raises(UserError, match="at least one"):
        ScaleEnsemble(model, [])


def test_sizes_within_a_budget():
    model = net()
    sizes = sizes_for_budget(model, 64, 0.5)
    assert set(sizes) == {"0", "2"}
    with hidden_sizes(model, sizes):
        spent = flops(model, 64)
    assert 0.2 < spent / flops(model, 64) <= 0.5
    with pytest.raises(UserError, match="positive"):
        sizes_for_budget(model, 64, 0)
    with pytest.raises(UserError, match="cannot be met"):
        sizes_for_budget(model, 64, 1e-6)


# ---- Commands


def test_align_prints_a_table_and_a_sweep(capsys):
    assert main(["align", "resnet18"]) == 0
    assert "-15.5" in capsys.readouterr().out
    assert main(["align", "resnet18", "--size", "224", "--sweep", "2"]) == 0
    assert "   225     +0.00 px" in capsys.readouterr().out


def test_picture_and_claims_are_written():
    assert main(["picture", "--kernel", "mlp"]) == 0
    assert Path("kernel.png").stat().st_size > 1000
    assert main(["reproduce", "drift-formula", "--out", "found"]) == 0
    record = json.loads(Path("found/drift-formula.json").read_text())
    assert record["holds"]
    assert record["details"]["cases"] >= 50


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("algin", "resnet18"), "did you mean align"),
        (("align", "resnet19"), "did you mean resnet"),
        (("align", "resnet18", "--size", "0"), "at least 1"),
        (("align", "resnet18", "--sweep", "-1"), "negative"),
        (("picture", "--kernel", "cubic"), "--kernel"),
        (("picture", "--out", "x.jpg"), ".png"),
        (("picture", "--seed", "-1"), "negative"),
        (("reproduce", "exact-path"), "did you mean exact-paths"),
    ],
)
def test_bad_commands_are_one_line(capsys, words, expected):
    code = main(list(words))
    error = capsys.readouterr().err
    assert code == 2
    assert expected in error
    assert error.count("\n") == 1
