"""Pixels to vectors: preprocessing, backbone and descriptor in their order, the same for photos and for queries."""

from collections.abc import Sequence

import numpy as np

from . import descriptor
from .backbone import Backbone
from .descriptor import Fit, Pooled, Recipe
from .errors import SeenitError
from .manifest import Manifest
from .preprocess import MIDDLE, preprocess
from .store import Store

FIT_BLOB = "descriptor.safetensors"
QUERY_BATCH = 8
DEFAULT_RECIPE = Recipe()


class Embedder:
    """A backbone with the recipe that makes vectors of its features; the fit is handed in, for it belongs to an index.

    resolution  pixels; a picture is seen at about resolution x resolution pixels in its own aspect
    """

    def __init__(self, backbone: Backbone, resolution: int, recipe: Recipe = DEFAULT_RECIPE) -> None:
        self.backbone = backbone
        self.resolution = resolution
        self.recipe = recipe
        self.layers = recipe.layers_of(backbone.depth)

    def pooled(self, pixels: Sequence[np.ndarray]) -> Pooled:
        """What the descriptor needs of pictures of one shape, (rows * P, cols * P, 3) uint8 each."""
        features = self.backbone.intermediate(np.stack(pixels), self.layers)
        return descriptor.pool(features, self.recipe, self.backbone.depth)

    def fit(self, sample: Sequence[Pooled]) -> Fit:
        return descriptor.fit(sample, self.recipe, self.backbone.prior)

    def describe(self, pictures: Sequence[np.ndarray], fit: Fit) -> list[tuple[np.ndarray, np.ndarray]]:
        """Global vector (G,) and patch tokens (K, T) of each picture, (H, W, 3) uint8 of any size, in their order."""
        seen = [preprocess(picture, "aspect", self.resolution, self.backbone.patch_size) for picture in pictures]
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for n, pixels in enumerate(seen):
            by_shape.setdefault(pixels.shape, []).append(n)
        described: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for numbers in by_shape.values():
            for start in range(0, len(numbers), QUERY_BATCH):
                batch = numbers[start : start + QUERY_BATCH]
                vectors, tokens = descriptor.apply(self.pooled([seen[n] for n in batch]), fit)
                described |= {n: (vectors[at], tokens[at]) for at, n in enumerate(batch)}
        return [described[n] for n in range(len(pictures))]

    def describe_twice(self, pictures: Sequence[np.ndarray], fit: Fit) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """`describe` for queries: each picture as a whole, and its middle.

        Who takes a photo to ask about a thing holds the camera at it, so the middle says more of the thing and the
        whole more of the place. tests/benchmarks/descriptor_ablation.py shows what that is worth.
        """
        views = self.describe([*pictures, *(middle(picture) for picture in pictures)], fit)
        return [list(both) for both in zip(views[: len(pictures)], views[len(pictures) :], strict=True)]


def middle(picture: np.ndarray) -> np.ndarray:
    """The middle MIDDLE of each side of (H, W, 3) pixels."""
    height, width = picture.shape[:2]
    top, left = round(height * (1 - MIDDLE) / 2), round(width * (1 - MIDDLE) / 2)
    return picture[top : max(height - top, top + 1), left : max(width - left, left + 1)]


def check_backbone(manifest: Manifest, backbone: Backbone, location: object) -> None:
    """SeenitError unless this backbone made the index."""
    if backbone.hash != manifest.backbone_hash:
        raise SeenitError(
            f"the index at {location} was made by backbone {manifest.backbone} ({manifest.backbone_hash[:8]}), this is"
            f" {backbone.name} ({backbone.hash[:8]}); use the former, or make another index with --index"
        )


def read_fit(store: Store, manifest: Manifest, recipe: Recipe) -> Fit:
    """The statistics that made the index's vectors; SeenitError where they are missing, damaged or another's."""
    data = store.read_blob(FIT_BLOB)
    why = ""
    if data is None:
        why = "its descriptor's statistics are missing"
    elif manifest.recipe != recipe.version:
        why = "another version's descriptor made it"
    else:
        fit = descriptor.load_fit(data)
        if fit.id == manifest.fit and fit.recipe == recipe:
            return fit
        why = "its descriptor's statistics are not the ones it names"
    raise SeenitError(f"the index at {store.location} cannot be used: {why}; remove it and make it anew")
