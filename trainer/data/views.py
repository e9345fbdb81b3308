"""Views of photos, made in the decoder processes.

Views have the size that the index gives the photo, so that a photo and its views go through the network as one batch.
This module does not import torch: the decoder processes import it.
"""

from collections.abc import Sequence

import numpy as np

from indexer.images.jobs import Broken, Cut, Job, Outcome, Settings
from indexer.images.preprocess import detail_px, preprocess
from indexer.images.synthetic_views import render_view
from indexer.sources.place import ImageRef

from .sources import decoded_place


def view_job(
    name: str, place: ImageRef, background: ImageRef, seed: Sequence[int], num_views: int, difficulty: float = 1.0
) -> Job:
    """An order for `cut_views`."""
    order = {
        "place": list(place),
        "background": list(background),
        "seed": list(seed),
        "num_views": num_views,
        "difficulty": difficulty,
    }
    return Job(name, order=order)


def cut_views(job: Job, settings: Settings) -> Outcome:
    """Read one photo and make views of it: the work of a decoder process.

    The answer's pixels are (1 + V, H, W, 3) uint8, the photo itself first, as the index would embed it.
    """
    order = job.order
    detail = detail_px(settings.resolution)
    image = decoded_place(job.path, ImageRef(*order["place"]), detail, settings.limits)
    if isinstance(image, Broken):
        return image
    behind = decoded_place(job.path, ImageRef(*order["background"]), detail, settings.limits)
    background = image.pixels[::-1, ::-1] if isinstance(behind, Broken) else behind.pixels
    upright = preprocess(image.pixels, settings.mode, settings.resolution, settings.patch_size)
    height, width = upright.shape[:2]
    rng = np.random.default_rng(order["seed"])
    sizes = (height, width, order["difficulty"])
    views = [render_view(rng, image.pixels, background, *sizes) for _ in range(order["num_views"])]
    grid = (height // settings.patch_size, width // settings.patch_size)
    return Cut(job.path, np.stack([upright, *views]), grid, image.width, image.height)
