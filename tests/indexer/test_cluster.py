"""Indexing on a Ray cluster on this machine: the same index as without one, also where workers are killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import draw_photo

from indexer import copy_index, embed_into_shards
from indexer.errors import SeenitError
from indexer.index.index import Index
from indexer.store import shard_store
from indexer.store.protocol import Record
from indexer.store.shard_store import ShardStore
from indexer.sync import on_cluster, writer
from indexer.sync.options import SyncOptions
from indexer.sync.summary import Summary
from indexer.sync.sync import sync_folder

if TYPE_CHECKING:
    from qdrant_peer import QdrantPeer

pytest.importorskip("ray", reason="Ray is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
pytestmark = pytest.mark.long
SAMPLE, IMAGES = 16, 80


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty photos of two shapes, a copy, a text and a broken one."""
    folder = tmp_path_factory.mktemp("many")
    for n in range(IMAGES):
        draw_photo(folder / f"{n:02d}.jpg", n, (96, 72) if n % 2 else (72, 96))
    shutil.copy(folder / "70.jpg", folder / "copy.jpg")
    (folder / "broken.jpg").write_bytes((folder / "00.jpg").read_bytes()[:300])
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FIT_SAMPLE", SAMPLE)
    monkeypatch.setattr(on_cluster, "CHUNK", 8)


def run(folder: Path, index: Path | str, backbone: Path, ray: str | None = "local", **more: Any) -> Summary:
    options = SyncOptions(resolution=56, workers=1, ray=ray, actors=1)
    return sync_folder(folder, index, options=options, backbone=str(backbone), **more)


def records(index: Path | str) -> dict[str, Record]:
    with Index.open(index) as opened:
        return {record.id: record for record in opened.store.scroll(vectors=True)}


def same(one: dict[str, Record], other: dict[str, Record]) -> None:
    assert one.keys() == other.keys() and len(one) == IMAGES
    for id, record in one.items():
        twin = other[id]
        assert (record.files, record.metadata, record.whitening_id) == (twin.files, twin.metadata, twin.whitening_id)
        assert record.global_vector is not None and twin.global_vector is not None
        assert np.allclose(record.global_vector, twin.global_vector, atol=2e-3)


def neighbours(index: Path | str, queries: np.ndarray) -> list[list[str]]:
    with Index.open(index) as opened:
        return [[hit.id for hit in hits[:3]] for hits in opened.store.search(queries, 3, exact=True)]


@pytest.fixture(scope="module")
def plain(many: Path, tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    index = tmp_path_factory.mktemp("plain") / "index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "FIT_SAMPLE", SAMPLE)
        run(many, index, tiny_backbone, ray=None)
    return index


def workers_of_this_process() -> list[int]:
    """Ray's workers below this process, by the system's table of processes; Ray's own agents are none."""
    kinds = ("ray::decode_jobs", "ray::EmbedActor", "ray::IDLE")
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                names[int(entry.name)] = (entry / "cmdline").read_text(errors="replace")
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
            except OSError:
                continue

    def is_ours(pid: int) -> bool:
        while pid in parents:
            if pid == os.getpid():
                return True
            pid = parents[pid]
        return False

    return [pid for pid, name in names.items() if name.startswith(kinds) and is_ours(pid)]


def test_the_index_of_a_cluster_is_the_plain_one(many: Path, plain: Path, tmp_path: Path, tiny_backbone: Path) -> None:
    """Every worker is killed once on the way."""
    killed: list[int] = []

    def kill(what: str, done: int, total: int) -> None:
        if done > SAMPLE + 16 and not killed:
            killed.extend(workers_of_this_process())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    done = run(many, tmp_path / "index", tiny_backbone, progress=kill)
    assert killed and (done.images, done.embedded, done.changes.copies) == (IMAGES, IMAGES, 1)
    assert sum(done.skipped.values()) == 1
    same(records(plain), records(tmp_path / "index"))
    queries = np.stack([record.global_vector for record in records(plain).values() if record.global_vector is not None])
    assert neighbours(plain, queries[:10]) == neighbours(tmp_path / "index", queries[:10])
    with Index.open(tmp_path / "index") as index:
        assert index.manifest.fixed and index.manifest.fitted_on == SAMPLE


def test_shards_of_a_cluster_make_the_plain_index(
    many: Path, plain: Path, tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actors write them, and every worker is killed once on the way."""
    monkeypatch.setattr(shard_store, "SHARD_RECORDS", 16)
    by_driver: list[Record] = []
    upsert = ShardStore.upsert

    def counted(store: ShardStore, records: Sequence[Record]) -> None:
        by_driver.extend(records)
        upsert(store, records)

    monkeypatch.setattr(ShardStore, "upsert", counted)
    killed: list[int] = []

    def kill(what: str, done: int, total: int) -> None:
        if done > SAMPLE + 24 and not killed:
            killed.extend(workers_of_this_process())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    options = SyncOptions(resolution=56, workers=1, ray="local", actors=1)
    done = embed_into_shards(many, tmp_path / "shards", options=options, backbone=str(tiny_backbone), progress=kill)
    assert killed and done.embedded == IMAGES and len(by_driver) == SAMPLE
    rows = [pq.read_metadata(path).num_rows for path in (tmp_path / "shards").glob("*.parquet")]
    assert sum(rows) == IMAGES and len(rows) <= IMAGES // 16 + 2 and max(rows) <= 16
    copy_index(tmp_path / "shards", tmp_path / "index")
    same(records(plain), records(tmp_path / "index"))


def test_workers_write_to_a_server_and_a_killed_driver_goes_on(
    many: Path, plain: Path, peer: "QdrantPeer", tmp_path: Path, tiny_backbone: Path
) -> None:
    url = f"{peer.url}/photos"
    code = (
        "import sys; from test_cluster import *; from indexer.sync import on_cluster, writer\n"
        "writer.FIT_SAMPLE, on_cluster.CHUNK = SAMPLE, 8\n"
        "run(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))\n"
    )
    tests = Path(__file__).parent
    places = os.pathsep.join([str(tests), str(tests.parent), str(tests.parent.parent)])
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(many), url, str(tiny_backbone)],
        env={**os.environ, "PYTHONPATH": places},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and driver.poll() is None:
        points = peer.collections.get("photos")
        if points is not None and points.shard.count(_count_all()) >= SAMPLE + 8:
            break
        time.sleep(0.02)
    driver.kill()
    driver.communicate()
    before = len(records(url))
    assert before >= SAMPLE
    done = run(many, url, tiny_backbone)
    assert done.embedded <= IMAGES - before  # actors of a killed driver may still deliver what they had in hand
    same(records(plain), records(url))


def _count_all() -> Any:
    import qdrant_edge

    return qdrant_edge.CountRequest()


def test_no_cluster_and_too_few_gpus(many: Path, tmp_path: Path, tiny_backbone: Path) -> None:
    with pytest.raises(SeenitError, match="no Ray cluster answers at"):
        run(many, tmp_path / "index", tiny_backbone, ray="127.0.0.1:1")
    options = SyncOptions(resolution=56, ray="local", gpus_per_actor=1.0)
    with pytest.raises(SeenitError, match="has 0 GPUs"):
        sync_folder(many, tmp_path / "index", options=options, backbone=str(tiny_backbone))
    assert not (tmp_path / "index").exists()
