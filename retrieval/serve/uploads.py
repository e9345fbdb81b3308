"""What a request sends: JSON, or multipart parts with images, which lie in a private folder meanwhile.

A body is taken as it comes and written to disk, so that a slow client costs a file and no thread.
"""

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from anyio import to_thread
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from indexer.images.metadata import content_id_of_file

from .decoding import Source
from .refusal import Refusal, busy, invalid

MAX_FILE_BYTES = 50_000_000
MAX_JSON_BYTES = 4_000_000
MAX_FILES = 64
MAX_BODY_BYTES = 500_000_000
AT_ONCE = 256  # bodies that may be under way; a slow one holds its place for minutes

Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True)
class Upload:
    """An image that came with a request."""

    part: str  # the name of its part: image, like, not, query
    source: Source


class Uploads:
    """The private folder that uploads lie in, and how many bodies are under way."""

    def __init__(self, max_file_bytes: int = MAX_FILE_BYTES, at_once: int = AT_ONCE) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="seenit-uploads-"))
        self._max_file_bytes = max_file_bytes
        self._free = at_once

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    @asynccontextmanager
    async def body(
        self, request: Request, model: type[Body], parts: Sequence[str]
    ) -> AsyncIterator[tuple[Body, list[Upload]]]:
        """The request's JSON and its images, which are gone after the block.

        parts  names that an image may come by; the JSON of a multipart body is its part `request`
        Raises Refusal: 400 and 422 for what cannot be understood, 413, 415, 429 where too much is under way.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("application/json", "multipart/form-data"):
            raise Refusal(415, "send application/json, or multipart/form-data with images")
        if self._free <= 0:
            raise busy("too many uploads are under way")
        self._free -= 1
        received: list[Upload] = []
        try:
            if kind == "application/json":
                yield parsed(await request.body(), model), received
                return
            async with request.form(max_files=MAX_FILES, max_fields=4, max_part_size=MAX_JSON_BYTES) as form:
                text: str | None = None
                for name, value in form.multi_items():
                    if isinstance(value, UploadFile):
                        if name not in parts:
                            raise Refusal(422, f"no image is expected in {name!r}; send {', '.join(parts)}")
                        received.append(await self._kept(name, value))
                    elif name == "request":
                        text = value
                    else:
                        raise Refusal(422, f"{name!r} is not known here; send images, and JSON in the part request")
            yield parsed((text or "{}").encode("utf-8", "surrogatepass"), model), received
        finally:
            self._free += 1
            for upload in received:
                with suppress(OSError):
                    os.unlink(upload.source.path)

    async def _kept(self, part: str, upload: UploadFile) -> Upload:
        name = os.path.basename(upload.filename or "").strip() or part
        if (upload.size or 0) > self._max_file_bytes:
            raise Refusal(413, f"{name[:200]} is larger than {self._max_file_bytes / 1e6:g} MB")
        path = self._folder / secrets.token_hex(16)

        def copy() -> str:
            with open(path, "x+b") as file:
                shutil.copyfileobj(upload.file, file, 1 << 20)
                file.seek(0)
                return content_id_of_file(file)

        id = await to_thread.run_sync(copy)
        return Upload(part, Source(str(self._folder), str(path), name[:200], id))


def parsed(data: bytes, model: type[Body]) -> Body:
    """A body of JSON as its model; Refusal 400 where it is no JSON, 422 where it is not as described."""
    try:
        values: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is no JSON") from None
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise invalid(error) from None
