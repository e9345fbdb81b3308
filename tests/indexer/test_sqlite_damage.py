"""Damaged, foreign and hostile files where an index lies: each is told in one line and read as nothing else."""

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import apsw
import pytest
from sqlite_folder import DATABASE, held, index_of_records, one_line, query, read_all
from store_kinds import run_code
from stored_records import RECORDS

from indexer.errors import SeenitError, StoreError
from indexer.images.metadata import content_id
from indexer.index import find_index as last_index
from indexer.index.keys import Roots
from indexer.store.open import open_store
from indexer.store.protocol import Filter, StoredFile
from indexer.store.sqlite_check import check_index, repair_index
from indexer.store.sqlite_schema import connect

POSIX = pytest.mark.skipif(os.name != "posix", reason="links, pipes and signals are POSIX")


@pytest.fixture
def folder(memory_path: Path) -> Path:
    """An index of RECORDS, closed."""
    return index_of_records(memory_path / "index")


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
