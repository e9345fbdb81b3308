"""How long a sync takes when nothing, or only names, changed.

    python tests/benchmarks/sync_speed.py PHOTO_FOLDER [--files 100000] [--renames 10000]

A few real photos are indexed, then the index is filled up with records for that many small files (their vectors are
random; no vector is looked at here). Prints the seconds of whole `sync_folder` runs and their peak memory.
"""

import argparse
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from indexer.images.metadata import content_id
from indexer.index.manifest import read_manifest
from indexer.store.open import open_store
from indexer.store.protocol import Record, StoredFile
from indexer.sync.sync import sync_folder


def fill(folder: Path, index: Path, files: int) -> None:
    """Write `files` small files and a record for each."""
    store = open_store(index, write=True)
    manifest = read_manifest(store)
    assert manifest is not None
    like = next(iter(store.scroll(vectors=True)))
    assert like.global_vector is not None and like.patches is not None
    rng = np.random.default_rng(0)
    records: list[Record] = []
    for n in range(files):
        if n % 1000 == 0:
            (folder / f"{n // 1000:04}").mkdir()
        path = folder / f"{n // 1000:04}" / f"IMG_{n:07}.jpg"
        data = f"\xff\xd8\xff stands for a photo {n}".encode("latin-1")
        path.write_bytes(data)
        file = StoredFile(f"0/{path.relative_to(folder).as_posix()}", len(data), path.stat().st_mtime_ns)
        vector = rng.standard_normal(len(like.global_vector)).astype(np.float32)
        records.append(replace(like, id=content_id(data), files=(file,), global_vector=vector, patches=like.patches))
        if len(records) == 1000:
            store.upsert(records)
            records = []
    store.upsert(records)
    store.close()


def timed(what: str, folder: Path, index: Path) -> None:
    started = time.perf_counter()
    summary = sync_folder(folder, index)
    seconds = time.perf_counter() - started
    changes = summary.changes
    print(
        f"{what:<34} {seconds:>6.2f} s   unchanged {changes.unchanged:,}, renamed {changes.renamed:,},"
        f" embedded {summary.embedded:,}"
    )


def peak_mb() -> float:
    """Peak resident memory of this process in MB; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--renames", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, index = Path(scratch) / "photos", Path(scratch) / "index"
        (folder / "real").mkdir(parents=True)
        for photo in sorted(options.photos.rglob("*.jpg"))[:16]:
            shutil.copy2(photo, folder / "real")
        sync_folder(folder, index, backbone="seenit_vits14")
        fill(folder, index, options.files)
        timed(f"nothing changed, {options.files:,} files", folder, index)
        timed("the same again", folder, index)
        names = sorted(str(path) for path in folder.glob("0*/*.jpg"))[: options.renames]
        for name in names:
            os.rename(name, name.replace("IMG_", "holiday_"))
        timed(f"{len(names):,} files renamed", folder, index)
        print(f"peak memory of all this: {peak_mb():,.0f} MB")


if __name__ == "__main__":
    main()
