"""Photo -> features -> vector store.

The names below load on first use, so that importing one small module of this package (as each decoding worker does)
does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backbone.backbone import Backbone as Backbone
    from .errors import SeenitError as SeenitError
    from .folder_features import embed_folder as embed_folder
    from .index.copy import copy_index as copy_index
    from .index.index import Index as Index
    from .items import Item as Item
    from .items import add_items as add_items
    from .items import delete_items as delete_items
    from .store.open import open_store as open_store
    from .store.protocol import Filter as Filter
    from .sync.options import SyncOptions as SyncOptions
    from .sync.summary import Summary as Summary
    from .sync.sync import sync_folder as sync_folder
    from .vector_shards import embed_into_shards as embed_into_shards

_HOMES = {
    "Backbone": "backbone.backbone",
    "Index": "index.index",
    "Item": "items",
    "SeenitError": "errors",
    "Summary": "sync.summary",
    "SyncOptions": "sync.options",
    "Filter": "store.protocol",
    "add_items": "items",
    "copy_index": "index.copy",
    "delete_items": "items",
    "embed_folder": "folder_features",
    "embed_into_shards": "vector_shards",
    "open_store": "store.open",
    "sync_folder": "sync.sync",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
