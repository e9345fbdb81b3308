"""Images with keys of their own: added, replaced, deleted, and searched together with folders."""

from pathlib import Path

import numpy as np
import pytest
from conftest import draw_photo
from PIL import Image
from qdrant_peer import QdrantPeer

from indexer import Filter, Index, Item, SeenitError, SyncOptions, add_items, delete_items, sync_folder
from indexer.index.copy import copy_index
from indexer.item_files import items_folder, key_of, stem_of
from retrieval import Searcher, SearchOptions

OPTIONS = SyncOptions(resolution=56, workers=1)


def pixels(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((96, 72), Image.Resampling.BICUBIC))


def keys(index: Index) -> list[str]:
    paths = [index.roots.path(file.key) for record in index.store.scroll() for file in record.files]
    return sorted(key for path in paths if (key := key_of(path)) is not None)


@pytest.mark.slow
def test_items_are_searched_together_with_folders(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    sync_folder(photos, options=OPTIONS, backbone=tiny_backbone)
    beside = draw_photo(tmp_path / "beside.png", 55)
    with Index.open(photos) as index:
        summary = index.add(
            [
                Item("array / 1", pixels(50), tags=("added",)),
                Item("grey", pixels(51)[..., 0]),
                Item("pil", Image.fromarray(pixels(52))),
                Item("bytes", beside.read_bytes()),
                Item("../odd\nkey.é", draw_photo(tmp_path / "other.png", 56)),
            ]
        )
        assert summary.changes.added == 5 and index.count == 13
        assert keys(index) == sorted(["array / 1", "grey", "pil", "bytes", "../odd\nkey.é"])
        assert index.store.count(Filter(tags=("added",))) == 1
        with Searcher(index) as searcher:
            (best, *_), (other, *_) = searcher.search_batch([pixels(50), Image.open(photos / "a" / "1.jpg")])
            assert best.key == "array / 1" and best.tags == ("added",) and Path(best.path).is_file()
            assert other.key is None
    assert sync_folder((), photos / ".seenit", options=OPTIONS).changes.removed == 0  # a later run keeps them


@pytest.mark.slow
def test_adding_again_changes_nothing_and_another_image_replaces(tiny_backbone: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    items = [Item(str(n), pixels(n)) for n in range(4)]
    assert add_items(place, items, backbone=tiny_backbone, options=OPTIONS).images == 4
    assert add_items(place, items, options=OPTIONS).embedded == 0
    with Index.open(place) as index:
        before = {record.id for record in index.store.scroll()}
        index.add([Item("2", draw_photo(tmp_path / "new.jpg", 77))])  # of another format, too
        assert index.count == 4 and len(before & {record.id for record in index.store.scroll()}) == 3
        assert index.delete(["2", "unknown"]) == 1 and keys(index) == ["0", "1", "3"]
        assert index.delete(["0", "1", "3"]) == 3 and index.count == 0


@pytest.fixture(params=["folder", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path, peer: QdrantPeer) -> str:
    """An index to be made."""
    return str(tmp_path / "index") if request.param == "folder" else f"{peer.url}/photos"


@pytest.mark.slow
def test_attributes_are_kept_replaced_and_searched_by(place: str, tiny_backbone: Path) -> None:
    items = [
        Item("chair", pixels(1), attributes={"sku": 12, "colours": ["red", "blue"], "size": {"w": 1}}),
        Item("table", pixels(2), ("oak",), attributes={"sku": "x-7"}),
        Item("lamp", pixels(3)),
    ]
    assert add_items(place, items, backbone=tiny_backbone, options=OPTIONS).changes.added == 3
    with Searcher.open(place) as searcher:

        def found(**attributes: object) -> list[str | None]:
            where = Filter(attributes=attributes)
            return [one.key for one in searcher.search(pixels(1), SearchOptions(where=where))]

        assert found(sku="12") == found(sku=12.0) == found(colours="blue") == ["chair"]
        assert (
            found(sku="x-7") == ["table"] and found(sku="X-7") == found(size="1") == found(colours="blue", sku=7) == []
        )
        (first, *_) = searcher.search(pixels(1))
        assert first.attributes == items[0].attributes
    assert add_items(place, [Item("chair", pixels(1), ("a",))], options=OPTIONS).embedded == 0  # none are given
    add_items(place, [Item("table", pixels(2), attributes={"price": 3})], options=OPTIONS)
    with Index.open(place) as index:
        known = {record.tags: record.attributes for record in index.store.scroll()}
        assert known == {("a",): items[0].attributes, ("oak",): {"price": 3}, (): {}}
    add_items(place, [Item("table", pixels(2), attributes={})], options=OPTIONS)
    with Index.open(place) as index:
        assert index.store.count(Filter(attributes={"price": 3})) == 0


@pytest.mark.slow
def test_images_that_are_embedded_again_keep_their_attributes(tmp_path: Path, tiny_backbone: Path) -> None:
    """A small index is fitted anew when it grows, and every record of it written again."""
    place = tmp_path / "index"
    add_items(place, [Item("0", pixels(0), attributes={"n": 0})], backbone=tiny_backbone, options=OPTIONS)
    with Index.open(place) as index:
        before = index.manifest.whitening_id
    add_items(place, [Item(str(n), pixels(n)) for n in range(1, 20)], options=OPTIONS)
    with Index.open(place) as index:
        assert index.manifest.whitening_id != before
        assert index.store.count(Filter(attributes={"n": "0"})) == 1


@pytest.mark.slow
def test_items_of_an_index_on_a_server(peer: QdrantPeer, tiny_backbone: Path, tmp_path: Path) -> None:
    """Their files lie on the machine that adds them; another machine's never pass for deleted."""
    place = f"{peer.url}/photos"
    assert items_folder(place) is None
    items = [Item(str(n), pixels(n)) for n in range(4)]
    assert add_items(place + "?shards=2", items, backbone=tiny_backbone, options=OPTIONS).images == 4
    folder = items_folder(place)
    assert folder is not None and len(list(folder.iterdir())) == 4
    with Index.open(place) as index:
        index.add([Item("4", pixels(4))])
        assert keys(index) == ["0", "1", "2", "3", "4"]
    assert delete_items(place, ["4", "unknown"]) == 1
    with pytest.MonkeyPatch.context() as other:  # another machine, whose folder of that name is another one
        other.setenv("SEENIT_ITEMS", str(tmp_path / "other"))
        assert delete_items(place, ["0"]) == 0
        assert add_items(place, [Item("5", pixels(5))], options=OPTIONS).images == 5
    with Index.open(place) as index:
        assert keys(index) == ["0", "1", "2", "3", "5"] and index.count == 5


@pytest.mark.slow
def test_a_copy_of_an_index_has_its_items(tiny_backbone: Path, tmp_path: Path, photos: Path, peer: QdrantPeer) -> None:
    place = photos / ".seenit"
    sync_folder(photos, options=OPTIONS, backbone=tiny_backbone)
    add_items(place, [Item(str(n), pixels(n), attributes={"n": n}) for n in range(20, 23)], options=OPTIONS)
    (place / "items" / "link.png").symlink_to(photos / "a" / "0.jpg")
    for source, target in ((place, tmp_path / "copy"), (tmp_path / "copy", f"{peer.url}/photos")):
        for _ in range(2):
            assert copy_index(source, target) == 11
        folder = items_folder(target)
        assert folder is not None and sorted(path.name for path in folder.iterdir()) == ["20.png", "21.png", "22.png"]
        with Index.open(target) as index:
            assert keys(index) == ["20", "21", "22"] and index.store.count(Filter(attributes={"n": 21})) == 1
            paths = {Path(index.roots.path(file.key)) for record in index.store.scroll() for file in record.files}
            assert {path.parent for path in paths} == {photos / "a", photos / "b", folder}
    assert delete_items(tmp_path / "copy", ["20"]) == 1
    assert (place / "items" / "20.png").is_file() and sync_folder((), place, options=OPTIONS).changes.removed == 0
    unchanged = sync_folder((), tmp_path / "copy", options=OPTIONS)
    assert unchanged.embedded == 0 and unchanged.images == 10
    assert copy_index(tmp_path / "copy", f"{peer.url}/photos") == 10
    folder = items_folder(f"{peer.url}/photos")
    assert folder is not None and not (folder / "20.png").exists()


def test_nothing_is_written_where_an_item_is_wrong(tiny_backbone: Path, tmp_path: Path) -> None:
    good = Item("good", pixels(1))
    for wrong in (
        [good, Item("text", b"no image")],
        [good, Item("floats", pixels(1) / 255)],
        [good, Item("good", pixels(2))],
        [good, Item("", pixels(2))],
        [good, Item("k" * 999, pixels(2))],
        [good, Item("gone", tmp_path / "gone.jpg")],
        [good, Item("private", "http://127.0.0.1:9/x.jpg")],
        [good, Item("nan", pixels(2), attributes={"x": float("nan")})],
        [good, Item("bytes", pixels(2), attributes={"x": b"y"})],
        [good, Item("names", pixels(2), attributes={1: "y"})],  # type: ignore[dict-item]
        [good, Item("list", pixels(2), attributes=["y"])],  # type: ignore[arg-type]
        [good, Item("large", pixels(2), attributes={"x": "y" * 70_000})],
    ):
        with pytest.raises(SeenitError) as caught:
            add_items(tmp_path / "index", wrong, backbone=tiny_backbone)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("key", ["a", "a/b", "..", ".", "a.b", "C:\\x", "日本", "a b", "%2F", "\udc80"])
def test_every_key_has_a_file_of_its_own_and_comes_back(key: str, tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").touch()
    stem = stem_of(key)
    assert "/" not in stem and "." not in stem
    assert key_of(tmp_path / "items" / f"{stem}.png") == key
    assert key_of(tmp_path / "elsewhere" / f"{stem}.png") is None
