"""Fetches one file over HTTP, whole or not at all.

Bytes gather in `TARGET.part`; the file gets its name only when it is complete and has passed every check, so a file
that exists is a file that was verified. A broken-off download goes on where it stopped, in the same run or in a later
one, but only while the server still vouches (If-Range with the ETag or date kept in `TARGET.part.json`) that it has
the same file.
"""

import errno
import hashlib
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from tqdm import tqdm

from ..errors import DownloadError, on_one_line
from .http import (
    DEFAULT_PATIENCE,
    Interrupted,
    Patience,
    Spoilt,
    printable_url,
    read_chunks,
    refuse_web_page,
    refused,
    request_file,
    resumed_total,
    validator_of,
)

MAX_SIZE = 8 << 30  # bytes; the largest official backbone is 4.5 GB
DISK_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG})


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    max_size: int = MAX_SIZE,
    check: Callable[[Path], object] | None = None,
    progress: bool = True,
    patience: Patience = DEFAULT_PATIENCE,
) -> Path:
    """Fetch `url` into `target` unless it is there already, and return `target`.

    size      the exact number of bytes, where known
    sha256    the hex digest or its first digits, where known
    max_size  bytes; a longer file is refused, whatever the server announced
    check     called with the complete file before it gets its name; what it raises counts as a spoilt file
    progress  a bar on stderr if that is a terminal
    Proxies are taken from the environment. Two processes that want the same file wait for each other: one fetches.
    Raises DownloadError in one line; bytes that may still be of use stay for the next call.
    """
    target = Path(target)
    if target.exists():
        return target
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"cannot fetch {printable_url(url)}: only http and https addresses are fetched")
    fetch = _Fetch(url, target, size, sha256, size or max_size, check, progress, patience)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with fetch.alone():
            if not target.exists():  # else another process has fetched it while this one waited
                fetch.run()
    except Timeout:
        raise DownloadError(
            f"cannot fetch {target.name}: another process has been fetching it for {patience.lock_s:.0f} s;"
            f" end that process or wait for it (lock: {target}.lock)"
        ) from None
    except OSError as error:
        fetch.refuse_disk(error)
    return target


@dataclass
class _Fetch:
    """One call of `download`: what is wanted, and the tries at it."""

    url: str
    target: Path
    size: int | None
    sha256: str | None
    max_size: int
    check: Callable[[Path], object] | None
    progress: bool
    patience: Patience

    @property
    def part(self) -> Path:
        return self.target.with_name(self.target.name + ".part")

    @property
    def note(self) -> Path:
        return self.target.with_name(self.target.name + ".part.json")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock on the target; the system takes it from a process that dies."""
        lock = FileLock(str(self.target) + ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.tell("another process is fetching it; waiting for that")
            lock.acquire(timeout=self.patience.lock_s)
        try:
            yield
        finally:
            lock.release()

    def tell(self, line: str) -> None:
        """A word to who watches the bar."""
        if self.progress and sys.stderr.isatty():
            tqdm.write(f"{self.target.name}: {line}", file=sys.stderr)

    def run(self) -> None:
        """Try until the file is whole; every way out but success is a DownloadError or the disk's OSError."""
        failures, most, may_restart = 0, self.have(), True
        while True:
            try:
                expected = self.read_body()
                self.accept(expected)
                return
            except Spoilt as spoilt:
                self.discard()
                if not may_restart:
                    raise DownloadError(
                        f"cannot fetch {printable_url(self.url)}: {spoilt}, twice; the file or the way to it is broken,"
                        " try later or from another network"
                    ) from spoilt
                may_restart, most = False, 0
            except Interrupted as interrupted:
                failures = 1 if self.have() > most else failures + 1
                most = max(most, self.have())
                if failures >= self.patience.attempts:
                    raise self.given_up(interrupted, failures) from interrupted
                backoff = self.patience.backoff_s * 2 ** (failures - 1)
                wait_s = min(max(backoff, interrupted.wait_s), self.patience.longest_backoff_s)
                self.tell(f"{interrupted}; trying again in {wait_s:.0f} s")
                time.sleep(wait_s)

    def read_body(self) -> int | None:
        """Append to the part what the server sends; returns the file's whole length where the server told it."""
        validator = self.validator() if self.have() else None
        start = self.have() if validator else 0
        response = request_file(self.url, start, validator, self.patience)
        if response is None:
            return start  # the part is already the whole file
        with response:
            announced = response.headers.get("Content-Length")
            length = int(announced) if announced and announced.isdigit() else None  # bytes of this answer
            if response.status == 206:
                total = resumed_total(response.headers, start, validator)
            else:
                start, total = 0, length  # the server ignores ranges or has another file by now
            self.make_room(start, total)
            chunks = read_chunks(response, length, self.patience)
            first = next(chunks, b"")
            if not start:  # before the part is touched: a login page must not cost the bytes that are here
                refuse_web_page(response.headers, first, self.url)
            self.receive(itertools.chain([first], chunks), start, length, response.headers)
        return total

    def receive(self, chunks: Iterable[bytes], start: int, length: int | None, headers: Message) -> None:
        """Write the body at `start` of the part; `length` bytes of it were announced."""
        end = start
        with (
            open(self.part, "r+b" if start else "wb") as file,
            tqdm(
                desc=self.target.name,
                total=start + length if length is not None else self.size,
                initial=start,
                unit="B",
                unit_scale=True,
                disable=None if self.progress else True,  # None: a bar on terminals only
            ) as bar,
        ):
            file.seek(start)
            if not start:
                self.remember(headers)
            for chunk in chunks:
                end += len(chunk)
                if end > self.max_size:
                    break
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        if end > self.max_size:
            self.discard()
            raise refused(self.url, f"it is longer than the {self.max_size:,} bytes allowed")
        if length is not None and end < start + length:
            raise Interrupted(f"the connection broke off at {end:,} of {start + length:,} bytes")

    def accept(self, expected: int | None) -> None:
        """Give the complete part its name, or raise Spoilt."""
        have = self.have()
        if expected is not None and have != expected:
            raise Spoilt(f"{have:,} bytes arrived where the server announced {expected:,}")
        if self.size is not None and have != self.size:
            raise Spoilt(f"{have:,} bytes arrived of a file of {self.size:,}")
        if have == 0:
            raise Spoilt("the file is empty")
        if self.sha256 is not None and not _sha256(self.part).startswith(self.sha256.lower()):
            raise Spoilt(f"its SHA-256 is not {self.sha256}")
        if complaint := self.complaint():
            raise Spoilt(f"it is not what was expected ({complaint})")
        os.replace(self.part, self.target)
        self.note.unlink(missing_ok=True)

    def complaint(self) -> str:
        """What the caller's check says against the file, empty for nothing.

        Text and no exception: that would keep the check's tensors alive, and Windows keeps a file that is mapped.
        """
        try:
            if self.check is not None:
                self.check(self.part)
            return ""
        except Exception as error:  # whatever it raises, the file is not wanted
            return on_one_line(error)

    def have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def validator(self) -> str | None:
        """What proves that the part is of this address's present file; None if nothing does."""
        try:
            note = json.loads(self.note.read_text("utf-8"))
            return str(note["validator"]) if note["url"] == self.url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # no note, or one that was cut short: the part is of no use

    def remember(self, headers: Message) -> None:
        if validator := validator_of(headers):
            self.note.write_text(json.dumps({"url": self.url, "validator": validator}), "utf-8")
        else:
            self.note.unlink(missing_ok=True)

    def make_room(self, start: int, total: int | None) -> None:
        """Refuse at once what cannot end well."""
        if total is None:
            return
        if self.size is not None and total != self.size:
            raise refused(self.url, f"the server announces {total:,} bytes of a file of {self.size:,}")
        if total > self.max_size:
            raise refused(self.url, f"the server announces {total:,} bytes where {self.max_size:,} are allowed")
        free = shutil.disk_usage(self.target.parent).free
        if total - start > free:
            raise DownloadError(
                f"no room for {self.target.name} in {self.target.parent}: {total - start:,} bytes are needed and"
                f" {free:,} free; make room and run it again"
            )

    def given_up(self, interrupted: Interrupted, failures: int) -> DownloadError:
        kept = f" (it goes on after the {self.have():,} bytes that are here)" if self.validator() else ""
        times = f"{failures} times in a row" if failures > 1 else "once"
        return DownloadError(
            f"cannot fetch {printable_url(self.url)}: {interrupted}, {times}; check the network and run it again{kept}"
        )

    def refuse_disk(self, error: OSError) -> NoReturn:
        reason = "the disk is full" if error.errno in DISK_FULL else on_one_line(error.strerror or error)
        raise DownloadError(
            f"cannot write {error.filename or self.part}: {reason}; make room or allow writing, and run it again"
        ) from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
