"""Rosetta neurons (Dravid et al., ICCV 2023, arXiv 2306.09346): the units that different networks share.

`record` reads a network's maps, `Maps` holds them, `table` correlates two networks' units, `Tables` and
`mine` find matches and chains with what chance gives beside them. Importing this imports no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rosetta.hooks import Network, discover, record
    from rosetta.maps import Maps
    from rosetta.mining import Mined, Tables, mine
    from rosetta.similarity import Options, table

__all__ = ["Maps", "Mined", "Network", "Options", "Tables", "discover", "mine", "record", "table"]
_HOME = {
    "Network": "hooks", "discover": "hooks", "record": "hooks", "Maps": "maps", "Mined": "mining",
    "Tables": "mining", "mine": "mining", "Options": "similarity", "table": "similarity",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: `rosetta --help` needs none of them."""
    if name not in _HOME:
        raise AttributeError(f"module rosetta has no {name}")
    from importlib import import_module

    return getattr(import_module(f"rosetta.{_HOME[name]}"), name)
