"""Query -> ranked, explained results. Names load on first use, as in `indexer`."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .build import Built as Built
    from .build import build_index as build_index
    from .results import Result as Result
    from .search import Searcher as Searcher

_HOMES = {"Built": "build", "Result": "results", "Searcher": "search", "build_index": "build"}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
