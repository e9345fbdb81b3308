"""Two `seenit serve` processes over one Qdrant server: search, tags and a run of duplicates, seen from both."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import draw_photo
from qdrant_peer import QdrantPeer

from retrieval.build import build_index

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
WAIT_S = 120.0


@pytest.fixture(params=["drawn", "real"])
def photos(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Eight photos of which the first is there twice."""
    folder = tmp_path / "photos"
    if request.param == "drawn":
        for n in range(8):
            draw_photo(folder / f"{n}.jpg", n, (240, 180))
    else:
        found = sorted((request.getfixturevalue("shared") / "data" / "paris").rglob("*.jpg"))[:8]
        folder.mkdir()
        for n, path in enumerate(found):
            shutil.copy(path, folder / f"{n}.jpg")
    shutil.copy(folder / "0.jpg", folder / "copy.jpg")
    return folder


@pytest.fixture
def backbone(request: pytest.FixtureRequest, tiny_backbone: Path) -> str:
    """Real photos are seen by the shipped network, and drawn ones by a tiny one."""
    return "seenit_vits14" if "real" in request.node.name else str(tiny_backbone)


@contextmanager
def serving(address: str, environment: dict[str, str]) -> Iterator[httpx.Client]:
    """A process of its own, and who asks it."""
    words = [sys.executable, "-m", "cli", "serve", address, "--port", "0"]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert " at http://127.0.0.1:" in line, line
        port = line.split(" at http://127.0.0.1:")[1].split("/")[0]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S) as client:
            yield client
    finally:
        process.terminate()
        process.communicate(timeout=WAIT_S)


def done(client: httpx.Client, id: str) -> Any:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        for task in client.get("/api/tasks").json()["tasks"]:
            if task["id"] == id and task["state"] != "running":
                return task
        time.sleep(0.1)
    raise AssertionError("the task does not end")


def test_two_processes_answer_as_one(peer: QdrantPeer, photos: Path, backbone: str, tmp_path: Path) -> None:
    address = f"{peer.url}/photos"
    build_index(photos, address, backbone=backbone)
    environment = {name: value for name, value in os.environ.items() if name != "SEENIT_TOKEN"}
    environment |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with serving(address, environment) as one, serving(address, environment) as other:
        images = one.get("/api/images").json()["images"]
        assert images == other.get("/api/images").json()["images"] and len(images) == 8
        id = images[0]["id"]
        for body in ({"id": id}, {"path": str(photos / "3.jpg")}):
            answers = [client.post("/api/search", json=body).json()["results"] for client in (one, other)]
            assert answers[0] == answers[1] and answers[0]
        assert one.put(f"/api/images/{id}/tags", json={"tags": ["from one"]}).status_code == 200
        assert other.get("/api/tags").json()["tags"] == [{"tag": "from one", "images": 1}]
        assert other.put(f"/api/images/{id}/tags", json={"tags": []}).status_code == 200
        assert one.get("/api/tags").json()["tags"] == []
        begun = one.post("/api/duplicates", json={"level": "exact"}).json()
        assert done(other, begun["id"])["state"] == "done"
        pages = [client.get("/api/duplicates").json() for client in (one, other)]
        assert pages[0] == pages[1] and pages[0]["total"] == 1
        files = {pages[0]["groups"][0]["keeper"]["file"], *(m["file"] for m in pages[0]["groups"][0]["members"])}
        assert {Path(file).name for file in files} == {"0.jpg", "copy.jpg"}
