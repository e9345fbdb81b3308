"""Files at addresses: `http(s)://` through our own client and its rules, all others through fsspec.

fsspec and its file systems are optional (`seenit[cloud]`), and imported here alone. Credentials come from where the
provider's own tools take them (environment, profile, instance); none is read, kept or printed here.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from ..errors import AwayError, ImageError, SeenitError, first_line
from ..http_files import TIMEOUT_S, FileStat, read_http, refusal, stat_http, too_large
from ..web import printable_url, within

BLOCK_BYTES = 1 << 18  # read at a time of a file that is walked through
_CLOUD = "install it with: pip install 'seenit[cloud]'"


def is_http(address: str) -> bool:
    return address.lower().startswith(("http://", "https://"))


def stat_remote(address: str, *, allow_private: bool = False) -> FileStat:
    """Size, time and ETag of a file; FileNotFoundError where there is none, DownloadError where that cannot be told."""
    if is_http(address):
        return stat_http(address, allow_private=allow_private)
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
        return read_http(address, start, wanted, limit=limit, allow_private=allow_private)
    filesystem, path = filesystem_of(address)
    with _in_words(address):
        if wanted is None:
            there = within(TIMEOUT_S, lambda: filesystem.info(path)).get("size")
            if there is not None and there > limit:
                raise ImageError(printable_url(address), too_large(there, limit))
        end = None if wanted is None else start + wanted
        return bytes(within(TIMEOUT_S, lambda: filesystem.cat_file(path, start=start, end=end)))


class RemoteFile(io.RawIOBase):
    """A file at an address, read in ranges: for tar files and Parquet, of which parts are needed."""

    def __init__(self, address: str, *, allow_private: bool = False, stat: FileStat | None = None) -> None:
        """AwayError where it is not there, SeenitError where its server tells no size.

        stat  where it is known already; nothing is asked then
        """
        super().__init__()
        self.address, self._allow_private = address, allow_private
        try:
            self.stat = stat or stat_remote(address, allow_private=allow_private)
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
        raise refusal(address, reason_of(error)) from None


def reason_of(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "access is denied"
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    return first_line(error) or type(error).__name__


def stat_of_info(info: dict[str, Any]) -> FileStat:
    """Of what fsspec's file systems tell, each by names of its own."""
    etag = next((str(info[name]) for name in ("ETag", "etag", "md5Hash", "content_md5") if info.get(name)), None)
    names = ("LastModified", "last_modified", "mtime", "updated", "created")
    moment = next((info[name] for name in names if info.get(name) is not None), None)
    time_s, exact = _seconds(moment)
    return FileStat(info.get("size"), time_s, etag or exact)


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
