"""What a search returns."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from indexer.images.metadata import Metadata

from .rerank.evidence import Evidence

NOTHING = "nothing in the index meets these conditions"
NO_MATCH = "nothing in the index is a match"


@dataclass(frozen=True)
class Result:
    """One image of the index that answers a query.

    rank     from 1
    path     absolute path of the image; where copies exist, the first that meets the filters
    score    in [-1, 1], higher is more similar: cosine of the global descriptors, fused with the patches' when reranked
    id       content id of the image
    copies   the other files with the same bytes
    evidence why it is a match or none; None where patches were not compared
    """

    rank: int
    path: str
    score: float
    id: str
    metadata: Metadata
    copies: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    evidence: Evidence | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Candidate:
    """An image before its evidence is gathered: its score and its consistency, see `Comparison`."""

    id: str
    score: float
    consistency: float


@dataclass(frozen=True, eq=False)
class Explained:
    """Two images held against each other.

    query_similarity  (rows, columns) float32: the best cosine of each patch of the query in the other image
    image_similarity  likewise of the other image's patches in the query
    """

    evidence: Evidence
    query_similarity: np.ndarray
    image_similarity: np.ndarray


def note_on(results: Sequence[Result]) -> str:
    """A note on the results as a whole; empty where there is none."""
    if not results:
        return NOTHING
    verdicts = {result.evidence.verdict if result.evidence else None for result in results}
    return "" if verdicts & {"same", None} else NO_MATCH
