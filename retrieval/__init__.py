"""Query -> ranked, explained results. Names load on first use, as in `indexer`."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .build import Built as Built
    from .build import build_index as build_index
    from .match import ImageMatch as ImageMatch
    from .match import match_images as match_images
    from .options import SearchOptions as SearchOptions
    from .query.encoder import QueryEncoder as QueryEncoder
    from .query.query import EncodedQuery as EncodedQuery
    from .query.query import MultiQuery as MultiQuery
    from .rerank.evidence import Evidence as Evidence
    from .rerank.ranking import Reranked as Reranked
    from .rerank.ranking import rerank_candidates as rerank_candidates
    from .results import Explained as Explained
    from .results import Result as Result
    from .search import Searcher as Searcher
    from .tables import to_dicts as to_dicts
    from .tables import to_pandas as to_pandas

_HOMES = {
    "Built": "build",
    "EncodedQuery": "query.query",
    "Evidence": "rerank.evidence",
    "Explained": "results",
    "ImageMatch": "match",
    "MultiQuery": "query.query",
    "QueryEncoder": "query.encoder",
    "Reranked": "rerank.ranking",
    "Result": "results",
    "SearchOptions": "options",
    "Searcher": "search",
    "build_index": "build",
    "match_images": "match",
    "rerank_candidates": "rerank.ranking",
    "to_dicts": "tables",
    "to_pandas": "tables",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
