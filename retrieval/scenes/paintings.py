"""Paintings: a motif in short brush strokes, in a frame."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .canvas import BLACK, WHITE, Canvas, Front, Palette, Random, hexed, mix, pick


def painted(motif: Front) -> Front:
    """The motif as a painting."""

    def front(c: Canvas, p: Palette, rng: Random, word: str) -> None:
        (w, h), frame = c.image.size, round(c.image.height * rng.uniform(0.08, 0.12))
        inner = Image.new("RGB", (w - 2 * frame, h - 2 * frame), p.paper)
        motif(Canvas(inner), p, rng, word)
        wood = hexed(pick(rng, "b8923f", "2a2522", "6b4226", "d9d2c3", "8a6d3b"))
        draw = ImageDraw.Draw(c.image)
        for step in range(frame):  # a moulding, lit from the top left
            bulge = float(np.sin(step / frame * np.pi * 2.5))
            right, bottom = w - 1 - step, h - 1 - step
            lit = mix(wood, (255, 246, 220), max(0.0, 0.12 + 0.22 * bulge))
            draw.line((step, bottom, step, step, right, step), lit)
            dark = mix(wood, (12, 8, 4), max(0.0, 0.18 + 0.2 * bulge))
            draw.line((step, bottom, right, bottom, right, step), dark)
        c.image.paste(_brushed(inner, rng), (frame, frame))
        draw.rectangle((frame, frame, w - frame, h - frame), outline=mix(wood, BLACK, 0.6), width=3)

    return front


def _brushed(plain: Image.Image, rng: Random) -> Image.Image:
    """The image in brush strokes, first long ones, then short ones."""
    canvas, pixels = plain.filter(ImageFilter.GaussianBlur(3)), np.asarray(plain)
    draw = ImageDraw.Draw(canvas)
    for length, count in ((0.045, 1500), (0.02, 2600)):
        xs, ys = rng.uniform(0, 1, (2, count)) * np.array([[plain.width - 1], [plain.height - 1]])
        tones = np.rint(rng.uniform(-22, 22, (count, 1)))
        colours = np.clip(pixels[ys.astype(int), xs.astype(int)] + tones, 0, 255).astype(int).tolist()  # (count, 3)
        lean = rng.uniform(-0.6, 0.6, count)
        dx, dy = length * plain.width / 2 * np.array([np.cos(lean), np.sin(lean)])
        for colour, ends in zip(colours, np.column_stack([xs - dx, ys - dy, xs + dx, ys + dy]).tolist(), strict=True):
            draw.line(ends, fill=tuple(colour), width=round(length * 150))
    return canvas


def meadow(c: Canvas, p: Palette, rng: Random, word: str) -> None:
    """Trees and a hut before hills."""
    c.gradient(mix(p.third, (150, 190, 225), 0.6), mix(p.second, (255, 240, 215), 0.6))
    for step in range(4):
        green = mix(mix((120, 150, 90), p.first, 0.35), (30, 50, 40), step / 6)
        c.ridge(green, rng, 0.5 + 0.12 * step, 0.05)
    for _ in range(int(rng.integers(4, 8))):
        x, y, tall = rng.uniform(0.05, 0.95), rng.uniform(0.55, 0.85), rng.uniform(0.12, 0.3)
        c.line((60, 42, 32), x, y, x, y - tall, thick=0.012)
        for _ in range(6):
            leaves = mix(p.first, (40, 80, 45), rng.uniform(0.2, 0.8))
            c.disc(leaves, x + rng.normal(0, tall * 0.12), y - tall + rng.normal(0, tall * 0.14), tall * 0.17)
    x, y = rng.uniform(0.25, 0.7), rng.uniform(0.6, 0.7)
    c.rect(p.paper, x, y, x + 0.15, y + 0.12)
    c.poly(p.first, x - 0.02, y, x + 0.17, y, x + 0.075, y - 0.1)
    c.rect(p.ink, x + 0.06, y + 0.05, x + 0.1, y + 0.12)


def harbour(c: Canvas, p: Palette, rng: Random, word: str) -> None:
    """Sailing boats at dusk."""
    c.gradient(mix(p.second, (255, 225, 180), 0.4), mix(p.first, (250, 200, 160), 0.3))
    c.disc((255, 244, 214), rng.uniform(0.2, 0.8), 0.42, 0.07)
    c.ridge(mix(p.third, p.ink, 0.4), rng, 0.46, 0.03)
    c.gradient(mix(p.third, (235, 200, 170), 0.3), mix(p.third, p.ink, 0.6), 0, 0.5, 1, 1)
    for _ in range(int(rng.integers(3, 6))):
        x, y, tall = rng.uniform(0.1, 0.9), rng.uniform(0.55, 0.85), rng.uniform(0.14, 0.32)
        boat = c.part(x - tall * 0.3, y - tall, x + tall * 0.3, y + tall * 0.14)
        boat.sketch(BOAT, hull=p.ink, sail=p.paper, jib=pick(rng, p.first, p.second))


BOAT = "poly hull 0 88 100 88 85 100 15 100; poly sail 50 84 50 0 92 84; poly jib 46 84 46 17 12 84"


def still_life(c: Canvas, p: Palette, rng: Random, word: str) -> None:
    """Flowers in a vase, and fruit."""
    c.gradient(mix(p.ink, (60, 45, 40), 0.5), mix(p.third, (70, 55, 45), 0.5))
    c.rect(mix(p.second, (90, 60, 40), 0.4), 0, 0.68, 1, 1)
    x = rng.uniform(0.3, 0.6)
    for _ in range(int(rng.integers(9, 16))):
        at = x + rng.normal(0, 0.11), 0.27 + rng.normal(0, 0.08)
        c.line((58, 92, 60), x, 0.5, *at, thick=0.008)
        c.disc(pick(rng, p.first, p.second, p.paper), *at, rng.uniform(0.03, 0.06))
        c.disc(p.ink, *at, 0.015)
    c.oval(p.third, x - 0.1, 0.46, x + 0.1, 0.78)
    c.rect(p.third, x - 0.05, 0.42, x + 0.05, 0.52)
    c.oval(mix(p.third, WHITE, 0.5), x - 0.075, 0.5, x - 0.03, 0.68)
    for _ in range(int(rng.integers(3, 7))):
        x, y, r = rng.uniform(0.1, 0.92), rng.uniform(0.72, 0.86), rng.uniform(0.045, 0.075)
        fruit = pick(rng, p.first, (227, 160, 44), (143, 166, 58))
        c.oval(mix(p.second, (30, 20, 15), 0.65), x - r, y + r * 0.8, x + r * 1.5, y + r * 1.4)
        c.disc(fruit, x, y, r)
        c.disc(mix(fruit, WHITE, 0.6), x - r * 0.3, y - r * 0.4, r * 0.3)


def colour_fields(c: Canvas, p: Palette, rng: Random, word: str) -> None:
    """Rectangles, discs and strokes over each other."""
    colours = (p.first, p.second, p.third, p.ink)
    for _ in range(9):
        x, y = rng.uniform(-0.1, 0.8, 2)
        c.rect(pick(rng, *colours), x, y, x + rng.uniform(0.15, 0.5), y + rng.uniform(0.1, 0.45))
    for _ in range(3):
        x, y, radius = *rng.uniform(0.1, 0.9, 2), rng.uniform(0.05, 0.12)
        c.disc(pick(rng, *colours), x, y, radius)
        c.line(p.ink, *rng.uniform(0, 1, 4), thick=0.012)
