"""What is looked for: posters, boxes, signs, paintings and books, each with a word and colours of its own."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .boxes import biscuit, cardboard, cereal, tea
from .canvas import Canvas, Front, Palette, Sides, hexed
from .paintings import colour_fields, harbour, meadow, painted, still_life
from .posters import alpine, bloom, night, rings, stripes, tiles, waves
from .signs import fascia, shop

# paper, ink, first, second, third
COLOURS = """
f4e9d8 22333b e4572e f3a712 2a7f9e; f7f3e9 1d2d44 d1495b edae49 00798c; 1b2a41 f5efe6 e0a458 c84c09 4f8a8b;
fff4e0 2b2d42 ef476f ffd166 06a77d; e9f0ea 14342b 60935d f2c57c bb4430; f0ead2 3a2e39 f15152 edb183 1e555c;
23201d f4ede4 d9ae61 a63d40 6494aa; fdf0f0 132043 1f4172 f1b4bb c94f6d; e7f1f7 0b2545 13608c 8da9c4 ee964b;
fbf7ef 2d1e2f a84448 e7a977 5f7470; 12372a fbfada adbc9f d98e04 e8e2c4; f9dcc4 3d2c2e d4582f fec89a 7b9e87;
2d1b3d fff1e6 f26ca7 f7b32b 5bc0be; eef0eb 153243 284b63 b4b8ab d62246"""
PALETTES = tuple(Palette(*map(hexed, codes.split())) for codes in COLOURS.split(";"))

HOMES = ("kitchen", "living_room", "cafe", "office", "hallway", "library", "studio")
STREETS = ("market", "old_town", "arcade", "harbour", "alley", "square")


def pages(front: Image.Image, deep: int, p: Palette, word: str) -> Sides:
    """The leaves of a book between its covers, seen edge on."""
    shades = np.random.default_rng(5).integers(0, 34, (1, deep, 1))
    leaves = np.tile(np.array((238, 230, 212)) - shades, (front.height, 1, 1)).astype(np.uint8)
    leaves[:, :4] = leaves[:, -4:] = p.first
    side = Image.fromarray(leaves)
    return side, side.rotate(90, expand=True).resize((front.width, deep))


def board(front: Image.Image, deep: int, p: Palette, word: str) -> Sides:
    """The edges of what hangs: its front goes on around the corner."""
    return front.crop((front.width - 4, 0, front.width, front.height)), front.crop((0, 0, front.width, 4))


@dataclass(frozen=True)
class Kind:
    """What all things of a kind share."""

    fronts: tuple[Front, ...]
    words: str  # separated by commas; each thing has the next
    places: tuple[str, ...]
    size_px: tuple[int, int]  # of the front
    size_m: tuple[float, float, float]  # width, height, depth
    sides: Callable[[Image.Image, int, Palette, str], Sides] = board
    stands: bool = False  # on the table; else it hangs
    height_m: float = 1.5  # of the middle of what hangs
    seen_from_deg: tuple[float, float] = (-10, 10)  # negative: from below


KINDS = {
    "poster": Kind(
        fronts=(alpine, rings, tiles, waves, bloom),
        words="VALDORA, BLUE NOTE, FORMA 62, LUNA MAR, JARDIM, NORDKAP, OFFBEAT, KVADRAT, MISTRAL, POLARIS, SIROCCO",
        places=(*HOMES, "station"),
        size_px=(620, 868),
        size_m=(0.70, 0.98, 0.01),
    ),
    "box": Kind(
        fronts=(cereal, tea, biscuit),
        words="CRUNCHO, ASSAMBRA, PETITA, SOLARO, MONTEA, KRUMEL, NUTTAVI, OOLINA, FRUMENT, BELLA RIO, KOKORO, HAVRE",
        places=HOMES,
        size_px=(520, 728),
        size_m=(0.20, 0.28, 0.075),
        sides=cardboard,
        stands=True,
        seen_from_deg=(8, 28),
    ),
    "sign": Kind(
        fronts=(shop, fascia),
        words="ROSSELLI, NORDLYS, CASA VERA, HARLOW & CO, TIDEWATER, LE PETIT, MAGNOLIA, OLD MILL, SOLEIL, PICCOLO, IO",
        places=STREETS,
        size_px=(1040, 416),
        size_m=(1.8, 0.72, 0.08),
        height_m=2.75,
        seen_from_deg=(-22, -8),
    ),
    "painting": Kind(
        fronts=(painted(meadow), painted(harbour), painted(still_life), painted(colour_fields)),
        words="",
        places=(*HOMES, "museum"),
        size_px=(820, 640),
        size_m=(0.92, 0.72, 0.05),
    ),
    "book": Kind(
        fronts=(night, stripes, waves),
        words="NIGHT FERRY, ON STILLNESS, LOW TIDE, THE ORCHARD, PAPER MOONS, SALT, AMBER, GLASSWORK, OXBOW, MIRA, JET",
        places=HOMES,
        size_px=(480, 696),
        size_m=(0.145, 0.21, 0.03),
        sides=pages,
        stands=True,
        seen_from_deg=(8, 28),
    ),
}


@dataclass(frozen=True)
class Thing:
    """One instance: its faces and its size."""

    name: str  # poster_03
    kind: str
    front: Image.Image
    side: Image.Image
    top: Image.Image
    size_m: tuple[float, float, float]  # width, height, depth
    note: str = ""


def make_thing(name: str, kind: str, nth: int, seed: tuple[int, ...], *, like_first: bool = False) -> Thing:
    """Draw one thing; the same arguments give the same thing.

    nth         chooses layout, colours and word, each from its own end of the lists: negative ones are strangers
    like_first  a look-alike of number 0: its layout in other colours, with another word
    """
    what = KINDS[kind]
    layout = 0 if like_first else nth
    rng = np.random.default_rng((*seed, 60, layout % 1000))
    palettes = np.random.default_rng((*seed, 77)).permutation(len(PALETTES))
    palette = PALETTES[palettes[nth % len(PALETTES)]]
    words = what.words.split(", ")
    word = words[nth % len(words)]
    width, height = what.size_px
    canvas = Canvas(Image.new("RGB", (width * 2, height * 2), palette.paper))  # twice as large, for smooth edges
    what.fronts[layout % len(what.fronts)](canvas, palette, rng, word)
    front = canvas.image.resize(what.size_px, Image.Resampling.LANCZOS)
    deep = max(1, round(height * what.size_m[2] / what.size_m[1]))
    note = f"look-alike of {kind}_01" if like_first else ""
    return Thing(name, kind, front, *what.sides(front, deep, palette, word), what.size_m, note)
