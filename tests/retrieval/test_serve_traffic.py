"""A server at work, over real connections: many clients at once, a full queue, events, a graceful stop, odd indexes."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import draw_photo
from qdrant_peer import QdrantPeer
from serving import running, served

from indexer.index.copy import copy_index
from retrieval import Searcher, SearchOptions, build_index
from retrieval.query.query import Query
from retrieval.results import Result
from retrieval.serve import batching
from retrieval.serve.service import ServeOptions, Service

ROOT = Path(__file__).parents[2]


def ask(host: str, port: int, method: str, path: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
    """One request on a connection of its own: status, headers and JSON."""
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=60)) as connection:
        sent = None if body is None else json.dumps(body)
        connection.request(method, path, sent, {"Content-Type": "application/json"} if sent else {})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(response.read())


@pytest.mark.long
def test_many_clients_at_once_get_the_right_answers(library: Path) -> None:
    with Searcher.open(library / ".seenit") as searcher:
        wanted = {
            str(file): [result.id for result in searcher.search(file, SearchOptions(top=5))]
            for file in sorted(library.rglob("*.jpg"))
            if file.name != "broken.jpg"
        }
    with running(library / ".seenit", read_only=True) as (service, host, port):

        def one(n: int) -> None:
            path = list(wanted)[n % len(wanted)]
            status, _, answer = ask(host, port, "POST", "/api/search", {"path": path, "options": {"top": 1 + n % 5}})
            assert status == 200, answer
            assert [result["id"] for result in answer["results"]] == wanted[path][: 1 + n % 5], path

        one(0)
        before = service.batcher.batches
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(one, range(128)))
        assert service.batcher.queries == 129
        assert service.batcher.batches - before < 100, "queries that come together are searched together"


@pytest.mark.slow
def test_a_full_queue_is_429_and_loses_nothing(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, began = threading.Event(), threading.Event()
    search_batch = Searcher.search_batch

    def held(self: Searcher, queries: Sequence[Query], options: SearchOptions) -> list[list[Result]]:
        began.set()
        assert go.wait(30)
        return search_batch(self, queries, options)

    monkeypatch.setattr(Searcher, "search_batch", held)
    monkeypatch.setattr(batching.Batcher.__init__, "__kwdefaults__", {"waiting": 4, "gather_s": 0.0})
    with running(library / ".seenit", read_only=True) as (_, host, port):
        body = {"path": str(library / "a" / "1.jpg")}
        with ThreadPoolExecutor(40) as pool:
            first = pool.submit(ask, host, port, "POST", "/api/search", body)
            assert began.wait(30)
            others = [pool.submit(ask, host, port, "POST", "/api/search", body) for _ in range(30)]
            until = time.monotonic() + 30
            while sum(one.done() for one in others) < 26 and time.monotonic() < until:
                time.sleep(0.02)
            go.set()
            answers = [one.result(60) for one in (first, *others)]
        statuses = [status for status, _, _ in answers]
        assert statuses.count(200) == 5 and statuses.count(429) == 26, statuses
        for status, headers, answer in answers:
            if status == 429:
                assert int(headers["retry-after"]) >= 1 and answer["schema"] == "seenit.error/1"
        status, _, batch = ask(host, port, "POST", "/api/search/batch", {"queries": [body] * 20})
        assert status == 200 and all("results" in one for one in batch["answers"]), "a batch waits for its turn"


def events(host: str, port: int, until: Any) -> Iterator[tuple[str, Any]]:
    """Server-sent events until the connection ends, or `until(kind, data)` is true."""
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=60)) as connection:
        connection.request("GET", "/api/tasks/events")
        response = connection.getresponse()
        assert response.getheader("Content-Type", "").startswith("text/event-stream")
        kind = ""
        while line := response.readline().decode():
            if line.startswith("event: "):
                kind = line[7:].strip()
            elif line.startswith("data: "):
                data = json.loads(line[6:])
                yield kind, data
                if until(kind, data):
                    return


@pytest.mark.slow
def test_progress_comes_as_events(library: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(library, folder)
    for n in range(20, 26):
        draw_photo(folder / "more" / f"{n}.jpg", n)
    with running(folder / ".seenit") as (_, host, port):
        seen: list[tuple[str, Any]] = []
        changed = ("index", {"schema": "seenit.changed/1", "images": 17})

        def is_all(kind: str, data: Any) -> bool:  # in either order: the index may change before the task ends
            seen.append((kind, data))
            return changed in seen and any(one == "task" and of["state"] == "done" for one, of in seen)

        watching = threading.Thread(target=lambda: list(events(host, port, is_all)))
        watching.start()
        status, _, task = ask(host, port, "POST", "/api/index", {})
        assert status == 202 and task["state"] == "running"
        watching.join(60)
        assert not watching.is_alive()
        tasks = [data for kind, data in seen if kind == "task"]
        assert tasks[-1]["state"] == "done" and tasks[-1]["summary"]["changes"]["added"] == 6, tasks[-1]
        assert changed in seen
        (late,) = events(host, port, lambda kind, data: True)
        assert late[1]["id"] == task["id"] and late[1]["state"] == "done", "who comes late is told the newest task"


@pytest.mark.slow
def test_a_task_can_be_stopped(library: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(library, folder)
    with running(folder / ".seenit") as (service, host, port):
        for n in range(20, 60):
            draw_photo(folder / "more" / f"{n}.jpg", n)
        _, _, task = ask(host, port, "POST", "/api/index", {})
        assert ask(host, port, "POST", f"/api/tasks/{task['id']}/stop", {})[0] == 202
        while service.tasks.running:
            time.sleep(0.05)
        assert service.tasks.all()[0].state == "stopped"
        assert ask(host, port, "POST", "/api/tasks/99/stop", {})[0] == 404


@pytest.mark.slow
def test_watching_brings_the_index_in_line(library: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(library, folder)
    with running(folder / ".seenit", watch=True) as (_, host, port):
        assert ask(host, port, "GET", "/api/info")[2]["watching"]
        time.sleep(1.0)  # for the system to begin watching
        draw_photo(folder / "new.jpg", 50)
        until = time.monotonic() + 40
        while ask(host, port, "GET", "/api/info")[2]["images"] != 12 and time.monotonic() < until:
            time.sleep(0.2)
        assert ask(host, port, "GET", "/api/images")[2]["total"] == 12


def start(words: list[str]) -> tuple[subprocess.Popen[str], int]:
    """`seenit serve` as a process, and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "serve", *words, "--port", "0"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    line = process.stderr.readline()
    assert " at http://127.0.0.1:" in line, line + process.stderr.read()
    return process, int(line.split(" at http://127.0.0.1:")[1].split("/")[0])


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_graceful_stop_finishes_what_runs(library: Path, number: signal.Signals) -> None:
    process, port = start([str(library / ".seenit"), "--read-only"])
    body = {"path": str(library / "a" / "1.jpg")}
    try:
        with ThreadPoolExecutor(9) as pool:
            stream = pool.submit(lambda: list(events("127.0.0.1", port, lambda kind, data: False)))
            running_now = [pool.submit(ask, "127.0.0.1", port, "POST", "/api/search", body) for _ in range(8)]
            while not any(one.done() for one in running_now):
                time.sleep(0.01)
            process.send_signal(number)
            done = 0
            for one in running_now:
                with contextlib.suppress(ConnectionRefusedError, ConnectionResetError, http.client.RemoteDisconnected):
                    status, _, answer = one.result(60)
                    assert status == 200 and len(answer["results"]) == 10, answer
                    done += 1
            assert done >= 1 and stream.result(60) == [], "streams of events end"
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0 and "Traceback" not in err and "finishing" in err, err
    finally:
        process.kill()
        process.communicate()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2).close()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_may_be_ended_as_soon_as_it_tells_its_address(library: Path, number: signal.Signals) -> None:
    process, _ = start([str(library / ".seenit"), "--read-only"])
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "finishing" in err, (process.returncode, err)


@pytest.mark.slow
def test_a_search_that_runs_is_answered_before_the_end(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = threading.Event()
    search_batch = Searcher.search_batch

    def slow(self: Searcher, queries: Sequence[Query], options: SearchOptions) -> list[list[Result]]:
        began.set()
        time.sleep(1.0)
        return search_batch(self, queries, options)

    monkeypatch.setattr(Searcher, "search_batch", slow)
    with ThreadPoolExecutor(1) as pool:
        with running(library / ".seenit", read_only=True) as (_, host, port):
            asked = pool.submit(ask, host, port, "POST", "/api/search", {"path": str(library / "a" / "1.jpg")})
            assert began.wait(30)
        assert asked.result(20)[0] == 200, "answered by the time that the server has ended"


# ---- odd indexes ----


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="names of any bytes")
def test_names_of_any_bytes_are_served_and_found(tmp_path: Path, tiny_backbone: Path) -> None:
    folder = tmp_path / "photos"
    odd = [os.fsdecode(name) for name in (b"caf\xe9.jpg", b"a b%20c#?.jpg", "日本 ‮ x.jpg".encode(), b"new\nline.jpg")]
    for n, name in enumerate(odd):
        draw_photo(folder / os.fsdecode(b"f\xf6lder") / name, n)
    build_index(folder, backbone=tiny_backbone)
    with served(folder / ".seenit") as client:
        found = client.get("/api/images?order=path").json()["images"]
        assert sorted(Path(one["path"]).name for one in found) == sorted(odd)
        for one in found:
            assert client.get(f"/api/images/{one['id']}").status_code == 200
            assert client.get(f"/api/images/{one['id']}/thumbnail").status_code == 200
            body = json.dumps({"path": one["path"], "filters": {"under": [str(Path(one["path"]).parent)]}})
            answer = client.post("/api/search", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == 200 and len(answer.json()["results"]) == 3, answer.text
        assert client.get("/api/folders").json()["folders"][1]["images"] == 4


@pytest.mark.slow
def test_an_index_that_cannot_be_written_is_served(library: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(library, folder)
    os.chmod(folder / ".seenit", 0o555)
    try:
        with served(folder / ".seenit") as client:
            id = client.get("/api/images").json()["images"][0]["id"]
            assert client.post("/api/search", json={"id": id}).status_code == 200
            if os.geteuid() != 0:  # the superuser may write everywhere
                response = client.put(f"/api/images/{id}/tags", json={"tags": ["x"]})
                assert response.status_code in (409, 422, 503), response.text
    finally:
        os.chmod(folder / ".seenit", 0o755)


@pytest.mark.slow
def test_a_servers_collection_is_served(library: Path, tmp_path: Path, peer: QdrantPeer) -> None:
    url = f"{peer.url}/photos"
    copy_index(library / ".seenit", url)
    with served(url) as client:
        service: Service = client.service
        images = client.get("/api/images?order=path").json()
        assert images["total"] == 11 and Path(images["images"][0]["path"]).is_file()
        id = images["images"][0]["id"]
        assert client.get(f"/api/images/{id}/thumbnail").status_code == 200
        answer = client.post("/api/search", json={"id": id, "options": {"include_self": True}}).json()
        assert answer["results"][0]["id"] == id and service.index.location == url
        assert client.put(f"/api/images/{id}/tags", json={"tags": ["x"]}).json()["tags"] == ["x"]
        assert client.get("/api/info").json()["images"] == 11


def test_a_backbone_that_cannot_be_loaded_is_told_at_once(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from indexer.backbone.load_once import LoadOnce
    from indexer.errors import CheckpointError

    def fails(self: LoadOnce, *given: object, **named: object) -> Any:
        raise CheckpointError("the weights are gone; fetch them again")

    monkeypatch.setattr(LoadOnce, "load", fails)
    said: list[str] = []
    with Service.open(str(library / ".seenit"), ServeOptions(read_only=True, workers=1), said.append) as service:
        service.batcher.call(lambda: None).result(20)
        assert said == ["no search will be answered: the weights are gone; fetch them again"]
