"""A match as one image: both photos, inliers joined by lines, and where else they are alike.

Colours run from violet to yellow, growing lighter all the way, so that they can be told apart with any eyes and in
grey. Lines and dots are drawn at twice the size and shrunk, for Pillow draws hard edges.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..rerank.evidence import Box, Evidence
from .contact_sheet import BOX, INK, PAPER, SOFT, VERDICT_INK, write_line

# R, C rows and columns of patches

SCALE = np.array([(70, 40, 150), (150, 50, 165), (225, 85, 110), (252, 160, 60), (246, 240, 120)])  # RGB, low to high
LINES = 60  # pairs joined by lines; the others are dots
EDGE = 28  # pixels around and between, in an image 1400 wide
TALLEST = 0.55  # height of a photo as a fraction of the whole width
SHARPER = 2  # how much larger lines are drawn than shown


@dataclass(frozen=True)
class Frame:
    """Where a photo lies on the sheet, in pixels."""

    x: int
    y: int
    width: int
    height: int

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A place given in fractions of the photo."""
        return self.x + x * self.width, self.y + y * self.height

    def lower(self, by: int) -> "Frame":
        return Frame(self.x, self.y + by, self.width, self.height)


def draw_match(
    query: Image.Image,
    result: Image.Image,
    evidence: Evidence,
    heat_query: np.ndarray | None = None,
    heat_result: np.ndarray | None = None,
    width_px: int = 1400,
    titles: tuple[str, str] = ("query", "result"),
) -> Image.Image:
    """Two upright RGB photos side by side, what joins them, and below them how well each patch is found in the other.

    heat_query, heat_result  (R, C) cosines as `heat_maps` returns them; without both there is no second row
    titles                   names of the photos, shortened where there is no room
    returns                  RGB, `width_px` wide, as high as it needs to be
    """
    unit = width_px / 1400
    edge = round(EDGE * unit)
    top = edge + round(96 * unit)
    frames = side_by_side(query.size, result.size, width_px, edge, top)
    heats = (heat_query, heat_result) if heat_query is not None and heat_result is not None else None
    rows = 1 if heats is None else 2
    height = top + rows * (frames[0].height + edge) + (round(44 * unit) if heats else 0)
    sheet = Image.new("RGB", (width_px, height), PAPER)
    for photo, frame in zip((query, result), frames, strict=True):
        sheet.paste(
            photo.convert("RGB").resize((frame.width, frame.height), Image.Resampling.LANCZOS), (frame.x, frame.y)
        )
    sheet = _with_lines(sheet, frames, evidence, unit)

    _head(sheet, evidence, titles, frames, edge, unit)
    if heats:
        words = ("how well each part of it is found in the result", "and each part of the result in the query")
        below = frames[0].height + round(44 * unit)
        for photo, heat, frame, text in zip((query, result), heats, frames, words, strict=True):
            lower = frame.lower(below)
            sheet.paste(heat_image(photo, heat, (frame.width, frame.height)), (lower.x, lower.y))
            write_line(sheet, (frame.x, lower.y - round(30 * unit)), text, SOFT, round(18 * unit), frame.width)
    return sheet


def heat_maps(query_tokens: np.ndarray, result_tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How well each patch of one image is found anywhere in the other: its best cosine.

    query_tokens   (R, C, T)    float32, L2-normalised, of every patch
    result_tokens  (R', C', T)
    returns        (R, C) and (R', C') in [-1, 1]
    """
    cosines = query_tokens.reshape(-1, query_tokens.shape[-1]) @ result_tokens.reshape(-1, result_tokens.shape[-1]).T
    return cosines.max(1).reshape(query_tokens.shape[:2]), cosines.max(0).reshape(result_tokens.shape[:2])


def heat_image(photo: Image.Image, heat: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The photo in the colours of a map, (width, height) in pixels.

    heat  (R, C) from 0 (violet) to 1 (yellow); what lies beyond is cut off. Never stretched to its own least and
          greatest: two unlike photos stay violet.
    """
    smooth = Image.fromarray(np.asarray(heat, np.float32)).resize(size, Image.Resampling.BICUBIC)
    grey = np.asarray(photo.convert("L").resize(size, Image.Resampling.LANCZOS), np.float32) / 255  # (H, W)
    shaded = colour_of(np.asarray(smooth)) * (0.45 + 0.55 * grey[..., None])  # (H, W, 3)
    return Image.fromarray(shaded.round().astype(np.uint8))


def colour_of(values: np.ndarray) -> np.ndarray:
    """Values (...) from 0 to 1 as (..., 3) uint8 colours of the scale."""
    values = np.clip(np.nan_to_num(values), 0, 1) * (len(SCALE) - 1)
    stops = np.arange(len(SCALE))
    return np.stack([np.interp(values, stops, SCALE[:, channel]) for channel in range(3)], -1).round().astype(np.uint8)


def spread_out(pairs: np.ndarray, count: int = LINES) -> np.ndarray:
    """Indices of at most `count` pairs, ascending, taken evenly over the query's image so that no part is left out.

    pairs  (M, 5) as in `Evidence`
    """
    by_place = np.lexsort((pairs[:, 0], (pairs[:, 1] * 16).astype(int)))
    return np.sort(by_place[np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)])


def side_by_side(
    query_size: tuple[int, int], result_size: tuple[int, int], width_px: int, edge: int, top: int
) -> tuple[Frame, Frame]:
    """Frames of the same height for two photos (width, height), centred."""
    shapes = [width / height for width, height in (query_size, result_size)]
    room = width_px - 3 * edge
    height = min(room / sum(shapes), TALLEST * width_px)
    widths = [max(1, int(height * shape)) for shape in shapes]
    left = (width_px - sum(widths) - edge) // 2
    tall = max(1, round(height))
    return Frame(left, top, widths[0], tall), Frame(left + widths[0] + edge, top, widths[1], tall)


def _with_lines(sheet: Image.Image, frames: tuple[Frame, Frame], evidence: Evidence, unit: float) -> Image.Image:
    """The sheet with boxes, and with lines between inliers; the strongest lie on top.

    What is no match has no box.
    """
    layer = Image.new("RGBA", (sheet.width * SHARPER, sheet.height * SHARPER), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    thin = SHARPER * unit
    for frame, box in zip(frames, (evidence.query_box, evidence.box), strict=True):
        if box is not None and evidence.verdict != "no match":
            _outline(draw, frame, box, thin)
    pairs = evidence.pairs
    joined = set(spread_out(pairs).tolist())
    for n in reversed(range(len(pairs))):
        x, y, u, v, cosine = pairs[n].tolist()
        colour = tuple(colour_of(np.array(cosine)).tolist())
        ends = [(px * SHARPER, py * SHARPER) for px, py in (frames[0].at(x, y), frames[1].at(u, v))]
        if n in joined:
            draw.line(ends, fill=(0, 0, 0, 70), width=round(3.6 * thin))
            draw.line(ends, fill=(*colour, 215), width=round(2 * thin))
        for px, py in ends:
            radius = (4.2 if n in joined else 2.6) * thin
            draw.ellipse((px - radius, py - radius, px + radius, py + radius), (*colour, 255), (0, 0, 0, 190))
    layer = layer.resize(sheet.size, Image.Resampling.BOX)
    return Image.alpha_composite(sheet.convert("RGBA"), layer).convert("RGB")


def _outline(draw: ImageDraw.ImageDraw, frame: Frame, box: Box, thin: float) -> None:
    x, y, w, h = box
    (left, top), (right, bottom) = frame.at(x, y), frame.at(x + w, y + h)
    place = tuple(value * SHARPER for value in (left, top, right, bottom))
    draw.rectangle(place, outline=(0, 0, 0, 140), width=round(6 * thin))
    draw.rectangle(
        tuple(v + d * 1.5 * thin for v, d in zip(place, (1, 1, -1, -1), strict=True)),
        outline=BOX,
        width=round(3 * thin),
    )


def _head(
    sheet: Image.Image,
    evidence: Evidence,
    titles: tuple[str, str],
    frames: tuple[Frame, Frame],
    edge: int,
    unit: float,
) -> None:
    """The verdict with its reason, the scale of colours, and the photos' names."""
    draw = ImageDraw.Draw(sheet)
    large, small = round(30 * unit), round(20 * unit)
    words = evidence.verdict or "not calibrated"
    write_line(sheet, (edge, round(20 * unit)), words, VERDICT_INK.get(words, INK), large, sheet.width // 2)
    after = edge + draw.textlength(words, font=ImageFont.load_default(large)) + round(18 * unit)
    reason = evidence.reason
    if len(evidence.pairs) > LINES:
        reason += f" ({LINES} joined)"
    write_line(sheet, (after, round(28 * unit)), reason, INK, small, sheet.width // 2)

    bar = Frame(sheet.width - edge - round(290 * unit), round(36 * unit), round(220 * unit), round(10 * unit))
    ramp = colour_of(np.linspace(0, 1, bar.width))[None].repeat(bar.height, 0)
    sheet.paste(Image.fromarray(ramp), (bar.x, bar.y))
    for x, text in ((bar.x - round(66 * unit), "unlike"), (bar.x + bar.width + round(10 * unit), "alike")):
        write_line(sheet, (x, bar.y - round(7 * unit)), text, SOFT, round(18 * unit), round(80 * unit))
    for title, frame in zip(titles, frames, strict=True):
        write_line(sheet, (frame.x, frame.y - round(32 * unit)), title, SOFT, small, frame.width)
