"""A photo as it might be photographed again: from elsewhere, turned, in other light, a little out of focus.

Each view is a perspective image of the photo. Where the view shows more than the photo holds, another photo is the
background, as the table is behind a book. This module does not import torch: the decoder processes import it.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

# How far a view strays at difficulty 1; at difficulty 2 twice as far
ZOOM = (-0.35, 0.2)  # side of what a view shows over the photo's side, less 1; above 0 the background is seen
SHIFT = 0.1  # of the middle, either way, over the photo's side
TURN_DEGREES = 15.0  # either way
CORNER = 0.1  # how far each corner strays, over the view's side: perspective
LIGHT = (-0.35, 0.4)  # factors of brightness, contrast and saturation, less 1
CAST = 0.15  # of the light's colour: factors of the channels, less 1, either way
CAST_SHARE = 0.3
BLUR_SIGMA = (0.3, 1.5)  # pixels
BLUR_SHARE = 0.4


def render_view(
    rng: np.random.Generator,
    pixels: np.ndarray,
    background: np.ndarray,
    height: int,
    width: int,
    difficulty: float = 1.0,
) -> np.ndarray:
    """One view of a photo.

    pixels, background  (H, W, 3) uint8, of any two sizes
    difficulty          in [0, 2], how far it strays; 0 is the photo itself
    returns             (height, width, 3) uint8
    """
    photo = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGBA")
    photo = photo.resize((round(1.25 * width), round(1.25 * height)), Image.Resampling.BICUBIC)  # as fine as the view
    quad = draw_quad(rng, photo.height, photo.width, difficulty)
    seen = photo.transform(
        (width, height), Image.Transform.PERSPECTIVE, homography_to(quad, height, width), Image.Resampling.BICUBIC
    )
    view = Image.fromarray(np.ascontiguousarray(background)).resize((width, height), Image.Resampling.BICUBIC)
    view.paste(seen, mask=seen.getchannel("A"))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        view = enhance(view).enhance(1 + difficulty * rng.uniform(*LIGHT))
    if rng.random() < CAST_SHARE:
        tinted = np.asarray(view) * (1 + difficulty * rng.uniform(-CAST, CAST, 3))
        view = Image.fromarray(tinted.clip(0, 255).astype(np.uint8))
    if rng.random() < BLUR_SHARE:
        view = view.filter(ImageFilter.GaussianBlur(difficulty * rng.uniform(*BLUR_SIGMA)))
    return np.asarray(view)


def draw_quad(rng: np.random.Generator, height: int, width: int, difficulty: float) -> np.ndarray:
    """The four points (x, y) of the photo that a view's corners show, from the upper left clockwise.  (4, 2)"""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.5
    corners = corners + difficulty * rng.uniform(-CORNER, CORNER, (4, 2))
    corners = corners * (1 + difficulty * rng.uniform(*ZOOM))
    angle = np.deg2rad(difficulty * rng.uniform(-TURN_DEGREES, TURN_DEGREES))
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    size = np.array([width, height])
    middle = size * (0.5 + difficulty * rng.uniform(-SHIFT, SHIFT, 2))
    return (corners * size) @ turn.T + middle


def homography_to(quad: np.ndarray, height: int, width: int) -> list[float]:
    """The 8 numbers a..h with x' = (a x + b y + c) / (g x + h y + 1), y' = (d x + e y + f) / (...), as Pillow has them.

    They take the corners of (height, width) to the quad.
    """
    rows, values = [], []
    for (x, y), (to_x, to_y) in zip([(0, 0), (width, 0), (width, height), (0, height)], quad, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -x * to_x, -y * to_x], [0, 0, 0, x, y, 1, -x * to_y, -y * to_y]]
        values += [to_x, to_y]
    return np.linalg.solve(np.array(rows, float), np.array(values, float)).tolist()
