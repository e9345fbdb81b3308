"""The book-keeping of a sync, compared with a plain dictionary twin."""

import random

from indexer.index.skipped import SkippedFile
from indexer.store.protocol import Listed, StoredFile
from indexer.sync.ledger import Ledger


def record(record_id: str, *keys: str, whitening_id: str = "f", size: int = 10) -> Listed:
    return Listed(record_id, whitening_id, tuple(StoredFile(key, size, 1) for key in keys))


def test_counts_every_kind_of_change() -> None:
    ledger = Ledger()
    ledger.add_known([record("A", "0/a"), record("B", "0/b"), record("C", "0/c"), record("D", "0/d")], "f")
    ledger.add_found(
        StoredFile(key, 10, mtime)
        for key, mtime in [("0/a", 1), ("0/b", 2), ("0/moved", 5), ("0/new", 5), ("0/copy", 5)]
    )
    ledger.settle(["0"])
    assert sorted(ledger.to_hash()) == [("0/b", 10), ("0/copy", 10), ("0/moved", 10), ("0/new", 10)]
    for key, content in [("0/b", "B2"), ("0/moved", "C"), ("0/new", "E"), ("0/copy", "A")]:
        ledger.assign(key, content, 10, 9)
    changes = ledger.changes()
    assert (changes.added, changes.copies, changes.updated) == (2, 1, 1)
    assert (changes.renamed, changes.removed, changes.unchanged) == (1, 1, 1)
    lines = dict(ledger.out_of_line())
    assert [file.key for file in lines["A"]] == ["0/a", "0/copy"]
    assert [file.key for file in lines["C"]] == ["0/moved"]
    assert lines["B"] == () and lines["D"] == ()
    ledger.close()


def test_files_outside_of_the_scope_stay() -> None:
    ledger = Ledger()
    ledger.add_known([record("A", "0/x/a", "1/a"), record("B", "0/y/b"), record("C", "0/xx/c")], "f")
    ledger.settle(["0/x"])
    lines = dict(ledger.out_of_line())
    assert {key: [file.key for file in files] for key, files in lines.items()} == {"A": ["1/a"]}
    ledger.close()


def test_a_folder_that_cannot_be_listed_keeps_its_files() -> None:
    ledger = Ledger()
    ledger.add_known([record("A", "0/locked/a"), record("B", "0/lockedb")], "f")
    ledger.keep_under("0/locked")
    ledger.settle(["0"])
    assert [record_id for record_id, _ in ledger.out_of_line()] == ["B"]
    ledger.close()


def test_skipped_files_are_not_tried_again_until_they_change() -> None:
    ledger = Ledger()
    ledger.add_skipped([SkippedFile("0/bad", 5, 1, "cut short"), SkippedFile("0/gone", 5, 1, "cut short")])
    ledger.add_skipped([SkippedFile("0/mended", 5, 1, "cut short")])
    ledger.add_found([StoredFile("0/bad", 5, 1), StoredFile("0/mended", 6, 2)])
    ledger.settle(["0"])
    assert list(ledger.to_decode(10)) == ["0/mended"]
    assert [file.key for file in ledger.skipped()] == ["0/bad"]
    ledger.close()


def test_claims_each_content_once_and_stale_ones_again() -> None:
    ledger = Ledger()
    ledger.add_known([record("A", "0/a", whitening_id="old"), record("B", "0/b")], "f")
    ledger.add_found([StoredFile("0/a", 10, 1), StoredFile("0/b", 10, 1), StoredFile("0/n", 3, 1)])
    ledger.settle(["0"])
    assert set(ledger.to_decode(10)) == {"0/a", "0/n"}
    assert [ledger.claim(content) for content in ["A", "A", "B", "N", "N"]] == [True, False, False, True, False]
    ledger.close()


def test_names_that_are_not_utf8() -> None:
    ledger = Ledger()
    odd = "0/caf\udce9.jpg"
    ledger.add_found([StoredFile(odd, 1, 1)])
    ledger.settle(["0"])
    assert list(ledger.to_decode(5)) == [odd]
    ledger.assign(odd, "A", 1, 1)
    assert ledger.files("A") == (StoredFile(odd, 1, 1),)
    ledger.close()


def test_random_histories_equal_a_plain_twin() -> None:
    for seed in range(40):
        rng = random.Random(seed)
        keys = [f"0/{n}" for n in range(12)]
        before = {key: f"c{rng.randrange(8)}" for key in keys if rng.random() < 0.6}
        after = {key: before[key] if key in before and rng.random() < 0.5 else f"c{rng.randrange(10)}" for key in keys}
        after = {key: content for key, content in after.items() if rng.random() < 0.7}
        ledger = Ledger()
        contents: dict[str, list[str]] = {}
        for key, content in before.items():
            contents.setdefault(content, []).append(key)
        ledger.add_known([record(content, *files) for content, files in contents.items()], "f")
        ledger.add_found(StoredFile(key, 10, 1 if before.get(key) == content else 2) for key, content in after.items())
        ledger.settle(["0"])
        todo = set(ledger.to_decode(5))
        assert todo == {key for key, content in after.items() if before.get(key) != content}
        for key in todo:
            ledger.assign(key, after[key], 10, 2)
            if ledger.claim(after[key]):
                ledger.wrote(after[key], ledger.files(after[key]))
        lines = {content: {file.key for file in files} for content, files in ledger.out_of_line()}
        stored = {content: set(files) for content, files in contents.items()} | {
            content: set() for content in after.values() if content not in before.values()
        }
        for content in stored:
            now = {key for key, value in after.items() if value == content}
            assert lines.get(content, {file.key for file in ledger.files(content)}) == now, (seed, content)
        ledger.close()


def test_of_two_contents_of_one_file_one_counts() -> None:
    """As a run leaves them that was killed between writing a record and taking the file from the one before."""
    ledger = Ledger()
    ledger.add_known([record("A", "0/a", "0/b"), record("B", "0/b", size=11), record("C", "0/a")], "f")
    ledger.add_found([StoredFile("0/a", 10, 1), StoredFile("0/b", 11, 1)])
    ledger.settle(["0"])
    assert list(ledger.to_decode(5)) == []
    assert ledger.files("A") == (StoredFile("0/a", 10, 1),) and ledger.files("B") == (StoredFile("0/b", 11, 1),)
    lines = dict(ledger.out_of_line())
    assert lines == {"A": (StoredFile("0/a", 10, 1),), "C": ()}
    changes = ledger.changes()
    assert (changes.unchanged, changes.removed, changes.updated) == (2, 0, 0)
    ledger.close()


def test_a_file_that_is_read_again_and_is_the_same_changes_nothing() -> None:
    for verify in (False, True):
        ledger = Ledger()
        ledger.add_known([record("A", "0/a", whitening_id="f" if verify else "old"), record("B", "0/b")], "f")
        ledger.add_found([StoredFile("0/a", 10, 1), StoredFile("0/b", 10, 1)])
        ledger.settle(["0"], verify=verify)
        read = list(ledger.to_decode(5))
        assert read == (["0/a", "0/b"] if verify else ["0/a"])
        for key in read:
            ledger.assign(key, key[-1].upper(), 10, 1)
        assert ledger.claim("A") is not verify
        ledger.wrote("A", ledger.files("A"))
        assert list(ledger.out_of_line()) == []
        changes = ledger.changes()
        assert (changes.added, changes.updated, changes.removed, changes.unchanged) == (0, 0, 0, 2)
        if verify:
            assert ledger.verified() == (2, [])
        ledger.close()


def test_a_record_written_without_one_of_its_files_is_out_of_line() -> None:
    ledger = Ledger()
    ledger.add_known([record("A", "0/a", whitening_id="old")], "f")
    ledger.add_found([StoredFile("0/a", 10, 1), StoredFile("0/copy", 10, 1)])
    ledger.settle(["0"])
    assert sorted(ledger.to_decode(5)) == ["0/a", "0/copy"]
    ledger.assign("0/a", "A", 10, 1)
    assert ledger.claim("A")
    made_with = ledger.files("A")
    ledger.assign("0/copy", "A", 10, 1)  # found while the record is made
    assert not ledger.claim("A")
    ledger.wrote("A", made_with)
    assert dict(ledger.out_of_line()) == {"A": (StoredFile("0/a", 10, 1), StoredFile("0/copy", 10, 1))}
    ledger.close()


def test_what_cannot_be_read_now_is_kept_as_known() -> None:
    ledger = Ledger()
    ledger.add_known([record("A", "0/a"), record("B", "0/b")], "f")
    ledger.add_found([StoredFile("0/a", 12, 5), StoredFile("0/b", 12, 5)])
    ledger.settle(["0"])
    ledger.keep("0/a")
    assert ledger.files("A") == (StoredFile("0/a", 10, 1),) and ledger.files("B") == ()
    ledger.keep_unread()
    assert ledger.files("B") == (StoredFile("0/b", 10, 1),)
    assert list(ledger.out_of_line()) == [] and ledger.changes().unchanged == 2
    ledger.close()
