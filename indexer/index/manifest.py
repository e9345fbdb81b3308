"""An index knows what made it: backbone, preprocessing, descriptor, and the folders that it mirrors.

The manifest is one JSON blob in the store. Folders that contain the index are written relative to it, so that a photo
folder with its index inside can be moved or mounted elsewhere; all others are absolute.
"""

import json
from dataclasses import asdict, dataclass, field, fields, replace

from ..descriptor.config import DescriptorConfig
from ..errors import SeenitError
from ..printable import pasted
from ..sources.open import SourceSpec
from ..store.protocol import Store
from ..version import VERSION

FORMAT = 2  # raised when an older seenit could not read the index rightly; 1 had the descriptor as opaque text
MANIFEST_BLOB = "manifest.json"
_TYPES = {
    "resolution": int,
    "fitted_on": int,
    "format": int,
    "roots": dict,
    "sources": dict,
    "descriptor": dict,
    "exclude": tuple,
    "fixed": bool,
}


@dataclass(frozen=True)
class Manifest:
    backbone: str  # name or path, as Backbone.load takes it
    backbone_hash: str  # hex, 128 bits, of the weights
    resolution: int  # an image is seen at about resolution x resolution pixels, in its own aspect
    descriptor: dict[str, object]  # the descriptor's settings by name, see `DescriptorConfig`
    whitening_id: str  # id of the fitted statistics that make today's vectors
    fitted_on: int  # images that the statistics saw
    roots: dict[str, str] = field(default_factory=dict)  # key -> folder, relative to the index or absolute
    exclude: tuple[str, ...] = ()  # patterns of what is left out, see `find_files`
    sources: dict[str, dict[str, object]] = field(default_factory=dict)  # key -> a source that is no folder
    fixed: bool = False  # whether the statistics were fitted on a random sample before all else, and stay
    precision: str = "auto"  # what the backbone's products were computed in; `auto`: the index is older than that
    ranges: str = ""  # id of the 8-bit ranges of its own images, see `ByteRanges`; empty: those of drawn images
    seenit: str = VERSION  # the version that wrote it
    format: int = FORMAT

    def without_roots(self, keys: set[str]) -> "Manifest":
        return replace(self, roots={key: folder for key, folder in self.roots.items() if key not in keys})

    @property
    def source_specs(self) -> dict[str, SourceSpec]:
        return {key: SourceSpec.from_json(values) for key, values in self.sources.items()}


def read_manifest(store: Store) -> Manifest | None:
    """The index's manifest, None where nothing was indexed yet; see `parse_manifest`."""
    data = store.read_blob(MANIFEST_BLOB)
    return None if data is None else parse_manifest(data, store.location)


def parse_manifest(data: bytes, location: object) -> Manifest:
    """Raises SeenitError where the manifest is damaged or of another format.

    A field that is missing has its default and one that is not known is left out: what cannot be read rightly so raises
    FORMAT.
    """
    damaged = f"the manifest of {location} is damaged; mend it with: seenit check --repair --index {pasted(location)}"
    try:
        values = json.loads(data)
        made_by = int(values["format"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise SeenitError(damaged) from None
    if made_by > FORMAT:
        raise SeenitError(f"{location} was made by a newer seenit (format {made_by}); update seenit")
    if made_by < FORMAT:
        raise SeenitError(f"{location} was made by the first version of seenit; move it away and index again")
    known = {one.name: one for one in fields(Manifest)}
    try:
        manifest = Manifest(**{name: value for name, value in values.items() if name in known})
        manifest = replace(manifest, exclude=tuple(manifest.exclude))
        for one in known.values():
            if type(getattr(manifest, one.name)) is not _TYPES.get(one.name, str):
                raise TypeError(one.name)
        texts = [*manifest.exclude, *(text for pair in manifest.roots.items() for text in pair)]
        if not all(isinstance(text, str) for text in texts) or set(manifest.sources) & set(manifest.roots):
            raise TypeError("roots, sources or exclude")
        for values in manifest.sources.values():
            SourceSpec.from_json(values)
    except (TypeError, ValueError, AttributeError):
        raise SeenitError(damaged) from None
    return manifest


def config_of(manifest: Manifest, location: object) -> DescriptorConfig:
    """The descriptor config that made an index; SeenitError where it has settings that this seenit does not know."""
    try:
        return DescriptorConfig.from_settings(manifest.descriptor)
    except ValueError as error:
        raise SeenitError(
            f"the index at {location} cannot be used: its descriptor has an {error}, made by seenit {manifest.seenit};"
            " update seenit, or make another index"
        ) from None


def write_manifest(store: Store, manifest: Manifest) -> None:
    store.write_blob(MANIFEST_BLOB, json.dumps(asdict(manifest), indent=2).encode())
