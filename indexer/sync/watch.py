"""Tells when files below folders change, also where a drive goes away and comes back."""

import os
import threading
from collections.abc import Iterable, Sequence

from ..errors import os_reason

LOOK_EVERY_MS = 500  # how often it is looked whether the folders are still the same ones
SETTLE_MS = 2000  # changes closer together than this are told as one
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0


class Backoff:
    """Pauses between tries: each twice as long as the one before, up to LONGEST_PAUSE_S."""

    def __init__(self) -> None:
        self._next_s = FIRST_PAUSE_S

    def next_s(self) -> float:
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return pause_s

    def reset(self) -> None:
        self._next_s = FIRST_PAUSE_S


class FolderWatch:
    """Watches folders from when it is made until it is closed, in a thread of its own.

    problem  why it no longer watches; None while it does. A folder that went away or was replaced is one: a watch on
             what is gone hears nothing, also when the drive is back
    """

    def __init__(self, folders: Sequence[str], index: str) -> None:
        """`index`: a folder whose files are not heard of, nor are those of any `.seenit`."""
        self.problem: str | None = None
        self._folders = list(folders)
        self._own = os.path.join(os.path.abspath(index), "")
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        while not self._ready.wait(0.1):  # from here on no change is missed
            pass

    def clear(self) -> None:
        """What has changed so far is known."""
        self._changed.clear()

    def wait(self, stop: threading.Event, timeout_s: float | None = None) -> bool:
        """Whether something changed, or the watch has a problem; False on `stop` or after `timeout_s`."""
        waited_s = 0.0
        while not stop.is_set() and (timeout_s is None or waited_s < timeout_s):
            if self._changed.wait(0.2):  # in short waits, so that a signal is heard
                return not stop.is_set()
            waited_s += 0.2
        return False

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        from watchfiles import watch

        try:
            before = _identities(self._folders)
            for changes in watch(
                *self._folders,
                watch_filter=lambda _, path: self._counts(path),
                stop_event=self._closed,
                debounce=SETTLE_MS,
                rust_timeout=LOOK_EVERY_MS,
                yield_on_timeout=True,
                raise_interrupt=False,
            ):
                self._ready.set()
                if changes:
                    self._changed.set()
                if _identities(self._folders) != before:
                    self.problem = "a folder went away or was replaced"
                    break
        except OSError as error:
            self.problem = os_reason(error)
        except RuntimeError as error:  # what the system's watch says in other ways
            self.problem = " ".join(str(error).split())
        finally:
            if self.problem:
                self._changed.set()
            self._ready.set()

    def _counts(self, path: str) -> bool:
        path = os.path.join(path, "")  # so that the folder itself is told as well, when it is made
        return not path.startswith(self._own) and os.sep + ".seenit" + os.sep not in path


def _identities(folders: Iterable[str]) -> list[tuple[int, int] | None]:
    found: list[tuple[int, int] | None] = []
    for folder in folders:
        try:
            status = os.stat(folder)
            found.append((status.st_dev, status.st_ino))
        except OSError:
            found.append(None)
    return found
