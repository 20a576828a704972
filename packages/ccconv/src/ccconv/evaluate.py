"""`ccconv evaluate`: accuracy over image sizes, through chosen hidden sizes, or over several chains."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from paperkit import UserError
from paperkit.device import choose
from paperkit.run import find, write_json
from torch import Tensor, nn

from ccconv import data
from ccconv.config import EvaluateConfig
from ccconv.train import accuracy, load, predict, words

Maps = tuple[int, ...]


def chains(maps: Maps) -> list[Maps]:
    """Five chains of hidden sizes with one end: the trained one, the first map or the second 1/8 off."""
    if len(maps) < 3:
        raise UserError(f"an ensemble needs three layers or more, whose sizes may differ: maps are {maps}")
    first, second = (max(1, round(n / 8)) for n in maps[:2])
    return [
        maps,
        (maps[0] - first, *maps[1:]),
        (maps[0] + first, *maps[1:]),
        (maps[0], maps[1] - second, *maps[2:]),
        (maps[0], maps[1] + second, *maps[2:]),
    ]


def ensemble(
    net: nn.Module, images_: data.Images, size: int, margin: int, chosen: Sequence[Maps | None]
) -> Float[Tensor, "n k"]:
    """Logits averaged over chains of hidden sizes."""
    return torch.stack([predict(net, images_, size, margin, maps) for maps in chosen]).mean(0)


def evaluate(config: EvaluateConfig) -> Path:
    """`ccconv evaluate`: print accuracies over image sides and write evaluation.json into the run folder."""
    folder = find("ccconv", config.run)
    net, trained = load(folder)
    free = trained.layer not in ("strided", "blur")
    if (config.maps or config.ensemble) and not free:
        raise UserError(f"the layers of {folder} are {trained.layer}: their hidden sizes cannot be chosen")
    if config.maps and len(config.maps) != len(trained.maps):
        raise UserError(f"--maps needs {len(trained.maps)} entries, one per layer, got {len(config.maps)}")
    net = net.to(choose(config.device).device)
    test_set = data.load(trained, "test")
    chosen: list[Maps | None] = list(chains(trained.maps)) if config.ensemble else [config.maps or None]
    found = {}
    print(f"{words(trained)}, {test_set.name}")
    seen = set(trained.draw or (trained.size,))
    for size in config.sizes:
        logits = ensemble(net, test_set, size, trained.margin, chosen)
        found[str(size)] = accuracy(logits, test_set)
        print(f"{size:6} px  {found[str(size)]:6.1f} %{'' if size in seen else '  unseen'}")
    mean = sum(found.values()) / len(found)
    print(f"  mean     {mean:6.1f} %")
    maps = [list(each or trained.maps) for each in chosen]
    write_json(
        folder / "evaluation.json",
        {"held_out": test_set.name, "maps": maps, "accuracy": found, "mean": mean},
    )
    return folder / "evaluation.json"
