"""Paths and addresses that a list or a table names, as keys and back.

A key below the root of a list is the whole path without its first slash, or the address with one slash in place of two:
`data/a.jpg` for `/data/a.jpg`, `s3:/bucket/a.jpg` for `s3://bucket/a.jpg`.
"""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from ..errors import DownloadError, os_reason
from ..images.find import stamp_ns
from .entry import Entry, GoneEntry, UnreadableEntry, escape_part, stamp, unescape_part
from .place import ImageRef, is_address

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
IN_LISTS = ("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")  # kinds of addresses that a line may name
ASKED_AT_ONCE = 16  # addresses asked for size and time; chosen, not measured
CHUNK = 512


def key_of_location(location: str) -> str:
    """The key of an absolute path or an address."""
    if is_address(location):
        scheme, _, rest = location.partition("://")
        return "/".join([f"{scheme.lower()}:", *map(escape_part, rest.split("/"))])
    first, *rest_parts = location.replace(os.sep, "/").removeprefix("/").split("/")
    first = f"%{first}" if _SCHEME.fullmatch(first) else escape_part(first)  # a folder of that name is no scheme
    return "/".join([first, *map(escape_part, rest_parts)])


def location_of_key(key: str) -> str:
    """What `key_of_location` was given."""
    first, *rest = key.split("/")
    if _SCHEME.fullmatch(first):
        return f"{first}//" + "/".join(map(unescape_part, rest))
    return "/" + "/".join(map(unescape_part, [first, *rest]))


def located_line(text: str, base: str) -> str:
    """A line's path or address; one that is relative begins at `base`, the folder or address of its list.

    ValueError, in words, for what a list may not name.
    """
    if "\0" in text:
        raise ValueError("no file can have this name")
    if is_address(text):
        scheme = text.partition("://")[0].lower()
        if scheme not in IN_LISTS or "::" in text:
            raise ValueError(f"addresses of the kind {scheme}:// are not read from lists")
        if re.match(r"[a-z]+://[^/]*@", text, re.I):
            raise ValueError("an address with a password in it is not read")
        return text
    if is_address(base):
        if os.path.isabs(text) or text.startswith("~"):
            raise ValueError("a list at an address names no files of this machine")
        parts = text.split("/")
        if ".." in parts:
            raise ValueError("it leads out of the folder of its list")
        return f"{base}/" + "/".join(part for part in parts if part not in ("", "."))
    return os.path.normpath(os.path.join(base, os.path.expanduser(text)))


Row = tuple[str, ImageRef, dict[str, Any]]  # key, place, and what is said of it: size, etag, time_s, about


def entries_of(rows: Iterator[Row | UnreadableEntry], stat: bool) -> Iterator[Entry | UnreadableEntry | GoneEntry]:
    """Rows as entries, with size and time of each where the row does not tell them and `stat` asks for them.

    Without `stat` it is not asked whether an image is there.
    """
    if not stat:
        yield from (row if isinstance(row, UnreadableEntry) else _entry(row, None) for row in rows)
        return
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:  # most of the time is spent waiting for servers
        while chunk := list(islice(rows, CHUNK)):
            yield from pool.map(_asked, chunk) if any(map(_is_far, chunk)) else map(_asked, chunk)


def _is_far(row: Row | UnreadableEntry) -> bool:
    return not isinstance(row, UnreadableEntry) and is_address(row[1].path)


def _asked(row: Row | UnreadableEntry) -> Entry | UnreadableEntry | GoneEntry:
    if isinstance(row, UnreadableEntry):
        return row
    key, place, said = row
    try:
        if not is_address(place.path):
            status = os.stat(place.path)
            known: tuple[int | None, int | None] = (status.st_size, stamp_ns(status))
            if said.get("about"):
                known = (status.st_size, stamp(status.st_mtime, stamp_ns(status), said["about"]))
            return Entry(key, place, *known, said.get("about") or {})
        if said.get("etag") or said.get("time_s") is not None:
            return _entry(row, None)
        from .remote import stat_remote

        found = stat_remote(place.path, allow_private=place.private)
        return _entry(row, (found.size, found.time_s, found.etag))
    except FileNotFoundError:
        return GoneEntry(place.name)
    except (OSError, DownloadError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else str(error)
        return UnreadableEntry(place.name, reason, key)
    except ValueError:
        return UnreadableEntry(place.name, "no file can have this name", key)


def _entry(row: Row, found: tuple[int | None, float | None, str | None] | None) -> Entry:
    key, place, said = row
    size, time_s, etag = found or (said.get("size"), said.get("time_s"), said.get("etag"))
    about = said.get("about") or {}
    signs: Sequence[object] = (etag, sorted(about.items())) if about and (etag or time_s is not None) else (etag,)
    return Entry(key, place, size, stamp(time_s, *signs), about)
