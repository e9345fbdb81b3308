"""Duplicates of an index: the same bytes, copies of the same photograph, other photographs of the same motif.

Names load on first use, for the command line imports this package before it knows whether it is needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .find import find_duplicates as find_duplicates
    from .move import move_spare as move_spare
    from .move import read_moves as read_moves
    from .move import undo_moves as undo_moves
    from .options import DuplicateOptions as DuplicateOptions
    from .outcome import Duplicates as Duplicates

_HOMES = {
    "DuplicateOptions": "options",
    "Duplicates": "outcome",
    "find_duplicates": "find",
    "move_spare": "move",
    "read_moves": "move",
    "undo_moves": "move",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
