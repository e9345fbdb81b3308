"""Vectors in shards on disk, mapped into memory: (N, D) float16, every row of length 1.

Half precision halves what the disk must deliver and moves a cosine by 0.0003 at most.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np

from indexer.errors import SeenitError

from .whole_files import read_array, write_array

BLOCK_ROWS = 65_536  # that are in memory as float32 at a time
DIGEST_ROWS = 500
_TINY = 1e-6


# N vectors, D numbers each
@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors as one array, whatever number of shards they lie in.

    shards  (n, D) float16 each, rows of length 1
    """

    shards: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, vectors: np.ndarray) -> "Embeddings":
        """An array in memory; its rows are brought to length 1.

        vectors  (N, D) of any float type. SeenitError where a row has no direction (see `unit_rows`).
        """
        rows, good = unit_rows(vectors)
        if not good.all():
            raise SeenitError(
                f"{int((~good).sum())} of {len(good)} vectors are zero or not finite, the first is row"
                f" {int((~good).argmax())}; leave them out (unit_rows tells which)"
            )
        return cls((rows,))

    @classmethod
    def open(cls, folder: str | Path) -> "Embeddings":
        """The shards `00000.npy`, `00001.npy`, ... of a folder."""
        paths = sorted(Path(folder).glob("[0-9]*.npy"))
        if not paths:
            raise SeenitError(f"no vectors in {folder}; name a folder of .npy shards")
        return cls(tuple(read_array(path) for path in paths))

    @property
    def paths(self) -> tuple[str, ...] | None:
        """The files of the shards, for workers that open them; None where they are in memory."""
        names = [getattr(shard, "filename", None) for shard in self.shards]
        return tuple(map(str, names)) if all(names) else None

    @classmethod
    def of_files(cls, paths: Sequence[str]) -> "Embeddings":
        """What `paths` names."""
        return cls(tuple(read_array(Path(path)) for path in paths))

    def save(self, folder: str | Path) -> None:
        """Write the shards to a folder, for `open`."""
        for number, shard in enumerate(self.shards):
            write_array(Path(folder) / f"{number:05d}.npy", shard)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def dim(self) -> int:
        return self.shards[0].shape[1]

    @cached_property
    def starts(self) -> np.ndarray:
        """The first row of each shard, and behind them N."""
        return np.cumsum([0, *(len(shard) for shard in self.shards)])

    def rows(self, numbers: np.ndarray | Sequence[int]) -> np.ndarray:
        """The rows with these numbers, in this order.  (n, D) float16"""
        numbers = np.asarray(numbers)
        found = np.empty((len(numbers), self.dim), np.float16)
        owner = np.searchsorted(self.starts, numbers, side="right") - 1
        for shard in np.unique(owner):
            mine = owner == shard
            found[mine] = self.shards[shard][numbers[mine] - self.starts[shard]]
        return found

    def digest(self, rows: np.ndarray | None = None) -> str:
        """Tells these vectors from others, by the shards' sizes and a few hundred rows; and which `rows` matter."""
        rows = np.arange(len(self)) if rows is None else rows
        hashed = blake2b(f"{[shard.shape for shard in self.shards]} {len(rows)}".encode(), digest_size=16)
        hashed.update(np.ascontiguousarray(rows, np.int64).tobytes())
        few = np.random.default_rng(len(rows)).permutation(len(rows))[:DIGEST_ROWS]
        hashed.update(self.rows(rows[few]).tobytes())
        return hashed.hexdigest()

    def blocks(self, rows: np.ndarray | None = None, size: int = BLOCK_ROWS) -> Iterator[tuple[slice, np.ndarray]]:
        """All rows, or those with the numbers `rows`, a block at a time: (where in them, (n, D) float32)."""
        count = len(self) if rows is None else len(rows)
        for start in range(0, count, size):
            where = slice(start, min(start + size, count))
            numbers = np.arange(where.start, where.stop) if rows is None else rows[where]
            yield where, self.rows(numbers).astype(np.float32)


def unit_rows(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows brought to length 1, and which of them have a direction at all.

    vectors  (N, D) of any float type
    returns  (N, D) float16, zeros where there is no direction; (N,) bool, False for rows that are zero or not finite
    """
    rows = np.asarray(vectors, np.float32)
    if rows.ndim != 2:
        raise SeenitError(f"vectors have the shape {rows.shape}; (N, D) is needed")
    good = np.asarray(np.isfinite(rows).all(axis=1))
    rows = np.where(good[:, None], rows, 0)
    largest = np.abs(rows).max(1, initial=0)
    rows = rows / np.maximum(largest, np.finfo(np.float32).tiny)[:, None]  # so that no square overflows or vanishes
    length = np.linalg.norm(rows, axis=1)
    good = good & (length > _TINY)
    return (rows / np.maximum(length, _TINY)[:, None]).astype(np.float16), good


def equal_rows(embeddings: Embeddings) -> np.ndarray:
    """For each row the number of the first one that is equal to it, bit for bit.  (N,) int64

    Copies by the hundred would fill each other's lists of neighbours and hide every other copy. Rows are told by 64
    bits of a hash, which two different ones among a million share once in 40 million such pools.
    """
    rng = np.random.default_rng(0)
    factors = rng.integers(1 << 63, size=embeddings.dim, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.empty(len(embeddings), np.uint64)
    for start in range(0, len(embeddings), BLOCK_ROWS // 4):  # as 64-bit numbers they are large
        numbers = np.arange(start, min(start + BLOCK_ROWS // 4, len(embeddings)))
        bits = embeddings.rows(numbers).view(np.uint16).astype(np.uint64)  # (n, D)
        mixed = (bits + np.uint64(1)) * factors
        hashes[numbers] = ((mixed ^ (mixed >> np.uint64(31))) * factors[::-1]).sum(1, dtype=np.uint64)
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    return first[which]
