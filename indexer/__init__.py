"""Photo -> features -> vector store.

The names below load on first use, so that importing one small module of this package (as each decoding worker does)
does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backbone import Backbone as Backbone
    from .errors import SeenitError as SeenitError
    from .index import Index as Index
    from .store import Where as Where
    from .store import open_store as open_store
    from .sync import Summary as Summary
    from .sync import sync_folder as sync_folder

_HOMES = {
    "Backbone": "backbone",
    "Index": "index",
    "SeenitError": "errors",
    "Summary": "sync",
    "Where": "store",
    "open_store": "store",
    "sync_folder": "sync",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
