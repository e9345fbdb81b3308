"""Choices on duplicates out of a file: what fits the index is moved by the usual code, and nothing else is touched."""

import io
import json
import os
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import draw_photo

from cli import main
from indexer.errors import SeenitError
from indexer.index.index import Index
from retrieval.build import build_index
from retrieval.duplicates.choices import chosen_duplicates, default_target, read_choices, target_of
from retrieval.duplicates.find import find_duplicates
from retrieval.duplicates.options import DuplicateOptions
from retrieval.duplicates.present import write_duplicates_page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path) -> Path:
    """Three photos, each with two files of the same bytes, and an image that is not indexed beside the folder."""
    folder = tmp_path_factory.mktemp("choices") / "photos"
    for n in range(3):
        draw_photo(folder / f"{n}.jpg", n)
        for copy in "ab":
            (folder / copy).mkdir(exist_ok=True)
            shutil.copy(folder / f"{n}.jpg", folder / copy / f"{n}.jpg")
    draw_photo(folder.parent / "outside.jpg", 9)
    build_index(folder, backbone=str(tiny_backbone))
    return folder


@pytest.fixture
def album(made: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed; times are kept, since they are compared."""
    shutil.copytree(made, tmp_path / "photos")
    shutil.copy2(made.parent / "outside.jpg", tmp_path / "outside.jpg")
    return tmp_path / "photos"


def choices_of(album: Path, **changes: Any) -> dict[str, Any]:
    """What the page writes where all is accepted, in two of three groups."""
    found = find_duplicates(album / ".seenit", DuplicateOptions(level="exact"), workers=1)

    def plain(file: Any) -> dict[str, Any]:
        return {"file": file.key, "id": file.id, "bytes": file.size}

    groups = [{"keep": [plain(one.file)], "move": [plain(file) for file in one.spare]} for one in found.groups]
    values = {"schema": "seenit.choices/1", "index": str(album / ".seenit"), "move_to": None, "groups": groups[:2]}
    return values | changes


@dataclass(frozen=True)
class Ran:
    returncode: int
    stdout: str
    stderr: str


def seenit(*arguments: str) -> Ran:
    """The command line within this process, errors and exit status as a user gets them."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["seenit", *arguments])
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Ran(code, out.getvalue(), err.getvalue())


def run(album: Path, values: Any, *more: str) -> Ran:
    """`seenit duplicates --apply` with a file of choices."""
    file = album.parent / "choices.json"
    file.write_text(values if isinstance(values, str) else json.dumps(values))
    return seenit("duplicates", str(album), "--apply", str(file), *more)


def everything(folder: Path) -> dict[str, bytes]:
    """All files below a folder but those of the index."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".seenit" not in path.parts and path.name != "choices.json"
    }


@pytest.mark.slow
def test_choices_are_shown_then_moved_then_undone(album: Path) -> None:
    before = everything(album.parent)
    values = choices_of(album, move_to=str(album / ".seenit-moved"))
    moving = sorted(file["file"] for group in values["groups"] for file in group["move"])
    shown = run(album, values)
    assert shown.returncode == 0 and everything(album.parent) == before, shown.stderr
    assert shown.stdout.count("(kept: ") == 4 and "would move 4 files" in shown.stdout and "--yes" in shown.stdout
    moved = run(album, values, "--yes", "--json")
    assert moved.returncode == 0, moved.stderr
    told = json.loads(moved.stdout)["moved"]
    assert told["files"] == 4 and sorted(told["moved"]) == moving
    after = everything(album.parent)
    kept = {name: data for name, data in before.items() if name in after}
    assert len(kept) == len(before) - 4 and sorted(kept.values()) != sorted(before.values())
    with Index.open(album / ".seenit") as index:
        assert not set(moving) & {file.key for one in index.store.list_files() for file in one.files}
    again = run(album, values, "--yes")
    assert again.returncode == 0 and "moved 0 files" in again.stdout and again.stderr.count("left alone: ") == 4
    assert seenit("duplicates", "--undo", told["manifest"], "--yes").returncode == 0
    assert {name: data for name, data in everything(album.parent).items() if "jsonl" not in name} == before


@pytest.mark.slow
def test_the_command_line_names_another_place(album: Path, tmp_path: Path) -> None:
    values = choices_of(album)
    none = run(album, values)
    assert none.returncode == 1 and "--move-to" in none.stderr and none.stderr.count("\n") == 1
    moved = run(album, values, "--move-to", str(tmp_path / "away"), "--yes")
    assert moved.returncode == 0 and "moved 4 files" in moved.stdout, moved.stderr
    assert len([path for path in (tmp_path / "away").rglob("*.jpg")]) == 4


def hostile(album: Path) -> dict[str, Any]:
    """Files that somebody else made, by what is wrong with them."""
    good = choices_of(album, move_to=str(album / ".seenit-moved"))
    first = good["groups"][0]
    stored = first["move"][0]
    root = stored["file"].split("/")[0]
    (album / ".elsewhere").symlink_to(album.parent / "target")
    (album.parent / "target").mkdir()

    def with_move(**changes: Any) -> dict[str, Any]:
        return good | {"groups": [first | {"move": [stored | changes]}]}

    return {
        "no json": "{",
        "deep": "[" * 100_000,
        "a list": "[]",
        "another schema": good | {"schema": "seenit.choices/9"},
        "unknown key": good | {"run": "rm"},
        "no keeper": good | {"groups": [{"keep": [], "move": first["move"]}]},
        "keeps what it moves": good | {"groups": [{"keep": first["move"], "move": first["move"]}]},
        "moves another's keeper": good | {"groups": [first, {"keep": [stored], "move": first["keep"]}]},
        "no id": with_move(id="../../etc"),
        "outside of the folder": with_move(file=f"{root}/../outside.jpg"),
        "absolute": with_move(file=str(album.parent / "outside.jpg")),
        "no root": with_move(file="nowhere/0.jpg"),
        "another size": with_move(bytes=stored["bytes"] + 1),
        "another image": with_move(id=good["groups"][1]["keep"][0]["id"]),
        "huge number": with_move(bytes=10**400),
        "target outside": good | {"move_to": str(album.parent / "target")},
        "target in sight": good | {"move_to": str(album / "a")},
        "target by dots": good | {"move_to": str(album / ".x" / ".." / ".." / "target")},
        "target by a link": good | {"move_to": str(album / ".elsewhere")},
        "target is the index's folder": good | {"move_to": str(album)},
        "nul": good | {"move_to": f"{album}/.x\0"},
        "several lines": good | {"move_to": "/tmp\n\n\x1b[2J"},
        "nul in a key": with_move(file="\0"),
    }


def test_a_file_that_somebody_else_made_moves_nothing(album: Path) -> None:
    cases = hostile(album)
    before = everything(album.parent)
    file = album.parent / "choices.json"
    for name, values in cases.items():
        file.write_text(values if isinstance(values, str) else json.dumps(values))
        with Index.open(album / ".seenit") as index:
            try:
                choices = read_choices(file)
                target_of(choices, index.roots)
                chosen = chosen_duplicates(choices, index)
            except SeenitError as error:
                assert "\n" not in str(error) and len(str(error)) < 600, name
            else:
                assert not chosen.found.groups and chosen.left, name
    assert everything(album.parent) == before
    for name in ("deep", "target by a link", "absolute", "keeps what it moves"):
        refused = run(album, cases[name], "--yes")
        assert refused.stderr.count("\n") == 1 and "Traceback" not in refused.stderr, (name, refused.stderr)
        assert everything(album.parent) == before, name


def test_a_file_of_choices_must_be_a_file_that_is_there(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "gone.json", "folder"):
        with pytest.raises(SeenitError, match="name a file that the page wrote"):
            read_choices(tmp_path / name)


def test_what_changed_since_stays_where_it_is(album: Path) -> None:
    values = choices_of(album, move_to=str(album / ".seenit-moved"))
    first, second = values["groups"]

    def path(file: dict[str, Any]) -> Path:
        return album / file["file"].partition("/")[2]

    path(first["move"][0]).write_bytes(b"\xff\xd8\xff" + bytes(first["move"][0]["bytes"] - 3))
    path(second["keep"][0]).unlink()
    moved = run(album, values, "--yes")
    assert moved.returncode == 0 and "moved 1 file" in moved.stdout, moved.stderr
    assert moved.stderr.count("left alone") == 3
    assert all(path(file).exists() for file in second["move"]) and path(first["move"][0]).exists()


@pytest.mark.slow
def test_choices_of_another_index_are_told(album: Path, tmp_path: Path, tiny_backbone: Path) -> None:
    values = choices_of(album, move_to=str(tmp_path / "other" / ".m"))
    draw_photo(tmp_path / "other" / "x.jpg", 77)
    build_index(tmp_path / "other", backbone=str(tiny_backbone))
    refused = run(tmp_path / "other", values)
    assert refused.returncode == 1 and "made on" in refused.stderr and refused.stderr.count("\n") == 1


def test_options_that_would_not_count_are_refused(album: Path) -> None:
    refused = run(album, choices_of(album), "--prefer", "a")
    assert refused.returncode == 2 and "--apply" in refused.stderr


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_names_cannot_break_out_of_it(tmp_path: Path, tiny_backbone: Path) -> None:
    folder = tmp_path / "photos"
    name = "</script><img src=x onerror=alert(1)>.jpg".replace("/", "\u2215")
    draw_photo(folder / name, 1)
    shutil.copy(folder / name, folder / "<!--<script>.jpg")
    build_index(folder, backbone=str(tiny_backbone))
    found = find_duplicates(folder / ".seenit", DuplicateOptions(level="exact"), workers=1)
    with Index.open(folder / ".seenit") as index:
        assert write_duplicates_page(tmp_path / "page.html", found, ["made"], default_target(index.roots)) == 1
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count("<script") == 2 and page.count("</script>") == 2 and "<img src=x" not in page
    assert "script-src 'sha256-" in page and "default-src 'none'" in page and "'unsafe-inline';" in page
    data = json.loads(page.split('id="groups">')[1].split("</script>")[0])
    assert data["move_to"] == str(folder / ".seenit-moved") and len(data["groups"]) == 1
    assert {"<!--<script>.jpg", name} == {
        file["file"].partition("/")[2] for group in data["groups"] for file in (group["keeper"], *group["members"])
    }
    addresses = page.replace("http://www.w3.org/2000/svg", "").split("</style>")[1]
    assert "http" not in addresses and "file://" in addresses, "links lead to the files, and nothing is asked for"
