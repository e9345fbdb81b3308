"""Rooms and streets: a back wall, a floor, a table, and what stands and hangs around."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

from PIL import Image

from .camera import Camera, paint
from .canvas import BLACK, Colour, Random, mix, pick
from .props import paint_prop, prop_named
from .walls import CURTAINS, PANELS, PX_PER_M, WALL_M, WHITEBOARD, WINDOW, floor, house, library, room, table_top

TABLE_M = 0.78

Texture = Callable[..., Image.Image]

PUBLIC = ("plant", "person")


@dataclass(frozen=True)
class Scene:
    """A room or street and its possible lights."""

    wall: Texture
    lamps: tuple[str, ...]
    table: Colour = (150, 104, 68)
    above: Colour = (240, 238, 232)  # the ceiling or the sky
    props: tuple[str, ...] = ("plant", "floor_lamp")
    before: tuple[str, ...] = ("plant", "floor_lamp")  # what may hide a part of the thing
    hung: tuple[str, ...] = ("clock", "sconce", "shelf", "small_frames")
    hung_beside_m: tuple[float, float] = (0.7, 0.95)  # from the middle of the wall
    hung_above_m: float = 1.5


def _street(wall: Texture, *lamps: str) -> Scene:
    return Scene(
        wall,
        lamps,
        above=(178, 208, 232),
        props=("lamppost", "person", "tree"),
        before=("tree", "lamppost", "banner"),
        hung=("wall_lamp", "flag"),
        hung_beside_m=(1.2, 1.5),
        hung_above_m=2.3,
    )


METRO = "rect 1c5266 0 .46 6 .74; rect 464a4e 0 2.8 6 3"
TILES, BRICKS, SLABS = (0.2, 0.1), (0.23, 0.075), (0.75, 0.37)
TILED = partial(room, WINDOW, "bed2d0 d6e4e0 e9e6dc", TILES)
CURTAINED = partial(room, CURTAINS, "c7cfbe")
BRICK = partial(room, "", "70372c b8694c b4a294", BRICKS)
MEETING = partial(room, WHITEBOARD, "dee0e4")
STRIPED = partial(room, PANELS, "d2af90 e2c8ac d6b698", (0.12, 9.0))
CONCRETE = partial(room, "", "a6a6a2 b2b2ae 8e8e8c", (1.5, 0.75))
UNDERGROUND = partial(room, METRO, "d2d0c4 e8e6da e2e0d4", (0.3, 0.15))
GALLERY = partial(room, "rect c4beb6 0 2.9 6 3", "e2ded8")

PLACES = {
    "kitchen": Scene(TILED, ("day", "sun", "tube"), (206, 176, 138)),
    "living_room": Scene(CURTAINED, ("day", "bulb", "sun")),
    "cafe": Scene(BRICK, ("bulb", "dusk", "day"), (112, 74, 50), (70, 62, 58), PUBLIC),
    "office": Scene(MEETING, ("tube", "day", "shade"), (224, 222, 216)),
    "hallway": Scene(STRIPED, ("bulb", "day"), (88, 62, 48)),
    "library": Scene(library, ("bulb", "sun"), (128, 82, 52), (84, 64, 48)),
    "studio": Scene(CONCRETE, ("shade", "day", "tube"), (190, 190, 186), (196, 196, 192)),
    "station": Scene(UNDERGROUND, ("tube", "shade"), above=(96, 98, 100), props=PUBLIC),
    "museum": Scene(GALLERY, ("day", "bulb"), props=PUBLIC),
    "market": _street(partial(house, "3e6054", "e2c696"), "sun", "day"),
    "old_town": _street(partial(house, "2e3a4e", "66382f a86450 beb0a0", BRICKS), "shade", "day"),
    "arcade": _street(partial(house, "5c4032", "bab4a8 d4cec2 cecac0", SLABS), "sun", "bulb"),
    "harbour": _street(partial(house, "eeeade", "628898 7ea2ae 4d6a76", (3.0, 0.15)), "day", "sun"),
    "alley": _street(partial(house, "5a6e54", "c47c62"), "shade", "dusk"),
    "square": _street(partial(house, "96403a", "ece4d4"), "sun", "day", "dusk"),
}


def paint_place(image: Image.Image, camera: Camera, place: Scene, rng: Random) -> None:
    """Floor, wall, and what hangs and stands at both sides, in place."""
    paint(image, camera, _made(floor), (-11, 0, 0), (22, 0, 0), (0, 0, 9))
    wall, shift = _made(place.wall), rng.uniform(-0.25, 0.25)
    height = wall.height / PX_PER_M
    for tile in (-2, -1, 0, 1):
        paint(image, camera, wall, ((tile + 0.5) * WALL_M + shift, height, 0), (WALL_M, 0, 0), (0, -height, 0))
    for side in (-1, 1):
        if rng.random() < 0.65:
            prop = prop_named(pick(rng, *place.hung))
            x = side * rng.uniform(*place.hung_beside_m) + (0 if side > 0 else -prop.width_m)
            paint_prop(image, camera, prop, x, place.hung_above_m + rng.uniform(-0.15, 0.3), 0.03, hangs=True)
        if rng.random() < 0.75:
            prop = prop_named(pick(rng, *place.props))
            x = side * rng.uniform(0.95, 1.7) - prop.width_m / 2
            paint_prop(image, camera, prop, x, 0.0, rng.uniform(0.25, 0.6))


def paint_table(image: Image.Image, camera: Camera, place: Scene) -> None:
    """The table that things stand on, in place."""
    edge = Image.new("RGB", (8, 8), mix(place.table, BLACK, 0.45))
    paint(image, camera, edge, (-1.6, TABLE_M, 1.75), (3.2, 0, 0), (0, -0.05, 0))
    paint(image, camera, _made(table_top, place.table), (-1.6, TABLE_M, 0.75), (3.2, 0, 0), (0, 0, 1.0))


def lay_table(image: Image.Image, camera: Camera, rng: Random, *, behind: bool) -> None:
    """Small things on the table, a few behind the thing or one partly before it, in place."""
    for _ in range(int(rng.integers(1, 4)) if behind else 1):
        prop = prop_named(pick(rng, "mug", "bottle", "apples", "pot", "candle", "glass"))
        x = pick(rng, -1, 1) * (rng.uniform(0.12, 0.42) if behind else rng.uniform(0.09, 0.15)) - prop.width_m / 2
        z = rng.uniform(0.85, 1.1) if behind else rng.uniform(1.38, 1.48)
        paint_prop(image, camera, prop, x, TABLE_M, z)


def hide_a_part(image: Image.Image, camera: Camera, place: Scene, width_m: float, rng: Random) -> None:
    """Something between the camera and one side of a hanging thing of this width, in place."""
    prop, side = prop_named(pick(rng, *place.before)), pick(rng, -1, 1)
    edge = side * width_m * (0.5 - rng.uniform(0.0, 0.22))  # the prop's middle reaches over so much
    near = rng.uniform(0.2, 0.35)  # of the way to the camera
    x = edge + (camera.eye[0] - edge) * near - prop.width_m / 2 + side * prop.width_m * 0.25
    paint_prop(image, camera, prop, x, 0.0, max(0.3, camera.eye[2] * near))


@lru_cache(maxsize=64)
def _made(texture: Texture, *colour: Colour) -> Image.Image:
    return texture(*colour)
