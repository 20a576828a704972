"""Diverse generation from a single video (arXiv 2109.08591): `from vgpnn import generate, read, write`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vgpnn.tasks import analogy as analogy
    from vgpnn.tasks import generate as generate
    from vgpnn.tasks import inpaint as inpaint
    from vgpnn.tasks import loop as loop
    from vgpnn.tasks import retarget as retarget
    from vgpnn.tasks import sketch as sketch
    from vgpnn.video import read as read
    from vgpnn.video import to_frames as to_frames
    from vgpnn.video import to_unit as to_unit
    from vgpnn.video import write as write

__all__ = [
    "analogy", "generate", "inpaint", "loop", "read", "retarget", "sketch", "to_frames", "to_unit", "write",
]  # fmt: skip


def __getattr__(name: str):
    # Torch is imported when it is needed, not when a command line is parsed.
    if name in ("read", "to_frames", "to_unit", "write"):
        from vgpnn import video

        return getattr(video, name)
    if name in __all__:
        from vgpnn import tasks

        return getattr(tasks, name)
    raise AttributeError(f"module 'vgpnn' has no attribute {name!r}")
