"""Moves an index from one store to another: embedded to server, server to embedded, or either to its like.

Added images go with it: their files are the index's own, see `item_files`.
"""

import os
import shutil
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

from ..atomic_file import atomic_file
from ..errors import SeenitError, os_reason
from ..item_files import items_folder
from ..progress_bar import progress_bar
from ..sources.place import is_address
from ..store.open import open_store
from ..store.protocol import SERVING, Store, is_url
from ..store.qdrant_address import Address
from ..store.shard_store import ShardStore
from .index import WAIT_S
from .keys import Roots
from .manifest import MANIFEST_BLOB, read_manifest, write_manifest

BATCH = 500  # records in memory at a time


def copy_index(source: str | Path, target: str | Path, *, progress: bool = False, wait_s: float = WAIT_S) -> int:
    """Make the index at `target` hold what the one at `source` holds, and return the number of records.

    May be repeated after a break: records that are there already are written again, records that only `target` holds
    are removed, and so are its added images. The manifest is written once all records are, so a copy that was broken
    off does not pass for an index.
    SeenitError where `source` holds no index, where `target` is the same one or holds one of other dims, or where the
    counts differ.
    """
    _refuse_same(source, target)
    with closing(open_store(source)) as with_source:
        if with_source.schema() is None or read_manifest(with_source) is None:
            raise SeenitError(f"the index at {source} is not complete; run seenit index on it first")
        if isinstance(with_source, ShardStore) and not with_source.has_patches:
            raise SeenitError(f"the shards in {source} hold no patches, which searches need; they serve curation only")
        with closing(open_store(target, write=True, wait_s=wait_s)) as with_target, with_source.snapshot():
            return _copy(with_source, with_target, progress)


def _refuse_same(source: str | Path, target: str | Path) -> None:
    if is_address(source) != is_address(target):
        return
    if is_url(source) or is_url(target):
        same = is_url(source) and is_url(target) and _address(source) == _address(target)
    elif is_address(source):
        same = str(source).rstrip("/") == str(target).rstrip("/")
    else:
        same = os.path.realpath(source) == os.path.realpath(target)
    if same:
        raise SeenitError(f"{source} and {target} are the same index; name another place to copy it to")


def _address(url: str | Path) -> tuple[str, str | None, str]:
    """Where a server's collection is, whatever the settings behind the question mark."""
    address = Address.parse(str(url))
    return address.url.lower(), address.prefix, address.collection


def _copy(source: Store, target: Store, progress: bool) -> int:
    schema, manifest = source.schema(), read_manifest(source)
    assert schema is not None and manifest is not None
    target.ensure(schema)
    total = source.count()
    ids: set[str] = set()
    with progress_bar(total, "copying", "records", progress) as bar:
        records = source.scroll(vectors=True, batch=BATCH)
        while batch := list(islice(records, BATCH)):
            target.upsert(batch)
            ids.update(record.id for record in batch)
            bar.update(len(batch))
    target.delete([record.id for record in target.scroll() if record.id not in ids])
    held = target.count()
    if not held == len(ids) == total:
        raise SeenitError(f"{source.location} holds {total} records, {target.location} now {held}; run the copy again")
    gone = {id: tags for id, tags in source.remembered_tags().items() if id not in ids}
    if gone:
        target.set_tags(gone)
    for name in source.blob_names():
        data = source.read_blob(name)
        if name != MANIFEST_BLOB and not name.startswith(SERVING) and data is not None:
            target.write_blob(name, data)
    # Folders are written relative to an index that lies inside them; the copy lies elsewhere.
    there, here = Roots(source.location, manifest.roots), Roots(target.location, {})
    folders = _copy_items(source.location, target.location, there.folders)
    roots = {key: here.stored_form(folder) for key, folder in folders.items()}
    write_manifest(target, replace(manifest, roots=roots))
    target.optimize()
    return total


def _copy_items(source: str, target: str, folders: dict[str, str]) -> dict[str, str]:
    """Copy the files of added images, times included, and return the indexed folders with theirs at its new place.

    Where this machine has none of them, as of an index on a server that another one added to, nothing changes.
    """
    there = items_folder(source)
    keys = [key for key, folder in folders.items() if there is not None and os.path.abspath(there) == folder]
    if there is None or not keys or there.is_symlink() or not there.is_dir():
        return folders
    try:
        here = items_folder(target, make=True)
        assert here is not None, "it is made"
        names = {entry.name for entry in os.scandir(there) if entry.is_file(follow_symlinks=False)}
        for name in names:
            _copy_item(there / name, here / name)
        for entry in os.scandir(here):
            if entry.name not in names and entry.is_file(follow_symlinks=False):
                os.unlink(entry)  # of an item that the source does not hold; its record is removed, too
    except OSError as error:
        raise SeenitError(f"cannot copy the added images of {source}: {os_reason(error)}; run the copy again") from None
    return folders | {key: os.path.abspath(here) for key in keys}


def _copy_item(source: Path, target: Path) -> None:
    with open(source, "rb", opener=_open_plain) as file:
        status = os.fstat(file.fileno())
        if target.exists() and not target.is_symlink():
            present = os.lstat(target)
            if (present.st_size, present.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
                return
        with atomic_file(target) as copy:
            shutil.copyfileobj(file, copy)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _open_plain(path: str, flags: int) -> int:
    """An index may be somebody else's: a link in it is not followed, and a pipe not waited for."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
