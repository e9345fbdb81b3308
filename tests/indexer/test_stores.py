"""One suite over every store: the one in a folder, and a server's: in memory, over HTTP and over gRPC."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from qdrant_peer import QdrantPeer
from store_kinds import GALLERY, assert_near, ids, meeting, run_code
from stored_records import DAY_0, RECORDS, SCHEMA, make_record, unit

from indexer.errors import LockedError, SeenitError, StoreError
from indexer.images.metadata import Metadata, content_id
from indexer.index.copy import copy_index
from indexer.index.manifest import Manifest, read_manifest, write_manifest
from indexer.store.open import open_store
from indexer.store.payload import from_engine, to_engine
from indexer.store.protocol import Filter, Schema, Store, StoredFile

pytestmark = pytest.mark.filterwarnings("ignore:Local mode", "ignore:Payload indexes have no effect")


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    return memory_path


# One contract


def test_before_the_first_write_everything_is_empty(empty: Store) -> None:
    assert empty.schema() is None and empty.count() == 0 and list(empty.scroll()) == []
    assert list(empty.list_files()) == []
    assert empty.retrieve([RECORDS[0].id]) == [] and empty.search(np.ones((2, 16), np.float32), 3) == [[], []]
    empty.delete([RECORDS[0].id])
    assert empty.patches([RECORDS[0].id]) == {}
    assert empty.read_blob("manifest.json") is None and empty.blob_names() == []


def test_a_record_comes_back_as_it_was(store: Store) -> None:
    assert store.count() == len(RECORDS) and store.schema() == SCHEMA
    for got, want in zip(store.retrieve([r.id for r in RECORDS], vectors=True), RECORDS, strict=True):
        assert (got.id, got.files, got.metadata, got.whitening_id) == (
            want.id,
            want.files,
            want.metadata,
            want.whitening_id,
        )
        assert (got.tags, got.patches, got.attributes) == (want.tags, want.patches, want.attributes)
        assert_near(got.global_vector, want.global_vector, atol=1e-3)
    (bare,) = store.retrieve([RECORDS[4].id])
    assert bare.global_vector is None and bare.patches is None and bare.files == RECORDS[4].files


@pytest.mark.slow
def test_retrieve_keeps_the_order_and_leaves_out_unknown_ids(store: Store) -> None:
    asked = [RECORDS[5].id, content_id(b"unknown"), RECORDS[2].id]
    assert [record.id for record in store.retrieve(asked)] == [RECORDS[5].id, RECORDS[2].id]


@pytest.mark.slow
def test_scroll_goes_through_all_in_the_order_of_ids(store: Store) -> None:
    assert [record.id for record in store.scroll(batch=7)] == sorted(ids(RECORDS))
    packed = {record.id: record.patches for record in RECORDS}
    assert {record.id: record.patches for record in store.scroll(vectors=True, batch=7)} == packed
    assert all(record.patches is None and record.global_vector is None for record in store.scroll())
    whole = [(record.id, record.whitening_id, record.files) for record in store.scroll()]
    assert sorted((listed.id, listed.whitening_id, listed.files) for listed in store.list_files()) == whole


def test_search_agrees_with_the_exact_cosines(store: Store) -> None:
    queries = unit(np.random.default_rng(99), 5, 16)  # (5, G)
    cosines = queries @ GALLERY.T  # (5, 30)
    for exact in (False, True):
        for row, hits in zip(cosines, store.search(queries, 6, exact=exact), strict=True):
            best = np.argsort(-row)[:6]
            assert [hit.id for hit in hits] == [RECORDS[number].id for number in best]
            assert_near([hit.score for hit in hits], row[best], atol=1e-3)
    store.optimize()
    assert [hits[0].id for hits in store.search(GALLERY, 1)] == [record.id for record in RECORDS]
    assert store.search(queries[:0], 5) == [] and store.search(queries[:1], 0) == [[]]


@pytest.mark.slow
def test_patches_of_named_records(store: Store) -> None:
    store.upsert([replace(RECORDS[7], patches=None), replace(RECORDS[8], patches=b"")])
    asked = [RECORDS[n].id for n in (5, 7, 2, 5, 8)] + [content_id(b"unknown")]
    assert store.patches(asked) == {
        RECORDS[5].id: RECORDS[5].patches,
        RECORDS[2].id: RECORDS[2].patches,
        RECORDS[8].id: b"",
    }
    assert store.patches([]) == {}
    features = store.features(asked)
    assert features.keys() == {RECORDS[n].id for n in (5, 7, 2, 8)} and store.features([]) == {}
    for record in store.retrieve(list(features), vectors=True):
        vector, patches = features[record.id]
        np.testing.assert_array_equal(vector, record.global_vector)
        assert patches == record.patches and vector.dtype == np.float32


FILTERS: list[tuple[Filter, Callable[[int], bool]]] = [
    (Filter(), lambda n: True),
    (Filter(under=("0",)), lambda n: True),
    (Filter(under=("0/album1",)), lambda n: n % 3 == 1),
    (Filter(under=("0/album1", "0/album2")), lambda n: n % 3 != 0),
    (Filter(under=("0/album",)), lambda n: False),
    (Filter(after=DAY_0 + timedelta(days=10), file_dates=True), lambda n: n >= 10),
    (Filter(after=(DAY_0 + timedelta(days=10)).replace(tzinfo=None), file_dates=True), lambda n: n >= 10),
    (Filter(before=DAY_0 + timedelta(days=10, microseconds=10), file_dates=True), lambda n: n < 10),
    (Filter(before=DAY_0 + timedelta(days=10, microseconds=11), file_dates=True), lambda n: n <= 10),
    (
        Filter(after=(DAY_0 + timedelta(days=3)).astimezone(timezone(timedelta(hours=9))), file_dates=True),
        lambda n: n >= 3,
    ),
    (Filter(after=DAY_0 + timedelta(days=10)), lambda n: n >= 10 and n % 5 < 3),  # not those of files' times or unknown
    (Filter(camera="canon"), lambda n: n % 3 == 0),
    (Filter(camera="5d CANON"), lambda n: n % 3 == 0),
    (Filter(camera="nikon 5d"), lambda n: False),
    (Filter(near=(48.1, 11.5, 25.0)), lambda n: n in (1, 3)),
    (Filter(tags=("odd",)), lambda n: n % 2 == 1),
    (Filter(tags=("odd", "straße")), lambda n: n % 2 == 1),
    (Filter(tags=("odd", "even")), lambda n: False),
    (Filter(not_whitening_id="fit-a"), lambda n: n >= 20),
    (Filter(not_ids=(RECORDS[3].id, RECORDS[4].id)), lambda n: n not in (3, 4)),
    (
        Filter(under=("0/album1",), tags=("even",), not_whitening_id="fit-b"),
        lambda n: n % 3 == 1 and n % 2 == 0 and n < 20,
    ),
]


@pytest.mark.slow
def test_filters(store: Store) -> None:
    for where, expected in FILTERS:
        assert meeting(store, where) == {number for number in range(30) if expected(number)}, where


@pytest.mark.slow
def test_filters_may_name_thousands(store: Store) -> None:
    folders = tuple(f"0/none{n}" for n in range(5000))
    unknown = tuple(content_id(f"unknown {n}".encode()) for n in range(5000))
    assert meeting(store, Filter(under=(*folders, "0/album1"))) == {n for n in range(30) if n % 3 == 1}
    assert meeting(store, Filter(not_ids=(*unknown, RECORDS[3].id))) == set(range(30)) - {3}
    assert meeting(store, Filter(tags=tuple(f"none{n}" for n in range(2000)))) == set()


@pytest.mark.slow
def test_writes_may_be_repeated_and_replace_whole_records(store: Store) -> None:
    store.upsert(RECORDS[:10])
    assert store.count() == len(RECORDS)
    changed = replace(
        RECORDS[0], tags=(), metadata=Metadata(1, 2, "PNG"), global_vector=RECORDS[1].global_vector, patches=None
    )
    store.upsert([changed])
    (got,) = store.retrieve([changed.id], vectors=True)
    assert got.metadata == changed.metadata and got.tags == () and got.patches is None
    assert_near(got.global_vector, RECORDS[1].global_vector, atol=1e-3)
    assert store.patches([changed.id]) == {}


@pytest.mark.slow
def test_deleted_records_are_gone(store: Store) -> None:
    for _ in range(2):
        store.delete([RECORDS[0].id, RECORDS[1].id, content_id(b"unknown")])
    assert ids(list(store.scroll())) == ids(RECORDS[2:])
    assert store.search(GALLERY[0:1], 1)[0][0].id != RECORDS[0].id


@pytest.mark.slow
def test_a_rename_changes_files_and_folders_only(store: Store) -> None:
    record = RECORDS[4]
    files = (StoredFile("1/new/a.jpg", 5, 6), StoredFile("0/album1/b.jpg", 7, 8))
    for _ in range(2):
        store.set_files({record.id: files, content_id(b"unknown"): files})
    (got,) = store.retrieve([record.id], vectors=True)
    assert (got.files, got.tags, got.metadata, got.patches) == (files, record.tags, record.metadata, record.patches)
    assert_near(got.global_vector, record.global_vector, atol=1e-3)
    assert 4 in meeting(store, Filter(under=("1/new",))) and 4 in meeting(store, Filter(under=("0/album1",)))
    assert store.count() == len(RECORDS)


@pytest.mark.slow
def test_dates_are_replaced_and_nothing_else(store: Store) -> None:
    one, other = RECORDS[3], RECORDS[5]
    moment = datetime(2033, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    for _ in range(2):
        store.set_dates({one.id: (moment, "name"), other.id: (None, None), content_id(b"unknown"): (moment, "name")})
    got = {record.id: record for record in store.retrieve([one.id, other.id], vectors=True)}
    assert got[one.id].metadata == replace(one.metadata, taken_at=moment, date_source="name")
    assert got[other.id].metadata == replace(other.metadata, taken_at=None, date_source=None)
    assert (got[one.id].files, got[one.id].tags, got[one.id].patches) == (one.files, one.tags, one.patches)
    found = meeting(store, Filter(after=datetime(2033, 1, 1, tzinfo=UTC)))
    assert found == {3} and 5 not in meeting(store, Filter(after=datetime(1900, 1, 1, tzinfo=UTC), file_dates=True))
    assert store.count() == len(RECORDS)
    store.set_dates({})


def test_tags_are_replaced(store: Store) -> None:
    store.set_tags({RECORDS[1].id: ("holiday", "日本"), RECORDS[2].id: (), content_id(b"unknown"): ("x",)})
    assert meeting(store, Filter(tags=("日本",))) == {1}
    assert 2 not in meeting(store, Filter(tags=("even",)))
    assert store.retrieve([RECORDS[1].id])[0].files == RECORDS[1].files


@pytest.mark.slow
def test_attributes_are_replaced(store: Store) -> None:
    """Any JSON comes back; of its plain values a filter may ask, as texts."""
    values = {"n": 1.5, "t": "\udc80", "deep": {"a": [1, {"b": None}]}, "list": [1, "x", None], "日本": True}
    store.set_attributes({RECORDS[1].id: values, RECORDS[4].id: {}, content_id(b"unknown"): {"x": 1}})
    got = {record.id: record for record in store.retrieve([RECORDS[1].id, RECORDS[4].id, RECORDS[8].id])}
    assert got[RECORDS[1].id].attributes == values and got[RECORDS[4].id].attributes == {}
    assert got[RECORDS[1].id].metadata == RECORDS[1].metadata and got[RECORDS[1].id].tags == RECORDS[1].tags
    asked = [RECORDS[n].id for n in (1, 4, 8, 2)] + [content_id(b"unknown")]
    assert store.attributes_of(asked) == {RECORDS[1].id: values, RECORDS[8].id: RECORDS[8].attributes}
    for asked_for in ({"n": 1.5}, {"n": "1.5"}, {"t": "\udc80"}, {"list": 1}, {"list": None, "n": 1.5}, {"日本": True}):
        assert meeting(store, Filter(attributes=asked_for)) == {1}, asked_for
    for wrong in ({"n": 2}, {"N": 1.5}, {"deep": "a"}, {"n": 1.5, "t": "x"}, {"sku": "A 4"}):
        assert meeting(store, Filter(attributes=wrong)) == set(), wrong
    assert meeting(store, Filter(attributes={"sku": "A 8"}, tags=("even",))) == {8}
    store.set_dates({RECORDS[1].id: (None, None)})  # of what is stored beside them
    assert store.retrieve([RECORDS[1].id])[0].attributes == values
    store.set_attributes({RECORDS[1].id: {}})
    assert store.attributes_of([RECORDS[1].id]) == {} and meeting(store, Filter(attributes={"n": 1.5})) == set()
    store.set_attributes({})


def test_names_of_any_bytes_come_back(store: Store) -> None:
    """Every byte that is not UTF-8, as Python shows it on Linux, and a lone surrogate as on Windows."""
    folder = bytes(range(0x80, 0x100)).decode("utf-8", "surrogateescape")
    files = (StoredFile(f"0/{folder}/\ud83d é 日 😀 e\u0301.jpg", 1, 2), StoredFile("0/dc80/\\udc80.jpg", 3, 4))
    store.upsert([replace(RECORDS[0], files=files, tags=("\udc80",))])
    assert store.retrieve([RECORDS[0].id])[0].files == files
    assert store.retrieve([RECORDS[0].id])[0].tags == ("\udc80",)
    assert meeting(store, Filter(under=(f"0/{folder}",))) == {0}
    assert meeting(store, Filter(tags=("\udc80",))) == {0}


def test_engine_text_is_valid_and_reversible() -> None:
    for code in range(0xD800, 0xE000):
        text = f"a{chr(code)}b"
        assert from_engine(to_engine(text)) == text and to_engine(text).encode("utf-8")
    assert to_engine("photo é.jpg") == "photo é.jpg"


@pytest.mark.slow
def test_blobs_are_whole_and_replaced(empty: Store) -> None:
    large = np.random.default_rng(0).bytes(2_500_000)
    for data in (b"", b"{}", large, b"short again", large):
        empty.write_blob("descriptor.safetensors", data)
        assert empty.read_blob("descriptor.safetensors") == data
    empty.write_blob("manifest.json", b"{}")
    empty.ensure(SCHEMA)
    empty.set_files({})  # nothing to do is no failure
    assert empty.blob_names() == ["descriptor.safetensors", "manifest.json"]
    assert empty.read_blob("manifest.json") == b"{}" and empty.count() == 0


def test_vectors_of_other_dims_are_refused(store: Store) -> None:
    store.ensure(SCHEMA)
    with pytest.raises(StoreError, match="index into"):
        store.ensure(Schema(17))
    for wrong in (
        replace(RECORDS[0], global_vector=np.ones(17, np.float32)),
        replace(RECORDS[0], global_vector=np.ones((1, 16), np.float32)),
        replace(RECORDS[0], global_vector=np.full(16, np.nan, np.float32)),
        replace(RECORDS[0], global_vector=None),
    ):
        with pytest.raises(StoreError, match=RECORDS[0].id):
            store.upsert([wrong])
    assert_near(store.retrieve([RECORDS[0].id], vectors=True)[0].global_vector, RECORDS[0].global_vector, atol=1e-3)


def test_impossible_coordinates_do_not_stop_a_batch(store: Store) -> None:
    store.upsert([replace(RECORDS[0], metadata=replace(RECORDS[0].metadata, gps=(91.0, 500.0))), RECORDS[1]])
    assert store.retrieve([RECORDS[0].id])[0].metadata.gps is None


# In a folder

HOLD = """
import sys, time
from pathlib import Path
from indexer.store.protocol import Schema; from indexer.store.open import open_store
store = open_store(Path(sys.argv[1]), write=True)
store.ensure(Schema(16))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_second_writer_waits_and_is_told_who_holds_the_index(tmp_path: Path) -> None:
    holder = run_code(HOLD, tmp_path / "index")
    assert holder.stdout is not None and holder.stdout.readline() == "ready\n"
    with pytest.raises(LockedError, match=rf"being written by .*process {holder.pid}.*--wait"):
        open_store(tmp_path / "index", write=True, wait_s=0.1)
    holder.kill()  # a dead process leaves no lock behind
    holder.wait()
    holder.stdout.close()
    store = open_store(tmp_path / "index", wait_s=5)
    assert store.schema() == SCHEMA
    store.close()


WRITE = """
import sys
from pathlib import Path
from indexer.store.open import open_store
from stored_records import SCHEMA, make_record
store = open_store(Path(sys.argv[1]), write=True)
store.ensure(SCHEMA)
start = store.count()
print("start", start, flush=True)
for step in range(10_000):
    first = start + 3 * step
    store.upsert([make_record(number) for number in range(first, first + 3)])
    print(first + 3, flush=True)  # acknowledged
    if step % 20 == 19:
        store.optimize()
"""


@pytest.mark.slow
def test_killed_at_any_moment_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    acknowledged = 0
    for _ in range(4):
        writer = run_code(WRITE, tmp_path / "index")
        assert writer.stdout is not None
        assert int(writer.stdout.readline().split()[1]) >= acknowledged
        time.sleep(rng.uniform(0.02, 0.3))
        writer.kill()
        lines = writer.stdout.read().splitlines()
        writer.wait()
        writer.stdout.close()
        acknowledged = max([acknowledged, *map(int, lines)])
        store = open_store(tmp_path / "index")
        there = {record.id: record for record in store.scroll(vectors=True)}
        assert store.count() == len(there) and len(there) % 3 == 0 and len(there) >= acknowledged
        for number in range(len(there)):
            want = make_record(number)
            got = there[want.id]
            assert got.files == want.files and got.patches == want.patches
            assert_near(got.global_vector, want.global_vector, atol=1e-3)
        store.close()
        acknowledged = len(there)
    assert acknowledged > 0
    assert not [path for path in (tmp_path / "index").rglob("*") if "temp_segments" in path.parts]


def test_no_index_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(SeenitError, match="create one with: seenit index FOLDER"):
        open_store(tmp_path / "index")
    assert not (tmp_path / "index").exists()
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(SeenitError, match="holds other files"):
        open_store(tmp_path, write=True)
    with pytest.raises(SeenitError, match="is a file"):
        open_store(tmp_path / "photo.jpg", write=True)
    with pytest.raises(SeenitError, match="an index is a folder or"):
        open_store("ftp://host/photos")


@pytest.mark.skipif(sys.platform == "win32", reason="limits on the size of files are POSIX")
def test_a_blob_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from indexer.errors import StoreError
from indexer.store.open import open_store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = open_store(Path(sys.argv[1]), write=True)
store.write_blob("manifest.json", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    store.write_blob("manifest.json", b"x" * 5000)
except StoreError as error:
    print(error)
print(store.read_blob("manifest.json"), store.blob_names())
"""
    out, _ = run_code(code, tmp_path / "index").communicate(timeout=120)
    assert "make room" in out and out.splitlines()[1] == "b'old' ['manifest.json']"


def test_the_size_by_part_adds_up(tmp_path: Path) -> None:
    store = open_store(tmp_path / "index", write=True)
    store.ensure(SCHEMA)
    store.upsert(RECORDS)
    store.optimize()
    store.close()
    store = open_store(tmp_path / "index")
    parts = store.size().parts
    assert (tmp_path / "index" / "index.sqlite").stat().st_size <= parts["database"] < 1_000_000
    assert set(parts) == {"database", "tags"} and parts["tags"] > 0
    store.close()


# Copying


@pytest.mark.slow
def test_a_copy_holds_the_same_and_may_be_repeated(peer: QdrantPeer, tmp_path: Path) -> None:
    source = open_store(tmp_path / "photos" / ".seenit", write=True)
    source.ensure(SCHEMA)
    source.upsert(RECORDS)
    source.write_blob("descriptor.safetensors", b"fit")
    manifest = Manifest("tiny", "00", 224, {"token_bits": 2}, "fit-a", 30, {"0": ".."})
    source.close()
    with pytest.raises(SeenitError, match="not complete"):
        copy_index(tmp_path / "photos" / ".seenit", tmp_path / "copy")
    source = open_store(tmp_path / "photos" / ".seenit", write=True)
    write_manifest(source, manifest)
    query = GALLERY[9:10]
    want = [hit.id for hit in source.search(query, 10)[0]]
    source.close()
    url = f"{peer.url}/photos"
    assert copy_index(tmp_path / "photos" / ".seenit", url) == 30
    stray = open_store(url, write=True)
    stray.ensure(SCHEMA)
    stray.upsert([make_record(77)])
    stray.close()
    assert copy_index(tmp_path / "photos" / ".seenit", url) == 30  # again
    assert copy_index(url, tmp_path / "copy") == 30
    for place in (url, tmp_path / "copy"):
        copy = open_store(place)
        assert copy.count() == 30 and copy.blob_names() == ["descriptor.safetensors", "manifest.json"]
        assert [hit.id for hit in copy.search(query, 10)[0]] == want
        assert read_manifest(copy) == replace(manifest, roots={"0": str(tmp_path / "photos")})
        for got, record in zip(copy.retrieve([r.id for r in RECORDS], vectors=True), RECORDS, strict=True):
            assert (got.files, got.metadata, got.patches) == (record.files, record.metadata, record.patches)
            assert got.attributes == record.attributes
        copy.close()


@pytest.mark.slow
def test_a_search_leaves_the_number_of_threads_as_it_was(store: Store) -> None:
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        alone = [store.search(vector[None], 3)[0] for vector in GALLERY[:16]]
        assert faiss.omp_get_max_threads() == 3
        together = store.search(GALLERY[:16], 3)
        assert [[hit.id for hit in hits] for hits in together] == [[hit.id for hit in hits] for hits in alone]
    finally:
        faiss.omp_set_num_threads(before)
