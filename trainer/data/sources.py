"""Where training images are, see `indexer.sources`; and how a decoder process reads one and cuts it.

An image in a tar file is read where it lies. Reading, decoding and cropping run in the decoder processes of `indexer`,
so that a hostile file costs itself and nothing else. This module does not import torch: those processes import it.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexer.errors import DownloadError, ImageError, SeenitError, os_reason
from indexer.images.decode import DecodedImage, Limits, decode, is_image
from indexer.images.find import Unreadable, find_files
from indexer.images.jobs import Broken, Cut, Job, Outcome, Settings
from indexer.images.preprocess import detail_px, preprocess
from indexer.sources.entry import Entry
from indexer.sources.open import open_spec, spec_of
from indexer.sources.place import WHOLE_FILE, ImageRef, is_address, read_place
from indexer.sources.shards import index_shard, is_shard

from .augment import Augmentation, cut_with_pillow, draw_views

FINGERPRINTED = 1000  # files whose sizes tell one set of images from another


@dataclass(frozen=True)
class ImageSource:
    """The images to train on, in an order that does not change from run to run."""

    places: tuple[ImageRef, ...]

    def __len__(self) -> int:
        return len(self.places)


def open_source(
    images: str | Path | Sequence[str | Path],
    *,
    exclude_dirs: Iterable[str | Path] = (),
    allow_private: bool = False,
) -> ImageSource:
    """Find the training images.

    images        a folder (its images and tar shards, at any depth), a tar shard (`.tar`, `.tar.gz`, `.tar.bz2`),
                  many of them as `shard-{000..009}.tar`, a text file with one path or address a line (relative ones
                  start at the file's own folder), a table (`.csv`, `.parquet`), an address (`s3://...`), an image, or
                  several of these
    exclude_dirs  folders to leave out, such as the one that the run writes to
    allow_private  also fetch from http addresses of this machine and its own network

    What a folder holds is told by content; what a list, a table or an address names is taken on trust and read when its
    turn comes.
    SeenitError where there is nothing to train on.
    """
    given = [images] if isinstance(images, (str, Path)) else list(images)
    places: list[ImageRef] = []
    for one in given:
        path = os.path.abspath(os.path.expanduser(os.fspath(one)))
        if (spec := spec_of(one)) is not None:
            entries = open_spec(spec, allow_private=allow_private).entries(stat=False)
            found_here = [entry.place for entry in entries if isinstance(entry, Entry)]
            if not found_here:
                raise SeenitError(f"{one} names no images; give one that does")
            places += found_here
        elif os.path.isdir(path):
            for found in find_files([path], exclude_dirs=exclude_dirs, follow_links=True):
                if not isinstance(found, Unreadable):
                    places += _images_in(found.path)
        elif not os.path.exists(path):
            raise SeenitError(f"there is nothing at {path}; give a folder, a list of paths or tar shards")
        else:
            inside = _images_in(path)
            if not inside:
                raise SeenitError(f"{path} is neither an image nor a tar file with images; give one of these")
            places += inside
    if not places:
        raise SeenitError(f"no images in {', '.join(map(str, given))}; give a folder that holds some")
    return ImageSource(tuple(places))


def fingerprint(source: ImageSource) -> str:
    """A digest of which images these are: names below their common folder, in order, and sizes of some files.

    A folder that was moved as a whole keeps it. Sizes are asked of at most FINGERPRINTED files, evenly spread.
    """
    paths = [place.path if is_address(place.path) else os.path.abspath(place.path) for place in source.places]
    drives = {"address" if is_address(path) else os.path.splitdrive(path)[0] for path in paths}
    common = (
        os.path.commonpath([os.path.dirname(path) for path in paths])
        if len(drives) == 1 and drives != {"address"}
        else ""
    )
    step = max(1, len(paths) // FINGERPRINTED)
    digest = hashlib.blake2b(digest_size=16)
    for number, place in enumerate(source.places):
        size = place.size
        if size == WHOLE_FILE and number % step == 0 and os.path.exists(place.path):
            size = os.path.getsize(place.path)
        name = paths[number].removeprefix(common)
        digest.update(f"{name}\0{place.member}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def crop_job(name: str, place: ImageRef, seed: Sequence[int], augmentation: Augmentation, engine: str) -> Job:
    """An order for `cut_crops`."""
    order = {
        "place": list(place),
        "seed": list(seed),
        "augmentation": augmentation.as_json(),
        "engine": engine,
    }
    return Job(name, order=order)


def cut_crops(job: Job, settings: Settings) -> Outcome:
    """Read, decode and crop one image: the work of a decoder process.

    The answer's pixels are flat uint8. Engine `pillow`: the crops behind each other, (S, S, 3) each. Engine `torch`:
    the table of views, then the decoded image, whose height and width are the answer's grid.
    """
    order = job.order
    place, augmentation = ImageRef(*order["place"]), Augmentation.from_json(order["augmentation"])
    image = decoded_place(job.path, place, augmentation.detail_px, settings.limits)
    if isinstance(image, Broken):
        return image
    height, width = image.pixels.shape[:2]
    views = draw_views(np.random.default_rng(order["seed"]), height, width, augmentation)
    if order["engine"] == "pillow":
        parts = cut_with_pillow(image.pixels, views, augmentation.crops)
    else:
        parts = [views.view(np.uint8), image.pixels]
    pixels = np.concatenate([part.ravel() for part in parts])
    return Cut(job.path, pixels, (height, width), image.width, image.height)


def square_job(name: str, place: ImageRef) -> Job:
    """An order for `cut_square`."""
    return Job(name, order={"place": list(place)})


def cut_square(job: Job, settings: Settings) -> Outcome:
    """Read and decode one image and bring it to the pool's size: the work of a decoder process."""
    image = decoded_place(job.path, ImageRef(*job.order["place"]), detail_px(settings.resolution), settings.limits)
    if isinstance(image, Broken):
        return image
    patch = settings.patch_size
    pixels = preprocess(image.pixels, settings.mode, settings.resolution, patch)
    grid = (pixels.shape[0] // patch, pixels.shape[1] // patch)
    return Cut(job.path, pixels, grid, image.width, image.height)


def decoded_place(name: str, place: ImageRef, target_px: int, limits: Limits) -> DecodedImage | Broken:
    """The image at a place, its shorter side not below `target_px` by shrinking; or why there is none."""
    try:
        data = read_place(place, limits.max_file_bytes)
        return decode(data, target_px=target_px, limits=limits, path=place.name)
    except ImageError as error:
        return Broken(name, error.reason, 0, 0)
    except OSError as error:
        return Broken(name, os_reason(error), 0, 0)
    except DownloadError as error:
        return Broken(name, str(error), 0, 0)


def _images_in(path: str) -> list[ImageRef]:
    """The image at a path, or those in the tar file there; none if it is neither."""
    if is_shard(path):
        return [ImageRef(member.tar, member.start, member.size, member.name) for member in index_shard(path).members]
    return [ImageRef(path)] if is_image(path) else []
