"""Shards that the actors of a cluster write themselves, so that no vector goes through the driver.

Each call of an actor writes what it embedded as one small shard before it returns; so what was booked is on disk, and a
call that is repeated, because its worker was killed, writes the same file once more. Small shards are then made one of
the usual size, by an actor again. What is surprising: neither keeps anything in memory for that, so that it does not
matter which actor does it, or how often: where the large one is there, only the small ones are left to be deleted.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..sources.place import is_address
from ..store import shard_store
from ..store.protocol import Record, Schema
from ..store.shard_file import read_records, write_shard
from ..store.shard_place import ShardPlace, place_at
from ..store.shard_store import ShardStore, shard_at

LOCK_NOTE = "lock.json"
MAX_NOTE = 10_000  # bytes


@dataclass(frozen=True)
class ShardTarget:
    """Where actors write, on whichever machine.

    patches  whether records are kept with them
    writer   what the driver's lock says, by which a folder of the same name on another disk is told; empty for an
             address, which means the same everywhere
    """

    location: str
    patches: bool
    writer: bytes

    @classmethod
    def of(cls, store: ShardStore) -> "ShardTarget":
        """That of a store that is open for writing."""
        if is_address(store.location):
            return cls(store.location, store.has_patches, b"")
        folder = os.path.abspath(store.location)
        return cls(folder, store.has_patches, place_at(folder).read(LOCK_NOTE, MAX_NOTE) or b"")

    def place(self) -> ShardPlace | None:
        """The place, from an actor; None where this machine does not have the driver's folder."""
        place = place_at(self.location)
        if is_address(self.location):
            return place
        return place if self.writer and place.read(LOCK_NOTE, MAX_NOTE) == self.writer else None

    def write(self, place: ShardPlace, number: int, records: Sequence[Record], dim: int) -> None:
        write_shard(shard_at(place, number), records, Schema(dim), patches=self.patches)

    def merge(self, place: ShardPlace, numbers: Sequence[int], into: int, dim: int) -> None:
        """Make one shard of several; may be repeated after a break at any moment."""
        whole = shard_at(place, into)
        if not place.is_there(whole.name):  # it is put whole, once all others were read
            records = [r for n in numbers for r in read_records(shard_at(place, n), Schema(dim), vectors=True)]
            self.write(place, into, records, dim)
        for number in numbers:
            place.delete(shard_at(place, number).name)


class ShardParts:
    """The driver's books of small shards: which there are, and which of them are to be made one."""

    def __init__(self, store: ShardStore, *, also_old: bool) -> None:
        """
        also_old  those that were there before, as a killed run leaves them. Never where records may be embedded again:
                  the row that no longer counts would come into a later shard than the one that does
        """
        self._store = store
        self._rows = store.small_shards() if also_old else {}

    def next_number(self) -> int:
        return self._store.give_number()

    def wrote(self, number: int, ids: Sequence[str]) -> None:
        """An actor's call wrote records with these ids."""
        self._store.took(number, ids)
        self._rows[number] = len(ids)

    def due(self, *, at_end: bool = False) -> tuple[list[int], int] | None:
        """Small shards that are to be made one, and its number; None where they are too few.

        at_end  nothing follows, so they need not fill a shard
        """
        enough = sum(self._rows.values()) >= shard_store.SHARD_RECORDS
        if not enough and not (at_end and len(self._rows) > 1):
            return None
        numbers, rows = list[int](), 0
        for number in sorted(self._rows):
            if rows + self._rows[number] > shard_store.SHARD_RECORDS and len(numbers) > 1:
                break
            rows += self._rows[number]
            numbers.append(number)
        for number in numbers:
            del self._rows[number]
        return (numbers, self._store.give_number()) if len(numbers) > 1 else None

    def merged(self, numbers: Sequence[int], into: int) -> None:
        self._store.moved(numbers, into)
