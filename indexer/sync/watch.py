"""Waits until files below indexed folders change."""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from watchfiles import watch

from ..index.index import Index

SETTLE_MS = 2000  # a camera's card is copied file by file; changes within so long of each other are one
OWN = os.sep + ".seenit"  # an index, and what its duplicates were moved to


def wait_for_changes(
    folders: Sequence[str | Path],
    location: str,
    stop: threading.Event,
    say: Callable[[str], None] = lambda line: None,
) -> bool:
    """Sleep until files below the folders change; False once `stop` is set. The index is free meanwhile.

    folders  none: those that the index at `location` mirrors
    """
    watched = [str(folder) for folder in folders]
    if not watched:
        with Index.open(location) as index:
            watched = list(index.roots.folders.values())
    own = os.path.join(os.path.abspath(location), "")
    say("watching for changes; Ctrl-C ends it")
    for _ in watch(
        *watched,
        watch_filter=lambda _, path: not path.startswith(own) and OWN not in path,
        stop_event=stop,
        debounce=SETTLE_MS,
        raise_interrupt=False,
    ):
        return not stop.is_set()
    return False
