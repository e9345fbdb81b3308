"""An index knows what made it: backbone, preprocessing, descriptor, and the folders that it mirrors.

The manifest is one JSON blob in the store. Folders that contain the index are written relative to it, so that a photo
folder with its index inside can be moved or mounted elsewhere; all others are absolute.
"""

import json
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from .errors import SeenitError
from .store import Store, is_url

FORMAT = 1  # raised when an older seenit could not read the index rightly
BLOB = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    backbone: str  # name or path, as Backbone.load takes it
    backbone_hash: str  # hex, 128 bits, of the weights
    resolution: int  # a picture is seen at about resolution x resolution pixels, in its own aspect
    recipe: str  # the descriptor's recipe, as text
    fit: str  # id of the fitted statistics that make today's vectors
    fitted_on: int  # pictures that the statistics saw
    roots: dict[str, str] = field(default_factory=dict)  # key -> folder, relative to the index or absolute
    format: int = FORMAT

    def without_roots(self, keys: set[str]) -> "Manifest":
        return replace(self, roots={key: folder for key, folder in self.roots.items() if key not in keys})


def read_manifest(store: Store) -> Manifest | None:
    """The index's manifest, None where nothing was indexed yet.

    Raises SeenitError where the manifest is damaged or of a newer format.
    """
    data = store.read_blob(BLOB)
    if data is None:
        return None
    try:
        values = json.loads(data)
        made_by = int(values["format"])
    except (ValueError, TypeError, KeyError):
        raise SeenitError(f"the manifest of {store.location} is damaged; remove the index and make it anew") from None
    if made_by > FORMAT:
        raise SeenitError(f"{store.location} was made by a newer seenit (format {made_by}); update seenit")
    try:
        manifest = Manifest(**values)
        for known in fields(Manifest):
            expected: type = dict if known.name == "roots" else int if known.type in (int, "int") else str
            if type(getattr(manifest, known.name)) is not expected:
                raise TypeError(known.name)
        if not all(isinstance(text, str) for pair in manifest.roots.items() for text in pair):
            raise TypeError("roots")
    except TypeError:
        raise SeenitError(f"the manifest of {store.location} is damaged; remove the index and make it anew") from None
    return manifest


def write_manifest(store: Store, manifest: Manifest) -> None:
    store.write_blob(BLOB, json.dumps(asdict(manifest), indent=2).encode())


class Roots:
    """Translates between absolute paths and the keys of an index, `ROOT/sub/name.jpg`."""

    def __init__(self, location: str, roots: dict[str, str]) -> None:
        self._base = None if is_url(location) else os.path.abspath(location)
        self.folders = {key: self._absolute(folder) for key, folder in roots.items()}

    def path(self, key: str) -> str:
        """The absolute path of a file or folder key."""
        root, _, rest = key.partition("/")
        folder = self.folders.get(root)
        if folder is None:
            raise SeenitError(f"the index speaks of a folder that it does not name ({key!r}); make it anew")
        return os.path.join(folder, *rest.split("/")) if rest else folder

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
