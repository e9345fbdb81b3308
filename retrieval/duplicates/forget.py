"""Files that were moved away are removed from the index at once, so that no search shows a path without a file."""

from collections.abc import Iterable
from contextlib import closing

from indexer.index.files import set_files
from indexer.store.open import open_store
from indexer.store.protocol import StoredFile

RECORDS_AT_ONCE = 1000


def forget_files(index: str, keys: Iterable[str], wait_s: float = 5.0) -> int:
    """Take files out of an index; an image without any file goes. Returns how many files it no longer names.

    Raises LockedError where another process writes, StoreError where the index cannot be written to.
    """
    gone = set(keys)
    with closing(open_store(index, write=True, wait_s=wait_s)) as store:
        changed: dict[str, tuple[StoredFile, ...]] = {}
        forgotten = 0
        for record in store.list_files():
            files = tuple(file for file in record.files if file.key not in gone)
            if len(files) < len(record.files):
                forgotten += len(record.files) - len(files)
                changed[record.id] = files
        emptied = [id for id, files in changed.items() if not files]
        kept = [(id, files) for id, files in changed.items() if files]
        for start in range(0, len(kept), RECORDS_AT_ONCE):
            set_files(store, dict(kept[start : start + RECORDS_AT_ONCE]))
        for start in range(0, len(emptied), RECORDS_AT_ONCE):
            store.delete(emptied[start : start + RECORDS_AT_ONCE])
    return forgotten
