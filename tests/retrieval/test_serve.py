"""Every route of the server, on a tiny index: what it answers, and that it is what the published schemas say."""

import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
import typer
from conftest import draw_photo
from PIL import Image
from serving import served
from starlette.testclient import TestClient

from indexer.images.metadata import content_id
from indexer.terminal import parse_place
from retrieval import Searcher, SearchOptions
from retrieval.serve.answers import ALL
from retrieval.serve.pages import Pages
from retrieval.serve.service import Service
from retrieval.show.schema import json_schemas

SCHEMAS = {name: jsonschema_rs.validator_for(schema) for name, schema in json_schemas(ALL).items()}


@pytest.fixture(scope="module")
def client(library: Path) -> Iterator[TestClient]:
    """For tests that change nothing."""
    with served(library / ".seenit", read_only=True) as client:
        yield client


@pytest.fixture
def own(library: Path, tmp_path: Path) -> Iterator[tuple[TestClient, Path]]:
    """A copy of the photos and their index, to be changed."""
    folder = tmp_path / "photos"
    shutil.copytree(library, folder)
    with served(folder / ".seenit") as client:
        yield client, folder


def told(response: Any, status: int = 200) -> Any:
    """The JSON of a response, which is checked against the schema that it names."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json" and response.text.isascii()
    values = response.json()
    SCHEMAS[values["schema"]].validate(values)
    return values


def id_of(client: TestClient, path: Path) -> str:
    (found,) = [one for one in told(client.get("/api/images"))["images"] if str(path) in (one["path"], *one["copies"])]
    return str(found["id"])


def names(answer: Any) -> list[str]:
    return [Path(one["path"]).name for one in answer["results"]]


# ---- searching ----


@pytest.mark.long
def test_search_answers_as_python_does(client: TestClient, library: Path) -> None:
    file = library / "a" / "3.jpg"
    answer = told(client.post("/api/search", files={"image": ("my photo.jpg", file.read_bytes())}))
    with Searcher.open(library / ".seenit") as searcher:
        wanted = searcher.search(file, SearchOptions(include_self=True))
    assert [(one["id"], one["score"]) for one in answer["results"]] == [
        (one.id, pytest.approx(one.score, abs=0.003)) for one in wanted
    ]
    assert answer["query"] == "my photo.jpg" and answer["results"][0]["path"] == str(file)
    (image,) = answer["asked"]["images"]
    assert image == {"name": "my photo.jpg", "id": wanted[0].id, "indexed": True, "width": 120, "height": 90}
    box = answer["results"][0]["box"]
    assert len(box) == 4 and all(0 <= value <= 1 for value in box)


def test_search_by_id_path_and_vector(client: TestClient, library: Path) -> None:
    file = library / "a" / "3.jpg"
    id = id_of(client, file)
    by_id = told(client.post("/api/search", json={"id": id, "options": {"top": 3}}))
    assert len(by_id["results"]) == 3 and "3.jpg" not in names(by_id), "the query's own file is no answer"
    by_path = told(client.post("/api/search", json={"path": str(file), "options": {"top": 3}}))
    assert names(by_path) == names(by_id)
    kept = told(client.post("/api/search", json={"id": id, "options": {"include_self": True}}))
    assert names(kept)[0] == "3.jpg"
    assert names(told(client.get(f"/api/images/{id}/similar?top=3"))) == names(by_id)
    with Searcher.open(library / ".seenit") as searcher:
        vector = searcher.embed([file])[0].tolist()
    by_vector = told(client.post("/api/search", json={"vector": vector}))
    assert names(by_vector)[0] == "3.jpg" and by_vector["results"][0]["probability"] is None


def test_several_views_likes_and_dislikes(client: TestClient, library: Path) -> None:
    a, b, c = (library / "a" / f"{n}.jpg" for n in (1, 2, 3))
    files = [
        ("image", ("a.jpg", a.read_bytes())),
        ("image", ("b.jpg", b.read_bytes())),
        ("not", ("c.jpg", c.read_bytes())),
    ]
    request = {"ids": [id_of(client, library / "a" / "4.jpg")], "like": [str(library / "b" / "c" / "6.jpg")]}
    answer = told(client.post("/api/search", files=files, data={"request": json.dumps(request)}))
    asked = answer["asked"]
    assert [one["name"] for one in asked["images"][:2]] == ["a.jpg", "b.jpg"] and len(asked["images"]) == 3
    assert [Path(one["name"]).name for one in asked["like"]] == ["6.jpg"] and asked["not"][0]["name"] == "c.jpg"
    assert not {"4.jpg", "6.jpg"} & set(names(answer)) and {"1.jpg", "2.jpg"} <= set(names(answer))


def test_region_filters_and_options(client: TestClient, library: Path) -> None:
    id = id_of(client, library / "b" / "c" / "7.jpg")
    whole = told(client.post("/api/search", json={"id": id}))
    part = told(client.post("/api/search", json={"id": id, "region": [0.25, 0.25, 0.5, 0.5]}))
    assert [one["score"] for one in part["results"]] != [one["score"] for one in whole["results"]]
    boxes = [one["query_box"] for one in part["results"] if one["query_box"]]
    assert boxes and all(x >= 0.2 and x + w <= 0.8 for x, _, w, _ in boxes), "places are those of the whole query"
    under = told(client.post("/api/search", json={"id": id, "filters": {"under": ["b"]}}))
    assert set(names(under)) == {"5.jpg", "6.jpg", "8.jpg", "9.jpg", "10.jpg"}
    for filters, count in (
        ({"after": "2021-01", "before": "2022"}, 4),
        ({"camera": "canon 5d"}, 10),
        ({"near": [48.85, 2.3, 10]}, 10),
        ({"near": [0, 0, 10]}, 0),
        ({"tags": ["x"]}, 0),
    ):
        answer = told(client.post("/api/search", json={"id": id, "filters": filters, "options": {"top": 50}}))
        assert len(answer["results"]) in (count, count - 1), filters
        assert answer["asked"]["filters"] == {
            "under": [],
            "after": None,
            "before": None,
            "file_dates": False,
            "camera": None,
            "near": None,
            "tags": [],
            "keywords": [],
            "rating": None,
            "attributes": {},
            **filters,
        }
    plain = told(client.post("/api/search", json={"id": id, "options": {"rerank": False, "exact": True, "expand": 2}}))
    assert plain["results"][0]["num_inliers"] is None and plain["note"] is None
    none = told(client.post("/api/search", json={"id": id, "filters": {"tags": ["x"]}}))
    assert none["note"] == "nothing in the index meets these conditions"


def test_batch_costs_a_bad_query_only_its_answer(client: TestClient, library: Path) -> None:
    id = id_of(client, library / "a" / "1.jpg")
    queries = [{"id": id}, {"id": "0" * 8 + "-0000-0000-0000-" + "0" * 12}, {"path": str(library / "a" / "2.jpg")}]
    answers = told(client.post("/api/search/batch", json={"queries": queries, "options": {"top": 2}}))["answers"]
    assert [one["schema"] for one in answers] == ["seenit.search/1", "seenit.error/1", "seenit.search/1"]
    assert [len(one["results"]) for one in answers if "results" in one] == [2, 2]
    sent = [("image", (f"{n}.jpg", (library / "a" / f"{n}.jpg").read_bytes())) for n in range(3)]
    sent.append(("image", ("no.jpg", b"no image")))
    answers = told(client.post("/api/search/batch", files=sent))["answers"]
    assert [one["query"] for one in answers] == ["0.jpg", "1.jpg", "2.jpg", "no.jpg"] and "error" in answers[3]


def test_explain(client: TestClient, library: Path) -> None:
    a, b = (id_of(client, library / "a" / f"{n}.jpg") for n in (1, 2))
    same = told(
        client.post("/api/explain", json={"query": a, "image": str(library / "a" / "1.jpg"), "similarity": True})
    )
    other = told(client.post("/api/explain", json={"query": a, "image": b}))
    assert same["num_inliers"] > other["num_inliers"] and len(same["pairs"]) == same["num_inliers"]
    assert other["query_similarity"] is None and np.array(same["query_similarity"]).ndim == 2
    x, y, u, v, _ = np.array(same["pairs"]).T
    np.testing.assert_allclose([x, y], [u, v], atol=0.2)
    files = {"query": ("q.jpg", (library / "a" / "1.jpg").read_bytes())}
    data = {"request": json.dumps({"image": a, "region": [0, 0, 1, 1]})}
    assert told(client.post("/api/explain", files=files, data=data))["num_inliers"] > 0
    for wrong in ({"query": a}, {"image": a}, {}):
        assert "name or upload one" in told(client.post("/api/explain", json=wrong), 422)["error"]


@pytest.mark.slow
def test_an_indexed_image_whose_file_is_gone_is_still_a_query(own: tuple[TestClient, Path]) -> None:
    client, folder = own
    id = id_of(client, folder / "a" / "1.jpg")
    os.remove(folder / "a" / "1.jpg")
    answer = told(client.post("/api/search", json={"id": id, "options": {"top": 3}}))
    assert len(answer["results"]) == 3 and answer["results"][0]["probability"] is None
    assert told(client.get(f"/api/images/{id}"), 404)["error"]
    assert told(client.get(f"/api/images/{id}/thumbnail"), 404)["error"]
    assert told(client.post("/api/explain", json={"query": id, "image": id}), 404)["error"]


def test_bad_requests_are_told_in_one_line(client: TestClient, library: Path) -> None:
    id = id_of(client, library / "a" / "1.jpg")
    json_type = {"content-type": "application/json"}
    for body, status, words in (
        ({}, 422, "nothing to search with"),
        ({"id": "x"}, 422, "API describes"),
        ({"id": id, "region": [0.5, 0.5, 0, 0]}, 422, "API describes"),
        ({"id": id, "region": [0.5, 0.5, 2, 2]}, 422, "API describes"),
        ({"id": id, "filters": {"after": "x"}}, 422, "API describes"),
        ({"id": id, "filters": {"near": [99, 0, 1]}}, 422, "API describes"),
        ({"id": id, "filters": {"under": ["/nowhere"]}}, 422, "no folder /nowhere"),
        ({"id": id, "nonsense": 1}, 422, "API describes"),
        ({"path": "/etc/passwd"}, 404, "holds no image"),
        ({"path": "../../etc/passwd"}, 404, "holds no image"),
        ({"vector": [0.1, 0.2]}, 422, "length 2"),
        ({"vector": [0.0] * 32}, 422, "vector"),
        ({"vector": [0.1] * 32, "region": [0, 0, 0.5, 0.5]}, 422, "no region"),
    ):
        assert words in told(client.post("/api/search", json=body), status)["error"], body
    for data in (b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000):
        assert told(client.post("/api/search", content=data, headers=json_type), 400)["error"]
    assert told(client.post("/api/search", content=b'{"vector": [NaN]}', headers=json_type), 422)["details"]
    assert told(client.post("/api/search", content=b"{}"), 415)["error"]
    assert told(client.post("/api/search", files={"other": b"x"}), 422)["error"]
    assert told(client.post("/api/search", files={"image": b"x"}, data={"more": "x"}), 422)["error"]
    assert told(client.get("/api/nothing"), 404)["error"] and told(client.get("/api/images/x"), 422)["error"]
    assert told(client.request("PATCH", "/api/info"), 405)["error"]


# ---- looking ----


def test_library_is_paged_by_date_and_path(client: TestClient, library: Path) -> None:
    everything = told(client.get("/api/images?order=path"))
    paths = [one["path"] for one in everything["images"]]
    assert everything["total"] == 11 and paths == sorted(paths) and everything["next_cursor"] is None
    for order in ("path", "date"):
        whole = told(client.get(f"/api/images?order={order}"))["images"]
        seen: list[Any] = []
        cursor: str | None = ""
        while cursor is not None:
            page = told(
                client.get("/api/images", params={"order": order, "limit": 4, **({"cursor": cursor} if cursor else {})})
            )
            assert page["offset"] == len(seen)
            seen += page["images"]
            cursor = page["next_cursor"]
        assert seen == whole
        assert told(client.get(f"/api/images?order={order}&offset=9&limit=5"))["images"] == whole[9:]
    dates = [one["taken_at"] for one in told(client.get("/api/images?order=date"))["images"]]
    assert dates == sorted(dates, reverse=True)
    months = told(client.get("/api/dates"))["months"]
    assert [(one["month"], one["images"], one["offset"]) for one in months] == [
        ("2022-06", 3, 0),
        ("2021-06", 4, 3),
        ("2020-06", 4, 7),
    ]
    assert told(client.get("/api/images?under=b&after=2021"))["total"] == 4
    assert told(client.get("/api/images?camera=nikon"))["total"] == 0
    assert told(client.get("/api/images?near=48.85,2.3,10&order=path"))["total"] == 11
    for wrong in ("cursor=x", "cursor=WzFd", "near=1,2", "near=a,b,c", "limit=0", "order=x", "offset=-1", "after=x"):
        assert told(client.get(f"/api/images?{wrong}"), 422)["error"], wrong
    by_path = told(client.get("/api/images?order=path&limit=1"))["next_cursor"]
    assert told(client.get("/api/images", params={"order": "date", "cursor": by_path}), 422)["error"]


def test_images_info_folders_skipped_and_schemas(client: TestClient, library: Path) -> None:
    id = id_of(client, library / "copy.jpg")
    one = told(client.get(f"/api/images/{id}/info"))
    assert {one["path"], *one["copies"]} == {str(library / "copy.jpg"), str(library / "a" / "0.jpg")}
    assert one["camera"] == "Canon EOS 5D" and one["gps"] == pytest.approx([48.858, 2.294], abs=0.01)
    folders = {entry["path"]: entry for entry in told(client.get("/api/folders"))["folders"]}
    assert folders[str(library)]["images"] == 12 and folders[str(library)]["parent"] is None
    assert folders[str(library / "b")]["images"] == folders[str(library / "b" / "c")]["images"] == 6
    assert folders[str(library / "b" / "c")]["parent"] == str(library / "b")
    info = told(client.get("/api/info"))
    assert info["images"] == 11 and info["read_only"] and info["skipped"] == 1 and info["calibrated"]
    (skipped,) = told(client.get("/api/skipped"))["files"]
    assert skipped["path"] == str(library / "broken.jpg") and skipped["reason"]
    assert set(told(client.get("/api/schema"))["schemas"]) == set(SCHEMAS)
    assert told(client.get("/api/health")) == {
        "schema": "seenit.health/1",
        "status": "ok",
        "version": info["version"],
        "token_required": False,
        "authorized": True,
    }


def test_originals_come_in_ranges(client: TestClient, library: Path) -> None:
    file = library / "a" / "2.jpg"
    data, id = file.read_bytes(), id_of(client, file)
    whole = client.get(f"/api/images/{id}")
    assert whole.content == data and whole.headers["content-type"] == "image/jpeg"
    assert whole.headers["content-disposition"] == "inline; filename*=UTF-8''2.jpg"
    for asked, start, end in (
        ("0-9", 0, 10),
        ("10-", 10, len(data)),
        ("-7", len(data) - 7, len(data)),
        ("5-99999999", 5, len(data)),
    ):
        part = client.get(f"/api/images/{id}", headers={"Range": f"bytes={asked}"})
        assert part.status_code == 206 and part.content == data[start:end]
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{len(data)}"
    assert client.get(f"/api/images/{id}", headers={"Range": f"bytes={len(data)}-"}).status_code == 416
    for odd in ("bytes=9-2", "lines=1-2", "bytes=-", "bytes=0-1,3-4", "bytes=" + "9" * 400 + "-"):
        assert client.get(f"/api/images/{id}", headers={"Range": odd}).content == data
    etag = whole.headers["etag"]
    assert client.get(f"/api/images/{id}", headers={"If-None-Match": etag}).status_code == 304
    changed = client.get(f"/api/images/{id}", headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert changed.status_code == 200 and changed.content == data


@pytest.mark.slow
def test_head_is_get_without_the_body(client: TestClient, library: Path) -> None:
    id = content_id((library / "a" / "1.jpg").read_bytes())
    for address in (f"/api/images/{id}", f"/api/images/{id}/thumbnail?size=160", f"/api/images/{'0' * 8}{id[8:]}"):
        for headers in ({}, {"Range": "bytes=5-9"}, {"If-None-Match": f'"{id}"'}):
            got, head = client.get(address, headers=headers), client.head(address, headers=headers)
            assert head.content == b"" and (head.status_code, dict(head.headers)) == (
                got.status_code,
                dict(got.headers),
            ), (address, headers)
    assert "/api/images/{id}" in client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize(
    ("near", "is_place"),
    [
        ("90,180,50000", True),
        ("-90,-180,0", True),
        ("90.1,0,1", False),
        ("-91,0,1", False),
        ("0,181,1", False),
        ("0,-180.5,1", False),
        ("0,0,-1", False),
        ("0,0,50001", False),
        ("0,0,inf", False),
        ("nan,0,1", False),
    ],
)
def test_places_are_the_same_here_and_on_the_command_line(client: TestClient, near: str, is_place: bool) -> None:
    assert client.get("/api/images", params={"near": near}).status_code == (200 if is_place else 422)
    body = {"filters": {"near": [float(value) if value[-1].isdigit() else value for value in near.split(",")]}}
    assert (client.post("/api/search", json=body).json()["error"].startswith("nothing to search with")) == is_place
    if is_place:
        assert ",".join(f"{value:g}" for value in parse_place(near, "--near")) == near
        return
    with pytest.raises(typer.BadParameter):
        parse_place(near, "--near")


def test_thumbnails(client: TestClient, library: Path) -> None:
    id = id_of(client, library / "a" / "2.jpg")
    service: Service = client.service
    small = client.get(f"/api/images/{id}/thumbnail?size=100")
    assert small.headers["content-type"] == "image/jpeg" and "immutable" in small.headers["cache-control"]
    assert Image.open(io.BytesIO(small.content)).size == (90, 120), "never enlarged"
    assert service.thumbnails.get(id, 160) == small.content
    assert client.get(f"/api/images/{id}/thumbnail?size=100").content == small.content
    assert client.get(f"/api/images/{id}/thumbnail", headers={"If-None-Match": f'"{id}-320"'}).status_code == 304
    assert told(client.get(f"/api/images/{id}/thumbnail?size=0"), 422)["error"]


def test_a_changed_file_is_not_shown_in_the_place_of_what_was_indexed(own: tuple[TestClient, Path]) -> None:
    client, folder = own
    file = folder / "a" / "2.jpg"
    id = id_of(client, file)
    os.utime(file)  # touched, and the same
    assert client.get(f"/api/images/{id}").status_code == 200
    draw_photo(file, 99)
    assert "changed" in told(client.get(f"/api/images/{id}"), 404)["error"]
    assert "changed" in told(client.get(f"/api/images/{id}/thumbnail"), 404)["error"]


# ---- changing ----


def test_tags_are_set_and_taken_away(own: tuple[TestClient, Path]) -> None:
    client, folder = own
    id = id_of(client, folder / "a" / "2.jpg")
    assert told(client.put(f"/api/images/{id}/tags", json={"tags": ["sea", "été", "sea"]}))["tags"] == ["sea", "été"]
    assert told(client.get("/api/tags"))["tags"] == [{"tag": "sea", "images": 1}, {"tag": "été", "images": 1}]
    assert told(client.get("/api/images?tag=sea"))["total"] == 1
    assert told(client.delete(f"/api/images/{id}/tags?tag=sea&tag=other"))["tags"] == ["été"]
    assert told(client.delete(f"/api/images/{id}/tags"))["tags"] == []
    gone = "0" * 8 + "-0000-0000-0000-" + "0" * 12
    assert told(client.put(f"/api/images/{gone}/tags", json={"tags": ["x"]}), 404)["error"]
    assert told(client.put(f"/api/images/{id}/tags", json={"tags": [""]}), 422)["error"]


def test_a_read_only_server_changes_nothing(client: TestClient, library: Path) -> None:
    id = id_of(client, library / "a" / "2.jpg")
    before = {path: path.stat().st_mtime_ns for path in library.rglob("*") if path.is_file() and "shm" not in path.name}
    for method, path, body in (
        ("PUT", f"/api/images/{id}/tags", {"tags": ["x"]}),
        ("DELETE", f"/api/images/{id}/tags", None),
        ("POST", "/api/index", {}),
        ("POST", "/api/duplicates/apply", {"run": "1", "choices": []}),
        ("POST", "/api/duplicates/undo", {"manifest": "seenit-moved-1.jsonl"}),
    ):
        assert "--read-only" in told(client.request(method, path, json=body), 403)["error"]
    after = {path: path.stat().st_mtime_ns for path in library.rglob("*") if path.is_file() and "shm" not in path.name}
    assert before == after


def finished(client: TestClient, id: str) -> Any:
    for _ in range(600):
        (task,) = [task for task in told(client.get("/api/tasks"))["tasks"] if task["id"] == id]
        if task["state"] != "running":
            return task
        time.sleep(0.1)
    raise AssertionError("the task does not end")


@pytest.mark.slow
def test_the_index_is_brought_in_line(own: tuple[TestClient, Path]) -> None:
    client, folder = own
    assert told(client.get("/api/images"))["total"] == 11
    draw_photo(folder / "new" / "12.jpg", 12, (120, 90))
    os.remove(folder / "a" / "4.jpg")
    task = told(client.post("/api/index", json={}), 202)
    assert "runs" in told(client.post("/api/duplicates", json={}), 409)["error"], "one at a time"
    done = finished(client, task["id"])
    assert done["state"] == "done" and done["summary"]["changes"]["added"] == 1, done
    assert done["message"] == "added 1, updated 0, removed 1" and done["ended_at"]
    answer = told(client.get("/api/images?order=path"))
    assert answer["total"] == 11 and str(folder / "new" / "12.jpg") in [one["path"] for one in answer["images"]]
    id = id_of(client, folder / "new" / "12.jpg")
    assert (
        told(client.post("/api/search", json={"id": id, "options": {"include_self": True}}))["results"][0]["id"] == id
    )


@pytest.mark.slow
def test_duplicates_are_found_applied_and_undone(own: tuple[TestClient, Path]) -> None:
    client, folder = own
    with Image.open(folder / "a" / "3.jpg") as image:
        image.resize((60, 45)).save(folder / "small.png")
    assert finished(client, told(client.post("/api/index"), 202)["id"])["state"] == "done"
    task = finished(client, told(client.post("/api/duplicates", json={"level": "near"}), 202)["id"])
    assert task["state"] == "done", task
    page = told(client.get("/api/duplicates"))
    run = page["run"]["id"]
    assert page["total"] == page["run"]["groups"] >= 1 and page["applied"] == []
    (exact,) = [
        group
        for group in page["groups"]
        if {group["keeper"]["path"], *(m["path"] for m in group["members"])}
        == {str(folder / "copy.jpg"), str(folder / "a" / "0.jpg")}
    ]
    keeper, (member,) = exact["keeper"], exact["members"]
    both = [{"group": exact["group"], "move": [keeper["file"], member["file"]]}]
    for choices, words in (
        (both, "nothing of it would stay"),
        ([{"group": 999, "move": [keeper["file"]]}], "no group 999"),
        ([{"group": exact["group"], "move": ["0/../../etc/passwd"]}], "not among its files"),
    ):
        assert words in told(client.post("/api/duplicates/apply", json={"run": run, "choices": choices}), 422)["error"]
    choices = [{"group": exact["group"], "move": [keeper["file"]]}]  # the keeper goes, its copy stays
    assert told(client.post("/api/duplicates/apply", json={"run": "99", "choices": choices}), 409)["error"]
    dry = told(client.post("/api/duplicates/apply", json={"run": run, "choices": choices, "dry_run": True}))
    assert dry["files"] == 1 and Path(keeper["path"]).exists() and dry["manifest"] is None
    done = told(client.post("/api/duplicates/apply", json={"run": run, "choices": choices}))
    assert done["files"] == 1 and done["moved"] == [keeper["file"]] and done["left"] == []
    assert not Path(keeper["path"]).exists() and Path(member["path"]).exists()
    assert (folder / ".seenit-moved" / Path(keeper["path"]).relative_to(folder)).exists()
    info = told(client.get(f"/api/images/{keeper['id']}/info"))
    assert info["path"] == member["path"] and info["copies"] == []
    page = told(client.get("/api/duplicates"))
    assert page["groups"][exact["group"]]["keeper"]["moved"]
    assert [(one["manifest"], one["files"]) for one in page["applied"]] == [(done["manifest"], 1)]
    again = told(client.post("/api/duplicates/apply", json={"run": run, "choices": both}), 422)
    assert "nothing of it would stay" in again["error"], "what was moved does not stay"
    back = told(client.post("/api/duplicates/undo", json={"manifest": done["manifest"]}))
    assert back["files"] == 1 and back["moved"] == [keeper["file"]] and Path(keeper["path"]).exists()
    assert told(client.get("/api/duplicates"))["applied"] == []
    for manifest in ("seenit-moved-0.jsonl", "../x", "seenit-moved-../../x.jsonl"):
        assert client.post("/api/duplicates/undo", json={"manifest": manifest}).status_code in (404, 422)


# ---- pages ----


@pytest.mark.slow
def test_pages_are_a_fixed_set_of_files(library: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<!doctype html><title>seenit</title>")
    (page / "app.js").write_text("export {}")
    (tmp_path / "secret.js").write_text("secret")
    os.symlink(tmp_path / "secret.js", page / "link.js")
    with served(library / ".seenit", pages=Pages(page)) as client:
        start = client.get("/")
        assert (
            start.headers["content-type"] == "text/html; charset=utf-8"
            and "default-src 'self'" in start.headers["content-security-policy"]
        )
        assert client.get("/library").text == client.get("/why/x").text == start.text
        script = client.get("/app.js")
        assert (
            script.headers["content-type"] == "text/javascript; charset=utf-8"
            and script.headers["cache-control"] == "no-cache"
        )
        assert client.get("/app.js", headers={"If-None-Match": script.headers["etag"]}).status_code == 304
        assert "--page" in client.get("/theme.css").text
        for address in (
            "/link.js",
            "/none.js",
            "/../secret.js",
            "/%2e%2e/secret.js",
            "/..%2fsecret.js",
            "//etc/passwd.js",
            "/index.html/../../secret.js",
        ):
            response = client.get(address)
            assert response.status_code == 404 and "secret" not in response.text.replace("secret.js", ""), address
        docs = client.get("/docs").text
        assert "/api/search" in docs and "<script" not in docs and "http" not in docs.replace("http-equiv", "")
        assert client.get("/openapi.json").json()["paths"]["/api/search"]["post"]
