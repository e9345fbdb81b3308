"""Cut-outs that stand and hang around the thing: plants, lamps, mugs, trees."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from .camera import Camera, cast_shadow, paint
from .canvas import Canvas, mix


@dataclass(frozen=True)
class Prop:
    """A cut-out that faces the wall's normal."""

    cutout: Image.Image
    width_m: float
    height_m: float


def paint_prop(
    image: Image.Image, camera: Camera, prop: Prop, x: float, y: float, z: float, *, hangs: bool = False
) -> None:
    """The prop with its shadow, in place; x, y, z is its lower left corner."""
    right, low, high = x + prop.width_m * 1.1, y - 0.03, y + prop.height_m * 0.9
    if hangs:
        shadow = [[x + 0.03, low, 0], [right, low, 0], [right, high, 0], [x + 0.03, high, 0]]
    else:
        shadow = [[x, y, z - 0.06], [right, y, z - 0.06], [right, y, z + 0.06], [x, y, z + 0.06]]
    cast_shadow(image, camera.outline(np.array(shadow)), 14, 0.45)
    paint(image, camera, prop.cutout, (x, y + prop.height_m, z), (prop.width_m, 0, 0), (0, -prop.height_m, 0))


@lru_cache(maxsize=32)
def prop_named(name: str) -> Prop:
    """Draw one prop: twice as large as kept, so that its edges are smooth."""
    width_m, height_m, *recipe = PROPS[name]
    scale = 900 if height_m < 0.6 else 300
    size = (round(width_m * scale), round(height_m * scale))
    big = Canvas(Image.new("RGBA", (size[0] * 2, size[1] * 2)), 100, 100)
    for step in recipe:
        if callable(step):
            step(big)
        else:
            big.sketch(step)
    cutout = big.image.resize(size, Image.Resampling.LANCZOS)
    # rounded by light: the left is brighter than the right
    across = np.interp(np.linspace(0, 1, size[0]), [0, 0.3, 1], [0.92, 1.0, 0.66])
    shade = Image.fromarray(np.tile((across * 255).astype(np.uint8), (size[1], 1)))
    lit = ImageChops.multiply(cutout.convert("RGB"), Image.merge("RGB", [shade] * 3))
    lit.putalpha(cutout.getchannel("A"))
    return Prop(lit, width_m, height_m)


def _leaves(c: Canvas) -> None:
    rng = np.random.default_rng(51)
    for _ in range(26):
        angle, reach = rng.uniform(-1.25, 1.25), rng.uniform(30, 72)
        x, y = 50 + reach * np.sin(angle) * 0.84, 77 - reach * np.cos(angle)
        green = mix((52, 104, 66), (128, 166, 86), rng.random())
        c.line(mix(green, (30, 50, 30), 0.4), 50, 77, x, y, thick=1.5)
        c.petal(green, x, y, 17, 6.5, angle * 0.8 - np.pi / 2 + rng.normal(0, 0.3))


def _spikes(c: Canvas) -> None:
    rng = np.random.default_rng(54)
    for _ in range(22):
        angle = rng.uniform(-1.0, 1.0)
        x, y = 50 + 45 * np.sin(angle), 62 - 60 * np.cos(angle) * rng.uniform(0.6, 1)
        c.poly(mix((70, 120, 84), (150, 182, 120), rng.random()), 47, 64, 53, 64, x + 5, y + 7, x, y)


def _crown(c: Canvas) -> None:
    rng = np.random.default_rng(52)
    for _ in range(420):
        angle, reach = rng.uniform(0, 6.28), rng.random() ** 0.5
        x, y = 50 + 44 * reach * np.cos(angle), 25 + 22 * reach * np.sin(angle)
        light = rng.random() * (1 - y / 67) + 0.1
        c.disc(mix((46, 86, 52), (138, 170, 84), light), x, y, rng.uniform(1.2, 3.6))


# name: width and height in metres, then what is drawn, back to front, in percent of the size
PROPS: dict[str, tuple[Any, ...]] = {
    "plant": (0.8, 1.35, "poly ba684a 30 78 70 78 64 100 36 100; rect c87656 28 76 72 81", _leaves),
    "floor_lamp": (0.42, 1.65, """rect 3a3634 47 20 53 97; oval 302c2a 20 95.5 80 100
        poly fae2b0 22 0 78 0 100 20 0 20; line d6b278 0 20 100 20 /2"""),
    "person": (0.56, 1.74, """poly 303648 30 52 70 52 66 100 54 100 50 64 44 100 32 100; round 843e3e 16 17 84 57
        round 743836 10 20 27 54; round 743836 74 20 91 54; rect d6a88a 43 12 57 19; oval 3e2c24 33 0 67 15"""),
    "tree": (2.2, 4.2, "poly 544032 46 100 54 100 52 30 48 30", _crown),
    "lamppost": (0.36, 3.6, """rect 282e30 44 12 56 100; rect 282e30 32 90 68 100
        poly f8e8ba 20 3 80 3 66 12 34 12; poly 282e30 10 3 90 3 50 0"""),
    "banner": (0.7, 3.3, """rect 46423e 6 0 12 100
        poly c4483c 12 3 100 5 94 36 12 40; poly f4e8d2 12 16 98 16 96 24 12 27"""),
    "mug": (0.11, 0.095, """oval cc5c4a 58 25 98 75 /8
        round d66450 5 6 75 98; oval eed6c8 5 0 75 16; oval 543424 10 3 70 14"""),
    "bottle": (0.078, 0.29, """round 2e5642 0 36 100 100; poly 2e5642 0 42 100 42 64 24 36 24; rect 2e5642 36 0 64 27
        rect 9c3c34 34 0 66 7; rect eee6d0 0 55 100 82; rect 96aaa0 14 40 22 53"""),
    "apples": (0.24, 0.17, """oval c43e34 10 8 50 64; oval e2a09a 20 20 28 32; oval 96aa40 46 6 86 62
        oval d8943c 28 -2 68 54; oval efd4b1 38 10 47 23
        poly e2decf 0 44 100 44 92 66 78 84 62 94 38 94 22 84 8 66; rect ceccc0 34 92 66 100"""),
    "pot": (0.16, 0.2, _spikes, "poly e8e4dc 20 60 80 60 70 100 30 100"),
    "candle": (0.07, 0.12, "round f0e2c2 10 30 90 100; oval faf0d6 10 26 90 36; oval ffc45c 40 6 60 26"),
    "glass": (0.075, 0.13, """poly d6e2e66e 0 0 100 0 86 100 14 100
        poly e8963cc8 5 35 95 35 86 100 14 100; line ffffffbe 12 5 22 90 /5"""),
    "clock": (0.3, 0.3, """oval 3c3836 1 1 99 99; oval f6f2e8 7 7 93 93; line 3c3836 50 12 50 18 /3
        line 3c3836 50 82 50 88 /3; line 3c3836 12 50 18 50 /3; line 3c3836 82 50 88 50 /3
        line 282626 66 40 50 50 44 20 /3"""),
    "sconce": (0.17, 0.3, "rect b08c54 42 50 58 100; poly fceac0 26 0 74 0 100 60 0 60"),
    "shelf": (0.75, 0.3, """rect 865e3c 0 88 100 100; rect aa463c 6 22 11 88; rect 3c5a6e 11.5 14 16 88
        rect d6b478 16.5 34 23 88; rect 5a6e54 23.5 18 28 88; rect c06a50 28.5 26 32 88; rect 4c6478 32.5 12 39 88
        poly 427046 72 60 66 34 76 14 80 40 86 10 92 38 88 62; poly e6ded2 72 60 88 60 86 88 74 88"""),
    "small_frames": (0.46, 0.5, """rect 40342c 0 0 46 60 /4; rect f0ece2 4 4 42 56; rect d6c8b0 11 10 35 50
        rect 40342c 54 12 100 52 /4; rect f0ece2 58 16 96 48; rect 96aab0 65 22 89 42"""),
    "wall_lamp": (0.26, 0.42, """rect 2c2e30 44 55 56 100; poly fae2a0 14 18 86 18 70 62 30 62
        poly 2c2e30 4 18 96 18 50 0; rect 2c2e30 28 60 72 67"""),
    "flag": (0.5, 0.7, """line 5a4c3c 4 100 30 0 /5
        poly 42748c 30 0 100 14 90 62 14 60; poly f0e8d6 25 20 96 32 93 46 20 40"""),
}  # fmt: skip
