"""Tags: a user's own words on pictures, kept with the record, so that copies share them and renames keep them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .errors import SeenitError
from .manifest import Roots, read_manifest
from .store import Record, Store, Where, open_store


def change_tags(
    index: str | Path, paths: Sequence[str | Path], change: Callable[[set[str]], set[str]], *, wait_s: float = 10.0
) -> int:
    """Apply a change to the tags of pictures and of everything below folders; how many pictures it altered.

    wait_s  how long to wait for another process that writes the index
    SeenitError if a path is not in the index.
    """
    store = open_store(index, write=True, wait_s=wait_s)
    try:
        manifest = read_manifest(store)
        if manifest is None:
            raise SeenitError(f"no index at {index}; create one with: seenit index FOLDER --index {index}")
        roots = Roots(store.location, manifest.roots)
        changed: dict[str, tuple[str, ...]] = {}
        for path in paths:
            for record in _records_at(store, roots, path):
                tags = tuple(sorted(change(set(record.tags))))
                if tags != record.tags:
                    changed[record.id] = tags
        if changed:
            store.set_tags(changed)
        return len(changed)
    finally:
        store.close()


def _records_at(store: Store, roots: Roots, path: str | Path) -> Iterator[Record]:
    found = False
    for key in roots.keys(path):
        is_folder = Path(path).is_dir()
        folder = key if is_folder else key.rpartition("/")[0]
        for record in store.scroll(Where(under=(folder,))):
            if is_folder or any(file.key == key for file in record.files):
                found = True
                yield record
    if not found:
        raise SeenitError(f"{path} is not in the index {store.location}; bring it in line with: seenit index")
