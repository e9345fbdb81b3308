"""Embedding apart from indexing: vectors of images as Parquet shards, from which an index is made without a forward.

What is surprising: shards are brought in line with their sources as an index is, by the same code. So the copy of them
is the index that `seenit index` makes: the same ids, statistics and vectors.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import SeenitError
from .messages import Say, say_nothing
from .store.shard_store import are_shards, make_shard_place, remove_empty
from .sync.options import SyncOptions
from .sync.progress import Progress
from .sync.summary import Summary
from .sync.sync import sync_folder

if TYPE_CHECKING:
    from .backbone.backbone import Backbone
    from .backbone.load_once import LoadOnce


def embed_into_shards(
    sources: str | Path | Sequence[str | Path],
    place: str | Path,
    *,
    patches: bool = True,
    options: SyncOptions = SyncOptions(),
    backbone: "Backbone | LoadOnce | str | Path | None" = None,
    progress: Progress = False,
    stop: Callable[[], bool] = lambda: False,
    say: Say = say_nothing,
) -> Summary:
    """Bring shards of vectors in line with sources; what they hold of other sources stays.

    place    a folder, or an address of an object store (`s3://bucket/vectors`): new, empty, or one that this made; see
             `store.shard_store` for what lies in it
    patches  False: vectors and metadata alone, for curation; no index can be made of them
    For the others see `sync_folder`. A process that is killed loses one shard at most, which the next call embeds.

    >>> from indexer import copy_index, embed_into_shards
    >>> embed_into_shards("photos", "vectors").embedded
    10
    >>> copy_index("vectors", "index")
    10
    """
    is_new = not are_shards(place)
    make_shard_place(place, patches=patches)
    try:
        return sync_folder(sources, place, options=options, backbone=backbone, progress=progress, stop=stop, say=say)
    except SeenitError:
        if is_new:
            with suppress(SeenitError):  # what went wrong before is what is told
                remove_empty(place)
        raise
