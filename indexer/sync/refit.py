"""Statistics fitted again as an index grows, from what is stored of its images: the network is not asked.

The pooled features of every image are kept beside its patches (`pack_patches`), so that a new whitening gives new
vectors. Tokens cannot be had back from their two bits a number; their statistics stay what they were. So the first
fits, of so few images that their tokens tell little, are done again from the files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from ..descriptor.patch_codec import unpack_parts
from ..descriptor.whitening import Whitening, save_whitening, vectors_of
from ..descriptor.whitening_fit import refit_whitening
from ..index.manifest import Manifest, write_manifest
from ..index.statistics import WHITENING_BLOB
from ..store.protocol import Record, Store

# Images from which the statistics of tokens hold for an index of any size. Without a prior, vectors fitted on all 600
# images, mAP with tokens fitted on 30, 100, all: covers .874 .885 .889, landmarks .842 .842 .828, paris .753 .755 .756
TOKENS_SETTLED = 100
MOST_REFITTED = 20_000  # images of an index that is refitted so, for all of them are read and written; not tuned
PAGE = 500  # records in memory at once, some 10 kB each; not tuned


def can_refit(whitening: Whitening) -> bool:
    """Whether an index with this whitening is refitted from what it stores."""
    return (
        whitening.config.part_bits > 0
        and whitening.kind_projection is not None
        and whitening.num_images >= TOKENS_SETTLED
    )


def refit_from_parts(
    store: Store, manifest: Manifest, whitening: Whitening, prior: Mapping[str, Tensor] | None, sample: int
) -> Manifest | None:
    """Fit again on up to `sample` records and make all vectors anew; the manifest then.

    None, with nothing written, where a record's features are missing. The order of ids is a random one, for they are
    made of hashes. A run that is cut short leaves records of the old whitening, which the next one embeds again.
    """
    assert can_refit(whitening)
    fitted_on = [_parts(page) for page in _pages(islice(store.scroll(vectors=True), sample))]
    if not fitted_on or any(parts is None for parts in fitted_on):
        return None
    made = refit_whitening(torch.cat([parts for parts in fitted_on if parts is not None]), whitening, prior)
    store.write_blob(WHITENING_BLOB, save_whitening(made))
    manifest = replace(manifest, whitening_id=made.id, fitted_on=made.num_images)
    write_manifest(store, manifest)
    ids = [listed.id for listed in store.list_files() if listed.whitening_id == whitening.id]
    for start in range(0, len(ids), PAGE):
        records = store.retrieve(ids[start : start + PAGE], vectors=True)
        parts = _parts(records)
        if parts is None:  # those of another form are embedded again by the next run
            continue
        vectors = vectors_of(parts, made)
        store.upsert(
            [
                replace(record, whitening_id=made.id, global_vector=vector)
                for record, vector in zip(records, vectors, strict=True)
            ]
        )
    return manifest


def _parts(records: list[Record]) -> Tensor | None:
    """(B, L, D) float32; None where one has none."""
    parts = unpack_parts([record.patches or b"" for record in records])
    return None if parts is None else torch.from_numpy(parts)


def _pages(records: Iterator[Record]) -> Iterator[list[Record]]:
    while page := list(islice(records, PAGE)):
        yield page
