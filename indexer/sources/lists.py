"""A text file with a path or an address a line."""

import io
import os
from collections.abc import Iterator

from ..errors import SeenitError, os_reason
from .entry import Entry, GoneEntry, UnreadableEntry
from .named import Row, entries_of, key_of_location, located_line
from .place import ImageRef, is_address

SUFFIXES = (".txt", ".lst", ".list")


class ListSource:
    """Lines of a file; relative ones start at its own folder, empty ones do not count."""

    def __init__(self, name: str, *, allow_private: bool = False) -> None:
        """`name`: an absolute path, or an address."""
        self.name = name
        self._allow_private = allow_private

    def entries(self, *, stat: bool = True) -> Iterator[Entry | UnreadableEntry | GoneEntry]:
        return entries_of(self._rows(), stat)

    def _rows(self) -> Iterator[Row | UnreadableEntry]:
        base = folder_of(self.name)
        for number, line in enumerate(self._lines(), start=1):
            text = line.rstrip("\r\n")
            if not text.strip():
                continue
            try:
                location = located_line(text, base)
            except ValueError as error:
                yield UnreadableEntry(f"{self.name}, line {number}", str(error), "")
                continue
            private = self._allow_private and is_address(location)
            yield key_of_location(location), ImageRef(location, private=private), {}

    def _lines(self) -> Iterator[str]:
        try:
            with open_text(self.name, self._allow_private) as file:
                yield from file
        except OSError as error:
            raise SeenitError(f"cannot read the list {self.name}: {os_reason(error)}; give a text file") from error


def folder_of(name: str) -> str:
    """The folder of a file, or the address that its own begins with."""
    return name.rpartition("/")[0] if is_address(name) else os.path.dirname(os.path.abspath(name))


def open_text(name: str, allow_private: bool) -> io.TextIOWrapper:
    """A file of text, here or at an address; bytes that are no UTF-8 become surrogates, as in names of files."""
    if is_address(name):
        from .remote import open_remote

        return io.TextIOWrapper(open_remote(name, allow_private=allow_private), "utf-8", "surrogateescape", newline="")
    return open(name, encoding="utf-8", errors="surrogateescape", newline="")
