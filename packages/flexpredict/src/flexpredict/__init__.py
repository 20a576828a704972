"""StoP / FlexPredict (arXiv 2308.00566): stochastic positions in masked image modelling.

`position = StochasticPosition((14, 14), 384, 768)`; in a predictor, `position(places, project) + mask_token`
takes the place of `psi[places] + mask_token`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flexpredict.checkpoints import Checkpoint as Checkpoint
    from flexpredict.method import StochasticPosition as StochasticPosition
    from flexpredict.model import Encoder as Encoder
    from flexpredict.model import Learner as Learner
    from flexpredict.train import train as train

_PLACES = {
    "Checkpoint": "checkpoints",
    "Encoder": "model",
    "Learner": "model",
    "StochasticPosition": "method",
    "train": "train",
}
__all__ = ["Checkpoint", "Encoder", "Learner", "StochasticPosition", "train"]


def __getattr__(name: str):
    # Torch is imported when it is needed, not when a command line is parsed.
    if name in _PLACES:
        import importlib

        return getattr(importlib.import_module(f"flexpredict.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'flexpredict' has no attribute {name!r}")
