"""Tags: a user's own words on images, kept with the record, so that copies share them and renames keep them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import SeenitError
from ..store.protocol import Filter, Record
from ..store.tag_copy import parse_tags, tags_json
from .index import WAIT_S, Index


def change_tags(
    index: str | Path, paths: Sequence[str | Path], change: Callable[[set[str]], set[str]], *, wait_s: float = WAIT_S
) -> int:
    """Apply a change to the tags of images and of everything below folders; how many images it altered.

    SeenitError if a path is not in the index.
    """
    with Index.open(index, write=True, wait_s=wait_s) as opened:
        changed: dict[str, tuple[str, ...]] = {}
        for path in paths:
            for record in _records_at(opened, path):
                tags = tuple(sorted(change(set(record.tags))))
                if tags != record.tags:
                    changed[record.id] = tags
        if changed:
            opened.store.set_tags(changed)
        return len(changed)


def count_tags(index: str | Path) -> dict[str, int]:
    """Every tag of an index with the number of its images, the most frequent first."""
    with Index.open(index) as opened:
        return dict(Counter(tag for record in opened.store.scroll() for tag in record.tags).most_common())


def export_tags(index: str | Path) -> bytes:
    """All tags by content id, as JSON that `import_tags` reads; also those of images that are gone."""
    with Index.open(index) as opened:
        tags = {record.id: record.tags for record in opened.store.scroll() if record.tags}
        return tags_json(opened.store.remembered_tags() | tags)


def import_tags(index: str | Path, data: bytes, *, wait_s: float = WAIT_S) -> tuple[int, int]:
    """Add exported tags to an index; how many of its images got new ones, and how many ids it does not hold.

    Tags that are there stay. Of ids that are not there the tags are remembered, and given when the image comes.
    SeenitError where the data is not what `export_tags` writes.
    """
    try:
        tags = parse_tags(data)
    except ValueError as error:
        raise SeenitError(f"{error}; give a file that `seenit tag export` wrote") from None
    with Index.open(index, write=True, wait_s=wait_s) as opened:
        there = {record.id: record.tags for record in opened.store.retrieve(list(tags))}
        changed = {id: tuple(sorted({*there[id], *tags[id]})) for id in there}
        changed = {id: of_record for id, of_record in changed.items() if of_record != there[id]}
        unknown = {id: of_record for id, of_record in tags.items() if id not in there}
        opened.store.set_tags(changed | unknown)
        return len(changed), len(unknown)


def _records_at(index: Index, path: str | Path) -> Iterator[Record]:
    found = False
    for key in index.roots.keys(path):
        is_folder = Path(path).is_dir()
        folder = key if is_folder else key.rpartition("/")[0]
        for record in index.store.scroll(Filter(under=(folder,))):
            if is_folder or any(file.key == key for file in record.files):
                found = True
                yield record
    if not found:
        raise SeenitError(f"{path} is not in the index {index.location}; bring it in line with: seenit index")
