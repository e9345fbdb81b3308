"""Features of query images, kept for the next query with the same image.

Whoever looks at results asks again with the same image: with another filter, a like, more results. The backbone takes
most of a query's time, and what it gives depends on the image's bytes, the region and the whitening alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..bounded_cache import BoundedCache
from .crops import QueryCrop

if TYPE_CHECKING:
    from indexer.descriptor.features import CropFeatures

MAX_BYTES = 128 << 20  # 160 to 320 images at 224 px, of two to four crops of some 200 kB each, 60 turned; not tuned


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
    turned: bool = False  # of the quarter turned crops


@dataclass(frozen=True, eq=False)
class KeptFeatures:
    """The features of an image's crops, and its size as in `IdentifiedImage`. The arrays are shared: never written."""

    crops: "tuple[CropFeatures, ...]"
    size: tuple[int, int]

    @property
    def num_bytes(self) -> int:
        arrays = [
            array
            for crop in self.crops
            for array in (crop.vector, crop.tokens, crop.frame, crop.kind_vector, crop.colours)
            if array is not None
        ]
        return sum(array.nbytes for array in arrays)


class FeatureCache(BoundedCache[FeatureKey, KeptFeatures]):
    """Features by key, up to a number of bytes."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(max_bytes, lambda kept: kept.num_bytes)

    def put(self, key: FeatureKey, crops: "Sequence[CropFeatures]", size: tuple[int, int]) -> None:
        self.keep(key, KeptFeatures(tuple(crops), size))
