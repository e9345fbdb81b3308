"""What a user names (folders, lists, tar shards, indexes) to images with vectors that may be compared.

An index brings its vectors along. Statistics whiten the vectors of each index in its own way, so the first index named
decides for all: another one made by the same backbone but with other statistics has its files embedded again.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from indexer.backbone.backbone import Backbone
from indexer.descriptor.embedder import Embedder
from indexer.descriptor.whitening import Whitening
from indexer.errors import SeenitError
from indexer.index.index import Index, is_index
from indexer.index.manifest import Manifest
from indexer.index.statistics import check_backbone
from indexer.messages import Say, say_nothing
from indexer.printable import pasted
from indexer.sources.open import spec_of
from indexer.sources.place import ImageRef, is_address

from ..data.sources import ImageSource, open_source
from .embed import Describer, Images, decoders_for, embed_pool, fit_describer
from .embeddings import BLOCK_ROWS, Embeddings, unit_rows
from .whole_files import read_array, write_array

RESOLUTION = 224


@dataclass(frozen=True, eq=False)
class IndexVectors:
    """An index that was read: where its images are and their vectors, before any choice among indexes."""

    location: str
    manifest: Manifest
    whitening: Whitening
    images: Images


@dataclass(frozen=True, eq=False)
class Inputs:
    """Every image that a run is about, with vectors of one kind."""

    pool: Images
    like: Images | None
    avoid: Images | None
    described_by: str
    whitening: Whitening


def read_inputs(
    pool: Sequence[str | Path],
    like: Sequence[str | Path],
    avoid: Sequence[str | Path],
    work: Path,
    *,
    backbone: str | Path | None = None,
    workers: int | None = None,
    progress: bool = False,
    say: Say = say_nothing,
) -> Inputs:
    """Find and embed all images; see `pipeline.curate` for what may be named.

    backbone  None: the one of the first index, or `auto` where there is none
    """
    roles = {"pool": pool, "like": like, "avoid": avoid}
    indexes = {
        str(one): _read_index(str(one), work / "indexes" / f"{role}_{number}", say)
        for role, given in roles.items()
        for number, one in enumerate(given)
        if _is_index(one)
    }
    first = next(iter(indexes.values()), None)
    for other in indexes.values():
        assert first is not None
        if other.manifest.backbone_hash != first.manifest.backbone_hash:
            raise SeenitError(
                f"the index at {other.location} was made by backbone {other.manifest.backbone}, the one at"
                f" {first.location} by {first.manifest.backbone}; rebuild one of them with the other's --backbone"
            )
    folders = {
        role: [one for one in given if not _usable(indexes.get(str(one)), first)] for role, given in roles.items()
    }
    sources = {role: _source(given, indexes, work, say) for role, given in folders.items() if given}
    parts: dict[str, list[Images]] = {
        role: [indexes[one].images for one in dict.fromkeys(map(str, given)) if _usable(indexes.get(one), first)]
        for role, given in roles.items()
    }
    described_by, whitening = ("", None) if first is None else (first.manifest.backbone, first.whitening)
    if sources or backbone is not None:
        embedder = _embedder(first, backbone, say)
        described_by = embedder.backbone.name
        with ExitStack() as cleanup:
            decoders = cache(lambda: cleanup.enter_context(decoders_for(embedder, workers)))
            if first is not None:
                describer = Describer(embedder, first.whitening)
            else:
                path = work / "descriptor.safetensors"
                describer = fit_describer(embedder, sources["pool"], path, decoders, progress=progress)
                whitening = describer.whitening
            for role, source in sources.items():
                parts[role].append(embed_pool(describer, source, work / role, decoders, progress=progress, say=say))
    assert whitening is not None, "without an index the pool is a source"
    return Inputs(
        pool=join(parts["pool"]),
        like=join(parts["like"]) if parts["like"] else None,
        avoid=join(parts["avoid"]) if parts["avoid"] else None,
        described_by=described_by,
        whitening=whitening,
    )


def join(parts: Sequence[Images]) -> Images:
    """Several as one; an image that is named twice counts once."""
    places = [place for part in parts for place in part.places]
    first = {place: number for number, place in reversed(list(enumerate(places)))}
    joined = Images(
        tuple(places),
        Embeddings(tuple(shard for part in parts for shard in part.embeddings.shards)),
        np.concatenate([part.pixels for part in parts]),
        tuple(broken for part in parts for broken in part.broken),
    )
    if len(first) == len(places):
        return joined
    kept = np.array(sorted(first.values()))
    return replace(
        joined,
        places=tuple(places[number] for number in kept),
        embeddings=Embeddings((joined.embeddings.rows(kept),)),
        pixels=joined.pixels[kept],
    )


def _is_index(given: str | Path) -> bool:
    """Whether an index or shards are named; addresses of lists, tables and tar files are sources of images."""
    spec = spec_of(given) if is_address(given) else None
    return (spec is None or spec.kind == "remote") and is_index(given)


def _usable(index: IndexVectors | None, first: IndexVectors | None) -> bool:
    """Whether an index, if it is one, has vectors like the first."""
    return index is not None and first is not None and index.manifest.whitening_id == first.manifest.whitening_id


def _source(given: Sequence[str | Path], indexes: dict[str, IndexVectors], work: Path, say: Say) -> ImageSource:
    places: dict[ImageRef, None] = {}
    for one in given:
        if str(one) in indexes:
            say(f"the index at {one} has statistics of its own; its images are embedded again")
            places |= dict.fromkeys(indexes[str(one)].images.places)
        else:
            places |= dict.fromkeys(open_source(one, exclude_dirs=[work]).places)
    return ImageSource(tuple(places))


def _embedder(first: IndexVectors | None, backbone: str | Path | None, say: Say) -> Embedder:
    spec = backbone if backbone is not None else first.manifest.backbone if first else "auto"
    loaded = Backbone.load(spec, say=say)
    if first is None:
        return Embedder(loaded, RESOLUTION)
    check_backbone(first.manifest, loaded, first.location)
    return Embedder(loaded, first.manifest.resolution, first.whitening.config)


def _read_index(location: str, folder: Path, say: Say) -> IndexVectors:
    """Copy the vectors of an index to shards in `folder`; the index is closed at once."""
    with Index.open(location) as index, index.store.snapshot():
        if not index.count:
            raise SeenitError(
                f"the index at {location} is empty; fill it with: seenit index FOLDER --index {pasted(location)}"
            )
        return IndexVectors(location, index.manifest, index.whitening, _copy_vectors(index, folder, say))


def _copy_vectors(index: Index, folder: Path, say: Say) -> Images:
    places: list[ImageRef] = []
    pixels: list[int] = []
    vectors: list[np.ndarray] = []
    shards: list[np.ndarray] = []
    num_bad = 0

    def flush() -> None:
        nonlocal num_bad
        rows, good = unit_rows(np.stack(vectors))
        path = folder / f"{len(shards):05d}.npy"
        write_array(path, rows[good])
        shards.append(read_array(path))
        for number in np.flatnonzero(~good)[::-1]:
            del places[len(places) - len(rows) + number], pixels[len(pixels) - len(rows) + number]
        num_bad += int((~good).sum())
        vectors.clear()

    for record in index.store.scroll(vectors=True):
        if record.whitening_id != index.manifest.whitening_id:
            raise SeenitError(
                f"images of the index at {index.location} await refitting; to finish: seenit index --index"
                f" {index.location}"
            )
        assert record.global_vector is not None
        places.append(ImageRef(index.roots.path(record.files[0].key)))
        pixels.append(record.metadata.width * record.metadata.height)
        vectors.append(record.global_vector)
        if len(vectors) == BLOCK_ROWS:
            flush()
    if vectors:
        flush()
    if num_bad:
        say(f"left out {num_bad:,} vectors of {index.location} that are zero or not finite")
    return Images(tuple(places), Embeddings(tuple(shards)), np.array(pixels, np.int64))
