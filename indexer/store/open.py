"""The store that a folder or an address means."""

from pathlib import Path

from ..errors import SeenitError
from ..printable import pasted, printable
from ..sources.place import is_address
from .index_folder import is_index_folder, is_shard_folder, no_index_in_shards
from .protocol import Store, is_url


def is_made(location: str | Path) -> bool:
    """Whether an index is meant, rather than images: a server's address, or a place with a database or shards."""
    if is_url(location):
        return True
    if is_address(location):
        from .shard_place import takes_shards
        from .shard_store import are_shards

        return takes_shards(location) and are_shards(location)
    return is_index_folder(location) or is_shard_folder(location)


def open_store(location: str | Path, *, write: bool = False, wait_s: float = 10.0) -> Store:
    """Open the store at a folder, be it a database or shards of vectors, at `http(s)://host:port/collection`, or the
    shards below an address such as `s3://bucket/vectors`.

    This is the one place that chooses.

    write   take the writer's lock; a second writer gets LockedError, which names the process that holds it
    wait_s  how long a writer waits for another one to end
    A location without an index raises SeenitError unless `write`; a folder is then created, a collection by `ensure`.
    """
    if is_url(location):
        from .qdrant_store import QdrantStore

        return QdrantStore.open(str(location), write=write, wait_s=wait_s)
    if is_address(location):
        refuse_no_shards(location)
    if is_address(location) or is_shard_folder(location):
        from .shard_store import ShardStore

        return ShardStore.open(location, write=write, wait_s=wait_s)
    from .sqlite_store import SqliteStore

    return SqliteStore.open(Path(location), write=write, wait_s=wait_s)


def refuse_shards(location: str | Path) -> None:
    """SeenitError where shards of vectors are meant, and an index is needed."""
    if is_address(location) and not is_url(location):
        refuse_no_shards(location)
        raise no_index_in_shards(location)
    if is_shard_folder(location):
        raise no_index_in_shards(location)


def refuse_no_shards(address: str | Path) -> None:
    """SeenitError unless shards of vectors lie below an address of an object store."""
    if not is_made(address):
        raise SeenitError(
            f"{printable(str(address))} holds no shards of vectors, and an index is a folder or"
            f" http(s)://host:port/collection; embed with: seenit embed SOURCE --shards {pasted(address)}"
        )
