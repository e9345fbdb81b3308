"""Decoded images in, records in the store out: batches of one shape, statistics, vectors, writes."""

from dataclasses import replace

import numpy as np

from ..descriptor.embedder import Embedder
from ..descriptor.pooling import PooledFeatures
from ..descriptor.viewed_images import ViewedImages
from ..descriptor.whitening import Whitening, save_whitening
from ..images.jobs import Decoded
from ..index.keys import Roots
from ..index.manifest import Manifest, write_manifest
from ..index.records import make_records, with_what_was_said
from ..index.statistics import RANGES_BLOB, WHITENING_BLOB
from ..store.protocol import Record, Schema, Store
from .ledger import Ledger

FIT_SAMPLE = 2000  # images whose features are held in memory while the statistics are fitted, about 60 KB each
BATCH = 8  # images in one forward; more are no faster on a CPU
WRITE_EVERY = 128  # records in one write
_NO_PIXELS = np.empty((0, 0, 3), np.uint8)


class Writer:
    """Collects decoded images into batches of one shape, embeds them, and writes records.

    Without a whitening, batches are held back until the sample is complete; then the statistics are fitted and all is
    written.
    """

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        roots: Roots,
        embedder: Embedder,
        manifest: Manifest | None,
        whitening: Whitening | None,
        exclude: tuple[str, ...] = (),
        *,
        fixed: bool = False,
    ) -> None:
        """`exclude`, `fixed`: what a new manifest remembers."""
        self.manifest = manifest
        self.written = 0  # records
        self.refitted = False
        self._store = store
        self._ledger = ledger
        self._roots = roots
        self._embedder = embedder
        self._whitening = whitening
        self._exclude = exclude
        self._fixed = fixed
        self._buckets: dict[tuple[int, int], list[Decoded]] = {}
        self._held: list[tuple[list[Decoded], PooledFeatures]] = []
        self._num_held = 0
        self._viewed = ViewedImages(embedder)
        self._records: list[Record] = []
        if whitening is not None:
            store.ensure(Schema(whitening.global_dim))

    def add(self, image: Decoded) -> None:
        bucket = self._buckets.setdefault(image.grid, [])
        bucket.append(image)
        if len(bucket) >= BATCH:
            self._embed(self._buckets.pop(image.grid))

    @property
    def whitening(self) -> Whitening | None:
        """The statistics that vectors are made with; None as long as none are fitted."""
        return self._whitening

    def finish(self, interrupted: bool) -> None:
        """Embed and write what is left. A refit that was cut short is dropped: the index keeps its old statistics."""
        for grid in list(self._buckets):
            self._embed(self._buckets.pop(grid))
        if self._whitening is None and not (interrupted and self.manifest):
            self._fit_on_held()
        self._write()

    def _embed(self, images: list[Decoded]) -> None:
        pooled = self._embedder.pooled([image.pixels for image in images])
        light = [replace(image, pixels=_NO_PIXELS) for image in images]
        if self._whitening is None:
            self._held.append((light, pooled))
            self._viewed.add([image.id for image in images], [image.pixels for image in images], pooled)
            self._num_held += len(light)
            if self._num_held >= FIT_SAMPLE:
                self._fit_on_held()
        else:
            self._to_records(light, pooled)

    def _fit_on_held(self) -> None:
        if not self._held:
            return
        self._whitening = self._embedder.fit_whitening([pooled for _, pooled in self._held], self._viewed.render())
        self._store.ensure(Schema(self._whitening.global_dim))
        roots = {key: self._roots.stored_form(path) for key, path in self._roots.folders.items()}
        self.manifest = Manifest(
            backbone=self._embedder.backbone.spec,
            backbone_hash=self._embedder.backbone.hash,
            precision=self._embedder.backbone.precision if self.manifest is None else self.manifest.precision,
            ranges=self._write_ranges(),
            resolution=self._embedder.resolution,
            descriptor=self._embedder.config.settings,
            whitening_id=self._whitening.id,
            fitted_on=self._num_held,
            roots=roots,
            exclude=self._exclude,
            sources=self._roots.stored_sources,
            fixed=self._fixed,
        )
        self._store.write_blob(WHITENING_BLOB, save_whitening(self._whitening))
        write_manifest(self._store, self.manifest)
        self.refitted = True
        held, self._held = self._held, []
        for images, pooled in held:
            self._to_records(images, pooled)

    def _write_ranges(self) -> str:
        """Keep the 8-bit ranges that the vectors are made by; their id, which a manifest is to name."""
        ranges = self._embedder.backbone.ranges
        if ranges is None:
            return "" if self.manifest is None else self.manifest.ranges
        self._store.write_blob(RANGES_BLOB, ranges.save())
        return ranges.id

    def _to_records(self, images: list[Decoded], pooled: PooledFeatures) -> None:
        assert self._whitening is not None
        made = make_records(images, pooled, self._whitening, self._ledger.files)
        self._records += with_what_was_said(self._store, made)
        if len(self._records) >= WRITE_EVERY:
            self._write()

    def _write(self) -> None:
        if not self._records:
            return
        self._store.upsert(self._records)
        for record in self._records:
            self._ledger.wrote(record.id, record.files)  # a copy may have been found since it was made
        self.written += len(self._records)
        self._records = []
