"""Moving duplicates away and back, and joining equal files: whatever happens, no byte is lost."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kill_points
import pytest

from indexer.errors import SeenitError
from indexer.images.metadata import Metadata, content_id
from indexer.index.keys import Roots
from indexer.store.protocol import Record, StoredFile
from retrieval.duplicates.files import join_files, move_name
from retrieval.duplicates.hardlink import join_same_bytes, same_bytes
from retrieval.duplicates.keeper import why_never
from retrieval.duplicates.move import Moved, check_target, move_spare, read_moves, undo_moves, what_to_undo
from retrieval.duplicates.names import reach
from retrieval.duplicates.options import DuplicateOptions
from retrieval.duplicates.outcome import Duplicates, File, Group, GroupMember

Killer = Callable[..., bool]
JPEG = b"\xff\xd8\xff"  # what one begins with; only images are ever put back


def write(path: Path, data: bytes) -> File:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(JPEG + data)
    status = path.stat()
    root = path.parents[1]
    key = "/".join(("0", *path.relative_to(root).parts))
    return File(key, str(path), status.st_size, status.st_mtime_ns, content_id(JPEG + data))


def put_back(manifest: str | Path | None) -> Moved:
    assert manifest is not None
    return undo_moves(read_moves(manifest))


def member(level: str, files: list[File], stays: str = "") -> GroupMember:
    stored = tuple(StoredFile(file.key, file.size, file.mtime_ns) for file in files)
    record = Record(files[0].id, stored, Metadata(8, 6, "JPEG"), "fit")
    return GroupMember(record, tuple(files), level, 0.9, "", stays)  # type: ignore[arg-type]


def found_in(folder: Path) -> Duplicates:
    """A photo, its exact copy, a smaller version in two files, and a collage that must stay."""
    kept = write(folder / "a" / "photo.jpg", b"photo")
    same = write(folder / "b" / "photo.jpg", b"photo")
    small = [write(folder / "b" / f"small{n}.jpg", b"small") for n in range(2)]
    collage = write(folder / "b" / "collage.jpg", b"collage")
    members = (member("exact", [same]), member("near", small), member("near", [collage], "it holds more"))
    group = Group(member("exact", [kept]).record, kept, members)
    return Duplicates(str(folder / ".seenit"), DuplicateOptions(), (group,), 3, 0.1)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but manifests and hidden copies that were cut short."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".jsonl"]
    files = [path for path in files if not (path.name.startswith(".") and ".seenit-part-" in path.name)]
    return {path.relative_to(folder).as_posix(): path.read_bytes().removeprefix(JPEG) for path in files}


def test_spare_files_move_with_their_folders_and_come_back(tmp_path: Path) -> None:
    photos, away = tmp_path / "photos", tmp_path / "away"
    found = found_in(photos)
    before = contents(photos)
    moved = move_spare(found, away)
    assert (moved.files, moved.size, moved.left) == (3, 15 + 9, ())
    assert contents(away) == {"b/photo.jpg": b"photo", "b/small0.jpg": b"small", "b/small1.jpg": b"small"}
    assert contents(photos) == {"a/photo.jpg": b"photo", "b/collage.jpg": b"collage"}
    assert put_back(moved.manifest).files == 3
    assert contents(photos) == before and contents(away) == {}
    assert not (away / "b").exists(), "folders that moving made go again"
    assert put_back(moved.manifest).files == 0, "putting back twice is putting back once"


def test_times_are_kept(tmp_path: Path) -> None:
    found = found_in(tmp_path / "photos")
    file = found.groups[0].spare[0]
    moved = move_spare(found, tmp_path / "away")
    assert (tmp_path / "away/b/photo.jpg").stat().st_mtime_ns == file.mtime_ns
    put_back(moved.manifest)
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
    back = put_back(moved.manifest)
    assert back.files == 1 and len(back.left) == 1
    assert (photos / "b/small0.jpg").read_bytes() == b"new" and (away / "b/small0.jpg").read_bytes() == JPEG + b"small"


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

    def unlink(path: str, **options: int | None) -> None:
        calls.append(path)
        if len(calls) == 2:  # between the two names of the second file
            raise KeyboardInterrupt
        real(path, **options)

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            move_spare(found, away, said.append)
    manifest = next(away.glob("*.jsonl"))
    assert str(manifest) in said[0]
    with manifest.open("a") as file:
        file.write('{"from": "/tmp/cut sho')  # the power went while a line was written
    assert put_back(manifest).files == 2
    assert contents(photos) == before and contents(away) == {}


def test_moving_to_another_disk_copies_verifies_and_then_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def link(source: str, target: str, **options: Any) -> None:
        if ".seenit-part" not in source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, target, **options)

    monkeypatch.setattr(os, "link", link)
    file = write(tmp_path / "photos" / "a" / "x.jpg", b"bytes")
    target = tmp_path / "away" / "x.jpg"
    (tmp_path / "away").mkdir()
    with reach(file.root, file.path) as old, reach(str(tmp_path / "away"), str(target)) as new:
        with pytest.raises(SeenitError, match="bytes have changed"):
            move_name(old, new, content_id(b"others"))
        assert Path(file.path).read_bytes() == JPEG + b"bytes" and list((tmp_path / "away").iterdir()) == []
        move_name(old, new, file.id)
    assert target.read_bytes() == JPEG + b"bytes" and not Path(file.path).exists()
    assert target.stat().st_mtime_ns == file.mtime_ns


def test_a_full_disk_leaves_the_file_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    found = found_in(tmp_path / "photos")
    before = contents(tmp_path / "photos")
    moved = move_spare(found, tmp_path / "away")
    assert moved.files == 0 and len(moved.left) == 3 and "no space left" in moved.left[0]
    assert contents(tmp_path / "photos") == before


def test_a_file_system_without_links_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: str, target: str, **options: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    found = found_in(tmp_path / "photos")
    before = contents(tmp_path / "photos")
    moved = move_spare(found, tmp_path / "away")
    assert moved.files == 3 and moved.manifest
    put_back(moved.manifest)
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


@pytest.mark.parametrize(
    "text", ["", "[]\n", "{}\n", '{"seenit": "moved", "format": 2, "folders": []}\n{"from": 1}\n', "\x00\xff"]
)
def test_what_is_no_manifest_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(SeenitError, match="manifest"):
        read_moves(file)
    with pytest.raises(SeenitError, match="cannot read"):
        read_moves(tmp_path / "none.jsonl")


def test_names_that_are_no_text_survive_the_manifest(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \n.jpg")
    try:
        kept, spare = write(tmp_path / "photos/a/x.jpg", b"x"), write(tmp_path / "photos/a" / name, b"x")
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    group = Group(member("exact", [kept]).record, kept, (member("exact", [spare]),))
    moved = move_spare(Duplicates("i", DuplicateOptions(), (group,), 1, 0.1), tmp_path / "away")
    assert moved.manifest and len(Path(moved.manifest).read_text().splitlines()) == 2
    assert json.loads(Path(moved.manifest).read_text().splitlines()[1])["from"] == spare.path
    assert put_back(moved.manifest).files == 1 and Path(spare.path).read_bytes() == JPEG + b"x"


def test_joining_makes_one_file_of_equal_bytes(tmp_path: Path) -> None:
    found = found_in(tmp_path / "photos")
    before = contents(tmp_path / "photos")
    assert [(kept.key, spare.key) for kept, spare in same_bytes(found)] == [
        ("0/a/photo.jpg", "0/b/photo.jpg"),
        ("0/b/small0.jpg", "0/b/small1.jpg"),
    ]
    joined = join_same_bytes(found)
    assert (joined.files, joined.size, joined.left) == (2, 10 + 6, ())
    assert contents(tmp_path / "photos") == before
    assert (tmp_path / "photos/a/photo.jpg").samefile(tmp_path / "photos/b/photo.jpg")
    assert (tmp_path / "photos/b/small0.jpg").samefile(tmp_path / "photos/b/small1.jpg")


def test_joining_reads_the_bytes_and_trusts_no_time_stamp(tmp_path: Path) -> None:
    kept, spare = write(tmp_path / "p/a/x.jpg", b"one"), write(tmp_path / "p/b/x.jpg", b"one")
    Path(spare.path).write_bytes(JPEG + b"two")
    os.utime(spare.path, ns=(spare.mtime_ns, spare.mtime_ns))
    with pytest.raises(SeenitError, match="bytes have changed"):
        join_files(kept, spare)
    assert Path(spare.path).read_bytes() == JPEG + b"two" and len(list((tmp_path / "p/b").iterdir())) == 1


def test_joining_twice_does_nothing_more(tmp_path: Path) -> None:
    kept, spare = write(tmp_path / "p/a/x.jpg", b"one"), write(tmp_path / "p/b/x.jpg", b"one")
    assert join_files(kept, spare) and not join_files(kept, spare)


# ---- manifests that mean harm, and links ----

ROOT = Path(__file__).parents[2]


def manifest_of(folder: Path, folders: list[Path], *lines: dict[str, object]) -> Path:
    head = {"seenit": "moved", "format": 2, "folders": [str(one) for one in folders]}
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (head, *lines)))
    return path


def line(source: Path | str, to: str, data: bytes = b"payload", **more: object) -> dict[str, object]:
    return {"from": str(source), "to": to, "size": len(JPEG + data), "id": content_id(JPEG + data), **more}


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Folders of photos, of what was moved away (one image in it), and of others' files."""
    photos, away, others = (tmp_path / name for name in ("photos", "away", "others"))
    for folder in (photos, away, others):
        folder.mkdir()
    (away / "x.jpg").write_bytes(JPEG + b"payload")
    (others / "precious.jpg").write_bytes(JPEG + b"payload")
    return photos, away, others


@pytest.mark.parametrize(
    "source, to",
    [
        ("{others}/planted.jpg", "x.jpg"),  # to where the manifest names no folder
        ("{photos}/../others/planted.jpg", "x.jpg"),
        ("{photos}/.config/planted.jpg", "x.jpg"),  # nothing hidden was ever indexed
        ("{photos}", "x.jpg"),
        ("relative.jpg", "x.jpg"),
        ("{photos}/y\0.jpg", "x.jpg"),
        ("{photos}/y.jpg", "../others/precious.jpg"),  # from outside of its own folder
        ("{photos}/y.jpg", "{others}/precious.jpg"),
        ("{photos}/y.jpg", "."),
    ],
)
def test_a_manifest_reaches_only_from_its_folder_to_those_it_names(
    place: tuple[Path, Path, Path], source: str, to: str
) -> None:
    photos, away, others = place
    names = {"photos": photos, "others": others}
    manifest = manifest_of(away, [photos], line(source.format(**names), to.format(**names)))
    before = contents(photos.parent)
    with pytest.raises(SeenitError, match="no manifest"):
        put_back(manifest)
    assert contents(photos.parent) == before


def test_what_is_not_the_file_that_was_moved_stays(place: tuple[Path, Path, Path]) -> None:
    photos, away, others = place
    (away / "text.jpg").write_text("#!/bin/sh")
    (away / "link.jpg").symlink_to(others / "precious.jpg")
    (away / "folder.jpg").mkdir()
    (away / "other.jpg").write_bytes(JPEG + b"changed")
    text = {"from": str(photos / "t.jpg"), "to": "text.jpg", "size": 9, "id": content_id(b"#!/bin/sh")}
    names = ("link", "folder", "other")
    lines = [text, *(line(photos / f"{name}.jpg", f"{name}.jpg") for name in names)]
    back = put_back(manifest_of(away, [photos], *lines))
    assert back.files == 0 and len(back.left) == 4, back.left
    for words in ("no image", "a link", "no regular file", "bytes have changed"):
        assert any(words in why for why in back.left), (words, back.left)
    assert contents(photos) == {} and (others / "precious.jpg").read_bytes() == JPEG + b"payload"


def test_a_link_to_where_it_went_does_not_cost_the_only_copy(place: tuple[Path, Path, Path]) -> None:
    photos, away, _ = place
    (photos / "x.jpg").symlink_to(away / "x.jpg")
    back = put_back(manifest_of(away, [photos], line(photos / "x.jpg", "x.jpg")))
    assert back.files == 0 and "something at" in back.left[0]
    assert (away / "x.jpg").read_bytes() == JPEG + b"payload" and (photos / "x.jpg").is_symlink()


@pytest.mark.parametrize("replaced", ["sub", "root"])
def test_a_folder_replaced_by_a_link_does_not_cost_the_only_copy(place: tuple[Path, Path, Path], replaced: str) -> None:
    photos, away, _ = place
    (away / "sub").mkdir()
    (away / "x.jpg").rename(away / "sub/x.jpg")
    if replaced == "sub":
        (photos / "sub").symlink_to(away / "sub", target_is_directory=True)
    else:
        photos.rmdir()
        photos.symlink_to(away, target_is_directory=True)
    back = put_back(manifest_of(away, [photos], line(photos / "sub/x.jpg", "sub/x.jpg")))
    assert back.files == 0 and len(back.left) == 1 and ("link" in back.left[0]), back.left
    assert (away / "sub/x.jpg").read_bytes() == JPEG + b"payload"


def test_a_link_inside_the_folder_moved_to_is_not_followed(place: tuple[Path, Path, Path]) -> None:
    photos, away, others = place
    (away / "sub").symlink_to(others, target_is_directory=True)
    back = put_back(manifest_of(away, [photos], line(photos / "p.jpg", "sub/precious.jpg")))
    assert back.files == 0 and "is a link" in back.left[0]
    assert (others / "precious.jpg").exists() and not (photos / "p.jpg").exists()


def test_an_equal_file_is_no_reason_to_remove_one_unless_the_move_had_copied_it(
    place: tuple[Path, Path, Path],
) -> None:
    photos, away, _ = place
    (photos / "x.jpg").write_bytes(JPEG + b"payload")
    assert put_back(manifest_of(away, [photos], line(photos / "x.jpg", "x.jpg"))).files == 0
    assert (away / "x.jpg").exists()
    assert put_back(manifest_of(away, [photos], line(photos / "x.jpg", "x.jpg", copied=True))).files == 1
    assert not (away / "x.jpg").exists() and (photos / "x.jpg").read_bytes() == JPEG + b"payload"


def test_what_would_be_put_back_is_told_and_the_folder_may_have_moved(place: tuple[Path, Path, Path]) -> None:
    photos, away, _ = place
    moved = away.rename(away.parent / "another disk")
    manifest = read_moves(
        manifest_of(moved, [photos], line(photos / "x.jpg", "x.jpg"), line(photos / "g.jpg", "g.jpg"))
    )
    assert [(move.target, move.source) for move in what_to_undo(manifest)] == [
        (str(moved / "x.jpg"), str(photos / "x.jpg"))
    ]
    assert undo_moves(manifest).files == 1 and (photos / "x.jpg").exists()


def test_a_folder_that_is_away_is_said(place: tuple[Path, Path, Path]) -> None:
    photos, away, _ = place
    photos.rmdir()
    back = put_back(manifest_of(away, [photos], line(photos / "x.jpg", "x.jpg")))
    assert back.files == 0 and "is not there now" in back.left[0] and (away / "x.jpg").exists()


def test_files_behind_links_and_second_names_are_not_moved(tmp_path: Path) -> None:
    photos, outside = tmp_path / "photos", tmp_path / "outside"
    kept, far = write(photos / "a" / "x.jpg", b"x"), write(outside / "b" / "x.jpg", b"x")
    (photos / "b").symlink_to(outside / "b", target_is_directory=True)
    behind = File("0/b/x.jpg", str(photos / "b/x.jpg"), far.size, far.mtime_ns, far.id)
    os.link(kept.path, photos / "a" / "again.jpg")
    second = File("0/a/again.jpg", str(photos / "a/again.jpg"), kept.size, kept.mtime_ns, kept.id)
    group = Group(member("exact", [kept]).record, kept, (member("exact", [behind, second]),))
    moved = move_spare(Duplicates("i", DuplicateOptions(), (group,), 1, 0.1), tmp_path / "away")
    assert moved.files == 0 and len(moved.left) == 2, moved
    assert "is a link" in moved.left[0] and "same file" in moved.left[1]
    assert Path(far.path).exists()


def test_bytes_that_changed_behind_the_same_time_are_not_moved(tmp_path: Path) -> None:
    found = found_in(tmp_path / "photos")
    for file in (found.groups[0].spare[0], found.groups[0].spare[1]):
        Path(file.path).write_bytes(JPEG + b"other"[: file.size - 3])
        os.utime(file.path, ns=(file.mtime_ns, file.mtime_ns))
    moved = move_spare(found, tmp_path / "away")
    assert moved.files == 1 and sum("bytes have changed" in why for why in moved.left) == 2


# ---- kills between system calls ----


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    """Runs `kill_points` jobs: whether a process was killed before its call with a number; 0 lets it finish."""
    command = [sys.executable, str(ROOT / "tests/kill_points.py")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        jobs, codes = process.stdin, process.stdout
        assert jobs is not None and codes is not None

        def run(what: str, folder: Path, number: int, copied: bool = False) -> bool:
            print(json.dumps([what, str(folder), number, copied]), file=jobs, flush=True)
            code = int(codes.readline())
            assert code in (0, -signal.SIGKILL), f"{what} ended with {code}, its traceback is on stderr"
            return code != 0

        yield run


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals and forks")
@pytest.mark.parametrize("what", ["move", "copy", "undo", "undo copied", "join"])
def test_killed_between_any_two_system_calls_nothing_is_lost(tmp_path: Path, what: str, killer: Killer) -> None:
    """A spread of moments here; KILL_EVERY=1 tries every one."""
    every, number, kills = int(os.environ.get("KILL_EVERY", "13")), 1, 0
    work, *how = what.split()
    while True:
        folder = tmp_path / str(number)
        kill_points.make_photos(folder / "photos")
        before = contents(folder / "photos")
        if work == "undo":
            killer("copy" if how else "move", folder, 0)
        died = killer(work, folder, number, bool(how))
        there = {*contents(folder / "photos").values(), *contents(folder / "away").values()}
        assert set(before.values()) <= there, f"lost before call {number}"
        if work != "join":
            killer("undo", folder, 0)
            assert contents(folder / "away") == {}, number
        else:
            killer("join", folder, 0)
            assert (folder / "photos/a/photo.jpg").samefile(folder / "photos/b/photo.jpg")
        assert contents(folder / "photos") == before, f"not all is back after a kill before call {number}"
        if not died:
            break
        kills, number = kills + 1, number + every
    assert kills >= 2
    print(f"{what}: {kills} kills")


def test_what_pixels_cannot_show_is_never_given_up() -> None:
    plain = Metadata(8, 6, "JPEG")
    assert why_never(plain, plain) == ""
    assert "raw" in why_never(replace(plain, raw=True), plain)
    assert "4 pages" in why_never(replace(plain, frames=4), plain)
    damaged = replace(plain, note="its last bytes are missing")
    assert "damaged" in why_never(plain, damaged) and why_never(damaged, plain) == ""
