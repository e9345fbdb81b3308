"""Moves spare files away and puts them back: nothing is deleted, nothing overwritten, and every step is written down.

The manifest is a file of JSON lines in the folder moved to. A line is on the disk before its file moves, so that a
power cut, a full disk or Ctrl-C in the middle leaves every moved file in the manifest; what a line names and was not
moved after all is simply still in its place when it is to be put back.

A manifest is not trusted when it is read: whoever made it may not be the user. It can only move regular image files
out of the folder that it lies in, to below the folders that its first line names, where nothing has the name; each
file's size and content id must be those of its line, and no link is followed on the way.
"""

import contextlib
import json
import os
import stat
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

from indexer.errors import SeenitError, os_reason
from indexer.images.find import open_regular
from indexer.index.keys import Roots, relative_parts
from indexer.messages import Say, say_nothing
from indexer.printable import pasted

from .files import PART, move_name, why_not_itself
from .names import reach, why_not
from .outcome import Duplicates, File

FORMAT = 2


@dataclass(frozen=True)
class Moved:
    """What was done.

    files, size  how many files were moved, and their bytes
    left         one line for each file that was left alone, with the reason
    manifest     to put them back with; None where nothing was moved
    moved        the index's keys of the files that were moved; empty for what was put back
    """

    files: int
    size: int
    left: tuple[str, ...]
    manifest: str | None = None
    moved: tuple[str, ...] = ()


@dataclass(frozen=True)
class Move:
    """One line of a manifest.

    source  where the file was, absolute
    target  where it went, absolute
    copied  whether it went to another disk, so that its bytes may be at both places
    """

    source: str
    target: str
    size: int  # bytes
    id: str  # content id
    copied: bool


@dataclass(frozen=True)
class MoveManifest:
    """What may be put back: the folder that holds the moved files, the folders they may go to, and the moves."""

    path: str
    top: str
    folders: tuple[str, ...]
    moves: tuple[Move, ...]


def move_spare(found: Duplicates, target: str | Path, say: Say = say_nothing) -> Moved:
    """Move what may be given up for its group's keeper below `target`, keeping the folders it lies in.

    say  gets the manifest's name before anything is moved
    May be stopped at any moment, by Ctrl-C or a kill as well: what the manifest names can be put back.
    A file is left alone where it or its keeper is no longer what was indexed (all bytes of both are read), where it
    lies behind a link, where both are one file, or where something has its new name.
    Raises SeenitError where the target cannot be written to.
    """
    top = os.path.abspath(os.path.expanduser(target))
    manifest = os.path.join(top, f"seenit-moved-{datetime.now():%Y%m%d-%H%M%S-%f}.jsonl")
    left: list[str] = []
    moved: list[str] = []
    size = 0
    names = _names(found, top)
    written = None
    try:
        for group in found.groups:
            why_keeper = why_not_itself(group.file) if group.spare else ""
            for file in group.spare:
                if why := (
                    f"its keeper {group.file.path}: {why_keeper}" if why_keeper else _why_stay(file, group.file)
                ):
                    left.append(f"{file.path}: {why}")
                    continue
                if os.path.lexists(names[file.key]):
                    left.append(f"{file.path}: there is something at {names[file.key]} already")
                    continue
                if written is None:
                    os.makedirs(top, exist_ok=True)
                    written = open(manifest, "x", encoding="ascii")  # noqa: SIM115 - closed below
                    _write_line(written, _head(found))
                    _sync_folder(top)
                    put_back = f"seenit duplicates --undo {pasted(manifest)} --yes"
                    say(f"every move is written down; to put all back: {put_back}")
                _write_line(written, _line(file, names[file.key], top))
                try:
                    with reach(file.root, file.path) as old, reach(top, names[file.key], make=True) as new:
                        move_name(old, new, file.id)
                except SeenitError as error:
                    left.append(str(error))
                    continue
                moved.append(file.key)
                size += file.size
    except OSError as error:
        put_back = f"; to put back what was moved: seenit duplicates --undo {pasted(manifest)} --yes" if moved else ""
        raise SeenitError(f"cannot write {manifest}: {os_reason(error)}{put_back}") from None
    finally:
        if written is not None:
            written.close()
    return Moved(len(moved), size, tuple(left), manifest if moved else None, tuple(moved))


def check_target(found: Duplicates, target: str | Path, roots: Roots) -> None:
    """SeenitError where moving there would be no way out of the index.

    Hidden folders are not indexed, so one inside an indexed folder will do.
    """
    named = os.path.abspath(os.path.expanduser(target))
    for folder in roots.folders.values():
        for place, top in ((named, folder), (os.path.realpath(named), os.path.realpath(folder))):
            inside = relative_parts(place, top)
            if inside is not None and not any(part.startswith(".") for part in inside):
                raise SeenitError(
                    f"{target} lies in the indexed folder {folder}, where the files would be found again; name a"
                    " folder outside it, or one whose name begins with a dot"
                )
    if os.path.lexists(named) and not os.path.isdir(named):
        raise SeenitError(f"cannot move to {target}: it is no folder; name one, it will be made")


def read_moves(manifest: str | Path) -> MoveManifest:
    """A manifest as it may be obeyed; nothing is touched. A last line that was cut short named nothing that moved.

    Raises SeenitError where it cannot be read, is none, or names places outside of its folders.
    """
    path = os.path.abspath(os.path.expanduser(manifest))
    top = os.path.dirname(path)
    try:
        with open_regular(path) as file:
            lines = file.read().decode("ascii").split("\n")
        head = json.loads(lines[0])
        if head.get("seenit") != "moved":
            raise ValueError
        if head.get("format") != FORMAT:
            raise SeenitError(
                f"{manifest} was written by another version of seenit; each of its lines says where a file was and"
                " where it went: move them back by hand"
            )
        folders = tuple(_folder(folder) for folder in head["folders"])
        moves = tuple(_move(json.loads(line), top, folders) for line in lines[1:-1])
    except OSError as error:
        raise SeenitError(f"cannot read {manifest}: {os_reason(error)}; name the manifest that was printed") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SeenitError(f"{manifest} is no manifest of moved files; name the .jsonl in the folder moved to") from None
    return MoveManifest(path, top, folders, moves)


def what_to_undo(manifest: MoveManifest) -> list[Move]:
    """The moves whose files are where they went, the last one first: what `undo_moves` would look at."""
    return [move for move in reversed(manifest.moves) if os.path.lexists(move.target)]


def undo_moves(manifest: MoveManifest) -> Moved:
    """Put back what a manifest says was moved; may be repeated, and goes on after a break.

    A file is left alone where something has its old name by now, where it is no longer what was moved, or where a
    link lies on the way to either place.
    """
    left: list[str] = []
    files = size = 0
    for move in reversed(manifest.moves):
        try:
            done, why = _put_back(move, manifest)
        except SeenitError as error:
            done, why = False, str(error)
        except OSError as error:
            done, why = False, os_reason(error)
        if why:
            left.append(f"{move.target}: {why}")
        left += [f"{path}: a copy that was cut short; it may be removed" for path in _cut_short(move)]
        if done:
            files, size = files + 1, size + move.size
            _remove_empty(os.path.dirname(move.target), manifest.top)
    return Moved(files, size, tuple(left))


def _put_back(move: Move, manifest: MoveManifest) -> tuple[bool, str]:
    """Whether a file was put back, and why not where it is there and was not."""
    root = next(folder for folder in manifest.folders if relative_parts(move.source, folder))
    if not os.path.isdir(root):
        return False, f"the folder {root} is not there now"
    try:
        with reach(manifest.top, move.target) as there:
            status = there.status()
            if status is None:
                return False, "" if os.path.lexists(move.source) else f"it is gone, and so is {move.source}"
            if why := why_not(there, move.size, move.id):
                return False, f"{why} since it was moved" if "changed" in why else why
            with reach(root, move.source, make=True) as back:
                other = back.status()
                if other is None:
                    move_name(there, back, move.id)
                elif back.folder() == there.folder():
                    return False, f"{move.source} is the same place, reached by a link; nothing to put back"
                elif _is_second_name(other, status) or (move.copied and not why_not(back, move.size, move.id)):
                    there.unlink()  # the move was cut short between its two names
                    there.sync_folder()
                else:
                    return False, f"there is something at {move.source} already"
    except FileNotFoundError:
        return False, "" if os.path.lexists(move.source) else f"it is gone, and so is {move.source}"
    return True, ""


def _cut_short(move: Move) -> list[str]:
    """Copies that a kill left unfinished, at either place; the bytes are where they were."""
    found = []
    for path in (move.source, move.target):
        folder, name = os.path.split(path)
        with contextlib.suppress(OSError):
            found += [os.path.join(folder, one) for one in os.listdir(folder) if one.startswith(f".{name}{PART}")]
    return found


def _is_second_name(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether these are two names of one regular file, so that either may go."""
    same = (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
    return same and stat.S_ISREG(one.st_mode) and min(one.st_nlink, other.st_nlink) >= 2


def _why_stay(file: File, keeper: File) -> str:
    if why := why_not_itself(file):
        return why
    try:
        same = os.path.samefile(file.path, keeper.path)
    except OSError as error:
        return os_reason(error)
    return f"it is the same file as {keeper.path} by another name, and would free nothing" if same else ""


def _names(found: Duplicates, target: str) -> dict[str, str]:
    """Where each spare file goes: below its root's own name where there are several roots."""
    spare = [file for group in found.groups for file in group.spare]
    roots = {file.key.split("/")[0]: file.root for file in spare}
    names = {}
    for file in spare:
        root, *rest = file.key.split("/")
        above = [] if len(roots) == 1 else [f"{root}-{os.path.basename(roots[root]) or 'root'}"]
        names[file.key] = os.path.join(target, *above, *rest)
    return names


def _head(found: Duplicates) -> dict[str, object]:
    folders = sorted({file.root for group in found.groups for file in group.spare})
    return {"seenit": "moved", "format": FORMAT, "index": found.index, "folders": folders}


def _line(file: File, target: str, top: str) -> dict[str, object]:
    """The line of a file that is about to move; `to` is relative, for the folder may be on a disk that moves."""
    copied = os.stat(file.path).st_dev != os.stat(top).st_dev
    to = os.path.relpath(target, top)
    return {"from": file.path, "to": to, "size": file.size, "id": file.id, "copied": copied}


def _folder(folder: str) -> str:
    if not os.path.isabs(folder) or os.path.normpath(folder) != folder or "\0" in folder:
        raise ValueError(folder)
    return folder


def _move(values: dict[str, object], top: str, folders: tuple[str, ...]) -> Move:
    """One line, checked: from below the manifest's folder to below a folder that it names, nothing hidden."""
    source, to, size, id = values["from"], values["to"], values["size"], values["id"]
    if not (isinstance(source, str) and isinstance(to, str) and isinstance(size, int) and isinstance(id, str)):
        raise ValueError(values)
    target = os.path.join(top, to)
    for path, places in ((source, folders), (target, (top,))):
        parts = next((parts for place in places if (parts := relative_parts(path, place))), None)
        if os.path.normpath(path) != path or "\0" in path or not os.path.isabs(path):
            raise ValueError(path)
        if not parts or any(part.startswith(".") for part in parts):  # nothing hidden was ever indexed
            raise ValueError(path)
    return Move(source, target, size, id, values.get("copied") is True)


def _write_line(file: TextIO, values: dict[str, object]) -> None:
    """One line, on the disk when this returns."""
    file.write(json.dumps(values) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: str) -> None:
    with reach(folder, os.path.join(folder, "x")) as name:
        name.sync_folder()


def _remove_empty(folder: str, top: str) -> None:
    """Folders that moving made and that are empty again; those that are not refuse by themselves."""
    while relative_parts(folder, top):
        try:
            os.rmdir(folder)
        except OSError:
            return
        folder = os.path.dirname(folder)
