"""Continuous convolution layers (arXiv 2006.11120): `CCConv2d(64, 64, 3)(x, size=(25, 31))`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ccconv.baked import Baked as Baked
    from ccconv.conversion import convert as convert
    from ccconv.conversion import from_conv as from_conv
    from ccconv.drift import align as align
    from ccconv.functional import resize as resize
    from ccconv.hidden import ScaleEnsemble as ScaleEnsemble
    from ccconv.hidden import hidden_sizes as hidden_sizes
    from ccconv.hidden import sizes_for_budget as sizes_for_budget
    from ccconv.layer import CCConv1d as CCConv1d
    from ccconv.layer import CCConv2d as CCConv2d
    from ccconv.layer import CCConv3d as CCConv3d

_PLACES = {
    "CCConv1d": "layer",
    "CCConv2d": "layer",
    "CCConv3d": "layer",
    "Baked": "baked",
    "resize": "functional",
    "from_conv": "conversion",
    "convert": "conversion",
    "align": "drift",
    "ScaleEnsemble": "hidden",
    "hidden_sizes": "hidden",
    "sizes_for_budget": "hidden",
}
__all__ = [
    "Baked",
    "CCConv1d",
    "CCConv2d",
    "CCConv3d",
    "ScaleEnsemble",
    "align",
    "convert",
    "from_conv",
    "hidden_sizes",
    "resize",
    "sizes_for_budget",
]


def __getattr__(name: str):
    # Torch is imported when it is needed, not when a command line is parsed.
    if name in _PLACES:
        import importlib

        return getattr(importlib.import_module(f"ccconv.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'ccconv' has no attribute {name!r}")
