"""Plain patches of a query: walls, skies, mounts, borders, and what transparency lies on. They are no evidence.

A patch without structure has features all the same, of what surrounds it and of where it lies. Two images with as much
empty space around something fit onto each other by it, whatever that something is. So a query's plain patches are
paired with nothing. It is the query's that count: its pixels are at hand, and a pair needs both.
"""

from functools import lru_cache

import numpy as np

# Grey levels by which a patch's pixels may stray from one slope of colour: a gradient is as plain as a wall. Noise of
# a camera is a level or two at the size that the network sees, print and brick are ten and more. Not tuned.
PLAIN_DEVIATION = 3.0


def plain_patches(pixels: np.ndarray, patch_size: int) -> np.ndarray:
    """Which patches of an image as the network sees it show nothing, in raster order.  (rows * columns,) bool

    pixels  (rows * P, columns * P, 3) uint8

    for each patch: each channel's root mean square deviation from the plane a + b x + c y nearest to it; a patch is
    plain where that of no channel exceeds PLAIN_DEVIATION
    """
    rows, columns = (side // patch_size for side in pixels.shape[:2])
    patches = pixels.reshape(rows, patch_size, columns, patch_size, 3).transpose(0, 2, 4, 1, 3)
    flat = patches.reshape(rows * columns, 3, patch_size**2).astype(np.float32)  # (N, 3, P * P)
    plane = _planes(patch_size)
    deviation = flat - (flat @ plane) @ plane.T
    return np.asarray(np.sqrt(np.square(deviation).mean(2).max(1)) <= PLAIN_DEVIATION)


@lru_cache(maxsize=4)
def _planes(patch_size: int) -> np.ndarray:
    """An orthonormal basis of the functions a + b x + c y on a patch.  (P * P, 3) float32"""
    place = np.linspace(-1, 1, patch_size)
    functions = [np.ones(patch_size**2), np.tile(place, patch_size), np.repeat(place, patch_size)]
    return np.linalg.qr(np.stack(functions, axis=1))[0].astype(np.float32)
