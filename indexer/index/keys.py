"""Paths as an index keeps them: relative to its folders and other sources."""

import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import SeenitError
from ..sources.entry import escape_part, unescape_part
from ..sources.named import key_of_location, location_of_key
from ..sources.open import SourceSpec
from ..sources.place import is_address

_NO_NAMES = ("", ".", "..")


_NO_SIGNS = ("\0", *((os.sep, os.altsep or os.sep, ":") if os.name == "nt" else ()))


class Roots:
    """Translates between absolute paths and the keys of an index, `ROOT/sub/name.jpg`.

    folders  by root, absolute
    sources  by root, what else is indexed: lists, tables, tar files, addresses
    """

    def __init__(self, location: str, roots: dict[str, str], sources: Mapping[str, SourceSpec] | None = None) -> None:
        self._base = None if is_address(location) else os.path.abspath(location)
        self.sources = dict(sources or {})
        self.folders = {key: self._absolute(folder) for key, folder in roots.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Every folder and source as a user names it."""
        return (*self.folders.values(), *(spec.address for spec in self.sources.values()))

    @property
    def stored_sources(self) -> dict[str, dict[str, object]]:
        """The sources as a manifest has them."""
        return {key: spec.as_json() for key, spec in self.sources.items()}

    def path(self, key: str) -> str:
        """The absolute path of a file or folder key; SeenitError where it would lie outside of the indexed folder.

        Of an image that is no file of its own, what it is called: SHARD.tar/MEMBER, TABLE.csv/KEY, an address.
        """
        root, *rest = key.split("/")
        if root in self.sources:
            return self._source_path(self.sources[root], rest, key)
        folder = self.folders.get(root)
        if folder is None:
            raise SeenitError(f"the index has a file of a folder that it does not name ({key!r}); rebuild it")
        if any(part in _NO_NAMES or any(sign in part for sign in _NO_SIGNS) for part in rest):
            raise SeenitError(f"the index speaks of a file outside of its folders ({key!r}); do not use this index")
        return os.path.join(folder, *rest)

    def keys(self, path: str | Path) -> list[str]:
        """Every key that an absolute path, or what `path` calls an image, has in this index; none if it has none."""
        found = self.keys_in_folders(path) if not is_address(path) else []
        for root, spec in self.sources.items():
            rest = _below(spec, path)
            if rest is not None:
                found.append("/".join([root, *rest]))
        return found

    def keys_in_folders(self, path: str | Path) -> list[str]:
        """`keys` as far as folders go."""
        found = []
        for root, folder in self.folders.items():
            rest = relative_parts(path, folder)
            if rest is not None:
                found.append("/".join([root, *rest]))
        return found

    @staticmethod
    def _source_path(spec: SourceSpec, rest: list[str], key: str) -> str:
        if any("\0" in part for part in rest) or any(part in _NO_NAMES for part in rest):
            raise SeenitError(
                f"the index speaks of an image that its sources cannot have ({key!r}); do not use this index"
            )
        if spec.base:
            return "/".join([spec.base, *map(unescape_part, rest)])
        return location_of_key("/".join(rest)) if rest else spec.address

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


def _below(spec: SourceSpec, path: str | Path) -> list[str] | None:
    """The parts of the key that a path or address has below a source; None where it has none there."""
    text = os.fspath(path)
    text = text if is_address(text) else os.path.abspath(text)
    if text == spec.address:
        return []
    if not spec.base:
        return key_of_location(text).split("/")
    start = f"{spec.base}/"
    return [escape_part(part) for part in text[len(start) :].split("/")] if text.startswith(start) else None
