"""From pooled features to the records that a store keeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..descriptor.patch_codec import PatchTokens, pack_patches
from ..descriptor.pooling import PooledFeatures
from ..descriptor.whitening import Whitening, apply_whitening
from ..images.jobs import Decoded
from ..store.attributes import Attributes
from ..store.protocol import Record, Store, StoredFile


def make_records(
    images: Sequence[Decoded],
    pooled: PooledFeatures,
    whitening: Whitening,
    files: Callable[[str], tuple[StoredFile, ...]],
) -> list[Record]:
    """Records of images of one shape, without what users said of them.

    pooled  of the images, in their order
    files   of a content id
    """
    vectors, tokens = apply_whitening(pooled, whitening)
    config = whitening.config
    colours = [None] * len(images) if pooled.colours is None else list(pooled.colours.numpy())
    return [
        Record(
            id=image.id,
            files=files(image.id),
            metadata=image.metadata,
            whitening_id=whitening.id,
            global_vector=vectors[n],
            patches=pack_patches(
                PatchTokens(tokens[n], pooled.positions[n].numpy(), image.grid, colours[n]),
                config.token_bits,
                pooled.parts[n].numpy() if config.part_bits else None,
            ),
        )
        for n, image in enumerate(images)
    ]


@dataclass(frozen=True)
class Said:
    """What users said of an image, which writing its record anew must not lose."""

    tags: tuple[str, ...]
    attributes: Attributes

    def put_on(self, record: Record) -> Record:
        return replace(record, tags=self.tags, attributes=self.attributes)


def what_was_said(store: Store, ids: Sequence[str]) -> dict[str, Said]:
    """By content id, of those that anything was said of."""
    tags, attributes = store.tags_of(ids), store.attributes_of(ids)
    return {
        id: Said(tags.get(id, ()), attributes.get(id, {})) for id in ids if tags.get(id, ()) or attributes.get(id, {})
    }


def with_what_was_said(store: Store, records: Sequence[Record]) -> list[Record]:
    """Records with the tags and attributes that the store has of them."""
    said = what_was_said(store, [record.id for record in records])
    return [said[record.id].put_on(record) if record.id in said else record for record in records]
