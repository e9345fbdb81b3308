"""All of how a query is read, cropped and described, the same for one query, for many, and for files of a batch."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from indexer.descriptor.features import WHOLE, CropFeatures
from indexer.errors import ImageError, SeenitError
from indexer.images.decode import decode_file
from indexer.images.jobs import Decoded, Job, Outcome
from indexer.images.pool import DecodePool
from indexer.images.preprocess import detail_px, preprocess

from .crops import MIDDLE, QueryCrop, query_crops
from .feature_cache import FeatureCache, FeatureKey, IdentifiedImage
from .plain import plain_patches
from .query import (
    EncodedQuery,
    MultiQuery,
    Query,
    QueryImage,
    QuerySource,
    Region,
    box_in_pixels,
    combined,
    unit_vector,
)
from .turned import turned_crops

if TYPE_CHECKING:
    from indexer.descriptor.embedder import Embedder
    from indexer.descriptor.whitening import Whitening


class QueryEncoder:
    """Turns queries into crops and their features.

    ready       gives the embedder and the whitening of the day; asked only where a query has pixels, since it may load
                a backbone
    resolution  pixels, as the embedder's
    dim         length of a vector
    kept        features of `IdentifiedImage`s; default: a cache of its own

    An image is seen as a whole and in the crops of `query_crops`; a region as it is, and a vector, too.
    """

    def __init__(
        self,
        ready: "Callable[[], tuple[Embedder, Whitening]]",
        resolution: int,
        dim: int,
        kept: FeatureCache | None = None,
    ) -> None:
        self._ready = ready
        self._resolution = resolution
        self._dim = dim
        self._kept = FeatureCache() if kept is None else kept

    def encode(
        self,
        queries: Sequence[Query],
        regions: Sequence[Region | None] | None = None,
        *,
        include_self: bool = False,
    ) -> list[EncodedQuery]:
        """Each query with the features of its crops; the network sees all of them in batches.

        regions       of each query the part that counts, or None; its likes and dislikes are taken as wholes
        include_self  the query's own files may be among the answers
        Raises ImageError for a file that cannot be read, SeenitError for a vector of another length.
        """
        regions = regions or [None] * len(queries)
        images: list[tuple[QueryImage, Region | None]] = []
        for query, region in zip(queries, regions, strict=True):
            if (several := as_multi(query)) is not None:
                images += [(image, region) for image in several.images]
                images += [(image, None) for image in (*several.likes, *several.dislikes)]
        of_images = iter(self._features(images))
        encoded = []
        for query in queries:
            several = as_multi(query)
            if several is None:
                assert isinstance(query, EncodedQuery)
                encoded.append(query)
                continue
            seen, *further = (
                [next(of_images) for _ in some] for some in (several.images, several.likes, several.dislikes)
            )
            wanted, likes, dislikes = ([one.crops for one in some] for some in (seen, *further))
            own = [str(one) for one in (*several.images, *several.likes) if isinstance(one, (str, Path))]
            own += several.exclude_paths
            exclude_paths = () if include_self else tuple(map(os.path.abspath, own))
            sources = tuple(one.source for one in seen if one.source is not None)
            encoded.append(combined(wanted, likes, dislikes, exclude_paths, sources))
        return encoded

    def turned(self, queries: Sequence[EncodedQuery]) -> list[EncodedQuery]:
        """Each query by its quarter turned crops alone, see `turned_crops`; the network sees all of them in batches.

        A query without `sources` has no views then.
        """
        of_sources = iter(
            self._features([(source, None) for query in queries for source in query.sources], turned=True)
        )
        return [query.seen_by([view for _ in query.sources for view in next(of_sources).crops]) for query in queries]

    def decode_files(self, paths: Sequence[str], pool: DecodePool, *, include_self: bool = False) -> "FileQueries":
        """Image files decoded in the processes of `query_pool`, to be encoded as often as is needed."""
        outcomes = {outcome.path: outcome for outcome in pool.run(Job(path) for path in dict.fromkeys(paths))}
        pixels = {path: found.pixels for path, found in outcomes.items() if isinstance(found, Decoded)}
        unread = {path: why_unread(found) for path, found in outcomes.items() if path not in pixels}
        return FileQueries(self, pixels, unread, include_self)

    def query_pool(self) -> DecodePool:
        """Processes that decode whole query images as `read_query` does."""
        return DecodePool(resolution=full_size_px(self._resolution), patch_size=1)

    def pixels(self, image: QueryImage) -> np.ndarray:
        """A whole query image, (H, W, 3) uint8, at the size from which it is cropped."""
        return read_query(image, None, self._resolution).pixels

    def _features(
        self, images: Sequence[tuple[QueryImage, Region | None]], *, turned: bool = False
    ) -> "list[_ImageFeatures]":
        """The features of every crop of each image; what is known is not computed, nor is anything twice.

        turned  of the quarter turned crops in place of the upright ones
        """
        found: dict[int | FeatureKey, _ImageFeatures] = {}  # an identified image by its key, others by number
        wanted: dict[int | FeatureKey, tuple[QueryImage, Region | None]] = {}
        keys: list[int | FeatureKey] = []
        for n, (image, region) in enumerate(images):
            key = self._key(image, region, turned) if isinstance(image, IdentifiedImage) else n
            keys.append(key)
            if isinstance(key, FeatureKey) and (kept := self._kept.get(key)) is not None:
                assert isinstance(image, IdentifiedImage)
                found[key] = _ImageFeatures(kept.crops, image)
            elif key not in wanted:
                wanted[key] = image, region
        computed = self._computed([(_decoded(image), region) for image, region in wanted.values()], turned)
        for (key, (image, _)), features in zip(wanted.items(), computed, strict=True):
            found[key] = features
            if isinstance(key, FeatureKey) and isinstance(image, IdentifiedImage):
                found[key] = replace(features, source=image)
                self._kept.put(key, features.crops, image.size)
        return [found[key] for key in keys]

    def _key(self, image: IdentifiedImage, region: Region | None, turned: bool) -> FeatureKey:
        if region is not None:
            raise SeenitError("an identified image names its own region; leave the other one out")
        return FeatureKey(image.id, image.region, self._ready()[1].id, turned)

    def _computed(self, images: Sequence[tuple[QueryImage, Region | None]], turned: bool) -> "list[_ImageFeatures]":
        """The features of images; a vector has a view without patches, and no turned one."""
        found: dict[int, _ImageFeatures] = {}
        sources: dict[int, QueryCrop] = {}
        for n, (image, region) in enumerate(images):
            if isinstance(image, np.ndarray) and image.ndim == 1:
                found[n] = _ImageFeatures((CropFeatures(unit_vector(image), np.empty((0, 0), np.float32), (0, 0)),))
            else:
                sources[n] = read_query(image, region, self._resolution)
        cut = turned_crops if turned else upright_crops
        described = self._described([cut(source) for source in sources.values()])
        for (n, source), crops in zip(sources.items(), described, strict=True):
            found[n] = _ImageFeatures(tuple(crops), source)
        if wrong := {len(view.vector) for one in found.values() for view in one.crops} - {self._dim}:
            raise SeenitError(
                f"a query vector has length {min(wrong)}, the index's have {self._dim}; take those of Searcher.embed"
            )
        return [found[n] for n in range(len(images))]

    def _described(self, crops: Sequence[Sequence[QueryCrop]]) -> list[list[CropFeatures]]:
        """The features of the crops of several images, all in the same batches."""
        if not crops:
            return []
        embedder, whitening = self._ready()
        patch_size = embedder.backbone.patch_size
        flat = [crop for of_image in crops for crop in of_image]
        seen = [preprocess(crop.pixels, "aspect", embedder.resolution, patch_size) for crop in flat]
        views = (
            replace(view, tokens=_without_plain(view.tokens, pixels, patch_size), frame=crop.frame, turn=crop.turn)
            for crop, pixels, view in zip(flat, seen, embedder.describe(seen, whitening), strict=True)
        )
        return [[next(views) for _ in of_image] for of_image in crops]


def _without_plain(tokens: np.ndarray, pixels: np.ndarray, patch_size: int) -> np.ndarray:
    """Tokens (N, T) of an image, those of plain patches 0, so that they are like nothing."""
    return np.where(plain_patches(pixels, patch_size)[:, None], np.float32(0), tokens)


@dataclass(frozen=True, eq=False)
class _ImageFeatures:
    """The features of an image's crops, and what further crops can be cut of; a vector has none."""

    crops: tuple[CropFeatures, ...]
    source: QuerySource | None = None


@dataclass(frozen=True, eq=False)
class FileQueries:
    """Query files that were decoded.

    pixels  by absolute path, (H, W, 3) uint8
    unread  why the others could not be
    """

    encoder: QueryEncoder
    pixels: Mapping[str, np.ndarray]
    unread: Mapping[str, ImageError]
    include_self: bool

    def encode(self) -> list[EncodedQuery]:
        """One query for each of `pixels`, in their order, as `QueryEncoder.encode` makes it."""
        encoded = self.encoder.encode([QueryCrop(pixels, WHOLE) for pixels in self.pixels.values()])
        return [
            replace(query, exclude_paths=() if self.include_self else (path,))
            for path, query in zip(self.pixels, encoded, strict=True)
        ]


def as_multi(query: Query) -> MultiQuery | None:
    """A query as several images; None for one that is encoded."""
    if isinstance(query, EncodedQuery):
        return None
    return query if isinstance(query, MultiQuery) else MultiQuery((query,))


def full_size_px(resolution: int) -> int:
    """How large a whole query image is read: its middle keeps as many pixels as the backbone sees."""
    return round(resolution / MIDDLE)


def upright_crops(source: QueryCrop) -> list[QueryCrop]:
    """What is seen of a query image at first: the crops of a whole one, a region as it is."""
    return query_crops(source.pixels) if source.frame is WHOLE else [source]


def read_query(query: QueryImage, region: Region | None, resolution: int) -> QueryCrop:
    """An image, or the region of it, with enough pixels for every crop at `resolution`; a crop is returned as it is.

    Raises ImageError for a file that cannot be read, SeenitError for a region that lies outside.
    """
    query = _decoded(query)
    if isinstance(query, QueryCrop):
        if region is not None:
            raise SeenitError("a part of an image that was cut out already has no region; cut out that one")
        return query
    if isinstance(query, (str, Path)):
        if region is not None:
            size = decode_file(query, target_px=64)
            box = box_in_pixels(region, size.width, size.height)
            pixels = decode_file(query, target_px=detail_px(resolution), region=box).pixels
            return QueryCrop(pixels, frame_of(box, size.width, size.height))
        pixels = decode_file(query, target_px=detail_px(full_size_px(resolution))).pixels
    elif isinstance(query, Image.Image):
        pixels = np.asarray(query.convert("RGB"))
    elif isinstance(query, np.ndarray) and query.dtype == np.uint8 and query.ndim in (2, 3):
        pixels = np.repeat(query[..., None], 3, -1) if query.ndim == 2 else query[..., :3]
    else:
        raise SeenitError("a query is a path, a PIL image, a uint8 array (H, W, 3) or a vector (G,)")
    if region is None:
        return QueryCrop(preprocess(pixels, "aspect", full_size_px(resolution), patch_size=1), WHOLE)
    height, width = pixels.shape[:2]
    box = box_in_pixels(region, width, height)
    left, top, across, down = box
    return QueryCrop(pixels[top : top + down, left : left + across], frame_of(box, width, height))


def _decoded(image: QueryImage) -> QueryImage:
    return image.read() if isinstance(image, IdentifiedImage) else image


def frame_of(box: tuple[int, int, int, int], width: int, height: int) -> np.ndarray:
    """The frame (2, 3), as in `QueryCrop`, of a box in pixels."""
    x, y, w, h = box
    return np.array([[w / width, 0, x / width], [0, h / height, y / height]], np.float32)


def why_unread(outcome: Outcome) -> ImageError:
    """Why a query file gave no image."""
    reason = getattr(outcome, "reason", None)
    if reason is None:
        reason = {"NotAnImage": "not an image of a format that is read here", "Vanished": "it is not there"}.get(
            type(outcome).__name__, "it changed while it was read"
        )
    return ImageError(outcome.path, reason)
