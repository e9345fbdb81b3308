"""Downloads against a local server that breaks off, stalls and lies."""

import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from indexer.backbone.download import Download
from indexer.backbone.patience import Patience
from indexer.backbone.resolve import probe
from indexer.errors import DownloadError
from indexer.web import http_client

BODY = bytes(range(256)) * 400  # 102,400 bytes
OTHER = bytes(reversed(BODY))
SHA256 = "27783e87963a"  # of BODY, its first digits
QUICK = Patience(connect_s=30.0, stall_s=0.15, attempts=3, backoff_s=0.01, longest_backoff_s=0.02, lock_s=5.0)
ROOT = Path(__file__).parents[2]


class Peer(http.server.ThreadingHTTPServer):
    """Answers the n-th GET by the n-th of `answers`, and every later one by the last."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Asked)
        self.answers: list[Callable[[Asked], None]] = [whole]
        self.ranges: list[str | None] = []  # the Range header of each GET
        self.paths: list[str] = []
        self.released = threading.Event()  # lets stalled answers end
        self.url = f"http://127.0.0.1:{self.server_port}/model.pth"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are part of the tests


class Asked(http.server.BaseHTTPRequestHandler):
    server: Peer

    def do_GET(self) -> None:
        number = len(self.server.ranges)
        self.server.ranges.append(self.headers["Range"])
        self.server.paths.append(self.path)
        self.server.answers[min(number, len(self.server.answers) - 1)](self)

    def do_HEAD(self) -> None:
        self.server.answers[0](self)

    def log_message(self, *_: object) -> None:
        pass

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def honest(asked: Asked, body: bytes = BODY, etag: str = '"one"', sent: int | None = None, stall: bool = False) -> None:
    """What a sound server does, Range and If-Range included; after `sent` bytes of the body the end, or a stall."""
    start = 0
    if asked.headers["Range"] and asked.headers["If-Range"] == etag:
        start = int(asked.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            return asked.head(416, Content_Range=f"bytes */{len(body)}")
    common = {"ETag": etag, "Content_Length": len(body) - start, "Content_Type": "application/octet-stream"}
    if start:
        asked.head(206, Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}", **common)
    else:
        asked.head(200, **common)
    if asked.command == "GET":
        asked.wfile.write(body[start:][:sent])
        if stall:
            asked.server.released.wait(10)


def whole(asked: Asked) -> None:
    honest(asked)


def breaks_off(asked: Asked) -> None:
    honest(asked, sent=30_000)


def stalls(asked: Asked) -> None:
    honest(asked, sent=30_000, stall=True)


def silent(asked: Asked) -> None:
    asked.server.released.wait(10)


def crawls(asked: Asked) -> None:
    asked.head(200, Content_Length=len(BODY), ETag='"one"')
    while not asked.server.released.wait(0.02):
        asked.wfile.write(b"x")


def no_ranges(asked: Asked) -> None:
    asked.head(200, Content_Length=len(BODY), ETag='"one"')
    asked.wfile.write(BODY)


def other_file(asked: Asked) -> None:
    honest(asked, OTHER, '"two"')


def other_file_and_no_if_range(asked: Asked) -> None:
    start = int((asked.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    if not start:
        return honest(asked, OTHER, '"two"')
    asked.head(206, Content_Range=f"bytes {start}-{len(OTHER) - 1}/{len(OTHER)}", ETag='"two"')
    asked.wfile.write(OTHER[start:])


def wrong_range(asked: Asked) -> None:
    if not asked.headers["Range"]:
        return honest(asked)
    missing = len(BODY) - int(asked.headers["Range"][6:-1])
    asked.head(206, Content_Range=f"bytes 5-{missing + 4}/{len(BODY)}", ETag='"one"')
    asked.wfile.write(BODY[5 : missing + 5])


def always_416(asked: Asked) -> None:
    if not asked.headers["Range"]:
        return honest(asked)
    asked.head(416, Content_Range="bytes */7")


def announces_too_much(asked: Asked) -> None:
    honest(asked, BODY + bytes(1000), sent=len(BODY) - int((asked.headers["Range"] or "bytes=0-")[6:-1]))


def announces_too_little(asked: Asked) -> None:
    asked.head(200, Content_Length=len(BODY) - 1000)
    asked.wfile.write(BODY)


def endless(asked: Asked) -> None:
    asked.head(200)
    while True:
        asked.wfile.write(BODY)


def no_length(asked: Asked) -> None:
    asked.head(200)
    asked.wfile.write(BODY)


def chunked(asked: Asked) -> None:
    asked.protocol_version = "HTTP/1.1"
    asked.head(200, Transfer_Encoding="chunked", Connection="close")
    for start in range(0, len(BODY), 40_000):
        piece = BODY[start : start + 40_000]
        asked.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    asked.wfile.write(b"0\r\n\r\n")


def chunked_broken(asked: Asked) -> None:
    asked.protocol_version = "HTTP/1.1"
    asked.head(200, Transfer_Encoding="chunked", Connection="close")
    asked.wfile.write(b"%x\r\n%s" % (len(BODY), BODY[:500]))


def login_page(asked: Asked) -> None:
    asked.head(200, Content_Type="text/html; charset=utf-8")
    asked.wfile.write(b"<!DOCTYPE html><html>Welcome to the hotel</html>")


def page_in_disguise(asked: Asked) -> None:
    asked.head(200, Content_Type="application/octet-stream")
    asked.wfile.write(b"\n<!DOCTYPE html><html>Welcome to the hotel</html>")


def not_http(asked: Asked) -> None:
    asked.wfile.write(b"220 mail.example ESMTP\r\n")


def answers(status: int, **headers: object) -> Callable[[Asked], None]:
    return lambda asked: asked.head(status, **headers)


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Peer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "model.pth"


Answer = Callable[[Asked], None]


def fetch(peer: Peer, target: Path, *script: Answer, **wanted: Any) -> Path:
    peer.answers = list(script)
    peer.ranges.clear()
    return Download(peer.url, target, progress=False, patience=QUICK, **wanted).run()


def refusal(peer: Peer, target: Path, *script: Answer, **wanted: Any) -> str:
    """The one line of a download that fails; checks that it leaves no file under the target's name."""
    with pytest.raises(DownloadError) as caught:
        fetch(peer, target, *script, **wanted)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    assert target.name in message and ";" in message  # where, and the next step
    assert not target.exists()
    return message


def left_beside(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("answer", [whole, no_length, chunked])
def test_fetches_the_file_and_leaves_nothing_else(peer: Peer, target: Path, answer: Answer) -> None:
    assert fetch(peer, target, answer, size=len(BODY), sha256=SHA256).read_bytes() == BODY
    assert left_beside(target) == ["model.pth"]


def test_a_file_that_is_there_is_not_fetched(peer: Peer, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"mine")
    assert fetch(peer, target, whole).read_bytes() == b"mine"
    assert peer.ranges == []


@pytest.mark.parametrize("broken", [breaks_off, stalls])
def test_goes_on_where_it_broke_off(peer: Peer, target: Path, broken: Answer) -> None:
    assert fetch(peer, target, broken, whole).read_bytes() == BODY
    assert peer.ranges == [None, "bytes=30000-"]


def test_bytes_won_renew_the_patience(peer: Peer, target: Path) -> None:
    assert QUICK.attempts < 4
    assert fetch(peer, target, *[lambda asked: honest(asked, sent=20_000)] * 5, whole).read_bytes() == BODY
    assert peer.ranges[-1] == "bytes=100000-"


def test_gives_up_and_a_later_call_goes_on(peer: Peer, target: Path) -> None:
    message = refusal(peer, target, breaks_off, answers(503))
    assert "503" in message and "30,000 bytes" in message
    assert fetch(peer, target, whole).read_bytes() == BODY
    assert peer.ranges == ["bytes=30000-"]


@pytest.mark.slow
def test_a_silent_server_and_a_crawling_one_count_as_broken(peer: Peer, target: Path) -> None:
    began = time.monotonic()
    assert "3 times" in refusal(peer, target, silent)
    assert time.monotonic() - began < QUICK.connect_s  # reading has a timeout of its own
    assert fetch(peer, target, crawls, no_ranges).read_bytes() == BODY
    assert len(peer.ranges) == 2


def test_passing_errors_are_tried_again(peer: Peer, target: Path) -> None:
    script = [answers(503, Retry_After=0), answers(429), not_http, chunked_broken, whole]
    assert fetch(peer, target, *script[:2], whole).read_bytes() == BODY
    target.unlink()
    assert fetch(peer, target, *script[2:]).read_bytes() == BODY
    assert len(peer.ranges) == 3


def test_lasting_errors_are_not_tried_again(peer: Peer, target: Path) -> None:
    assert "404" in refusal(peer, target, answers(404))
    assert len(peer.ranges) == 1
    assert "204" in refusal(peer, target, answers(204))


def test_a_server_without_ranges_sends_all_again(peer: Peer, target: Path) -> None:
    assert fetch(peer, target, breaks_off, no_ranges).read_bytes() == BODY


@pytest.mark.parametrize("changed", [other_file, other_file_and_no_if_range])
def test_a_file_that_changes_between_the_parts_is_never_mixed(peer: Peer, target: Path, changed: Answer) -> None:
    assert fetch(peer, target, breaks_off, changed).read_bytes() == OTHER


def test_without_a_validator_the_part_is_not_trusted(peer: Peer, target: Path) -> None:
    def broken_and_anonymous(asked: Asked) -> None:
        asked.head(200, Content_Length=len(OTHER))
        asked.wfile.write(OTHER[:30_000])

    assert fetch(peer, target, broken_and_anonymous, whole).read_bytes() == BODY
    assert peer.ranges == [None, None]


@pytest.mark.parametrize("liar", [wrong_range, always_416])
def test_a_wrong_range_begins_again(peer: Peer, target: Path, liar: Answer) -> None:
    assert fetch(peer, target, breaks_off, liar).read_bytes() == BODY
    assert peer.ranges == [None, "bytes=30000-", None]


def test_a_whole_part_of_a_killed_process_is_finished_by_416(peer: Peer, target: Path) -> None:
    refusal(peer, target, breaks_off, answers(503))
    target.with_name("model.pth.part").write_bytes(BODY)
    assert fetch(peer, target, whole).read_bytes() == BODY
    assert peer.ranges == ["bytes=102400-"]


def test_announcing_too_much(peer: Peer, target: Path) -> None:
    message = refusal(peer, target, announces_too_much)
    assert "broke off" in message and "after the 102,400 bytes" in message
    assert "announces 103,400 bytes" in refusal(peer, target, announces_too_much, size=len(BODY))


def test_announcing_too_little(peer: Peer, target: Path) -> None:
    assert "SHA-256" in refusal(peer, target, announces_too_little, sha256=SHA256)
    assert "announces 101,400 bytes" in refusal(peer, target, announces_too_little, size=len(BODY))
    assert left_beside(target) == []


def test_a_spoilt_file_is_fetched_once_more(peer: Peer, target: Path) -> None:
    def spoilt(asked: Asked) -> None:
        honest(asked, OTHER)

    assert fetch(peer, target, spoilt, whole, sha256=SHA256).read_bytes() == BODY
    target.unlink()
    assert "twice" in refusal(peer, target, spoilt, sha256=SHA256)
    assert left_beside(target) == []


def test_the_callers_check_decides(peer: Peer, target: Path) -> None:
    def must_be_other(path: Path) -> None:
        if path.read_bytes() != OTHER:
            raise ValueError("not\nthe other")

    assert "not the other" in refusal(peer, target, whole, check=must_be_other)
    assert fetch(peer, target, other_file, check=must_be_other).read_bytes() == OTHER


def test_too_long_a_file_is_refused_announced_or_not(peer: Peer, target: Path) -> None:
    assert "announces 102,400" in refusal(peer, target, whole, max_size=100_000)
    assert "longer than" in refusal(peer, target, endless, max_size=1_000_000)
    assert left_beside(target) == []


def test_an_empty_answer_is_no_file(peer: Peer, target: Path) -> None:
    assert "empty" in refusal(peer, target, answers(200, Content_Length=0))
    assert "empty" in refusal(peer, target, answers(200))


@pytest.mark.parametrize("page", [login_page, page_in_disguise])
def test_a_web_page_is_no_file_and_costs_no_bytes(peer: Peer, target: Path, page: Answer) -> None:
    assert "web page" in refusal(peer, target, breaks_off, page)
    assert fetch(peer, target, whole).read_bytes() == BODY
    assert peer.ranges == ["bytes=30000-"]


def test_compression_that_was_not_asked_for_is_refused(peer: Peer, target: Path) -> None:
    assert "compressed" in refusal(peer, target, answers(200, Content_Encoding="gzip", Content_Length=0))


def test_redirects_are_followed_with_the_range_and_bounded(peer: Peer, target: Path) -> None:
    to = answers(302, Location="/elsewhere/model.pth")
    assert fetch(peer, target, to, breaks_off, to, whole).read_bytes() == BODY
    assert peer.ranges == [None, None, "bytes=30000-", "bytes=30000-"]
    target.unlink()
    assert "redirects" in refusal(peer, target, to)
    assert len(peer.ranges) < 10
    assert "not secure" in refusal(peer, target, answers(302, Location="ftp://127.0.0.1/model.pth"))


def test_a_redirect_never_leaves_https() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers={"Location": "http://example.org/model.pth?token=secret"})

    with http_client(1.0, 1.0, transport=httpx.MockTransport(answer)) as client:
        with pytest.raises(DownloadError, match="not secure") as caught:
            client.get("https://user:secret@example.org/model.pth?token=secret")
        assert "secret" not in str(caught.value).replace("secure", "")


def test_a_proxy_that_cannot_be_used_is_one_line(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "gopher://127.0.0.1:1")
    with pytest.raises(DownloadError, match=r"proxy .*; check https_proxy"):
        Download("http://127.0.0.1/model.pth", target).run()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://host:port/x", "nowhere/model.pth"])
def test_what_is_no_web_address_is_refused_at_once(target: Path, url: str) -> None:
    began = time.monotonic()
    with pytest.raises(DownloadError, match=r"^cannot fetch .*; ") as caught:
        Download(url, target).run()
    assert "\n" not in str(caught.value) and time.monotonic() - began < Patience().backoff_s


def test_nobody_listens(target: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/model.pth"
        with pytest.raises(DownloadError, match="3 times in a row; check the network"):
            Download(url, target, progress=False, patience=QUICK).run()
        with pytest.raises(DownloadError, match="cannot reach"):
            probe(url)


def test_the_proxy_of_the_environment_is_used(peer: Peer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", peer.url.removesuffix("/model.pth"))
    monkeypatch.setenv("no_proxy", "")
    Download("http://models.invalid/model.pth", target, progress=False, patience=QUICK).run()
    assert target.read_bytes() == BODY
    assert peer.paths == ["http://models.invalid/model.pth"]


def test_no_room_is_seen_before_a_byte_is_written(peer: Peer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "no room" in refusal(peer, target, whole)
    assert left_beside(target) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the device that is always full is Linux's")
def test_a_disk_that_fills_up_is_one_line(peer: Peer, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("model.pth.part").symlink_to("/dev/full")
    assert "no space left" in refusal(peer, target, whole)


def test_a_folder_that_is_a_file_is_one_line(peer: Peer, target: Path) -> None:
    target.parent.write_text("in the way")
    with pytest.raises(DownloadError, match=r"cannot write .*; make room or allow writing"):
        fetch(peer, target, whole)


def in_another_process(url: str, target: Path) -> subprocess.Popen[bytes]:
    program = (
        "import sys; from pathlib import Path; from indexer.backbone.download import Download;"
        "Download(sys.argv[1], Path(sys.argv[2])).run()"
    )
    return subprocess.Popen([sys.executable, "-c", program, url, str(target)], cwd=ROOT)


@pytest.mark.slow
def test_two_processes_fetch_once(peer: Peer, target: Path) -> None:
    def slow(asked: Asked) -> None:
        asked.server.released.wait(1.0)
        honest(asked)

    peer.answers = [slow]
    both = [in_another_process(peer.url, target) for _ in range(2)]
    assert [process.wait(20) for process in both] == [0, 0]
    assert target.read_bytes() == BODY
    assert len(peer.ranges) == 1


@pytest.mark.slow
def test_a_killed_process_leaves_no_lock_and_its_bytes(peer: Peer, target: Path) -> None:
    peer.answers = [stalls]
    part = target.with_name("model.pth.part")
    with in_another_process(peer.url, target) as process:
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size == 30_000) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert fetch(peer, target, whole).read_bytes() == BODY
    assert peer.ranges == ["bytes=30000-"]


@pytest.mark.slow
def test_probe_answers_within_its_time(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    probe(peer.url, 1.0)
    peer.answers = [login_page]
    with pytest.raises(DownloadError, match="web page"):
        probe(peer.url, 1.0)
    began = time.monotonic()
    peer.answers = [silent]
    with pytest.raises(DownloadError, match="cannot reach"):
        probe(peer.url, 0.2)
    hanging = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hanging.wait(60))
    with pytest.raises(DownloadError, match="no answer within"):
        probe(peer.url, 0.2)
    assert time.monotonic() - began < 30
    hanging.set()
