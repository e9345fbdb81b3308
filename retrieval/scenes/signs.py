"""Shop signs: a name, a mark, and sometimes a trade."""

from .canvas import BLACK, WHITE, Canvas, Palette, Random, mix, pick


def shop(c: Canvas, p: Palette, rng: Random, word: str) -> None:
    """A dark board with a mark on the left."""
    c.gradient(mix(p.ink, WHITE, 0.08), p.ink)
    c.rect(p.second, 0.024, 0.06, 0.976, 0.94, thick=0.01)
    c.rect(mix(p.ink, p.second, 0.5), 0.044, 0.11, 0.956, 0.89, thick=0.004)
    c.disc(p.second, 0.22, 0.5, 0.124)
    c.part(0.14, 0.3, 0.3, 0.7).sketch(pick(rng, *MARKS), fill=p.ink, other=p.first)
    c.write(word, p.paper, 0.4, 0.22, 0.92, 0.62, bold=0.025, spacing=0.08)
    trade = pick(rng, "BAKERY", "FISHMONGER", "COFFEE", "BOOKS", "FLOWERS", "LOCKSMITH", "TAILOR")
    c.write(f"{trade} · SINCE {rng.integers(1890, 2012)}", p.second, 0.45, 0.7, 0.9, 0.8, spacing=0.16)


def fascia(c: Canvas, p: Palette, rng: Random, word: str) -> None:
    """A light board: the name between two marks over a striped edge."""
    c.gradient(p.paper, mix(p.paper, BLACK, 0.07))
    c.rect(p.first, 0, 0.76, 1, 1)
    stripes = int(rng.integers(10, 26))
    for stripe in range(stripes):
        x = stripe / stripes
        c.poly(mix(p.first, p.second, 0.7), x, 1, x + 0.06, 0.76, x + 0.12, 0.76, x + 0.06, 1)
    mark = pick(rng, *MARKS)
    for left in (0.08, 0.744):
        c.part(left, 0.17, left + 0.176, 0.61).sketch(mark, fill=p.first, other=p.third)
    c.write(word, p.ink, 0.3, 0.15, 0.7, 0.63, bold=0.05, spacing=0.06)
    c.rect(p.ink, 0, 0, 1, 1, thick=0.012)


MARKS = (  # a cup, a fish, a loaf, a star, a leaf, a key
    "round fill 10 30 75 90; oval fill 60 37 100 75 /10; line other 35 20 40 0 /10",
    "oval fill 0 25 78 75; poly fill 67 50 100 25 100 75; oval other 14 38 26 52",
    "oval fill 0 22 100 78; line other 22 65 33 35 /10; line other 45 65 56 35 /10; line other 68 65 79 35 /10",
    "poly fill 50 0 63 32 98 35 71 57 79 91 50 73 21 91 29 57 2 35 37 32",
    "poly fill 50 0 72 22 80 50 72 78 50 100 28 78 20 50 28 22; line other 50 100 50 25 /10",
    "oval fill 2 27 48 73 /13; line fill 45 50 100 50 /13; line fill 75 50 75 72 /11; line fill 94 50 94 72 /11",
)
