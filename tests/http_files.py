"""A web server of files for tests, with ETags, ranges, and faults on demand."""

import threading
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


@dataclass
class HttpFiles:
    """`with HttpFiles({"a.jpg": data}) as web:` serves at `web.url` until the block ends.

    files       bodies by name; may change while it serves
    faults      for a name what its next answers are: a status, `drop` (half of the body), or `stall` (nothing for 3 s)
    no_head     answer HEAD with 405
    validators  whether answers have an ETag
    """

    files: dict[str, bytes]
    faults: dict[str, list[int | str]] = field(default_factory=dict)
    no_head: bool = False
    validators: bool = True
    asked: list[str] = field(default_factory=list)  # METHOD name [range]
    url: str = ""

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def count(self, method: str) -> int:
        return sum(one.startswith(method) for one in self.asked)

    def stall(self) -> None:
        self._stop.wait(3)


def _handler(web: HttpFiles) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/").partition("?")[0]
            span = self.headers.get("Range", "")
            web.asked.append(f"{self.command} {name} {span}".strip())
            if self.command == "HEAD" and web.no_head:
                return self._end(405)
            faults = web.faults.get(name, [])
            fault = faults.pop(0) if faults else None
            if fault == "stall":
                return web.stall()
            if isinstance(fault, int):
                return self._end(fault)
            if name not in web.files:
                return self._end(404)
            body, status = web.files[name], 200
            headers = {"ETag": f'"{sha256(body).hexdigest()[:16]}"'} if web.validators else {}
            if span:
                first, _, last = span.removeprefix("bytes=").partition("-")
                end = min(int(last) + 1 if last else len(body), len(body))
                if int(first) >= len(body):
                    return self._end(416)
                headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(body)}"
                body, status = body[int(first) : end], 206
            self.send_response(status)
            for header, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if fault == "drop" else body)

        do_HEAD = do_GET

        def _end(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
