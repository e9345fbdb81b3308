"""Images of requests, decoded in processes of their own with their caps; files are opened without following a link."""

from dataclasses import dataclass
from typing import Any

from indexer.descriptor.features import WHOLE
from indexer.errors import ImageError
from indexer.images.decode import Limits
from indexer.images.jobs import Decoded, Job
from indexer.images.metadata import Metadata
from indexer.images.pool import DecodePool

from ..query.crops import QueryCrop
from ..query.encoder import frame_of, why_unread
from ..query.query import Region, box_in_pixels
from .decode_work import decode_for_server


@dataclass(frozen=True)
class Source:
    """A file to be decoded: `path` lies below the folder `top`, with no link on the way."""

    top: str
    path: str
    name: str  # for messages
    id: str  # content id that its bytes must have


@dataclass(frozen=True, eq=False)
class DecodedQuery:
    """A query image as the encoder takes it."""

    crop: QueryCrop
    metadata: Metadata


class Decoder:
    """The decoder processes of a server; its calls block, and come from any thread."""

    def __init__(self, resolution: int, limits: Limits, workers: int | None = None) -> None:
        self._pool = DecodePool(workers, resolution=resolution, patch_size=1, limits=limits, work=decode_for_server)

    def query(self, source: Source, region: Region | None = None) -> DecodedQuery:
        """An image, or the part of it at `region` (fractions), to be searched with.

        Raises ImageError where it cannot be read, SeenitError for a region outside.
        """
        found = self._run(source, {"kind": "query", "region": region})
        crop = QueryCrop(found.pixels, WHOLE)
        if region is not None:
            width, height = found.metadata.width, found.metadata.height
            crop = QueryCrop(found.pixels, frame_of(box_in_pixels(region, width, height), width, height))
        return DecodedQuery(crop, found.metadata)

    def thumbnail(self, source: Source, size_px: int) -> bytes:
        """A JPEG, upright, its longer side at most `size_px`; raises as `query` does."""
        return self._run(source, {"kind": "thumbnail", "size_px": size_px}).pixels.tobytes()

    def close(self) -> None:
        self._pool.close()

    def _run(self, source: Source, order: dict[str, Any]) -> Decoded:
        (outcome,) = self._pool.run([Job(source.path, order=order | {"top": source.top})])
        if not isinstance(outcome, Decoded):
            raise ImageError(source.name, why_unread(outcome).reason)
        if outcome.id != source.id:
            raise ImageError(source.name, "it has changed since it was indexed")
        return outcome
