"""Embedding in an actor of a cluster: the backbone is loaded once, and records go straight to a server's collection."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..backbone.backbone import Backbone
from ..descriptor.embedder import Embedder
from ..descriptor.patch_codec import PatchTokens, pack_patches
from ..descriptor.whitening import DescriptorConfig, PooledFeatures, Whitening, apply, load_whitening
from ..errors import SeenitError
from ..images.batches import of_one_shape
from ..images.jobs import Decoded
from ..store.open import open_store
from ..store.protocol import Record, Schema, Store, StoredFile

BATCH = 8  # as on one machine; a GPU is given more
GPU_BATCH = 64  # not tuned: no GPU was at hand


@dataclass(frozen=True)
class ActorSpec:
    """What an actor is made with, on whichever machine.

    backbone, backbone_hash  its name or path, which must be there on every machine, and what it must be
    settings                 of the descriptor
    store                    a server's collection that the actor writes to; None: the driver writes
    """

    backbone: str
    backbone_hash: str
    resolution: int
    settings: Mapping[str, object]
    store: str | None


class EmbedActor:
    """See `ActorSpec`."""

    def __init__(self, spec: ActorSpec) -> None:
        backbone = Backbone.load(spec.backbone)
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

    def pooled(self, pixels: Sequence[np.ndarray]) -> PooledFeatures:
        """What statistics are fitted on, of images of one shape."""
        return self._embedder.pooled(pixels)

    def embed(
        self,
        whitening: bytes,
        images: Sequence[Decoded],
        files: Mapping[str, tuple[StoredFile, ...]],
        pixels: Mapping[str, np.ndarray],
    ) -> list[Record]:
        """Records of images, written where the actor writes, which then come back without vector and patches.

        files   by content id, as the records are to have them
        pixels  by path
        """
        if self._whitening is None or self._whitening[0] != whitening:
            self._whitening = (whitening, load_whitening(whitening))
        fitted = self._whitening[1]
        records = [
            record
            for batch in of_one_shape((replace(image, pixels=pixels[image.path]) for image in images), self._batch)
            for record in self._records(batch, fitted, files)
        ]
        if self._spec.store is None:
            return records
        if self._store is None:
            self._store = open_store(self._spec.store)  # the driver holds the writer's lock for all its actors
            self._store.ensure(Schema(fitted.global_dim))
        tags = self._store.tags_of([record.id for record in records])
        self._store.upsert([replace(record, tags=tags.get(record.id, ())) for record in records])
        return [replace(record, global_vector=None, patches=None) for record in records]

    def _records(
        self, batch: Sequence[Decoded], whitening: Whitening, files: Mapping[str, tuple[StoredFile, ...]]
    ) -> Iterator[Record]:
        pooled = self._embedder.pooled([image.pixels for image in batch])
        vectors, tokens = apply(pooled, whitening)
        for n, image in enumerate(batch):
            patches = PatchTokens(tokens[n], pooled.positions[n].numpy(), image.grid)
            yield Record(
                id=image.id,
                files=files[image.id],
                metadata=image.metadata,
                whitening_id=whitening.id,
                global_vector=vectors[n],
                patches=pack_patches(patches, whitening.config.token_bits),
            )
