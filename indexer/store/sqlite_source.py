"""What the search for neighbours reads of the database: vectors by number, and which writers wrote them."""

from collections.abc import Sequence

import apsw
import numpy as np

from .neighbour_cache import Epoch
from .neighbours import Found
from .sqlite_rows import read_meta
from .sqlite_schema import select


class VectorSource:
    """See `neighbours.Source`."""

    def __init__(self, db: apsw.Connection, dim: int) -> None:
        self.dim = dim
        self._db = db
        id = read_meta(db, "index")
        self.index_id: str = id.hex() if isinstance(id, bytes) else ""

    def last_number(self) -> int:
        return int(read_meta(self._db, "last_number") or 0)

    def num_records(self) -> int:
        return int(read_meta(self._db, "records") or 0)

    def num_records_after(self, number: int) -> int:
        return int(select(self._db, "SELECT COUNT(*) FROM vectors WHERE number > ?", (number,)).fetchone()[0])

    def epochs(self) -> list[Epoch]:
        rows = select(self._db, "SELECT token, first_number FROM epochs ORDER BY epoch")
        return [Epoch(token.hex(), first) for token, first in rows]

    def last_epoch(self) -> str:
        row = select(self._db, "SELECT token FROM epochs ORDER BY epoch DESC LIMIT 1").fetchone()
        return row[0].hex() if row else ""

    def vectors(self, numbers: np.ndarray) -> Found:
        if not len(numbers):
            return Found(np.empty(0, np.int64), [], np.empty((0, self.dim), np.float16))
        wanted = apsw.carray(np.ascontiguousarray(numbers, np.int64))
        return self._found(
            select(
                self._db, "SELECT number, id, vector FROM vectors WHERE number IN carray(?) ORDER BY number", (wanted,)
            ).fetchall()
        )

    def vectors_after(self, number: int, limit: int) -> Found:
        return self._found(
            select(
                self._db,
                "SELECT number, id, vector FROM vectors WHERE number > ? ORDER BY number LIMIT ?",
                (number, limit),
            ).fetchall()
        )

    def _found(self, rows: Sequence[tuple[int, bytes, bytes]]) -> Found:
        numbers = np.fromiter((number for number, _, _ in rows), np.int64, len(rows))
        vectors = np.frombuffer(b"".join(vector for _, _, vector in rows), "<f2").reshape(len(rows), self.dim)
        return Found(numbers, [id for _, id, _ in rows], vectors)
