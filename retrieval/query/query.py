"""What one can ask with: an image, a part of one, several of one thing, or what was encoded before."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image

from indexer.errors import SeenitError

from .crops import QueryCrop
from .feature_cache import IdentifiedImage

if TYPE_CHECKING:
    from indexer.descriptor.features import CropFeatures

QueryImage: TypeAlias = str | Path | Image.Image | np.ndarray | QueryCrop | IdentifiedImage
Region: TypeAlias = tuple[float, float, float, float]

MIN_REGION_PX = 14  # a patch of the backbone at full resolution; less would be enlarged out of almost nothing
LIKE, DISLIKE = 0.75, 0.25  # how far a query moves, Rocchio's beta and gamma


@dataclass(frozen=True)
class MultiQuery:
    """Several images as one query.

    images    of the thing, each a view of it
    likes     results that were right: the query moves towards them
    dislikes  results that were wrong: it moves away from them, and what they show counts against a candidate
    exclude_paths  files that are no answers, beside those that the images are read from
    """

    images: tuple[QueryImage, ...]
    likes: tuple[QueryImage, ...] = ()
    dislikes: tuple[QueryImage, ...] = ()
    exclude_paths: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class EncodedQuery:
    """A query as `QueryEncoder` encodes it; may be searched with again and again.

    views          the features of the images' crops
    unlike         those of disliked images
    exclude_paths  paths of the query's own files, which are no answers
    sources        the images, or the regions of them, for `QueryEncoder.turned`; a vector is none
    shift          (G,) float32, by which likes and dislikes have moved the views' vectors; None without any
    """

    views: "tuple[CropFeatures, ...]"
    unlike: "tuple[CropFeatures, ...]" = ()
    exclude_paths: tuple[str, ...] = ()
    sources: "tuple[QuerySource, ...]" = ()
    shift: np.ndarray | None = None

    def seen_by(self, views: "Sequence[CropFeatures]") -> "EncodedQuery":
        """The same query by other crops of its images, moved as its own were."""
        return replace(self, views=_moved(views, self.shift))


Query: TypeAlias = QueryImage | MultiQuery | EncodedQuery
QuerySource: TypeAlias = QueryCrop | IdentifiedImage


def combined(
    wanted: "Sequence[Sequence[CropFeatures]]",
    likes: "Sequence[Sequence[CropFeatures]]",
    unlike: "Sequence[Sequence[CropFeatures]]",
    exclude_paths: tuple[str, ...],
    sources: tuple[QuerySource, ...] = (),
) -> EncodedQuery:
    """All views as one query, moved towards what is liked and away from what is not (Rocchio, 1971)."""
    shift = None
    if likes or unlike:
        shift = np.zeros_like((*likes, *unlike)[0][0].vector)
    if likes:
        shift = shift + LIKE * np.mean([views[0].vector for views in likes], axis=0)
    if unlike:
        shift = shift - DISLIKE * np.mean([views[0].vector for views in unlike], axis=0)
    towards = [view for of_image in (*wanted, *likes) for view in of_image]
    away = tuple(view for of_image in unlike for view in of_image)
    return EncodedQuery(_moved(towards, shift), away, exclude_paths, sources, shift)


def box_in_pixels(region: Region, width: int, height: int) -> tuple[int, int, int, int]:
    """A region as whole pixels (x, y, width, height) of an image of that size, clipped to it."""
    x, y, w, h = region
    if max(region) <= 1:
        x, y, w, h = x * width, y * height, w * width, h * height
    left, top = max(round(x), 0), max(round(y), 0)
    right, bottom = min(round(x + w), width), min(round(y + h), height)
    asked = ",".join(f"{value:g}" for value in region)
    shown = ((right - left, width), (bottom - top, height))
    if all(side > 0 for side, _ in shown) and any(side < min(MIN_REGION_PX, whole) for side, whole in shown):
        raise SeenitError(
            f"the region {asked} is {right - left} x {bottom - top} pixels, which is too little to tell things apart;"
            f" give one of at least {MIN_REGION_PX} x {MIN_REGION_PX}"
        )
    if right <= left or bottom <= top:
        raise SeenitError(
            f"the region {asked} leaves nothing of an image of {width}x{height} pixels; give X,Y,W,H inside it"
        )
    return left, top, right - left, bottom - top


def _moved(views: "Sequence[CropFeatures]", shift: np.ndarray | None) -> "tuple[CropFeatures, ...]":
    moved = 0 if shift is None else shift
    return tuple(replace(view, vector=unit_vector(view.vector + moved)) for view in views)


def unit_vector(vector: np.ndarray) -> np.ndarray:
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm == 0:
        raise SeenitError("a query vector must be finite and not zero")
    return (vector / norm).astype(np.float32)
