"""Idempotent Generative Network (arXiv 2311.01462): `from ign import IGN; IGN.load("latest").sample(16)`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ign.generate import IGN as IGN
    from ign.train import train as train

__all__ = ["IGN", "train"]


def __getattr__(name: str):
    # Torch is imported when it is needed, not when a command line is parsed.
    if name == "IGN":
        from ign.generate import IGN

        return IGN
    if name == "train":
        from ign.train import train

        return train
    raise AttributeError(f"module 'ign' has no attribute {name!r}")
