"""Files at http and https addresses, whole or in parts: the one reader for sources, queries and added images.

Answers that another one may follow (429, 5xx, a broken connection) are asked again after a pause; all that is refused
is said in one line. See `web` for the client and its rules.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from .errors import DownloadError, ImageError
from .web import (
    body_range,
    failure,
    http_client,
    is_lasting,
    printable_url,
    public_only,
    refused,
    retry_after_s,
    status_of,
    within,
)

T = TypeVar("T")
TIMEOUT_S = 20.0  # for one answer, below what a decoder process is given for an image
TRIES = 3
PAUSE_S = 0.3  # before the second try, then twice as long
MAX_PAUSE_S = 3.0
_BY_HAND = "download it and give the file"


@dataclass(frozen=True)
class FileStat:
    """What a server tells of a file without its body; None for what it does not tell."""

    size: int | None
    time_s: float | None
    etag: str | None


def stat_http(address: str, *, allow_private: bool = False) -> FileStat:
    """Size, time and ETag of a file; FileNotFoundError where there is none, DownloadError where that cannot be told."""
    return _tried(address, lambda: _head(address, allow_private))


def read_http(
    address: str,
    start: int = 0,
    count: int | None = None,
    *,
    limit: int,
    allow_private: bool = False,
    total_s: float | None = None,
) -> bytes:
    """`count` bytes from `start` on, all of them for None.

    limit          bytes that a whole file may have; ImageError where it has more
    allow_private  also addresses that only this machine or its network reaches; without, proxies are not asked either,
                   since they would connect in our place
    total_s        for all tries together; None: each has TIMEOUT_S
    FileNotFoundError where there is no such file, DownloadError where it cannot be had.
    """
    return _tried(address, lambda: _get(address, start, count, limit, allow_private), total_s)


def fetch_bytes(url: str, *, max_bytes: int, timeout_s: float, allow_private: bool = False) -> bytes:
    """The whole body of a file that a user named; DownloadError in one line, also where it is not there or larger.

    timeout_s  for all of it, redirects and tries included
    """
    try:
        return read_http(url, limit=max_bytes, allow_private=allow_private, total_s=timeout_s)
    except FileNotFoundError as error:
        raise refused(url, str(error.strerror)) from None
    except ImageError:
        raise refused(url, f"it is larger than {max_bytes / 1e6:.0f} MB", _BY_HAND) from None


def _tried(address: str, ask: Callable[[], T], total_s: float | None = None) -> T:
    """What `ask` gives, asked again after a pause where that may help."""
    pause_s = PAUSE_S
    ends = None if total_s is None else time.monotonic() + total_s
    for attempt in range(TRIES):
        left_s = TIMEOUT_S if ends is None else max(0.0, ends - time.monotonic())
        try:
            return within(left_s, ask)
        except _Again as error:
            reason, pause_s = str(error), max(pause_s, error.after_s)
        except TimeoutError:
            reason = f"it did not come within {TIMEOUT_S if total_s is None else total_s:g} s"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = failure(error)
            if is_lasting(error):
                break
        pause = min(pause_s, MAX_PAUSE_S)
        if attempt == TRIES - 1 or (ends is not None and time.monotonic() + pause >= ends):
            break
        time.sleep(pause)
        pause_s *= 2
    raise refusal(address, reason)


def refusal(address: str, reason: str) -> DownloadError:
    return refused(address, reason, "check the address, or try again later")


class _Again(Exception):
    """A server's answer that another one may follow."""

    def __init__(self, reason: str, after_s: float) -> None:
        super().__init__(reason)
        self.after_s = after_s


def _head(address: str, allow_private: bool) -> FileStat:
    with http_client(TIMEOUT_S, TIMEOUT_S, None if allow_private else public_only()) as client:
        answer = client.head(address)
    if answer.status_code in (405, 501):  # a server that knows no HEAD: the image itself tells
        return FileStat(None, None, None)
    _check_status(address, answer)
    length = answer.headers.get("Content-Length", "")
    return FileStat(int(length) if length.isdigit() else None, *_validators(answer))


def _get(address: str, start: int, count: int | None, limit: int, allow_private: bool) -> bytes:
    last = "" if count is None else str(start + count - 1)
    headers = {} if count is None and not start else {"Range": f"bytes={start}-{last}"}
    with (
        http_client(TIMEOUT_S, TIMEOUT_S, None if allow_private else public_only()) as client,
        client.stream("GET", address, headers=headers) as answer,
    ):
        if answer.status_code == 416:
            return b""
        _check_status(address, answer)
        begin, length = body_range(answer)
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise refusal(address, "the server sends it compressed, which was not asked for")
        if begin != start and not (answer.status_code == 200 and begin == 0):
            raise refusal(address, "the server sends another part than was asked for")
        skip = start - (begin or 0)
        if skip > limit:
            raise refusal(address, f"its server gives no parts of files; {_BY_HAND}")
        wanted = limit + 1 if count is None else count
        body = bytearray()
        for chunk in answer.iter_raw():
            body += chunk
            if len(body) >= skip + wanted:
                break
        data = bytes(body[skip : skip + wanted])
        if count is None and len(data) > limit:
            raise ImageError(printable_url(address), too_large(length or len(data), limit))
        return data


def _check_status(address: str, answer: Any) -> None:
    if answer.status_code in (404, 410):
        raise FileNotFoundError(2, status_of(answer))
    if answer.status_code == 429 or answer.status_code >= 500:
        raise _Again(status_of(answer), retry_after_s(answer))
    if answer.status_code not in (200, 206):
        raise refusal(address, status_of(answer))


def _validators(answer: Any) -> tuple[float | None, str | None]:
    """Time of change in seconds, and ETag."""
    try:
        time_s = parsedate_to_datetime(answer.headers.get("Last-Modified", "")).timestamp()
    except (ValueError, TypeError, OverflowError):
        time_s = None
    return time_s, answer.headers.get("ETag")


def too_large(size: int, limit: int) -> str:
    return f"{size / 1e6:.0f} MB, more than the limit of {limit / 1e6:.0f} MB"
