"""Some images of the sample that a whitening is fitted on, and the synthetic views that are rendered of them.

Which images are chosen depends on their content ids alone, and so do their views: the same folder gives the same
statistics, in whatever order its files are read.
"""

import heapq
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..images.synthetic_views import render_view
from .pooling import PooledFeatures

if TYPE_CHECKING:
    from .embedder import Embedder

# Chosen on covers, landmarks and paris: 300 views do, 3 to 10 of an image
LEAST_EACH, MOST_EACH = 3, 10  # views of an image
SEED_DIGITS = 16  # of an id, in hexadecimal


class ViewedImages:
    """Keeps the images of which views are rendered, as many as `DescriptorConfig.num_views` needs, with their pixels.

    With 3 views of an image these are at most a third as many images, 150 kB each at 224 px. A backbone that carries a
    prior needs none: nothing is kept then.
    """

    def __init__(self, embedder: "Embedder") -> None:
        self._embedder = embedder
        self._most = embedder.config.num_views // LEAST_EACH if embedder.backbone.prior is None else 0
        self._kept: list[tuple[int, str, np.ndarray, PooledFeatures]] = []  # a heap, the last of the order on top

    def add(self, ids: Sequence[str], pixels: Sequence[np.ndarray], pooled: PooledFeatures) -> None:
        """A batch of images as the network saw them, (rows * P, cols * P, 3) uint8 each, and their features."""
        for n, id in enumerate(ids):
            entry = -_number(id), id, pixels[n], pooled.row(n)
            if len(self._kept) < self._most:
                heapq.heappush(self._kept, entry)
            elif self._most and entry[0] > self._kept[0][0]:
                heapq.heapreplace(self._kept, entry)

    def render(self) -> list[PooledFeatures]:
        """Of each image that was kept: the image and its views, a batch."""
        kept = sorted(self._kept, key=lambda entry: -entry[0])
        self._kept = []
        each = min(MOST_EACH, max(LEAST_EACH, math.ceil(self._embedder.config.num_views / max(len(kept), 1))))
        viewed = []
        for n, (number, _, pixels, pooled) in enumerate(kept):
            rng, behind = np.random.default_rng(-number), kept[n - 1][2][::-1, ::-1]
            views = [render_view(rng, pixels, behind, *pixels.shape[:2]) for _ in range(each)]
            viewed.append(_joined(pooled, self._embedder.pooled(views)))
        return viewed


def _number(id: str) -> int:
    """A number that an id stands for, alike for all that begin alike."""
    return int(id.replace("-", "")[:SEED_DIGITS], 16)


def _joined(one: PooledFeatures, other: PooledFeatures) -> PooledFeatures:
    return PooledFeatures(
        torch.cat([one.parts, other.parts]),
        torch.cat([one.tokens, other.tokens]),
        torch.cat([one.positions, other.positions]),
    )
