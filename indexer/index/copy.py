"""Moves an index from one store to another: embedded to server, server to embedded, or either to its like."""

from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

from ..errors import SeenitError
from ..progress_bar import progress_bar
from ..store.open import open_store
from ..store.protocol import Store
from .index import WAIT_S
from .keys import Roots
from .manifest import MANIFEST_BLOB, read_manifest, write_manifest

BATCH = 500  # records in memory at a time


def copy_index(source: str | Path, target: str | Path, *, progress: bool = False, wait_s: float = WAIT_S) -> int:
    """Make the index at `target` hold what the one at `source` holds, and return the number of records.

    May be repeated after a break: records that are there already are written again, records that only `target` holds
    are removed. The manifest is written last, so a copy that was broken off does not pass for an index.
    SeenitError where `source` holds no index, where `target` holds one of other dims, or where the counts differ.
    """
    with closing(open_store(source)) as with_source:
        if with_source.schema() is None or read_manifest(with_source) is None:
            raise SeenitError(f"the index at {source} is not complete; run seenit index on it first")
        with closing(open_store(target, write=True, wait_s=wait_s)) as with_target, with_source.snapshot():
            return _copy(with_source, with_target, progress)


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
        if name != MANIFEST_BLOB and data is not None:
            target.write_blob(name, data)
    # Folders are written relative to an index that lies inside them; the copy lies elsewhere.
    there, here = Roots(source.location, manifest.roots), Roots(target.location, {})
    roots = {key: here.stored_form(folder) for key, folder in there.folders.items()}
    target.optimize()
    write_manifest(target, replace(manifest, roots=roots))
    return total
