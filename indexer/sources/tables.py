"""A CSV or Parquet file with a row for each image: a path or an address, and what is known of it.

Columns are found by their names. What is surprising: a table that tells each file's ETag or time spares the questions
to its server, so that millions of addresses are compared with an index without one request.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import SeenitError, first_line, os_reason
from .entry import Entry, GoneEntry, UnreadableEntry, escape_key
from .lists import folder_of, open_text
from .named import Row, entries_of, key_of_location, located_line
from .place import ImageRef, is_address

SUFFIXES = (".csv", ".parquet")
PATH_COLUMNS = ("path", "url", "uri", "address", "file", "file_name", "filename", "image", "image_path", "image_url")
KEY_COLUMNS = ("key",)
SIZE_COLUMNS, ETAG_COLUMNS = ("size", "bytes"), ("etag", "ETag", "e_tag")
TIME_COLUMNS = ("last_modified", "mtime", "modified")
ABOUT = ("title", "caption", "keywords", "rating", "taken_at", "latitude", "longitude", "camera")
ROWS = 4096  # read at a time


@dataclass(frozen=True)
class Columns:
    """Which column holds what; empty: found by name, or without one."""

    path: str = ""
    key: str = ""


class TableSource:
    """Rows of a table.

    A row's key is that of its key column; without one, its path or address.
    """

    def __init__(self, name: str, columns: Columns = Columns(), *, allow_private: bool = False) -> None:
        """`name`: an absolute path, or an address, that ends in one of SUFFIXES."""
        self.name = name
        self._columns = columns
        self._allow_private = allow_private

    @property
    def has_keys(self) -> bool:
        """Whether the rows' keys are the table's own; SeenitError where a column that was asked for is missing."""
        return self._resolved(self._header()).key != ""

    def entries(self, *, stat: bool = True) -> Iterator[Entry | UnreadableEntry | GoneEntry]:
        return entries_of(self._rows(), stat)

    def _rows(self) -> Iterator[Row | UnreadableEntry]:
        header = self._header()
        columns, base = self._resolved(header), folder_of(self.name)
        kept = [name for name in header if name in {columns.path, columns.key, *_OTHERS}]
        for number, row in enumerate(self._read(kept), start=1):
            text, key = _text(row.get(columns.path)), _text(row.get(columns.key))
            try:
                if not text:
                    raise ValueError(f"its column {columns.path} is empty")
                location = located_line(text, base)
                if columns.key and (not key or "\0" in key):
                    raise ValueError(f"its column {columns.key} is empty or no key")
                said = _said(row)
            except ValueError as error:
                yield UnreadableEntry(f"{self.name}, row {number}", str(error), "")
                continue
            private = self._allow_private and is_address(location)
            yield (
                escape_key(key) if columns.key else key_of_location(location),
                ImageRef(location, private=private),
                said,
            )

    def _resolved(self, header: list[str]) -> Columns:
        found = {}
        for what, asked, usual in (
            ("path", self._columns.path, PATH_COLUMNS),
            ("key", self._columns.key, KEY_COLUMNS),
        ):
            if asked and asked not in header:
                raise SeenitError(
                    f"{self.name} has no column {asked!r}; name one of {_names(header)} with --{what}-column"
                )
            found[what] = asked or next((name for name in usual if name in header), "")
        if not found["path"]:
            raise SeenitError(
                f"{self.name} has no column of paths or addresses; name one of {_names(header)} with --path-column"
            )
        return Columns(**found)

    def _header(self) -> list[str]:
        with _readable(self.name):
            if self.name.lower().endswith(".csv"):
                with open_text(self.name, self._allow_private) as file:
                    return next(csv.reader(file), [])
            with _binary(self.name, self._allow_private) as raw:
                return list(_parquet().ParquetFile(raw).schema_arrow.names)

    def _read(self, columns: list[str]) -> Iterator[Mapping[str, Any]]:
        with _readable(self.name):
            if self.name.lower().endswith(".csv"):
                with open_text(self.name, self._allow_private) as file:
                    yield from csv.DictReader(file)
                return
            with _binary(self.name, self._allow_private) as raw:
                for batch in _parquet().ParquetFile(raw).iter_batches(ROWS, columns=columns):
                    yield from batch.to_pylist()


_OTHERS = {*SIZE_COLUMNS, *ETAG_COLUMNS, *TIME_COLUMNS, *ABOUT}


class _readable:
    """What reading a table raises, in one line."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, SeenitError) or not isinstance(error, Exception):
            return
        reason = os_reason(error) if isinstance(error, OSError) and error.strerror else first_line(error)
        raise SeenitError(f"cannot read the table {self._name}: {reason}; give a CSV or Parquet file") from None


def _binary(name: str, allow_private: bool) -> io.BufferedIOBase | Any:
    if is_address(name):
        from .remote import open_remote

        return open_remote(name, allow_private=allow_private)
    return open(name, "rb")


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise SeenitError("reading .parquet needs pyarrow; install it with: pip install pyarrow") from None
    return pyarrow.parquet


def _said(row: Mapping[str, Any]) -> dict[str, Any]:
    """Size, ETag, time and description of a row; ValueError for a value that makes no sense."""
    said: dict[str, Any] = {}
    size = _first(row, SIZE_COLUMNS)
    if size is not None:
        said["size"] = int(size)
    etag = _first(row, ETAG_COLUMNS)
    if etag is not None:
        said["etag"] = str(etag)
    moment = _first(row, TIME_COLUMNS)
    if moment is not None:
        said["time_s"] = _moment(moment).timestamp() if not isinstance(moment, (int, float)) else float(moment)
    about = {name: _about(name, row[name]) for name in ABOUT if row.get(name) not in (None, "")}
    if about:
        said["about"] = about
    return said


def _about(name: str, value: Any) -> Any:
    """A column as JSON's types."""
    if name == "keywords":
        words = value if isinstance(value, (list, tuple)) else str(value).replace(";", ",").split(",")
        return [word for one in words if (word := str(one).strip())]
    if name == "rating":
        return int(value)
    if name in ("latitude", "longitude"):
        number = float(value)
        if not abs(number) <= (90 if name == "latitude" else 180):
            raise ValueError(f"its {name} is {value}")
        return number
    if name == "taken_at":
        return _moment(value).isoformat()
    return str(value)


def _moment(value: Any) -> datetime:
    """UTC where the value names no zone."""
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _names(header: list[str]) -> str:
    return ", ".join(header[:20]) + (", ..." if len(header) > 20 else "") if header else "none"


def is_table(name: str) -> bool:
    return Path(name.lower()).suffix in SUFFIXES
