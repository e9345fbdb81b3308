"""The page's files, as they lie in the package: a fixed set of names, so that no address leads anywhere else."""

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from .refusal import Refusal

PAGE = Path(__file__).parent / "page"
THEME = Path(__file__).parents[2] / "indexer" / "pages" / "theme.css"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".webmanifest": "application/manifest+json",
}


class Pages:
    """The files below a folder that are of a known kind, by their address."""

    def __init__(self, folder: Path = PAGE, theme: Path = THEME) -> None:
        self._files = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.is_symlink() and path.suffix in TYPES
        }
        self._files["theme.css"] = theme

    def response(self, request: Request, address: str) -> Response:
        """A file; what looks like a place within the page, `library`, is the page itself. Refusal 404 for the rest."""
        path = self._files.get(address)
        if path is None and "." not in address:
            path = self._files.get("index.html")
        if path is None:
            raise Refusal(404, f"there is nothing at /{address[:200]}; the API is described at /docs")
        data = path.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        headers = {"Cache-Control": "no-cache", "ETag": etag}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=TYPES[path.suffix])
