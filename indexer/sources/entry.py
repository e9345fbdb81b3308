"""What every source gives: entries, each an image to be with its key, size, time and place.

What is surprising: an entry's time is one number that also carries what else tells whether an image changed. Its whole
seconds are the time of change, its nanoseconds a hash of the ETag, of the tar file that it lies in and of its columns.
So the comparison of an index with its sources, and the stored form of a file, are the same for all of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

from ..images.find import MAX_STAMP_NS, Unreadable
from .place import ImageRef

UNKNOWN_NS = -MAX_STAMP_NS  # no time at all: in 1677, which no image's date is taken from
SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class Entry:
    """One image of a source, before anybody has looked into it.

    key       below the source's root, parts joined by `/` and escaped; the same from run to run
    place     where its bytes are
    size      bytes; None where the source does not tell
    stamp_ns  tells one state of the image from another, see the module; None where nothing does
    about     what the source says of the image, by the names in ABOUT
    """

    key: str
    place: ImageRef
    size: int | None = None
    stamp_ns: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class UnreadableEntry(Unreadable):
    """An entry that is there but cannot be asked for now; what is known of it stays.

    path  how it is called in messages
    key   its key, or that of a folder of entries
    """

    key: str = ""


@dataclass(frozen=True)
class GoneEntry:
    """An entry that a list or a table names and whose image is not there; what is known of it goes.

    path  how it is called in messages
    """

    path: str


class Source(Protocol):
    """A list of images somewhere.

    name  as a user would type it
    """

    name: str

    def entries(self, *, stat: bool = True) -> Iterator[Entry | UnreadableEntry | GoneEntry]:
        """Every entry, image or not, a few at a time in memory.

        stat  with size and time, also where each image has to be asked for them
        SeenitError where the source itself cannot be read: AwayError where waiting may help.
        """


def stamp(seconds: float | None, *validators: object) -> int | None:
    """A time of change and other signs of one as a single number; None where there are none.

    seconds     since 1970, or None
    validators  an ETag and the like; those that are None or empty do not count
    """
    signs = [repr(one) for one in validators if one not in (None, "", {})]
    if seconds is None and not signs:
        return None
    start = UNKNOWN_NS if seconds is None else int(seconds) * SECOND_NS
    start = max(UNKNOWN_NS, min(start, MAX_STAMP_NS - SECOND_NS))
    if not signs:
        return start
    hashed = blake2b("\0".join(signs).encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return start + 1 + int.from_bytes(hashed, "big") % (SECOND_NS - 1)


def escape_part(part: str) -> str:
    """A part of a key: one that would be no file's name gets a percent sign in front."""
    return f"%{part}" if part in ("", ".", "..") or part.startswith("%") else part


def unescape_part(part: str) -> str:
    return part[1:] if part.startswith("%") else part


def escape_key(text: str) -> str:
    return "/".join(map(escape_part, text.split("/")))
