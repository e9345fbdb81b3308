"""A second copy of all tags, by content id, in a plain JSON file beside the database.

Tags exist once and cannot be computed again: they have to survive the loss of the database, and of an image's record
(a drive that was away for a day, a file that was deleted and comes back). The database is the truth for the records
that it holds; the copy remembers the rest.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from ..atomic_file import atomic_file, read_plain

NAME = "tags.json"
FORMAT = 1
MAX_BYTES = 1 << 30

Tags = dict[str, tuple[str, ...]]  # by content id


def read_tags(folder: Path) -> Tags:
    """The copy in an index folder; empty where there is none, ValueError or OSError where it cannot be read."""
    try:
        data = read_plain(folder / NAME, MAX_BYTES)
    except FileNotFoundError:
        return {}
    return parse_tags(data)


def parse_tags(data: bytes) -> Tags:
    """ValueError where the text is not what `tags_json` writes."""
    try:
        values = json.loads(data)
        if values["format"] != FORMAT:
            raise ValueError(f"tags of format {values['format']}")
        tags = {str(id): tuple(map(_text, of_record)) for id, of_record in values["tags"].items()}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no tags that seenit wrote: {error}") from None
    return {id: of_record for id, of_record in tags.items() if of_record}


def tags_json(tags: Tags) -> bytes:
    kept = {id: sorted(of_record) for id, of_record in sorted(tags.items()) if of_record}
    return json.dumps({"format": FORMAT, "tags": kept}, indent=0).encode()


def write_tags(folder: Path, tags: Tags) -> None:
    """OSError where the folder cannot be written; the old copy is there then."""
    with atomic_file(folder / NAME) as file:
        file.write(tags_json(tags))


def put_aside(folder: Path) -> None:
    """Give a copy that cannot be read another name, so that the next write does not take its place."""
    aside = folder / f"{NAME}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    with suppress(OSError):
        if not os.path.lexists(aside):
            os.rename(folder / NAME, aside)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r} is no tag")
    return value
