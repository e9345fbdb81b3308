"""What an index was made with: its backbone, its descriptor and the statistics, each checked."""

from ..backbone.backbone import Backbone
from ..backbone.byte_ranges import ByteRanges
from ..descriptor.config import DescriptorConfig
from ..descriptor.whitening import Whitening, load_whitening
from ..errors import SeenitError
from ..printable import pasted
from ..store.protocol import Store
from .manifest import Manifest

WHITENING_BLOB = "descriptor.safetensors"
RANGES_BLOB = "ranges.safetensors"


MEND = "mend it with: seenit check --repair --index {}"


def check_backbone(manifest: Manifest, backbone: Backbone, location: object) -> None:
    """SeenitError unless this backbone made the index."""
    if backbone.hash == manifest.backbone_hash:
        return
    made_by = f"the index at {location} was made by backbone {manifest.backbone} ({manifest.backbone_hash[:8]})"
    if backbone.name == manifest.backbone:  # the shipped one, after an update of seenit
        raise SeenitError(
            f"{made_by}, whose weights are others since then ({backbone.hash[:8]}); move the index aside and index"
            " again"
        )
    raise SeenitError(
        f"{made_by}, this is {backbone.name} ({backbone.hash[:8]}); use the former, or make another index with --index"
    )


def read_ranges(store: Store, manifest: Manifest) -> ByteRanges | None:
    """The 8-bit ranges of the index's own images, None where it has none; SeenitError where they cannot be had."""
    if not manifest.ranges:
        return None
    data, why = store.read_blob(RANGES_BLOB), "they are missing"
    if data is not None:
        try:
            ranges = ByteRanges.load(data)
            if ranges.id == manifest.ranges:
                return ranges
            why = "they are not the ones it names"
        except SeenitError as error:
            why = str(error)
    raise SeenitError(
        f"the index at {store.location} cannot be used in 8 bits: its ranges are of no use ({why}); search it with"
        " --precision bfloat16, and to add images make another index"
    )


def read_whitening(store: Store, manifest: Manifest, config: DescriptorConfig) -> Whitening:
    """The statistics that made the index's vectors; SeenitError where they are missing, damaged or another's."""
    data = store.read_blob(WHITENING_BLOB)
    why = ""
    if data is None:
        why = "its descriptor's statistics are missing"
    else:
        whitening = load_whitening(data)
        if whitening.id == manifest.whitening_id and whitening.config == config:
            return whitening
        why = "its descriptor's statistics are not the ones it names"
    raise SeenitError(f"the index at {store.location} cannot be used: {why}; {MEND.format(pasted(store.location))}")
