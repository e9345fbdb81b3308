"""Shards of vectors below an address of an object store, through fsspec; see `shard_place`.

An object is put whole or not at all by the store itself. What is surprising is the lock, for an object store has none:
an object `locks/NUMBER.json` that is put only where there is none (a conditional put), and put again every few seconds
while its writer lives. The highest number is the writer. One that was not renewed for a while, or whose process was on
this machine and is gone, is dead: the next writer makes the next number. A writer that was only asleep finds that
before its next shard, and stops. Where a kind of store knows no conditional put (S3 and Google's do), fsspec asks first
and puts then, so two writers that begin within the same moment may both begin; one of them stops likewise.
"""

import io
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ..errors import LockedError, SeenitError, StoreError, UnusableError
from ..http_files import FileStat
from ..sources.remote import RemoteFile, filesystem_of, reason_of
from ..web import printable_url, within

T = TypeVar("T")
TIMEOUT_S = 120.0  # for one object, of some 9 MB mostly; what a slow line takes. Not tuned
RENEW_S = 10.0  # between two signs of life of a writer
DEAD_S = 35.0  # without one, as another writer sees it
POLL_S = 1.0
BLOCK_BYTES = 1 << 18  # read at a time
MAX_NOTE = 10_000  # bytes
_LOCKS = "locks"


class RemotePlace:
    """Objects whose names begin with an address."""

    def __init__(self, address: str) -> None:
        self.location = address.rstrip("/")
        self._files, path = filesystem_of(address)
        self._top = path.rstrip("/")

    def sizes(self, folder: str = "") -> dict[str, int]:
        listed = self._listed(folder)
        return {name: int(info.get("size") or 0) for name, info in listed.items() if info["type"] == "file"}

    def names(self) -> list[str]:
        return list(self._listed(""))

    def _listed(self, folder: str) -> dict[str, dict[str, Any]]:
        """What lies right in the place or in a folder of it, as the store tells it, by name."""
        path = f"{self._top}/{folder}" if folder else self._top

        def listed() -> list[dict[str, Any]]:
            self._files.invalidate_cache(path)
            try:
                found: list[dict[str, Any]] = self._files.ls(path, detail=True)
            except (FileNotFoundError, NotADirectoryError):  # nothing begins with this name
                found = []
            self._files.invalidate_cache(path)
            return found

        found = {str(info["name"]).removeprefix(path).strip("/"): info for info in self._asked("list", "read", listed)}
        return {name: info for name, info in found.items() if name and "/" not in name}

    def is_there(self, name: str) -> bool:
        return self._size_of(name) is not None

    def open(self, name: str) -> tuple[BinaryIO, int]:
        size = self._size_of(name)
        if size is None:
            raise FileNotFoundError(2, "it is not there")
        file = RemoteFile(f"{self.location}/{name}", stat=FileStat(size, None, None))
        return io.BufferedReader(file, BLOCK_BYTES), size

    def read(self, name: str, limit: int) -> bytes | None:
        size = self._size_of(name)
        if size is None:
            return None
        if size > limit:
            raise UnusableError(f"{self._named(name)} has {size:,} bytes, more than {limit:,}; do not use these shards")

        def data() -> bytes | None:
            try:
                return bytes(self._files.cat_file(self._path(name), start=0, end=size)) if size else b""
            except FileNotFoundError:
                return None

        return self._asked("read", "read", data)

    def put(self, name: str, data: bytes) -> None:
        self._asked("write to", "write", lambda: self._files.pipe_file(self._path(name), data))

    def create(self, name: str, data: bytes) -> bool:
        """Put an object only where there is none; whether it is there now as given."""
        try:
            within(TIMEOUT_S, lambda: self._files.pipe_file(self._path(name), data, mode="create"))
        except Exception:  # there is one, which each store says in words of its own; or an answer that was lost
            there = self.read(name, 1 << 20)
            if there is None:
                self.put(name, data)  # says what is wrong
                return self.read(name, 1 << 20) == data
            return there == data
        return True

    def delete(self, name: str) -> None:
        def delete() -> None:
            with suppress(FileNotFoundError):
                self._files.rm_file(self._path(name))

        self._asked("write to", "write", delete)

    def make(self) -> None:
        """Nothing: names need no folder, and a bucket is not made for anybody."""

    def discard(self) -> None:
        """Nothing: without objects there is nothing."""

    def lock(self, wait_s: float) -> "RemoteLock":
        return RemoteLock(self, wait_s)

    def _size_of(self, name: str) -> int | None:
        """Bytes of an object; None where there is none."""
        path = self._path(name)

        def info() -> dict[str, Any] | None:
            self._files.invalidate_cache(path.rpartition("/")[0])
            try:
                found: dict[str, Any] = self._files.info(path)
                return found
            except FileNotFoundError:
                return None

        found = self._asked("read", "read", info)
        if found is None or found.get("type") != "file":
            return None
        if found.get("size") is None:
            raise UnusableError(f"the store of {self._named(name)} tells no size; copy the shards to a folder")
        return int(found["size"])

    def _path(self, name: str) -> str:
        return f"{self._top}/{name}"

    def _named(self, name: str) -> str:
        return printable_url(f"{self.location}/{name}")

    def _asked(self, doing: str, right: str, ask: Callable[[], T]) -> T:
        with self._in_words(doing, right):
            return within(TIMEOUT_S, ask)

    @contextmanager
    def _in_words(self, doing: str, right: str) -> Iterator[None]:
        """What file systems raise, as StoreError; each of them has exceptions of its own."""
        try:
            yield
        except SeenitError:
            raise
        except Exception as error:
            if isinstance(error, FileNotFoundError):
                reason = "there is no such bucket"
            elif isinstance(error, TimeoutError):
                reason = f"no answer within {TIMEOUT_S:g} s"
            else:
                reason = reason_of(error)
            raise StoreError(
                f"cannot {doing} {printable_url(self.location)}: {reason}; check the address, the credentials and"
                f" whether they may {right}, and run the same again to go on"
            ) from None


class RemoteLock:
    """See the module; taken when it is made."""

    def __init__(self, place: RemotePlace, wait_s: float) -> None:
        self._place = place
        self._token = secrets.token_hex(8)
        self._renewed = 0
        self._since = time.time()
        self._number = self._take(time.monotonic() + wait_s)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="seenit-lock")
        self._thread.start()

    def check(self) -> None:
        if not self._is_mine() or max(self._numbers(), default=0) != self._number:
            raise LockedError(
                f"another process writes to {printable_url(self._place.location)} now, as this one gave no sign of life"
                " for too long; what this one wrote is kept; run the same command again to go on"
            )

    def release(self) -> None:
        self._ended.set()
        self._thread.join(RENEW_S)
        with suppress(SeenitError):  # else it dies of age
            if self._is_mine():
                self._place.delete(_name(self._number))

    def _is_mine(self) -> bool:
        """Whether the object is the one that this writer put: numbers begin anew once all writers have ended."""
        return self._token.encode() in (self._place.read(_name(self._number), MAX_NOTE) or b"")

    def _take(self, deadline: float) -> int:
        seen: tuple[int, bytes, float] | None = None  # the newest one, as it was, and since when it is so
        while True:
            numbers = self._numbers()
            newest = max(numbers, default=0)
            note = self._place.read(_name(newest), MAX_NOTE) if newest else None
            if note is not None and (seen is None or seen[:2] != (newest, note)):
                seen = (newest, note, time.monotonic())
            is_dead = seen is not None and time.monotonic() - seen[2] > DEAD_S
            if (note is None or is_dead or _is_gone(note)) and self._place.create(_name(newest + 1), self._note()):
                if max(self._numbers(), default=0) == newest + 1:
                    for number in numbers:
                        self._place.delete(_name(number))
                    return newest + 1
                self._place.delete(_name(newest + 1))  # somebody was quicker
            if time.monotonic() >= deadline:
                raise LockedError(
                    f"the shards at {printable_url(self._place.location)} are being written by another"
                    f" process{_holder(note)}; wait for it to end or stop it. If it was killed on another machine, its"
                    f" lock ends by itself: --wait {DEAD_S + RENEW_S:.0f}"
                )
            time.sleep(min(POLL_S, max(0.05, deadline - time.monotonic())))

    def _numbers(self) -> list[int]:
        names = (name.partition(".") for name in self._place.sizes(_LOCKS))
        return sorted(int(stem) for stem, _, suffix in names if stem.isdecimal() and suffix == "json")

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            with suppress(SeenitError):  # the store may be away for a while; `check` tells whether the lock is lost
                self.check()
                self._renewed += 1
                self._place.put(_name(self._number), self._note())

    def _note(self) -> bytes:
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])[:80]
        values = {"pid": os.getpid(), "machine": _machine(), "command": command, "since": self._since}
        return json.dumps(values | {"token": self._token, "renewed": self._renewed}).encode("utf-8", "backslashreplace")


def _name(number: int) -> str:
    return f"{_LOCKS}/{number:06d}.json"


def _machine() -> str:
    """This machine, and on Linux the space that its process numbers belong to: two containers may share a name."""
    try:
        return f"{socket.gethostname()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _is_gone(note: bytes) -> bool:
    """Whether a note is of a process of this machine that is gone."""
    try:
        values = json.loads(note)
        if values["machine"] != _machine() or os.name == "nt":
            return False
        os.kill(int(values["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        pass
    return False


def _holder(note: bytes | None) -> str:
    """(`seenit embed`, process 12 on host, since 12:03); empty where the note does not tell."""
    try:
        values = json.loads(note or b"")
        since = time.strftime("%H:%M", time.localtime(float(values["since"])))
        host = str(values["machine"]).split(" ")[0][:80]
        return f" (`{str(values['command'])[:80]}`, process {int(values['pid'])} on {host}, since {since})"
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return ""
