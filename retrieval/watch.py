"""Keeps an index in line with folders as they change, through all that passes by itself."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from indexer.errors import AwayError, SeenitError, first_line, may_pass
from indexer.index.index import Index, is_index
from indexer.messages import Say
from indexer.printable import printable
from indexer.sources.open import spec_of
from indexer.sync.options import SyncOptions
from indexer.sync.watch import Backoff, FolderWatch

from .build import Built, build_index

if TYPE_CHECKING:
    from indexer.backbone.load_once import LoadOnce


def watch_index(
    folders: Sequence[str | Path],
    index: str | Path,
    *,
    options: SyncOptions,
    backbone: "LoadOnce",
    stop: threading.Event,
    tell: Callable[[Built], None],
    say: Say,
    progress: bool = False,
) -> bool:
    """`build_index` now and after each change below the folders, until `stop`; whether a round was cut short by that.

    An index in use, a drive that is away, a full disk, a server that does not answer: each is said, and tried again
    after 5 seconds, then 10, and so on up to 5 minutes. What cannot pass by itself is raised. What is asked of one run
    only, as to verify files, is done in the first round.

    folders  as of `build_index`
    tell     gets what each round did
    """
    backoff = Backoff()
    watch: FolderWatch | None = None
    made = False
    try:
        while not stop.is_set():
            try:
                if made and not is_index(index):
                    raise AwayError(f"the index at {index} is not there; bring its drive back")
                if watch is None or watch.problem:
                    watch = _renewed(watch, folders, index)
                watch.clear()
                built = build_index(
                    folders, index, options=options, backbone=backbone, progress=progress, stop=stop.is_set, say=say
                )
            except (SeenitError, OSError, MemoryError) as error:
                if not may_pass(error):
                    raise
                _pause(f"{_words(error)}; trying again", backoff, stop, say)
                continue
            made = True
            options = replace(options, exclude=(), no_exclude=(), retry=False, verify=False)
            tell(built)
            if built.interrupted:
                return True
            if not _wait(watch, built, backoff, stop, say):
                break
        return False
    finally:
        if watch is not None:
            watch.close()


def _renewed(watch: FolderWatch | None, folders: Sequence[str | Path], index: str | Path) -> FolderWatch:
    """A fresh watch of the folders, or of those that the index mirrors."""
    if watch is not None:
        watch.close()
    others = [folder for folder in folders if spec_of(folder) is not None]
    watched = [str(folder) for folder in folders]
    if not watched:
        with Index.open(index) as opened:
            watched, others = list(opened.roots.folders.values()), list(opened.roots.names)
    if others and (folders or not watched):
        raise SeenitError(
            f"only folders can be watched, and {others[0]} is none; run seenit index for it from time to time"
        )
    return FolderWatch(watched, str(index))


def _wait(watch: FolderWatch, built: Built, backoff: Backoff, stop: threading.Event, say: Say) -> bool:
    """Until another round is due; False on `stop`."""
    if watch.problem:
        _pause(f"cannot watch the folders ({watch.problem}); looking again", backoff, stop, say)
        return not stop.is_set()
    if built.summary.unreadable:
        pause_s = backoff.next_s()
        say(f"watching for changes, and looking again at what was not readable in {pause_s:.0f} s; Ctrl-C ends it")
        watch.wait(stop, pause_s)
        return not stop.is_set()
    backoff.reset()
    say("watching for changes; Ctrl-C ends it")
    return watch.wait(stop)


def _pause(why: str, backoff: Backoff, stop: threading.Event, say: Say) -> None:
    pause_s = backoff.next_s()
    say(printable(f"{why} in {pause_s:.0f} s; Ctrl-C ends it"))
    stop.wait(pause_s)


def _words(error: SeenitError | OSError | MemoryError) -> str:
    if isinstance(error, OSError):
        return first_line(error) + (f": {error.filename}" if error.filename else "")
    return "not enough memory" if isinstance(error, MemoryError) else str(error)
