"""A crop of a photo and a view of it in other light, perhaps from elsewhere; drawn in the decoder processes.

Of a crop and its view it is known which point of the one shows which point of the other, so that their features can be
compared place by place. Light is changed as light changes: on linear values, by stops, unevenly, with shadows and with
the noise of a sensor that had little of it. This module does not import torch: the decoder processes import it.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from indexer.images.jobs import Broken, Cut, Job, Outcome, Settings
from indexer.images.light import lighten
from indexer.images.preprocess import MAX_ASPECT, detail_px
from indexer.images.synthetic_views import draw_quad, homography_to
from indexer.sources.place import ImageRef

from .sources import decoded_place

PHOTO_PX = 224  # a photo's longer side at least, about as an index sees it
ENLARGED = (1.0, 1.35)  # beyond that, for crops to differ in scale
DIFFICULTY = (0.3, 1.6)  # of a view from elsewhere, see `draw_quad`
LIT_SHARE = 0.5  # of the crops, brightened where they are dark as an index brightens them; all views are

# Light, as it was drawn when this was tried first; none of it was tuned
GAMMA = 2.2
AS_BRIGHT_SHARE, DARKER_SHARE = 0.15, 0.45  # of the views; the rest is a little darker or brighter
DARKER_STOPS, ABOUT_STOPS = 2.2, 0.8  # deviation of the one, bound of the other
UNEVEN_SHARE, UNEVEN_STOPS = 0.7, 0.9
UNEVEN_CELLS = (2, 5)  # of a side of the coarse field
SHADOW_SHARE, SHADOW_STOPS = 0.35, (0.5, 3.5)
CAST_SHARE, CAST_STOPS = 0.5, 0.5
HAZE_SHARE, MOST_HAZE = 0.2, 0.15
FADED_SHARE = 0.25  # that lose some of their colour
NOISE_POWERS = (-3.2, -1.6)  # of ten: deviation at the brightest
READ_NOISE = 0.002  # beside the noise of the light itself, as if so much of it were always there
LONG_EXPOSURE_BELOW, LONG_EXPOSURE_SHARE = -1.5, 0.5  # stops from which on a camera exposes longer, and how often
CONTRAST_SHARE, CONTRAST = 0.4, (0.6, 1.5)
BLUR_SHARE, BLUR_SIGMA = 0.3, (0.3, 1.2)  # pixels
JPEG_SHARE, JPEG_QUALITY = 0.3, (25, 85)


# S side in pixels
@dataclass(frozen=True, eq=False)
class RelitPair:
    """A crop, and a view of about the same place.

    crop, view  (S, S, 3) uint8
    homography  (3, 3) float64, takes a point (x, y, 1) of the view to one of the crop, in pixels, up to a factor
    difficulty  how far the view strays, 0: it is taken from where the crop is
    """

    crop: np.ndarray
    view: np.ndarray
    homography: np.ndarray
    difficulty: float


def pair_job(name: str, place: ImageRef, seed: Sequence[int], view_share: float, dark_below: int) -> Job:
    """An order for `cut_pair`; the pool's resolution is the side of the crop."""
    order = {"place": list(place), "seed": list(seed), "view_share": view_share, "dark_below": dark_below}
    return Job(name, order=order)


def cut_pair(job: Job, settings: Settings) -> Outcome:
    """Read one photo and draw a pair of it: the work of a decoder process. `read_pair` unpacks the answer's pixels."""
    order, side = job.order, settings.resolution
    detail = detail_px(max(side, PHOTO_PX))
    image = decoded_place(job.path, ImageRef(*order["place"]), detail, settings.limits)
    if isinstance(image, Broken):
        return image
    pair = draw_pair(
        np.random.default_rng(order["seed"]), image.image, side, order["view_share"], dark_below=order["dark_below"]
    )
    numbers = np.array([*pair.homography.ravel(), pair.difficulty])  # (10,)
    pixels = np.concatenate([numbers.view(np.uint8), pair.crop.ravel(), pair.view.ravel()])
    return Cut(job.path, pixels, (side, side), image.width, image.height)


def read_pair(answer: Cut) -> RelitPair:
    """The pair in an answer of `cut_pair`."""
    numbers, pixels = answer.pixels[:80].view(np.float64), answer.pixels[80:]
    crop, view = pixels.reshape(2, *answer.grid, 3)
    return RelitPair(crop, view, numbers[:9].reshape(3, 3), float(numbers[9]))


def draw_pair(
    rng: np.random.Generator, image: Image.Image, side: int, view_share: float, *, dark_below: int
) -> RelitPair:
    """Cut a square of `side` pixels out of an RGB image and take a view of it; with `view_share` from elsewhere."""
    photo = _enlarged(rng, image, side)
    left, top = (int(rng.integers(length - side + 1)) for length in photo.size)
    crop = np.asarray(photo.crop((left, top, left + side, top + side)))
    homography, difficulty, view = np.eye(3), 0.0, crop
    if rng.random() < view_share:
        difficulty = rng.uniform(*DIFFICULTY)
        numbers = homography_to(draw_quad(rng, side, side, difficulty), side, side)
        homography = np.array([*numbers, 1.0]).reshape(3, 3)
        in_photo = np.array([(1, 0, left), (0, 1, top), (0, 0, 1)]) @ homography
        numbers = (in_photo / in_photo[2, 2]).ravel()[:8].tolist()
        perspective = Image.Transform.PERSPECTIVE
        view = np.asarray(photo.transform((side, side), perspective, numbers, Image.Resampling.BICUBIC))
    if rng.random() < LIT_SHARE:
        crop = lighten(crop, dark_below)
    return RelitPair(crop, lighten(relight(rng, view), dark_below), homography, difficulty)


def seen_places(homography: np.ndarray, side: int, patch_size: int) -> np.ndarray:
    """Where in the crop the middles of a view's patches lie.

    returns  (rows, columns, 2) float32, x and y; -1 and 1 are the crop's edges, what is beyond lies outside
    """
    middles = (np.arange(side // patch_size) + 0.5) * patch_size
    x, y = np.meshgrid(middles, middles)
    points = np.stack([x, y, np.ones_like(x)], axis=-1) @ homography.T  # (rows, columns, 3)
    return (points[..., :2] / points[..., 2:] / side * 2 - 1).astype(np.float32)


def relight(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """The same in other light, through another camera.  (H, W, 3) uint8 -> the same"""
    stops = _exposure(rng)
    light = (pixels / 255.0) ** GAMMA * 2.0 ** (stops + _uneven(rng, pixels.shape[:2]))[..., None]
    if rng.random() < CAST_SHARE:
        light *= 2.0 ** rng.uniform(-CAST_STOPS, CAST_STOPS, 3)
    if rng.random() < HAZE_SHARE:
        light += rng.uniform(0, MOST_HAZE)
    if rng.random() < FADED_SHARE:
        grey = light.mean(-1, keepdims=True)
        light = grey + (light - grey) * rng.uniform()
    noise = 10 ** rng.uniform(*NOISE_POWERS)
    light += noise * np.sqrt(light + READ_NOISE) * rng.normal(size=light.shape)
    if stops < LONG_EXPOSURE_BELOW and rng.random() < LONG_EXPOSURE_SHARE:
        light *= 2.0 ** rng.uniform(0, -stops)  # the noise stays
    shown = light.clip(0, 1) ** (1 / GAMMA) * 255
    if rng.random() < CONTRAST_SHARE:
        shown = shown.mean() + (shown - shown.mean()) * rng.uniform(*CONTRAST)
    image = Image.fromarray(shown.clip(0, 255).astype(np.uint8))
    if rng.random() < BLUR_SHARE:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR_SIGMA)))
    if rng.random() < JPEG_SHARE:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(*JPEG_QUALITY)))
        image = Image.open(file)
    return np.asarray(image)


def _exposure(rng: np.random.Generator) -> float:
    """Stops, mostly below 0."""
    kind = rng.random()
    if kind < AS_BRIGHT_SHARE:
        return 0.0
    if kind < AS_BRIGHT_SHARE + DARKER_SHARE:
        return -abs(float(rng.normal(0, DARKER_STOPS)))
    return float(rng.uniform(-ABOUT_STOPS, ABOUT_STOPS))


def _uneven(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """What the light's stops differ by from place to place: a smooth field, perhaps a shadow with a straight edge."""
    height, width = shape
    field = np.zeros((height, width))
    if rng.random() < UNEVEN_SHARE:
        cells = int(rng.integers(*UNEVEN_CELLS))
        coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
        field += abs(rng.normal(0, UNEVEN_STOPS)) * (smooth - smooth.mean()) / (smooth.std() + 1e-6)
    if rng.random() < SHADOW_SHARE:
        angle, (across, down) = rng.uniform(0, 2 * np.pi), rng.random(2)
        y, x = np.mgrid[:height, :width]
        beyond = (x - width * across) * np.cos(angle) + (y - height * down) * np.sin(angle) <= 0
        field -= beyond * rng.uniform(*SHADOW_STOPS)
    return field


def _enlarged(rng: np.random.Generator, image: Image.Image, side: int) -> Image.Image:
    """About as large as an index sees the image, and a crop fits in; of a panorama the middle."""
    longest = round(MAX_ASPECT * min(image.size))
    width, height = (min(length, longest) for length in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    scale = rng.uniform(*ENLARGED) * max(side / min(width, height), PHOTO_PX / max(width, height))
    size = (max(side, round(scale * width)), max(side, round(scale * height)))
    return image.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
