"""Which device, which precision, and why. Used by every paper that runs a network."""

import contextlib
import os
from dataclasses import dataclass
from typing import Literal

import torch

from paperkit import UserError

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Device:
    """A device with the precision of its matrix products and the reason for both."""

    device: torch.device
    precision: Literal["fp32", "bf16"]
    reason: str

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The autocast context of `precision`; in fp32 it does nothing."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def __str__(self) -> str:
        return f"{self.device}, {self.precision} ({self.reason})"


def choose(device: str = "auto", precision: Precision = "auto") -> Device:
    """Resolve `--device` (auto, cpu, cuda, cuda:1, mps) and `--precision`.

    Raises `UserError` for a device that is not there and for bf16 where it would be slow or is missing.
    """
    chosen, why = _device(device)
    if chosen.type != "cuda":
        if precision == "bf16":
            raise UserError(
                f"--precision bf16 is for CUDA devices, this is {chosen.type}: use --precision fp32"
            )
        return Device(chosen, "fp32", f"{why}; fp32, bf16 is slow or inexact on {chosen.type}")
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        why += f"; {precision} as the GPU {'has' if precision == 'bf16' else 'lacks'} bf16 units"
    elif precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("--precision bf16: this GPU has no bf16 units, use --precision fp32")
    else:
        why += f"; {precision} as asked"
    return Device(chosen, precision, why)


def _device(name: str) -> tuple[torch.device, str]:
    if name == "auto":
        if torch.cuda.is_available():
            return _own_gpu(), torch.cuda.get_device_name(_own_gpu())
        if torch.backends.mps.is_available():
            return torch.device("mps"), "Apple GPU"
        return torch.device("cpu"), "no GPU found"
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is no device: use auto, cpu, cuda, cuda:0 or mps") from None
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name} is not supported: use auto, cpu, cuda or mps")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: no CUDA GPU on this machine, use --device cpu or auto")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: no Apple GPU on this machine, use --device cpu or auto")
    if chosen.type != "cuda":
        return torch.device(chosen.type), "as asked"  # "cpu:1" is the same processor
    chosen = _own_gpu() if chosen.index is None else chosen
    if not 0 <= chosen.index < torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine has {torch.cuda.device_count()} GPU(s), counted from 0"
        )
    return chosen, "as asked"


def _own_gpu() -> torch.device:
    # Under a launcher each process of a machine has a GPU of its own.
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
