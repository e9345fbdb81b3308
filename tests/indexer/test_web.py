"""Files by address: limits of size and time, and what may not be connected to."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from indexer.errors import DownloadError
from indexer.http_files import fetch_bytes
from indexer.web import is_public

BODY = b"x" * 50_000


class Asked(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        asked.append(self.headers["Host"] + self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            return self.end_headers()
        self.send_response(404 if self.path == "/none" else 200)
        if self.path == "/long":
            self.send_header("Content-Length", str(10**9))
        self.end_headers()
        if self.path == "/slow":
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.5)
        self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        pass


asked: list[str] = []


@pytest.fixture
def port() -> Iterator[int]:
    asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Asked) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server.server_port
        server.shutdown()


def fetch(url: str, **more: Any) -> bytes:
    return fetch_bytes(url, **{"max_bytes": 100_000, "timeout_s": 2.0, "allow_private": True, **more})


def test_a_file_comes_whole_and_redirects_are_followed(port: int) -> None:
    assert fetch(f"http://127.0.0.1:{port}/image.jpg") == BODY
    assert fetch(f"http://localhost:{port}/to/http://127.0.0.1:{port}/image.jpg") == BODY


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "says"), [("none", "404"), ("long", "larger than 0 MB"), ("slow", "did not come within|nothing came")]
)
def test_limits(port: int, path: str, says: str) -> None:
    began = time.monotonic()
    with pytest.raises(DownloadError, match=says) as caught:
        fetch(f"http://127.0.0.1:{port}/{path}", max_bytes=40_000 if path == "long" else 100_000, timeout_s=1.0)
    assert time.monotonic() - began < 20 and "\n" not in str(caught.value)
    with pytest.raises(DownloadError, match="larger"):  # not announced
        fetch(f"http://127.0.0.1:{port}/", max_bytes=40_000)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0.0.0.0", "[::1]", "[::ffff:7f00:1]"]
)
def test_no_private_address_is_connected_to(port: int, host: str) -> None:
    with pytest.raises(DownloadError, match=r"own network; .*--allow-private|cannot fetch"):
        fetch(f"http://{host}:{port}/", allow_private=False)
    assert asked == []


@pytest.mark.slow
def test_the_address_that_is_connected_to_is_the_one_that_was_looked_at(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of the public that becomes a private one when it is asked again (DNS rebinding), and a redirect to one."""
    real, answers = socket.getaddrinfo, ["93.184.215.14", "127.0.0.1"]
    connected: list[str] = []

    def resolve(host: str, *args: Any, **more: Any) -> Any:
        return real(answers.pop(0) if host == "pictures.example" and answers else host, *args, **more)

    def connect(address: tuple[str, int], *_: Any, **__: Any) -> Any:
        connected.append(address[0])
        raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(DownloadError):
        fetch(f"http://pictures.example:{port}/", allow_private=False)
    assert connected == ["93.184.215.14"]


def test_a_redirect_to_a_private_address_is_refused(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address counts as public here; the host it redirects to resolves to this machine."""
    monkeypatch.setattr("indexer.web.is_public", lambda address: address == "127.0.0.1")
    with pytest.raises(DownloadError, match="--allow-private"):
        fetch(f"http://127.0.0.1:{port}/to/http://[::1]:{port}/image.jpg", allow_private=False)
    assert asked == [f"127.0.0.1:{port}/to/http://[::1]:{port}/image.jpg"]
    assert fetch(f"http://127.0.0.1:{port}/to//image.jpg", allow_private=False) == BODY  # relative, and the name kept
    assert asked[-1] == f"127.0.0.1:{port}/image.jpg"


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "fe80::1%eth0", "fd00::1"]
)
@pytest.mark.parametrize("form", ["{}", "::ffff:{}", "64:ff9b::{}"])
def test_private_addresses_in_every_form(address: str, form: str) -> None:
    if ":" in address and form != "{}":
        return
    assert not is_public(form.format(address))
    assert is_public("93.184.215.14") and is_public("2606:2800:21f:cb07:6820:80da:af6b:8b2c")
    assert is_public("64:ff9b::93.184.215.14") and not is_public("224.0.0.1")
