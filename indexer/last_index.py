"""Which index a command means when none is named: one here or above, one beside the pictures, else the last made."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from platformdirs import user_state_path

from .errors import SeenitError
from .store import is_url


def remember_index(location: str) -> None:
    """So that `seenit search photo.jpg` works from anywhere after `seenit index FOLDER`; only a convenience."""
    with suppress(OSError):
        file = _state_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        text = location if is_url(location) else os.path.abspath(location)
        file.write_text(text, encoding="utf-8", errors="surrogateescape")


def find_index(given: str | None, near: Sequence[Path] = (), say: Callable[[str], None] = lambda line: None) -> str:
    """The index meant: given, $SEENIT_INDEX, `.seenit` in or above this folder or `near`, else the last one made."""
    if given or os.environ.get("SEENIT_INDEX"):
        return given or os.environ["SEENIT_INDEX"]
    for start in [Path.cwd(), *(path.absolute() for path in near)]:
        for folder in [start, *start.parents]:
            if (folder / ".seenit" / "manifest.json").is_file():
                return str(folder / ".seenit")
    with suppress(OSError):
        last = _state_file().read_text(encoding="utf-8", errors="surrogateescape").strip()
        if last:
            say(f"using the last index, {last}")
            return last
    raise SeenitError("no index here; create one with: seenit index FOLDER, or name one with --index")


def _state_file() -> Path:
    return Path(os.environ.get("SEENIT_STATE") or user_state_path("seenit")) / "last_index"
