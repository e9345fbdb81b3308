"""The same as pages: a match whose inliers can be pointed at, or the descriptor's view of one image.

One HTML file each, which needs nothing else. Pointing works by style sheets alone (a pair lights up, the others fade),
so that the page forbids scripts as the results page does, and prints as it is shown.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from indexer.pages.render import data_uri, write_page

from ..rerank.evidence import Evidence
from .draw_match import Frame, colour_of, heat_image, side_by_side, spread_out
from .results_page import TEMPLATES

WIDTH = 1400  # units of the drawing
GAP = 20
PHOTO_PX = 1000  # longer side of an embedded photo
COARSE = (16, 16)  # the grid of patches to point at where no heat map tells a finer one


def write_explain_page(
    path: str | Path,
    query: Image.Image,
    result: Image.Image,
    evidence: Evidence,
    heat_query: np.ndarray | None = None,
    heat_result: np.ndarray | None = None,
    *,
    titles: tuple[str, str] = ("query", "result"),
    made_by: Sequence[str] = (),
) -> None:
    """Write the page of a match; the first four arguments after the path are as in `explain.draw_match`.

    titles   the photos' paths; one that is absolute becomes a link
    made_by  lines of the footer: index, backbone
    Raises SeenitError where the page cannot be written.
    """
    grids = tuple(COARSE if heat is None else heat.shape for heat in (heat_query, heat_result))
    frames = side_by_side(query.size, result.size, WIDTH, GAP, 0)
    photos = (query.convert("RGB"), result.convert("RGB"))
    boxes = [] if evidence.verdict == "no match" else zip((evidence.query_box, evidence.box), frames, strict=True)
    joined = set(spread_out(evidence.pairs).tolist())
    maps: list[tuple[Frame, str]] = []
    if heat_query is not None and heat_result is not None:
        for photo, heat, frame in zip(photos, (heat_query, heat_result), frames, strict=True):
            maps.append((frame, _packed(heat_image(photo, heat, (frame.width, frame.height)))))
    write_page(
        path,
        TEMPLATES,
        "match.html",
        title="Why this is a match" if evidence.is_match else "How alike these are",
        made_by=made_by,
        drawn=None,
        verdict=evidence.verdict,
        reason=evidence.reason,
        sentences=in_sentences(evidence, query.size, result.size),
        view=f"{GAP} 0 {WIDTH - 2 * GAP} {frames[0].height}",
        photos=[(frame, _packed(photo)) for frame, photo in zip(frames, photos, strict=True)],
        boxes=[(box, frame) for box, frame in boxes if box is not None],
        pairs=[_drawn(evidence.pairs[n], n in joined, frames, grids) for n in reversed(range(len(evidence.pairs)))],
        titles=titles,
        maps=maps,
        scale=[f"rgb({red},{green},{blue})" for red, green, blue in colour_of(np.linspace(0, 1, 24)).tolist()],
    )


def write_inspection_page(
    path: str | Path, drawn: Image.Image, *, title: str = "image", made_by: Sequence[str] = ()
) -> None:
    """Write a page around what `inspect.draw_inspection` drew of the image at the path `title`."""
    shown = {"path": title, "width": drawn.width, "height": drawn.height, "uri": data_uri(drawn)}
    write_page(
        path, TEMPLATES, "match.html", title="What the descriptor keeps of an image", made_by=made_by, drawn=shown
    )


def in_sentences(evidence: Evidence, query_size: tuple[int, int], result_size: tuple[int, int]) -> str:
    """What was found, in words; sizes are (width, height) in pixels."""
    sentences = []
    if evidence.verdict == "no match":
        sentences.append("This is no match: the same thing is not in both images.")
    elif evidence.box is not None:
        share = evidence.box[2] * evidence.box[3]
        sentences.append(f"What the query shows fills {_share(share)} of the result.")
    if evidence.transform is not None and evidence.verdict != "no match":
        turn, mirrored = turned(evidence.transform, query_size, result_size)
        way = "clockwise" if turn > 0 else "anticlockwise"
        sentences.append(
            f"There it is turned by {abs(turn):.0f} degrees {way}."
            if abs(turn) >= 3
            else "There it stands as in the query."
        )
        if mirrored:
            sentences.append("It is mirrored.")
    if len(evidence.pairs):
        low, high = evidence.pairs[:, 4].min(), evidence.pairs[:, 4].max()
        span = f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"
        sentences.append(f"The inliers are alike by a cosine of {span}; point at one to see its partner.")
    return " ".join(sentences)


def turned(transform: np.ndarray, query_size: tuple[int, int], result_size: tuple[int, int]) -> tuple[float, bool]:
    """By how many degrees the thing is turned in the result, clockwise from -180 to 180, and whether it is mirrored.

    transform  (2, 3) of fractions, as in `Evidence`; the images' (width, height) make it one of pixels
    """
    pixels = np.diag(result_size) @ transform[:, :2].astype(float) @ np.diag(1 / np.array(query_size, float))  # (2, 2)
    (a, b), (c, d) = pixels
    mirrored = bool(a * d - b * c < 0)
    if mirrored:  # as if the query had been mirrored left to right
        a, c = -a, -c
    return math.degrees(math.atan2(c - b, a + d)), mirrored


@dataclass(frozen=True)
class _DrawnPair:
    """Two patches and the line between them, in units of the drawing.

    joined   whether the line is shown before anybody points at it
    ends     x, y in the query and in the result
    patches  x, y of the centre, width and height of each
    """

    joined: bool
    cosine: float
    colour: str
    ends: tuple[float, float, float, float]
    patches: tuple[tuple[float, float, float, float], ...]


def _drawn(
    pair: np.ndarray, joined: bool, frames: tuple[Frame, Frame], grids: tuple[tuple[int, ...], ...]
) -> _DrawnPair:
    x, y, u, v, cosine = pair.tolist()
    colour = "rgb({},{},{})".format(*colour_of(np.array(cosine)).tolist())
    ends = (frames[0].at(x, y), frames[1].at(u, v))
    patches = tuple(
        (*end, frame.width / cols, frame.height / rows)
        for end, frame, (rows, cols) in zip(ends, frames, grids, strict=True)
    )
    return _DrawnPair(joined, cosine, colour, (*ends[0], *ends[1]), patches)


def _packed(photo: Image.Image) -> str:
    small = photo.copy()
    small.thumbnail((PHOTO_PX, PHOTO_PX), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return data_uri(small)


def _share(share: float) -> str:
    return f"{max(1, round(100 * share))} %" if share < 0.97 else "nearly all"
