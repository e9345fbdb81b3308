"""The same as pages: a match whose pairs of patches can be pointed at, or a look at one image.

One HTML file each, which needs nothing else. Pointing works by style sheets alone (a pair lights up, the others fade),
so that the page forbids scripts as the results page does, and prints as it is shown.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..rerank.evidence import Evidence
from ..whole_file import whole_page
from .draw_match import LINES, Frame, colour_of, heat_image, side_by_side, spread_out
from .results_page import FOOT, HEAD, STYLE, badge, embedded, link, outlined, shown

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
    parts = [
        f'<p class="verdict">{badge(evidence.verdict)}{shown(evidence.reason)}</p>\n',
        f"<p>{shown(in_sentences(evidence, query.size, result.size))}</p>\n",
        _drawing(photos, frames, evidence, grids),
        '<p class="names">',
        *(f"<span>{link(title, title)}</span>" for title in titles),
        "</p>\n",
    ]
    if heat_query is not None and heat_result is not None:
        parts.append("<h2>How well each part is found in the other image</h2>\n")
        heats = zip(photos, (heat_query, heat_result), frames, strict=True)
        parts.append(_row([heat_image(photo, heat, (f.width, f.height)) for photo, heat, f in heats], frames))
        parts.append(f'<p class="scale">unlike {_scale()} alike</p>\n')
    _write(path, "Why this is a match" if evidence.believed else "How alike these are", parts, made_by)


def write_inspection_page(
    path: str | Path, drawn: Image.Image, *, title: str = "image", made_by: Sequence[str] = ()
) -> None:
    """Write a page around what `inspect.draw_inspection` drew of the image at the path `title`."""
    label = shown(f"What the descriptor looks at in {title}")
    parts = [
        f'<p class="names"><span>{link(title, title)}</span></p>\n',
        f'<svg class="drawing" viewBox="0 0 {drawn.width} {drawn.height}" role="img" aria-label="{label}">'
        f'<image width="{drawn.width}" height="{drawn.height}" href="{embedded(drawn)}"/></svg>\n',
    ]
    _write(path, "What the descriptor looks at", parts, made_by)


def in_sentences(evidence: Evidence, query_size: tuple[int, int], result_size: tuple[int, int]) -> str:
    """What was found, in words; sizes are (width, height) in pixels."""
    sentences = []
    if evidence.verdict == "no match":
        sentences.append("The same thing is not believed to be in both images.")
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
        sentences.append(f"The patches that agree are alike by a cosine of {span}; point at one to see its partner.")
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


def _drawing(
    photos: tuple[Image.Image, Image.Image],
    frames: tuple[Frame, Frame],
    evidence: Evidence,
    grids: tuple[tuple[int, ...], ...],
) -> str:
    """Both photos with boxes and pairs as SVG."""
    parts = [_image(photo, frame) for photo, frame in zip(photos, frames, strict=True)]
    if evidence.verdict != "no match":
        for box, frame in zip((evidence.query_box, evidence.box), frames, strict=True):
            if box is not None:
                parts.append(outlined(box, frame.width, frame.height, frame.x, frame.y))
    joined = set(spread_out(evidence.pairs).tolist())
    for n in reversed(range(len(evidence.pairs))):
        parts.append(_pair(evidence.pairs[n], n in joined, frames, grids))
    more = f", {LINES} of them joined by lines" if len(evidence.pairs) > LINES else ""
    label = f"Both images with {len(evidence.pairs)} pairs of patches{more}"
    return _svg(parts, frames, label)


def _pair(pair: np.ndarray, joined: bool, frames: tuple[Frame, Frame], grids: tuple[tuple[int, ...], ...]) -> str:
    """Two patches and the line between them; it answers to the pointer over either patch."""
    x, y, u, v, cosine = pair.tolist()
    colour = "rgb({},{},{})".format(*colour_of(np.array(cosine)).tolist())
    ends = (frames[0].at(x, y), frames[1].at(u, v))
    (ax, ay), (bx, by) = ends
    place = f'x1="{ax:.1f}" y1="{ay:.1f}" x2="{bx:.1f}" y2="{by:.1f}"'
    parts = [f'<line class="case" {place}/><line {place} stroke="{colour}"/>']
    for (px, py), frame, (rows, cols) in zip(ends, frames, grids, strict=True):
        w, h = frame.width / cols, frame.height / rows
        parts.append(
            f'<rect class="patch" x="{px - w / 2:.1f}" y="{py - h / 2:.1f}" width="{w:.1f}" height="{h:.1f}"/>'
        )
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{4.5 if joined else 3}" fill="{colour}"/>')
    return f'<g class="pair{"" if joined else " dots"}"><title>cosine {cosine:.2f}</title>{"".join(parts)}</g>'


def _row(images: Sequence[Image.Image], frames: tuple[Frame, Frame]) -> str:
    parts = [_image(image, frame) for image, frame in zip(images, frames, strict=True)]
    return _svg(parts, frames, "Heat maps of likeness")


def _svg(parts: Sequence[str], frames: tuple[Frame, Frame], label: str) -> str:
    view = f"{GAP} 0 {WIDTH - 2 * GAP} {frames[0].height}"
    return f'<svg class="drawing" viewBox="{view}" role="img" aria-label="{label}">{"".join(parts)}</svg>\n'


def _image(photo: Image.Image, frame: Frame) -> str:
    small = photo.copy()
    small.thumbnail((PHOTO_PX, PHOTO_PX), Image.Resampling.LANCZOS, reducing_gap=3.0)
    place = f'x="{frame.x}" y="{frame.y}" width="{frame.width}" height="{frame.height}"'
    return f'<image {place} preserveAspectRatio="none" href="{embedded(small)}"/>'


def _scale() -> str:
    """The colours from unlike to alike."""
    steps = "".join(
        f'<rect x="{n}" width="1.05" height="1" style="fill:rgb({red},{green},{blue})"/>'
        for n, (red, green, blue) in enumerate(colour_of(np.linspace(0, 1, 24)).tolist())
    )
    return f'<svg viewBox="0 0 24 1" preserveAspectRatio="none" aria-hidden="true">{steps}</svg>'


def _share(share: float) -> str:
    return f"{max(1, round(100 * share))} %" if share < 0.97 else "nearly all"


def _write(path: str | Path, title: str, parts: Sequence[str], made_by: Sequence[str]) -> None:
    with whole_page(path) as file:
        file.write(HEAD.format(title=shown(title), style=STYLE + EXPLAIN_STYLE))
        file.writelines(['<article class="explain">\n', *parts, "</article>\n"])
        file.write(FOOT.format(lines="".join(f"<p>{shown(line)}</p>\n" for line in made_by)))


EXPLAIN_STYLE = """
.explain { padding: 14px 0 34px; }
.explain p { color: var(--soft); max-width: 80ch; }
.explain .verdict { color: var(--ink); font-size: 17px; margin-bottom: 4px; }
.explain .verdict .badge { font-size: 15px; margin-right: 6px; }
.explain .names { display: flex; justify-content: space-between; gap: 24px; max-width: none; font-size: 13px;
  overflow-wrap: anywhere; }
.explain h2 { margin-top: 26px; }
.drawing { display: block; width: 100%; height: auto; margin: 12px 0 8px; }
.scale { display: flex; align-items: center; gap: 10px; font-size: 13px; }
.scale svg { width: 200px; height: 10px; }
.pair line { stroke-width: 2; stroke-opacity: .85; pointer-events: none; }
.pair .case { stroke: #000; stroke-width: 4; stroke-opacity: .3; }
.pair circle { stroke: #000; stroke-opacity: .7; pointer-events: none; }
.pair .patch { pointer-events: all; }
.dots line { visibility: hidden; }
.drawing:has(.pair:hover) .pair:not(:hover) { opacity: .12; }
.pair:hover line { visibility: visible; stroke-width: 4; stroke-opacity: 1; }
.pair:hover .case { stroke-width: 8; stroke-opacity: .5; }
.pair:hover .patch { stroke: #fff; stroke-width: 2.5px; }
"""
