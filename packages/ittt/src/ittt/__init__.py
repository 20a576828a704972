"""IT3, idempotent test-time training (arXiv 2410.04201).

`net = ITTT(model, inject="concat")`, `net.loss(x, y)`, `net.adapter(Settings())(x).prediction`.
"""

from typing import TYPE_CHECKING

from ittt.settings import Settings as Settings

if TYPE_CHECKING:
    from ittt.adapt import Adapted as Adapted
    from ittt.adapt import Adapter as Adapter
    from ittt.guard import Calibration as Calibration
    from ittt.inject import extra_inputs as extra_inputs
    from ittt.model import ITTT as ITTT

_PLACES = {
    "Adapted": "adapt",
    "Adapter": "adapt",
    "Calibration": "guard",
    "ITTT": "model",
    "extra_inputs": "inject",
}
__all__ = ["ITTT", "Adapted", "Adapter", "Calibration", "Settings", "extra_inputs"]


def __getattr__(name: str):
    # Torch is imported when it is needed, not when a command line is parsed.
    if name in _PLACES:
        import importlib

        return getattr(importlib.import_module(f"ittt.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'ittt' has no attribute {name!r}")
