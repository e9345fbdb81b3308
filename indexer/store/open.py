"""The store that a folder or an address means."""

from pathlib import Path

from ..errors import SeenitError
from .protocol import Store, is_url


def open_store(location: str | Path, *, write: bool = False, wait_s: float = 10.0) -> Store:
    """Open the store at a folder or at `http(s)://host:port/collection`; the one place that chooses.

    write   take the writer's lock; a second writer gets LockedError, which names the process that holds it
    wait_s  how long a writer waits for another one to end
    A location without an index raises SeenitError unless `write`; a folder is then created, a collection by `ensure`.
    """
    if is_url(location):
        from .qdrant_store import QdrantStore

        return QdrantStore.open(str(location), write=write, wait_s=wait_s)
    if "://" in str(location):
        raise SeenitError(f"cannot open {location}: an index is a folder or http(s)://host:port/collection")
    from .sqlite_store import SqliteStore

    return SqliteStore.open(Path(location), write=write, wait_s=wait_s)
