"""Paths as an index keeps them: relative to its folders."""

import os
from pathlib import Path

from ..errors import SeenitError
from ..store.protocol import is_url

_NO_NAMES = ("", ".", "..")


_NO_SIGNS = ("\0", *((os.sep, os.altsep or os.sep, ":") if os.name == "nt" else ()))


class Roots:
    """Translates between absolute paths and the keys of an index, `ROOT/sub/name.jpg`."""

    def __init__(self, location: str, roots: dict[str, str]) -> None:
        self._base = None if is_url(location) else os.path.abspath(location)
        self.folders = {key: self._absolute(folder) for key, folder in roots.items()}

    def path(self, key: str) -> str:
        """The absolute path of a file or folder key; SeenitError where it would lie outside of the indexed folder."""
        root, *rest = key.split("/")
        folder = self.folders.get(root)
        if folder is None:
            raise SeenitError(f"the index has a file of a folder that it does not name ({key!r}); rebuild it")
        if any(part in _NO_NAMES or any(sign in part for sign in _NO_SIGNS) for part in rest):
            raise SeenitError(f"the index speaks of a file outside of its folders ({key!r}); do not use this index")
        return os.path.join(folder, *rest)

    def keys(self, path: str | Path) -> list[str]:
        """Every key that an absolute path has in this index; none if it lies outside of all roots."""
        found = []
        for root, folder in self.folders.items():
            rest = relative_parts(path, folder)
            if rest is not None:
                found.append("/".join([root, *rest]))
        return found

    def stored_form(self, folder: str | Path) -> str:
        """How a root is written into the manifest: relative where the index lies inside it."""
        absolute = os.path.abspath(folder)
        if self._base is not None and relative_parts(self._base, absolute) is not None:
            return os.path.relpath(absolute, self._base)
        return absolute

    def _absolute(self, folder: str) -> str:
        if self._base is None or os.path.isabs(folder):
            return folder
        return os.path.normpath(os.path.join(self._base, folder))


def relative_parts(path: str | Path, folder: str) -> list[str] | None:
    """The components of `path` below `folder`: [] for the folder itself, None if it lies elsewhere."""
    path = os.path.abspath(path)
    if os.path.normcase(path) == os.path.normcase(folder):
        return []
    start = os.path.join(folder, "")
    if not os.path.normcase(path).startswith(os.path.normcase(start)):
        return None
    return path[len(start) :].split(os.sep)
