"""What a server's decoder process does with a file. Nothing here imports torch or the web framework."""

import io
from typing import Any

import numpy as np
from PIL import Image

from indexer.errors import ImageError, SeenitError, os_reason
from indexer.images.decode import DecodedImage, decode
from indexer.images.find import Unreadable
from indexer.images.jobs import Broken, Decoded, Job, Outcome, Settings, Vanished
from indexer.images.metadata import Metadata, content_id
from indexer.images.preprocess import detail_px, preprocess

from ..duplicates.names import reach
from ..query.encoder import full_size_px
from ..query.query import box_in_pixels

THUMBNAIL_QUALITY = 85


def decode_for_server(job: Job, settings: Settings) -> Outcome:
    """An image for a query, (H, W, 3), or for a thumbnail the bytes of a JPEG, (N,).

    The job's order: `kind` query or thumbnail; `top`, the folder below which the path must lie with no link on the way;
    `region` in fractions or None; `size_px` of a thumbnail's longer side.
    """
    limits, order = settings.limits, job.order
    try:
        with reach(order["top"], job.path) as name, name.reading() as file:
            data = file.read(limits.max_file_bytes + 1)
    except FileNotFoundError:
        return Vanished(job.path)
    except (OSError, SeenitError) as error:
        return Unreadable(job.path, os_reason(error) if isinstance(error, OSError) else "a link leads to it")
    if len(data) > limits.max_file_bytes:
        return Broken(job.path, f"larger than {limits.max_file_bytes / 1e6:.0f} MB", len(data), 0)
    try:
        image, pixels = _made(data, order, settings)
    except ImageError as error:
        return Broken(job.path, error.reason, len(data), 0)
    except SeenitError as error:
        return Broken(job.path, str(error), len(data), 0)
    metadata = Metadata(image.width, image.height, image.format, image.taken_at, image.camera, image.gps)
    return Decoded(job.path, content_id(data), len(data), 0, pixels, (0, 0), metadata)


def _made(data: bytes, order: Any, settings: Settings) -> tuple[DecodedImage, np.ndarray]:
    limits, resolution = settings.limits, settings.resolution
    if order["kind"] == "thumbnail":
        size_px = int(order["size_px"])
        image = decode(data, target_px=size_px * 3 // 4, limits=limits)
        small = image.image
        small.thumbnail((size_px, size_px), Image.Resampling.LANCZOS, reducing_gap=3.0)
        packed = io.BytesIO()
        small.save(packed, "JPEG", quality=THUMBNAIL_QUALITY)
        return image, np.frombuffer(packed.getvalue(), np.uint8)
    region = order["region"]
    if region is None:
        image = decode(data, target_px=detail_px(full_size_px(resolution)), limits=limits)
        return image, preprocess(image.image, "aspect", full_size_px(resolution), patch_size=1)
    whole = decode(data, target_px=64, limits=limits)
    x, y, width, height = region
    box = box_in_pixels((x, y, width, height), whole.width, whole.height)
    part = decode(data, target_px=detail_px(resolution), limits=limits, region=box)
    return part, part.pixels
