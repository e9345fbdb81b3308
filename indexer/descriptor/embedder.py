"""Pixels to vectors: preprocessing, backbone and descriptor in their order, the same for photos and for queries."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..backbone.backbone import Backbone
from ..images.light import lighten
from ..images.preprocess import preprocess
from . import whitening_fit
from .config import DEFAULT_TOKENS, DESCRIPTOR_CONFIGS, DescriptorConfig
from .features import CropFeatures
from .mean_colours import mean_colours
from .patch_codec import PatchTokens, pack_patches
from .pooling import PooledFeatures, pool
from .whitening import Whitening, apply_whitening, kind_vectors

QUERY_BATCH = 8  # crops in one forward; not tuned


@dataclass(frozen=True, eq=False)
class Indexed:
    """An image with every patch, and those that an index keeps as it stores them."""

    view: CropFeatures
    packed: bytes


class Embedder:
    """A backbone and how vectors are made of its features; the whitening is given, since it belongs to an index.

    resolution  pixels; an image is seen at about resolution x resolution pixels in its own aspect
    """

    def __init__(
        self, backbone: Backbone, resolution: int, config: DescriptorConfig = DESCRIPTOR_CONFIGS[DEFAULT_TOKENS]
    ) -> None:
        self.backbone = backbone
        self.resolution = resolution
        self.config = config
        self.layers = config.layers_of(backbone.depth)
        self.patch_layers = config.patch_layers_of(backbone.depth)
        self._whole = replace(config, num_tokens=DESCRIPTOR_CONFIGS["full"].num_tokens)

    def lit(self, pixels: np.ndarray) -> np.ndarray:
        """An image (H, W, 3) uint8 as it is described: brightened where it is dark, see `lighten`."""
        return lighten(pixels, self.config.dark_below)

    def pooled(self, pixels: Sequence[np.ndarray]) -> PooledFeatures:
        """What the descriptor needs of images of one shape, (rows * P, cols * P, 3) uint8 each."""
        seen = np.stack([self.lit(image) for image in pixels])
        features = self.backbone.intermediate(seen, self.layers, patches_of=self.patch_layers)
        pooled = pool(features, self.config, self.backbone.depth)
        return self._with_colours(pooled, pixels) if self.config.colour_bits else pooled

    def _with_colours(self, pooled: PooledFeatures, pixels: Sequence[np.ndarray]) -> PooledFeatures:
        """The pooled features of images with the colours of the patches that are kept of them."""
        columns = pixels[0].shape[1] // self.backbone.patch_size
        of_patches = [mean_colours(image, self.backbone.patch_size) for image in pixels]
        rows, cols = pooled.positions.numpy().astype(int).transpose(2, 0, 1)  # (B, K) each
        kept = rows * columns + cols
        colours = np.stack([colours[at] for colours, at in zip(of_patches, kept, strict=True)])
        return replace(pooled, colours=torch.from_numpy(colours))

    def pooled_of(self, image: np.ndarray) -> PooledFeatures:
        """`pooled` of one image, (H, W, 3) uint8 of any size."""
        return self.pooled([preprocess(image, "aspect", self.resolution, self.backbone.patch_size)])

    def fit_whitening(self, sample: Sequence[PooledFeatures], views: Sequence[PooledFeatures] = ()) -> Whitening:
        """See `whitening_fit.fit_whitening`; the views are those of `ViewedImages.render`."""
        return whitening_fit.fit_whitening(sample, self.config, self.backbone.prior, views)

    def describe(self, images: Sequence[np.ndarray], whitening: Whitening) -> list[CropFeatures]:
        """Each image, (H, W, 3) uint8 of any size, as a query is seen: with every patch."""
        seen = [preprocess(image, "aspect", self.resolution, self.backbone.patch_size) for image in images]
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for n, pixels in enumerate(seen):
            by_shape.setdefault(pixels.shape, []).append(n)
        views: dict[int, CropFeatures] = {}
        for numbers in by_shape.values():
            for start in range(0, len(numbers), QUERY_BATCH):
                batch = numbers[start : start + QUERY_BATCH]
                stacked = np.stack([self.lit(seen[n]) for n in batch])
                features = self.backbone.intermediate(stacked, self.layers, patches_of=self.patch_layers)
                pooled = pool(features, self._whole, self.backbone.depth)
                vectors, tokens = apply_whitening(pooled, whitening)
                kinds = kind_vectors(pooled.parts, whitening)
                views |= {
                    n: CropFeatures(
                        vectors[at],
                        tokens[at],
                        features[0].grid,
                        kind_vector=None if kinds is None else kinds[at],
                        colours=mean_colours(seen[n], self.backbone.patch_size) if self.config.colour_bits else None,
                    )
                    for at, n in enumerate(batch)
                }
        return [views[n] for n in range(len(images))]

    def indexed(self, image: np.ndarray, whitening: Whitening) -> "Indexed":
        """An image, (H, W, 3) uint8 of any size, as an index holds it."""
        (view,) = self.describe([image], whitening)
        pooled = self.pooled_of(image)
        tokens = apply_whitening(pooled, whitening)[1][0]
        colours = None if pooled.colours is None else pooled.colours[0].numpy()
        patches = PatchTokens(tokens, pooled.positions[0].numpy(), view.grid, colours)
        parts = pooled.parts[0].numpy() if self.config.part_bits else None
        return Indexed(view, pack_patches(patches, self.config.token_bits, parts))
