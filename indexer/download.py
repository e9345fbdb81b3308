"""Fetches one file over HTTP, whole or not at all.

Bytes gather in `TARGET.part`; the file gets its name only when it is complete and has passed every check, so a file
that exists is a file that was verified. A broken-off download goes on where it stopped, in the same run or in a later
one, but only while the server still vouches (If-Range with the ETag or date kept in `TARGET.part.json`) that it has
the same file. What a server says of sizes and ranges is compared with what arrives, never believed.
"""

import errno
import hashlib
import http.client
import itertools
import json
import os
import re
import shutil
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock, Timeout
from tqdm import tqdm

from .errors import DownloadError

CHUNK = 1 << 18  # bytes read at once
MAX_SIZE = 8 << 30  # bytes; the largest official backbone is 4.5 GB
MAX_REDIRECTS = 5
PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})  # worth another try
DISK_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG})


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server before giving up."""

    connect_s: float = 10.0  # to connect, TLS included
    stall_s: float = 30.0  # without a byte, or at a crawl, before the connection counts as broken
    crawl: float = 512.0  # bytes per second below which a connection crawls
    attempts: int = 5  # failed tries in a row; a try that brought new bytes starts the count again
    backoff_s: float = 1.0  # before the second try, then doubled each time
    longest_backoff_s: float = 30.0  # also the bound of a server's Retry-After
    lock_s: float = 3600.0  # for another process that is fetching the same file


class _Interrupted(Exception):
    """This try failed and another may go on from the bytes that are there."""

    def __init__(self, reason: object, wait_s: float = 0.0) -> None:
        super().__init__(_one_line(reason))
        self.wait_s = wait_s


class _Spoilt(Exception):
    """The bytes that are there cannot become the file; begin again, once."""


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    max_size: int = MAX_SIZE,
    check: Callable[[Path], object] | None = None,
    progress: bool = True,
    patience: Patience = Patience(),
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
        raise DownloadError(f"cannot fetch {_shown(url)}: only http and https addresses are fetched")
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


def probe(url: str, timeout_s: float = 4.0) -> None:
    """Raise DownloadError unless the server answers for `url` within `timeout_s`, name resolution included.

    It asks in a thread of its own, because resolving a name without a network can hang far beyond any timeout.
    """
    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD", headers=_HEADERS)
            with _opener(timeout_s).open(request, timeout=timeout_s) as response:
                _refuse_web_page(response.headers, b"", url)
            outcome.append(None)
        except Exception as error:  # handed to the caller below
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True, name="seenit-probe")
    thread.start()
    thread.join(timeout_s)
    error = outcome[0] if outcome else TimeoutError(f"no answer within {timeout_s:.0f} s")
    if isinstance(error, DownloadError):
        raise error
    if error is not None:
        raise DownloadError(f"cannot reach {urlsplit(url).netloc}: {_one_line(_reason(error))}") from error


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
            except _Spoilt as spoilt:
                self.discard()
                if not may_restart:
                    raise DownloadError(
                        f"cannot fetch {_shown(self.url)}: {spoilt}, twice; the file or the way to it is broken,"
                        " try later or from another network"
                    ) from spoilt
                may_restart, most = False, 0
            except _Interrupted as interrupted:
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
        headers = dict(_HEADERS)
        if validator:
            headers |= {"Range": f"bytes={start}-", "If-Range": validator}
        response = self.open(urllib.request.Request(self.url, headers=headers), start)
        if response is None:
            return start  # 416: the part is already the whole file
        with response:
            announced = response.headers.get("Content-Length")
            length = int(announced) if announced and announced.isdigit() else None  # bytes of this answer
            if response.status == 206:
                total = _resumed_total(response.headers, start, validator)
            else:
                start, total = 0, length  # the server ignores ranges or has another file by now
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise self.refused("the server sends it compressed, which was not asked for")
            self.make_room(start, total)
            chunks = _chunks(response, length, self.patience)
            first = next(chunks, b"")
            if not start:  # before the part is touched: a login page must not cost the bytes that are here
                _refuse_web_page(response.headers, first, self.url)
            self.receive(itertools.chain([first], chunks), start, length, response.headers)
        return total

    def open(self, request: urllib.request.Request, start: int) -> http.client.HTTPResponse | None:
        """The server's answer with a body worth reading; None if it says that all bytes are here already."""
        try:
            response = _opener(self.patience.stall_s).open(request, timeout=self.patience.connect_s)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and start:
                    if error.headers.get("Content-Range", "").replace(" ", "") == f"bytes*/{start}":
                        return None
                    raise _Spoilt("the server's file is not the one that was begun") from error
                if error.code in PASSING_STATUS:
                    after = error.headers.get("Retry-After", "")
                    raise _Interrupted(
                        f"the server answered {error.code} {error.reason}", float(after) if after.isdigit() else 0.0
                    ) from error
                raise self.refused(f"the server answered {error.code} {_one_line(error.reason)}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = _reason(error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise self.refused(f"its certificate is not trusted ({_one_line(reason.verify_message)})") from error
            raise _Interrupted(reason) from error
        if response.status not in (200, 206) or (response.status == 206 and not start):
            response.close()
            raise self.refused(f"the server answered {response.status}, not a file")
        return response

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
            raise self.refused(f"it is longer than the {self.max_size:,} bytes allowed")
        if length is not None and end < start + length:
            raise _Interrupted(f"the connection broke off at {end:,} of {start + length:,} bytes")

    def accept(self, expected: int | None) -> None:
        """Give the complete part its name, or raise _Spoilt."""
        have = self.have()
        if expected is not None and have != expected:
            raise _Spoilt(f"{have:,} bytes arrived where the server announced {expected:,}")
        if self.size is not None and have != self.size:
            raise _Spoilt(f"{have:,} bytes arrived of a file of {self.size:,}")
        if have == 0:
            raise _Spoilt("the file is empty")
        if self.sha256 is not None and not _sha256(self.part).startswith(self.sha256.lower()):
            raise _Spoilt(f"its SHA-256 is not {self.sha256}")
        if complaint := self.complaint():
            raise _Spoilt(f"it is not what was expected ({complaint})")
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
            return _one_line(error)

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
        if validator := _validator(headers):
            self.note.write_text(json.dumps({"url": self.url, "validator": validator}), "utf-8")
        else:
            self.note.unlink(missing_ok=True)

    def make_room(self, start: int, total: int | None) -> None:
        """Refuse at once what cannot end well."""
        if total is None:
            return
        if self.size is not None and total != self.size:
            raise self.refused(f"the server announces {total:,} bytes of a file of {self.size:,}")
        if total > self.max_size:
            raise self.refused(f"the server announces {total:,} bytes where {self.max_size:,} are allowed")
        free = shutil.disk_usage(self.target.parent).free
        if total - start > free:
            raise DownloadError(
                f"no room for {self.target.name} in {self.target.parent}: {total - start:,} bytes are needed and"
                f" {free:,} free; make room and run it again"
            )

    def refused(self, reason: str) -> DownloadError:
        return DownloadError(f"cannot fetch {_shown(self.url)}: {reason}; open the address in a browser to see why")

    def given_up(self, interrupted: _Interrupted, failures: int) -> DownloadError:
        kept = f" (it goes on after the {self.have():,} bytes that are here)" if self.validator() else ""
        times = f"{failures} times in a row" if failures > 1 else "once"
        return DownloadError(
            f"cannot fetch {_shown(self.url)}: {interrupted}, {times}; check the network and run it again{kept}"
        )

    def refuse_disk(self, error: OSError) -> NoReturn:
        reason = "the disk is full" if error.errno in DISK_FULL else _one_line(error.strerror or error)
        raise DownloadError(
            f"cannot write {error.filename or self.part}: {reason}; make room or allow writing, and run it again"
        ) from error


_HEADERS = {"User-Agent": "seenit", "Accept-Encoding": "identity"}


def _chunks(response: http.client.HTTPResponse, length: int | None, patience: Patience) -> Iterator[bytes]:
    """The body as it arrives, never beyond its announced length; _Interrupted on a break, a stall or a crawl."""
    left = length if length is not None else sys.maxsize
    since, arrived = time.monotonic(), 0
    while left > 0:
        try:
            chunk = response.read1(min(CHUNK, left))
        except TimeoutError as error:
            raise _Interrupted(f"nothing came for {patience.stall_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(error) from error
        if not chunk:
            return
        yield chunk
        left -= len(chunk)
        arrived += len(chunk)
        elapsed = time.monotonic() - since
        if elapsed > patience.stall_s:
            if arrived < patience.crawl * elapsed:
                raise _Interrupted(f"only {arrived:,} bytes came in {elapsed:.0f} s")
            since, arrived = time.monotonic(), 0


def _validator(headers: Message) -> str | None:
    """A strong ETag, else the date of change; a weak ETag may not stand in If-Range (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified")


def _resumed_total(headers: Message, start: int, validator: str | None) -> int | None:
    """The file's whole length by a 206 answer, which must begin at `start` of the file that was begun."""
    matched = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", "").strip())
    if matched is None or int(matched[1]) != start:
        raise _Spoilt("the server sent another range than was asked for")
    now = _validator(headers)
    if now is not None and now != validator:
        raise _Spoilt("the file changed at the server between two parts")
    return None if matched[3] == "*" else int(matched[3])


def _refuse_web_page(headers: Message, beginning: bytes, url: str) -> None:
    start = beginning[:64].lstrip().lower()
    if headers.get_content_type() == "text/html" or start.startswith((b"<!doctype html", b"<html")):
        raise DownloadError(
            f"cannot fetch {_shown(url)}: a web page came instead of a file;"
            " a proxy or a login page of the network may be in the way, open the address in a browser to see it"
        )


def _opener(read_s: float) -> urllib.request.OpenerDirector:
    """urllib's opener with proxies from the environment, bounded redirects, and a timeout of its own for reading."""

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            self.sock.settimeout(read_s)

    class Secure(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            self.sock.settimeout(read_s)

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, request)

    class SecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, request, context=ssl.create_default_context())

    return urllib.request.build_opener(PlainHandler, SecureHandler, _Redirects)


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS
    max_repeats = 2

    def redirect_request(  # the signature is urllib's
        self, request, body, code, message, headers, new_url
    ) -> urllib.request.Request | None:
        was, now = urlsplit(request.full_url).scheme, urlsplit(new_url).scheme
        if now not in ("http", "https") or (was == "https" and now == "http"):
            body.close()
            raise DownloadError(
                f"cannot fetch {_shown(request.full_url)}: it redirects to {_shown(new_url)}, which is not secure;"
                " check the address"
            )
        return super().redirect_request(request, body, code, message, headers, new_url)


def _reason(error: BaseException) -> BaseException | str:
    """What lies behind urllib's wrapping."""
    return error.reason if isinstance(error, urllib.error.URLError) else error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _shown(url: str) -> str:
    """The address without query and user, which may hold secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())[:200] or type(reason).__name__
