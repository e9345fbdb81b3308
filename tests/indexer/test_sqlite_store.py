"""The embedded store where things go wrong: kills, damage, odd files, full disks, and many readers beside a writer.

What both stores promise is in test_stores.py; benchmarks/kill_campaign.py and fuzz_index.py are the long versions.
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
import numpy as np
import pytest
from conftest import draw_photo
from store_kinds import run_code
from stored_records import RECORDS, SCHEMA, make_record, unit

from indexer.errors import LockedError, SeenitError, StoreError
from indexer.images.metadata import content_id
from indexer.index import find_index as last_index
from indexer.index.keys import Roots
from indexer.store import index_folder, sqlite_readers, sqlite_schema
from indexer.store.open import open_store
from indexer.store.protocol import Filter, Record, Store, StoredFile
from indexer.store.sqlite_check import check_index, repair_index
from indexer.store.sqlite_schema import connect
from indexer.store.sqlite_store import SqliteStore
from indexer.sync.options import SyncOptions
from indexer.sync.sync import sync_folder

DATABASE = "index.sqlite"
POSIX = pytest.mark.skipif(os.name != "posix", reason="links, pipes, users and forks are POSIX")
AS_ROOT = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)
NOBODY = 65534


@pytest.fixture
def folder(memory_path: Path) -> Path:
    """An index of RECORDS, closed."""
    with closing(open_store(memory_path / "index", write=True)) as store:
        store.ensure(SCHEMA)
        store.upsert(RECORDS)
        store.write_blob("manifest.json", b"{}")
    return memory_path / "index"


def read_all(store: Store) -> list[object]:
    return [
        (
            record.id,
            record.files,
            record.metadata,
            record.whitening_id,
            record.tags,
            record.patches,
            record.global_vector.tobytes(),
        )
        for record in store.scroll(vectors=True)
        if record.global_vector is not None
    ]


def held(folder: Path) -> list[object]:
    with closing(open_store(folder)) as store:
        return read_all(store)


def one_line(error: pytest.ExceptionInfo[SeenitError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def query(seed: int, count: int = 3) -> np.ndarray:
    return unit(np.random.default_rng(seed), count, SCHEMA.global_dim)


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


# Damage


def flip_page_of(folder: Path, name: str) -> None:
    """Flip a bit in the root page of a table or index."""
    with closing(connect(folder)) as db:
        ((page, size),) = db.execute(
            "SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_schema WHERE name = ?", (name,)
        )
    data = bytearray((folder / DATABASE).read_bytes())
    data[(page - 1) * size + size - 100] ^= 4
    (folder / DATABASE).write_bytes(data)


def names_of(folder: Path) -> list[str]:
    with closing(connect(folder)) as db:
        return [name for (name,) in db.execute("SELECT name FROM sqlite_schema ORDER BY name")]


@pytest.mark.slow
def test_a_flipped_bit_in_any_table_is_found_and_never_read_as_something_else(folder: Path) -> None:
    before = held(folder)
    names = names_of(folder)
    assert {"records", "vectors", "patches", "files", "tags", "records_taken_at"} <= set(names)
    for name in names:
        copy = folder.with_name(name)
        shutil.copytree(folder, copy)
        flip_page_of(copy, name)
        assert check_index(copy).problems, name
        with suppress(StoreError):
            assert held(copy) == before, name
        for where in (Filter(), Filter(tags=("even",)), Filter(under=("0/album1",)), Filter(camera="canon")):
            with suppress(StoreError), closing(open_store(copy)) as store, closing(open_store(folder)) as sound:
                assert store.count(where) == sound.count(where), (name, where)
                got, want = (each.search(query(0), 5, where) for each in (store, sound))
                assert got == want, (name, where)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: b"", "is empty"),
        (lambda data: b"nothing but text\n" * 1000, "damaged"),
        (lambda data: os.urandom(len(data)), "damaged"),
        (lambda data: data[:16] + b"\x00\x01" + data[18:], "damaged"),
        (lambda data: data[:24] + bytes(8) + data[32:], "damaged"),
        (lambda data: data + data[-8192:], None),
        (lambda data: data[:8192] + data[16384:24576] + data[8192:16384] + data[24576:], "damaged"),
    ],
)
def test_a_damaged_database_is_told_in_one_line(
    folder: Path, damage: Callable[[bytes], bytes], message: str | None
) -> None:
    before = held(folder)
    (folder / DATABASE).write_bytes(damage((folder / DATABASE).read_bytes()))
    if message is None:
        assert held(folder) == before
        return
    with pytest.raises(StoreError, match=message) as error:
        held(folder)
    one_line(error)
    with suppress(StoreError):
        open_store(folder, write=True).close()
    assert message == "is empty" or check_index(folder).problems


def altered(folder: Path, *statements: str) -> None:
    """Altered as its maker could: with checksums that are right."""
    with closing(apsw.Connection(str(folder / DATABASE), vfs="cksmvfs")) as db:
        for statement in statements:
            db.execute(statement)
        db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER theirs AFTER DELETE ON tags BEGIN DELETE FROM records; END",
        "CREATE VIEW theirs AS SELECT * FROM records",
        "CREATE TABLE theirs (x)",
        "DROP INDEX files_number",
        "ALTER TABLE records ADD COLUMN x",
    ],
)
def test_a_schema_that_is_not_ours_is_refused(folder: Path, statement: str) -> None:
    altered(folder, statement)
    for write in (False, True):
        with pytest.raises(StoreError, match="altered by another program") as error:
            open_store(folder, write=write)
        one_line(error)


def test_another_format_and_another_program_are_told_apart(folder: Path) -> None:
    altered(folder, "PRAGMA user_version = 3")
    with pytest.raises(StoreError, match=r"newer seenit \(format 3\)"):
        open_store(folder)
    (folder / DATABASE).unlink()
    with closing(sqlite3.connect(folder / DATABASE)) as db:
        db.execute("CREATE TABLE theirs (x)")
    before = (folder / DATABASE).read_bytes()
    for write in (False, True):
        with pytest.raises(StoreError, match="not made by seenit"):
            open_store(folder, write=write)
    assert (folder / DATABASE).read_bytes() == before


def test_an_index_of_the_first_version_is_told_and_left_alone(memory_path: Path) -> None:
    (memory_path / "old" / "shard").mkdir(parents=True)
    for write in (False, True):
        with pytest.raises(SeenitError, match="first version") as error:
            open_store(memory_path / "old", write=write)
        one_line(error)
    assert [path.name for path in (memory_path / "old").iterdir()] == ["shard"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE records SET id = 'text'",
        "UPDATE records SET id = x'00'",
        "UPDATE vectors SET vector = x'0000'",
        "UPDATE vectors SET id = 7",
        "UPDATE records SET latitude = 'north' WHERE latitude IS NOT NULL",
        "UPDATE records SET taken_at = 9223372036854775807",
        "UPDATE files SET key = 12, number = number",
        "UPDATE tags SET tag = 3",
        "UPDATE cameras SET name = camera",
        "UPDATE meta SET value = 99999999999 WHERE name = 'index'",
        "UPDATE meta SET value = 'many' WHERE name = 'records'",
        "UPDATE meta SET value = 'long' WHERE name = 'dim'",
        "UPDATE epochs SET token = 5",
        "UPDATE blobs SET data = 'text'",
        "DELETE FROM records WHERE number = 3",
        "DELETE FROM vectors WHERE number = 3",
        "UPDATE patches SET patches = x'' WHERE number = 3",
    ],
)
def test_values_of_another_kind_are_one_line_and_no_traceback(folder: Path, statement: str) -> None:
    altered(folder, statement.replace("UPDATE", "UPDATE OR REPLACE", 1))
    for ask in (
        read_all,
        lambda store: store.count(),
        lambda store: list(store.list_files()),
        lambda store: store.search(query(0), 3),
        lambda store: store.search(query(0), 3, Filter(near=(48.5, 11.5, 30.0))),
        lambda store: store.count(Filter(camera="canon")),
        lambda store: store.patches([record.id for record in RECORDS]),
        lambda store: store.tags_of([record.id for record in RECORDS]),
        lambda store: store.read_blob("manifest.json"),
        lambda store: store.size(),
        lambda store: store.optimize(),
    ):
        try:
            with closing(open_store(folder)) as store:
                ask(store)
        except StoreError as error:
            assert "\n" not in str(error)
    assert (
        check_index(folder).problems or "epochs" in statement or "'index'" in statement or "data = 'text'" in statement
    )


# Odd files


@POSIX
@pytest.mark.parametrize("name", [DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", "lock", "lock.json", "tags.json"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_what_is_no_plain_file_is_not_followed_read_or_waited_for(folder: Path, name: str, kind: str) -> None:
    outside = folder.with_name("outside")
    outside.write_bytes((folder / DATABASE).read_bytes())
    before, known = outside.read_bytes(), sorted(path.name for path in folder.parent.iterdir())
    (folder / name).unlink(missing_ok=True)
    if kind == "link":
        (folder / name).symlink_to(outside)
    elif kind == "dangling link":
        (folder / name).symlink_to(folder.with_name("nothing"))
    elif kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).mkdir()
    signal.alarm(20)  # a pipe that is waited for ends the test
    try:
        with suppress(SeenitError):
            held(folder)
            assert not name.startswith(DATABASE)
        with suppress(SeenitError), closing(open_store(folder, write=True)) as store:
            store.set_tags({RECORDS[0].id: ("new",)})
            assert name != "lock" and not name.startswith(DATABASE)
        check_index_or_refuse(folder)
    finally:
        signal.alarm(0)
    assert outside.read_bytes() == before
    assert sorted(path.name for path in folder.parent.iterdir()) == known


def check_index_or_refuse(folder: Path) -> None:
    with suppress(SeenitError):
        check_index(folder)


@POSIX
def test_a_link_in_the_way_of_a_repair_is_not_followed(folder: Path) -> None:
    outside = folder.with_name("outside")
    outside.mkdir()
    (folder / "repair.part").symlink_to(outside)
    with pytest.raises(SeenitError, match="in the way"):
        repair_index(folder)
    assert not list(outside.iterdir()) and held(folder)


def hot_journal(folder: Path) -> None:
    """As a writer that was killed in a transaction leaves it, where no log is kept."""
    child = run_code(
        """
import sys, os, apsw
from pathlib import Path
from indexer.store.sqlite_schema import connect
db = connect(Path(sys.argv[1]), write=True)
db.pragma("journal_mode", "delete")
db.execute("PRAGMA cache_size = 1; BEGIN; DELETE FROM patches; DELETE FROM tags; DELETE FROM records")
os.kill(os.getpid(), 9)
""",
        folder,
    )
    child.communicate(timeout=120)
    assert child.returncode == -signal.SIGKILL and (folder / f"{DATABASE}-journal").stat().st_size > 512


@POSIX
def test_what_a_killed_writer_left_half_written_is_undone_by_a_reader(folder: Path) -> None:
    before = held(folder)
    hot_journal(folder)
    assert held(folder) == before


@POSIX
def test_a_journal_that_names_another_file_is_refused(folder: Path) -> None:
    """SQLite would delete the file that it names."""
    hot_journal(folder)
    precious = folder.with_name("precious")
    precious.write_bytes(b"mine\0")
    name = os.fsencode(precious)
    tail = (b"\0\0\0\1" + name + len(name).to_bytes(4, "big") + sum(name).to_bytes(4, "big")).ljust(8)
    with open(folder / f"{DATABASE}-journal", "ab") as journal:
        journal.write(tail + b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7")
    for write in (False, True):
        with pytest.raises(StoreError, match="was not left by seenit"):
            open_store(folder, write=write)
    assert precious.read_bytes() == b"mine\0"


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
    """Flip a bit in the patches of one record."""
    data = bytearray((folder / DATABASE).read_bytes())
    data[data.index(packed[-100:]) + 50] ^= 16
    (folder / DATABASE).write_bytes(data)


def test_what_cannot_be_repaired_is_told_and_left_as_it_is(folder: Path) -> None:
    (folder / DATABASE).write_bytes(b"no database at all" * 1000)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(SeenitError, match=r"move its index\.sqlite away") as error:
        repair_index(folder)
    one_line(error)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("lock")}
    assert after == {name: data for name, data in before.items() if not name.startswith("lock")}


# Trust


@pytest.mark.parametrize(
    "key", ["0/../x.jpg", "0//x.jpg", "0/", "0/a/./x.jpg", "0/x\0.jpg", "0/a/..", "../x", "/etc/passwd", ""]
)
def test_keys_that_leave_their_folder_are_refused(tmp_path: Path, key: str) -> None:
    roots = Roots(str(tmp_path / ".seenit"), {"0": ".."})
    with pytest.raises(SeenitError) as error:
        roots.path(key)
    one_line(error)


def test_a_key_is_a_path_below_its_folder(tmp_path: Path) -> None:
    roots = Roots(str(tmp_path / ".seenit"), {"0": ".."})
    assert roots.path("0/a/..b.jpg") == str(tmp_path / "a" / "..b.jpg") and roots.path("0") == str(tmp_path)


@POSIX
def test_an_index_of_another_user_beside_a_query_is_left_alone(
    folder: Path, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = memory_path / "queries"
    queries.mkdir()
    place = folder.rename(queries / ".seenit")
    monkeypatch.chdir(memory_path)
    said: list[str] = []
    assert last_index.find_index(None, [queries], said.append) == str(place)
    assert str(place) in said[0]
    theirs = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: theirs)
    with pytest.raises(SeenitError, match="no index here"):
        last_index.find_index(None, [queries], said.append)
    assert "another user's" in said[-1] and "--index" in said[-1]
    assert last_index.find_index(str(place), [queries], said.append) == str(place)


# What cannot be read as something else


def test_ids_and_files_that_are_replaced_together_stay_together(folder: Path) -> None:
    """One transaction: a record is never without its files, its tags, its vector."""
    with closing(open_store(folder, write=True)) as store:
        id = content_id(b"0")
        store.set_files({id: (StoredFile("0/a.jpg", 1, 2), StoredFile("0/b.jpg", 3, 4))})
        (record,) = store.retrieve([id])
        assert [file.key for file in record.files] == ["0/a.jpg", "0/b.jpg"]
