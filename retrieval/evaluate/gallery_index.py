"""The index of a test set's gallery: made for one evaluation, or kept and used again.

An index is recognised by what it holds: a record's id comes from its image's bytes, so it does not matter where the
images lay when they were indexed.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from indexer.backbone.backbone import Backbone
from indexer.backbone.load_once import load_once
from indexer.errors import ImageError, SeenitError
from indexer.images.decode import decode_file
from indexer.images.metadata import content_id
from indexer.index.index import is_index
from indexer.index.manifest import read_manifest
from indexer.messages import Say
from indexer.store.open import open_store
from indexer.store.protocol import is_url
from indexer.sync.options import SyncOptions

from ..build import build_index
from ..search import Searcher


@dataclass(frozen=True, eq=False)
class Gallery:
    """An open index that holds a gallery, and which of the gallery's images each record stands for."""

    searcher: Searcher
    paths: dict[str, list[Path]]  # record's id -> all images with these bytes


@contextmanager
def open_gallery(
    images: Sequence[Path],
    index: str | Path | None,
    backbone: Backbone | str | Path,
    resolution: int | None,
    progress: bool,
    say: Say,
) -> Iterator[Gallery]:
    """The gallery in an index that is open for searches; made first where it is not there.

    index     None: a temporary one. One that is there must hold exactly the images, else SeenitError
    backbone  a loaded one must be the one that made the index; a name serves to make one only
    """
    loaded = load_once(backbone) if isinstance(backbone, Backbone) else None  # in 8 bits it is fitted to the gallery
    paths: dict[str, list[Path]] = {}
    for path in dict.fromkeys(images):
        paths.setdefault(content_id(path.read_bytes()), []).append(path)
    with tempfile.TemporaryDirectory(prefix="seenit-evaluate-") as scratch:
        location = Path(scratch) / "index" if index is None else index
        is_new = not is_made(location)
        if is_new:
            photos = _side_by_side([same[0] for same in paths.values()], Path(scratch) / "photos")
            built = build_index(
                photos,
                location,
                options=SyncOptions(resolution=resolution, follow_links=True),  # links of this function's own
                backbone=loaded or backbone,
                progress=progress,
                say=say,
            )
            made = built.summary
            if made.skipped:
                reasons = ", ".join(f"{count} {reason}" for reason, count in made.skipped.items())
                say(f"images of the gallery that cannot be read count as never found: {reasons}")
        with Searcher.open(location, say=say) as searcher:
            if not is_new:
                _check_same(searcher, paths, resolution)
            if loaded is not None:
                searcher.use(loaded)
            yield Gallery(searcher, paths)


def _side_by_side(images: Sequence[Path], folder: Path) -> Path:
    """A folder with links to the images, or copies where links cannot be made, in their order."""
    folder.mkdir()
    for number, path in enumerate(images):
        place = folder / f"{number:07}{path.suffix}"
        try:
            place.symlink_to(path.resolve())
        except OSError:
            shutil.copyfile(path, place)
    return folder


def is_made(location: str | Path) -> bool:
    """Whether something was indexed there; SeenitError where it cannot be told."""
    if not is_url(location):
        return is_index(location)
    with closing(open_store(location, write=True)) as store:  # which does not mind that nothing is there yet
        return read_manifest(store) is not None


def _check_same(searcher: Searcher, paths: dict[str, list[Path]], resolution: int | None) -> None:
    """SeenitError unless the index holds the gallery's images (those that can be read) and no others."""
    location, made_at = searcher.store.location, searcher.manifest.resolution
    if resolution not in (None, made_at):
        raise SeenitError(f"the index at {location} was made at --resolution {made_at}, not {resolution}; name another")
    held = {listed.id for listed in searcher.store.list_files()}
    lacking = next((same[0] for key, same in paths.items() if key not in held and _can_be_read(same[0])), None)
    if lacking or held - paths.keys():
        raise SeenitError(
            f"the index at {location} does not hold exactly the gallery: {len(held - paths.keys())} other images are"
            f" in it{f', {lacking} is not' if lacking else ''}; name another --index, or one that is not there yet"
        )


def _can_be_read(path: Path) -> bool:
    try:
        decode_file(path, target_px=64)
    except ImageError:
        return False
    return True
