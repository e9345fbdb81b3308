"""Decoded images in batches of one shape, as a network takes them."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

import numpy as np


class _Image(Protocol):
    @property
    def pixels(self) -> np.ndarray: ...


X = TypeVar("X", bound=_Image)


def of_one_shape(images: Iterable[X], most: int) -> Iterator[list[X]]:
    """Batches of images whose pixels have one shape, of at most `most` each: full ones as they come, then the rest."""
    waiting: dict[tuple[int, ...], list[X]] = {}
    for image in images:
        batch = waiting.setdefault(image.pixels.shape, [])
        batch.append(image)
        if len(batch) == most:
            yield waiting.pop(image.pixels.shape)
    yield from waiting.values()
