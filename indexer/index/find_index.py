"""Which index a command means when none is named: one here or above, one beside the images, else the last made."""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from platformdirs import user_state_path

from ..errors import SeenitError
from ..messages import Say, say_nothing
from ..sources.place import is_address
from ..store.index_folder import is_index_folder
from ..store.sqlite_schema import DATABASE_NAME


def remember_index(location: str) -> None:
    """So that `seenit search photo.jpg` works from anywhere after `seenit index FOLDER`; only a convenience."""
    with suppress(OSError):
        file = _state_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        text = location if is_address(location) else os.path.abspath(location)
        file.write_text(text, encoding="utf-8", errors="surrogateescape")


def find_index(given: str | None, near: Sequence[Path] = (), say: Say = say_nothing) -> str:
    """The index meant: given, $SEENIT_INDEX, `.seenit` in or above this folder or `near`, else the last one made.

    A `.seenit` that merely lies there counts only if it is this user's own, and is named by `say`: the folder of a
    query may be anybody's.
    """
    if named := given or os.environ.get("SEENIT_INDEX"):
        if is_address(named):
            return named
        inside = Path(named) / ".seenit"  # of a folder of images its index
        return str(inside) if is_index_folder(inside) else named
    for start in [Path.cwd(), *(path.absolute() for path in near)]:
        for folder in [start, *start.parents]:
            place = folder / ".seenit"
            if not is_index_folder(place):
                continue
            if _is_own(place):
                say(f"using the index at {place}")
                return str(place)
            say(f"leaving the index at {place} alone: it is another user's; to use it, name it with --index")
    with suppress(OSError):
        last = _state_file().read_text(encoding="utf-8", errors="surrogateescape").strip()
        if last:
            say(f"using the last index, {last}")
            return last
    raise SeenitError("no index here; create one with: seenit index FOLDER, or name one with --index")


def _state_file() -> Path:
    return Path(os.environ.get("SEENIT_STATE") or user_state_path("seenit")) / "last_index"


def _is_own(place: Path) -> bool:
    """Whether this user made the folder and the database in it, neither of them a link."""
    if not hasattr(os, "getuid"):
        return True
    there = [os.lstat(path) for path in (place, place / DATABASE_NAME)]
    return all(status.st_uid == os.getuid() and not stat.S_ISLNK(status.st_mode) for status in there)
