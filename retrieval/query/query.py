"""What one can ask with: an image, a part of one, several of one thing, or what was looked at before."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image

from indexer.descriptor.crops import QueryCrop
from indexer.descriptor.features import WHOLE
from indexer.errors import SeenitError
from indexer.images.decode import decode_file
from indexer.images.preprocess import MIDDLE, detail_px, preprocess

if TYPE_CHECKING:
    from indexer.descriptor.features import CropFeatures

QueryImage: TypeAlias = str | Path | Image.Image | np.ndarray
Region: TypeAlias = tuple[float, float, float, float]

LIKE, DISLIKE = 0.75, 0.25  # how far a query moves, Rocchio's beta and gamma


@dataclass(frozen=True)
class MultiQuery:
    """Several images as one query.

    images  of the thing, each a view of it
    likes     results that were right: the query moves towards them
    dislikes  results that were wrong: it moves away from them, and what they show counts against a candidate
    """

    images: tuple[QueryImage, ...]
    likes: tuple[QueryImage, ...] = ()
    dislikes: tuple[QueryImage, ...] = ()


@dataclass(frozen=True, eq=False)
class EncodedQuery:
    """A query whose images have been looked at, as `Searcher.prepare` does it; may be searched with again and again.

    views   of the images
    unlike  of disliked images
    exclude_paths  paths of the query's own files, which are no answers
    """

    views: "tuple[CropFeatures, ...]"
    unlike: "tuple[CropFeatures, ...]" = ()
    exclude_paths: tuple[str, ...] = ()


Query: TypeAlias = QueryImage | MultiQuery | EncodedQuery


def read_query(query: QueryImage, region: Region | None, resolution: int) -> QueryCrop:
    """An image, or the region of it, with enough pixels for every look at `resolution`.

    Raises ImageError for a file that cannot be read, SeenitError for a region that lies outside.
    """
    whole = round(resolution / MIDDLE)  # leaves the middle as many pixels as the backbone sees
    if isinstance(query, (str, Path)):
        if region is not None:
            size = decode_file(query, target_px=64)
            box = box_in_pixels(region, size.width, size.height)
            pixels = decode_file(query, target_px=detail_px(resolution), region=box).pixels
            return QueryCrop(pixels, _frame_of(box, size.width, size.height))
        pixels = decode_file(query, target_px=detail_px(whole)).pixels
    elif isinstance(query, Image.Image):
        pixels = np.asarray(query.convert("RGB"))
    elif isinstance(query, np.ndarray) and query.dtype == np.uint8 and query.ndim in (2, 3):
        pixels = np.repeat(query[..., None], 3, -1) if query.ndim == 2 else query[..., :3]
    else:
        raise SeenitError("a query is a path, a PIL image, a uint8 array (H, W, 3) or a vector (G,)")
    if region is None:
        return QueryCrop(preprocess(pixels, "aspect", whole, patch_size=1), WHOLE)
    height, width = pixels.shape[:2]
    return QueryCrop(cut(pixels, region), _frame_of(box_in_pixels(region, width, height), width, height))


def as_together(query: Query) -> MultiQuery | None:
    """A query as several images; None for one that is prepared."""
    if isinstance(query, EncodedQuery):
        return None
    return query if isinstance(query, MultiQuery) else MultiQuery((query,))


def combined(
    wanted: "Sequence[Sequence[CropFeatures]]",
    likes: "Sequence[Sequence[CropFeatures]]",
    unlike: "Sequence[Sequence[CropFeatures]]",
    exclude_paths: tuple[str, ...],
) -> EncodedQuery:
    """All views as one query, moved towards what is liked and away from what is not (Rocchio, 1971)."""
    shift = np.float32(0)
    if likes:
        shift = shift + LIKE * np.mean([views[0].vector for views in likes], axis=0)
    if unlike:
        shift = shift - DISLIKE * np.mean([views[0].vector for views in unlike], axis=0)
    towards = (view for of_image in (*wanted, *likes) for view in of_image)
    views = tuple(replace(view, vector=unit_vector(view.vector + shift)) for view in towards)
    return EncodedQuery(views, tuple(view for of_image in unlike for view in of_image), exclude_paths)


def cut(pixels: np.ndarray, region: Region) -> np.ndarray:
    """The part of an image (H, W, 3) in a box (x, y, width, height): pixels, or fractions if all are <= 1."""
    left, top, width, height = box_in_pixels(region, pixels.shape[1], pixels.shape[0])
    return pixels[top : top + height, left : left + width]


def box_in_pixels(region: Region, width: int, height: int) -> tuple[int, int, int, int]:
    """A region as whole pixels (x, y, width, height) of an image of that size, clipped to it."""
    x, y, w, h = region
    if max(region) <= 1:
        x, y, w, h = x * width, y * height, w * width, h * height
    left, top = max(round(x), 0), max(round(y), 0)
    right, bottom = min(round(x + w), width), min(round(y + h), height)
    if right - left < 2 or bottom - top < 2:
        raise SeenitError(
            f"the region {','.join(f'{value:g}' for value in region)} leaves nothing of an image of {width}x{height}"
            " pixels; give X,Y,W,H inside it"
        )
    return left, top, right - left, bottom - top


def _frame_of(box: tuple[int, int, int, int], width: int, height: int) -> np.ndarray:
    """The frame (2, 3), as in `QueryCrop`, of a box in pixels."""
    x, y, w, h = box
    return np.array([[w / width, 0, x / width], [0, h / height, y / height]], np.float32)


def unit_vector(vector: np.ndarray) -> np.ndarray:
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm == 0:
        raise SeenitError("a query vector must be finite and not zero")
    return (vector / norm).astype(np.float32)
