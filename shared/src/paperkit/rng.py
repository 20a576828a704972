"""Random numbers addressed by (seed, step, purpose) instead of by how many were drawn before.

Used by every paper that trains or samples. A run that is killed and resumed sees the same numbers as one that
was never interrupted, and so does a run on any number of processes: each draws the global batch on the CPU
and keeps its own rows (`shard`).
"""

import hashlib
import random

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def seed_of(seed: int, step: int, purpose: str) -> int:
    """A 63-bit seed for one use of randomness; any change of an argument gives an unrelated one."""
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, step: int = 0, purpose: str = "") -> torch.Generator:
    """A CPU generator for (seed, step, purpose).

    Note: torch's CPU generator keeps the low 32 bits of a seed, so that of a million uses about a hundred
    pairs share their numbers; any two given uses do with probability 2^-32.
    """
    return torch.Generator().manual_seed(seed_of(seed, step, purpose))


def normal(shape: tuple[int, ...], seed: int, step: int = 0, purpose: str = "noise") -> Float[Tensor, "..."]:
    """Standard normal numbers of `shape` (float32, CPU) that depend on (seed, step, purpose) alone."""
    return torch.randn(shape, generator=generator(seed, step, purpose))


def seed_everything(seed: int, purpose: str = "init") -> None:
    """Seed torch's, NumPy's and Python's global generators: for initialisation, which takes none."""
    number = seed_of(seed, 0, purpose)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 - third-party code draws from the global generator
    torch.manual_seed(number)
