"""Claims about images as records, at sizes of no meaning; the replayed notebook against the engine."""

from dataclasses import replace

import pytest
import torch
from ittt import (
    ITTT,
    Settings,
    across,
    image_claims,
    image_forms,
    image_tasks,
    images,
    official,
    protocol,
    reproduce,
)
from ittt.baselines import method
from ittt.image_claims import auc, corrupted_mean, ways_of
from ittt.image_config import ImageConfig
from ittt.official import PROPER, Net, Replay, adapt
from paperkit import UserError, results
from torch import nn


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder for the networks of all tests, each trained once."""
    caches = (image_tasks.network, image_tasks.trial, image_claims._corrupted)
    for cached in caches:
        cached.cache_clear()
    yield tmp_path_factory.mktemp("networks")
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def tiny(monkeypatch, kept):
    """Networks of one epoch on the embedded digits, in the place of every data set."""
    monkeypatch.chdir(kept)

    def recipe(data: str, norm: str, seed: int, presence: bool = True) -> ImageConfig:
        return ImageConfig(
            data="digits",
            norm=norm,
            seed=seed,
            presence=presence,
            restate=False,
            no_harm=False,
            train=300,
            held_out=50,
            test=40,
            epochs=1,
            corruptions=(),
        )  # pyright: ignore

    for module in (image_tasks, image_claims):
        monkeypatch.setattr(module, "recipe", recipe)
        monkeypatch.setattr(module, "at_hand", lambda names: list(names)[:2])
    monkeypatch.setattr(image_claims, "SHOWN", 16)
    monkeypatch.setattr(image_claims, "SHOWN_AT_8", 8)


def valid(name: str, fields: dict) -> dict:
    record = results.claim(
        paper="ittt", id=name, command="uv run --package ittt ittt reproduce x", wall_s=1.0,
        **{"preset": "none", **fields},
    )  # fmt: skip
    assert results.check(record) == []
    return record


# ---- parts


def test_auc_by_pairs():
    scores, positive = torch.tensor([3.0, 1.0, 2.0, 2.0]), torch.tensor([True, False, True, False])
    assert auc(scores, positive) == (1 + 1 + 1 + 0.5) / 4
    assert auc(scores, torch.zeros(4, dtype=torch.bool)) == 0.5
    assert auc(-scores, positive) == pytest.approx(1 - auc(scores, positive))


def test_networks_are_kept_and_found_again(tiny, monkeypatch):
    first = image_tasks.network("mnist", "none", 0)
    image_tasks.network.cache_clear()
    monkeypatch.setattr(images, "train", lambda *words: pytest.fail("trained again"))
    again = image_tasks.network("mnist", "none", 0)
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in again.state_dict().items())


def test_noise_is_in_training_deviations_and_by_seed(tiny):
    pictures = images.load(image_tasks.recipe("mnist", "none", 0))
    added = image_tasks.noisy(pictures, 1.5, 0) - pictures.x_test
    assert float(added.std()) == pytest.approx(1.5 * float(pictures.x.std()), rel=0.05)
    assert torch.allclose(image_tasks.noisy(pictures, 0.5, 0) - pictures.x_test, added / 3, atol=1e-6)
    assert not torch.equal(image_tasks.noisy(pictures, 1.5, 1), image_tasks.noisy(pictures, 1.5, 0))


def test_tasks_take_part_in_the_common_protocol(tiny):
    task = image_tasks.noise_task("mnist", "batch")
    (trial,) = task.trials(1)
    assert list(trial.tests) == ["0", "1", "1.5"]
    found = protocol.table(
        task, [trial], protocol.ways(task.settings, "none", "it3", "un-frozen"), ["0", "1.5"]
    )
    assert all(0 <= values[0] <= 100 for row in found.values() for values in row.values())
    assert len(task.trials(9)) == image_tasks.SEEDS
    for name in ("gap-predicts-error", "images", "official-mnist"):
        assert callable(reproduce.function(reproduce.CLAIMS[name]))


def test_rows_fit_the_norm():
    assert ways_of("batch") == ["bn", "it3", "it3-bn", "tent", "inner-product"]
    assert ways_of("group") == ["it3", "tent", "inner-product"]
    assert ways_of("none") == ["it3", "inner-product"]


# ---- records


def test_gap_predicts_error_is_a_record(tiny, monkeypatch):
    monkeypatch.setattr(image_claims, "NAMES", ("contrast",))
    monkeypatch.setattr(image_claims, "CELL_IMAGES", 20)
    record = valid("gap-predicts-error", image_claims.gap_predicts_error(2))
    assert record["threshold"] == 2 * 5 + 1  # digits have no cells
    assert 0 <= record["statistic"] <= record["threshold"]


def test_images_is_a_record(tiny, monkeypatch):
    monkeypatch.setattr(image_claims, "NORMS", ("group", "batch"))
    monkeypatch.setattr(image_claims, "NAMES", ("contrast",))
    monkeypatch.setattr(image_claims, "SEVERITIES", (5,))
    record = valid("images", image_claims.images_claim(2))
    assert set(record["details"]["difference_to_unadapted"]) == {
        f"{name}, batches of {size}" for name in ("mnist", "fashionmnist") for size in (32, 128)
    }
    with pytest.raises(UserError, match="at most 2"):
        image_claims.image_errors("mnist", "none", 2)


def test_stored_statistics_are_those_of_what_predicts(tiny, monkeypatch):
    net = image_tasks.network("mnist", "batch", 0)
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    own, x = image_claims.restated("mnist", 0), images.load(image_tasks.recipe("mnist", "batch", 0)).x
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())
    first = own.model[1](own.model[0](x))  # what the first norm sees of all training images at once
    assert torch.allclose(own.model[2].running_mean, first.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(own.model[2].running_var, first.var((0, 2, 3)), rtol=1e-4)
    assert not own.training
    with torch.no_grad():
        assert torch.allclose(own(x), method("bn", net, Settings())(x), atol=1e-2)
    monkeypatch.setattr(image_claims, "NAMES", ("contrast",))
    monkeypatch.setattr(image_claims, "SEVERITIES", (5,))
    record = valid("images-statistics", image_claims.images_statistics(2))
    assert set(record["arms"]) == {
        f"{name}, {row} {size}"
        for name in ("mnist", "fashionmnist")
        for row in ("stored in training", "none", "bn", "it3-bn")
        for size in (32, 128)
    }


def test_mean_over_corruptions(monkeypatch):
    monkeypatch.setattr(image_claims, "NAMES", ("a", "b"))
    errors = {"none 8": {"clean": 0.0, "a 3": 1.0, "b 3": 2.0, "a 5": 3.0, "b 5": 6.0}}
    assert corrupted_mean(errors, "none 8", (3, 5)) == 3.0
    assert corrupted_mean(errors, "none 8", (5,)) == 4.5


# ---- the notebook


@pytest.fixture(scope="module")
def digits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(130, 1, 28, 28, generator=generator), torch.arange(130) % 10


@pytest.mark.parametrize("recipe", ["notebook", "eq2"])
def test_both_recipes_learn_what_they_see(digits, recipe):
    x, y = digits
    net = official.train(recipe, 0, x[:64], y[:64], 40)
    how = Replay(steps=0, neutral="uniform")
    assert official.error(adapt(net, x[:64], how, 0), y[:64]) < 30


def engine(net: Net) -> ITTT:
    """The same network as the package's own engine has it."""
    head = nn.Linear(50, 10)
    head.load_state_dict({"weight": net.f2[2].weight[:10], "bias": net.f2[2].bias[:10]})
    model = nn.Sequential(*net.f1, net.f2[0], net.f2[1], head)
    made = ITTT(
        model, "feature", layer="8", outputs=10, task="classes", neutral="uniform", presence=False, width=50
    )
    made.model[8].branch.load_state_dict(net.signal.state_dict())
    return made


@pytest.fixture
def doubles():
    """Adam's first step takes the sign of a gradient: what is nothing but rounding must not decide it."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("frozen", [True, False])
def test_all_corrections_together_are_the_engine(doubles, digits, frozen):
    torch.manual_seed(3)
    net, x = Net().eval(), digits[0].double()
    found = adapt(net, x, replace(PROPER, steps=3, frozen=frozen), 0)
    settings = Settings(steps=3, lr=1e-3, rollback=False, anchor="frozen" if frozen else "none")
    adapter = engine(net).adapter(settings)
    expected = torch.cat([adapter(part).prediction for part in x.split(64)])
    assert torch.allclose(found, expected, atol=1e-9)
    assert not torch.allclose(found, adapt(net, x, replace(PROPER, steps=0), 0), atol=1e-3)


def test_the_second_application_of_the_notebook_never_sees_x(digits):
    torch.manual_seed(3)
    net, (x, _) = Net().eval(), digits
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = {how: adapt(net, x[:64], Replay(neutral="uniform", second=how, steps=1), 0) for how in ("z", "x")}
    assert not torch.allclose(found["z"], found["x"])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_carried_moments_change_the_second_batch_alone(digits):
    torch.manual_seed(3)
    net, (x, _) = Net().eval(), digits
    carried, fresh = (adapt(net, x, replace(PROPER, steps=2, carry=carry), 0) for carry in (True, False))
    assert torch.allclose(carried[:64], fresh[:64], atol=1e-6)
    assert not torch.allclose(carried[64:128], fresh[64:128], atol=1e-6)


def test_official_is_a_record(monkeypatch):
    made = iter(range(10))

    def rows(seed: int) -> dict:
        step = next(made)
        names = ["notebook, not adapted", "not adapted, uniform signal", "notebook", *official.CORRECTIONS]
        names += ["Eq. 2, not adapted", *official.ON_EQ2]
        clean = {name: 1.0 + 0.1 * i + step for i, name in enumerate(names)}
        noise = {f"{name}, all": 20.0 - 6 * (name == "notebook") + 0.1 * step for name in names[:3]}
        return {"noise": {**noise, **clean}, "clean": clean}

    monkeypatch.setattr(official, "rows", rows)
    record = valid("official-mnist", official.claim(3))
    assert record["holds"]
    assert record["statistic"] == pytest.approx(3 - 0.19)
    assert len(record["details"]["change_of_error_by_row"]) == 2 + 5 + 3


def test_rows_of_the_notebook_are_all_there(monkeypatch):
    from paperkit.data import ArraySet, Facts

    def opened(name: str, split: str) -> ArraySet:
        generator = torch.Generator().manual_seed(len(split))
        pixels = torch.randint(0, 256, (70, 1, 28, 28), generator=generator, dtype=torch.uint8)
        return ArraySet(Facts(name, "none", split), pixels.numpy(), (torch.arange(70) % 10).numpy(), ())

    monkeypatch.setattr(official, "open_set", opened)
    found = official.rows(0, 70, 20, 10)
    assert set(found["noise"]) - set(found["clean"]) == {
        "notebook, all", "notebook, not adapted, all", "not adapted, uniform signal, all",
    }  # fmt: skip
    assert set(official.CORRECTIONS) | set(official.ON_EQ2) < set(found["clean"])


@pytest.mark.parametrize("name", ["anchor-matters", "no-harm", "controls"])
def test_claims_over_every_task_take_images(tiny, monkeypatch, name):
    monkeypatch.setattr(image_tasks, "at_hand", lambda names: ["mnist"])
    guards = (across.RULE, "gate", "the paper's method")
    monkeypatch.setattr(across, "GUARDS", {guard: across.GUARDS[guard] for guard in guards})
    record = valid(name, reproduce.function(reproduce.CLAIMS[name])(2, ["images"]))
    assert any("mnist no norm" in arm for arm in record["arms"])
    assert not any("digits" in arm for arm in record["arms"])


def test_images_presence_has_both_forms_and_the_plain_twin(tiny, monkeypatch):
    for module in (image_claims, image_forms):
        monkeypatch.setattr(module, "NAMES", ("contrast",))
        monkeypatch.setattr(module, "SEVERITIES", (5,))
    monkeypatch.setattr(image_forms, "SHOWN", 16)
    monkeypatch.setattr(image_forms, "at_hand", lambda names: list(names)[:1])
    monkeypatch.setattr(image_forms, "recipe", image_tasks.recipe)
    record = valid("images-presence", image_forms.claim(2))
    assert set(record["details"]["it3_bn_minus_unadapted"]) == {
        "mnist, batches of 32",
        "mnist, batches of 128",
    }
    rows = {arm.partition(" norm, ")[2] for arm in record["arms"]}
    assert {"plain, 128", "plain, batch statistics, 32", "restated, with it, 32"} <= rows
    nets = [image_tasks.network("mnist", "none", 0, bit) for bit in (False, True)]
    assert [net.presence for net in nets] == [False, True]
