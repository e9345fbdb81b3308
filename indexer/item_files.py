"""Where added images lie: `INDEX/items/KEY.suffix`, the key quoted as in addresses.

A server keeps no images. Those that are added to an index on one lie in a folder of the machine that added them, or in
the one that $SEENIT_ITEMS names, which several machines may share. What is surprising: its name ends in random letters.
Without them a folder of the same name on another machine would pass for this one, and what it lacks for deleted.
"""

import hashlib
import os
import secrets
from pathlib import Path
from urllib.parse import quote, unquote

import platformdirs

from .atomic_file import atomic_file
from .errors import SeenitError
from .sources.place import is_address
from .store.index_folder import ITEMS
from .store.protocol import is_url
from .store.sqlite_schema import DATABASE_NAME

MAX_NAME = 240  # bytes of a file's name, which most systems bound at 255
ADDRESS_NAME = "index.address"  # beside the added images of an index on a server: which one


def items_folder(index: str | Path, *, make: bool = False) -> Path | None:
    """The folder of an index's added images; None for shards in an object store, and where there is none yet for an
    index on a server.

    make  it and what is above it; OSError where that cannot be
    """
    if is_address(index) and not is_url(index):
        return None
    if not is_url(index):
        folder = Path(index) / ITEMS
    else:
        place = _place_of(str(index).partition("?")[0], make)
        if place is None:
            return None
        folder = place / ITEMS
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _place_of(address: str, make: bool) -> Path | None:
    base = Path(os.environ.get("SEENIT_ITEMS") or platformdirs.user_data_path("seenit", appauthor=False) / "items")
    start = hashlib.blake2b(address.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    there = sorted(path.parent for path in base.glob(f"{start}-*/{ADDRESS_NAME}"))
    if there or not make:
        return there[0] if there else None
    place = base / f"{start}-{secrets.token_hex(4)}"
    place.mkdir(parents=True)
    with atomic_file(place / ADDRESS_NAME) as file:
        file.write(address.encode("utf-8", "surrogateescape"))
    return place


def stem_of(key: str) -> str:
    """The name of a key's file without its suffix; SeenitError for a key that gives none."""
    stem = quote(key, safe=" ", errors="surrogateescape").replace(".", "%2E")
    if not key or key != key.strip() or len(stem) > MAX_NAME:
        raise SeenitError(
            f"{key!r:.80} cannot be a key; take 1 to {MAX_NAME} characters, none of them a blank at an end"
        )
    return stem


def key_of(path: str | Path) -> str | None:
    """The key of an added image's file; None for any other file."""
    path = Path(path)
    index = path.parent.parent
    inside = path.parent.name == ITEMS and any((index / name).is_file() for name in (DATABASE_NAME, ADDRESS_NAME))
    return unquote(path.stem, errors="surrogateescape") if inside else None
