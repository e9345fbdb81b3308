"""What a search returns."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from indexer.images.metadata import Metadata
from indexer.item_files import key_of
from indexer.store.attributes import Attributes

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
    attributes  what was given with an added image, a JSON object
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
    attributes: Attributes = field(default_factory=dict, hash=False)

    @property
    def key(self) -> str | None:
        """The key of an image that was added by `Index.add`; None for a file of an indexed folder."""
        return key_of(self.path)

    @property
    def box_px(self) -> tuple[int, int, int, int] | None:
        """x, y, width, height of the thing in pixels of the upright image; None where no place was found."""
        if self.evidence is None or self.evidence.box is None:
            return None
        x, y, w, h = self.evidence.box
        across, down = self.metadata.width, self.metadata.height
        left, top = round(x * across), round(y * down)
        return left, top, round((x + w) * across) - left, round((y + h) * down) - top

    def __repr__(self) -> str:
        why = f", {self.evidence.in_words}" if self.evidence else ""
        return f"Result({self.rank}, {self.score:.3f}, {self.path!r}{why})"


@dataclass(frozen=True, eq=False)
class Explained:
    """Two images held against each other.

    query_similarity  (rows, columns) float32: the best cosine of each patch of the query in the other image
    image_similarity  likewise of the other image's patches in the query
    """

    evidence: Evidence
    query_similarity: np.ndarray
    image_similarity: np.ndarray

    def __repr__(self) -> str:
        return f"Explained({self.evidence.in_words!r})"


def note_on(results: Sequence[Result]) -> str:
    """A note on the results as a whole; empty where there is none."""
    if not results:
        return NOTHING
    verdicts = {result.evidence.verdict if result.evidence else None for result in results}
    return "" if verdicts & {"same", None} else NO_MATCH
