"""The networks: published sizes, twins, gradients; checkpoints of every layout, at ViT-B's size on demand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flexpredict import checkpoints, config, masks, verbs
from flexpredict.claims import ARMS, _apart, _short_run
from flexpredict.cli import main
from flexpredict.config import DIGITS, MaskConfig, NetConfig, PositionConfig
from flexpredict.model import Encoder, Learner, current_nsr, patches
from flexpredict.train import parameters
from paperkit import UserError

SMALL = replace(DIGITS, net=NetConfig(4, 16, 2, 2, 8, 2, 2), position=PositionConfig("tied", 0.25, "std"))
SHAPE = {"channels": 3, "grid": (4, 4)}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def learner(settings=SMALL, seed: int = 0, channels: int = 3) -> Learner:
    torch.manual_seed(seed)
    return Learner(settings, channels, (4, 4))


# ---- sizes


@pytest.mark.parametrize(
    ("preset", "encoder", "predictor"),
    [
        ("stop_vitb16", 85.65, 11.24),
        ("stop_vitl16", 303.10, 22.08),
        ("stop_vith14", 630.43, 22.28),
        ("ijepa_vith14", 630.43, 22.28),
    ],
)
def test_published_parameter_counts(preset, encoder, predictor):
    """In millions, on the meta device (spec 3)."""
    chosen = config.TRAIN[preset][0]
    grid = (224 // chosen.net.patch,) * 2
    with torch.device("meta"):
        found = Learner(chosen, 3, grid)
    assert parameters(found.encoder) / 1e6 == pytest.approx(encoder, abs=0.006)
    assert parameters(found.predictor) / 1e6 == pytest.approx(predictor, abs=0.006)


# ---- the encoder and the predictor


def test_context_tokens_do_not_see_hidden_patches():
    net, images = learner(), torch.randn(2, 3, 16, 16)
    places = torch.tensor([[0, 5, 6], [1, 2, 9]])
    before = net.encoder(images, places)
    changed = images.clone()
    changed[0, :, 12:, 12:] += 9  # cell 15
    assert torch.equal(net.encoder(changed, places), before)
    changed[0, :, :4, :4] += 9  # cell 0
    assert not torch.allclose(net.encoder(changed, places)[0], before[0])


def test_a_block_does_not_see_another_block():
    net = learner()
    net.predictor.position.std = 0.0
    context = torch.randn(1, 3, 16)
    places = torch.tensor([[0, 5, 6]])
    both = net.predictor(context, masks.Masks(places, torch.tensor([[[8, 9], [14, 15]]])))
    alone = net.predictor(context, masks.Masks(places, torch.tensor([[[14, 15]]])))
    torch.testing.assert_close(both[:, 1:], alone)


def test_attention_is_the_formula():
    net = learner().encoder.blocks[0].attn
    x = torch.randn(2, 5, 16)
    q, k, v = (part.reshape(2, 5, 2, 8).transpose(1, 2) for part in net.qkv(x).chunk(3, -1))
    weights = (q @ k.transpose(2, 3) / 8**0.5).softmax(-1)
    torch.testing.assert_close(net(x), net.proj((weights @ v).transpose(1, 2).reshape(2, 5, 16)))


def test_layers_end_with_the_output_and_other_grids_are_stretched():
    encoder = learner().encoder
    images = torch.randn(2, 3, 16, 16)
    found = encoder.layers(images, 2)
    assert found.shape == (2, 2, 16, 16)
    torch.testing.assert_close(found[-1], encoder(images))
    assert encoder(torch.randn(1, 3, 8, 24)).shape == (1, 12, 16)
    with pytest.raises(UserError, match="resize them to 8x12"):
        encoder(torch.randn(1, 3, 10, 12))


def test_twins_share_their_initial_weights():
    for source in ("none", "untied", "fixed"):
        twin = learner(replace(SMALL, position=PositionConfig(source, 0.1, "std")))
        for name, value in learner().state_dict().items():
            assert torch.equal(twin.state_dict()[name], value), name


def test_nsr_sets_the_noise_and_variance_its_square():
    found = learner(replace(SMALL, position=PositionConfig("tied", 0.15, "nsr")))
    assert current_nsr(found.predictor) == pytest.approx(0.15, rel=1e-5)
    found = learner(replace(SMALL, position=PositionConfig("tied", 0.25, "variance")))
    assert found.predictor.position.std == 0.5


def test_zero_noise_is_deterministic_bit_for_bit(monkeypatch):
    """Losses, gradients, weights; and mode official is not."""
    monkeypatch.setattr("flexpredict.claims.STEPS", 5)
    plain = _short_run(3, PositionConfig("none", 0.0, "std"))
    for name in ("skipped", "times zero"):
        assert _apart(_short_run(3, ARMS[name]), plain) == 0
    assert _apart(_short_run(3, ARMS["official"]), plain) > 1e-4


def test_noise_falls_on_the_tokens_that_are_named():
    """On masked tokens, on the context's, on both: each has its own numbers, and psi where it has none."""
    context, places = torch.randn(2, 3, 16), torch.tensor([[0, 5, 6], [1, 2, 3]])
    chosen = masks.Masks(places, torch.tensor([[[8, 9], [14, 15]]] * 2))
    normal, beside = torch.randn(2, 2, 2, 16), torch.randn(2, 1, 3, 16)
    made = {}
    for tokens in ("masked", "context", "both"):
        position = replace(SMALL.position, tokens=tokens)
        net = learner(replace(SMALL, position=position)).predictor.eval()
        plain = net(context, chosen)
        assert torch.equal(net(context, chosen, normal), plain) == (tokens == "context")
        assert torch.equal(net(context, chosen, None, beside), plain) == (tokens == "masked")
        made[tokens] = net(context, chosen, normal, beside)
    assert not torch.allclose(made["both"], made["masked"])
    with pytest.raises(UserError, match="use mode paper"):
        PositionConfig("tied", 0.25, "std", mode="official", tokens="both")


def test_context_noise_is_that_of_the_formula():
    position = replace(SMALL.position, tokens="context")
    net = learner(replace(SMALL, position=position)).predictor
    context, places = torch.randn(1, 3, 16), torch.tensor([[0, 5, 6]])
    beside = torch.randn(1, 1, 3, 16)
    seen = []
    net.predictor_blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(context, masks.Masks(places, torch.tensor([[[8, 9]]])), None, beside)
    a, b = net.predictor_embed.weight, net.predictor_embed.bias
    wanted = (context + 0.25 * beside[:, 0]) @ a.T + b + net.position.psi[places]
    torch.testing.assert_close(seen[0][:, :3], wanted)
    torch.testing.assert_close(seen[0][:, 3:], net.position.psi[[8, 9]][None] + net.mask_token)


def test_mask_token_learns_in_mode_paper_alone():
    for mode in ("paper", "official"):
        net = learner(replace(SMALL, position=PositionConfig("tied", 0.25, "std", mode=mode)))
        chosen = masks.sample(SMALL.masks, (4, 4), 2, 0, 1)
        net(torch.randn(2, 3, 16, 16), chosen).sum().backward()
        assert (net.predictor.mask_token.grad is not None) == (mode == "paper")


def test_patches_are_in_the_encoders_order():
    images = torch.arange(2 * 16 * 16.0).reshape(1, 2, 16, 16)
    found = patches(images, 4)
    assert torch.equal(found[0, 6], images[0, :, 4:8, 8:12].flatten())


def test_pixel_objective_predicts_pixels():
    pixels = replace(SMALL, objective="pixels", masks=MaskConfig("random", 1, context=4))
    net = learner(pixels)
    chosen = masks.sample(pixels.masks, (4, 4), 2, 0, 1)
    assert net(torch.randn(2, 3, 16, 16), chosen).shape == (2, 1, 12, 48)


# ---- checkpoints


def file_of(layout: str, net: Learner, heads: int = 2) -> Path:
    """A file of a layout from random weights, by way of the writer."""
    predictor = checkpoints._published_predictor(dict(net.predictor.state_dict()))
    weights = dict(net.encoder.state_dict())
    other = {key: value + 1 for key, value in weights.items()}
    source = checkpoints.Checkpoint("test", "run", weights, other, predictor, {"epoch": 3})
    suffix = "safetensors" if layout == "transformers" else "pth"
    return checkpoints.write(source, layout, Path(f"{layout}.{suffix}"), heads=heads)


@pytest.mark.parametrize("layout", ["stop", "vjepa", "vissl", "transformers"])
def test_every_layout_comes_back(layout):
    net, images = learner(), torch.randn(2, 3, 16, 16)
    found = checkpoints.read(file_of(layout, net))
    assert found.layout == layout
    torch.testing.assert_close(found.encoder(heads=2)(images), net.encoder(images), rtol=0, atol=0)
    if layout in ("stop", "vjepa"):
        assert found.facts["epoch"] == 3
        assert torch.equal(found.context["norm.weight"], found.target["norm.weight"] + 1)
        back = checkpoints.own_predictor(found.predictor)
        for name, value in net.predictor.state_dict().items():
            assert torch.equal(back[name], value), name


def test_bare_and_wrapped_weights_are_read():
    net = learner()
    for prefix in ("", "module.", "module.backbone."):
        torch.save({f"{prefix}{k}": v for k, v in net.encoder.state_dict().items()}, "bare.pth")
        found = checkpoints.read("bare.pth")
        assert found.layout == "bare"
        assert set(found.target) == set(net.encoder.state_dict())


def test_transformers_agrees_with_the_real_class():
    from transformers import IJepaModel  # here: it takes seconds

    net, images = learner().encoder.eval(), torch.randn(2, 3, 16, 16)
    file_of("transformers", learner())
    Path("transformers.safetensors").rename("model.safetensors")
    theirs = IJepaModel.from_pretrained(".", add_pooling_layer=False).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(images).last_hidden_state, net(images), rtol=1e-4, atol=1e-5)
    torch.save(theirs.state_dict(), "memory.pth")
    found = checkpoints.read("memory.pth")
    torch.testing.assert_close(found.encoder(heads=2)(images), net(images), rtol=0, atol=0)


def published(letter: str, patch: int) -> dict[str, torch.Tensor]:
    """Encoder weights of a published width with few blocks: shapes tell the rest."""
    width = {"B": 768, "H": 1280}[letter]
    net = Encoder(NetConfig(patch, width, 1, 16 if letter == "H" else 12), 3, (224 // patch,) * 2)
    return dict(net.state_dict())


def test_inspect_says_what_a_file_holds(capsys):
    torch.save({"target_encoder": published("H", 14), "epoch": 300}, "vit-h16.pth.tar")
    assert main(["inspect", "vit-h16.pth.tar"]) == 0
    said = capsys.readouterr().out
    assert "ViT-H/14" in said
    assert "its name says H/16, this file is H/14" in said
    assert "sines and cosines" in said


def test_forensics_of_the_mask_token():
    asleep = torch.randn(1, 1, 384, generator=torch.Generator().manual_seed(0)) * 0.02
    assert checkpoints.looks_untrained(asleep)
    assert not checkpoints.looks_untrained(asleep * 2)
    assert not checkpoints.looks_untrained(asleep + 0.02)
    weights = {"predictor_embed.weight": torch.ones(8, 4), "mask_token": asleep}
    optimiser = {"state": {number: {} for number in range(7)}}
    found = verbs._predictor(checkpoints.Checkpoint("x", "stop", predictor=weights, optimiser=optimiser))
    assert "may be as drawn" in found["mask token"]
    assert found["optimiser"] == "moments of 7 parameters"


def test_vit_b_file_is_inspected_and_converted():
    """A whole ViT-B/16 in StoP's layout, as StoP's own file would be."""
    with torch.device("meta"):
        shapes = Learner(config.STOP_VITB16, 3, (14, 14)).state_dict()
    weights = {key: torch.zeros(value.shape, dtype=torch.bfloat16) for key, value in shapes.items()}
    parts: dict[str, dict[str, torch.Tensor]] = {"encoder": {}, "predictor": {}}
    for key, value in weights.items():
        part, name = key.split(".", 1)
        parts[part][f"module.{name}"] = value
    position = parts["predictor"].pop("module.position.psi")
    parts["predictor"]["module.predictor_pos_embed"] = position[None]
    torch.save({**parts, "target_encoder": parts["encoder"], "epoch": 600}, "vit-b16.pth.tar")
    found = verbs.inspect(config.InspectConfig("vit-b16.pth.tar"))
    assert found["encoder"] == "ViT-B/16, 12 blocks, 14x14 patches (224 pixels)"
    assert found["heads"].startswith("12 ")
    assert found["predictor"] == "width 384, 6 blocks"
    assert main(["convert", "vit-b16.pth.tar", "model.safetensors"]) == 0
    assert json.loads(Path("config.json").read_text())["num_attention_heads"] == 12
    assert checkpoints.read("model.safetensors").sizes() == checkpoints.read("vit-b16.pth.tar").sizes()


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"encoder": {"a": torch.ones(1)}}, "no patch_embed.proj.weight"),
        ({"epoch": 3}, "no layout that we know"),
        ([1, 2], "not a dictionary"),
        ({"classy_state_dict": {}}, "base_model.model.trunk"),
        ({"encoder": Evil()}, "more than data"),
    ],
)
def test_bad_files_are_one_line(capsys, content, text):
    torch.save(content, "bad.pth")
    assert main(["inspect", "bad.pth"]) == 2
    said = capsys.readouterr()
    assert text in said.err
    assert said.err.count("\n") == 1
    assert "executed" not in said.out


def test_other_bad_input(capsys):
    Path("torn.pth").write_bytes(b"PK\x03\x04 nothing")
    one_more = {"patch_embed.proj.weight": torch.ones(8, 3, 4, 4), "pos_embed": torch.ones(1, 17, 8)}
    torch.save(one_more, "cls.pth")
    video = {"patch_embed.proj.weight": torch.ones(768, 3, 2, 16, 16), "pos_embed": torch.ones(1, 1568, 768)}
    torch.save(video, "video.pth")
    file_of("vissl", learner())
    cases = [
        (("inspect", "none.pth"), "there is no file"),
        (("inspect", "torn.pth"), "cannot be read"),
        (("inspect", "cls.pth"), "class token"),
        (("evaluate", "video.pth", "--data", "digits"), "video encoder"),
        (("convert", "vissl.pth", "x.pth", "--layout", "stop"), "has no predictor"),
        (("convert", "vissl.pth", "x.safetensors", "--layout", "stop"), "goes into .pth"),
        (("convert", "vissl.pth", "x.safetensors"), "--heads"),
        (("train", "--weights", "vissl.pth", "--warmup", "1"), "the configuration is"),
    ]
    for words, text in cases:
        assert main(list(words)) == 2
        said = capsys.readouterr().err
        assert text in said, said
        assert said.count("\n") == 1
    assert not list(Path().glob("x.*"))
