"""Conversion of whole networks: the same outputs at the trained size, and what other sizes then give.

Used by `ccconv reproduce convert`. Real weights: the ImageNet SqueezeNet of the data folder, tested on one
image per class. The other networks have random weights, as none are at hand.
"""

from typing import Any

import torch
import torchvision
from jaxtyping import Float, Int64
from paperkit import UserError, data, results
from paperkit.data import data_root
from paperkit.run import fill, load_weights
from torch import Tensor, nn
from torchvision.transforms import v2

from ccconv.conversion import convert
from ccconv.drift import align

SIZES = (160, 192, 227, 256, 320)
"""Crops, after a resize of the shorter side to 256/227 of them; training was at 227."""
TRAINED = 227
FILE = "weights/squeezenet1_0_deepcomp.safetensors"
D = torch.float64


def randomised(net: nn.Module) -> nn.Module:
    """The network in float64 with every number drawn, norms' statistics too: nothing cancels by chance."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)  # pyright: ignore[reportOptionalMemberAccess]
    return net.to(D).eval()


def networks() -> dict[str, tuple[nn.Module, int]]:
    """Networks of torchvision and timm with random weights, and the size that each is converted at."""
    import timm

    get = torchvision.models.get_model
    return {
        "resnet18": (randomised(get("resnet18", weights=None)), 224),
        "resnet50": (randomised(get("resnet50", weights=None)), 224),
        "mobilenet_v2": (randomised(get("mobilenet_v2", weights=None)), 224),
        "mobilenet_v3_small": (randomised(get("mobilenet_v3_small", weights=None)), 224),
        "vit_tiny_patch16_224": (
            randomised(timm.create_model("vit_tiny_patch16_224", pretrained=False, dynamic_img_size=True)),
            224,
        ),
    }


@torch.no_grad()
def identities() -> tuple[dict[str, float], dict[str, Any]]:
    """Largest relative difference of the outputs at the trained size, and what became of each layer."""
    gaps, facts = {}, {}
    for name, (net, size) in networks().items():
        made = convert(net, size)
        x = torch.randn(1, 3, size, size, dtype=D, generator=torch.Generator().manual_seed(1))
        y, wanted = made.model(x), net(x)
        gaps[name] = float((y - wanted).abs().max() / wanted.abs().max())
        facts[name] = {"converted": made.converted, "left": made.left}
        if not name.startswith("vit"):
            other = made.model(torch.randn(1, 3, 250, 187, dtype=D))
            facts[name]["at_250x187"] = "finite" if bool(other.isfinite().all()) else "NOT FINITE"
            for n in (size, size + 1):
                drift = {
                    side: max((row.cells for row in align(each, n) if row.kind != "meeting"), default=0.0)
                    for side, each in (("original", net), ("converted", made.model))
                }
                facts[name][f"largest_drift_in_cells_at_{n}"] = drift
    return gaps, facts


def squeezenet() -> nn.Module:
    """The SqueezeNet of the data folder. Raises `UserError` where it is missing."""
    path = data_root() / FILE
    if not path.exists():
        raise UserError(f"{FILE} is missing below the data folder (PAPERKIT_DATA): put SqueezeNet v1.0 there")
    net = torchvision.models.get_model("squeezenet1_0", weights=None)
    fill(net, load_weights(path), path)
    return net.eval()


def crops(size: int) -> tuple[Float[Tensor, "n 3 s s"], Int64[Tensor, " n"]]:
    """One image per ImageNet class: shorter side to 256/227 of `size`, centre crop, the usual scaling."""
    found = data.open_set("imagenet-sample", "all")
    shorter = round(size * 256 / TRAINED)
    prepare = v2.Compose([
        v2.Resize(shorter, antialias=True), v2.CenterCrop(size), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])  # fmt: skip
    return torch.stack([prepare(found[i][0]) for i in range(len(found))]), found.labels


@torch.inference_mode()
def scores(nets: dict[str, nn.Module], size: int) -> dict[str, list[float]]:
    """Right (1) or wrong (0) for every image and network at a crop size."""
    x, labels = crops(size)
    return {
        name: torch.cat([net(part).argmax(1) for part in x.split(50)]).eq(labels).double().tolist()
        for name, net in nets.items()
    }


def convert_claim(seeds: int) -> dict[str, Any]:
    """Identity at the trained size; accuracies at others."""
    del seeds  # nothing is drawn
    gaps, facts = identities()
    net = squeezenet()
    made = convert(net, TRAINED)
    nets = {"original": net, "converted": made.model}
    x = torch.randn(1, 3, TRAINED, TRAINED, dtype=D, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        twins = [each.to(D)(x) for each in nets.values()]
    gaps["squeezenet1_0"] = float((twins[0] - twins[1]).abs().max() / twins[0].abs().max())
    for each in nets.values():
        each.float()
    top1: dict[str, dict[str, float]] = {}
    tests: dict[str, dict[str, float]] = {}
    for size in SIZES:
        found = scores(nets, size)
        top1[str(size)] = {name: 100 * sum(values) / len(values) for name, values in found.items()}
        tests[f"{size} px"] = results.mcnemar(found["converted"], found["original"])._asdict()
    return {
        "claim": "Converted networks of torchvision and timm give the same outputs at the trained size",
        "source": "not in the paper: what its layer needs to stand in for trained convs",
        "preset": "none", "data": "random images; imagenet-sample, 1,000 (SqueezeNet)",
        "metric": "largest_relative_difference", "unit": "1", "better": "lower",
        "ours": list(gaps.values()),
        "criterion": "exact: at most 1e-10 of the largest output, in float64", "tolerance": 1e-10,
        "arms": {
            f"squeezenet1_0 top-1 %, {name}": [row[name] for row in top1.values()] for name in nets
        },
        "details": {
            "differences": gaps, "networks": facts,
            "squeezenet1_0": {"converted": made.converted, "left": made.left},
            "top1_by_crop": top1, "mcnemar_converted_against_original": tests,
            "note": "SqueezeNet has one strided conv; its three max pools have no kernel and stay",
        },
    }  # fmt: skip
