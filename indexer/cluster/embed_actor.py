"""Embedding in an actor of a cluster: the backbone is loaded once, and records go straight to a server's collection, or
to shards of vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from ..backbone.backbone import Backbone
from ..backbone.byte_ranges import ByteRanges
from ..descriptor.config import DescriptorConfig
from ..descriptor.embedder import Embedder
from ..descriptor.pooling import PooledFeatures
from ..descriptor.whitening import Whitening, load_whitening
from ..errors import SeenitError
from ..images.batches import of_one_shape
from ..images.jobs import Decoded
from ..index.records import Said, make_records, with_what_was_said
from ..store.open import open_store
from ..store.protocol import Record, Schema, Store, StoredFile
from .shard_parts import ShardTarget

BATCH = 8  # as on one machine; a GPU is given more
GPU_BATCH = 64  # not tuned: no GPU was at hand


@dataclass(frozen=True)
class ActorSpec:
    """What an actor is made with, on whichever machine.

    backbone, backbone_hash  its name or path, which must be there on every machine, and what it must be
    settings                 of the descriptor
    store                    a server's collection that the actor writes to; None: the driver writes
    precision                of the backbone, a `dtype` of `Backbone.load`
    shards                   where the actor writes shards; None: it writes none
    ranges                   for 8 bits: `ByteRanges` as they are saved
    """

    backbone: str
    backbone_hash: str
    resolution: int
    settings: Mapping[str, object]
    store: str | None
    precision: str = "auto"
    shards: ShardTarget | None = None
    ranges: bytes | None = None


class EmbedActor:
    """See `ActorSpec`."""

    def __init__(self, spec: ActorSpec) -> None:
        ranges = None if spec.ranges is None else ByteRanges.load(spec.ranges)
        backbone = Backbone.load(spec.backbone, dtype=spec.precision, ranges=ranges)
        if backbone.hash != spec.backbone_hash:
            raise SeenitError(
                f"backbone {spec.backbone} is another one on a machine of the cluster ({backbone.hash[:8]}, not"
                f" {spec.backbone_hash[:8]}); put the same file on all of them"
            )
        self._spec = spec
        self._embedder = Embedder(backbone, spec.resolution, DescriptorConfig.from_settings(spec.settings))
        self._batch = GPU_BATCH if backbone.device.type == "cuda" else BATCH
        self._whitening: tuple[bytes, Whitening] | None = None
        self._store: Store | None = None
        self._place = None if spec.shards is None else spec.shards.place()

    def pooled(self, pixels: Sequence[np.ndarray]) -> PooledFeatures:
        """What statistics are fitted on, of images of one shape."""
        return self._embedder.pooled(pixels)

    def embed(
        self,
        whitening: bytes,
        images: Sequence[Decoded],
        files: Mapping[str, tuple[StoredFile, ...]],
        pixels: Mapping[str, np.ndarray],
        number: int = 0,
        said: Mapping[str, Said] = MappingProxyType({}),
    ) -> list[Record]:
        """Records of images, written where the actor writes, which then come back without vector and patches.

        files   by content id, as the records are to have them
        pixels  by path
        number  of the shard that an actor of a cluster with shards writes
        said    by content id, what users said of images that are embedded again, for shards; a server is asked
        """
        if self._whitening is None or self._whitening[0] != whitening:
            self._whitening = (whitening, load_whitening(whitening))
        fitted = self._whitening[1]
        records = [
            record
            for batch in of_one_shape((replace(image, pixels=pixels[image.path]) for image in images), self._batch)
            for record in make_records(
                batch, self._embedder.pooled([image.pixels for image in batch]), fitted, files.__getitem__
            )
        ]
        if self._spec.shards is not None and self._place is not None:
            records = [record if record.id not in said else said[record.id].put_on(record) for record in records]
            self._spec.shards.write(self._place, number, records, fitted.global_dim)
            return [replace(record, global_vector=None, patches=None) for record in records]
        if self._spec.store is None:
            return records
        if self._store is None:
            self._store = open_store(self._spec.store)  # the driver holds the writer's lock for all its actors
            self._store.ensure(Schema(fitted.global_dim))
        self._store.upsert(with_what_was_said(self._store, records))
        return [replace(record, global_vector=None, patches=None) for record in records]

    def merge(self, numbers: Sequence[int], into: int, dim: int) -> bool:
        """Make one shard of several; whether this machine has them."""
        if self._spec.shards is None or self._place is None:
            return False
        self._spec.shards.merge(self._place, numbers, into, dim)
        return True
