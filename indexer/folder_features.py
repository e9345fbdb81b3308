"""Features of every image of a folder in one file, without an index: `.npy` or `.parquet`.

Surprising: these are the backbone's plain CLS features, not an index's descriptors, which are whitened by the
statistics of a corpus and compare only within it.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .atomic_file import atomic_path
from .backbone.load_once import LoadOnce, load_once
from .errors import SeenitError, os_reason
from .images.batches import of_one_shape
from .images.find import FoundFile, find_files
from .images.jobs import Decoded, Job, NotAnImage
from .images.pool import DecodePool
from .messages import Say, say_nothing
from .progress_bar import progress_bar
from .sync.options import check_resolution

if TYPE_CHECKING:
    from .backbone.backbone import Backbone

BATCH = 8  # images in one forward, as when indexing
SUFFIXES = (".npy", ".parquet")
NO_IMAGES = "no images that can be read in {}; name a folder with images"


@dataclass(frozen=True, eq=False)
class FolderFeatures:
    """paths: absolute, in the order of rows; features: (N, D) float32, L2-normalised CLS; skipped: a line each."""

    paths: tuple[str, ...]
    features: np.ndarray
    skipped: tuple[str, ...]

    def __repr__(self) -> str:
        return f"FolderFeatures({len(self.paths):,} images, {self.features.shape[1]} numbers each)"


def embed_folder(
    folders: str | Path | Sequence[str | Path],
    backbone: "Backbone | LoadOnce | str | Path",
    *,
    resolution: int = 224,
    workers: int | None = None,
    progress: bool = False,
    say: Say = say_nothing,
) -> FolderFeatures:
    """The last CLS of every image below folders, seen at about resolution x resolution pixels in its own aspect.

    backbone  a loaded one, or one that is loaded, and fetched if need be, once there are files to embed
    SeenitError where a folder is not there or holds no image that can be read, or a resolution makes no sense.

    >>> found = embed_folder("photos", "auto")
    >>> len(found.paths) == len(found.features)
    True
    """
    check_resolution(resolution)
    folders = [folders] if isinstance(folders, (str, Path)) else list(folders)
    files = [found.path for found in find_files(folders) if isinstance(found, FoundFile)]
    if not files:
        raise SeenitError(NO_IMAGES.format(", ".join(map(str, folders))))
    loaded = load_once(backbone, say).load("auto", fetch=True)
    rows: dict[str, np.ndarray] = {}
    skipped: list[str] = []

    def decoded() -> Iterator[Decoded]:
        for outcome in pool.run(Job(path) for path in files):
            bar.update()
            if isinstance(outcome, Decoded):
                yield outcome
            elif not isinstance(outcome, NotAnImage):
                skipped.append(f"{outcome.path}: {getattr(outcome, 'reason', 'it changed or went away')}")

    with (
        DecodePool(workers, resolution=resolution, patch_size=loaded.patch_size) as pool,
        progress_bar(len(files), "embedding", "images", progress) as bar,
    ):
        for images in of_one_shape(decoded(), BATCH):
            features = loaded(np.stack([image.pixels for image in images])).cpu().numpy()  # (B, D)
            features /= np.linalg.norm(features, axis=1, keepdims=True)
            rows.update(zip([image.path for image in images], features, strict=True))
    for line in skipped:
        say(f"skipped {line}")
    if not rows:
        raise SeenitError(NO_IMAGES.format(", ".join(map(str, folders))))
    paths = tuple(path for path in files if path in rows)
    return FolderFeatures(paths, np.stack([rows[path] for path in paths]), tuple(skipped))


def save_features(found: FolderFeatures, file: str | Path) -> list[Path]:
    """Write `.npy` with the paths a line each beside it in `FILE.txt`, or `.parquet` with columns path and features.

    Returns the files written. SeenitError for another suffix, a file that is there, or where pyarrow is missing.
    """
    file = Path(file)
    check_target(file)
    try:
        if file.suffix == ".npy":
            names = file.with_name(file.name + ".txt")
            with atomic_path(names) as temporary:
                temporary.write_bytes(b"".join(os.fsencode(path.replace("\n", "\\n")) + b"\n" for path in found.paths))
            with atomic_path(file) as temporary, open(temporary, "wb") as stream:
                np.save(stream, found.features, allow_pickle=False)
            return [file, names]
        with atomic_path(file) as temporary:
            _write_parquet(found, temporary)
        return [file]
    except OSError as error:
        raise SeenitError(f"cannot write {file}: {os_reason(error)}; name another file") from None


def check_target(file: Path) -> None:
    """SeenitError unless features can be written there; asked before anything is computed."""
    if file.suffix not in SUFFIXES:
        raise SeenitError(f"{file} is neither .npy nor .parquet; name a file that ends so")
    for place in [file] if file.suffix == ".parquet" else [file, file.with_name(file.name + ".txt")]:
        if os.path.lexists(place):
            raise SeenitError(f"{place} is there already and is not overwritten; name another file")
    if file.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise SeenitError("writing .parquet needs pyarrow; install it with: pip install pyarrow") from None


def _write_parquet(found: FolderFeatures, path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    length = found.features.shape[1]
    values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(found.features.ravel()), length)
    table = pyarrow.table({"path": list(_texts(found.paths)), "features": values})
    pyarrow.parquet.write_table(table, path)


def _texts(paths: Sequence[str]) -> Iterator[str]:
    """Paths as valid text; bytes that are none become the character for that."""
    return (os.fsencode(path).decode("utf-8", "replace") for path in paths)
