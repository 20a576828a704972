"""Weights, gradients and AdamW's state shared out over the processes (FSDP), for sizes beyond one device.

Asked for by the launcher: `accelerate launch --use_fsdp` sets the variable that `wanted` reads. Every process
keeps a part of each weight, of its gradient and moments; block by block they come together where they are
used. The averaged encoder is cut alike, so that following the trained one needs no exchange.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn

from flexpredict.model import Encoder, Learner


def wanted() -> bool:
    """Whether the launcher asks for it."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")


def share_out(learner: Learner, average: Encoder, optimiser: torch.optim.Optimizer) -> None:
    """Cut networks and optimiser into one part for each process, in place.

    `predictor_embed` stays in the outermost unit: it is used twice in a pass.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_tensor

    before = {id(parameter): name for name, parameter in learner.named_parameters()}
    kept = {before[id(parameter)]: state for parameter, state in optimiser.state.items()}
    names = [[before[id(parameter)] for parameter in group["params"]] for group in optimiser.param_groups]
    device = next(learner.parameters()).device.type
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for block in (*learner.encoder.blocks, *learner.predictor.predictor_blocks, *average.blocks):
        fully_shard(block, mesh=mesh)
    for network in (learner, average):
        fully_shard(network, mesh=mesh, reshard_after_forward=True)
    # The optimiser goes on with the parts.
    parts: dict[str, Any] = dict(learner.named_parameters())
    for group, own in zip(optimiser.param_groups, names, strict=True):
        group["params"] = [parts[name] for name in own]
    optimiser.state.clear()
    for name, state in kept.items():
        part = parts[name]
        optimiser.state[part] = {
            key: distribute_tensor(value, part.device_mesh, part.placements) if value.ndim else value
            for key, value in state.items()
        }


def whole(content: Any) -> Any:
    """State dictionaries with every tensor put together again; all processes must call it."""
    from torch.distributed.tensor import DTensor

    if isinstance(content, DTensor):
        return content.full_tensor()
    if isinstance(content, dict):
        return {key: whole(value) for key, value in content.items()}
    return [whole(value) for value in content] if isinstance(content, list) else content


def gathered(network: nn.Module, twin: nn.Module) -> nn.Module:
    """The network itself where it is whole (then it is its own twin), else the twin with its weights."""
    if network is not twin:
        weights: dict[str, Tensor] = whole(network.state_dict())
        twin.load_state_dict(weights)
    return twin
