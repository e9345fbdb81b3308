"""Where in an image its patches match, as a map."""

from collections.abc import Sequence

import numpy as np

from indexer.descriptor.features import CropFeatures

from .patches import patches_at

MAX_MAP_SIDE = 256  # rows and columns of a heat map


def similarity_map(one: CropFeatures, other: CropFeatures) -> np.ndarray:
    """The best cosine of each patch of one image in another, (rows, columns) float32."""
    return (one.tokens @ other.tokens.T).max(1).reshape(one.grid)


def query_similarity_map(views: Sequence[CropFeatures], other: CropFeatures) -> np.ndarray:
    """`similarity_map` a query's views together, at each spot of the whole image the most that any says; 0 where
    none looks.

    views    the first of them level, its patches are as large as those of the answer
    returns  (rows, columns) float32
    """
    size = np.array(views[0].grid[::-1]) / views[0].frame[:, :2].diagonal()  # columns, rows of the whole image
    cols, rows = np.clip(size.round().astype(int), 1, MAX_MAP_SIDE)
    heat = np.zeros(rows * cols, np.float32)
    at = patches_at((rows, cols)).numpy() / (cols, rows)  # (N, 2), fractions of the image
    for view in views:
        inside = (at - view.frame[:, 2]) @ np.linalg.inv(view.frame[:, :2]).T  # (N, 2), fractions of the view
        seen = ((inside >= 0) & (inside < 1)).all(1)
        x, y = (inside[seen] * view.grid[::-1]).astype(int).T
        heat[seen] = np.maximum(heat[seen], similarity_map(view, other)[y, x])
    return heat.reshape(rows, cols)
