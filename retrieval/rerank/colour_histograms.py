"""What colours an image has, as a vector: what tells packets, fruit and book covers of one kind from another.

The features of DINOv2 hardly know colours. An index keeps the mean colour of each patch that it keeps, so a histogram
of them costs no bytes. Patches are kept for being unlike each other, by which a wall counts once or twice and not a
hundred times; a query's are chosen alike, without its plain ones.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from indexer.descriptor.features import CropFeatures

# B images, K patches, E cells along a* and along b*

# Of a* and b*. Cells of 6 spread by 4, or of 12 spread by 12, give mAP within .01 on landmarks, paris and grocery
STEP, SPREAD, MOST = 10, 8.0, 60
FEWEST = 8  # patches with structure; a query that has fewer is told by all of them; not tuned


def colour_histograms(colours: Sequence[np.ndarray]) -> np.ndarray:
    """Square roots of each image's share of colours about each of E * E, so that a product is their Bhattacharyya.

    colours  (K, 2) int8 of each image, see `mean_colours`
    returns  (B, E * E) float32, L2-normalised; a row of zeros for an image without patches

    for each image and cell e, f of a grid over a* and b*:
        sqrt(mean over k of near(a*[k], e) near(b*[k], f)),  near(v, e) = exp(-(v - e)^2 / 2 SPREAD^2), its sum over e 1
    """
    table = _nearness()
    cells = table.shape[1]
    found = np.zeros((len(colours), cells * cells), np.float32)
    counts = np.array([len(one) for one in colours], int)
    for count in set(counts.tolist()) - {0}:  # as a rule all images of an index have as many
        rows = np.flatnonzero(counts == count)
        codes = np.stack([colours[n] for n in rows.tolist()]).astype(np.int16) + 128  # (B, K, 2)
        along = table[codes]  # (B, K, 2, E)
        shares = along[:, :, 0].transpose(0, 2, 1) @ along[:, :, 1] / count  # (B, E, E)
        found[rows] = np.sqrt(shares).reshape(len(rows), -1)
    return found


def colours_of_crop(crop: CropFeatures, count: int) -> np.ndarray | None:
    """The colours (K, 2) int8 of patches of a query's crop that are unlike each other; None where none are known.

    count  patches at most, as many as an indexed image keeps

    Plain patches, whose tokens are 0, are left out: what a thing lies on is none of its colours.
    """
    if crop.colours is None:
        return None
    solid = np.flatnonzero(crop.tokens.any(1))
    if len(solid) < FEWEST:
        return crop.colours
    return crop.colours[solid[_unlike_each_other(crop.tokens[solid], count)]]


def about_mean(histograms: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Histograms (B, E * E) as unit vectors about the mean (E * E,) of what they are compared among.

    What all candidates have, as grey has nearly every photo, makes none of them alike.
    """
    centred = histograms - mean
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.float32(1e-12))


def _unlike_each_other(tokens: np.ndarray, count: int) -> np.ndarray:
    """Numbers, ascending, of `count` tokens (N, T) that are unlike each other, or of all there are.

    It is `pooling.select_patches` for one image, in a third of the time that many small tensors take.
    """
    if count >= len(tokens):
        return np.arange(len(tokens))
    similarity = tokens @ tokens.T  # (N, N)
    chosen = int((tokens @ tokens.mean(0)).argmin())
    kept, nearest = [chosen], similarity[chosen].copy()  # (N,), likeness to the nearest chosen one
    for _ in range(count - 1):
        nearest[chosen] = np.inf
        chosen = int(nearest.argmin())
        kept.append(chosen)
        np.maximum(nearest, similarity[chosen], out=nearest)
    return np.sort(kept)


@lru_cache(maxsize=1)
def _nearness() -> np.ndarray:
    """How near each value of 8 bits, from -128 on, is to each cell.  (256, E) float32, rows of sum 1"""
    values = np.arange(-128, 128).clip(-MOST, MOST)
    near = np.exp(-0.5 * np.square((values[:, None] - np.arange(-MOST, MOST + 1, STEP)) / SPREAD))
    return np.asarray(near / near.sum(1, keepdims=True), np.float32)
