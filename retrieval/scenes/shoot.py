"""Takes one image: the camera is aimed, the place is painted, the thing in it, and all is lit."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .camera import Camera, cast_shadow, paint
from .canvas import Random, pick
from .light import expose
from .places import PLACES, TABLE_M, hide_a_part, lay_table, paint_place, paint_table
from .plan import Shot
from .things import KINDS, Thing

SceneBox = tuple[int, int, int, int]  # x, y, width, height in pixels

SIZES = ((1024, 768), (960, 720), (900, 675), (1020, 680), (768, 1024), (720, 960))


def shoot(shot: Shot) -> tuple[Image.Image, SceneBox | None]:
    """Take one image: the upright RGB image and where the thing is, None for a distractor.

    A query is taken with care: from nearby, rather straight, in even light and seldom with something before it.
    """
    rng = np.random.default_rng(shot.seed)
    place, thing, query = PLACES[shot.place], shot.thing, shot.role == "query"
    stands = KINDS[thing.kind].stands
    camera, corners = aim(thing, rng, query)

    image = Image.new("RGB", camera.size, place.above)
    paint_place(image, camera, place, rng)
    if stands:
        image = image.filter(ImageFilter.BoxBlur(max(camera.size) * rng.uniform(0.003, 0.008)))
        paint_table(image, camera, place)
        lay_table(image, camera, rng, behind=True)
    if shot.shows_thing:
        paint_thing(image, camera, thing, corners, stands)
    if rng.random() < (0.2 if query else 0.45):
        if stands:
            lay_table(image, camera, rng, behind=False)
        else:
            hide_a_part(image, camera, place, thing.size_m[0], rng)
    image = expose(image, pick(rng, *place.lamps), rng, gentle=query)

    if shot.role == "distractor":
        return image, None
    seen = camera.project(corners)  # (8, 2)
    left, top = np.maximum(seen.min(axis=0), 0).astype(int).tolist()
    right, bottom = np.minimum(seen.max(axis=0) + 1, camera.size).astype(int).tolist()
    return image, (left, top, right - left, bottom - top)


def aim(thing: Thing, rng: Random, query: bool) -> tuple[Camera, np.ndarray]:
    """A camera before the thing, and the thing's corners (8, 3): front from the top left clockwise, then back."""
    (width, height, depth), kind = thing.size_m, KINDS[thing.kind]
    aside = rng.uniform(-25, 25) if query else pick(rng, -1, 1) * rng.uniform(5, 45)
    if kind.stands:  # the thing is turned
        turn, yaw = np.radians(aside), np.radians(rng.uniform(-16, 16))
        middle = np.array([rng.uniform(-0.12, 0.12), TABLE_M + height / 2, 1.25 + rng.uniform(-0.1, 0.1)])
        wide = width + depth
    else:  # the camera goes around it
        turn, yaw = 0.0, np.radians(aside)
        middle = np.array([rng.uniform(-0.15, 0.15), kind.height_m + rng.uniform(-0.05, 0.1), depth / 2])
        wide = width
    half_across = width / 2 * np.array([np.cos(turn), 0, -np.sin(turn)])
    half_ahead = depth / 2 * np.array([np.sin(turn), 0, np.cos(turn)])
    half_up = np.array([0, height / 2, 0])
    face = middle + np.array(
        [half_up - half_across, half_up + half_across, half_across - half_up, -half_across - half_up]
    )
    corners = np.concatenate([face + half_ahead, face - half_ahead])

    size = pick(rng, *SIZES)
    reach = max(wide / size[0], height / size[1]) * max(size)  # metres that the longer side must span to hold it
    distance = reach * (rng.uniform(1.3, 1.65) if query else rng.uniform(1.35, 2.5))
    pitch = np.radians(rng.uniform(*kind.seen_from_deg))
    eye = middle + distance * np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    slack = reach * (0.05 if query else 0.2)
    target = middle + rng.uniform(-slack, slack, 3) * (1, 0.6, 0)
    return Camera(tuple(eye), tuple(target), rng.uniform(43, 54), rng.normal(0, 2.0), size), corners


def paint_thing(image: Image.Image, camera: Camera, thing: Thing, corners: np.ndarray, stands: bool) -> None:
    """Its shadow on the table or the wall, then the faces that look at the camera, in place."""
    front, back = corners[:4], corners[4:]
    reach = float(np.ptp(camera.project(corners)[:, 0]))
    if stands:
        foot = np.array([front[3], front[2], back[2], back[3]])
        cast_shadow(image, camera.outline(foot + np.array([0.03, 0.001, 0.015])), reach * 0.10, 0.75)
        cast_shadow(image, camera.outline(foot + np.array([0.004, 0.001, 0.006])), reach * 0.02, 0.6)
    else:
        drop = thing.size_m[2] + 0.02
        cast_shadow(image, camera.outline(front + drop * np.array([0.7, -1, -1])), reach * 0.03, 0.6)
    faces = [
        (thing.top, back[0], back[1], front[0], 1.0),
        (thing.top, front[3], front[2], back[3], 0.45),  # below
        (thing.side, front[1], back[1], front[2], 0.68),
        (thing.side, back[0], front[0], back[3], 0.78),
        (thing.front, front[0], front[1], front[3], 0.97),
    ]
    for texture, corner, right, below, light in faces:
        outward = np.cross(below - corner, right - corner)
        if np.dot(outward, np.subtract(camera.eye, corner)) > 0:
            lit = texture.point(lambda value, light=light: round(value * light)).convert("RGBA")
            soft = Image.new("L", lit.size, 255)  # the edges are half transparent
            ImageDraw.Draw(soft).rectangle((0, 0, lit.width - 1, lit.height - 1), outline=110)
            lit.putalpha(soft)
            paint(image, camera, lit, corner, right - corner, below - corner)
