"""Features of query images, kept for the next query with the same image.

Whoever looks at results asks again with the same image: with another filter, a like, more results. The backbone takes
most of a query's time, and what it gives depends on the image's bytes, the region and the whitening alone.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .crops import QueryCrop

if TYPE_CHECKING:
    from indexer.descriptor.features import CropFeatures

MAX_BYTES = 128 << 20  # 160 to 320 images at 224 px, of two to four crops of some 200 kB each; not tuned


@dataclass(frozen=True, eq=False)
class IdentifiedImage:
    """A query image whose features may be known from an earlier query.

    id      content id of its bytes
    region  (x, y, width, height) in fractions of the part that is searched with; None for the whole
    size    width and height of the whole image in pixels
    read    decodes it, or the region; asked only where the features are not known
    """

    id: str
    region: tuple[float, float, float, float] | None
    size: tuple[int, int]
    read: Callable[[], QueryCrop]


@dataclass(frozen=True)
class FeatureKey:
    """What features depend on in one index: its backbone, resolution and descriptor config never change."""

    id: str
    region: tuple[float, float, float, float] | None
    whitening_id: str


@dataclass(frozen=True, eq=False)
class KeptFeatures:
    """The features of an image's crops, and its size as in `IdentifiedImage`. The arrays are shared: never written."""

    crops: "tuple[CropFeatures, ...]"
    size: tuple[int, int]

    @property
    def num_bytes(self) -> int:
        return sum(crop.vector.nbytes + crop.tokens.nbytes + crop.frame.nbytes for crop in self.crops)


class FeatureCache:
    """Features by key, those that were not asked for longest dropped first; may be used from any thread."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[FeatureKey, KeptFeatures] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: FeatureKey) -> KeptFeatures | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: FeatureKey, crops: "Sequence[CropFeatures]", size: tuple[int, int]) -> None:
        """Keep them; what is larger than the whole cache is not kept."""
        kept = KeptFeatures(tuple(crops), size)
        if kept.num_bytes > self._max_bytes:
            return
        with self._lock:
            if (before := self._kept.pop(key, None)) is not None:
                self.num_bytes -= before.num_bytes
            self._kept[key] = kept
            self.num_bytes += kept.num_bytes
            while self.num_bytes > self._max_bytes:
                self.num_bytes -= self._kept.popitem(last=False)[1].num_bytes
