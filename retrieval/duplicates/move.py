"""Moves spare files away and puts them back: nothing is deleted, nothing overwritten, and every step is written down.

The manifest is a file of JSON lines in the folder moved to. A line is on the disk before its file moves, so that a
power cut, a full disk or Ctrl-C in the middle leaves every moved file in the manifest; what a line names and was not
moved after all is simply still in its place when it is to be put back.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

from indexer.errors import SeenitError
from indexer.files import os_reason
from indexer.manifest import Roots, relative_parts

from .files import id_of, move_file, sync_folder_of, why_not_itself
from .outcome import Duplicates, File

FORMAT = 1


@dataclass(frozen=True)
class Moved:
    """What was done.

    files, size  how many files were moved, and their bytes
    left         one line for each file that was left alone, with the reason
    manifest     to put them back with; None where nothing was moved
    """

    files: int
    size: int
    left: tuple[str, ...]
    manifest: str | None = None


@dataclass(frozen=True)
class _Move:
    """One line of a manifest."""

    source: str
    target: str
    id: str


def move_spare(found: Duplicates, target: str | Path, say: Callable[[str], None] = lambda line: None) -> Moved:
    """Move what may be given up for its group's keeper below `target`, keeping the folders it lies in.

    say  gets the manifest's name before anything is moved
    May be stopped at any moment, by Ctrl-C as well: what the manifest names can be put back.
    A file is left alone where it or its keeper is no longer what was indexed, or where something has its new name.
    Raises SeenitError where the target cannot be written to.
    """
    target = os.path.abspath(os.path.expanduser(target))
    manifest = os.path.join(target, f"seenit-moved-{datetime.now():%Y%m%d-%H%M%S-%f}.jsonl")
    left: list[str] = []
    files = size = 0
    names = _names(found, target)
    written = None
    try:
        for group in found.groups:
            why_keeper = why_not_itself(group.file) if group.spare else ""
            for file in group.spare:
                if why := (f"its keeper {group.file.path}: {why_keeper}" if why_keeper else why_not_itself(file)):
                    left.append(f"{file.path}: {why}")
                    continue
                if os.path.lexists(names[file.key]):
                    left.append(f"{file.path}: there is something at {names[file.key]} already")
                    continue
                if written is None:
                    os.makedirs(target, exist_ok=True)
                    written = open(manifest, "x", encoding="ascii")  # noqa: SIM115 - closed below
                    _write_line(written, {"seenit": "moved", "format": FORMAT, "index": found.index})
                    sync_folder_of(manifest)
                    say(f"every move is written down; to put all back: seenit duplicates --undo {manifest}")
                _write_line(written, {"from": file.path, "to": names[file.key], "id": file.id})
                try:
                    move_file(file.path, names[file.key], file.id)
                except SeenitError as error:
                    left.append(str(error))
                    continue
                files, size = files + 1, size + file.size
    except OSError as error:
        put_back = f"; to put back what was moved: seenit duplicates --undo {manifest}" if files else ""
        raise SeenitError(f"cannot write {manifest}: {os_reason(error)}{put_back}") from None
    finally:
        if written is not None:
            written.close()
    return Moved(files, size, tuple(left), manifest if files else None)


def check_target(found: Duplicates, target: str | Path, roots: Roots) -> None:
    """SeenitError where moving there would be no way out of the index.

    Hidden folders are not indexed, so one inside an indexed folder will do.
    """
    for folder in roots.folders.values():
        inside = relative_parts(os.path.expanduser(target), folder)
        if inside is not None and not any(part.startswith(".") for part in inside):
            raise SeenitError(
                f"{target} lies in the indexed folder {folder}, where the files would be found again; name a folder"
                " outside it, or one whose name begins with a dot"
            )
    if os.path.exists(target) and not os.path.isdir(target):
        raise SeenitError(f"cannot move to {target}: it is no folder; name one, it will be made")


def undo_moves(manifest: str | Path) -> Moved:
    """Put back what a manifest says was moved; may be repeated, and goes on after a break.

    A file is left alone where something has its old name by now, or where its bytes have changed.
    Raises SeenitError where the manifest cannot be read or is none.
    """
    left: list[str] = []
    files = size = 0
    for move in _moves(manifest):
        there, back = os.path.lexists(move.target), os.path.lexists(move.source)
        if not there:
            if not back:
                left.append(f"{move.target}: it is gone, and so is {move.source}")
            continue
        try:
            if back and os.path.samefile(move.source, move.target):  # a move was cut short between its two names
                os.unlink(move.target)
            elif back:
                left.append(f"{move.target}: there is something at {move.source} already")
                continue
            elif id_of(move.target) != move.id:
                left.append(f"{move.target}: it has changed since it was moved")
                continue
            else:
                count = os.path.getsize(move.target)
                move_file(move.target, move.source, move.id)
                size += count
            files += 1
        except SeenitError as error:
            left.append(str(error))
        except OSError as error:
            left.append(f"{move.target}: {os_reason(error)}")
        _remove_empty(os.path.dirname(move.target), os.path.dirname(os.path.abspath(manifest)))
    return Moved(files, size, tuple(left))


def _names(found: Duplicates, target: str) -> dict[str, str]:
    """Where each spare file goes: below its root's own name where there are several roots."""
    spare = [file for group in found.groups for file in group.spare]
    roots = {file.key.split("/")[0]: _root_of(file) for file in spare}
    names = {}
    for file in spare:
        root, *rest = file.key.split("/")
        above = [] if len(roots) == 1 else [f"{root}-{os.path.basename(roots[root]) or 'root'}"]
        names[file.key] = os.path.join(target, *above, *rest)
    return names


def _root_of(file: File) -> str:
    path = file.path
    for _ in range(file.key.count("/")):
        path = os.path.dirname(path)
    return path


def _moves(manifest: str | Path) -> Iterator[_Move]:
    """The lines of a manifest; a last line that was cut short named nothing that moved."""
    try:
        lines = Path(manifest).read_text(encoding="ascii").split("\n")
        head = json.loads(lines[0])
        if head.get("seenit") != "moved" or head.get("format") != FORMAT:
            raise ValueError
        entries = []
        for number, line in enumerate(lines[1:-1], start=2):
            values = json.loads(line)
            entries.append(_Move(values["from"], values["to"], values["id"]))
            if not all(os.path.isabs(path) for path in (entries[-1].source, entries[-1].target)):
                raise ValueError(number)
    except OSError as error:
        raise SeenitError(f"cannot read {manifest}: {os_reason(error)}; name the manifest that was printed") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SeenitError(f"{manifest} is no manifest of moved files; name the .jsonl in the folder moved to") from None
    return reversed(entries)


def _write_line(file: TextIO, values: dict[str, object]) -> None:
    """One line, on the disk when this returns."""
    file.write(json.dumps(values) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _remove_empty(folder: str, top: str) -> None:
    """Folders that moving made and that are empty again; those that are not refuse by themselves."""
    while relative_parts(folder, top):
        try:
            os.rmdir(folder)
        except OSError:
            return
        folder = os.path.dirname(folder)
