"""What became of every image of a pool: its fate and the reason, the list of those chosen, and the numbers."""

import csv
import io
import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

from indexer.images.decode import DEFAULT_LIMITS
from indexer.sources.place import ImageRef, is_address, read_place

from .deduplicate import Copies
from .embed import Images
from .inputs import Inputs
from .whole_files import step_file, write_text


class Fate(IntEnum):
    """What became of an image of the pool."""

    KEPT = 0
    COPY = 1
    LEAK = 2
    UNLIKE = 3
    ENOUGH = 4
    GONE = 5

    @property
    def in_words(self) -> str:
        return (
            "in the list",
            "a copy of another image",
            "near the evaluation set",
            "not like the curated images",
            "enough of its kind",
            "gone, or its name fits no line",
        )[self]


# N images in the pool
@dataclass(frozen=True, eq=False)
class Curated:
    """What came of every image of the pool, for the summary and the page.

    fate        (N,) int8, a Fate
    because_of  (N,) int64: of a copy the image that is kept, of a leak the evaluation image, of a retrieved image
                the curated one; else -1
    likeness    (N,) float32, how similar they are; NaN where that was not compared
    cluster     (N,) int64, the kind of image by the top of the hierarchy, -1 where it is not in it
    """

    inputs: Inputs
    fate: np.ndarray
    because_of: np.ndarray
    likeness: np.ndarray
    cluster: np.ndarray
    copies: Copies

    @property
    def kept(self) -> np.ndarray:
        return np.flatnonzero(self.fate == Fate.KEPT)


@dataclass(frozen=True)
class CurationSummary:
    """Numbers of a run. `effective` counts clusters by the exponential of their entropy, per level, finest first."""

    out: str
    pool: int  # images that could be read
    unreadable: int
    copies: int
    equal: int  # of the copies, those with equal vectors
    groups: int
    largest_group: int
    groups_cut: int
    leaks: int
    left: int  # after these
    like: int  # curated images
    retrieved: int
    written: int
    gone: int
    clusters: tuple[int, ...]
    effective_before: tuple[float, ...]
    effective_after: tuple[float, ...]
    graph_recall: float  # on a sample against exact search
    work: str
    seconds: float


def can_be_listed(place: ImageRef) -> bool:
    """Whether a list can name it; of an address it is not asked whether it is still there."""
    fits = "\n" not in place.path and "\r" not in place.path
    return fits and (is_address(place.path) or os.path.isfile(place.path))


def write_list(out: Path, curated: Curated) -> list[str]:
    """One path a line; images in tar files become files first, for a list names files."""
    paths = []
    for row in curated.kept:
        place = curated.inputs.pool.places[row]
        if place.member:
            copy = Path(f"{out.absolute()}.images") / f"{row:09d}_{Path(place.member).name}"
            with step_file(copy) as file:
                file.write(read_place(place, DEFAULT_LIMITS.max_file_bytes))
            paths.append(str(copy))
        else:
            paths.append(place.path if is_address(place.path) else os.path.abspath(place.path))
    write_text(out, "".join(f"{path}\n" for path in paths))
    return paths


def write_fates(path: Path, curated: Curated) -> None:
    """Every image with what became of it, for whoever asks why one is missing."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "fate", "because_of"])
    pool, avoid, like = curated.inputs.pool, curated.inputs.avoid, curated.inputs.like
    whose: dict[int, Images | None] = {Fate.COPY: pool, Fate.LEAK: avoid, Fate.KEPT: like, Fate.ENOUGH: like}
    for row, place in enumerate(pool.places):
        fate, other = Fate(curated.fate[row]), int(curated.because_of[row])
        group = whose.get(fate)
        table.writerow([place.name, fate.in_words, group.places[other].name if group and other >= 0 else ""])
    write_text(path, text.getvalue())
