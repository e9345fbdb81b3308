"""Fetches one file over HTTP, whole or not at all.

Bytes gather in `TARGET.part`; the file gets its name when it is complete and has passed every check. A later try goes
on from there while the server vouches (If-Range, with the ETag or date in `TARGET.part.json`) for the same file.
"""

import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from filelock import FileLock, Timeout

from .. import web
from ..errors import DownloadError, on_one_line, os_reason
from ..progress_bar import progress_bar
from .patience import Patience

PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})  # worth another try


class _Failed(Exception):
    """This try failed, another may go on; with `spoilt` the bytes that are there cannot become the file."""

    def __init__(self, reason: object, *, spoilt: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(on_one_line(reason))
        self.spoilt, self.wait_s = spoilt, wait_s


@dataclass(frozen=True)
class Download:
    """A file to be fetched; proxies are taken from the environment."""

    url: str
    target: Path
    size: int | None = None  # bytes, where known
    sha256: str | None = None  # the hex digest or its first digits, where known
    max_size: int = 8 << 30  # bytes; a longer file is refused, whatever the server announced
    check: Callable[[Path], object] | None = None  # of the complete file; what it raises counts as a spoilt file
    progress: bool = True  # a bar on stderr, lines off a terminal
    patience: Patience = Patience()

    def run(self) -> Path:
        """Fetch the file unless it is there, and return its path. Of two processes that want it, one fetches.

        Raises DownloadError in one line; bytes that may still be of use stay for the next call.
        """
        try:
            if not self.target.exists():
                self.target.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(self._beside(".lock"), timeout=self.patience.lock_s):
                    if not self.target.exists():  # else another process has fetched it while this one waited
                        self._try_until_whole()
            return self.target
        except Timeout:
            reason = "another process has been fetching it for too long"
            raise DownloadError(f"cannot fetch {self.target.name}: {reason}; end that process or wait") from None
        except OSError as error:
            reason = f"{error.filename or self.target}: {os_reason(error)}"
            raise DownloadError(f"cannot write {reason}; make room or allow writing") from error

    def _try_until_whole(self) -> None:
        """Every way out but success is a DownloadError or the disk's OSError."""
        failures, most, may_restart = 0, self._have(), True
        with web.http_client(self.patience.connect_s, self.patience.stall_s) as client:
            while True:
                try:
                    return self._accept(self._read_body(client))
                except _Failed as failed:
                    have = self._have()
                    if failed.spoilt:
                        self._discard()
                        if not may_restart:
                            raise web.refused(self.url, f"{failed}, twice", "try later or elsewhere") from failed
                        failures, most, may_restart = 0, 0, False
                        continue
                    failures, most = 1 if have > most else failures + 1, max(most, have)
                    if failures >= self.patience.attempts:
                        kept = f" (it goes on after the {have:,} bytes that are here)" if self._validator() else ""
                        reason = f"{failed}, {failures} times in a row"
                        raise web.refused(self.url, reason, f"check the network, run it again{kept}") from failed
                    backoff_s = max(self.patience.backoff_s * 2 ** (failures - 1), failed.wait_s)
                    time.sleep(min(backoff_s, self.patience.longest_backoff_s))

    def _read_body(self, client: httpx.Client) -> int | None:
        """Append to the part what the server sends; returns the file's whole length where the server told it."""
        validator = self._validator()
        start = self._have() if validator else 0
        headers = {"Range": f"bytes={start}-", "If-Range": validator or ""} if start else {}
        try:
            with client.stream("GET", self.url, headers=headers) as answer:
                begin, total = web.body_range(answer)
                if answer.status_code == 416 and start and total == start:
                    return start  # the part is already the whole file
                if start and answer.status_code in (206, 416):
                    if begin != start or web.validator_of(answer) not in (None, validator):
                        raise _Failed("the server's file is not the one that was begun", spoilt=True)
                elif answer.status_code in PASSING_STATUS:
                    raise _Failed(web.status_of(answer), wait_s=web.retry_after_s(answer))
                else:
                    start = 0  # the server ignores ranges or has another file by now
                    web.refuse_other_than_a_file(answer)
                self._make_room(start, total or self.size or 0)
                chunks = answer.iter_raw()
                first = next(chunks, b"")
                if not start:  # before the part is touched: a login page must not cost the bytes that are here
                    web.refuse_web_page(answer, first)
                    self._beside(".part.json").write_text(json.dumps([self.url, web.validator_of(answer)]), "utf-8")
                self._write(itertools.chain([first], chunks), start, total)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if web.is_lasting(error):
                raise web.refused(self.url, web.failure(error)) from error
            raise _Failed(web.failure(error)) from error
        return total

    def _write(self, chunks: Iterator[bytes], start: int, total: int | None) -> None:
        """Write the body at `start` of the part."""
        end, since, mark = start, time.monotonic(), start
        bar = progress_bar(total, self.target.name, "bytes", self.progress, initial=start, bytes_=True)
        with open(self._beside(".part"), "r+b" if start else "wb") as file, bar:
            file.seek(start)
            for chunk in chunks:
                end += len(chunk)
                if end > (most := self.size or self.max_size):
                    self._discard()
                    raise web.refused(self.url, f"it is longer than the {most:,} bytes allowed")
                file.write(chunk)
                bar.update(len(chunk))
                if (elapsed_s := time.monotonic() - since) > self.patience.stall_s:
                    if end - mark < self.patience.crawl * elapsed_s:
                        raise _Failed(f"only {end - mark:,} bytes came in {elapsed_s:.0f} s")
                    since, mark = time.monotonic(), end
            file.flush()
            os.fsync(file.fileno())

    def _accept(self, announced: int | None) -> None:
        """Give the complete part its name, or raise _Failed."""
        part, have = self._beside(".part"), self._have()
        for expected in (announced, self.size):
            if expected not in (None, have):
                raise _Failed(f"{have:,} bytes arrived of a file of {expected:,}", spoilt=True)
        if have == 0:
            raise _Failed("the file is empty", spoilt=True)
        with open(part, "rb") as file:
            if not hashlib.file_digest(file, "sha256").hexdigest().startswith((self.sha256 or "").lower()):
                raise _Failed(f"its SHA-256 is not {self.sha256}", spoilt=True)
        try:
            if self.check is not None:
                self.check(part)
        except Exception as error:  # whatever it raises, the file is not wanted
            raise _Failed(f"it is not what was expected ({on_one_line(error)})", spoilt=True) from None
        os.replace(part, self.target)
        self._discard()

    def _make_room(self, start: int, total: int) -> None:
        """Refuse at once what cannot end well."""
        if total > self.max_size or total != (self.size or total):
            wanted = f"at most {self.max_size:,}" if self.size is None else f"{self.size:,}"
            raise web.refused(self.url, f"the server announces {total:,} bytes of a file of {wanted}")
        if total - start > (free := shutil.disk_usage(self.target.parent).free):
            needs = f"{total - start:,} bytes are needed and {free:,} free"
            raise DownloadError(f"no room for {self.target.name} in {self.target.parent}: {needs}; make room")

    def _beside(self, ending: str) -> Path:
        return self.target.with_name(self.target.name + ending)

    def _have(self) -> int:
        return self._beside(".part").stat().st_size if self._beside(".part").exists() else 0

    def _discard(self) -> None:
        self._beside(".part").unlink(missing_ok=True)
        self._beside(".part.json").unlink(missing_ok=True)

    def _validator(self) -> str | None:
        """What proves that the part is of this address's present file; None if nothing does."""
        try:
            url, validator = json.loads(self._beside(".part.json").read_text("utf-8"))
            return validator if url == self.url and isinstance(validator, str) else None
        except (OSError, ValueError, TypeError):
            return None  # no note, or one that was cut short: the part is of no use
