"""One image of each group of copies, and none that is near an evaluation set.

The paper (Oquab et al., 2023, appendix A) links images among each other's 64 nearest neighbours whose similarity is
over 0.6, takes the connected components and keeps one image of each; components that come within 0.45 of an image
that models will be judged on are dropped whole. Those numbers hold for features made for finding copies. They carry
over to the whitened vectors that an index holds, not to a backbone's raw CLS: of 500 unrelated photos, seen by the
shipped backbone, no pair of whitened vectors was over 0.46, but three in four pairs of raw CLS were over 0.6. Whitened,
an image and its copy are at 0.96 when recompressed, 0.86 mirrored, 0.73 with 70 % of each side left, 0.45 with half
(medians): copies that are cropped so much, or turned by 90 degrees, stay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .cells import build_cells
from .choices import COPY, LARGEST, NEIGHBOURS
from .components import bounded_components
from .embeddings import Embeddings, equal_rows
from .neighbours import Plan, neighbour_graph
from .probing import top
from .spread import Spread


# N rows, M of an evaluation set
@dataclass(frozen=True, eq=False)
class Copies:
    """Which rows show the same.

    kept_for    (N,) int64, the row that is kept of each row's group: the largest image, of equals the first
    alike       (N,) int64, the first row that is equal to each, bit for bit: the cells hold these alone
    num_cut     components that were larger than allowed and were cut
    plan        how the graph was searched
    """

    kept_for: np.ndarray
    alike: np.ndarray
    num_cut: int
    plan: Plan

    @property
    def num_equal(self) -> int:
        """Rows that are equal to an earlier one, bit for bit."""
        return int((self.alike != np.arange(len(self.alike))).sum())

    @property
    def kept(self) -> np.ndarray:
        """Rows that stand for their group, ascending."""
        return np.flatnonzero(self.kept_for == np.arange(len(self.kept_for)))

    def sizes(self) -> np.ndarray:
        """How many rows each group of two or more has, largest first."""
        sizes = np.bincount(self.kept_for)
        return np.sort(sizes[sizes > 1])[::-1]


def find_copies(
    embeddings: Embeddings,
    folder: Path,
    *,
    above: float = COPY,
    k: int = NEIGHBOURS,
    largest: int = LARGEST,
    pixels: np.ndarray | None = None,
    recall: float = 0.95,
    workers: int = 1,
    spread: Spread | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Copies:
    """Group the rows that are copies of each other.

    folder   for cells and graph; what lies there from an interrupted run is gone on with
    above    similarity over which two of each other's k nearest neighbours are linked
    largest  bound on a group, see `components`
    pixels   (N,) sizes of the images: the largest of a group is kept. None: the first
    spread   see `neighbours.neighbour_graph`
    """
    alike = equal_rows(embeddings)
    different = np.flatnonzero(alike == np.arange(len(alike)))
    cells = build_cells(embeddings, folder / "cells", rows=different, spread=spread)
    graph = neighbour_graph(
        cells,
        folder / "graph",
        folder / "cells",
        k=k,
        above=above,
        recall=recall,
        either=True,
        workers=workers,
        spread=spread,
        progress=progress,
    )
    groups, num_cut = bounded_components(len(alike), graph, above, largest, alike)
    return Copies(_largest_of(groups, pixels), alike, num_cut, graph.plan)


def near_any(embeddings: Embeddings, others: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    """How similar the most similar one of `others` is to each row, (N,) float32, and which it is, (N,) int64.

    Every pair is compared, however many there are: an approximate search would let something slip through.
    """
    similarity, which = np.full(len(embeddings), -1, np.float32), np.full(len(embeddings), -1)
    for there, references in others.blocks():
        for here, block in embeddings.blocks():
            values, found = top(block, references, 1)  # (n, 1)
            better = values[:, 0] > similarity[here]
            similarity[here] = np.where(better, values[:, 0], similarity[here])
            which[here] = np.where(better, found[:, 0] + there.start, which[here])
    return similarity, which


def whole_groups(kept_for: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Rows of which any member of their group is hit.  (N,) bool both"""
    groups = np.zeros(len(hit), bool)
    groups[kept_for[hit]] = True
    return groups[kept_for]


def _largest_of(groups: np.ndarray, pixels: np.ndarray | None) -> np.ndarray:
    """For each row the row of its group with the most pixels, the first of those.  (N,) int64"""
    if pixels is None:
        return groups  # they are named by their first row
    order = np.lexsort((np.arange(len(groups)), -np.asarray(pixels), groups))
    first = np.unique(groups[order], return_index=True)[1]
    best = np.zeros(len(groups), np.int64)
    best[groups[order][first]] = order[first]
    return best[groups]
