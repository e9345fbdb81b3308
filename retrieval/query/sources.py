"""Query images that are not files, standard input and addresses: brought into files while they are asked with."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from indexer.errors import ImageError
from indexer.images.decode import SNIFF_BYTES, sniff
from indexer.images.remote import MAX_BYTES, fetch_image
from indexer.store.protocol import is_url

STDIN = "-"


@contextmanager
def as_files(sources: Sequence[str], *, allow_private: bool = False) -> Iterator[dict[str, Path]]:
    """The file of each query image, by what was given; those that were fetched are gone when the block ends.

    sources        paths, http and https addresses, and `-` for standard input
    allow_private  see `indexer.http_files.fetch_bytes`
    Raises DownloadError for an address, ImageError for what is no image.
    """
    with tempfile.TemporaryDirectory(prefix="seenit-query-") as folder:
        files: dict[str, Path] = {}
        for number, source in enumerate(dict.fromkeys(sources)):
            if source != STDIN and not is_url(source):
                files[source] = Path(source)
                continue
            data = (
                sys.stdin.buffer.read(MAX_BYTES + 1)
                if source == STDIN
                else fetch_image(source, allow_private=allow_private)
            )
            name = "standard input" if source == STDIN else source
            if len(data) > MAX_BYTES:
                raise ImageError(name, f"larger than {MAX_BYTES / 1e6:.0f} MB")
            if sniff(data[:SNIFF_BYTES]) is None:
                raise ImageError(name, "not an image of a format that is read here")
            files[source] = Path(folder) / f"query-{number}"
            files[source].write_bytes(data)
        yield files
