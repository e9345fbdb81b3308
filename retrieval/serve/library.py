"""The index as something to browse: pages of images by folder or date, folders with counts, a file's image.

A store lists records in the order of their ids. To be browsed they are sorted once and kept as small as can be (two
texts and a number each); a page then reads its own records. What was sorted is dropped once the index changes: at once
where a server of the index changed it, be it another one than this.
"""

import base64
import binascii
import bisect
import json
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

from indexer.index.index import Index
from indexer.store.protocol import SERVING, Filter, Record, folder_keys, is_url

from .refusal import Refusal

Order = Literal["date", "path"]
Value = TypeVar("Value")
KEPT = 8  # sorted lists, of the conditions asked last
CHANGES = f"{SERVING}changes"  # the blob that a server of an index writes when it has changed that
YOUNG = 10  # times as long as reading a list took, it is kept while somebody else writes to the index


@dataclass(frozen=True)
class Entry:
    """One image: what it is sorted by."""

    key: str  # of its first file
    id: str
    taken: float | None  # seconds since 1970


@dataclass(frozen=True)
class Listing:
    """All images that meet some conditions."""

    entries: tuple[Entry, ...]  # by key
    tags: tuple[tuple[str, int], ...]  # with how many images have each, the most frequent first

    @cached_property
    def by_date(self) -> tuple[Entry, ...]:
        """The newest first; those without a date at the end."""
        return tuple(sorted(self.entries, key=_date_key))

    @cached_property
    def months(self) -> tuple[tuple[str | None, int], ...]:
        """Months with how many images they have, in the order of `by_date`."""
        return tuple(Counter(_month(entry.taken) for entry in self.by_date).items())


class Library:
    """Sorted lists of one index; its calls block, and come from any thread."""

    def __init__(self, index: Index, refresh: Callable[[], None]) -> None:
        """refresh  has the index take over what another process changed of its folders"""
        self._index = index
        self._refresh = refresh
        self._lock = threading.Lock()
        self._refreshed = self.state()  # when the index was last asked to refresh; it has just been opened
        self._kept: OrderedDict[Filter, _Kept[Listing]] = OrderedDict()
        self._files: _Kept[dict[str, str]] | None = None  # id by key of every file

    def listing(self, where: Filter) -> Listing:
        """The images that meet the conditions; `where` has folders as keys."""
        with self._lock:
            self._kept[where] = known = self._current(self._kept.get(where), lambda: _read(self._index, where))
            self._kept.move_to_end(where)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return known.value

    def forget(self) -> None:
        """Read anew what is asked next, here and at the other servers of the index: this one has changed it."""
        with self._lock:
            self._kept.clear()
            self._files = None
        if is_url(self._index.location):
            self._index.store.write_blob(CHANGES, secrets.token_hex(8).encode())

    def page(
        self, where: Filter, order: Order, offset: int, limit: int, cursor: str | None
    ) -> tuple[int, int, list[Record], str | None]:
        """How many there are, the page's first place, its records, and the cursor after it (None at the end).

        cursor  goes on after the image that it was made at, also where others came or went since
        """
        listing = self.listing(where)
        entries = listing.by_date if order == "date" else listing.entries
        if cursor is not None:
            offset = _after(entries, order, cursor)
        some = entries[offset : offset + limit]
        records = {record.id: record for record in self._index.store.retrieve([entry.id for entry in some])}
        more = offset + len(some) < len(entries)
        return (
            len(entries),
            offset,
            [records[entry.id] for entry in some if entry.id in records],
            _cursor(order, some[-1]) if some and more else None,
        )

    def id_of(self, path: str) -> str | None:
        """The image of a file, named by its absolute path; None where the index names no such file."""
        files = self._id_by_key()
        return next((files[key] for key in self._index.roots.keys(path) if key in files), None)

    def folders(self) -> list[tuple[str, int]]:
        """Every folder that has images in it or below, as a key with how many files, by key."""
        count: Counter[str] = Counter()
        for key in self._id_by_key():
            count.update(folder_keys(key))
        return sorted(count.items())

    def tags(self) -> list[tuple[str, int]]:
        """Every tag with how many images have it, the most frequent first."""
        return list(self.listing(Filter()).tags)

    def state(self) -> object:
        """What changes when the index does."""
        return self._index.store.revision()

    def _id_by_key(self) -> dict[str, str]:
        def read() -> dict[str, str]:
            return {file.key: one.id for one in self._index.store.list_files() for file in one.files}

        with self._lock:
            self._files = self._current(self._files, read)
            return self._files.value

    def _current(self, known: "_Kept[Value] | None", read: Callable[[], Value]) -> "_Kept[Value]":
        """What is known where it still holds, or is so young that reading again would be most of the work there is."""
        state, now = self.state(), time.monotonic()
        changes = self._index.store.read_blob(CHANGES) if is_url(self._index.location) else None
        if known is not None and known.changes == changes and (known.state == state or known.is_young(now)):
            return known
        if state != self._refreshed:
            self._refresh()
            self._refreshed = state
        value = read()
        return _Kept(value, state, changes, now, time.monotonic() - now)


@dataclass(frozen=True)
class _Kept(Generic[Value]):
    """Something that was read."""

    value: Value
    state: object  # of the index before
    changes: bytes | None  # by its servers, before
    read_at: float
    took_s: float

    def is_young(self, now: float) -> bool:
        return now - self.read_at < YOUNG * self.took_s


def _read(index: Index, where: Filter) -> Listing:
    entries: list[Entry] = []
    tags: Counter[str] = Counter()
    for record in index.store.scroll(where):
        tags.update(record.tags)
        if record.files:
            taken = record.metadata.taken_at
            key = min(file.key for file in record.files)
            entries.append(Entry(key, record.id, taken.timestamp() if taken else None))
    return Listing(tuple(sorted(entries, key=_path_key)), tuple(tags.most_common()))


def _path_key(entry: Entry) -> tuple[Any, ...]:
    return (entry.key, entry.id)


def _date_key(entry: Entry) -> tuple[Any, ...]:
    return (entry.taken is None, -(entry.taken or 0.0), entry.key, entry.id)


def _month(taken: float | None) -> str | None:
    if taken is None:
        return None
    return f"{datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=taken):%Y-%m}"


def _cursor(order: Order, entry: Entry) -> str:
    values = json.dumps([order, entry.key, entry.id, entry.taken])
    return base64.urlsafe_b64encode(values.encode("ascii")).decode("ascii")


def _after(entries: Sequence[Entry], order: Order, cursor: str) -> int:
    """The place after the cursor's image; Refusal where it is none of this order."""
    try:
        made_for, key, id, taken = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
        number = taken is None or (isinstance(taken, float) and taken == taken)
        if made_for != order or not isinstance(key, str) or not isinstance(id, str) or not number:
            raise ValueError
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise Refusal(422, f"{cursor[:40]!r} is no cursor of this order; begin without one") from None
    by = _date_key if order == "date" else _path_key
    return bisect.bisect_right(entries, by(Entry(key, id, taken)), key=by)
