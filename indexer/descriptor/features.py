"""The part of an image that a descriptor is taken of."""

from dataclasses import dataclass, field

import numpy as np

WHOLE = np.array([[1, 0, 0], [0, 1, 0]], np.float32)  # the frame of the whole image


@dataclass(frozen=True, eq=False)
class CropFeatures:
    """The features of one crop of a query image.

    vector  (G,)    float32, L2-normalised
    tokens  (N, T)  float32, L2-normalised rows: every patch, in raster order
    grid    rows and columns of patches, N in all
    frame   (2, 3)  float32, affine: fractions of the image = frame @ (x, y, 1), fractions of the crop
    kind_vector  (D,) float32, L2-normalised, see `whitening.kind_vectors`; None where the index has none
    colours  (N, 2) int8, mean colour of every patch, see `mean_colours`; None where it is not known
    turn    the nearest quarter turn in which the image is seen: degrees clockwise, 0, 90, 180 or 270
    """

    vector: np.ndarray
    tokens: np.ndarray
    grid: tuple[int, int]
    frame: np.ndarray = field(default_factory=lambda: WHOLE)
    turn: int = 0
    kind_vector: np.ndarray | None = None
    colours: np.ndarray | None = None
