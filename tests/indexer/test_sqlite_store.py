"""The embedded store where things go wrong: kills, full disks, read-only folders, many readers beside a writer.

Damage and hostile files are in test_sqlite_damage.py, what both stores promise is in test_stores.py;
benchmarks/kill_campaign.py and fuzz_index.py are the long versions.
"""

import json
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import apsw
import pytest
from conftest import draw_photo
from sqlite_folder import DATABASE, held, index_of_records, one_line, query, read_all
from store_kinds import run_code
from stored_records import RECORDS, SCHEMA, make_record

from indexer.errors import LockedError, SeenitError, StoreError
from indexer.store import index_folder, sqlite_readers, sqlite_schema
from indexer.store.open import open_store
from indexer.store.protocol import Filter, Record, Store
from indexer.store.sqlite_check import check_index, repair_index
from indexer.store.sqlite_store import SqliteStore
from indexer.sync.options import SyncOptions
from indexer.sync.sync import sync_folder

POSIX = pytest.mark.skipif(os.name != "posix", reason="links, pipes, users and forks are POSIX")
AS_ROOT = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)
NOBODY = 65534


@pytest.fixture
def folder(memory_path: Path) -> Path:
    """An index of RECORDS, closed."""
    return index_of_records(memory_path / "index")


# Kills


WRITER = """
import sys, os
from pathlib import Path
from indexer.store.open import open_store
from stored_records import SCHEMA, make_record
from dataclasses import replace
store = open_store(sys.argv[1], write=True)
store.ensure(SCHEMA)
for n in range(100000):
    records = [replace(make_record((7 * n + i) % 50), tags=(f"round {n}",)) for i in range(5)]
    store.upsert(records)
    store.set_tags({records[0].id: (f"tag {n}",)})
    os.write(1, f"{n}\\n".encode())
"""


@pytest.mark.slow
def test_killed_in_mid_work_nothing_acknowledged_is_lost(memory_path: Path) -> None:
    for seed in range(6):
        index = memory_path / f"index{seed % 2}"
        child = run_code(WRITER, index)
        assert child.stdout is not None
        assert select.select([child.stdout], [], [], 30)[0]
        time.sleep(random.Random(seed).uniform(0, 0.1))
        assert child.poll() is None
        child.kill()
        told, _ = child.communicate()
        rounds = [int(line) for line in told.split("\n")[:-1]]
        assert rounds and rounds == list(range(len(rounds))) and child.returncode == -signal.SIGKILL
        last = rounds[-1]
        with closing(open_store(index)) as store:
            records = {record.id: record for record in store.scroll(vectors=True)}
        written = make_record(7 * last % 50).id
        assert records[written].tags in ((f"tag {last}",), (f"round {last + 1}",), (f"tag {last + 1}",))
        for i in range(1, 5):
            assert records[make_record((7 * last + i) % 50).id].tags[0] in (f"round {last}", f"round {last + 1}")
        checked = check_index(index)
        assert [one for one in checked.problems if "no index at" not in one] == []  # it has no manifest


# Read-only folders, full disks


def as_nobody(work: Callable[[], None]) -> None:
    """In a child that may write nothing of ours."""
    if not (child := os.fork()):
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            work()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@POSIX
@AS_ROOT
def test_a_folder_that_cannot_be_written_is_searched(folder: Path) -> None:
    before = held(folder)
    os.chmod(folder.parent, 0o755)
    os.chmod(folder, 0o555)

    def read() -> None:
        assert held(folder) == before
        with closing(open_store(folder)) as store:
            assert len(store.search(query(0), 5)[0]) == 5
            store.optimize()
        with pytest.raises(StoreError, match="cannot write") as error:
            open_store(folder, write=True)
        one_line(error)

    as_nobody(read)


@POSIX
@AS_ROOT
def test_a_backup_of_a_killed_writer_says_how_to_read_its_last_changes(folder: Path) -> None:
    """What lies in the log alone is not left out in silence."""
    assert os.waitstatus_to_exitcode(_write_and_die(folder, make_record(30))) == -signal.SIGKILL
    assert (folder / f"{DATABASE}-wal").stat().st_size
    (folder / f"{DATABASE}-shm").unlink()
    os.chmod(folder.parent, 0o755)
    os.chmod(folder, 0o555)

    def read() -> None:
        with pytest.raises(StoreError, match="copy the folder to another disk and use the copy") as error:
            open_store(folder)
        one_line(error)

    as_nobody(read)
    with closing(open_store(Path(shutil.copytree(folder, folder.with_name("copy"))))) as store:
        assert store.count() == 31


def _write_and_die(folder: Path, record: Record) -> int:
    """The status of a child that was killed after it had written."""
    if not (child := os.fork()):
        open_store(folder, write=True).upsert([record])
        os.kill(os.getpid(), signal.SIGKILL)
    return os.waitpid(child, 0)[1]


@POSIX
@AS_ROOT
def test_a_file_that_is_read_as_it_lies_is_reopened_when_it_changes(folder: Path) -> None:
    os.chmod(folder.parent, 0o755)
    os.chmod(folder, 0o555)
    read_by, write_to = os.pipe()
    told_by, tell = os.pipe()
    if not (child := os.fork()):
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        store = open_store(folder)
        os.write(tell, bytes([store.count()]))
        os.read(read_by, 1)
        os.write(tell, bytes([store.count()]))
        os._exit(0)
    assert os.read(told_by, 1) == bytes([30])
    with closing(open_store(folder, write=True)) as store:
        store.upsert([make_record(30), make_record(31)])
    os.write(write_to, b".")
    assert os.read(told_by, 1) == bytes([32])
    os.waitpid(child, 0)


def test_a_reader_of_a_file_as_it_lies_notices_a_writer_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk: the folder can be written, but nothing shared can be made beside the database."""
    real = sqlite_schema.connect

    def only_as_it_lies(folder: Path, *, write: bool = False, immutable: bool = False) -> apsw.Connection:
        if not (write or immutable):
            raise apsw.FullError("database or disk is full")
        return real(folder, write=write, immutable=immutable)

    monkeypatch.setattr(sqlite_readers, "connect", only_as_it_lies)
    reader = SqliteStore.open(folder)
    assert reader.count() == 30
    monkeypatch.setattr(sqlite_readers, "connect", real)
    held_open = reader.snapshot()
    held_open.__enter__()
    with closing(open_store(folder, write=True)) as writer:
        writer.upsert([make_record(30)])
    with pytest.raises(StoreError, match="written to while it was read"):
        held_open.__exit__(None, None, None)
    assert reader.count() == 31
    reader.close()


@contextmanager
def small_disk(folder: Path, size_kib: int) -> Iterator[Path]:
    """A disk of its own in memory; skips where the test may not mount."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@POSIX
@AS_ROOT
@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
def test_a_full_disk_is_told_reads_on_and_loses_nothing(folder: Path, memory_path: Path) -> None:
    with small_disk(memory_path / "disk", 2048) as disk:
        index = Path(shutil.copytree(folder, disk / "index"))
        before = held(index)
        (disk / "filler").write_bytes(b"")
        with suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        assert held(index) == before
        with closing(open_store(index)) as store:
            assert len(store.search(query(0), 5)[0]) == 5
        more = [make_record(number) for number in range(30, 60)]
        with pytest.raises(StoreError, match="make room") as error, closing(open_store(index, write=True)) as store:
            store.upsert(more)
        one_line(error)
        assert held(index) == before
        (disk / "filler").unlink()
        with closing(open_store(index, write=True)) as store:
            store.upsert(more)
            store.delete([record.id for record in RECORDS])
            assert store.count() == 30


def test_a_network_drive_gets_no_shared_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def journal() -> str:
        with closing(sqlite3.connect(folder / DATABASE)) as db:
            return str(db.execute("PRAGMA journal_mode").fetchone()[0])

    assert journal() == "wal"
    before = held(folder)
    monkeypatch.setattr(index_folder, "drive_kind", lambda folder: "nfs4")
    with closing(open_store(folder, write=True)) as store:
        store.set_tags({RECORDS[0].id: ("new",)})
        assert not (folder / f"{DATABASE}-wal").exists()
        with closing(open_store(folder)) as reader:
            assert reader.tags_of([RECORDS[0].id]) == {RECORDS[0].id: ("new",)}
    assert journal() == "delete"  # what every journal but a log's says to another connection
    assert len(held(folder)) == len(before)


# Many at once


@pytest.mark.slow
def test_threads_read_one_state_each_while_another_writes(folder: Path) -> None:
    """The writer keeps all tags equal, and the records' number even; a reader that sees else saw two states."""
    stop = threading.Event()
    faults: list[object] = []
    reads = [0]

    def read(store: Store, seed: int) -> None:
        try:
            while not stop.is_set():
                with store.snapshot():
                    count = store.count()
                    records = list(store.scroll(vectors=True, batch=7))
                    (hits,) = store.search(query(seed, 1), 1000)
                    if len(records) != count or count % 2 or len(hits) != count:
                        faults.append((count, len(records), len(hits)))
                    if len({record.tags for record in records}) != 1:
                        faults.append({record.tags for record in records})
                    if {hit.id for hit in hits} != {record.id for record in records}:
                        faults.append("search and list differ")
                reads[0] += 1
        except BaseException as error:
            faults.append(error)

    with closing(open_store(folder, write=True)) as writer, closing(open_store(folder)) as other:
        writer.set_tags({record.id: ("same",) for record in RECORDS})
        threads = [threading.Thread(target=read, args=(store, n)) for n, store in enumerate([writer, writer, other])]
        for thread in threads:
            thread.start()
        for n in range(40):
            pair = [replace(make_record(30 + 2 * n + i), tags=("same",)) for i in range(2)]
            writer.upsert(pair)
            if n % 3 == 0:
                writer.delete([record.id for record in pair])
            if n % 5 == 0:
                writer.upsert([replace(record, tags=("same",)) for record in RECORDS[:10]])
        stop.set()
        for thread in threads:
            thread.join()
    assert not faults and reads[0] > 3


def test_a_reader_in_another_process_sees_new_records_without_reopening(folder: Path) -> None:
    code = """
import sys, numpy as np
from indexer.store.open import open_store
store = open_store(sys.argv[1])
print(store.count(), flush=True)
while store.count() != 32: pass
print(len(store.search(np.eye(16, dtype=np.float32)[:1], 100)[0]), flush=True)
"""
    child = run_code(code, folder)
    assert child.stdout is not None and child.stdout.readline() == "30\n"
    with closing(open_store(folder, write=True)) as store:
        store.upsert([make_record(30), make_record(31)])
        assert child.stdout.readline() == "32\n"
    assert child.wait() == 0
    child.stdout.close()


@pytest.mark.slow
def test_a_second_writer_waits_then_names_the_first(folder: Path) -> None:
    with closing(open_store(folder, write=True)):
        began = time.monotonic()
        with pytest.raises(LockedError, match=f"process {os.getpid()}") as error:
            open_store(folder, write=True, wait_s=0.3)
        assert time.monotonic() - began >= 0.3 and "--wait" in one_line(error)
        assert held(folder)
    open_store(folder, write=True, wait_s=0).close()


def test_a_snapshot_holds_what_was_there(folder: Path) -> None:
    with closing(open_store(folder, write=True)) as writer, closing(open_store(folder)) as reader:
        assert len(reader.search(query(0), 100)[0]) == 30
        with reader.snapshot():
            before = read_all(reader)
            writer.delete([record.id for record in RECORDS[:20]])
            writer.upsert([make_record(number) for number in range(100, 160)])
            assert read_all(reader) == before and reader.count() == 30
            (hits,) = reader.search(query(1, 1), 100)
            assert {hit.id for hit in hits} == {record.id for record in RECORDS}
        assert reader.count() == 70 and len(reader.search(query(1, 1), 100)[0]) == 70
        with reader.snapshot():
            assert len(reader.search(query(1, 1), 100)[0]) == 70


# Tags


def test_tags_survive_the_loss_of_the_database(folder: Path) -> None:
    for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"):
        (folder / name).unlink(missing_ok=True)
    with closing(open_store(folder, write=True)) as store:
        store.ensure(SCHEMA)
        assert store.tags_of([RECORDS[0].id, RECORDS[1].id]) == {
            RECORDS[0].id: ("even",),
            RECORDS[1].id: ("odd", "straße"),
        }


def test_tags_survive_that_an_image_goes_and_comes_back(folder: Path) -> None:
    with closing(open_store(folder, write=True)) as store:
        store.delete([RECORDS[1].id])
    with closing(open_store(folder, write=True)) as store:
        assert store.tags_of([RECORDS[1].id]) == {RECORDS[1].id: ("odd", "straße")}
        store.upsert([RECORDS[2]])
    with closing(open_store(folder)) as store:
        assert store.remembered_tags()[RECORDS[1].id] == ("odd", "straße")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"format": 9, "tags": {}}', b'{"format": 1, "tags": {"a": 1}}']
)
def test_a_damaged_copy_of_the_tags_is_put_aside_and_made_anew(folder: Path, content: bytes) -> None:
    (folder / "tags.json").write_bytes(content)
    assert any("tags.json" in problem for problem in check_index(folder).problems)
    with closing(open_store(folder, write=True)) as store:
        store.set_tags({RECORDS[0].id: ("new",)})
    assert [path.read_bytes() for path in folder.glob("tags.json.damaged-*")] == [content]
    with closing(open_store(folder)) as store:
        want = {record.id: tuple(sorted(record.tags)) for record in RECORDS} | {RECORDS[0].id: ("new",)}
        assert store.remembered_tags() == want


def test_tags_that_a_killed_run_left_out_of_the_copy_are_added(folder: Path) -> None:
    (folder / "tags.json").unlink()
    with closing(open_store(folder, write=True)) as store:
        store.set_tags({RECORDS[0].id: ("new",)})
    tags = json.loads((folder / "tags.json").read_bytes())["tags"]
    assert len(tags) == 30 and tags[RECORDS[0].id] == ["new"]


# Repair


@pytest.mark.slow
def test_a_repair_keeps_what_is_sound_and_a_sync_embeds_only_the_rest(
    tiny_backbone: Path, photos: Path, memory_path: Path
) -> None:
    for number in range(20, 40):
        draw_photo(photos / "c" / f"{number}.jpg", number)
    index = memory_path / "index"
    sync_folder(photos, index, options=SyncOptions(resolution=56, tokens="balanced", workers=1), backbone=tiny_backbone)
    with closing(open_store(index, write=True)) as store:
        store.set_tags({record.id: ("mine",) for record in store.scroll()})
        blobs = {name: store.read_blob(name) for name in store.blob_names()}
        first = next(iter(store.scroll(vectors=True)))
    assert first.patches is not None
    damage_patches_of(index, first.patches)
    damaged = (index / DATABASE).read_bytes()
    assert check_index(index).problems
    repaired = repair_index(index)
    assert (repaired.lost, repaired.images) == (1, 27)
    assert Path(repaired.kept_as).read_bytes() == damaged
    assert not check_index(index).problems
    with closing(open_store(index)) as store:
        assert store.count() == repaired.images == repaired.tags == store.count(Filter(tags=("mine",)))
        assert {name: store.read_blob(name) for name in store.blob_names()} == blobs
    summary = sync_folder(photos, index, options=SyncOptions(workers=1))
    assert summary.embedded == repaired.lost and summary.images == 28
    with closing(open_store(index)) as store:
        assert store.count(Filter(tags=("mine",))) == 28
    assert not check_index(index).problems


def damage_patches_of(folder: Path, packed: bytes) -> None:
    """Flip a bit in the patches of one record, and in what is left of them on pages that are free again."""
    data, at = bytearray((folder / DATABASE).read_bytes()), -1
    while (at := data.find(packed[-100:], at + 1)) >= 0:
        data[at + 50] ^= 16
    (folder / DATABASE).write_bytes(data)


def test_what_cannot_be_repaired_is_told_and_left_as_it_is(folder: Path) -> None:
    (folder / DATABASE).write_bytes(b"no database at all" * 1000)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(SeenitError, match=r"move its index\.sqlite away") as error:
        repair_index(folder)
    one_line(error)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("lock")}
    assert after == {name: data for name, data in before.items() if not name.startswith("lock")}
