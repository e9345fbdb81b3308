"""All that decides which images of a pool are chosen, with the values of the papers. Imports nothing that is heavy.

Similarities are cosines of the whitened vectors that an index holds (see `deduplicate`).
"""

from dataclasses import dataclass
from typing import Literal

from indexer.errors import SeenitError

NEIGHBOURS = 64
COPY = 0.6
LEAK = 0.45
LARGEST = 1000
NEAREST = 4
LEAST_CURATED = 4  # "more than 3"
PER_CLUSTER = 10_000
MOST = 1_000_000
RESAMPLINGS = 10
RECALL = 0.95


@dataclass(frozen=True)
class Choices:
    """All that decides which images are chosen."""

    copy: float = COPY  # similarity over which two images are linked as copies
    leak: float = LEAK  # similarity to an evaluation image over which one is removed
    neighbours: int = NEIGHBOURS  # of each image in the graph
    largest: int = LARGEST  # images in a group of copies; a larger one is cut
    mode: Literal["nearest", "clusters"] = "nearest"  # how images like the curated ones are found
    nearest: int = NEAREST  # mode nearest: for each curated image
    clusters: int | None = None  # mode clusters: of the pool; None: by its size
    per_cluster: int = PER_CLUSTER  # drawn from each
    least_curated: int = LEAST_CURATED  # curated images that a cluster must hold
    most: int = MOST  # drawn from all clusters
    size: int | None = None  # images in the list, drawn so that kinds are balanced; None: all that are left
    levels: tuple[int, ...] | None = None  # clusters at each level of the hierarchy, finest first; None: by number
    resamplings: int = RESAMPLINGS
    recall: float = RECALL  # share of the true neighbours that an approximate search is to find
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("copy", "leak"):
            if not -1 <= getattr(self, name) < 1:
                raise SeenitError(f"--{name} is {getattr(self, name)}; a similarity lies between -1 and 1")
        for name in ("neighbours", "largest", "nearest", "per_cluster", "least_curated", "most"):
            if getattr(self, name) < 1:
                raise SeenitError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be 1 or more")
        if self.levels is not None and any(
            low <= high for low, high in zip(self.levels, self.levels[1:], strict=False)
        ):
            raise SeenitError(f"levels {self.levels} do not become fewer; give for instance 1000,50,10")
