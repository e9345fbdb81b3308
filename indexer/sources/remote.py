"""Files at addresses: `http(s)://` through our own client and its rules, all others through fsspec.

fsspec and its file systems are optional (`seenit[cloud]`), and imported here alone. Credentials come from where the
provider's own tools take them (environment, profile, instance); none is read, kept or printed here.
"""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from ..errors import AwayError, DownloadError, ImageError, SeenitError, first_line
from ..web import (
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
BLOCK_BYTES = 1 << 18  # read at a time of a file that is walked through
_CLOUD = "install it with: pip install 'seenit[cloud]'"


@dataclass(frozen=True)
class RemoteStat:
    """What is known of a file at an address without reading it; None for what its server does not tell."""

    size: int | None
    time_s: float | None
    etag: str | None


def is_http(address: str) -> bool:
    return address.lower().startswith(("http://", "https://"))


def stat_remote(address: str, *, allow_private: bool = False) -> RemoteStat:
    """Size, time and ETag of a file; FileNotFoundError where there is none, DownloadError where that cannot be told."""
    if is_http(address):
        return _tried(address, lambda: _head(address, allow_private))
    filesystem, path = filesystem_of(address)
    with _in_words(address):
        return stat_of_info(within(TIMEOUT_S, lambda: filesystem.info(path)))


def read_range(
    address: str,
    start: int = 0,
    size: int | None = None,
    *,
    limit: int,
    most: int | None = None,
    allow_private: bool = False,
) -> bytes:
    """`size` bytes from `start` on, all of them for None; of those the `most` first.

    FileNotFoundError where there is no such file, DownloadError where it cannot be had, ImageError where it is larger
    than `limit` bytes.
    """
    wanted = size if most is None else most if size is None else min(size, most)
    if is_http(address):
        return _tried(address, lambda: _get(address, start, wanted, limit, allow_private))
    filesystem, path = filesystem_of(address)
    with _in_words(address):
        if wanted is None:
            there = within(TIMEOUT_S, lambda: filesystem.info(path)).get("size")
            if there is not None and there > limit:
                raise ImageError(printable_url(address), _too_large(there, limit))
        end = None if wanted is None else start + wanted
        return bytes(within(TIMEOUT_S, lambda: filesystem.cat_file(path, start=start, end=end)))


class RemoteFile(io.RawIOBase):
    """A file at an address, read in ranges: for tar files and Parquet, of which parts are needed."""

    def __init__(self, address: str, *, allow_private: bool = False) -> None:
        """AwayError where it is not there, SeenitError where its server tells no size."""
        super().__init__()
        self.address, self._allow_private = address, allow_private
        try:
            self.stat = stat_remote(address, allow_private=allow_private)
        except FileNotFoundError:
            raise AwayError(f"nothing is at {printable_url(address)}; check the address") from None
        if self.stat.size is None:
            raise SeenitError(f"the server of {printable_url(address)} tells no size; download it and give the file")
        self._size, self._at = self.stat.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        if not count:
            return 0
        data = read_range(self.address, self._at, count, limit=count, allow_private=self._allow_private)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_remote(address: str, *, allow_private: bool = False) -> io.BufferedReader:
    """A file at an address, for reading here and there."""
    return io.BufferedReader(RemoteFile(address, allow_private=allow_private), BLOCK_BYTES)


def filesystem_of(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it; SeenitError where it cannot be had."""
    scheme = address.partition("://")[0]
    if "::" in address:
        raise SeenitError(f"{address} is chained; give the address of the files themselves")
    try:
        import fsspec
        from fsspec.core import url_to_fs
    except ImportError:
        raise SeenitError(f"addresses of the kind {scheme}:// need fsspec; {_CLOUD}") from None
    if scheme not in fsspec.available_protocols():
        raise SeenitError(f"no addresses of the kind {scheme}:// are known; give a folder, https://, s3:// or gs://")
    try:
        return url_to_fs(address)
    except ImportError as error:
        raise SeenitError(f"addresses of the kind {scheme}:// cannot be read: {first_line(error)}; {_CLOUD}") from None
    except Exception as error:  # each file system has its own
        raise SeenitError(f"cannot read {printable_url(address)}: {first_line(error)}; check the address") from None


@contextmanager
def _in_words(address: str) -> Iterator[None]:
    """What file systems raise, as FileNotFoundError or DownloadError; each of them has exceptions of its own."""
    try:
        yield
    except (FileNotFoundError, SeenitError):
        raise
    except Exception as error:
        raise _refusal(address, reason_of(error)) from None


def reason_of(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "access is denied"
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    return first_line(error) or type(error).__name__


def stat_of_info(info: dict[str, Any]) -> RemoteStat:
    """Of what fsspec's file systems tell, each by names of its own."""
    etag = next((str(info[name]) for name in ("ETag", "etag", "md5Hash", "content_md5") if info.get(name)), None)
    names = ("LastModified", "last_modified", "mtime", "updated", "created")
    moment = next((info[name] for name in names if info.get(name) is not None), None)
    time_s, exact = _seconds(moment)
    return RemoteStat(info.get("size"), time_s, etag or exact)


def _seconds(moment: Any) -> tuple[float | None, str | None]:
    """Seconds since 1970, and the moment's own form, which may be finer."""
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            return None, moment
    if isinstance(moment, datetime):
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp(), moment.isoformat()
    return (float(moment), repr(moment)) if isinstance(moment, (int, float)) else (None, None)


# ---- http ----


def _tried(address: str, ask: Callable[[], T]) -> T:
    """What `ask` gives, asked again after a pause where that may help."""
    pause_s = PAUSE_S
    for attempt in range(TRIES):
        try:
            return within(TIMEOUT_S, ask)
        except _Again as error:
            reason, pause_s = str(error), max(pause_s, error.after_s)
        except TimeoutError:
            reason = f"it did not come within {TIMEOUT_S:g} s"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = failure(error)
            if is_lasting(error):
                break
        if attempt < TRIES - 1:
            time.sleep(min(pause_s, MAX_PAUSE_S))
            pause_s *= 2
    raise _refusal(address, reason)


def _refusal(address: str, reason: str) -> DownloadError:
    return refused(address, reason, "check the address, or try again later")


class _Again(Exception):
    """A server's answer that another one may follow."""

    def __init__(self, reason: str, after_s: float) -> None:
        super().__init__(reason)
        self.after_s = after_s


def _head(address: str, allow_private: bool) -> RemoteStat:
    with http_client(TIMEOUT_S, TIMEOUT_S, None if allow_private else public_only()) as client:
        answer = client.head(address)
    if answer.status_code in (405, 501):  # a server that knows no HEAD: the image itself tells
        return RemoteStat(None, None, None)
    _check_status(address, answer)
    length = answer.headers.get("Content-Length", "")
    return RemoteStat(int(length) if length.isdigit() else None, *_validators(answer))


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
            raise _refusal(address, "the server sends it compressed, which was not asked for")
        if begin != start and not (answer.status_code == 200 and begin == 0):
            raise _refusal(address, "the server sends another part than was asked for")
        skip = start - (begin or 0)
        if skip > limit:
            raise _refusal(address, "its server gives no parts of files; download it and give the file")
        wanted = limit + 1 if count is None else count
        body = bytearray()
        for chunk in answer.iter_raw():
            body += chunk
            if len(body) >= skip + wanted:
                break
        data = bytes(body[skip : skip + wanted])
        if count is None and len(data) > limit:
            raise ImageError(printable_url(address), _too_large(length or len(data), limit))
        return data


def _check_status(address: str, answer: Any) -> None:
    if answer.status_code in (404, 410):
        raise FileNotFoundError(2, "not found")
    if answer.status_code == 429 or answer.status_code >= 500:
        raise _Again(status_of(answer), retry_after_s(answer))
    if answer.status_code not in (200, 206):
        raise _refusal(address, status_of(answer))


def _validators(answer: Any) -> tuple[float | None, str | None]:
    """Time of change in seconds, and ETag."""
    try:
        time_s = parsedate_to_datetime(answer.headers.get("Last-Modified", "")).timestamp()
    except (ValueError, TypeError, OverflowError):
        time_s = None
    return time_s, answer.headers.get("ETag")


def _too_large(size: int, limit: int) -> str:
    return f"{size / 1e6:.0f} MB, more than the limit of {limit / 1e6:.0f} MB"
