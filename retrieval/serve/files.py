"""Files of the index over HTTP: originals with ranges, and thumbnails; nothing else, and nothing through a link."""

import os
import re
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import IO
from urllib.parse import quote

from anyio import to_thread
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from indexer.errors import SeenitError, os_reason
from indexer.images.decode import SNIFF_BYTES, sniff
from indexer.images.find import stamp_ns
from indexer.images.metadata import content_id
from indexer.index.index import Index
from indexer.store.protocol import Record, StoredFile

from ..duplicates.names import reach
from .decoding import Source
from .refusal import Refusal

CHUNK = 1 << 18  # bytes read at once
THUMBNAIL_SIZES = (160, 320, 640, 1280, 2560, 4096)  # pixels of the longer side
THUMBNAIL_CACHE_BYTES = 64 << 20
IMMUTABLE = "private, max-age=31536000, immutable"  # an id names bytes, which never change
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")

SHOWN_TYPES = {  # what browsers show; the rest is offered for saving
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "AVIF": "image/avif",
    "BMP": "image/bmp",
}


def sources(index: Index, record: Record) -> list[Source]:
    """The record's files, each with the indexed folder that it lies in."""
    found = []
    for file in record.files:
        path = index.roots.path(file.key)
        found.append(Source(index.roots.path(file.key.split("/")[0]), path, path, record.id))
    return found


def open_original(index: Index, record: Record) -> tuple[IO[bytes], Source]:
    """The first of the record's files that still holds its image, open for reading; Refusal 404 where none does."""
    why = "the index names no file"
    for source, stored in zip(sources(index, record), record.files, strict=True):
        try:
            with reach(source.top, source.path) as name:
                file = name.reading()
        except (OSError, SeenitError) as error:
            why = os_reason(error) if isinstance(error, OSError) else "a link leads to it"
            continue
        if _is_itself(file, stored, record.id):
            return file, source
        file.close()
        why = "it has changed since it was indexed; bring the index in line: seenit index"
    raise Refusal(404, f"cannot show {record.id}: {why}")


def _is_itself(file: IO[bytes], stored: StoredFile, id: str) -> bool:
    """Whether an open file is what was indexed: by size and time, or by its bytes where it was only touched."""
    status = os.fstat(file.fileno())
    if status.st_size != stored.size:
        return False
    if stamp_ns(status) == stored.mtime_ns:
        return True
    data = file.read()
    file.seek(0)
    return content_id(data) == id


class Original(StreamingResponse):
    """An open file as a response, whole or one range of it; closes the file however the response ends."""

    def __init__(self, file: IO[bytes], path: str, id: str, range_header: str | None, if_range: str | None) -> None:
        self._file = file
        size = os.fstat(file.fileno()).st_size
        etag = f'"{id}"'
        wanted = _range(range_header, size) if if_range in (None, etag) else None
        start, end = wanted if wanted is not None else (0, size)
        kind = SHOWN_TYPES.get(sniff(file.read(SNIFF_BYTES)) or "")
        headers = {
            "Accept-Ranges": "bytes",
            "Cache-Control": IMMUTABLE,
            "Content-Length": str(end - start),
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Content-Disposition": f"{'inline' if kind else 'attachment'}; filename*=UTF-8''{_quoted(path)}",
            "ETag": etag,
        }
        if wanted is not None:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        super().__init__(
            _chunks(file, start, end),
            206 if wanted is not None else 200,
            headers,
            kind or "application/octet-stream",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] == "HEAD":  # nothing is read
                await Response(None, self.status_code, dict(self.headers))(scope, receive, send)
                return
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


async def _chunks(file: IO[bytes], start: int, end: int) -> AsyncIterator[bytes]:
    file.seek(start)
    left = end - start
    while left > 0:
        data = await to_thread.run_sync(file.read, min(CHUNK, left))
        if not data:
            return
        left -= len(data)
        yield data


def _range(header: str | None, size: int) -> tuple[int, int] | None:
    """Start and end of the one range asked for; None for the whole file. Refusal 416 where it lies outside."""
    found = RANGE.fullmatch(header.replace(" ", "")) if header else None
    if found is None or found[1] == found[2] == "":
        return None
    if found[1]:
        start, end = int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)
        if found[2] and int(found[2]) < int(found[1]):
            return None  # no range at all, which is to be passed over
    else:
        start, end = max(size - int(found[2]), 0), size
    if start >= end:
        raise Refusal(416, "the range lies outside of the file", headers={"Content-Range": f"bytes */{size}"})
    return start, end


def _quoted(path: str) -> str:
    return quote(os.fsencode(os.path.basename(path)), safe="")


class ThumbnailCache:
    """The thumbnails asked for last, up to so many bytes."""

    def __init__(self, max_bytes: int = THUMBNAIL_CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self.bytes = 0

    def get(self, id: str, size_px: int) -> bytes | None:
        with self._lock:
            data = self._kept.get((id, size_px))
            if data is not None:
                self._kept.move_to_end((id, size_px))
            return data

    def put(self, id: str, size_px: int, data: bytes) -> None:
        with self._lock:
            self.bytes += len(data) - len(self._kept.pop((id, size_px), b""))
            self._kept[id, size_px] = data
            while self.bytes > self._max_bytes and self._kept:
                self.bytes -= len(self._kept.popitem(last=False)[1])


def thumbnail_size(asked_px: int) -> int:
    """The size that is made for what is asked: few sizes, so that the cache is of use."""
    return next((size for size in THUMBNAIL_SIZES if size >= asked_px), THUMBNAIL_SIZES[-1])
