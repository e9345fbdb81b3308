"""Lists the files under folders, and opens one without waiting or being tricked.

Surprising: what cannot be read is told apart from what is gone, because a caller deletes what is gone from its index. A
disk that was unplugged, a folder without permission or a link that leads nowhere must not look like deleted photos.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from ..errors import AwayError, SeenitError, first_line, os_reason

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

# Folders that cameras' software, systems and network drives fill with copies and leftovers
SKIPPED_FOLDERS = frozenset(
    {"@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found", "__macosx"}
)
NOT_REGULAR = "not a regular file"
IGNORE_FILE = ".seenitignore"
MAX_IGNORE_BYTES = 1 << 20
MAX_STAMP_NS = (1 << 63) - 1  # the year 2262, and what SQLite and the engines hold


class FoundFile(NamedTuple):
    """A regular file (or a link to one), as the folder's listing shows it."""

    path: str  # absolute; bytes that are not UTF-8 are surrogates, as os.fsdecode makes them
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Unreadable:
    """A folder or file that is there but cannot be read now. What it holds is unknown, not gone."""

    path: str
    reason: str


def find_files(
    folders: Iterable[str | Path],
    *,
    exclude_dirs: Iterable[str | Path] = (),
    follow_links: bool = False,
    exclude: Iterable[str] = (),
    within: str | Path | None = None,
    on_link_out: Callable[[str], None] = lambda path: None,
) -> Iterator[FoundFile | Unreadable]:
    """Every file under the folders, image or not, each folder's entries in the order of their names.

    follow_links  also what links lead to outside of the folders; without, such a link counts as not there, and
                  `on_link_out` gets its path
    exclude       patterns as in a .gitignore, relative to each of the folders: `*.tif`, `private/`, `/2019/raw`. A
                  file .seenitignore holds more of them, for the folder that it lies in
    within        a folder that all the folders lie in. Patterns are relative to it then, and the .seenitignore files
                  of the folders on the way count
    Left out: hidden files and folders, SKIPPED_FOLDERS, `exclude_dirs`, what is not a regular file.
    A link to a folder is followed after everything else and only into a folder not yet seen, so loops end and a file's
    path is the real one where there is one. A folder given twice, or inside another one given, is listed once.
    A folder that cannot be read, or a link that leads nowhere, yields Unreadable: what is behind it is unknown. So
    does a line of a .seenitignore that is no pattern; the others count.
    SeenitError if one of `folders` is not there, goes away or is left out itself, or one of `exclude` is no pattern.
    """
    seen: set[tuple[int, int]] = set()  # device, inode of each folder listed or excluded
    for folder in exclude_dirs:
        with contextlib.suppress(OSError):  # one that is not there need not be excluded
            seen.add(_identity(os.fspath(folder)))
    roots = [os.path.abspath(os.path.expanduser(os.fspath(folder))) for folder in folders]
    spec = _patterns(exclude)
    inside = () if follow_links else tuple(os.path.join(os.path.realpath(root), "") for root in roots)
    for root in roots:
        before = _identity_of_root(root)
        walk = _Walk(seen, follow_links, inside, on_link_out)
        base = root if within is None else os.path.abspath(os.path.expanduser(os.fspath(within)))
        rules: _Rules = [(base, spec)] if spec else []
        rules, problems = _rules_on_the_way(base, root, rules)
        yield from problems
        yield from _walk(root, walk, rules)
        for link in walk.links:  # grows while it is walked
            yield from _walk(link, walk, rules)
        if _identity_of_root(root) != before:  # a disk taken away must not look like deleted photos
            raise AwayError(f"the folder {root} went away while it was being listed; bring it back and try again")


def left_out_by(exclude: Iterable[str]) -> Callable[[str], bool]:
    """Whether patterns, as in a .gitignore, leave out a file of a name relative to where they hold."""
    spec = _patterns(exclude)
    return (lambda name: False) if spec is None else (lambda name: bool(spec.check_file(name).include))


def stamp_ns(status: os.stat_result) -> int:
    """A file's time of change as it is stored and compared: in ns, held to the 64 bits that databases have.

    A camera with a flat battery, an archive or a network drive makes times of any year.
    """
    stamp = status.st_mtime_ns
    return stamp if -MAX_STAMP_NS <= stamp <= MAX_STAMP_NS else max(-MAX_STAMP_NS, min(stamp, MAX_STAMP_NS))


def open_regular(path: str) -> IO[bytes]:
    """Open a regular file for reading, unbuffered; OSError if it is something else, without waiting for it.

    A FIFO would wait for its writer, a device might do anything when opened. A name that no file can have (a NUL in it,
    or a character that this system has no bytes for) is an OSError as well, not Python's ValueError.
    """
    flags = os.O_RDONLY
    for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY"):
        flags |= getattr(os, name, 0)
    try:
        status = os.stat(path)
    except ValueError:
        raise OSError(errno.EINVAL, "no file can have this name") from None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, NOT_REGULAR)
    file = open(os.open(path, flags), "rb", buffering=0)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it was put in the other's place just now
        file.close()
        raise OSError(errno.EINVAL, NOT_REGULAR)
    return file


def _identity_of_root(root: str) -> tuple[int, int]:
    try:
        is_folder, identity = os.path.isdir(root), _identity(root)
    except OSError as error:
        raise AwayError(f"cannot list {root}: {os_reason(error)}; give a folder that can be read") from None
    if not is_folder:
        raise SeenitError(f"cannot list {root}: it is not a folder; give the folder that holds it")
    return identity


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


_Rules = list[tuple[str, "GitIgnoreSpec"]]  # folders and the patterns that hold below them, the outermost first


@dataclass(frozen=True)
class _Walk:
    """What the folders of one root share.

    seen    device and inode of each folder listed or excluded
    inside  the real paths that a link may lead to unless links are followed
    links   to folders, to be walked in the end
    """

    seen: set[tuple[int, int]]
    follow_links: bool
    inside: tuple[str, ...]
    on_link_out: Callable[[str], None]
    links: list[str] = field(default_factory=list)

    def leads_out(self, link: str) -> bool:
        if self.follow_links or os.path.realpath(link).startswith(self.inside):
            return False
        self.on_link_out(link)
        return True


def _walk(top: str, walk: _Walk, rules: _Rules) -> Iterator[FoundFile | Unreadable]:
    """The files of one folder and of the real folders in it."""
    waiting = [(top, rules)]
    while waiting:
        folder, rules = waiting.pop()
        try:
            identity = _identity(folder)
            if identity in walk.seen:
                continue
            walk.seen.add(identity)
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue  # deleted since its parent was listed
        except OSError as error:
            yield Unreadable(folder, os_reason(error))
            continue
        if any(entry.name == IGNORE_FILE for entry in entries):
            rules, problems = _with_ignore_file(folder, rules)
            yield from problems
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_file(follow_symlinks=False):  # as nearly all are
                    if not (rules and _is_excluded(entry.path, rules)):
                        status = entry.stat(follow_symlinks=False)
                        yield FoundFile(entry.path, status.st_size, stamp_ns(status))
                elif entry.is_dir(follow_symlinks=False):
                    if entry.name.lower() not in SKIPPED_FOLDERS and not _is_excluded(f"{entry.path}/", rules):
                        folders.append((entry.path, rules))
                elif _is_excluded(entry.path, rules) or (entry.is_symlink() and walk.leads_out(entry.path)):
                    continue
                elif entry.is_symlink() and entry.is_dir():
                    if not _is_excluded(f"{entry.path}/", rules):
                        walk.links.append(entry.path)
                elif entry.is_file():
                    status = entry.stat()
                    yield FoundFile(entry.path, status.st_size, stamp_ns(status))
                elif entry.is_symlink() and not os.path.exists(entry.path):  # perhaps into a disk that is not here now
                    yield Unreadable(entry.path, "the link leads nowhere")
            except FileNotFoundError:
                continue  # deleted since it was listed
            except OSError as error:
                yield Unreadable(entry.path, os_reason(error))
        waiting.extend(reversed(folders))


def _is_excluded(path: str, rules: _Rules) -> bool:
    """Whether the patterns leave out a file, or a folder (its path ends with /); the innermost that matches decides."""
    for base, spec in reversed(rules):
        if path.startswith(os.path.join(base, "")):
            relative = path[len(os.path.join(base, "")) :].replace(os.sep, "/")
            include = spec.check_file(relative).include
            if include is not None:
                return include
    return False


def _rules_on_the_way(base: str, root: str, rules: _Rules) -> tuple[_Rules, list[Unreadable]]:
    """The patterns that hold in `root`, those of the folders above it included; SeenitError if they leave it out."""
    problems: list[Unreadable] = []
    folder = base
    for name in Path(root).relative_to(base).parts:
        if os.path.lexists(os.path.join(folder, IGNORE_FILE)):
            rules, found = _with_ignore_file(folder, rules)
            problems += found
        folder = os.path.join(folder, name)
        if _is_excluded(f"{folder}/", rules):
            raise SeenitError(
                f"{folder} is left out by a pattern; take that out of the {IGNORE_FILE}, or: seenit index --no-exclude"
            )
    return rules, problems


def _with_ignore_file(folder: str, rules: _Rules) -> tuple[_Rules, list[Unreadable]]:
    path = os.path.join(folder, IGNORE_FILE)
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError(errno.EINVAL, NOT_REGULAR)
        with open_regular(path) as file:
            lines = file.read(MAX_IGNORE_BYTES).decode("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        return rules, [Unreadable(path, os_reason(error))]
    good, problems = [], []
    for number, line in enumerate(lines, start=1):
        try:
            _patterns([line])
            good.append(line)
        except SeenitError:
            problems.append(Unreadable(path, f"line {number} is no pattern"))
    spec = _patterns(good)
    return ([*rules, (folder, spec)] if spec else rules), problems


def _patterns(lines: Iterable[str]) -> "GitIgnoreSpec | None":
    """Patterns as git reads them; None where there are none."""
    wanted = [line for line in lines if line.strip() and not line.startswith("#")]
    if not wanted:
        return None
    from pathspec import GitIgnoreSpec

    for line in wanted:
        try:
            GitIgnoreSpec.from_lines([line])
        except (ValueError, re.error) as error:  # a range that runs backwards reaches Python's own patterns
            raise SeenitError(
                f"{line!r} is no pattern ({first_line(error)}); write it as in a .gitignore: *.tif, private/"
            ) from None
    return GitIgnoreSpec.from_lines(wanted)
