"""What a server must not do whoever asks: foreign names and sites, other files, hostile and slow bodies, no token.

The application is asked without a network where that will do; connections that misbehave are real ones.
"""

import contextlib
import http.client
import io
import json
import os
import shutil
import socket
import statistics
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import draw_photo
from PIL import Image
from serving import HOME, running, served
from starlette.testclient import TestClient

from retrieval.build import build_index
from retrieval.serve import security, server, uploads
from retrieval.serve.security import Access

TOKEN = "correct horse battery staple"


@pytest.fixture(scope="module")
def client(library: Path) -> Iterator[TestClient]:
    with served(library / ".seenit", max_file_bytes=1_000_000) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(library: Path) -> Iterator[TestClient]:
    with served(library / ".seenit", Access("127.0.0.1", TOKEN), read_only=True) as client:
        yield client


def first_id(client: TestClient) -> str:
    return str(client.get("/api/images").json()["images"][0]["id"])


def refused(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.json()["schema"] == "seenit.error/1"
    return str(response.json()["error"])


# ---- where a request comes from ----


@pytest.mark.slow
def test_a_name_that_was_pointed_here_is_refused(client: TestClient) -> None:
    for host in ("evil.com", "evil.com:8765", "127.0.0.1.evil.com", "192.168.1.5:8765", "", "localhost:8765.evil.com"):
        for path in ("/", "/api/info", "/api/health", "/openapi.json", "/theme.css"):
            assert "name" in refused(client.get(path, headers={"Host": host}), 403), host
    for host in ("localhost:8765", "127.0.0.1:8765", "[::1]:8765"):
        assert client.get("/api/info", headers={"Host": host}).status_code == 200


@pytest.mark.slow
def test_another_site_cannot_ask_or_change(client: TestClient) -> None:
    id = first_id(client)
    cross = (
        {"Origin": "http://evil.com"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    )
    cross += ({"Origin": "http://127.0.0.1:9999"}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})  # type: ignore[assignment]
    for headers in cross:
        for method, path in (
            ("POST", "/api/search"),
            ("POST", "/api/index"),
            ("POST", "/api/duplicates"),
            ("POST", "/api/duplicates/apply"),
            ("PUT", f"/api/images/{id}/tags"),
            ("DELETE", f"/api/images/{id}/tags"),
            ("POST", "/api/session"),
            ("POST", "/"),
        ):
            assert "another site" in refused(client.request(method, path, headers=headers, json={}), 403), (
                headers,
                path,
            )
    assert "another site" in refused(client.get(f"/api/images/{id}", headers={"Sec-Fetch-Site": "cross-site"}), 403)
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/docs", headers=followed).status_code == 200
    own = {"Origin": HOME, "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/search", headers=own, json={"id": id}).status_code == 200
    preflight = client.options(
        "/api/search", headers={"Origin": "http://evil.com", "Access-Control-Request-Method": "POST"}
    )
    assert not [name for name in preflight.headers if name.startswith("access-control")], "no CORS"


def test_every_response_forbids_scripts_and_frames(client: TestClient) -> None:
    for path in ("/", "/docs", "/api/info", "/api/nothing", f"/api/images/{first_id(client)}", "/x.js"):
        headers = client.get(path).headers
        assert "default-src" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY" and headers["referrer-policy"] == "no-referrer", path
        assert headers["cross-origin-resource-policy"] == "same-origin" and "server" not in headers


# ---- the token ----


@pytest.mark.slow
def test_nothing_is_told_without_the_token(guarded: TestClient) -> None:
    guarded.cookies.clear()
    paths = guarded.get("/openapi.json").json()["paths"]
    open_paths = {"/api/health", "/api/session"}
    assert len(paths) > 20
    for path, methods in paths.items():
        if path in open_paths:
            continue
        for method in methods:
            address = path.replace("{id}", "0" * 8 + "-0000-0000-0000-" + "0" * 12)
            for header in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": f"Bearer {TOKEN[:-1]}"},
                {"Cookie": "seenit=x"},
            ):
                assert "token" in refused(guarded.request(method, address, headers=header), 401), (method, path)
    assert guarded.get("/api/health").json()["authorized"] is False
    assert guarded.get("/api/info?token=" + TOKEN).status_code == 401, "never in an address, which is written to logs"
    assert guarded.get("/api/info", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_browser_gets_a_cookie_for_the_token(guarded: TestClient) -> None:
    guarded.cookies.clear()
    assert refused(guarded.post("/api/session", json={"token": "wrong"}), 401)
    assert guarded.get("/api/info").status_code == 401
    opened = guarded.post("/api/session", json={"token": TOKEN})
    assert opened.status_code == 204
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
    assert guarded.get("/api/info").status_code == 200
    assert guarded.delete("/api/session").status_code == 204
    assert guarded.get("/api/info").status_code == 401


def test_a_wrong_token_takes_as_long_whatever_it_shares_with_the_right_one() -> None:
    """Times of the comparison itself, over the first and over the last character; medians within a few per cent."""
    access = Access("127.0.0.1", "x" * 400)
    early, late = "y" + "x" * 399, "x" * 399 + "y"
    times: dict[str, list[int]] = {early: [], late: []}
    for _ in range(3000):
        for given in (early, late):
            began = time.perf_counter_ns()
            access.opens_session(given)
            times[given].append(time.perf_counter_ns() - began)
    first, last = (statistics.median(times[given]) for given in (early, late))
    assert abs(first - last) < 0.25 * max(first, last), (first, last)


@pytest.mark.slow
def test_the_token_is_in_no_log(library: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with running(library / ".seenit", Access("127.0.0.1", TOKEN), read_only=True) as (_, host, port):
        for header in (TOKEN, "wrong token 123456"):
            connection = http.client.HTTPConnection(host, port, timeout=60)
            connection.request("GET", "/api/images/../x?y=1", headers={"Authorization": f"Bearer {header}"})
            connection.getresponse().read()
            connection.request(
                "POST", "/api/session", json.dumps({"token": header}), {"Content-Type": "application/json"}
            )
            connection.getresponse().read()
            connection.close()
    written = "".join(capfd.readouterr())
    assert TOKEN not in written and "wrong token" not in written


# ---- files ----


@pytest.mark.slow
def test_only_files_that_the_index_names_are_served(tmp_path: Path, tiny_backbone: Path) -> None:
    folder = tmp_path / "photos"
    for n in range(4):
        draw_photo(folder / "in" / f"{n}.jpg", n)
    build_index(folder, backbone=tiny_backbone)
    secret = draw_photo(tmp_path / "secret.jpg", 77)
    with served(folder / ".seenit") as client:
        ids = {Path(one["path"]).name: one["id"] for one in client.get("/api/images").json()["images"]}
        os.remove(folder / "in" / "0.jpg")
        os.symlink(secret, folder / "in" / "0.jpg")  # a link in the place of an indexed file
        os.remove(folder / "in" / "1.jpg")
        os.mkfifo(folder / "in" / "1.jpg")  # what would wait for ever
        for name in ("0.jpg", "1.jpg"):
            assert refused(client.get(f"/api/images/{ids[name]}"), 404)
            assert refused(client.get(f"/api/images/{ids[name]}/thumbnail"), 404)
            assert client.post("/api/search", json={"id": ids[name]}).status_code == 200, "by its vector"
        shutil.move(folder / "in", tmp_path / "elsewhere")
        os.symlink(tmp_path / "elsewhere", folder / "in")  # a link in the place of its folder
        assert refused(client.get(f"/api/images/{ids['2.jpg']}"), 404)
        assert refused(client.get(f"/api/images/{ids['2.jpg']}/thumbnail"), 404)
        for path in (
            str(secret),
            str(folder / "in" / ".." / ".." / "secret.jpg"),
            "/etc/passwd",
            "in/2.jpg",
            str(folder),
        ):
            assert refused(client.post("/api/search", json={"path": path}), 404)
            assert refused(client.post("/api/explain", json={"query": path, "image": path}), 404)


@pytest.mark.slow
def test_addresses_that_climb_lead_nowhere(library: Path) -> None:
    with running(library / ".seenit", read_only=True) as (_, host, port):
        for target in (
            "/../../../../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "//etc/passwd",
            "/..%2f..%2fetc%2fpasswd",
            "/app.js/../../app.py",
            "/api/images/..%2f..%2fetc%2fpasswd",
            "/api/images/%00",
            "/page/../service.py",
            "\\..\\..\\x.js",
            "/%c0%ae%c0%ae/app.py",
            "/index.html%00.js",
            "http://evil.com/",
            "*",
        ):
            connection = http.client.HTTPConnection(host, port, timeout=60)
            connection.putrequest("GET", target, skip_host=True)
            connection.putheader("Host", f"{host}:{port}")
            connection.endheaders()
            response = connection.getresponse()
            body = response.read()
            assert response.status in (400, 404, 422) or b"<!doctype html>" in body.lower(), (target, response.status)
            assert b"root:" not in body and b"import " not in body, target
            connection.close()


# ---- bodies ----


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG that claims to be that large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.slow
def test_hostile_images_cost_only_their_own_answer(client: TestClient, library: Path) -> None:
    good = (library / "a" / "1.jpg").read_bytes()
    tiff = io.BytesIO()
    Image.new("RGB", (64, 64)).save(tiff, "TIFF")
    for name, data in (
        ("bomb", png(100_000, 100_000)),
        ("cut", good[:300]),
        ("text", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"),
        ("empty", b""),
        ("junk", b"\xff\xd8\xff" + bytes(5000)),
        ("gif", b"GIF89a" + b"\xff" * 5000),
        ("tiff", tiff.getvalue()[:200]),
        ("webp", b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\xff" * 300),
        ("heic", b"\0\0\0\x18ftypheic" + b"\xff" * 300),
        ("pdf", b"%PDF-1.7\n"),
    ):
        assert refused(client.post("/api/search", files={"image": (name, data)}), 422), name
    assert client.post("/api/search", files={"image": ("good", good)}).status_code == 200
    names = ("../../x.jpg", "/etc/passwd", "a\x00b", "x" * 5000, "<script>alert(1)</script>", "")
    for name in names:
        response = client.post("/api/search", files={"image": (name, good)})
        assert response.status_code in (200, 400, 422), name
        if response.status_code == 200:
            told = response.json()["query"]
            assert len(told) <= 200 and "/" not in told
    folder = client.service.uploads._folder
    assert list(folder.iterdir()) == [], "what was uploaded is gone"


def test_large_bodies_are_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "larger than 1 MB" in refused(client.post("/api/search", files={"image": ("x", bytes(1_000_001))}), 413)
    json_type = {"Content-Type": "application/json"}
    assert "larger" in refused(
        client.post("/api/search", content=bytes(uploads.MAX_JSON_BYTES + 1), headers=json_type), 413
    )

    def pieces() -> Iterator[bytes]:  # without a length
        for _ in range(uploads.MAX_JSON_BYTES // 100_000 + 2):
            yield bytes(100_000)

    for path in ("/api/search", "/api/index"):
        assert "larger" in refused(client.post(path, content=pieces(), headers=json_type), 413)
    files = [("image", (f"{n}", b"x")) for n in range(uploads.MAX_FILES + 1)]
    assert refused(client.post("/api/search", files=files), 400)
    fields = {f"f{n}": "x" for n in range(10)}
    assert refused(client.post("/api/search", files={"image": b"x"}, data=fields), 400)
    for kind in ("multipart/form-data", "multipart/form-data; boundary="):
        assert refused(client.post("/api/search", content=b"--x\r\nnonsense", headers={"Content-Type": kind}), 400)
    length = {**json_type, "Content-Length": "99999999999"}
    assert refused(client.post("/api/search", content=b"{}", headers=length), 413)


# ---- connections ----


def head(port: int, length: int, kind: str = "application/json") -> bytes:
    lines = (
        "POST /api/search HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Content-Type: {kind}",
        f"Content-Length: {length}",
    )
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.slow
def test_a_slow_upload_is_ended_and_holds_nobody_up(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "CHUNK_TIMEOUT_S", 0.5)
    monkeypatch.setattr(security, "BODY_TIMEOUT_S", 4.0)
    with running(library / ".seenit", read_only=True) as (service, host, port):
        silent = socket.create_connection((host, port))
        silent.sendall(head(port, 1000) + b"{")
        dripping = socket.create_connection((host, port))
        dripping.sendall(head(port, 100_000, "multipart/form-data; boundary=x") + b"--x\r\n")
        began = time.monotonic()
        ended: dict[str, bytes] = {}

        def drip() -> None:
            with contextlib.suppress(OSError):
                while time.monotonic() - began < 60:
                    dripping.sendall(b"x")
                    time.sleep(0.1)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        connection = http.client.HTTPConnection(host, port, timeout=60)
        connection.request("GET", "/api/health")
        assert connection.getresponse().status == 200 and time.monotonic() - began < 20
        for name, one in (("silent", silent), ("dripping", dripping)):
            one.settimeout(60)
            ended[name] = one.recv(100)
        assert all(b" 408 " in answer for answer in ended.values()), ended
        assert time.monotonic() - began < 40
        assert service.uploads._free == uploads.AT_ONCE, "places are given back"
        silent.close()
        dripping.close()
        connection.close()


@pytest.mark.slow
def test_half_open_connections_are_closed_and_hold_nobody_up(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADERS_TIMEOUT_S", 1.0)
    monkeypatch.setattr(server, "LOOK_S", 0.2)
    with running(library / ".seenit", read_only=True) as (_, host, port):
        opened = [socket.create_connection((host, port)) for _ in range(150)]
        for n, one in enumerate(opened):
            if n % 3:
                one.sendall(
                    b"GET /api/info HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * (n % 7)
                )  # a head that never ends
        kept = http.client.HTTPConnection(host, port, timeout=60)
        began = time.monotonic()
        kept.request("GET", "/api/health")
        assert kept.getresponse().read() and time.monotonic() - began < 20
        for one in opened:
            one.settimeout(60)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1000) == b"", "closed without an answer"
            one.close()
        assert time.monotonic() - began < 60, "all are closed by the server"
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=60)) as fresh:
            fresh.request("GET", "/api/info")
            assert fresh.getresponse().status == 200
        kept.close()


@pytest.mark.slow
def test_requests_that_are_no_http(library: Path) -> None:
    with running(library / ".seenit", read_only=True) as (_, host, port):
        for sent in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.com\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST /api/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        ):
            with socket.create_connection((host, port)) as one:
                one.settimeout(60)
                one.sendall(sent)
                status = one.recv(200).split(b" ")[1:2]
            assert status == [] or status[0].startswith((b"2", b"4")), (sent[:60], status)
