"""Moving duplicates away and back, and joining equal files: whatever happens, no byte is lost."""

import errno
import json
import os
from pathlib import Path

import pytest

from indexer.errors import SeenitError
from indexer.manifest import Roots
from indexer.store import Metadata, Record, StoredFile, content_id
from retrieval.duplicates.files import join_files, move_file
from retrieval.duplicates.find import Duplicates, File, Group, Member
from retrieval.duplicates.hardlink import join_same_bytes, same_bytes
from retrieval.duplicates.move import check_target, move_spare, undo_moves


def write(path: Path, data: bytes) -> File:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    status = path.stat()
    root = path.parents[1]
    key = "/".join(("0", *path.relative_to(root).parts))
    return File(key, str(path), status.st_size, status.st_mtime_ns, content_id(data))


def member(level: str, files: list[File], stays: str = "") -> Member:
    stored = tuple(StoredFile(file.key, file.size, file.mtime_ns) for file in files)
    record = Record(files[0].id, stored, Metadata(8, 6, "JPEG"), "fit")
    return Member(record, tuple(files), level, 0.9, "", stays)  # type: ignore[arg-type]


def found_in(folder: Path) -> Duplicates:
    """A photo, its exact copy, a smaller version in two files, and a collage that must stay."""
    kept = write(folder / "a" / "photo.jpg", b"photo")
    same = write(folder / "b" / "photo.jpg", b"photo")
    small = [write(folder / "b" / f"small{n}.jpg", b"small") for n in range(2)]
    collage = write(folder / "b" / "collage.jpg", b"collage")
    members = (member("exact", [same]), member("near", small), member("near", [collage], "it holds more"))
    group = Group(member("exact", [kept]).record, kept, members)
    return Duplicates(str(folder / ".seenit"), "near", "resolution", (group,), 3, 0.1)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but manifests."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".jsonl"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_spare_files_move_with_their_folders_and_come_back(tmp_path: Path) -> None:
    photos, away = tmp_path / "photos", tmp_path / "away"
    found = found_in(photos)
    before = contents(photos)
    moved = move_spare(found, away)
    assert (moved.files, moved.size, moved.left) == (3, 15, ())
    assert contents(away) == {"b/photo.jpg": b"photo", "b/small0.jpg": b"small", "b/small1.jpg": b"small"}
    assert contents(photos) == {"a/photo.jpg": b"photo", "b/collage.jpg": b"collage"}
    assert moved.manifest is not None
    assert undo_moves(moved.manifest).files == 3
    assert contents(photos) == before and contents(away) == {}
    assert not (away / "b").exists(), "folders that moving made go again"
    assert undo_moves(moved.manifest).files == 0, "putting back twice is putting back once"


def test_times_are_kept(tmp_path: Path) -> None:
    found = found_in(tmp_path / "photos")
    file = found.groups[0].spare[0]
    moved = move_spare(found, tmp_path / "away")
    assert (tmp_path / "away/b/photo.jpg").stat().st_mtime_ns == file.mtime_ns
    assert moved.manifest is not None
    undo_moves(moved.manifest)
    assert os.stat(file.path).st_mtime_ns == file.mtime_ns


def test_nothing_is_overwritten_when_moving_or_putting_back(tmp_path: Path) -> None:
    photos, away = tmp_path / "photos", tmp_path / "away"
    found = found_in(photos)
    (away / "b").mkdir(parents=True)
    (away / "b" / "photo.jpg").write_bytes(b"somebody else's")
    moved = move_spare(found, away)
    assert moved.files == 2 and len(moved.left) == 1 and "already" in moved.left[0]
    assert (away / "b/photo.jpg").read_bytes() == b"somebody else's"
    (photos / "b/small0.jpg").write_bytes(b"new")
    assert moved.manifest is not None
    back = undo_moves(moved.manifest)
    assert back.files == 1 and len(back.left) == 1
    assert (photos / "b/small0.jpg").read_bytes() == b"new" and (away / "b/small0.jpg").read_bytes() == b"small"


@pytest.mark.parametrize("whose", ["a/photo.jpg", "b/small0.jpg"])
@pytest.mark.parametrize("what", ["changed", "gone", "link"])
def test_what_is_no_longer_what_was_indexed_is_left_alone(tmp_path: Path, whose: str, what: str) -> None:
    photos = tmp_path / "photos"
    found = found_in(photos)
    file = photos / whose
    data = file.read_bytes()
    file.unlink()
    if what == "changed":
        file.write_bytes(data + b"!")
    elif what == "link":
        file.symlink_to(photos / "b/collage.jpg")
    moved = move_spare(found, tmp_path / "away")
    left = 3 if whose.startswith("a/") else 1  # without its keeper a group stays whole
    assert moved.files == 3 - left and len(moved.left) == left, moved.left
    assert all(str(file) in line for line in moved.left)


def test_a_break_in_the_middle_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, away = tmp_path / "photos", tmp_path / "away"
    found, before = found_in(photos), None
    before = contents(photos)
    real, calls = os.unlink, []

    def unlink(path: str) -> None:
        calls.append(path)
        if len(calls) == 2:  # between the two names of the second file
            raise KeyboardInterrupt
        real(path)

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            move_spare(found, away, said.append)
    manifest = next(away.glob("*.jsonl"))
    assert str(manifest) in said[0]
    with manifest.open("a") as file:
        file.write('{"from": "/tmp/cut sho')  # the power went while a line was written
    assert undo_moves(manifest).files == 2
    assert contents(photos) == before and contents(away) == {}


def test_moving_to_another_disk_copies_verifies_and_then_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def link(source: str, target: str) -> None:
        if ".seenit-part" not in source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    file = write(tmp_path / "photos" / "a" / "x.jpg", b"bytes")
    target = tmp_path / "away" / "x.jpg"
    with pytest.raises(SeenitError, match="bytes have changed"):
        move_file(file.path, str(target), content_id(b"others"))
    assert Path(file.path).read_bytes() == b"bytes" and list((tmp_path / "away").iterdir()) == []
    move_file(file.path, str(target), file.id)
    assert target.read_bytes() == b"bytes" and not Path(file.path).exists()
    assert target.stat().st_mtime_ns == file.mtime_ns


def test_a_full_disk_leaves_the_file_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    found = found_in(tmp_path / "photos")
    before = contents(tmp_path / "photos")
    moved = move_spare(found, tmp_path / "away")
    assert moved.files == 0 and len(moved.left) == 3 and "no space left" in moved.left[0]
    assert contents(tmp_path / "photos") == before


def test_a_file_system_without_links_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    found = found_in(tmp_path / "photos")
    before = contents(tmp_path / "photos")
    moved = move_spare(found, tmp_path / "away")
    assert moved.files == 3 and moved.manifest
    undo_moves(moved.manifest)
    assert contents(tmp_path / "photos") == before


def test_a_target_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    found = found_in(tmp_path / "photos")
    (tmp_path / "away").write_bytes(b"a file")
    with pytest.raises(SeenitError, match="cannot write"):
        move_spare(found, tmp_path / "away")
    with pytest.raises(SeenitError, match="no folder"):
        check_target(found, tmp_path / "away", Roots(found.index, {}))


def test_a_target_inside_the_photos_is_refused_unless_hidden(tmp_path: Path) -> None:
    found = found_in(tmp_path / "photos")
    roots = Roots(found.index, {"0": str(tmp_path / "photos")})
    with pytest.raises(SeenitError, match="indexed folder"):
        check_target(found, tmp_path / "photos" / "spare", roots)
    check_target(found, tmp_path / "photos" / ".spare", roots)
    check_target(found, tmp_path / "spare", roots)


@pytest.mark.parametrize("text", ["", "[]\n", "{}\n", '{"seenit": "moved", "format": 1}\n{"from": 1}\n', "\x00\xff"])
def test_what_is_no_manifest_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(SeenitError, match="manifest"):
        undo_moves(file)
    with pytest.raises(SeenitError, match="cannot read"):
        undo_moves(tmp_path / "none.jsonl")


def test_names_that_are_no_text_survive_the_manifest(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \n.jpg")
    try:
        kept, spare = write(tmp_path / "photos/a/x.jpg", b"x"), write(tmp_path / "photos/a" / name, b"x")
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    group = Group(member("exact", [kept]).record, kept, (member("exact", [spare]),))
    moved = move_spare(Duplicates("i", "near", "resolution", (group,), 1, 0.1), tmp_path / "away")
    assert moved.manifest and len(Path(moved.manifest).read_text().splitlines()) == 2
    assert json.loads(Path(moved.manifest).read_text().splitlines()[1])["from"] == spare.path
    assert undo_moves(moved.manifest).files == 1 and Path(spare.path).read_bytes() == b"x"


def test_joining_makes_one_file_of_equal_bytes(tmp_path: Path) -> None:
    found = found_in(tmp_path / "photos")
    before = contents(tmp_path / "photos")
    assert [(kept.key, spare.key) for kept, spare in same_bytes(found)] == [
        ("0/a/photo.jpg", "0/b/photo.jpg"),
        ("0/b/small0.jpg", "0/b/small1.jpg"),
    ]
    joined = join_same_bytes(found)
    assert (joined.files, joined.size, joined.left) == (2, 10, ())
    assert contents(tmp_path / "photos") == before
    assert (tmp_path / "photos/a/photo.jpg").samefile(tmp_path / "photos/b/photo.jpg")
    assert (tmp_path / "photos/b/small0.jpg").samefile(tmp_path / "photos/b/small1.jpg")


def test_joining_reads_the_bytes_and_trusts_no_time_stamp(tmp_path: Path) -> None:
    kept, spare = write(tmp_path / "p/a/x.jpg", b"one"), write(tmp_path / "p/b/x.jpg", b"one")
    Path(spare.path).write_bytes(b"two")
    os.utime(spare.path, ns=(spare.mtime_ns, spare.mtime_ns))
    with pytest.raises(SeenitError, match="bytes have changed"):
        join_files(kept, spare)
    assert Path(spare.path).read_bytes() == b"two" and len(list((tmp_path / "p/b").iterdir())) == 1


def test_joining_twice_does_nothing_more(tmp_path: Path) -> None:
    kept, spare = write(tmp_path / "p/a/x.jpg", b"one"), write(tmp_path / "p/b/x.jpg", b"one")
    assert join_files(kept, spare) and not join_files(kept, spare)
