"""Continuous convolution layers (arXiv 2006.11120): `CCConv2d(64, 64, 3)(x, size=(25, 31))`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ccconv.baked import Baked as Baked
    from ccconv.layer import CCConv1d as CCConv1d
    from ccconv.layer import CCConv2d as CCConv2d
    from ccconv.layer import CCConv3d as CCConv3d

_PLACES = {
    "Baked": "baked",
    "CCConv1d": "layer",
    "CCConv2d": "layer",
    "CCConv3d": "layer",
}
__all__ = ["Baked", "CCConv1d", "CCConv2d", "CCConv3d"]


def __getattr__(name: str):
    # Torch is imported when it is needed, not when a command line is parsed.
    if name in _PLACES:
        import importlib

        return getattr(importlib.import_module(f"ccconv.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'ccconv' has no attribute {name!r}")
