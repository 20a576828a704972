"""`resize`: every spatial axis of a batch, by exact rationals, differentiable."""

from collections.abc import Sequence

from jaxtyping import Float
from paperkit import UserError
from paperkit import resize as house
from paperkit.resize import Number
from torch import Tensor


def resize(
    x: Float[Tensor, "b c *n"],
    size: int | Sequence[int] | None = None,
    scale: Number | Sequence[Number] | None = None,
    kernel: str = "cubic",
    antialias: bool = True,
    border: str = "symmetric",
) -> Float[Tensor, "b c *m"]:
    """Resample one to three spatial axes; size, scale or both, as the layers take them.

    `kernel`: cubic (a = -1/2), linear, box, lanczos2, lanczos3. `border`: zeros, replicate, symmetric (the
    mirror that repeats the edge), or renormalize (as Pillow and F.interpolate(antialias=True) do). Float64 is
    right to float64. Raises `UserError` for input that makes no sense.
    """
    if not 3 <= x.ndim <= 5:
        raise UserError(f"resize takes (batch, channels, 1 to 3 axes), got {tuple(x.shape)}")
    if border == "reflect":
        raise UserError('border="reflect" is not offered here: "symmetric" mirrors with the edge repeated')
    axes = tuple(range(2, x.ndim))
    border = "reflect" if border == "symmetric" else border
    return house.resize(x, scale, size, axes, kernel, antialias, border)
