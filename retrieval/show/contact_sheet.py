"""One image of a query and its best results side by side, for a README or a report."""

import os
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from indexer.errors import ImageError

from ..rerank.evidence import Box
from .results_page import PageQuery, PageResult, thumbnail
from .save_image import save_image

PAPER, CARD, INK, SOFT, ACCENT, BOX = "#f5f4f0", "#ffffff", "#1c1f24", "#565d68", "#17697a", "#ff9a1f"
VERDICT_INK = {"same": "#17663a", "perhaps": "#7a4b00", "no match": "#6b4a55"}
EDGE = 28  # pixels around and between


def contact_sheet(
    query: PageQuery, path: str | Path, *, top: int = 6, width_px: int = 1400, max_bytes: int = 200_000
) -> None:
    """Write a PNG or JPEG, by the suffix: the query on the left, its first `top` results in two rows on the right.

    max_bytes  a JPEG is packed harder until it is no larger, down to quality 40
    Raises SeenitError where it cannot be written.
    """
    columns = max(1, (min(top, len(query.results)) + 1) // 2)
    cell = (width_px - EDGE) // (columns + 2) - EDGE  # the query is two cells wide
    tall = cell * 3 // 4
    height = 2 * (tall + 64) + 3 * EDGE
    sheet = Image.new("RGB", (width_px, height), PAPER)
    draw = ImageDraw.Draw(sheet)

    big = (2 * cell + EDGE, height - 2 * EDGE - 54)
    name = os.path.basename(query.path) if query.path else "query"
    source = query.image if query.image is not None else query.path
    _place(sheet, source, (EDGE, EDGE), big, query.region)
    write_line(sheet, (EDGE, EDGE + big[1] + 12), query.note or "query", SOFT, 16, big[0])
    write_line(sheet, (EDGE, EDGE + big[1] + 32), name, INK, 20, big[0])

    for n, result in enumerate(query.results[:top]):
        x = EDGE + (2 + n % columns) * (cell + EDGE)
        y = EDGE + (n // columns) * (tall + 64 + EDGE)
        _place(sheet, result.path, (x, y), (cell, tall), result.box)
        bar = y + tall + 11
        draw.rounded_rectangle((x, bar, x + cell - 58, bar + 6), 3, fill="#e2dfd7")
        share = min(max(result.score, 0.0), 1.0)
        draw.rounded_rectangle((x, bar, x + max(6, round((cell - 58) * share)), bar + 6), 3, fill=ACCENT)
        write_line(sheet, (x + cell - 48, bar - 8), f"{result.score:.3f}", INK, 17, 60)
        write_line(sheet, (x, bar + 15), f"{result.rank}  {os.path.basename(result.path)}", INK, 17, cell)
        _verdict(sheet, result, (x, bar + 36), cell)
    save_image(sheet, path, max_bytes=max_bytes)


def write_line(
    sheet: Image.Image, corner: tuple[float, float], text: str, colour: str, size_px: int, room: float
) -> None:
    """One line of text, shortened in the middle where there is no room.

    corner  left and top, in pixels
    room    the width that it may take, in pixels
    """
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size_px)
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\n", " ")  # what is not UTF-8 becomes ?
    kept = len(text)
    short = text
    while kept > 4 and draw.textlength(short, font=font) > room:
        kept -= 1
        short = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    draw.text(corner, short, fill=colour, font=font)


def _verdict(sheet: Image.Image, result: PageResult, corner: tuple[int, int], room: int) -> None:
    """The verdict in its colour, what it rests on in grey."""
    words = result.verdict or ""
    write_line(sheet, corner, words, VERDICT_INK.get(words, SOFT), 14, room)
    if result.reason:
        used = round(ImageDraw.Draw(sheet).textlength(f"{words}  ", font=ImageFont.load_default(14))) if words else 0
        write_line(sheet, (corner[0] + used, corner[1] + 1), result.reason, SOFT, 13, room - used)


def _place(sheet: Image.Image, image: object, corner: tuple[int, int], size: tuple[int, int], box: Box | None) -> None:
    """Fit an image into a frame, with its box; an empty frame with the reason where it cannot be read."""
    draw = ImageDraw.Draw(sheet)
    draw.rounded_rectangle((*corner, corner[0] + size[0], corner[1] + size[1]), 8, fill="#e9e7e1")
    if image is None:
        return
    try:
        small = thumbnail(image, 2 * max(size))  # type: ignore[arg-type]
    except ImageError as error:
        write_line(sheet, (corner[0] + 12, corner[1] + 12), error.reason, SOFT, 16, size[0] - 24)
        return
    scale = min(size[0] / small.width, size[1] / small.height)
    small = small.resize(
        (max(1, round(small.width * scale)), max(1, round(small.height * scale))), Image.Resampling.LANCZOS
    )
    left, top = corner[0] + (size[0] - small.width) // 2, corner[1] + (size[1] - small.height) // 2
    sheet.paste(small, (left, top))
    if box is not None:
        x, y, w, h = (value * side for value, side in zip(box, small.size * 2, strict=True))
        draw.rectangle((left + x, top + y, left + x + w, top + y + h), outline=BOX, width=4)
