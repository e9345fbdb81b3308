"""Commands over an index on a server: attributes, added images, and what goes wrong, told in one line."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import draw_photo
from qdrant_peer import QdrantPeer

import cli
from indexer import Index, Item, SyncOptions, add_items
from indexer.store import qdrant_connection, qdrant_failures

pytestmark = pytest.mark.slow

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in this process: its exit status, what it prints and what it says."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["seenit", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def errors(said: str) -> list[str]:
    """What was said but for notes on the index's backbone and on progress."""
    return [line for line in said.splitlines() if "cannot" in line or "error" in line.lower()]


@pytest.fixture
def indexed(peer: QdrantPeer, photos: Path, tiny_backbone: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(qdrant_connection, "TIMEOUT_S", 30)
    address = f"{peer.url}/photos"
    code, _, said = run("index", photos, "--index", address, "--backbone", tiny_backbone, "--workers", 1)
    assert code == 0, said
    return address


def test_a_wrong_address_is_one_line(
    run: Run, photos: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdrant_failures, "UNANSWERED_S", 0.2)
    for words in (
        ("index", photos, "--backbone", tiny_backbone, "--index", "http://127.0.0.1:1/photos"),
        ("search", photos / "a" / "0.jpg", "--index", "http://127.0.0.1:1/photos"),
        ("info", "--index", "http://127.0.0.1:1/photos"),
        ("serve", "http://127.0.0.1:1/photos", "--port", 0),
        ("serve", "--index", "http://127.0.0.1:1/photos", "--port", 0),
    ):
        code, out, said = run(*words)
        (line,) = errors(said)
        assert code == 1 and out == "" and "not reachable" in line and "check the address" in line, words
    for wrong in ("http://127.0.0.1:1/", "http://127.0.0.1:1/x?shard=2", "ftp://127.0.0.1/x"):
        code, _, said = run("info", "--index", wrong)
        assert code == 1 and said.count("\n") == 1 and "http(s)://host:port/collection" in said, said


@pytest.mark.long
def test_a_wrong_key_is_one_line(run: Run, indexed: str, peer: QdrantPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    peer.api_key = "the right key"
    for key in ("", "a wrong key"):
        monkeypatch.setenv("SEENIT_API_KEY", key)
        for words in (("info",), ("index",), ("tag", "list")):
            code, out, said = run(*words, "--index", indexed)
            assert (code, out, said.count("\n")) == (1, "", 1), said
            assert "refuses the API key (401); set $SEENIT_API_KEY to a valid one" in said and "wrong key" not in said


@pytest.mark.long
def test_nothing_is_lost_when_the_server_is_full(
    run: Run, indexed: str, photos: Path, peer: QdrantPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is told that there is no room, once, and the next one embeds what lacks."""
    for n in range(20, 26):
        draw_photo(photos / "c" / f"{n}.jpg", n)
    peer.full = True
    code, out, said = run("index", "--index", indexed, "--workers", 1)
    (line,) = errors(said)
    assert (
        code == 1 and out == "" and "the server's disk is full" in line and "make room on it and run this again" in line
    )
    with Index.open(indexed) as index:
        assert index.count == 8
    code, out, _ = run("search", photos / "a" / "0.jpg", "--include-self", "--index", indexed, "--paths-only")
    assert code == 0 and str(photos / "a" / "0.jpg") in out
    code, _, said = run("tag", "add", "x", photos / "a", "--index", indexed)
    assert code == 1 and "the server's disk is full" in said
    peer.full = False
    code, out, said = run("index", "--index", indexed, "--workers", 1)
    assert code == 0 and "14 images" in out, said


def test_attributes_on_the_command_line(run: Run, place: str, tiny_backbone: Path, tmp_path: Path) -> None:
    items = [
        Item(f"item {n}", draw_photo(tmp_path / f"{n}.jpg", n), attributes={"sku": n, "of": ["all", f"{n % 2}"]})
        for n in range(4)
    ]
    add_items(place, items, backbone=tiny_backbone, options=SyncOptions(resolution=56, workers=1))

    def found(*conditions: str) -> set[str]:
        where = [word for condition in conditions for word in ("--where", condition)]
        code, out, said = run("search", tmp_path / "0.jpg", "--index", place, "--paths-only", *where)
        assert code == (0 if out else 3), said
        return {Path(line).stem for line in out.splitlines()}

    assert found("sku=2") == {"item 2"} and found("of=0", "of=all") == {"item 0", "item 2"}
    assert found("sku=2", "of=1") == found("sku=x") == found("SKU=2") == set()
    code, _, said = run("search", tmp_path / "0.jpg", "--index", place, "--where", "sku")
    assert code == 2 and "is not NAME=VALUE" in said
    code, out, _ = run("info", tmp_path / "3.jpg", "--index", place)
    assert 'attributes      sku=3, of=["all", "1"]' in out
    code, out, _ = run("search", tmp_path / "1.jpg", "--index", place, "--json", "--include-self", "--where", "sku=1")
    assert '"attributes": {"sku": 1, "of": ["all", "1"]}' in out


@pytest.fixture(params=["folder", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path, peer: QdrantPeer) -> str:
    return str(tmp_path / "index") if request.param == "folder" else f"{peer.url}/items"
