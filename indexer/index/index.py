"""An opened index: what everything that searches, tags, copies or inspects one is handed.

A reader stays right while another process writes: `refresh` takes over what a run has changed of the manifest, the
descriptor's statistics and the calibration.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..errors import WAIT_S as WAIT_S
from ..errors import ImageError, SeenitError
from ..images.metadata import content_id
from ..printable import pasted
from ..store.open import is_made, open_store
from ..store.protocol import Filter, Record, Schema, Store, is_url
from .calibration import CALIBRATION_BLOB, Calibration, parse_calibration
from .keys import Roots
from .manifest import MANIFEST_BLOB, Manifest, config_of, parse_manifest
from .place import located
from .skipped import SkippedFile, read_skipped

if TYPE_CHECKING:
    from ..backbone.backbone import Backbone
    from ..backbone.byte_ranges import ByteRanges
    from ..descriptor.embedder import Embedder
    from ..descriptor.whitening import Whitening
    from ..items import Item
    from ..sync.summary import Summary


_FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Facts:
    """What `seenit info` tells of an index."""

    index: str
    images: int
    folders: tuple[str, ...]  # and other sources
    exclude: tuple[str, ...]  # patterns of what is left out
    backbone: str
    backbone_hash: str
    precision: str  # what it computed in; `auto`: not known
    resolution: int
    descriptor: dict[str, object]
    fitted_on: int
    dimensions: Schema | None
    calibrated: bool
    awaiting_refit: int
    bytes: dict[str, int]
    skipped: int
    not_images: int
    made_by: str
    format: int


class Index:
    """Store, manifest, path keys, statistics and calibration of one index; opened once and handed on.

    with Index.open("photos/.seenit") as index:
        print(index.count, index.manifest.backbone)
    """

    def __init__(self, store: Store) -> None:
        """Use `open`. SeenitError where the store holds no manifest yet, or none that can be read."""
        self.store = store
        self._revision: object = None  # of a server's index, when it was last refreshed
        self._read()

    @classmethod
    def open(cls, location: "str | Path | Index", *, write: bool = False, wait_s: float = WAIT_S) -> "Index":
        """Open the index at a folder or a server's URL.

        write   for changes; one process at a time may
        wait_s  how long to wait for another process that writes
        Raises SeenitError where there is no index, LockedError where another process goes on writing.
        """
        if isinstance(location, Index):
            return location
        location = located(location)
        if write and not is_made(location):
            write = False  # makes nothing: opening it to read says what is missing
        store = open_store(location, write=write, wait_s=wait_s)
        try:
            return cls(store)
        except BaseException:
            store.close()
            raise

    @property
    def location(self) -> str:
        return self.store.location

    @property
    def count(self) -> int:
        """Images in the index."""
        return self.store.count()

    @property
    def dim(self) -> int:
        """Length G of the global vector."""
        schema = self.store.schema()
        return schema.global_dim if schema else 0

    @cached_property
    def whitening(self) -> "Whitening":
        """The statistics that made today's vectors; SeenitError where they are missing or another's."""
        from .statistics import read_whitening

        return read_whitening(self.store, self.manifest, config_of(self.manifest, self.location))

    def byte_ranges(self) -> "ByteRanges | None":
        """Of its own images, for queries in 8 bits; None where it has none. SeenitError where they are damaged."""
        from .statistics import read_ranges

        return read_ranges(self.store, self.manifest)

    def embedder(self, backbone: "Backbone") -> "Embedder":
        """What describes images as the index's were; SeenitError where another backbone made the index."""
        from ..descriptor.embedder import Embedder
        from .statistics import check_backbone

        check_backbone(self.manifest, backbone, self.location)
        return Embedder(backbone, self.manifest.resolution, config_of(self.manifest, self.location))

    def refresh(self) -> bool:
        """Take over what another process has changed; whether queries have to be embedded again."""
        whitening = self.manifest.whitening_id
        if is_url(self.location):  # one request in place of four; a server has no snapshot that this must be read in
            revision = self.store.revision()
            if revision == self._revision:
                return False
            self._revision = revision
        if self.store.read_blob(MANIFEST_BLOB) != self._manifest_data:
            self._read()
            if self.manifest.whitening_id != whitening:
                self.__dict__.pop("whitening", None)
        elif self.store.read_blob(CALIBRATION_BLOB) != self._calibration_data:
            self._read()
        return self.manifest.whitening_id != whitening

    def with_keys(self, where: Filter) -> Filter:
        """The conditions as the store takes them: folders as keys; SeenitError for one that is not in the index."""
        return replace(where, under=tuple(key for folder in where.under for key in self.folder_keys(folder)))

    def folder_keys(self, folder: str | Path) -> list[str]:
        """Keys of a folder given as a path, or relative to an indexed folder; SeenitError where it is neither."""
        if keys := self.roots.keys(os.path.expanduser(folder)):
            return keys
        inside = [os.path.join(root, folder) for root in self.roots.folders.values()]
        keys = [key for path in inside for key in self.roots.keys(path)]
        if keys := [key for key in keys if self.store.count(Filter(under=(key,)))]:
            return keys
        known = ", ".join(self.roots.names)
        raise SeenitError(f"no folder {folder} in the index at {self.location}; it mirrors {known}")

    def about_dates(self, where: Filter) -> str | None:
        """What is to be said where dates are asked for: how many images have none of their own, and what is done then.

        where  as the store takes it, see `with_keys`; None where it names no dates, or every image has one of its own
        """
        if not where.has_dates:
            return None
        dated = replace(where, after=_FIRST_MOMENT, before=None, file_dates=False)
        count, own = self.store.count(replace(dated, after=None)), self.store.count(dated)
        if own == count:
            return None
        start = f"{count - own:,} of {count:,} images have no date in their metadata or name"
        if not where.file_dates:
            return f"{start} and are left out; to go by the times of their files: --file-dates"
        known = self.store.count(replace(dated, file_dates=True))
        unknown = f"; {count - known:,} have no time either and are left out" if known < count else ""
        return f"{start}; the times of their files count{unknown}"

    def record_of(self, path: str | Path) -> Record:
        """What the index holds of an image file's content, without vectors; SeenitError where it does not hold it."""
        from ..images.decode import read_image_file

        try:
            id = content_id(read_image_file(os.path.abspath(os.path.expanduser(path))))
        except ImageError as error:
            raise SeenitError(f"cannot read {path}: {error.reason}; name an image file") from None
        found = self.store.retrieve([id])
        if not found:
            raise SeenitError(
                f"{path} is not in the index at {self.location}; index its folder with: seenit index FOLDER"
            )
        return found[0]

    def awaiting_refit(self) -> int:
        """Images whose vectors older statistics made, after a run that was cut short: results are poor."""
        return self.store.count(Filter(not_whitening_id=self.manifest.whitening_id))

    def skipped(self) -> list[SkippedFile]:
        return read_skipped(self.store)

    def facts(self) -> Facts:
        skipped = self.skipped()
        broken = sum(file.reason is not None for file in skipped)
        return Facts(
            index=self.location,
            images=self.count,
            folders=self.roots.names,
            exclude=self.manifest.exclude,
            backbone=self.manifest.backbone,
            backbone_hash=self.manifest.backbone_hash,
            precision=self.manifest.precision,
            resolution=self.manifest.resolution,
            descriptor=self.manifest.descriptor,
            fitted_on=self.manifest.fitted_on,
            dimensions=self.store.schema(),
            calibrated=self.calibration is not None,
            awaiting_refit=self.awaiting_refit(),
            bytes=self.store.size().parts,
            skipped=broken,
            not_images=len(skipped) - broken,
            made_by=self.manifest.seenit,
            format=self.manifest.format,
        )

    def add(self, items: "Sequence[Item]", *, backbone: "Backbone | str | Path | None" = None) -> "Summary":
        """Take in images that are not files of an indexed folder; see `indexer.items.add_items`.

        The index must not be open for writing here or elsewhere.

        >>> import numpy as np
        >>> from indexer import Index, Item
        >>> frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
        >>> with Index.open("photos") as index:
        ...     summary = index.add([Item("frame 7", frame, tags=("camera",), attributes={"lens": 35})])
        >>> summary.changes.added
        1
        """
        from ..items import add_items

        summary = add_items(self.location, items, backbone=backbone)
        self.refresh()
        return summary

    def delete(self, keys: Sequence[str]) -> int:
        """Remove added images by their keys; how many there were. Files of indexed folders are not touched."""
        from ..items import delete_items

        count = delete_items(self.location, keys)
        self.refresh()
        return count

    def close(self) -> None:
        """Safe to call twice."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Index({self.location!r}, {self.manifest.backbone}, {len(self.roots.names)} folders)"

    def _read(self) -> None:
        with self.store.snapshot():
            data = self.store.read_blob(MANIFEST_BLOB)
            if data is None:
                raise SeenitError(
                    f"no index at {self.location}; create one with: seenit index FOLDER --index {pasted(self.location)}"
                )
            self.manifest: Manifest = parse_manifest(data, self.location)
            self._manifest_data = data
            self._calibration_data = self.store.read_blob(CALIBRATION_BLOB)
        self.roots = Roots(self.location, self.manifest.roots, self.manifest.source_specs)
        self.calibration: Calibration | None = parse_calibration(self._calibration_data, self.manifest.whitening_id)


def is_index(location: str | Path) -> bool:
    """Whether an index is meant, rather than a folder of images; also one that lies in shards."""
    return is_made(location)
