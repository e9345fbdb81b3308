"""The mean colour of each patch of an image, as two bytes.

The features of DINOv2 hardly know colours: a carton of apple juice is like one of orange juice, a red apple like a
green one. What matched patches show can be told apart by their colours. Lightness is left out, for it is light's.
"""

import numpy as np

# CIE 1976 L*a*b* of sRGB, D65
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    np.float32,
)
_WHITE = np.array([0.95047, 1.0, 1.08883], np.float32)


def mean_colours(pixels: np.ndarray, patch_size: int) -> np.ndarray:
    """a* and b* of CIELAB of each patch's mean colour, in raster order, rounded.  (rows * columns, 2) int8

    pixels  (rows * P, columns * P, 3) uint8, sRGB

    0, 0 is grey; cloth, print and fruit have 10 to 60, and no colour of sRGB has more than 127 or less than -127.
    """
    rows, columns = (side // patch_size for side in pixels.shape[:2])
    total = pixels.reshape(rows, patch_size, -1).sum(1, dtype=np.uint32).reshape(rows, columns, patch_size, 3).sum(2)
    value = (total.reshape(-1, 3) / (255 * patch_size**2)).astype(np.float32)
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    ratio = linear @ _TO_XYZ.T / _WHITE
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116).T
    lab = np.stack([500 * (x - y), 200 * (y - z)], axis=1)
    return np.rint(lab).clip(-127, 127).astype(np.int8)
