"""From pooled features to the records that a store keeps."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..descriptor.patch_codec import PatchTokens, pack_patches
from ..descriptor.whitening import PooledFeatures, Whitening, apply
from ..images.jobs import Decoded
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
    vectors, tokens = apply(pooled, whitening)
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


def with_what_was_said(store: Store, records: Sequence[Record]) -> list[Record]:
    """Records with the tags and attributes that the store has of them, which writing them anew must not lose."""
    ids = [record.id for record in records]
    tags, attributes = store.tags_of(ids), store.attributes_of(ids)
    return [
        replace(record, tags=tags.get(record.id, ()), attributes=attributes.get(record.id, {})) for record in records
    ]
