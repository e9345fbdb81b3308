"""A page of queries and their results as images: one HTML file that needs nothing else and asks nobody.

Written as it goes, one query at a time, so that a thousand queries cost no more memory than one. An image is embedded
where it first appears and referred to from there (SVG `use`), however many queries find it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from indexer.errors import ImageError
from indexer.images.colour import to_rgb
from indexer.images.decode import decode_file
from indexer.pages.render import data_uri, write_page

from ..rerank.evidence import Box

TEMPLATES = Path(__file__).parent / "templates"
RESULT_PX = 420  # longer side of an embedded result
QUERY_PX = 900  # and of a query


@dataclass(frozen=True)
class PageResult:
    """One image that was found."""

    path: str
    rank: int
    score: float  # in [-1, 1]
    caption: tuple[str, ...] = ()  # small lines below the name: date, size, camera
    box: Box | None = None  # where the thing is in the image
    verdict: str | None = None  # "same", "perhaps" or "no match"; another word is shown as it is
    reason: str = ""  # what the verdict rests on: match probability, number of inliers
    probability: float | None = None  # of a match, in [0, 1]

    @property
    def share(self) -> float:
        """Length of the bar in percent: the probability, or the score where there is none."""
        value = self.score if self.probability is None else self.probability
        return round(100 * min(max(value, 0.0), 1.0), 1) if value == value else 0.0


@dataclass(frozen=True, eq=False)
class PageQuery:
    """One query with its results, best first. Without a path and an image only the note stands for the query."""

    results: Sequence[PageResult]
    path: str | None = None
    image: Image.Image | np.ndarray | None = None  # shown instead of the file: uint8 (H, W, 3) or (H, W), or PIL
    region: Box | None = None  # the part that was searched for
    note: str = ""  # why there are no results or none is a match, or what was asked beside the image

    @property
    def source(self) -> str | Image.Image | np.ndarray | None:
        return self.path if self.image is None else self.image


def write_results_page(
    path: str | Path, queries: Iterable[PageQuery], *, title: str = "seenit", made_by: Sequence[str] = ()
) -> int:
    """Write the page to `path`, which appears whole or not at all; returns how many queries it shows.

    queries  taken one by one; an image that is gone or broken becomes a placeholder that says why
    made_by  lines of the footer: index, backbone, seconds
    Raises SeenitError where the page cannot be written.
    """
    count = 0

    def counted() -> Iterator[PageQuery]:
        nonlocal count
        for count, query in enumerate(queries, start=1):  # noqa: B007
            yield query

    write_page(
        path,
        TEMPLATES,
        "results.html",
        title=title,
        made_by=made_by,
        queries=counted(),
        show=_Images().show,
        query_px=QUERY_PX,
        result_px=RESULT_PX,
    )
    return count


def thumbnail(image: str | Image.Image | np.ndarray, size_px: int) -> Image.Image:
    """A small upright RGB copy of a file or image, its longer side at most `size_px`.

    ImageError where the file is gone or cannot be read.
    """
    if isinstance(image, str):
        pixels = decode_file(image, target_px=size_px * 3 // 4).pixels  # (H, W, 3)
    else:
        pixels = to_rgb(image if isinstance(image, Image.Image) else Image.fromarray(image))
    small = Image.fromarray(pixels)
    small.thumbnail((size_px, size_px), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return small


@dataclass(frozen=True)
class ShownImage:
    """An image as it stands in the page.

    id       of its element; where `uri` is empty, the page holds it already
    missing  why it cannot be shown
    """

    id: str = ""
    width: int = 0
    height: int = 0
    uri: str = ""
    missing: str = ""


class _Images:
    """The images that the page already holds, by path."""

    def __init__(self) -> None:
        self._known: dict[str, ShownImage] = {}
        self._made = 0

    def show(self, image: str | Image.Image | np.ndarray, size_px: int) -> ShownImage:
        """The image, its longer side at most `size_px`; embedded where it comes first, referred to from there on."""
        key = f"{size_px} {image}" if isinstance(image, str) else None
        if key and key in self._known:
            return self._known[key]
        try:
            small = thumbnail(image, size_px)
        except ImageError as error:
            shown = ShownImage(missing=error.reason)
        else:
            self._made += 1
            shown = ShownImage(f"p{self._made}", small.width, small.height, data_uri(small))
        if key:
            self._known[key] = replace(shown, uri="")
        return shown
