"""Tags: a user's own words on images, kept with the record, so that copies share them and renames keep them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import SeenitError
from ..store.attributes import Attributes, checked_attributes
from ..store.protocol import Filter, Record
from ..store.tag_copy import export_json, parse_export
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
    """All tags and attributes by content id, as JSON that `import_tags` reads; also tags of images that are gone."""
    tags: dict[str, tuple[str, ...]] = {}
    attributes: dict[str, Attributes] = {}
    with Index.open(index) as opened:
        for record in opened.store.scroll():
            if record.tags:
                tags[record.id] = record.tags
            if record.attributes:
                attributes[record.id] = record.attributes
        return export_json(opened.store.remembered_tags() | tags, attributes)


@dataclass(frozen=True)
class Imported:
    """What `import_tags` did.

    tagged      images of the index that got new tags
    described   images of the index that got new attributes
    unknown     content ids that the index does not hold
    left_out    of these, ids whose attributes are not kept: only tags are remembered for an image that comes later
    """

    tagged: int
    described: int
    unknown: int
    left_out: int


def import_tags(index: str | Path, data: bytes, *, wait_s: float = WAIT_S) -> Imported:
    """Add exported tags and attributes to an index.

    Tags that are there stay, and so do the values of attributes that are there. Of ids that are not there the tags are
    remembered, and given when the image comes. SeenitError where the data is not what `export_tags` writes.
    """
    try:
        tags, attributes = parse_export(data)
    except ValueError as error:
        raise SeenitError(f"these are no exported tags: {error}; give a file that `seenit tag export` wrote") from None
    attributes = {id: checked_attributes(values, f"image {id}") for id, values in attributes.items()}
    with Index.open(index, write=True, wait_s=wait_s) as opened:
        there = {record.id: record for record in opened.store.retrieve(list(tags | dict.fromkeys(attributes, ())))}
        tagged = {id: tuple(sorted({*there[id].tags, *tags[id]})) for id in tags if id in there}
        tagged = {id: of_record for id, of_record in tagged.items() if of_record != there[id].tags}
        remembered = {id: of_record for id, of_record in tags.items() if id not in there}
        opened.store.set_tags(tagged | remembered)
        described = {id: {**attributes[id], **there[id].attributes} for id in attributes if id in there}
        described = {id: values for id, values in described.items() if values != dict(there[id].attributes)}
        if described:
            opened.store.set_attributes(dict(described))
        unknown = (tags.keys() | attributes.keys()) - there.keys()
        return Imported(len(tagged), len(described), len(unknown), len(attributes.keys() - there.keys()))


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
