"""Boxes of cereal, tea and biscuits: loud fronts with a name, and their sides."""

from PIL import Image

from .canvas import WHITE, Canvas, Palette, Random, Sides, hexed, mix, pick


def cereal(c: Canvas, p: Palette, rng: Random, word: str) -> None:
    """A burst, a bowl and a loud name."""
    c.rect(p.first, 0, 0, 1, 1)
    rays = int(rng.integers(9, 15))
    for ray in range(rays):
        start = 360 * ray / rays
        c.slice(mix(p.first, p.second, 0.45), 0.5, 0.25, 1.5, start, start + 180 / rays)
    c.write(word, p.paper if sum(p.paper) > 380 else p.ink, 0.07, 0.08, 0.93, 0.26, bold=0.07)
    c.poly(p.third, 0.12, 0.56, 0.88, 0.56, 0.7, 0.83, 0.3, 0.83)
    c.oval(mix(p.third, WHITE, 0.75), 0.12, 0.49, 0.88, 0.63)
    for _ in range(34):
        at = rng.uniform(0.2, 0.8), rng.uniform(0.46, 0.59)
        c.disc(pick(rng, hexed("d99a3d"), p.second, hexed("b06f2a")), *at, 0.042)
        c.disc(hexed("7c4a1c"), *at, 0.014)
    c.round(p.ink, 0.1, 0.3, 0.9, 0.37)
    c.write("CRISP WHOLE GRAIN", p.paper, 0.16, 0.315, 0.84, 0.355, spacing=0.1)
    c.write(f"{rng.integers(25, 75) * 10} g", p.paper, 0.3, 0.9, 0.7, 0.94)


def tea(c: Canvas, p: Palette, rng: Random, word: str) -> None:
    """Leaves around an oval label."""
    c.rect(p.third, 0, 0, 1, 1)
    for _ in range(70):
        leaf = mix(p.third, pick(rng, p.first, p.second, p.ink), 0.55)
        c.petal(leaf, rng.random(), rng.random(), rng.uniform(0.06, 0.12), 0.03, rng.uniform(0, 6.28))
    c.oval(p.ink, 0.09, 0.263, 0.91, 0.737)
    c.oval(p.paper, 0.1, 0.27, 0.9, 0.73)
    c.oval(p.first, 0.135, 0.29, 0.865, 0.71, thick=0.006)
    c.write(word, p.ink, 0.2, 0.4, 0.8, 0.52, bold=0.02)
    c.write("FINE LEAF TEA", p.first, 0.28, 0.55, 0.72, 0.59, spacing=0.15)
    c.write(f"No. {rng.integers(2, 99)}", p.ink, 0.3, 0.34, 0.7, 0.37)


def biscuit(c: Canvas, p: Palette, rng: Random, word: str) -> None:
    """A sash over a pattern of discs and diamonds."""
    columns = int(rng.integers(5, 8))
    grid = Canvas(c.image, columns, columns * c.image.height / c.image.width)
    for row in range(int(columns * 1.5)):
        for column in range(columns + 1):
            x, y = column + 0.5 * (row % 2), row + 0.5
            colour = pick(rng, p.first, p.second, p.third)
            if rng.random() < 0.5:
                grid.disc(colour, x, y, 0.34)
            else:
                grid.poly(colour, x, y - 0.4, x + 0.4, y, x, y + 0.4, x - 0.4, y)
    c.poly(p.ink, 0, 0.36, 1, 0.28, 1, 0.62, 0, 0.7)
    for y in (0.37, 0.69):
        c.line(p.second, 0, y, 1, y - 0.08, thick=0.02)
    c.write(word, p.paper, 0.06, 0.41, 0.94, 0.54, bold=0.06)
    c.write("BUTTER BISCUITS", p.second, 0.2, 0.555, 0.8, 0.595, spacing=0.1)


def cardboard(front: Image.Image, deep: int, p: Palette, word: str) -> Sides:
    """The right side and the top of a box."""
    width, tall = front.size
    side = Canvas(Image.new("RGB", (deep, tall), mix(p.first, p.ink, 0.2)))
    side.rect(p.paper, 0.12, 0.4, 0.88, 0.92)
    for line in range(14):
        y = 0.44 + 0.033 * line
        side.line(mix(p.paper, p.ink, 0.6), 0.2, y, 0.55 + 0.25 * (line * 7 % 5) / 4, y, thick=0.02)
    turned = Canvas(Image.new("RGB", (round(tall * 0.3), deep), mix(p.first, p.ink, 0.2)))
    turned.write(word, p.paper, 0.05, 0.3, 0.95, 0.7, bold=0.05)
    side.image.paste(turned.image.rotate(90, expand=True), (0, round(tall * 0.06)))
    top = Canvas(Image.new("RGB", (width, deep), mix(p.first, p.paper, 0.15)))
    top.write(word, p.ink, 0.15, 0.3, 0.85, 0.7, bold=0.05)
    return side.image, top.image
