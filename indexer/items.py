"""Images that are no files of an indexed folder, each with its caller's own key, taken into an index and out of it.

What is surprising: their bytes are kept as files in the index's own folder, which then is one more indexed folder. So
they are embedded, fitted anew, verified and searched on the very path of `sync_folder`, and a killed call is continued
by the next one. For an index on a server that folder is one of this machine's, see `item_files`.
"""

import io
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from .atomic_file import atomic_file
from .backbone.load_once import LoadOnce
from .errors import SeenitError, os_reason
from .images.decode import SNIFF_BYTES, read_image_file, sniff
from .images.metadata import content_id
from .images.remote import fetch_image
from .index.place import located
from .item_files import items_folder, stem_of
from .messages import Say, say_nothing
from .store.attributes import Attributes, checked_attributes
from .store.open import open_store
from .store.protocol import is_url
from .sync.options import SyncOptions
from .sync.progress import Progress
from .sync.summary import Summary
from .sync.sync import sync_folder

if TYPE_CHECKING:
    from .backbone.backbone import Backbone

ItemImage: TypeAlias = "np.ndarray | Image.Image | bytes | str | Path"


@dataclass(frozen=True, eq=False)
class Item:
    """An image to be added.

    key    the caller's own name for it, unique in the index
    image  a uint8 array (H, W, 3) or (H, W), a PIL image, the bytes of an image file, a path, or an http(s) address
    tags   to be put on it
    attributes  a JSON object to be kept with it in place of what was kept before; None: leave that as it is. Filters
                ask for its values, see `store.attributes`

    Items of the same bytes are one record: it has the tags and attributes of all of them, of one name the last.
    """

    key: str
    image: "ItemImage"
    tags: tuple[str, ...] = ()
    attributes: Attributes | None = None

    def __repr__(self) -> str:
        return f"Item({self.key!r}, {type(self.image).__name__})"


def add_items(
    index: str | Path,
    items: Sequence[Item],
    *,
    backbone: "Backbone | LoadOnce | str | Path | None" = None,
    options: SyncOptions = SyncOptions(),
    progress: Progress = False,
    say: Say = say_nothing,
) -> Summary:
    """Add images to an index, which is made if it is not there; the arguments are those of `sync_folder`.

    An item whose key is there replaces that image; the same image again changes nothing. All items are written before
    the first is embedded, so after a break the same call goes on.
    Raises SeenitError for a key that is given twice, what is no image or no attributes; nothing was written.
    """
    location = located(index)
    stems = [stem_of(item.key) for item in items]
    if len(set(stems)) < len(stems):
        raise SeenitError("a key is given twice; give each item a key of its own")
    attributes = [
        None if item.attributes is None else checked_attributes(item.attributes, f"item {item.key!r}") for item in items
    ]
    data = [_bytes_of(item) for item in items]
    folder: Path | None = None
    try:
        folder = items_folder(location, make=True)
        assert folder is not None, "it is made"
        for stem, one in zip(stems, data, strict=True):
            _write(folder, stem, one)
    except OSError as error:
        where = folder or "the folder of added images"
        raise SeenitError(f"cannot write in {where}: {os_reason(error)}; make it writable") from None
    summary = sync_folder(folder, location, options=options, backbone=backbone, progress=progress, say=say)
    tags: dict[str, set[str]] = {}
    given: dict[str, dict[str, Any]] = {}
    for item, of_item, id in zip(items, attributes, map(content_id, data), strict=True):
        if item.tags:
            tags.setdefault(id, set()).update(item.tags)
        if of_item is not None:
            given.setdefault(id, {}).update(of_item)
    _describe(location, tags, dict(given), options.wait_s)
    return summary


def _describe(index: str | Path, tags: dict[str, set[str]], attributes: dict[str, Attributes], wait_s: float) -> None:
    """Add tags to records and replace their attributes, by content id."""
    if not tags and not attributes:
        return
    with closing(open_store(index, write=True, wait_s=wait_s)) as store:
        there = store.tags_of(list(tags))
        wanted = {id: tuple(sorted({*there.get(id, ()), *new})) for id, new in tags.items()}
        if changed := {id: of_record for id, of_record in wanted.items() if of_record != there.get(id)}:
            store.set_tags(changed)
        known = store.attributes_of(list(attributes))
        if new_ones := {id: of_record for id, of_record in attributes.items() if of_record != known.get(id, {})}:
            store.set_attributes(new_ones)


def delete_items(index: str | Path, keys: Sequence[str]) -> int:
    """Remove added images by their keys; how many there were. Unknown keys are passed over."""
    location = located(index)
    folder = items_folder(location)
    there = [path for key in keys for path in _files(folder, stem_of(key))] if folder else []
    for path in there:
        path.unlink()
    if there and folder:
        sync_folder(folder, location, options=SyncOptions(allow_empty=True))
    return len(there)


def _files(folder: Path, stem: str) -> list[Path]:
    """The files of a key: one, or none."""
    if not folder.is_dir():
        return []
    return [folder / name for name in os.listdir(folder) if os.path.splitext(name)[0] == stem]


def _write(folder: Path, stem: str, data: bytes) -> None:
    """The key's file, written unless it holds that already."""
    target = folder / f"{stem}.{(sniff(data[:SNIFF_BYTES]) or '').lower()}"
    if not target.is_file() or target.read_bytes() != data:
        with atomic_file(target) as file:
            file.write(data)
    for other in _files(folder, stem):
        if other != target:
            other.unlink()  # the same key, which held an image of another format


def _bytes_of(item: Item) -> bytes:
    image: Any = item.image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise SeenitError(f"item {item.key!r} is an array {image.dtype} {image.shape}; uint8 (H, W, 3) is needed")
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.convert("RGB").save(file, "PNG", compress_level=1)
        return file.getvalue()
    if isinstance(image, (str, Path)):
        image = fetch_image(str(image)) if is_url(image) else read_image_file(os.path.expanduser(image))
    if not isinstance(image, bytes) or sniff(image[:SNIFF_BYTES]) is None:
        raise SeenitError(f"item {item.key!r} is not an image of a format that is read here")
    return image
