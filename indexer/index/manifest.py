"""An index knows what made it: backbone, preprocessing, descriptor, and the folders that it mirrors.

The manifest is one JSON blob in the store. Folders that contain the index are written relative to it, so that a photo
folder with its index inside can be moved or mounted elsewhere; all others are absolute.
"""

import json
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from ..errors import SeenitError
from ..store.protocol import Store, is_url
from ..version import VERSION

FORMAT = 2  # raised when an older seenit could not read the index rightly; 1 had the descriptor as opaque text
BLOB = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    backbone: str  # name or path, as Backbone.load takes it
    backbone_hash: str  # hex, 128 bits, of the weights
    resolution: int  # an image is seen at about resolution x resolution pixels, in its own aspect
    descriptor: dict[str, object]  # the descriptor's settings by name, see `descriptor.Recipe`
    fit: str  # id of the fitted statistics that make today's vectors
    fitted_on: int  # images that the statistics saw
    roots: dict[str, str] = field(default_factory=dict)  # key -> folder, relative to the index or absolute
    seenit: str = VERSION  # the version that wrote it
    format: int = FORMAT

    def without_roots(self, keys: set[str]) -> "Manifest":
        return replace(self, roots={key: folder for key, folder in self.roots.items() if key not in keys})


def read_manifest(store: Store) -> Manifest | None:
    """The index's manifest, None where nothing was indexed yet; see `parse_manifest`."""
    data = store.read_blob(BLOB)
    return None if data is None else parse_manifest(data, store.location)


def parse_manifest(data: bytes, location: object) -> Manifest:
    """Raises SeenitError where the manifest is damaged or of another format.

    A field that is missing has its default and one that is not known is left out: what cannot be read rightly so raises
    FORMAT.
    """
    damaged = f"the manifest of {location} is damaged; mend it with: seenit check --repair --index {location}"
    try:
        values = json.loads(data)
        made_by = int(values["format"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise SeenitError(damaged) from None
    if made_by > FORMAT:
        raise SeenitError(f"{location} was made by a newer seenit (format {made_by}); update seenit")
    if made_by < FORMAT:
        raise SeenitError(f"{location} was made by the first version of seenit; move it away and index anew")
    known = {one.name: one for one in fields(Manifest)}
    try:
        manifest = Manifest(**{name: value for name, value in values.items() if name in known})
        for one in known.values():
            expected: type = dict if one.name in ("roots", "descriptor") else int if one.type in (int, "int") else str
            if type(getattr(manifest, one.name)) is not expected:
                raise TypeError(one.name)
        if not all(isinstance(text, str) for pair in manifest.roots.items() for text in pair):
            raise TypeError("roots")
    except TypeError:
        raise SeenitError(damaged) from None
    return manifest


def write_manifest(store: Store, manifest: Manifest) -> None:
    store.write_blob(BLOB, json.dumps(asdict(manifest), indent=2).encode())


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
            raise SeenitError(f"the index speaks of a folder that it does not name ({key!r}); make it anew")
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
