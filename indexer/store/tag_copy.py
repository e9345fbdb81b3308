"""A second copy of all tags, by content id, in a plain JSON file beside the database.

Tags exist once and cannot be computed again: they have to survive the loss of the database, and of an image's record
(a drive that was away for a day, a file that was deleted and comes back). The database is the truth for the records
that it holds; the copy remembers the rest.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from ..atomic_file import atomic_file, read_plain
from ..errors import StoreError
from .attributes import Attributes

TAGS_NAME = "tags.json"
FORMAT = 1
WITH_ATTRIBUTES = 2  # of an export that holds attributes, too; the copy beside a database never does
MAX_BYTES = 1 << 30

Tags = dict[str, tuple[str, ...]]  # by content id


class KeptTags:
    """The second copy of one open index, read when it is first asked for.

    held  the tags that the database holds, for a store that writes; None for one that only reads

    What a killed run did not get into the copy is added from the database. A copy that cannot be read counts as empty;
    a store that writes gives it another name and writes a new one.
    """

    def __init__(self, folder: Path, held: Callable[[], Tags] | None) -> None:
        self._folder = folder
        self._held = held
        self._tags: Tags | None = None  # once it was read
        self._waiting = False  # to be written

    def read(self) -> Tags:
        if self._tags is None:
            try:
                kept, sound = read_tags(self._folder), True
            except (OSError, ValueError):
                kept, sound = {}, False
            if self._held is not None:
                if not sound:
                    put_aside(self._folder)
                held = self._held()
                self._waiting = not sound or any(kept.get(id) != tags for id, tags in held.items())
                kept = {**kept, **held}
            self._tags = kept
        return self._tags

    def remember(self, tags: Tags) -> None:
        """Take tags into the copy, which is on the disk after the next `write`; empty ones are removed."""
        kept = self.read()
        changed = {id: tuple(sorted(of_record)) for id, of_record in tags.items()}
        changed = {id: of_record for id, of_record in changed.items() if kept.get(id, ()) != of_record}
        if changed:
            self._tags = {id: of_record for id, of_record in {**kept, **changed}.items() if of_record}
            self._waiting = True

    def write(self) -> None:
        """Write what is new in the copy, if anything; StoreError where that cannot be."""
        if not self._waiting or self._tags is None:
            return
        try:
            write_tags(self._folder, self._tags)
        except OSError as error:
            raise StoreError(
                f"the tags are in the index at {self._folder}, but their second copy could not be written:"
                f" {error.strerror or error}; make room and tag again"
            ) from None
        self._waiting = False


def read_tags(folder: Path) -> Tags:
    """The copy in an index folder; empty where there is none, ValueError or OSError where it cannot be read."""
    try:
        data = read_plain(folder / TAGS_NAME, MAX_BYTES)
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


def export_json(tags: Tags, attributes: Mapping[str, Attributes]) -> bytes:
    """`tags_json` with attributes beside the tags where there are any, which older readers refuse."""
    if not attributes:
        return tags_json(tags)
    values = json.loads(tags_json(tags))
    said = {id: dict(of_record) for id, of_record in sorted(attributes.items())}
    return json.dumps({**values, "format": WITH_ATTRIBUTES, "attributes": said}, indent=0).encode()


def parse_export(data: bytes) -> tuple[Tags, dict[str, Attributes]]:
    """Tags, and attributes as they stand there; ValueError where the text is not what `export_json` writes."""
    try:
        values = json.loads(data)
        attributes = values["attributes"] if values["format"] == WITH_ATTRIBUTES else {}
        if not all(isinstance(of_record, dict) for of_record in attributes.values()):
            raise ValueError("no attributes that seenit wrote")
        if values["format"] == WITH_ATTRIBUTES:
            data = json.dumps({"format": FORMAT, "tags": values["tags"]}).encode()
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no tags that seenit wrote: {error}") from None
    return parse_tags(data), dict(attributes)


def write_tags(folder: Path, tags: Tags) -> None:
    """OSError where the folder cannot be written; the old copy is there then."""
    with atomic_file(folder / TAGS_NAME) as file:
        file.write(tags_json(tags))


def put_aside(folder: Path) -> None:
    """Give a copy that cannot be read another name, so that the next write does not take its place."""
    aside = folder / f"{TAGS_NAME}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    with suppress(OSError):
        if not os.path.lexists(aside):
            os.rename(folder / TAGS_NAME, aside)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r} is no tag")
    return value
