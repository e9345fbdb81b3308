"""Where added images lie in an index: `INDEX/items/KEY.suffix`, the key quoted as in addresses."""

from pathlib import Path
from urllib.parse import quote, unquote

from .errors import SeenitError
from .store.index_folder import ITEMS

MAX_NAME = 240  # bytes of a file's name, which most systems bound at 255


def items_folder(index: str | Path) -> Path:
    return Path(index) / ITEMS


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
    inside = path.parent.name == ITEMS and (path.parent.parent / "index.sqlite").is_file()
    return unquote(path.stem, errors="surrogateescape") if inside else None
