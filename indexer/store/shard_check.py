"""Whether vectors that lie as shards are whole: every page against its checksum, every record, statistics, manifest."""

from pathlib import Path

from ..errors import SeenitError
from ..index.manifest import MANIFEST_BLOB, parse_manifest
from ..progress_bar import progress_bar
from .shard_file import read_records
from .shard_place import place_at
from .shard_store import ShardStore, shard_at, shard_numbers, shard_schema

STEP = "remove the shards that are named, and run the same seenit embed --shards again"


def check_shards(location: str | Path, *, progress: bool = False) -> tuple[int, tuple[str, ...]]:
    """How many images lie in sound shards, and what is wrong with the rest; all shards are read whole.

    SeenitError where the place's marker is none, or the place cannot be read at all.
    """
    place = place_at(location)
    paths, schema = [shard_at(place, number) for number in shard_numbers(place)], shard_schema(place)
    sound = set[str]()
    found = []
    with progress_bar(len(paths), "checking", "shards", progress) as bar:
        for path in paths:
            try:
                if schema is None:
                    raise SeenitError(f"{path} lies among shards whose vectors have no length yet")
                sound |= {record.id for record in read_records(path, schema, vectors=True)}
            except SeenitError as error:
                found.append(str(error))
            bar.update()
    return len(sound), (*found, *([] if found else _of_statistics(location)))


def _of_statistics(location: str | Path) -> list[str]:
    """What is wrong with the blobs of shards that are sound."""
    try:
        store = ShardStore.open(location)
        blobs = {name: store.read_blob(name) for name in store.blob_names()}
        if (manifest := blobs.get(MANIFEST_BLOB)) is not None:
            parse_manifest(manifest, location)
        elif store.count():
            return [f"the manifest of the shards in {location} is missing"]
    except SeenitError as error:
        return [str(error)]
    return []
