"""Layers of real classes at tiny sizes: stages, MLPs, extra tokens, odd grids, margins, weight files."""

import os
import pickle

import pytest
import torch
from paperkit import UserError
from rosetta import models, nets
from rosetta.hooks import Network, discover, facts, reading, record
from torch import nn

os.environ["HF_HUB_OFFLINE"] = "1"


def ready(module: nn.Module, example: torch.Tensor, layers=(), **more) -> Network:
    network = Network("net", module.eval(), **more)
    discover(network, example, layers)
    return network


def picture(height: int = 32, width: int = 32, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, channels, height, width, generator=generator) * 2 - 1


# ---- convolutional networks


def test_a_residual_network_of_torchvision_gives_its_four_stages():
    from torchvision.models.resnet import Bottleneck, ResNet

    network = ready(ResNet(Bottleneck, [1, 1, 1, 1]), picture(64, 64))
    assert [site.name for site in network.sites] == ["layer1", "layer2", "layer3", "layer4"]
    assert sum(site.channels for site in network.sites) == 3840  # spec 3: an RN50
    assert [site.grid for site in network.sites] == [(16, 16), (8, 8), (4, 4), (2, 2)]


def test_stages_of_timm_and_grids_that_are_not_square():
    import timm

    network = ready(timm.create_model("resnet10t", pretrained=False), picture(64, 96))
    assert [site.grid for site in network.sites] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    convnext = timm.create_model("convnext_atto", pretrained=False, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
    assert [s.name for s in ready(convnext, picture(64, 64)).sites] == [f"stages.{i}" for i in range(4)]


def test_other_networks_give_the_last_map_of_each_size():
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, 2, 1), nn.Tanh())
    network = ready(module, picture())
    assert [(site.name, site.channels) for site in network.sites] == [("1", 4), ("3", 5)]


def test_networks_of_the_small_zoo_have_the_units_of_the_spec():
    images, codes = picture(28, 28, 1), torch.randn(2, nets.CODE)
    for module, example, units, grids in (
        (nets.ClassifierA(1, 10), images, 168, [28, 14, 7]),
        (nets.ClassifierB(1, 10), images, 176, [14, 14, 7, 7]),
        (nets.MaskedAutoencoder(1, 28), images, 1024, [7, 7, 7, 7]),
        (nets.Generator(1, 28), codes, 112, [7, 14, 28]),
    ):
        network = ready(module, example)
        assert sum(site.channels for site in network.sites) == units
        assert [site.grid for site in network.sites] == [(side, side) for side in grids]


# ---- transformers


def test_class_and_register_tokens_are_dropped():
    import timm

    module = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=(32, 48), patch_size=8, embed_dim=16, depth=2,
        num_heads=2, reg_tokens=3, class_token=True,
    )  # fmt: skip
    network = ready(module, picture(32, 48))
    assert [site.name for site in network.sites] == ["blocks.0.mlp.fc2", "blocks.1.mlp.fc2"]
    assert {(s.channels, s.grid, s.prefix) for s in network.sites} == {(64, (4, 6), 4)}
    with reading(network) as found, torch.no_grad():
        module(picture(32, 48))
    hidden = {}
    handle = module.blocks[1].mlp.act.register_forward_hook(lambda m, i, o: hidden.update(act=o))
    with torch.no_grad():
        module(picture(32, 48))
    handle.remove()
    wanted = hidden["act"][:, 4:].transpose(1, 2).reshape(2, 64, 4, 6)
    assert torch.equal(found["blocks.1.mlp.fc2"], wanted)
    assert facts(network)[0] == "blocks.0.mlp.fc2: 64 units, 4x6, 4 tokens before the image's"


def test_gated_products_of_swiglu():
    import timm

    module = timm.create_model(
        "vit_small_patch14_reg4_dinov2", pretrained=False, img_size=28, embed_dim=16, depth=1, num_heads=2,
        mlp_layer=timm.layers.SwiGLUPacked, act_layer=nn.SiLU,
    )  # fmt: skip
    site = ready(module, picture(28, 28)).sites[0]
    assert site.name == "blocks.0.mlp.fc2"
    assert site.channels == module.blocks[0].mlp.fc2.in_features
    assert site.prefix == 5


TINY = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["ViT", "CLIPVision", "Dinov2WithRegisters"])
def test_vision_transformers_of_transformers(kind):
    import transformers

    sizes = {k: v for k, v in TINY.items() if k != "intermediate_size" or kind != "Dinov2WithRegisters"}
    module = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes))
    network = models.of_transformers("net", module.eval())
    discover(network, picture())
    prefix = 1 + getattr(module.config, "num_register_tokens", 0)
    assert len(network.sites) == 2
    assert {(site.grid, site.prefix) for site in network.sites} == {((4, 4), prefix)}
    assert all(site.channels > 16 for site in network.sites)


def test_mae_of_transformers_sees_every_patch_in_order():
    import transformers

    config = transformers.ViTMAEConfig(**TINY, mask_ratio=0.0)
    module = transformers.ViTMAEModel(config).eval()
    network = models.of_transformers("mae", module)
    discover(network, picture())
    assert {(site.grid, site.prefix) for site in network.sites} == {((4, 4), 1)}
    moved = picture()
    moved[:, :, :8, :8] = 1.0  # the first patch alone
    first, second = (record(network, x).data[0] for x in (picture(), moved))
    change = (first - second).abs().mean((0, 1))
    assert int(change.flatten().argmax()) == 0


# ---- diffusion


def test_denoisers_of_diffusers_at_a_fixed_timestep():
    import diffusers

    unet = diffusers.UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    network = models.of_diffusers("unet", unet.eval())
    discover(network, picture())
    names = [site.name for site in network.sites]
    assert names == ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    assert torch.equal(record(network, picture()).data[2], record(network, picture()).data[2])

    dit = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip
    network = models.of_diffusers("dit", dit.eval())
    discover(network, picture())
    assert [site.name for site in network.sites] == [
        "transformer_blocks.0.ff.net.2",
        "transformer_blocks.1.ff.net.2",
    ]
    assert {(site.channels, site.grid, site.prefix) for site in network.sites} == {(64, (4, 4), 0)}


# ---- named layers, margins, bad input


def test_layers_by_pattern_and_inputs_of_modules():
    network = ready(nets.ClassifierB(3, 4), picture(), layers=["stages.*.body.1", "stages.2"])
    assert [site.name for site in network.sites] == ["stages.1.body.1", "stages.3.body.1", "stages.2"]
    network = ready(nets.MaskedAutoencoder(1, 28), picture(28, 28, 1), layers=["<blocks.0.mlp.fc1"])
    assert network.sites[0].channels == 64
    with pytest.raises(UserError, match=r"net has no layer stage\.2 \(did you mean stages\.2\?\)"):
        ready(nets.ClassifierB(3, 4), picture(), layers=["stage.2"])
    with pytest.raises(UserError, match="layer head: no spatial maps, its shape is"):
        ready(nets.ClassifierB(3, 4), picture(), layers=["head"])


def test_margins_are_cropped_on_each_side():
    module = nn.Sequential(nn.Conv2d(1, 2, 1))
    network = ready(module, picture(36, 36, 1), margin=10)
    assert network.sites[0].grid == (16, 16)
    found = record(network, picture(36, 36, 1)).data[0]
    with torch.no_grad():
        assert torch.equal(found, module(picture(36, 36, 1))[:, :, 10:26, 10:26])
    with pytest.raises(UserError, match=r"nothing is left of \(16, 16\)"):
        ready(module, picture(16, 16, 1), margin=10)


def test_a_network_without_maps_says_so():
    with pytest.raises(UserError, match="net has no layer with spatial maps among its 3"):
        ready(nn.Sequential(nn.Flatten(), nn.Linear(3072, 4)), picture())


def test_hooks_leave_nothing_behind_and_other_sizes_are_refused():
    network = ready(nets.ClassifierA(3, 4), picture())
    record(network, picture())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in network.module.modules())
    with pytest.raises(UserError, match=r"layer stages\.0: maps of shape .* images of one size only"):
        record(network, picture(64, 64))


def test_networks_by_name_without_weights():
    network = models.load("timm:resnet10t@untrained")
    assert network.name == "timm:resnet10t (untrained)"
    assert not network.module.training
    again = models.load("timm:resnet10t@untrained")
    for one, other in zip(network.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(one, other)
    prepared = network.prepare(picture(20, 30, 1))
    assert prepared.shape[:2] == (2, 3)
    assert min(prepared.shape[2:]) == 176  # what timm says this model takes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("resnet50", "named by its source"),
        ("timm:resnet5", r"timm has no model resnet5 \(did you mean"),
        ("tv:resnet51", r"torchvision has no model resnet51 \(did you mean"),
        ("tv:resnet18@nowhere.pth", "there is no such file"),
        ("hf:./nowhere", "hf:./nowhere"),
    ],
)
def test_unknown_networks_are_one_line(words, message):
    with pytest.raises(UserError, match=message):
        models.load(words)


def test_weights_from_files_of_several_forms(tmp_path):
    import timm
    from safetensors.torch import save_file

    module = timm.create_model("resnet10t", pretrained=False)
    state = module.state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "plain.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "wrapped.pth")
    torch.save(
        {"teacher": {f"backbone.{k}": v for k, v in state.items()} | {"x": torch.ones(1)}},
        tmp_path / "dino.pth",
    )
    for name in ("plain.safetensors", "wrapped.pth", "dino.pth"):
        loaded = models.load(f"timm:resnet10t@{tmp_path / name}").module.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_files_with_code_or_of_other_networks_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Evil()}))
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 nothing")
    for name, message in (
        ("evil.pth", "perhaps code, and was not opened"),
        ("other.pth", "is of another network: it lacks"),
        ("list.pth", "holds no weights"),
        ("broken.pth", "is damaged"),
    ):
        with pytest.raises(UserError, match=message):
            models.load(f"tv:resnet18@{tmp_path / name}")
    assert not (tmp_path / "ran").exists()
