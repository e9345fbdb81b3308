"""`seenit duplicates`: parse, call, print. Heavy packages are imported inside, so that `seenit --help` stays quick."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from indexer.printable import megabytes, pasted, quoted
from indexer.terminal import say, shows_progress

if TYPE_CHECKING:
    from .hardlink import Joined
    from .move import Moved
    from .outcome import Duplicates


def duplicates(
    where: Annotated[
        str | None, typer.Argument(metavar="[INDEX|FOLDER]", help="An index, or a folder that was indexed.")
    ] = None,
    level: Annotated[
        Literal["exact", "near", "scene"],
        typer.Option(help="The same bytes; and copies of one photograph; and, only named, others of the motif."),
    ] = "near",
    keep: Annotated[
        Literal["resolution", "bytes", "format", "oldest", "newest"],
        typer.Option(help="Which image of a group is kept: most pixels, most bytes, a lossless format, by date."),
    ] = "resolution",
    prefer: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Keep images of this folder before others; repeat it, the first is first."),
    ] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Give up nothing of this folder, and look for no copies within it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page of the groups, to choose on what is moved.")
    ] = None,
    apply: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Move what was chosen on that page; needs no new search.")
    ] = None,
    move_to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Move all but the kept ones there; see --undo.")
    ] = None,
    hardlink: Annotated[
        bool, typer.Option("--hardlink", help="Make files with the same bytes one file with several names.")
    ] = False,
    undo: Annotated[Path | None, typer.Option(metavar="MANIFEST", help="Put back what --move-to moved.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it, only show what would be done.")] = False,
) -> None:
    """Find copies of the same photo; nothing is ever deleted.

    Copies may be resized, cropped, mirrored, turned or retouched.
    """
    if (undo is not None) + (move_to is not None) + hardlink > 1:
        raise typer.BadParameter("choose one of --move-to, --hardlink and --undo", param_hint="--move-to")
    if apply is not None:
        if html or hardlink or undo or prefer or reference:
            raise typer.BadParameter("takes only --move-to, --yes and --json beside it", param_hint="--apply")
        _apply(index_at(where), apply, move_to, yes, as_json)
        return
    if undo is not None:
        _undo(undo, yes, as_json)
        return
    from .find import find_duplicates
    from .options import DuplicateOptions
    from .present import as_json as values_of
    from .present import duplicates_table, write_duplicates_page

    location = index_at(where)
    options = DuplicateOptions(level, keep, tuple(prefer or ()), tuple(reference or ()))
    with _progress(shows_progress(as_json)) as progress:
        found = find_duplicates(location, options, progress=progress)
    values = values_of(found)
    if not as_json:
        print(duplicates_table(found), flush=True)
    for note in found.notes:
        say(note)
    if html is not None:
        write_duplicates_page(html, found, [f"index {location}"], _usual_target(location))
        say(f"wrote {html}")
    if move_to is not None:
        _move(found, move_to, yes, as_json, values)
    elif hardlink:
        _hardlink(found, yes, as_json, values)
    elif as_json:
        print(json.dumps(values))


def _usual_target(location: str) -> str | None:
    from indexer.index.index import Index

    from .choices import default_target

    with Index.open(location) as index:
        return default_target(index.roots)


def _apply(location: str, choices_file: Path, move_to: Path | None, yes: bool, as_json: bool) -> None:
    from indexer.index.index import Index

    from .choices import chosen_duplicates, read_choices, target_of

    choices = read_choices(choices_file)
    with Index.open(location) as index:
        target = move_to if move_to is not None else Path(target_of(choices, index.roots))
        chosen = chosen_duplicates(choices, index)
    for line in chosen.left:
        say(f"left alone: {line}")
    if not yes and not as_json:
        for group in chosen.found.groups:
            for file in group.spare:
                print(f"{quoted(file.path)}  (kept: {quoted(group.file.path)})")
    _move(chosen.found, target, yes, as_json, {"left": list(chosen.left)} if as_json else {})


def _move(found: "Duplicates", target: Path, yes: bool, as_json: bool, values: dict[str, object]) -> None:
    from indexer.index.index import Index

    from .move import check_target, move_spare

    with Index.open(found.index) as index:
        check_target(found, target, index.roots)
    spare = [file for group in found.groups for file in group.spare]
    if yes:
        moved = move_spare(found, target, say)
        _tell_moved(moved, "moved", as_json, values)
        _forget(found.index, moved.moved)
        return
    size = sum(file.size for file in spare)
    values["would_move"] = {"files": len(spare), "bytes": size, "to": str(target)}
    todo = "; add --yes to do it" if spare else ""
    print(
        json.dumps(values)
        if as_json
        else f"would move {_files(len(spare))}, {megabytes(size)}, to {quoted(str(target))}{todo}"
    )


def _forget(index: str, keys: tuple[str, ...]) -> None:
    """Remove the files that were moved from the index; where that fails now, say how it will be done."""
    from indexer.errors import SeenitError

    from .forget import forget_files

    if not keys:
        return
    try:
        forget_files(index, keys)
    except SeenitError as error:
        say(f"the index still names what was moved ({error}); bring it in line: seenit index --index {pasted(index)}")


def _undo(manifest: Path, yes: bool, as_json: bool) -> None:
    from .move import read_moves, undo_moves, what_to_undo

    found = read_moves(manifest)
    if yes:
        _tell_moved(undo_moves(found), "put back", as_json, {})
        return
    moves = what_to_undo(found)
    size = sum(move.size for move in moves)
    if as_json:
        files = [{"from": move.target, "to": move.source, "bytes": move.size} for move in moves]
        print(json.dumps({"would_put_back": {"files": len(moves), "bytes": size, "moves": files}}))
        return
    for move in moves:
        print(f"{quoted(move.target)} -> {quoted(move.source)}")
    todo = "; add --yes to do it" if moves else ""
    print(f"would put back {_files(len(moves))}, {megabytes(size)}{todo}")


def _hardlink(found: "Duplicates", yes: bool, as_json: bool, values: dict[str, object]) -> None:
    from .hardlink import join_same_bytes, same_bytes

    if yes:
        joined = join_same_bytes(found)
        values["joined"] = asdict(joined)
        line = f"joined {_files(joined.files)}, {megabytes(joined.size)} freed"
        _tell_left(joined)
        print(json.dumps(values) if as_json else line)
        return
    pairs = same_bytes(found)
    size = sum(spare.size for _, spare in pairs)
    values["would_join"] = {"files": len(pairs), "bytes": size}
    todo = "; add --yes to do it" if pairs else ""
    line = f"would join {_files(len(pairs))} with the same bytes, {megabytes(size)} at most{todo}"
    print(json.dumps(values) if as_json else line)


def _tell_moved(moved: "Moved", verb: str, as_json: bool, values: dict[str, object]) -> None:
    _tell_left(moved)
    values[verb.replace(" ", "_")] = asdict(moved)
    print(json.dumps(values) if as_json else f"{verb} {_files(moved.files)}, {megabytes(moved.size)}")


def _tell_left(done: "Moved | Joined") -> None:
    for line in done.left:
        say(f"left alone: {line}")


def index_at(where: str | None) -> str:
    """The index that is named, or that of a folder; without either the usual one."""
    from indexer.errors import SeenitError
    from indexer.index.find_index import find_index
    from indexer.index.place import index_in
    from indexer.sources.place import is_address
    from indexer.store.open import refuse_shards
    from indexer.store.protocol import is_url

    if where is None or is_url(where):
        return find_index(where, say=say)
    if not is_address(where) and (place := index_in(Path(where).expanduser())) is not None:
        return str(place)
    refuse_shards(where if is_address(where) else Path(where).expanduser())
    raise SeenitError(f"no index at {where}; create one with: seenit index {pasted(where)}")


@contextmanager
def _progress(shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage on stderr."""
    from indexer.progress_bar import LineBar, progress_bar

    bars: dict[str, Any | LineBar] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in bars or done == 0:  # a stage may come again
            for bar in bars.values():
                bar.close()
            bars[what] = progress_bar(total, what, "done", shown)
        bars[what].update(done - bars[what].n)

    try:
        yield report
    finally:
        for bar in bars.values():
            bar.close()


def _files(number: int) -> str:
    return f"{number:,} {'file' if number == 1 else 'files'}"
