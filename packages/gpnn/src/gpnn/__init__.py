"""Drop the GAN (arXiv 2103.15545): `from gpnn import generate; generate(image, samples=9, seed=0)`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpnn.tasks import analogy as analogy
    from gpnn.tasks import collage as collage
    from gpnn.tasks import edit as edit
    from gpnn.tasks import generate as generate
    from gpnn.tasks import inpaint as inpaint
    from gpnn.tasks import reshuffle as reshuffle
    from gpnn.tasks import retarget as retarget
    from gpnn.tasks import texture as texture

__all__ = ["analogy", "collage", "edit", "generate", "inpaint", "reshuffle", "retarget", "texture"]


def __getattr__(name: str):
    # Torch is imported when it is needed, not when a command line is parsed.
    if name in __all__:
        from gpnn import tasks

        return getattr(tasks, name)
    raise AttributeError(f"module 'gpnn' has no attribute {name!r}")
