"""Images with keys of their own: added, replaced, deleted, and searched together with folders."""

from pathlib import Path

import numpy as np
import pytest
from conftest import draw_photo
from PIL import Image

from indexer import Index, Item, SeenitError, SyncOptions, add_items, sync_folder
from indexer.item_files import key_of, stem_of
from indexer.store.protocol import Filter
from retrieval import Searcher

OPTIONS = SyncOptions(resolution=56, workers=1)


def pixels(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((96, 72), Image.Resampling.BICUBIC))


def keys(index: Index) -> list[str]:
    paths = [index.roots.path(file.key) for record in index.store.scroll() for file in record.files]
    return sorted(key for path in paths if (key := key_of(path)) is not None)


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
    ):
        with pytest.raises(SeenitError) as caught:
            add_items(tmp_path / "index", wrong, backbone=tiny_backbone)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "index").exists()
    with pytest.raises(SeenitError, match="server"):
        add_items("http://localhost:6333/photos", [good])


@pytest.mark.parametrize("key", ["a", "a/b", "..", ".", "a.b", "C:\\x", "日本", "a b", "%2F", "\udc80"])
def test_every_key_has_a_file_of_its_own_and_comes_back(key: str, tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").touch()
    stem = stem_of(key)
    assert "/" not in stem and "." not in stem
    assert key_of(tmp_path / "items" / f"{stem}.png") == key
    assert key_of(tmp_path / "elsewhere" / f"{stem}.png") is None
