"""Attributes of added images over HTTP: shown, and asked for in bodies and in addresses."""

import json
from pathlib import Path

import pytest
from conftest import draw_photo
from qdrant_peer import QdrantPeer
from serving import served

from indexer import Item, SyncOptions, add_items


@pytest.fixture(params=["folder", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path, peer: QdrantPeer) -> str:
    """An index to be made."""
    return str(tmp_path / "index") if request.param == "folder" else f"{peer.url}/items"


@pytest.mark.slow
def test_attributes_over_http(place: str, tiny_backbone: Path, tmp_path: Path) -> None:
    items = [
        Item(
            f"item {n}",
            draw_photo(tmp_path / f"{n}.jpg", n),
            attributes={"sku": n, "of": ["all", f"{n % 2}"], "x=y": None},
        )
        for n in range(4)
    ]
    add_items(place, items, backbone=tiny_backbone, options=SyncOptions(resolution=56, workers=1))
    with served(place, read_only=True) as client:
        pages = {
            where: client.get("/api/images", params={"where": where}) for where in ("sku=2", "of=0", "of=", "sku=9")
        }
        assert {where: page.json()["total"] for where, page in pages.items()} == {
            "sku=2": 1,
            "of=0": 2,
            "of=": 0,
            "sku=9": 0,
        }
        (image,) = pages["sku=2"].json()["images"]
        assert image["attributes"] == {"sku": 2, "of": ["all", "0"], "x=y": None}
        assert client.get(f"/api/images/{image['id']}").status_code == 200
        assert client.get("/api/images", params={"where": "sku"}).status_code in (400, 422)
        for attributes, count in (({"sku": 2}, 1), ({"sku": "2", "of": "0"}, 1), ({"x=y": None}, 4), ({"of": True}, 0)):
            body = {"id": image["id"], "filters": {"attributes": attributes}, "options": {"include_self": True}}
            answer = client.post("/api/search", json=body)
            assert answer.status_code == 200 and len(answer.json()["results"]) == count, (attributes, answer.text)
        similar = client.get(f"/api/images/{image['id']}/similar", params={"where": ["of=all", "sku=1"]}).json()
        assert [one["attributes"]["sku"] for one in similar["results"]] == [1]
        for wrong in ({"sku": [1]}, {"sku": {"a": 1}}, [1], {"a": float("inf")}):
            body = {"id": image["id"], "filters": {"attributes": wrong}}
            sent = client.post("/api/search", content=json.dumps(body), headers={"Content-Type": "application/json"})
            assert sent.status_code in (400, 422), wrong
