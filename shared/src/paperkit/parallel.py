"""One process by default, many under `accelerate launch` or `torchrun`, over the same code.

Used by the papers that train. Accelerate starts the processes and moves the bytes; every process computes the
gradient of its own rows of the global batch, and `average_gradients` makes it the gradient of the whole.
"""

import atexit
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from paperkit import UserError
from paperkit.device import Device

if TYPE_CHECKING:
    from accelerate import Accelerator


def launch(device: Device) -> "Accelerator":
    """The Accelerator of this process on `device`. Precision stays with `Device.autocast`."""
    from accelerate import Accelerator  # here: what only applies a trained network need not wait for it

    atexit.register(leave)
    return Accelerator(cpu=device.device.type == "cpu", mixed_precision="no")


def leave() -> None:
    """End the exchange between processes, if any: a thread of it that is left at exit may abort Python."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def world() -> tuple[int, int]:
    """(rank, number of processes), also before the processes have met."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def shard(batch: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "r ..."]:
    """This process's rows of a global batch: consecutive, equal in number on each process.

    Raises `UserError` when the batch does not divide by the number of processes.
    """
    rank, size = world()
    if len(batch) % size:
        raise UserError(
            f"--batch {len(batch)} does not divide by {size} processes: choose a multiple of {size}"
        )
    rows = len(batch) // size
    return batch[rank * rows : (rank + 1) * rows]


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one exchange. Alone it does nothing.

    Gradients of weights that are shared out (FSDP) are averaged already and left alone.
    """
    if world()[1] == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None and type(p.grad) is Tensor]
    if not gradients:
        return
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= world()[1]
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def average(value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The mean of a tensor over the processes; not differentiable."""
    if world()[1] == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world()[1]


def differentiable_sum(value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The sum of a tensor over the processes; its gradient is summed over them likewise."""
    if world()[1] == 1:
        return value
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(value)


def agree(value: str) -> str:
    """The first process's value, on every process."""
    if world()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def largest(value: int) -> int:
    """The largest of the processes' values."""
    if world()[1] == 1:
        return value
    # NCCL carries nothing that lies on the CPU.
    place = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else None
    number = torch.tensor(value, device=place)
    dist.all_reduce(number, op=dist.ReduceOp.MAX)
    return int(number)
