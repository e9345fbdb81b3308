"""Posters: flat shapes in five colours, and one word."""

import numpy as np

from .canvas import Canvas, Palette, Random, mix, pick


def alpine(c: Canvas, p: Palette, rng: Random, word: str) -> None:
    """Ridges before a low sun."""
    c.gradient(mix(p.paper, p.third, 0.25), mix(p.paper, p.second, 0.75))
    c.disc(p.first, rng.uniform(0.25, 0.75), rng.uniform(0.24, 0.34), rng.uniform(0.12, 0.2))
    for step in range(5):
        c.ridge(mix(mix(p.third, p.paper, 0.5), p.ink, step / 4.6), rng, 0.36 + 0.11 * step, 0.085)
    c.rect(p.ink, 0, 0.84, 1, 1)
    c.write(word, p.paper, 0.08, 0.865, 0.92, 0.935, bold=0.02, spacing=0.16)
    c.write("WINTER AND SUMMER", p.second, 0.2, 0.952, 0.8, 0.972, spacing=0.2)


def rings(c: Canvas, p: Palette, rng: Random, word: str) -> None:
    """A record: rings around a point off the middle."""
    c.rect(p.ink, 0, 0, 1, 1)
    x, y = rng.uniform(0.3, 0.7), rng.uniform(0.5, 0.66)
    colours = (p.first, p.ink, p.second, p.paper, p.third, p.ink)
    for ring in range(13, 0, -1):
        c.disc(colours[ring % 6] if rng.random() < 0.8 else p.ink, x, y, 0.062 * ring)
    c.disc(p.paper, x, y, 0.045)
    c.rect(p.paper, 0, 0, 1, 0.2)
    c.write(word, p.ink, 0.06, 0.04, 0.94, 0.15, bold=0.05)
    when = f"LIVE · {rng.integers(1, 29)} MAY · DOORS {rng.integers(6, 10)} PM"
    c.write(when, p.paper, 0.1, 0.93, 0.9, 0.965, spacing=0.12)


def tiles(c: Canvas, p: Palette, rng: Random, word: str) -> None:
    """A grid of quarter circles, discs and triangles."""
    columns, colours = int(rng.integers(3, 5)), (p.first, p.second, p.third, p.ink, p.paper)
    margin = 0.06 * columns / 0.88  # the unit is a tile
    grid = Canvas(c.image, columns + 2 * margin, (columns + 2 * margin) * c.image.height / c.image.width)
    for row in range(int(columns * 1.24)):
        for column in range(columns):
            x, y = margin + column, margin + row
            back, fore = (colours[i] for i in rng.choice(5, 2, replace=False))
            grid.rect(back, x, y, x + 0.99, y + 0.99)
            shape, turn = rng.integers(4), int(rng.integers(4))
            points = [(x, y), (x + 0.99, y), (x + 0.99, y + 0.99), (x, y + 0.99)]
            if shape <= 1:
                grid.slice(fore, *points[turn], 0.99, 90 * turn, 90 * turn + 90)
            elif shape == 2:
                grid.disc(fore, x + 0.5, y + 0.5, 0.33)
            else:
                grid.poly(fore, *(value for point in points if point != points[turn] for value in point))
    c.write(word, p.ink, 0.06, 0.875, 0.94, 0.95, bold=0.05, spacing=0.1)


def waves(c: Canvas, p: Palette, rng: Random, word: str) -> None:
    """Bands of waves under a moon."""
    c.gradient(p.third, p.paper)
    c.disc(p.second, rng.uniform(0.25, 0.75), 0.27, 0.17)
    phase, length = rng.uniform(0, 6), rng.uniform(0.22, 0.4)
    for band in range(9):
        swell = np.sin(np.linspace(0, 2 * np.pi / length, 60) + phase + band * 1.4)
        c.below((p.ink, p.first, p.paper, p.third)[band % 4], 0.42 + 0.06 * band + 0.018 * swell)
    c.rect(p.ink, 0, 0.885, 1, 1)
    c.write(word, p.second, 0.08, 0.91, 0.92, 0.975, bold=0.03, spacing=0.14)


def bloom(c: Canvas, p: Palette, rng: Random, word: str) -> None:
    """A flower of turned petals."""
    c.line(p.third, 0.5, 0.45, 0.47, 0.83, thick=0.022)
    for side in (-1, 1):
        c.petal(p.third, 0.48 + 0.12 * side, 0.66, 0.13, 0.045, -0.6 * side)
    petals = int(rng.integers(7, 14))
    tall = c.image.width / c.image.height
    for layer, (reach, colour) in enumerate(((0.37, p.first), (0.27, p.second), (0.17, p.ink))):
        for leaf in range(petals):
            angle = 2 * np.pi * (leaf + 0.5 * layer) / petals
            x, y = 0.5 + reach / 2 * np.cos(angle), 0.38 + tall * reach / 2 * np.sin(angle)
            c.petal(mix(colour, p.paper, 0.18 * (leaf % 2)), x, y, reach / 2, reach * 0.24, angle)
    c.disc(p.second, 0.5, 0.38, 0.06)
    c.write(word, p.ink, 0.08, 0.86, 0.92, 0.94, bold=0.03, spacing=0.1)
    c.rect(p.ink, 0.03, 0.02, 0.97, 0.98, thick=0.008)


def stripes(c: Canvas, p: Palette, rng: Random, word: str) -> None:
    """Stripes of all widths and one disc, the word in a panel."""
    y = 0.0
    while y < 1:
        band = rng.uniform(0.015, 0.1)
        c.rect(pick(rng, p.first, p.second, p.third, p.paper, p.ink), 0, y, 1, y + band)
        y += band
    x, y = rng.uniform(0.3, 0.7), rng.uniform(0.62, 0.74)
    c.disc(p.ink, x, y, 0.25)
    c.disc(p.second, x, y, 0.19)
    c.rect(p.paper, 0.08, 0.12, 0.92, 0.4)
    c.write(word, p.ink, 0.13, 0.16, 0.87, 0.29, bold=0.02)
    c.write(author(rng), p.first, 0.2, 0.33, 0.8, 0.36, spacing=0.14)


def night(c: Canvas, p: Palette, rng: Random, word: str) -> None:
    """Firs under stars and a moon."""
    c.gradient(p.third, p.second)
    for _ in range(50):
        c.disc(p.paper, rng.random(), rng.uniform(0, 0.5), rng.uniform(0.002, 0.006))
    c.disc(p.paper, rng.uniform(0.2, 0.8), rng.uniform(0.4, 0.5), 0.15)
    c.ridge(mix(p.ink, p.third, 0.45), rng, 0.68, 0.05)
    for x in rng.uniform(0, 1, 9):
        tall = rng.uniform(0.1, 0.28)
        for tier in range(3):
            y, wide = 0.86 - tall * (0.2 + 0.28 * tier), tall * (0.36 - 0.09 * tier)
            c.poly(p.ink, x - wide, y, x + wide, y, x, y - tall * 0.42)
    c.rect(p.ink, 0, 0.84, 1, 1)
    c.write(word, p.paper, 0.07, 0.06, 0.93, 0.2, bold=0.03)
    c.write(author(rng), p.paper, 0.2, 0.9, 0.8, 0.935, spacing=0.14)


def author(rng: Random) -> str:
    return pick(rng, "MARA ELLWOOD", "T. OKONKWO", "INES VALDRE", "JONAS HJORT", "LI WENYAN", "P. ARDELEAN")
