"""Pairs of images that only share a texture: two brick walls, two pages of print, two lawns. No two are of one thing.

Who matches patches meets such pairs everywhere, and regular textures even agree on a geometry. The two images of a
pair have the same kind of surface, much the same colours and the same light, but every brick, letter and leaf is drawn
anew; in every second round of kinds a thing of its own hangs on each. Controls show the same thing, surface and all,
from another side in another light: a matcher that says no to everything fails there.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from retrieval.scenes.camera import Camera, paint
from retrieval.scenes.canvas import Canvas, Colour, Random, mix, pick
from retrieval.scenes.light import LAMPS, expose
from retrieval.scenes.things import KINDS, make_thing
from retrieval.scenes.walls import blocks, table_top

SIZE = (640, 480)  # width, height of an image
SURFACE_PX = (1440, 1080)
SURFACE_M = (4.0, 3.0)
THING_KINDS = ("poster", "painting", "sign")  # flat ones, that hang
CROP_PX = 112
STUFF = (92, 200)  # COCO's numbers of what has no shape of its own: grass, sky, wall; lower ones are things

Surface = Callable[[Random], Image.Image]


@dataclass(frozen=True)
class TexturePair:
    """Two images with the same kind of texture; `same` where they show the same thing as well, as controls do."""

    first: Path
    second: Path
    texture: str
    same: bool


def texture_pairs(out: Path, count: int, *, controls: int = 0, seed: int = 0) -> tuple[TexturePair, ...]:
    """Draw `count` pairs of different things and `controls` pairs of the same thing; kinds of texture take turns.

    Writes the images and `manifest.csv` (path, role, instance, note) into `out`, so that it is a test set, too: the
    first of each pair is a query, the second is in the gallery, and only controls have an answer there.
    """
    out.mkdir(parents=True, exist_ok=True)
    pairs = []
    for number in range(count + controls):
        same = number >= count
        texture = list(SURFACES)[(number - count if same else number) % len(SURFACES)]
        round_of_kinds = number // len(SURFACES)
        paths = []
        for side in (0, 1):
            surface = SURFACES[texture](np.random.default_rng((seed, number, 0 if same else side)))
            with_thing = same or round_of_kinds % 2 == 1
            thing = number * 2 + (0 if same else side)
            lamp = list(LAMPS)[(number + (side if same else 0)) % len(LAMPS)]
            view = np.random.default_rng((seed, number, side, 7))
            image = _photograph(surface, thing if with_thing else None, lamp, view)
            paths.append(out / f"{number:03}_{texture}_{'ab'[side]}.jpg")
            image.save(paths[-1], quality=90)
        pairs.append(TexturePair(paths[0], paths[1], texture, same))
    _write_manifest(out / "manifest.csv", pairs)
    return tuple(pairs)


def crop_pairs(photos: Path, out: Path, count: int) -> tuple[TexturePair, ...]:
    """Up to `count` pairs of crops of different real photos that show the same stuff: lawns, roads, skies, walls.

    photos  a folder with `images/NAME.jpg` and `masks/NAME.png`, the masks with COCO's numbers of classes
    """
    out.mkdir(parents=True, exist_ok=True)
    of_class: dict[int, list[Image.Image]] = {}
    for mask in sorted((photos / "masks").glob("*.png")):
        with Image.open(mask) as opened, Image.open(photos / "images" / f"{mask.stem}.jpg") as photo:
            for stuff, crop in _crops_of_stuff(photo.convert("RGB"), np.asarray(opened)):
                of_class.setdefault(stuff, []).append(crop)
    by_turns = sorted((n, stuff) for stuff, crops in of_class.items() for n in range(len(crops) // 2))
    pairs = []
    for number, (n, stuff) in enumerate(by_turns[:count]):
        paths = [out / f"crop_{number:03}_{stuff}_{side}.jpg" for side in "ab"]
        for path, crop in zip(paths, of_class[stuff][2 * n :], strict=False):
            crop.resize((448, 448), Image.Resampling.BICUBIC).save(path, quality=92)
        pairs.append(TexturePair(paths[0], paths[1], f"class {stuff}", same=False))
    return tuple(pairs)


def _photograph(surface: Image.Image, thing: int | None, lamp: str, rng: Random) -> Image.Image:
    """The surface, with the thing of that number on it, from somewhere in front of it."""
    width, height = SURFACE_M
    yaw, pitch = np.radians(rng.uniform(-28, 28)), np.radians(rng.uniform(-16, 16))
    target = np.array([rng.uniform(-0.15, 0.15), rng.uniform(-0.1, 0.1), 0])
    distance = rng.uniform(1.5, 2.0)
    eye = target + distance * np.array([np.sin(yaw), np.sin(pitch), np.cos(yaw)])
    camera = Camera(tuple(eye), tuple(target), rng.uniform(42, 52), rng.normal(0, 4), SIZE)
    image = Image.new("RGB", SIZE, surface.resize((1, 1)).getpixel((0, 0)))
    paint(image, camera, surface, (-width / 2, height / 2, 0), (width, 0, 0), (0, -height, 0))
    if thing is not None:
        kind = THING_KINDS[thing % len(THING_KINDS)]
        front = make_thing(f"{kind}_{thing}", kind, thing // len(THING_KINDS), (thing,)).front
        wide, tall, _ = KINDS[kind].size_m
        scale = 0.75 / max(wide, tall)
        wide, tall = wide * scale, tall * scale
        paint(image, camera, front, (-wide / 2, tall / 2, 0), (wide, 0, 0), (0, -tall, 0))
    return expose(image, lamp, rng, gentle=True)


# ---- surfaces ----


def _noise(rng: Random, cells: int, octaves: int = 1) -> np.ndarray:
    """Clouds (H, W) in [-1, 1]: `cells` bumps across, then octaves, each twice as fine and half as strong."""
    width, height = SURFACE_PX
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        shape = (cells * 3 // 4 * 2**octave + 2, cells * 2**octave + 2)
        bumps = Image.fromarray(rng.uniform(-1, 1, shape).astype(np.float32))
        total += np.asarray(bumps.resize(SURFACE_PX, Image.Resampling.BICUBIC)) / 2**octave
    return total / max(float(np.abs(total).max()), 1e-6)


def _tinted(colour: Colour, change: np.ndarray) -> Image.Image:
    """A colour, brighter or darker by `change` levels (H, W)."""
    pixels = np.array(colour, np.float32) + change[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _near(colour: str, rng: Random) -> Colour:
    """rrggbb, moved a little: two surfaces of a kind are hardly ever of exactly one colour."""
    moved = np.array([int(colour[n : n + 2], 16) for n in (0, 2, 4)]) + rng.integers(-7, 8, 3)
    red, green, blue = np.clip(moved, 0, 255).tolist()
    return red, green, blue


def _sky(rng: Random) -> Image.Image:
    canvas = Canvas(Image.new("RGB", SURFACE_PX))
    canvas.gradient(_near("4f86c6", rng), _near("b9d4ea", rng))
    clouds = np.clip(_noise(rng, 4, 5) * 2.2 + 0.1, 0, 1)
    mask = Image.fromarray((clouds * 235).astype(np.uint8))
    canvas.image.paste(_tinted(_near("f2f3f4", rng), 18 * _noise(rng, 6, 4)), (0, 0), mask)
    return canvas.image


def _asphalt(rng: Random) -> Image.Image:
    grain = rng.normal(0, 1, SURFACE_PX[::-1]).astype(np.float32)
    soft = np.asarray(Image.fromarray(grain).reduce(3).resize(SURFACE_PX, Image.Resampling.BILINEAR))
    image = _tinted(_near("62625f", rng), 9 * _noise(rng, 5, 3) + 7 * grain + 26 * soft)
    cracks = Canvas(image, *SURFACE_M)
    for _ in range(3):
        steps = np.cumsum(rng.normal(0, 0.06, (40, 2)) + rng.normal(0, 0.05, 2), axis=0) + rng.uniform(0.5, 2.5, 2)
        cracks.line((44, 44, 42), *steps.ravel(), thick=0.006)
    return image


def _blocks(tones: str, block_m: tuple[float, float], rng: Random) -> Image.Image:
    """Bricks, tiles or slabs; `walls.blocks` draws each block's tone anew for another first colour."""
    codes = ["".join(f"{part:02x}" for part in _near(tone, rng)) for tone in tones.split()]
    size = (block_m[0] * rng.uniform(0.94, 1.06), block_m[1] * rng.uniform(0.94, 1.06))
    return blocks(" ".join(codes), size, SURFACE_M, px_per_m=360).image


def _planks(rng: Random) -> Image.Image:
    return table_top(_near("966844", rng)).resize(SURFACE_PX, Image.Resampling.BICUBIC)


def _print(rng: Random) -> Image.Image:
    """Columns of made-up words."""
    image = Image.new("RGB", SURFACE_PX, _near("f1ede2", rng))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(22)
    ink = _near("2a2827", rng)
    for left in range(30, SURFACE_PX[0], 470):
        for top in range(20, SURFACE_PX[1], 30):
            x = left + (26 if rng.random() < 0.12 else 0)
            line = ""
            while font.getlength(line) < (320 if rng.random() > 0.02 else 0):
                line += "".join(rng.choice(list("eeeaaiioutnrslcdmphgbfyvwk"), int(rng.integers(2, 10)))) + " "
            pen.text((x, top), line, ink, font)
    return image


def _strokes(tones: str, reach: float, wide: float, number: int, upright: float, rng: Random) -> Image.Image:
    """Blades, leaves or stones: ellipses over each other, the lower ones darker; lengths are shares of the width."""
    colours = [_near(tone, rng) for tone in tones.split()]
    canvas = Canvas(Image.new("RGB", SURFACE_PX, mix(colours[0], (0, 0, 0), 0.55)), 1, 0.75)
    for n in range(number):
        depth = 0.5 * (1 - n / number)
        colour = mix(mix(pick(rng, *colours), pick(rng, *colours), rng.random()), (0, 0, 0), depth)
        angle = rng.normal(np.pi / 2, 0.45) if rng.random() < upright else rng.uniform(0, np.pi)
        size = rng.uniform(0.6, 1.3)
        canvas.petal(colour, rng.random(), rng.uniform(0, 0.75), reach * size, wide * size, angle)
    return canvas.image


def _cloth(rng: Random) -> Image.Image:
    """A twill: threads that cross, in two tones, a little uneven."""
    width, height = SURFACE_PX
    bend = 3 * _noise(rng, 5, 2)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    pitch = rng.uniform(13, 15)
    twill = np.sin(2 * np.pi * (x + y + bend) / pitch) + 0.5 * np.sin(2 * np.pi * (x - y + bend) / (pitch * 0.5))
    threads = rng.normal(0, 5, (1, width)) + rng.normal(0, 5, (height, 1))
    return _tinted(_near("7a6a86", rng), 15 * twill + threads + 10 * _noise(rng, 3, 2))


SURFACES: dict[str, Surface] = {
    "sky": _sky,
    "asphalt": _asphalt,
    "brick": partial(_blocks, "7c3b31 b4654a b4a696", (0.25, 0.085)),
    "print": _print,
    "grass": partial(_strokes, "3f7a2b 5c9a37 7fae4a", 0.022, 0.0024, 6500, 0.9),
    "cloth": _cloth,
    "tiles": partial(_blocks, "b9cfd0 d3e2de efece4", (0.2, 0.2)),
    "foliage": partial(_strokes, "2f6a34 4c8a3c 78a64c", 0.02, 0.0085, 4500, 0.2),
    "gravel": partial(_strokes, "8f8a83 b4aea4 6e6861 c9c2b6", 0.011, 0.0085, 6500, 0.0),
    "planks": _planks,
    "slabs": partial(_blocks, "a4a29c b6b4ae 8a8882", (0.5, 0.5)),
}


# ---- crops of photos ----


def _crops_of_stuff(photo: Image.Image, classes: np.ndarray) -> Iterator[tuple[int, Image.Image]]:
    """For each class of stuff that fills a square of the photo, the class and the square with the most contrast."""
    grey = np.asarray(photo.convert("L"), np.float32)
    best: dict[int, tuple[float, int, int]] = {}
    for top in range(0, photo.height - CROP_PX + 1, 16):
        for left in range(0, photo.width - CROP_PX + 1, 16):
            inside = np.s_[top : top + CROP_PX, left : left + CROP_PX]
            numbers, shares = np.unique(classes[inside], return_counts=True)
            stuff = int(numbers[shares.argmax()])
            if STUFF[0] <= stuff <= STUFF[1] and shares.max() >= 0.98 * CROP_PX**2:
                best[stuff] = max(best.get(stuff, (0.0, 0, 0)), (float(grey[inside].std()), top, left))
    for stuff, (_, top, left) in best.items():
        yield stuff, photo.crop((left, top, left + CROP_PX, top + CROP_PX))


def _write_manifest(path: Path, pairs: Sequence[TexturePair]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "role", "instance", "note"])
        for number, pair in enumerate(pairs):
            rows.writerow([pair.first.name, "query", f"thing{number}" if pair.same else "none", pair.texture])
            rows.writerow([pair.second.name, "gallery", f"thing{number}", pair.texture])
