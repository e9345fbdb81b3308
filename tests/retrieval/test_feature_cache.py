"""Features of query images are kept by content, region and whitening, and no more of them than fit."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.descriptor.features import WHOLE, CropFeatures
from indexer.errors import SeenitError
from indexer.images.metadata import content_id
from retrieval.build import build_index
from retrieval.options import SearchOptions
from retrieval.query.crops import QueryCrop
from retrieval.query.encoder import read_query
from retrieval.query.feature_cache import FeatureCache, FeatureKey, IdentifiedImage
from retrieval.query.query import MultiQuery
from retrieval.search import Searcher


def crops(value: float = 1.0, patches: int = 100) -> list[CropFeatures]:
    return [CropFeatures(np.full(10, value, np.float32), np.zeros((patches, 4), np.float32), (10, 10))]


def key(id: str, region: tuple[float, float, float, float] | None = None, whitening: str = "w") -> FeatureKey:
    return FeatureKey(id, region, whitening)


def test_what_was_not_asked_for_longest_is_dropped_by_bytes() -> None:
    one = 10 * 4 + 100 * 4 * 4 + WHOLE.nbytes
    cache = FeatureCache(3 * one)
    for name in "abc":
        cache.put(key(name), crops(), (4, 3))
    assert cache.num_bytes == 3 * one and len(cache) == 3
    assert cache.get(key("a")) is not None
    cache.put(key("d"), crops(), (4, 3))
    assert cache.get(key("b")) is None, "a was asked for since"
    assert all(cache.get(key(name)) is not None for name in "acd") and cache.num_bytes == 3 * one
    cache.put(key("e"), crops(patches=200), (4, 3))
    assert len(cache) == 2 and cache.num_bytes < 3 * one, "two had to go for a larger one"
    cache.put(key("f"), crops(patches=400), (4, 3))
    assert cache.get(key("f")) is None and len(cache) == 2, "what is larger than the cache drops nothing"
    cache.put(key("e"), crops(), (4, 3))
    assert cache.num_bytes == 2 * one, "what is replaced is counted once"


def test_a_key_is_the_image_its_region_and_the_whitening() -> None:
    cache = FeatureCache()
    region = (0.0, 0.0, 0.5, 0.5)
    cache.put(key("a"), crops(1), (4, 3))
    cache.put(key("a", region), crops(2), (4, 3))
    cache.put(key("a", None, "other"), crops(3), (4, 3))
    found = [cache.get(one) for one in (key("a"), key("a", region), key("a", None, "other"))]
    assert [one.crops[0].vector[0] for one in found if one] == [1, 2, 3]
    assert cache.get(key("b")) is None and cache.get(key("a", (0.0, 0.0, 0.5, 0.6))) is None


def test_many_threads_keep_the_count_right() -> None:
    cache = FeatureCache(5 * (10 * 4 + 100 * 4 * 4 + WHOLE.nbytes))

    def work(first: int) -> None:
        for n in range(200):
            cache.put(key(str((first + n) % 9)), crops(), (4, 3))
            cache.get(key(str(n % 9)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [found for n in range(9) if (found := cache.get(key(str(n)))) is not None]
    assert len(cache) == len(kept) <= 5 and cache.num_bytes == sum(one.num_bytes for one in kept)


class Reads:
    """An image that counts how often it is decoded."""

    def __init__(self, path: Path, resolution: int) -> None:
        self.count = 0
        self._path, self._resolution = path, resolution
        with Image.open(path) as image:
            self.image = IdentifiedImage(content_id(path.read_bytes()), None, image.size, self._read)

    def _read(self) -> QueryCrop:
        self.count += 1
        return read_query(self._path, None, self._resolution)


@pytest.fixture
def searcher(photos: Path, tiny_backbone: Path) -> Searcher:
    build_index(photos, backbone=str(tiny_backbone))
    return Searcher.open(photos / ".seenit")


@pytest.mark.long
def test_an_image_is_described_once_and_found_as_before(searcher: Searcher, photos: Path) -> None:
    path, resolution = sorted(photos.rglob("*.jpg"))[0], searcher.manifest.resolution
    with searcher:
        plain = searcher.search(read_query(path, None, resolution))
        first, again, later = (Reads(path, resolution) for _ in range(3))
        assert searcher.kept_features(first.image.id) is None
        batch = searcher.search_batch([first.image, again.image, MultiQuery((again.image,))])
        assert (first.count, again.count) == (1, 0), "the same image is described once in a batch"
        answer = searcher.search(later.image, SearchOptions(top=3))
        assert later.count == 0
        assert answer == plain[:3] and batch == [plain] * 3
        kept = searcher.kept_features(first.image.id)
        assert kept is not None and kept.size == first.image.size
        with pytest.raises(SeenitError, match="names its own region"):
            searcher.search(later.image, region=(0, 0, 0.5, 0.5))


@pytest.mark.long
def test_a_refit_makes_what_was_kept_worthless(searcher: Searcher, photos: Path, tiny_backbone: Path) -> None:
    path, resolution = sorted(photos.rglob("*.jpg"))[0], searcher.manifest.resolution
    with searcher:
        before = Reads(path, resolution)
        searcher.search(before.image)
        kept = searcher.kept_features(before.image.id)
        for n in range(60):  # many more images: the statistics are fitted again
            Image.fromarray(np.random.default_rng(n).integers(0, 255, (64, 80, 3), np.uint8)).save(photos / f"n{n}.png")
        build_index(photos, backbone=str(tiny_backbone))
        after = Reads(path, resolution)
        found = searcher.search(after.image)
        assert after.count == 1, "the whitening is another one"
        new = searcher.kept_features(after.image.id)
        assert kept is not None and new is not None
        assert not np.array_equal(kept.crops[0].vector, new.crops[0].vector)
        with Searcher.open(photos / ".seenit") as fresh:
            assert fresh.search(Reads(path, resolution).image) == found
