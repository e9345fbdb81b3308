"""The store that a folder or an address means."""

from pathlib import Path

from ..errors import SeenitError
from .index_folder import is_index_folder, is_shard_folder
from .protocol import Store, is_url


def is_made(location: str | Path) -> bool:
    """Whether an index is meant, rather than a folder of images: an address, or a folder with a database or shards."""
    return is_url(location) or is_index_folder(location) or is_shard_folder(location)


def open_store(location: str | Path, *, write: bool = False, wait_s: float = 10.0) -> Store:
    """Open the store at a folder, be it a database or shards of vectors, or at `http(s)://host:port/collection`.

    This is the one place that chooses.

    write   take the writer's lock; a second writer gets LockedError, which names the process that holds it
    wait_s  how long a writer waits for another one to end
    A location without an index raises SeenitError unless `write`; a folder is then created, a collection by `ensure`.
    """
    if is_url(location):
        from .qdrant_store import QdrantStore

        return QdrantStore.open(str(location), write=write, wait_s=wait_s)
    if "://" in str(location):
        raise SeenitError(f"cannot open {location}: an index is a folder or http(s)://host:port/collection")
    if is_shard_folder(location):
        from .shard_store import ShardStore

        return ShardStore.open(Path(location), write=write, wait_s=wait_s)
    from .sqlite_store import SqliteStore

    return SqliteStore.open(Path(location), write=write, wait_s=wait_s)
