"""A page of queries and their results as images: one HTML file that needs nothing else and asks nobody.

Written as it goes, one query at a time, so that a thousand queries cost no more memory than one. An image is embedded
where it first appears and referred to from there (SVG `use`), however many queries find it. File names are foreign
text: everything is escaped, and the page's own policy forbids scripts and requests should anything slip through.
"""

import base64
import html
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from indexer.errors import ImageError
from indexer.images.colour import to_rgb
from indexer.images.decode import decode_file

from ..rerank.evidence import Box
from ..whole_file import whole_page

UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
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
    reason: str = ""  # what the verdict rests on: how likely, how many patches agree


@dataclass(frozen=True, eq=False)
class PageQuery:
    """One query with its results, best first. Without a path and an image only the note stands for the query."""

    results: Sequence[PageResult]
    path: str | None = None
    image: Image.Image | np.ndarray | None = None  # shown instead of the file: uint8 (H, W, 3) or (H, W), or PIL
    region: Box | None = None  # the part that was searched for
    note: str = ""  # why there are no results or none is believed, or what was asked beside the image


def write_page(
    path: str | Path, queries: Iterable[PageQuery], *, title: str = "seenit", made_by: Sequence[str] = ()
) -> int:
    """Write the page to `path`, which appears whole or not at all; returns how many queries it shows.

    queries  taken one by one; an image that is gone or broken becomes a placeholder that says why
    made_by  lines of the footer: index, backbone, seconds
    Raises SeenitError where the page cannot be written.
    """
    count = 0
    with whole_page(path) as file:
        images = _Images()
        file.write(HEAD.format(title=shown(title), style=STYLE))
        for count, query in enumerate(queries, start=1):
            for piece in _query(query, count, images):
                file.write(piece)
        file.write(FOOT.format(lines="".join(f"<p>{shown(line)}</p>\n" for line in made_by)))
    return count


def shown(text: str) -> str:
    """Foreign text made safe for HTML, in an element or a quoted attribute.

    Bytes that were not UTF-8, control characters, and marks that turn the reading direction around (a name could lie
    with them) become the replacement character.
    """
    return html.escape(UNSHOWABLE.sub("\ufffd", text), quote=True)


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


def embedded(image: Image.Image) -> str:
    """The image as the address of itself, a JPEG."""
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode('ascii')}"


def outlined(box: Box, width: float, height: float, left: float = 0, top: float = 0) -> str:
    """A box over an image of that size and place, as SVG."""
    x, y, w, h = (round(value * side, 1) for value, side in zip(box, (width, height) * 2, strict=True))
    place = f'x="{round(left + x, 1)}" y="{round(top + y, 1)}" width="{w}" height="{h}"'
    return f'<rect class="under" {place}/><rect class="box" {place}/>'


class _Images:
    """The images that the page already holds, by path: their element's id and size, or why they cannot be shown."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, int, int] | str] = {}
        self._made = 0

    def figure(self, image: str | Image.Image | np.ndarray, alt: str, size_px: int, box: Box | None) -> str:
        """The image as SVG with a box drawn over it, or a placeholder with the reason."""
        key = f"{size_px} {image}" if isinstance(image, str) else None
        known = self._known.get(key) if key else None
        if isinstance(known, tuple):
            name, width, height = known
            inner = f'<use href="#{name}"/>'
        elif isinstance(known, str):
            return known
        else:
            try:
                small = thumbnail(image, size_px)
            except ImageError as error:
                missing = f'<p class="missing">Cannot be shown: <bdi>{shown(error.reason)}</bdi></p>'
                if key:
                    self._known[key] = missing
                return missing
            self._made += 1
            name, (width, height) = f"p{self._made}", small.size
            inner = f'<image id="{name}" width="{width}" height="{height}" href="{embedded(small)}"/>'
            if key:
                self._known[key] = (name, width, height)
        if box is not None:
            inner += outlined(box, width, height)
        return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{shown(alt)}">{inner}</svg>'


def _query(query: PageQuery, number: int, images: _Images) -> Iterable[str]:
    """The section of one query, in pieces."""
    name = os.path.basename(query.path) if query.path else f"Query {number}"
    yield f'<section aria-labelledby="q{number}">\n<div class="query">\n'
    source = query.image if query.image is not None else query.path
    if source is not None:
        alt = f"Query: {name}" + (", the part searched for is outlined" if query.region else "")
        yield f'<div class="image">{images.figure(source, alt, QUERY_PX, query.region)}</div>\n'
    yield f'<h2 id="q{number}">{link(query.path, name)}</h2>\n'
    if query.path:
        yield f'<p class="folder"><bdi>{shown(os.path.dirname(query.path))}</bdi></p>\n'
    if query.note:
        yield f'<p class="note">{shown(query.note)}</p>\n'
    yield "</div>\n"
    if query.results:
        yield '<ol class="results">\n'
        for result in query.results:
            yield _card(result, images)
        yield "</ol>\n"
    else:
        yield '<p class="nothing">Nothing found.</p>\n'
    yield "</section>\n"


def _card(result: PageResult, images: _Images) -> str:
    name = os.path.basename(result.path)
    alt = f"Result {result.rank}: {name}" + (", the match is outlined" if result.box else "")
    proof = f'<p class="proof">{shown(result.reason)}</p>' if result.reason else ""
    lines = "".join(f"<p>{shown(line)}</p>" for line in result.caption)
    share = round(100 * min(max(result.score, 0.0), 1.0), 1) if result.score == result.score else 0.0
    return (
        f'<li><div class="image">{images.figure(result.path, alt, RESULT_PX, result.box)}</div>\n'
        f'<div class="text"><p class="line"><span class="rank">{result.rank}</span>'
        f'<span class="bar" aria-hidden="true"><span style="width:{share}%"></span></span>'
        f'<span class="score"><span class="unseen">score </span>{result.score:.3f}</span>{badge(result.verdict)}</p>\n'
        f"{proof}<h3>{link(result.path, name)}</h3>\n"
        f'<p class="folder"><bdi>{shown(os.path.dirname(result.path))}</bdi></p>{lines}</div></li>\n'
    )


def badge(verdict: str | None) -> str:
    """The verdict as a word in its colour."""
    if not verdict:
        return ""
    kind = {"same": "same", "perhaps": "perhaps"}.get(verdict, "other")
    return f'<span class="badge {kind}">{shown(verdict)}</span>'


def link(path: str | None, name: str) -> str:
    """The name, leading to the file itself where it has an absolute path."""
    label = f"<bdi>{shown(name)}</bdi>"
    if not path or not os.path.isabs(path):
        return label
    try:
        return f'<a href="{shown(Path(path).as_uri())}">{label}</a>'
    except UnicodeEncodeError:  # a name that this system could not have made
        return label


HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1></header>
<main>
"""

FOOT = """</main>
<footer>
{lines}</footer>
</body>
</html>
"""

STYLE = """
:root { --page: #f5f4f0; --card: #ffffff; --well: #e9e7e1; --ink: #1c1f24; --soft: #565d68; --line: #dedbd3;
  --accent: #17697a; --same: #17663a; --same-back: #d9f0e1; --perhaps: #7a4b00; --perhaps-back: #fbe9c8; }
@media (prefers-color-scheme: dark) { :root { --page: #121417; --card: #1b1f24; --well: #0c0e10; --ink: #e9eaec;
  --soft: #a4acb8; --line: #2b3138; --accent: #6cc5d2; --same: #8fdcae; --same-back: #163826; --perhaps: #f2c879;
  --perhaps-back: #3d2d0e; } }
* { box-sizing: border-box; margin: 0; }
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
header, main, footer { max-width: 1500px; margin: 0 auto; padding: 0 clamp(14px, 3vw, 40px); }
header { padding-top: 26px; padding-bottom: 6px; }
h1 { font-size: 21px; font-weight: 650; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 17px; font-weight: 600; margin-top: 12px; overflow-wrap: anywhere; }
h3 { font-size: 14px; font-weight: 600; line-height: 1.35; overflow-wrap: anywhere; }
a { color: inherit; text-decoration: none; }
a:hover, a:focus-visible { color: var(--accent); text-decoration: underline; }
section { display: grid; grid-template-columns: minmax(260px, 27%) 1fr; gap: clamp(18px, 2.4vw, 36px);
  padding: 22px 0 34px; border-bottom: 1px solid var(--line); content-visibility: auto;
  contain-intrinsic-size: auto 640px; }
section:last-child { border-bottom: 0; }
.query { min-width: 0; align-self: start; position: sticky; top: 18px; }
.query p { color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
.image { background: var(--well); display: grid; place-items: center; overflow: hidden; }
.image svg { display: block; width: 100%; height: 100%; }
.query .image { border-radius: 12px; }
.query svg { height: auto; max-height: 62vh; }
.results { list-style: none; padding: 0; display: grid; gap: 16px; align-content: start;
  grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); min-width: 0; }
.results li { background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow: hidden;
  min-width: 0; }
.results .image { aspect-ratio: 4 / 3; }
.text { padding: 10px 12px 12px; }
.text p { font-size: 12px; color: var(--soft); overflow-wrap: anywhere; }
.text .line { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 8px; margin-bottom: 5px; font-size: 13px; }
.rank { min-width: 1.4em; color: var(--soft); font-variant-numeric: tabular-nums; }
.bar { flex: 1 1 40px; height: 5px; border-radius: 3px; background: var(--well); overflow: hidden; }
.bar span { display: block; height: 100%; background: var(--accent); border-radius: 3px; }
.score { color: var(--ink); font-variant-numeric: tabular-nums; }
.badge { font-size: 11px; font-weight: 600; padding: 2px 8px; border-radius: 9px; background: var(--well);
  white-space: nowrap; }
.text .proof { color: var(--ink); margin-bottom: 5px; }
.query .note { color: var(--ink); font-size: 14px; margin-top: 6px; }
.same { color: var(--same); background: var(--same-back); }
.perhaps { color: var(--perhaps); background: var(--perhaps-back); }
.missing, .nothing { color: var(--soft); font-size: 13px; padding: 22px 16px; overflow-wrap: anywhere; }
.missing { text-align: center; }
rect { fill: none; vector-effect: non-scaling-stroke; }
.under { stroke: #000; stroke-opacity: .55; stroke-width: 5px; }
.box { stroke: #ffb02e; stroke-width: 2.5px; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
footer { padding-top: 14px; padding-bottom: 40px; color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
@media (max-width: 760px) { section { grid-template-columns: minmax(0, 1fr); }
  .query { position: static; } .query svg { max-height: 46vh; }
  .results { grid-template-columns: repeat(auto-fill, minmax(152px, 1fr)); gap: 10px; }
  .text { padding: 8px 10px 10px; } }
@media print { section { content-visibility: visible; break-inside: avoid; } .query { position: static; } }
"""
