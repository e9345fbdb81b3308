"""Two images compared without an index: where they show the same thing, and how well that is supported."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from indexer.images.preprocess import preprocess

from .query.encoder import QueryEncoder, read_query
from .query.query import QueryImage, Region
from .rerank.evidence import CONVINCING_SCORE, Evidence

if TYPE_CHECKING:
    from indexer.backbone.backbone import Backbone
    from indexer.descriptor.embedder import Embedder
    from indexer.descriptor.whitening import Whitening

RESOLUTION = 224  # pixels, as a new index has it


@dataclass(frozen=True, eq=False)
class ImageMatch:
    """What two images have in common.

    score     in [-1, 1]: the cosine of the global vectors fused with what the patches have in common
    cosine    in [-1, 1]: of the global vectors alone, of the crop that is nearest
    evidence  inliers, their transform and boxes as fractions; its probability is None, since that is learnt from the
              images of an index
    """

    score: float
    cosine: float
    evidence: Evidence


def match_images(
    a: QueryImage,
    b: QueryImage,
    backbone: "str | Path | Backbone" = "auto",
    *,
    region: Region | None = None,
    resolution: int = RESOLUTION,
) -> ImageMatch:
    """Compare an image with another, as a search compares a query with what is indexed.

    a, b        paths, PIL images, or uint8 arrays (H, W, 3) or (H, W)
    backbone    a name, a path, or a loaded Backbone
    region      (x, y, width, height) of the part of `a` that counts: pixels, or fractions if all are <= 1
    resolution  pixels; each image is seen at about resolution x resolution pixels in its own aspect

    The whitening is fitted on the two images, and on the statistics that the backbone carries or else on synthetic
    views of the two; an index of more images tells more.
    Raises ImageError for a file that cannot be read.

    >>> match_images("query.jpg", "photo.jpg").evidence.num_inliers > 0
    True
    """
    from indexer.backbone.load_once import load_once
    from indexer.descriptor.embedder import Embedder

    from .rerank.neighbours import best_cosine
    from .rerank.ranking import rerank_candidates

    embedder = Embedder(load_once(backbone).load("auto", fetch=True), resolution)
    pixels = [read_query(image, None, resolution).pixels for image in (a, b)]
    whitening = _whitening_of(pixels, embedder)
    encoder = QueryEncoder(lambda: (embedder, whitening), resolution, whitening.global_dim)
    (query,) = encoder.encode([a], [region])
    candidate = embedder.indexed(pixels[1], whitening)
    (found,) = rerank_candidates(query, [candidate])
    if found.score < CONVINCING_SCORE:
        (turned,) = encoder.turned([query])
        (by_turned,) = rerank_candidates(turned, [candidate])
        if by_turned.score >= CONVINCING_SCORE:
            query, found = turned, by_turned
    return ImageMatch(found.score, best_cosine(query, candidate.view.vector), found.evidence)


def _whitening_of(images: Sequence[np.ndarray], embedder: "Embedder") -> "Whitening":
    """The statistics of a few images, (H, W, 3) uint8 each."""
    from indexer.descriptor.viewed_images import ViewedImages

    viewed, sample = ViewedImages(embedder), []
    for n, image in enumerate(images):
        seen = preprocess(image, "aspect", embedder.resolution, embedder.backbone.patch_size)
        sample.append(embedder.pooled([seen]))
        viewed.add([f"{n:x}"], [seen], sample[-1])
    return embedder.fit_whitening(sample, viewed.render())
