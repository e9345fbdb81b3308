"""Asks a server for a file, or for the rest of one, and tells an answer worth reading from all others.

Surprising: what a server answers is never trusted but checked against what was asked for, and urllib's one timeout is
not enough. Connecting has a shorter one than reading, a connection that crawls counts as broken, and resolving a name
can hang far beyond any timeout.
"""

import http.client
import re
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from typing import IO
from urllib.parse import urlsplit, urlunsplit

from ..errors import DownloadError, on_one_line

CHUNK = 1 << 18  # bytes read at once
MAX_REDIRECTS = 5
PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})  # worth another try
_HEADERS = {"User-Agent": "seenit", "Accept-Encoding": "identity"}


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


DEFAULT_PATIENCE = Patience()


class Interrupted(Exception):
    """This try failed and another may go on from the bytes that are there."""

    def __init__(self, reason: object, wait_s: float = 0.0) -> None:
        super().__init__(on_one_line(reason))
        self.wait_s = wait_s


class Spoilt(Exception):
    """The bytes that are there cannot become the file; begin again, once."""


def probe(url: str, timeout_s: float = 4.0) -> None:
    """Raise DownloadError unless the server answers for `url` within `timeout_s`, name resolution included.

    It asks in a thread of its own, because resolving a name without a network can hang far beyond any timeout.
    """
    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD", headers=_HEADERS)
            with _opener(timeout_s).open(request, timeout=timeout_s) as response:
                refuse_web_page(response.headers, b"", url)
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
        raise DownloadError(f"cannot reach {urlsplit(url).netloc}: {on_one_line(_reason(error))}") from error


def request_file(url: str, start: int, validator: str | None, patience: Patience) -> http.client.HTTPResponse | None:
    """The server's answer with a body worth reading; None if it says that all bytes are here already.

    start      ask for the bytes from here on, if `validator` still proves the same file; the whole file may come anyway
    DownloadError if asking again is no use, Interrupted if it may be, Spoilt if the bytes before `start` are worthless.
    """
    headers = dict(_HEADERS)
    if validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = _opener(patience.stall_s).open(request, timeout=patience.connect_s)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and start:
                if error.headers.get("Content-Range", "").replace(" ", "") == f"bytes*/{start}":
                    return None
                raise Spoilt("the server's file is not the one that was begun") from error
            if error.code in PASSING_STATUS:
                after = error.headers.get("Retry-After", "")
                raise Interrupted(
                    f"the server answered {error.code} {error.reason}", float(after) if after.isdigit() else 0.0
                ) from error
            raise refused(url, f"the server answered {error.code} {on_one_line(error.reason)}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = _reason(error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise refused(url, f"its certificate is not trusted ({on_one_line(reason.verify_message)})") from error
        raise Interrupted(reason) from error
    complaint = ""
    if response.status not in (200, 206) or (response.status == 206 and not start):
        complaint = f"the server answered {response.status}, not a file"
    elif response.headers.get("Content-Encoding", "identity") != "identity":
        complaint = "the server sends it compressed, which was not asked for"
    if complaint:
        response.close()
        raise refused(url, complaint)
    return response


def read_chunks(response: http.client.HTTPResponse, length: int | None, patience: Patience) -> Iterator[bytes]:
    """The body as it arrives, never beyond its announced length; Interrupted on a break, a stall or a crawl."""
    left = length if length is not None else sys.maxsize
    since, arrived = time.monotonic(), 0
    while left > 0:
        try:
            chunk = response.read1(min(CHUNK, left))
        except TimeoutError as error:
            raise Interrupted(f"nothing came for {patience.stall_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise Interrupted(error) from error
        if not chunk:
            return
        yield chunk
        left -= len(chunk)
        arrived += len(chunk)
        elapsed = time.monotonic() - since
        if elapsed > patience.stall_s:
            if arrived < patience.crawl * elapsed:
                raise Interrupted(f"only {arrived:,} bytes came in {elapsed:.0f} s")
            since, arrived = time.monotonic(), 0


def validator_of(headers: Message) -> str | None:
    """A strong ETag, else the date of change; a weak ETag may not stand in If-Range (RFC 9110, 13.1.5)."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified")


def resumed_total(headers: Message, start: int, validator: str | None) -> int | None:
    """The file's whole length by a 206 answer, which must begin at `start` of the file that was begun."""
    matched = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", "").strip())
    if matched is None or int(matched[1]) != start:
        raise Spoilt("the server sent another range than was asked for")
    now = validator_of(headers)
    if now is not None and now != validator:
        raise Spoilt("the file changed at the server between two parts")
    return None if matched[3] == "*" else int(matched[3])


def refuse_web_page(headers: Message, beginning: bytes, url: str) -> None:
    start = beginning[:64].lstrip().lower()
    if headers.get_content_type() == "text/html" or start.startswith((b"<!doctype html", b"<html")):
        raise DownloadError(
            f"cannot fetch {printable_url(url)}: a web page came instead of a file;"
            " a proxy or a login page of the network may be in the way, open the address in a browser to see it"
        )


def refused(url: str, reason: str) -> DownloadError:
    return DownloadError(f"cannot fetch {printable_url(url)}: {reason}; open the address in a browser to see why")


def printable_url(url: str) -> str:
    """The address without query and user, which may hold secrets."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _reason(error: BaseException) -> BaseException | str:
    """What lies behind urllib's wrapping."""
    return error.reason if isinstance(error, urllib.error.URLError) else error


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
        self,
        request: urllib.request.Request,
        body: IO[bytes],
        code: int,
        message: str,
        headers: http.client.HTTPMessage,
        new_url: str,
    ) -> urllib.request.Request | None:
        was, now = urlsplit(request.full_url).scheme, urlsplit(new_url).scheme
        if now not in ("http", "https") or (was == "https" and now == "http"):
            body.close()
            raise DownloadError(
                f"cannot fetch {printable_url(request.full_url)}: it redirects to {printable_url(new_url)},"
                " which is not secure; check the address"
            )
        return super().redirect_request(request, body, code, message, headers, new_url)
