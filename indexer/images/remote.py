"""Images at addresses."""

MAX_BYTES = 100_000_000  # of one image; chosen, not measured: phones' largest photos have some 30 MB
TIMEOUT_S = 30.0  # for one address; likewise


def fetch_image(url: str, *, allow_private: bool = False) -> bytes:
    """The bytes at an http or https address, see `indexer.http_files.fetch_bytes`; DownloadError in one line."""
    from ..http_files import fetch_bytes  # here, since it loads an HTTP client and most images are files

    return fetch_bytes(url, max_bytes=MAX_BYTES, timeout_s=TIMEOUT_S, allow_private=allow_private)
