"""What is stored, and the protocol that both stores (embedded and server) fulfil.

A record is one image *content*: its id is made from the file's bytes, so copies share a record and a renamed or
moved file changes only the record's list of files. The engine keeps one vector, `global`, and a payload: what the
filters are answered from, and the packed patch tokens, which are matched in our process and not by the engine.

Paths in a store are keys, `ROOT/sub/folder/name.jpg`: ROOT is the key of an entry in the manifest's table of indexed
folders, the rest is relative and uses `/`. An index inside its photo folder therefore moves with it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ..images.metadata import Metadata
from .attributes import Attributes, Conditions, conditions_of


@dataclass(frozen=True)
class Schema:
    """The shape of the stored vector; fixed when an index is created."""

    global_dim: int  # length of the vector `global`


class StoredFile(NamedTuple):  # a sync makes them by the hundred thousand, and a tuple in half a dataclass's time
    """One file that has a record's content, as it was when last seen."""

    key: str  # ROOT/sub/folder/name.jpg
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Record:
    """One image in the store.

    global_vector  (G,)  float32, L2-normalised; None where vectors were not asked for
    patches        the packed patch tokens, see patch_codec.pack_patches; opaque to a store; None likewise, or where
                   the record has none
    attributes     what a caller gave, a JSON object
    """

    id: str  # a UUID in its 36-character form, see content_id
    files: tuple[StoredFile, ...]
    metadata: Metadata
    whitening_id: str  # which whitening of the descriptor made the vectors
    tags: tuple[str, ...] = ()
    global_vector: np.ndarray | None = None
    patches: bytes | None = None
    attributes: Attributes = field(default_factory=dict, hash=False)

    def __repr__(self) -> str:
        name = self.files[0].key if self.files else "no file"
        return f"Record({self.id!r}, {name!r}, {self.metadata.width} x {self.metadata.height})"


class Listed(NamedTuple):
    """What a sync compares of a record; a fraction of the whole, and quicker to read by the hundred thousand."""

    id: str
    whitening_id: str
    files: tuple[StoredFile, ...]


class StoredFeatures(NamedTuple):
    """What a record's image is described by: `Record.global_vector` and `Record.patches`."""

    vector: np.ndarray
    patches: bytes | None


@dataclass(frozen=True)
class Hit:
    """One answer of the engine; `Store.retrieve` reads the record, which most candidates are never asked for."""

    id: str
    score: float  # cosine in [-1, 1], higher is more similar


@dataclass(frozen=True)
class Filter:
    """Conditions that a record must meet, all of them; answered inside the store, before its vectors are compared.

    A record with several files is under a folder when any of its files is. A search takes folders as paths, absolute or
    below an indexed folder; a store takes the keys that `Index.with_keys` makes of them.
    """

    under: tuple[str, ...] = ()  # folders; any of them
    after: datetime | None = None  # taken_at >= after
    before: datetime | None = None  # taken_at < before
    camera: str | None = None  # every word of it occurs in the camera's name, case ignored
    near: tuple[float, float, float] | None = None  # latitude, longitude in degrees, radius in km
    tags: tuple[str, ...] = ()  # all of them
    not_whitening_id: str | None = None  # only records whose vectors another whitening made
    not_ids: tuple[str, ...] = ()  # never these records
    keywords: tuple[str, ...] = ()  # of the image's own metadata, all of them, case ignored
    rating: int | None = None  # of the image's own metadata: so many stars or more
    attributes: (
        Conditions | Attributes
    ) = ()  # a caller's own, all of them; a mapping serves too; see `attributes` on values
    file_dates: bool = False  # whether `after` and `before` go by files' times too; else only by REAL_DATES

    def __post_init__(self) -> None:
        for name in ("under", "tags", "keywords", "not_ids"):  # one text is one, not its letters
            value = getattr(self, name)
            one = isinstance(value, (str, Path))
            object.__setattr__(self, name, (str(value),) if one else tuple(map(str, value)))
        object.__setattr__(self, "attributes", conditions_of(self.attributes))

    def __bool__(self) -> bool:
        return self != Filter()

    @property
    def has_dates(self) -> bool:
        return self.after is not None or self.before is not None


@dataclass(frozen=True)
class StoreSize:
    """Bytes by part, as far as the store can tell them apart; empty for a server."""

    parts: dict[str, int] = field(default_factory=dict)


SERVING = "serve."  # begins the names of blobs by which servers of one index know of each other; no part of the index

BuildProgress = Callable[[int, int], None]  # how much is done, and of how much


def no_progress(done: int, total: int) -> None:
    """For whoever does not want to know."""


def never() -> bool:
    """A `stop` that does not."""
    return False


class Store(Protocol):
    """The one contract of the embedded store and of the server's. Every method raises StoreError in one line.

    Writes are durable when the call returns (a kill right after loses nothing) and idempotent (may be repeated).
    Blobs are small named files of the index (manifest, descriptor, skipped files): written whole or not at all.
    """

    location: str  # as the user would type it

    def read_blob(self, name: str) -> bytes | None:
        """The blob's bytes, or None where it was never written."""

    def write_blob(self, name: str, data: bytes) -> None: ...

    def delete_blob(self, name: str) -> None:
        """Nothing where there is none."""

    def blob_names(self) -> list[str]: ...

    def revision(self) -> object:
        """What changes with every write but those of blobs that SERVING begins; quick, for it is asked at every turn.

        Values are compared within one process, for equality.
        """

    def schema(self) -> Schema | None:
        """The dims of the vector, None before the first `ensure`; StoreError where another version made the index."""

    def ensure(self, schema: Schema) -> None:
        """Create the storage and its payload indexes unless they are there; StoreError if dims differ."""

    def upsert(self, records: Sequence[Record]) -> None:
        """Write whole records, vector and patches included; a record with the same id is replaced."""

    def set_files(self, files: dict[str, tuple[StoredFile, ...]]) -> None:
        """Replace the list of files of existing records, by id; all else of them stays.

        Ids that the store does not hold are left out, here and in the other `set_...` and in `delete`.
        """

    def set_dates(self, dates: dict[str, tuple[datetime | None, str | None]]) -> None:
        """Replace `taken_at` and `date_source` of existing records, by id; all else of them stays."""

    def set_tags(self, tags: dict[str, tuple[str, ...]]) -> None:
        """Replace the tags of existing records, by id; a store with a second copy remembers the other ids' too."""

    def set_attributes(self, attributes: dict[str, Attributes]) -> None:
        """Replace the attributes of existing records, by id; all else of them stays."""

    def attributes_of(self, ids: Sequence[str]) -> dict[str, Attributes]:
        """The attributes of records that have any, by id."""

    def tags_of(self, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The tags of records, by id; also of records that are gone, where the store remembers them."""

    def remembered_tags(self) -> dict[str, tuple[str, ...]]:
        """Tags by id of the second copy, which has those of records that are gone; empty where a store keeps none."""

    def delete(self, ids: Sequence[str]) -> None: ...

    def scroll(self, where: Filter = Filter(), *, vectors: bool = False, batch: int = 2000) -> Iterator[Record]:
        """Every record that meets the conditions, in the order of ids, a page at a time.

        vectors  with `global_vector` and `patches`, here as in `retrieve`; without, neither is read
        """

    def list_files(self) -> Iterator[Listed]:
        """Every record's id, whitening and files, in no order of note; never all in memory."""

    def retrieve(self, ids: Sequence[str], *, vectors: bool = False) -> list[Record]:
        """The records with these ids in the order asked; unknown ids are left out."""

    def search(
        self, queries: np.ndarray, top: int, where: Filter = Filter(), *, exact: bool = False
    ) -> list[list[Hit]]:
        """The `top` records nearest to each query by cosine of `global`, best first; one batch call to the engine.

        queries  (Q, G)  float32
        exact    compare with every record instead of walking the graph
        """

    def patches(self, ids: Sequence[str]) -> dict[str, bytes]:
        """The packed patch tokens of the named records, as patch_codec.unpack reads them.

        Records that are not there or have none are left out. Reads this alone: it is asked for at every query.
        """

    def features(self, ids: Sequence[str]) -> dict[str, StoredFeatures]:
        """Vector and patches of the named records, and nothing else; records that are not there are left out."""

    def count(self, where: Filter = Filter()) -> int: ...

    def optimize(
        self,
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Build or mend the graph of neighbours where it is worth it; may take minutes, searches go on meanwhile.

        progress  gets how many records are done, and of how many
        stop      asked now and then; once it says True, what was begun is dropped
        """

    def size(self) -> StoreSize: ...

    def snapshot(self) -> AbstractContextManager[None]:
        """Within the block all reads of this thread see one state, where the store can promise that."""

    def close(self) -> None:
        """Close the index and give up the writer's lock; safe to call twice."""


def folder_keys(file_key: str) -> list[str]:
    """Every folder key that a file key lies under: `0/a/b.jpg` -> [`0`, `0/a`]."""
    parts = file_key.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def is_url(location: str | Path) -> bool:
    """Whether a location names a server's collection rather than a folder."""
    return str(location).startswith(("http://", "https://"))
