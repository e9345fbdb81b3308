"""Two servers of one index on a Qdrant server, as behind a balancer: each answers what the other one would."""

import json
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from conftest import draw_photo
from PIL import Image
from qdrant_peer import QdrantPeer
from serving import HOME, running, served
from starlette.testclient import TestClient

from indexer.errors import SeenitError
from indexer.index.copy import copy_index
from indexer.index.index import Index
from indexer.store.open import open_store
from indexer.store.protocol import SERVING
from retrieval import Searcher
from retrieval.build import build_index
from retrieval.duplicates.find import find_duplicates
from retrieval.duplicates.options import DuplicateOptions
from retrieval.serve import task_board
from retrieval.serve.app import create_app
from retrieval.serve.kept_run import Run, run_from, run_to
from retrieval.serve.refusal import Refusal
from retrieval.serve.security import access_to, cookie_name
from retrieval.serve.task_board import TaskBoard
from retrieval.serve.tasks import Handle, Outcome, Stopped, Tasks

pytestmark = pytest.mark.slow

Both = tuple[TestClient, TestClient]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight photos, two of them twice and one in two sizes."""
    folder = tmp_path / "photos"
    for n in range(8):
        draw_photo(folder / "a" / f"{n}.jpg", n, (240, 180))
    (folder / "b").mkdir()
    for n in range(2):
        shutil.copy(folder / "a" / f"{n}.jpg", folder / "b" / f"copy {n}.jpg")
    Image.open(folder / "a" / "2.jpg").resize((120, 90)).save(folder / "b" / "small.jpg", quality=95)
    return folder


@pytest.fixture
def address(peer: QdrantPeer, folder: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from indexer.store import qdrant_connection

    monkeypatch.setattr(qdrant_connection, "TIMEOUT_S", 30)
    monkeypatch.setattr(task_board, "READ_S", 0.05)
    address = f"{peer.url}/photos"
    build_index(folder, address, backbone=tiny_backbone)
    return address


@pytest.fixture
def both(address: str) -> Iterator[Both]:
    with served(address) as one, served(address) as other:
        yield one, other


def until(met: Callable[[], Any]) -> Any:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if found := met():
            return found
        time.sleep(0.02)
    raise AssertionError("it does not happen")


def ended(client: TestClient, id: str) -> Any:
    def look() -> Any:
        found = [task for task in client.get("/api/tasks").json()["tasks"] if task["id"] == id]  # soon, if not at once
        return next((task for task in found if task["state"] != "running"), None)

    return until(look)


def find(client: TestClient) -> str:
    """A run of duplicates; its id."""
    task = ended(client, client.post("/api/duplicates", json={"level": "exact"}).json()["id"])
    assert task["state"] == "done", task
    return str(task["summary"]["id"])


@pytest.mark.long
def test_both_answer_the_same(both: Both) -> None:
    one, other = both
    images = one.get("/api/images").json()["images"]
    id = images[0]["id"]
    assert one.put(f"/api/images/{id}/tags", json={"tags": ["x", "y"]}).status_code == 200
    for path in (
        "/api/images",
        "/api/images?order=path&limit=3",
        "/api/images?tag=x",
        "/api/dates",
        "/api/folders",
        "/api/tags",
        "/api/skipped",
        "/api/info",
        f"/api/images/{id}/info",
    ):
        assert one.get(path).json() == other.get(path).json(), path
    for path in (f"/api/images/{id}", f"/api/images/{id}/thumbnail?size=160"):
        assert one.get(path).content == other.get(path).content and one.get(path).status_code == 200, path
        assert one.get(path).headers["etag"] == other.get(path).headers["etag"], "a browser keeps either's"
    file = Path(images[3]["path"]).read_bytes()

    def searched(client: TestClient) -> list[Any]:
        answers = [
            client.post("/api/search", json={"id": id}),
            client.post("/api/search", files={"image": ("x.jpg", file)}),
            client.get(f"/api/images/{id}/similar?top=3"),
            client.post("/api/explain", json={"query": id, "image": images[1]["id"]}),
        ]
        return [{name: value for name, value in one.json().items() if name != "seconds"} for one in answers]

    assert searched(one) == searched(other)
    cursor = one.get("/api/images?limit=2").json()["next_cursor"]
    assert other.get(f"/api/images?limit=2&cursor={cursor}").json()["images"] == images[2:4]


@pytest.mark.long
def test_a_change_at_one_is_seen_at_once_at_the_other(both: Both, folder: Path) -> None:
    one, other = both
    id = one.get("/api/images").json()["images"][0]["id"]
    for client, tag in ((one, "first"), (other, "second"), (one, "third")):
        assert client.put(f"/api/images/{id}/tags", json={"tags": [tag]}).status_code == 200
        for looking in both:
            assert looking.get("/api/tags").json()["tags"] == [{"tag": tag, "images": 1}]
            assert looking.get("/api/images", params={"tag": tag}).json()["total"] == 1
            found = looking.post(
                "/api/search", json={"id": id, "filters": {"tags": [tag]}, "options": {"include_self": True}}
            )
            assert [result["id"] for result in found.json()["results"]] == [id]
    draw_photo(folder / "a" / "new.jpg", 99)
    task = one.post("/api/index", json={}).json()
    assert ended(other, task["id"])["state"] == "done"
    assert other.get("/api/images").json()["total"] == one.get("/api/images").json()["total"] == 10


@pytest.mark.long
def test_a_run_of_duplicates_is_one_for_both(both: Both, folder: Path) -> None:
    one, other = both
    run = find(one)
    page = other.get("/api/duplicates").json()
    assert page["run"]["id"] == run and page["total"] == 2 and page == one.get("/api/duplicates").json()
    spare = [member["file"] for group in page["groups"] for member in group["members"]]
    choices = [{"group": group["group"], "move": [group["members"][0]["file"]]} for group in page["groups"]]
    dry = other.post("/api/duplicates/apply", json={"run": run, "choices": choices, "dry_run": True}).json()
    assert dry["files"] == 2
    moved = other.post("/api/duplicates/apply", json={"run": run, "choices": choices}).json()
    assert moved["files"] == 2 and sorted(moved["moved"]) == sorted(spare)
    for client in both:
        page = client.get("/api/duplicates").json()
        assert [member["moved"] for group in page["groups"] for member in group["members"]] == [True, True]
        assert page["applied"] == [{"manifest": moved["manifest"], "files": 2, "bytes": moved["bytes"]}]
    back = one.post("/api/duplicates/undo", json={"manifest": moved["manifest"]}).json()
    assert sorted(back["moved"]) == sorted(spare) and (folder / "b" / "copy 0.jpg").is_file()
    groups = other.get("/api/duplicates").json()["groups"]
    assert [member["moved"] for group in groups for member in group["members"]] == [False, False]


@pytest.mark.long
def test_choices_of_an_older_run_are_refused_by_both(both: Both, folder: Path) -> None:
    """Runs that were numbered by each server would pass for each other, and other files be moved than were chosen."""
    one, other = both
    first = find(one)
    second = find(other)
    assert first != second
    choices = [{"group": 0, "move": [one.get("/api/duplicates").json()["groups"][0]["members"][0]["file"]]}]
    for client in both:
        assert client.post("/api/duplicates/apply", json={"run": first, "choices": choices}).status_code == 409
    assert len(list((folder / "b").iterdir())) == 3


@pytest.mark.long
def test_two_choices_at_the_same_time_leave_a_file_of_each_group(both: Both, folder: Path) -> None:
    one, other = both
    run = find(one)
    groups = one.get("/api/duplicates").json()["groups"]
    keepers = [{"group": group["group"], "move": [group["keeper"]["file"]]} for group in groups]
    members = [{"group": group["group"], "move": [group["members"][0]["file"]]} for group in groups]
    go = threading.Barrier(2)
    statuses: list[int] = []

    def apply(client: TestClient, choices: Any) -> None:
        go.wait()
        answer = client.post("/api/duplicates/apply", json={"run": run, "choices": choices})
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=apply, args=pair) for pair in ((one, keepers), (other, members))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 422], "what comes second would leave nothing"
    for n in range(2):
        assert (folder / "a" / f"{n}.jpg").exists() != (folder / "b" / f"copy {n}.jpg").exists()


@pytest.mark.long
def test_a_session_is_good_for_all_servers_of_the_index(address: str) -> None:
    token = "a long enough token"
    with served(address) as one, served(address) as other:
        clients: list[TestClient] = []
        for client in (one, other):
            service = client.service
            access = access_to(address, "127.0.0.1", token)
            app = create_app(service, access, cookie_name(address, len(clients)))
            clients.append(TestClient(app, base_url=HOME))
        opened = clients[0].post("/api/session", json={"token": token})
        name, value = opened.headers["set-cookie"].split(";")[0].split("=")
        assert clients[1].get("/api/tags").status_code == 401
        assert clients[1].get("/api/tags", headers={"Cookie": f"{name}={value}"}).status_code == 200
        assert token not in value
    assert (
        access_to(address, "127.0.0.1", "another good token").session != access_to(address, "127.0.0.1", token).session
    )
    assert access_to(f"{address}2", "127.0.0.1", token).session != access_to(address, "127.0.0.1", token).session
    of_folder = [access_to("/photos/.seenit", "127.0.0.1", token).session for _ in range(2)]
    assert of_folder[0] != of_folder[1], "of an index in a folder a session ends with its process"


@pytest.mark.long
def test_a_search_asks_the_server_as_often_for_many_queries_as_for_one(
    address: str, peer: QdrantPeer, folder: Path
) -> None:
    queries = sorted((folder / "a").iterdir())
    with Searcher.open(address) as searcher:
        searcher.search_batch(queries)  # what is asked once for all
        counts = []
        for times in (1, 4):
            before = len(peer.requests)
            assert all(searcher.search_batch(queries * times))
            counts.append(len(peer.requests) - before)
    asked = [request.rpartition("/photos")[2] for request in peer.requests[-counts[1] :]]
    assert counts[0] == counts[1] <= 10, asked  # some have no match, and are asked once more in quarter turns


# ---- tasks ----


def boards(address: str, count: int) -> list[tuple[Any, TaskBoard]]:
    stores = [open_store(address) for _ in range(count)]
    return [(store, TaskBoard(store)) for store in stores]


@pytest.mark.long
def test_a_task_is_seen_and_stopped_by_any_server(address: str) -> None:
    (store, board), (other_store, other_board) = boards(address, 2)
    one, other = Tasks(board), Tasks(other_board)

    def work(handle: Handle) -> Outcome:
        handle.progress("reading", 3, 10)
        while not handle.stopped():
            time.sleep(0.01)
        raise Stopped

    task = one.start("index", work)
    seen = until(lambda: [task for task in other.all() if task.stage == "reading"])
    assert seen[0].id == task.id and (seen[0].done, seen[0].total, seen[0].state) == (3, 10, "running")
    with pytest.raises(Refusal) as refused:
        other.start("duplicates", work)
    assert refused.value.status == 409
    other.stop(task.id)
    until(lambda: [task for task in other.all() if task.state == "stopped"])
    assert one.all()[0].state == "stopped" and not [name for name in store.blob_names() if "stop" in name]
    second = other.start("duplicates", lambda handle: Outcome("done", {"n": 1}, ("a note",)))
    (told,) = until(lambda: [task for task in one.all() if task.id == second.id and task.state == "done"])
    assert told.summary == {"n": 1} and told.notes == ("a note",) and told.ended_at is not None
    assert [task.id for task in one.all()] == [second.id, task.id] == [task.id for task in other.all()]
    store.close()
    other_store.close()


@pytest.mark.long
def test_a_task_whose_server_is_gone_is_no_running_one(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_board, "SILENT_S", 0.3)
    (store, board), (other_store, other_board) = boards(address, 2)
    one = Tasks()
    one.start("index", lambda handle: Outcome("done", {}))
    running = one.all()[0].__class__("dead.1", "index", one.all()[0].started_at)
    board.write([running])  # and nothing more: it was killed
    other = Tasks(other_board)
    with pytest.raises(Refusal):
        other.start("index", lambda handle: Outcome("done", {}))
    (task,) = until(lambda: [task for task in other.all() if task.state == "failed"])
    assert task.message == "its server has ended; what was done is kept"
    assert until(lambda: other.start("index", lambda handle: Outcome("done", {})))
    until(lambda: other.running is None)
    store.close()
    other_store.close()


@pytest.mark.long
def test_what_servers_left_behind_is_tidied(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_board, "MOST_SERVERS", 2)
    for store, board in boards(address, 4):
        board.write([])
        store.close()
    store = open_store(address)
    store.write_blob(f"{SERVING}tasks.odd", b"\xff no JSON")
    TaskBoard(store).tidy()
    assert len([name for name in store.blob_names() if name.startswith(f"{SERVING}tasks.")]) == 2
    assert TaskBoard(store).others() == []
    store.close()


@pytest.mark.long
def test_a_copy_leaves_out_what_servers_told_each_other(both: Both, address: str, tmp_path: Path) -> None:
    find(both[0])
    copy_index(address, tmp_path / "copy")
    store = open_store(tmp_path / "copy")
    assert not [name for name in store.blob_names() if name.startswith(SERVING)]
    store.close()


@pytest.mark.long
def test_events_go_on_when_the_indexs_server_was_away(
    address: str, peer: QdrantPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream tells of what another server changed, also after a while in which nobody could know."""
    with running(address) as (service, host, port), closing(open_store(address, write=True)) as writer:
        monkeypatch.setattr(service.index.store._connection, "retry_s", 0.1)  # type: ignore[attr-defined]
        connection = HTTPConnection(host, port, timeout=60)
        connection.request("GET", "/api/tasks/events")
        response = connection.getresponse()
        peer.go_away()
        time.sleep(2.5)
        peer.come_back()
        (record, *_) = writer.scroll()
        writer.set_tags({record.id: ("new",)})
        lines = iter(response.readline, b"")
        assert any(line.startswith(b"event: index") for line in lines)
        connection.close()


# ---- a run as it is kept ----


@pytest.mark.long
def test_a_run_comes_back_as_it_was(address: str) -> None:
    from datetime import UTC, datetime

    found = find_duplicates(address, DuplicateOptions(level="scene", keep="oldest"))
    assert found.groups
    run = Run("id", found, datetime.now(UTC))
    with Index.open(address) as index:
        back = run_from(run_to(run), address, index.roots)
        assert back.found.groups == found.groups and back.finished_at == run.finished_at
        assert (back.found.options, back.found.images, back.found.notes) == (found.options, found.images, found.notes)
        for group, again in zip(found.groups, back.found.groups, strict=True):
            assert [m.transform is None for m in group.members] == [m.transform is None for m in again.members]
        values = json.loads(zlib.decompress(run_to(run)))
        for key in ("0/../../etc/passwd", "7/a.jpg", "/etc/passwd", "0/a/\0"):
            values["groups"][0]["file"][0] = key
            with pytest.raises(SeenitError):
                run_from(zlib.compress(json.dumps(values).encode()), address, index.roots)
        for data in (b"", b"x", zlib.compress(b"[]"), zlib.compress(b'{"groups": [1]}')):
            with pytest.raises(SeenitError, match="look for duplicates again"):
                run_from(data, address, index.roots)
