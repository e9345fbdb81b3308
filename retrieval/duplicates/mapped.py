"""Arrays that lie on disk and are gone with the last reference to them."""

import tempfile

import numpy as np
from numpy.typing import DTypeLike


def mapped(dtype: DTypeLike, count: int, *shape: int) -> np.ndarray:
    """Zeros (count, *shape) in a temporary file that is mapped into memory; count may be 0."""
    with tempfile.TemporaryFile(prefix="seenit-") as file:  # the mapping outlives the closed file
        return np.memmap(file, dtype, "w+", shape=(max(count, 1), *shape))[:count]
