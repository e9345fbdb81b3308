"""Images to vectors in shards on disk; a run that is stopped goes on with the shard it was at.

The vectors are those that an index holds: several layers of the backbone, whitened by statistics that are fitted on the
pool itself (see `indexer.descriptor.whitening`). Among them similarities mean what the thresholds of `deduplicate`
expect.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePath

import numpy as np

from indexer.descriptor.embedder import Embedder
from indexer.descriptor.pooling import PooledFeatures
from indexer.descriptor.whitening import Whitening, apply_whitening, load_whitening, save_whitening
from indexer.errors import SeenitError
from indexer.images.batches import of_one_shape
from indexer.images.jobs import Broken, Cut
from indexer.images.pool import DecodePool
from indexer.messages import Say, say_nothing
from indexer.progress_bar import progress_bar
from indexer.sources.place import ImageRef

from ..data.sources import ImageSource, cut_square, square_job
from .embeddings import Embeddings, unit_rows
from .whole_files import read_array, step_file, write_array, write_text

SHARD_IMAGES = 2048  # embedded between two files; so much is lost at most when a run is stopped
BATCH = 16
FIT_SAMPLE = 2000  # images that the statistics are fitted on
MOST_SAID = 10  # unreadable images that are named

Decoders = Callable[[], DecodePool]  # from `decoders_for`; asked for only where something must be decoded


# N images, G numbers of a vector
@dataclass(frozen=True, eq=False)
class Images:
    """Images with their vectors, and those that could not be read.

    places      N of them
    embeddings  (N, G)
    pixels      (N,) int64, width x height as stored, 0 where that is not known
    broken      how to call each unreadable one, and why it could not be read
    """

    places: tuple[ImageRef, ...]
    embeddings: Embeddings
    pixels: np.ndarray
    broken: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True, eq=False)
class Describer:
    """A backbone and the statistics that make vectors of its features."""

    embedder: Embedder
    whitening: Whitening

    @property
    def id(self) -> str:
        """Tells vectors that may be compared from all others."""
        return f"{self.embedder.backbone.hash} at {self.embedder.resolution} fit {self.whitening.id}"


def decoders_for(embedder: Embedder, workers: int | None) -> DecodePool:
    """Decoder processes that bring images to the size that is embedded; None: one per core."""
    return DecodePool(workers, resolution=embedder.resolution, patch_size=embedder.backbone.patch_size, work=cut_square)


def fit_describer(
    embedder: Embedder, source: ImageSource, path: Path, decoders: Decoders, *, progress: bool = False
) -> Describer:
    """Statistics of a sample of the source, kept at `path` and read from there if they are of the same images."""
    made_from = f"{embedder.backbone.hash} at {embedder.resolution} {embedder.config.version} {digest(source.places)}"
    label = path.with_suffix(".made_from")
    if not path.is_file() or not label.is_file() or label.read_text("utf-8") != made_from:
        chosen = np.sort(np.random.default_rng(len(source)).permutation(len(source))[:FIT_SAMPLE])
        places = [source.places[number] for number in chosen]
        pooled, _, broken = _pooled(embedder, decoders(), places, progress, "looking at a sample")
        if not pooled:
            raise SeenitError(_none_readable(broken, len(places)))
        with step_file(path) as file:
            file.write(save_whitening(embedder.fit_whitening([pooled[number] for number in sorted(pooled)])))
        write_text(label, made_from)
    return Describer(embedder, load_whitening(path.read_bytes()))


def embed_pool(
    describer: Describer,
    source: ImageSource,
    folder: Path,
    decoders: Decoders,
    *,
    progress: bool = False,
    say: Say = say_nothing,
) -> Images:
    """Embed the images of a source into shards in `folder`; shards of the same images are not made again.

    A file that changed under the same name is not noticed. SeenitError where no image can be read.
    """
    parts = [source.places[at : at + SHARD_IMAGES] for at in range(0, len(source), SHARD_IMAGES)]
    missing = [number for number, part in enumerate(parts) if not _is_done(folder, number, describer, part)]
    for count, number in enumerate(missing, start=1):
        title = f"embedding, shard {count} of {len(missing)}"
        _embed_shard(describer, decoders(), parts[number], folder, number, progress, title)
    shards, places, pixels, broken = [], [], [], []
    for number, part in enumerate(parts):
        told = json.loads(_label(folder, number).read_text("utf-8"))
        shards.append(read_array(folder / f"{number:05d}.npy"))
        places += [part[row] for row in told["rows"]]
        pixels += told["pixels"]
        broken += [(part[row].name, reason) for row, reason in told["broken"]]
    _say_broken(broken, len(source), say)
    if not places:
        raise SeenitError(_none_readable(broken, len(source)))
    return Images(tuple(places), Embeddings(tuple(shards)), np.array(pixels, np.int64), tuple(broken))


def digest(places: Iterable[ImageRef]) -> str:
    """Of the images' names; of an image in a tar file, without the folder that this lies in."""
    hashed = blake2b(digest_size=16)
    for place in places:
        name = (PurePath(place.path).name, *place[1:4]) if place.member else place[:3]
        hashed.update(repr(name).encode("utf-8", errors="surrogateescape"))
    return hashed.hexdigest()


def _embed_shard(
    describer: Describer,
    pool: DecodePool,
    places: Sequence[ImageRef],
    folder: Path,
    number: int,
    progress: bool,
    title: str,
) -> None:
    pooled, pixels, broken = _pooled(describer.embedder, pool, places, progress, title)
    rows = sorted(pooled)
    vectors = np.empty((len(rows), describer.whitening.global_dim), np.float16)
    good = np.zeros(len(rows), bool)
    for at, row in enumerate(rows):
        vectors[at : at + 1], good[at : at + 1] = unit_rows(apply_whitening(pooled[row], describer.whitening)[0])
    broken |= {row: "its features are not finite" for row, fine in zip(rows, good, strict=True) if not fine}
    rows = [row for row, fine in zip(rows, good, strict=True) if fine]
    write_array(folder / f"{number:05d}.npy", vectors[good])
    told = {
        "made_from": _shard_made_from(describer, places),
        "rows": rows,
        "pixels": [pixels[row] for row in rows],
        "broken": sorted(broken.items()),
    }
    write_text(_label(folder, number), json.dumps(told))


def _pooled(
    embedder: Embedder, pool: DecodePool, places: Sequence[ImageRef], progress: bool, title: str
) -> tuple[dict[int, PooledFeatures], dict[int, int], dict[int, str]]:
    """What the descriptor needs of each image, its pixels, and why there is none; by position among the places."""
    pooled: dict[int, PooledFeatures] = {}
    pixels: dict[int, int] = {}
    broken: dict[int, str] = {}

    def cut() -> Iterator[Cut]:
        for outcome in pool.run(square_job(str(number), place) for number, place in enumerate(places)):
            bar.update(1)
            if isinstance(outcome, Cut):
                pixels[int(outcome.path)] = outcome.width * outcome.height
                yield outcome
            else:
                # a job has no file of its name, so that the pool calls it vanished when its decoder dies
                reason = outcome.reason if isinstance(outcome, Broken) else "its decoder crashed or took too long"
                broken[int(outcome.path)] = reason

    with progress_bar(len(places), title, "images", progress) as bar:
        for batch in of_one_shape(cut(), BATCH):
            together = embedder.pooled([image.pixels for image in batch])
            for at, image in enumerate(batch):
                one = slice(at, at + 1)
                features = PooledFeatures(together.parts[one], together.tokens[one], together.positions[one])
                pooled[int(image.path)] = features
    return pooled, pixels, broken


def _label(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.json"


def _shard_made_from(describer: Describer, places: Sequence[ImageRef]) -> str:
    return f"{describer.id} {digest(places)}"


def _is_done(folder: Path, number: int, describer: Describer, places: Sequence[ImageRef]) -> bool:
    try:
        told = json.loads(_label(folder, number).read_text("utf-8"))
        return told["made_from"] == _shard_made_from(describer, places) and (folder / f"{number:05d}.npy").is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _say_broken(broken: Sequence[tuple[str, str]], total: int, say: Say) -> None:
    for name, reason in broken[:MOST_SAID]:
        say(f"left out {name}: {reason}")
    if len(broken) > MOST_SAID:
        say(f"left out {len(broken):,} of {total:,} images that cannot be read")


def _none_readable(broken: Sequence[tuple[str, str]] | dict[int, str], total: int) -> str:
    reason = next(iter(broken.values())) if isinstance(broken, dict) else broken[0][1]
    return f"none of the {total:,} images can be read ({reason}); give a folder or a list of images that are there"
