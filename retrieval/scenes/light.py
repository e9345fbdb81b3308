"""Light, colour temperature, lens and sensor: what makes two photos of one thing differ."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from .canvas import Random

LAMPS = {
    "day": (0.97, 0.99, 1.0),
    "sun": (1.0, 0.96, 0.88),
    "bulb": (1.0, 0.87, 0.70),
    "shade": (0.86, 0.94, 1.0),
    "tube": (0.94, 1.0, 0.92),
    "dusk": (1.0, 0.84, 0.80),
}


def expose(image: Image.Image, lamp: str, rng: Random, *, gentle: bool) -> Image.Image:
    """The image in the lamp's light; a gentle exposure is even, sharp and has little grain."""
    # uneven light: brighter towards one side, darker in the corners, tinted by the lamp
    ys, xs = np.mgrid[-1:1:24j, -1:1:32j]
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.18 if gentle else 0.34)
    shade = 1 - depth * (1 + xs * np.cos(angle) + ys * np.sin(angle)) / 2 - rng.uniform(0.06, 0.2) * (xs**2 + ys**2) / 2
    tint = LAMPS[lamp] + rng.normal(0, 0.015 if gentle else 0.03, 3)
    light = np.clip(shade[..., None] * tint / tint.max(), 0, 1)  # (24, 32, 3)
    glow = Image.fromarray((light * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    image = ImageChops.multiply(image, glow)

    levels = np.arange(256) / 255 * (rng.uniform(1.0, 1.18) if gentle else rng.uniform(0.72, 1.25))
    levels = levels + 0.12 * levels * (1 - levels) * (2 * levels - 1)  # a film-like curve: a little more contrast
    levels = np.where(levels > 0.8, 0.8 + 0.2 * np.tanh((levels - 0.8) / 0.2), levels)  # highlights do not clip hard
    image = image.point(np.rint(255 * levels.clip(0, 1)).astype(int).tolist() * 3)

    if not gentle and rng.random() < 0.35:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5)))
    grain = np.roll(_grain(), rng.integers(0, 1024, 2), axis=(0, 1))[: image.height, : image.width, None]
    grain = np.rint(grain * rng.uniform(0.3, 0.8 if gentle else 1.3)).astype(np.int16)
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((1024, 1024), dtype=np.float32)
