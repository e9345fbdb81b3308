"""One picture of a query and its best results side by side, for a README or a report."""

import io
import os
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from indexer.errors import PictureError, SeenitError
from indexer.files import os_reason

from .page import Box, PageQuery, thumbnail

PAPER, CARD, INK, SOFT, ACCENT, BOX = "#f5f4f0", "#ffffff", "#1c1f24", "#565d68", "#17697a", "#ff9a1f"
EDGE = 28  # pixels around and between


def contact_sheet(
    query: PageQuery, path: str | Path, *, top: int = 6, width_px: int = 1400, max_bytes: int = 200_000
) -> None:
    """Write a PNG or JPEG, by the suffix: the query on the left, its first `top` results in two rows on the right.

    max_bytes  a JPEG is packed harder until it is no larger, down to quality 40
    Raises SeenitError where it cannot be written.
    """
    path = Path(path)
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
    _write(draw, (EDGE, EDGE + big[1] + 12), "query", SOFT, 16, big[0])
    _write(draw, (EDGE, EDGE + big[1] + 32), name, INK, 20, big[0])

    for n, result in enumerate(query.results[:top]):
        x = EDGE + (2 + n % columns) * (cell + EDGE)
        y = EDGE + (n // columns) * (tall + 64 + EDGE)
        _place(sheet, result.path, (x, y), (cell, tall), result.box)
        bar = y + tall + 11
        draw.rounded_rectangle((x, bar, x + cell - 58, bar + 6), 3, fill="#e2dfd7")
        share = min(max(result.score, 0.0), 1.0)
        draw.rounded_rectangle((x, bar, x + max(6, round((cell - 58) * share)), bar + 6), 3, fill=ACCENT)
        _write(draw, (x + cell - 48, bar - 8), f"{result.score:.3f}", INK, 17, 60)
        _write(draw, (x, bar + 15), f"{result.rank}  {os.path.basename(result.path)}", INK, 17, cell)
        if result.verdict:
            _write(draw, (x, bar + 36), result.verdict, SOFT, 15, cell)
    _save(sheet, path, max_bytes)


def _place(
    sheet: Image.Image, picture: object, corner: tuple[int, int], size: tuple[int, int], box: Box | None
) -> None:
    """Fit a picture into a frame, with its box; an empty frame with the reason where it cannot be read."""
    draw = ImageDraw.Draw(sheet)
    draw.rounded_rectangle((*corner, corner[0] + size[0], corner[1] + size[1]), 8, fill="#e9e7e1")
    if picture is None:
        return
    try:
        small = thumbnail(picture, 2 * max(size))  # type: ignore[arg-type]
    except PictureError as error:
        _write(draw, (corner[0] + 12, corner[1] + 12), error.reason, SOFT, 16, size[0] - 24)
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


def _write(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, colour: str, size_px: int, room: int
) -> None:
    """One line, shortened in the middle where there is no room."""
    font = ImageFont.load_default(size_px)
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\n", " ")  # what is not UTF-8 becomes ?
    kept = len(text)
    short = text
    while kept > 4 and draw.textlength(short, font=font) > room:
        kept -= 1
        short = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    draw.text(corner, short, fill=colour, font=font)


def _save(sheet: Image.Image, path: Path, max_bytes: int) -> None:
    packed = io.BytesIO()
    if path.suffix.lower() == ".png":
        sheet.save(packed, "PNG", optimize=True)
    else:
        for quality in range(88, 36, -8):
            packed = io.BytesIO()
            sheet.save(packed, "JPEG", quality=quality, optimize=True)
            if packed.tell() <= max_bytes:
                break
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name[:40] + ".", delete=False) as file:
            unfinished = file.name
        try:
            Path(unfinished).write_bytes(packed.getvalue())
            os.chmod(unfinished, 0o644)  # a temporary file starts out private
            os.replace(unfinished, path)
        except BaseException:
            os.unlink(unfinished)
            raise
    except OSError as error:
        raise SeenitError(f"cannot write {path}: {os_reason(error)}; name another file") from None
