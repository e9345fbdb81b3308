"""Decoding in a task of a cluster: in decoder processes with the caps that they have everywhere.

What is surprising: a worker keeps its decoder process from task to task, as starting one takes as long as ten images.
It ends with the worker, however that ends.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..images.jobs import Decoded, Job, Outcome
from ..images.pool import DecodePool

NO_PIXELS = np.empty((0, 0, 3), np.uint8)
_pools: dict[tuple[int, int], DecodePool] = {}


def decode_jobs(jobs: Sequence[Job], resolution: int, patch_size: int) -> tuple[list[Outcome], dict[str, np.ndarray]]:
    """The outcomes of jobs without pixels, and the pixels by path: the former are small and go to the driver."""
    pool = _pools.get((resolution, patch_size))
    if pool is None:
        pool = _pools[resolution, patch_size] = DecodePool(1, resolution=resolution, patch_size=patch_size)
    light: list[Outcome] = []
    pixels: dict[str, np.ndarray] = {}
    for outcome in pool.run(jobs):
        if isinstance(outcome, Decoded):
            pixels[outcome.path] = outcome.pixels
            outcome = replace(outcome, pixels=NO_PIXELS)
        light.append(outcome)
    return light, pixels
