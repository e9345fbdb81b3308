"""Where an index lies that a folder of images stands for."""

from pathlib import Path

from ..sources.place import is_address
from ..store.index_folder import is_index_folder


def index_in(folder: str | Path) -> Path | None:
    """The index at a folder, or inside it as `.seenit`; None where there is neither."""
    return next((place for place in (Path(folder) / ".seenit", Path(folder)) if is_index_folder(place)), None)


def located(location: str | Path) -> str | Path:
    """Where an index is meant to be: a folder of images that has one in it as `.seenit` stands for that one."""
    return location if is_address(location) else index_in(location) or location
