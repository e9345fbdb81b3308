"""Walls, floors and table tops: flat textures that the camera sees at an angle."""

import numpy as np
from PIL import Image

from .canvas import BLACK, Canvas, Colour, hexed, mix, pick

WALL_M = 6.0  # wide, and repeated to both sides; things hang in the middle
PX_PER_M = 300

Size = tuple[float, float]


def blocks(tones: str, block_m: Size = (1.0, 1.0), size_m: Size = (WALL_M, 3.0), px_per_m: int = PX_PER_M) -> Canvas:
    """Bricks, tiles, boards or slabs, each in a tone of its own, or plain plaster; the canvas counts in metres.

    tones    rrggbb of the darkest block, the lightest and the joints; only one: plaster
    block_m  a block's width and height, with its joints
    """
    dark, light, joint = (np.array(hexed(code), np.float32) for code in (tones.split() * 3)[:3])
    rng = np.random.default_rng(int(tones[:6], 16))
    y = np.arange(size_m[1] * px_per_m, dtype=np.float32)[:, None] / px_per_m  # (H, 1)
    x = np.arange(size_m[0] * px_per_m, dtype=np.float32)[None] / px_per_m  # (1, W)
    row = (y // block_m[1]).astype(int)
    x = x + row % 2 * block_m[0] / 2  # (H, W)
    column = (x // block_m[0]).astype(int)
    share = rng.random((row.max() + 1, column.max() + 1), dtype=np.float32)[row, column]
    pixels = dark + (light - dark) * share[..., None]  # (H, W, 3)
    pixels[(x % block_m[0] < 0.014) | (y % block_m[1] < 0.014)] = joint
    # worn: cloudy at large, grainy at small
    height, width = share.shape
    clouds = Image.fromarray(rng.integers(0, 256, (height // 60 + 2, width // 60 + 2), dtype=np.uint8))
    cloud = np.asarray(clouds.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 128 - 1
    worn = 3.5 * cloud + 2.5 * rng.standard_normal((height, width), dtype=np.float32)
    return Canvas(Image.fromarray(np.clip(pixels + worn[..., None], 0, 255).astype(np.uint8)), *size_m)


def room(sketch: str, tones: str, block_m: Size = (1.0, 1.0)) -> Image.Image:
    """A wall 3 metres high with a sketch on it, in metres."""
    wall = blocks(tones, block_m)
    wall.sketch(sketch)
    return wall.image


def library() -> Image.Image:
    """Shelves full of books; the wall between them is free for what hangs there."""
    wall, rng = blocks("7a3e3a"), np.random.default_rng(16)
    for left in (0.0, 3.95):
        wall.rect((52, 36, 26), left, 0, left + 2.05, 3)
        for shelf in np.arange(0.36, 3, 0.36):
            x = left + 0.05
            while x < left + 1.95:
                wide, tall = rng.uniform(0.03, 0.087), rng.uniform(0.22, 0.31)
                cloth = pick(rng, (40, 70, 90), (150, 120, 70), (60, 80, 60), (190, 170, 140))
                book = wall.part(x, shelf - tall, x + wide, shelf)
                book.rect(mix((110, 60, 50), cloth, rng.uniform(0.3, 1)), 0, 0, 80, 100)
                book.rect((205, 180, 120), 15, 15, 65, 20)
                x += wide
            wall.rect((122, 86, 58), left, shelf - 0.01, left + 2.05, shelf + 0.03)
    wall.sketch("rect 7a563a 2 0 2.1 3; rect 7a563a 3.9 0 4 3; rect 5e402a 0 2.84 6 3")
    return wall.image


def house(paint: str, tones: str, block_m: Size = (1.0, 1.0)) -> Image.Image:
    """A shop below, windows above, 6 metres high; the strip between, where signs hang, stays free."""
    wall, wood = blocks(tones, block_m, (WALL_M, 6.0)), hexed(paint)
    wall.sketch(SHOP, wood=wood, door=mix(wood, BLACK, 0.25), dark=mix(wood, BLACK, 0.5))
    for left in (0.7, 2.5, 4.3):
        wall.part(left, 0.45, left + 1, 1.9).sketch(SHUTTERED, wood=wood, slat=mix(wood, BLACK, 0.25))
    return wall.image


def floor() -> Image.Image:
    """Slabs, 22 by 9 metres; hardly ever in the image, so one is enough for all places."""
    return blocks("8e8a84 9e9a94 706c68", (0.5, 0.5), (22, 9), px_per_m=60).image


def table_top(colour: Colour) -> Image.Image:
    """Planks with grain along their length, 3.2 by 1 metres."""
    rng = np.random.default_rng(sum(colour))
    lines = np.cumsum(rng.normal(0, 1, 300))
    lines = lines - np.convolve(lines, np.ones(41) / 41, "same")
    drift = np.cumsum(rng.normal(0, 0.12, (300, 24)), axis=1)
    grain = Image.fromarray(np.clip(128 + 9 * lines[:, None] + 5 * drift, 0, 255).astype(np.uint8))
    planks = np.asarray(grain.resize((1280, 400), Image.Resampling.BICUBIC), float)[..., None] / 128 - 1
    fine = rng.normal(0, 2, (400, 1280, 1))
    top = Image.fromarray(np.clip(np.array(colour) * (1 + 0.35 * planks) + fine, 0, 255).astype(np.uint8))
    for seam in (0.25, 0.5, 0.75):
        Canvas(top).line(mix(colour, BLACK, 0.4), 0, seam, 1, seam, thick=0.0016)
    return top


# in metres, for `room`
WINDOW = """
    rect c4daea .4 .6 1.6 1.8; poly 8ca896 .4 1.4 .8 1.25 1.2 1.35 1.6 1.2 1.6 1.8 .4 1.8
    poly 465c50 .4 1.6 .9 1.5 1.3 1.6 1.6 1.5 1.6 1.8 .4 1.8; rect f6f4ee .38 .58 1.62 1.82 /.06
    line f6f4ee 1 .6 1 1.8 /.04; rect d8d6d0 .33 1.8 1.67 1.87"""
CURTAINS = (
    WINDOW
    + """
    rect dccfb7 .1 .35 .5 2.75; line c4b296 .2 .35 .2 2.75 /.05; line c4b296 .36 .35 .36 2.75 /.05
    rect dccfb7 1.5 .35 1.9 2.75; line c4b296 1.6 .35 1.6 2.75 /.05; line c4b296 1.76 .35 1.76 2.75 /.05
    rect f4f2ec 0 2.88 6 3"""
)
WHITEBOARD = """
    rect 969ca4 .17 .77 1.63 1.73; rect f6f8fa .2 .8 1.6 1.7; rect fade78 .5 .9 .64 1.04; rect f6aaa0 .72 .95 .86 1.09
    rect a6d6e2 .55 1.2 .69 1.34; rect fade78 1.2 1.1 1.34 1.24; rect f6aaa0 1.25 1.4 1.39 1.54
    rect 787c84 0 2.9 6 3"""
PANELS = """
    rect eee8dc 0 2.05 6 3; rect f8f4ea 0 2.01 6 2.08; rect cec6b8 .1 2.2 1.1 2.8 /.02; rect cec6b8 1.3 2.2 2.3 2.8 /.02
    rect cec6b8 2.5 2.2 3.5 2.8 /.02; rect cec6b8 3.7 2.2 4.7 2.8 /.02; rect cec6b8 4.9 2.2 5.9 2.8 /.02"""
# for `house`: in metres, and an upper window in percent of it
SHOP = """
    rect wood .46 3.71 2.25 5.54; rect 4c5860 .54 3.79 2.17 5.46; poly 68747c .7 3.79 1.15 3.79 .75 5.46 .54 5.46 .54 4
    rect wood 3.71 3.71 5.5 5.54; rect 4c5860 3.79 3.79 5.42 5.46; poly 68747c 3.95 3.79 4.4 3.79 4 5.46 3.79 5.46
    round 8e7a64 1.2 5.1 1.5 5.46; round a4826e 1.6 4.9 1.95 5.46; round 7c8a78 4.6 5 5.1 5.46
    rect door .45 5.54 2.3 6; rect door 3.7 5.54 5.55 6; rect dark 2.42 3.72 3.53 6; rect door 2.48 3.78 3.47 6
    rect 526068 2.66 3.96 3.29 5; oval d4b464 3.32 5.06 3.4 5.14"""
SHUTTERED = """
    rect ded8cc -7 -6 107 106; rect 60747f 0 0 100 100; poly 748e9f 0 0 70 0 0 60; line f0ece2 50 0 50 100 /4
    line f0ece2 0 40 100 40 /4; rect wood -42 0 -2 100; rect wood 102 0 142 100; rect slat -38 4 -6 48 /2
    rect slat -38 53 -6 96 /2; rect slat 106 4 138 48 /2; rect slat 106 53 138 96 /2"""
