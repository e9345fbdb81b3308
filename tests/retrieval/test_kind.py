"""Others of a kind: how alike candidates are, what is kept of images for it, and the order that searches give."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_photo
from qdrant_peer import QdrantPeer

from indexer import Filter, SeenitError, sync_folder
from indexer.descriptor import config as config_module
from indexer.descriptor.config import DESCRIPTOR_CONFIGS, DescriptorConfig
from indexer.descriptor.features import CropFeatures
from indexer.descriptor.patch_codec import PatchTokens, pack_patches, unpack_colours, unpack_parts, unpack_patches
from indexer.descriptor.pooling import PooledFeatures, select_patches
from indexer.descriptor.whitening import kind_vectors, load_whitening, save_whitening
from indexer.descriptor.whitening_fit import fit_whitening
from indexer.index.copy import copy_index
from indexer.store.protocol import Hit, StoredFeatures
from indexer.sync.options import SyncOptions
from retrieval import Searcher
from retrieval.like_kind import KindOrder
from retrieval.options import SearchOptions
from retrieval.query.query import EncodedQuery
from retrieval.rerank import kind
from retrieval.rerank.colour_histograms import MOST, SPREAD, STEP, about_mean, colour_histograms, colours_of_crop
from retrieval.rerank.kind import joined, kind_and_match, kind_scores, matches_first
from retrieval.rerank.ranking import Ranked


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.standard_normal(shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def test_scores_against_the_slow_loop() -> None:
    rng = np.random.default_rng(0)
    crops, candidates, by_patches = unit(rng, 2, 8), unit(rng, 12, 8), rng.uniform(0, 0.5, 12)

    def scored(moved: list[np.ndarray]) -> list[float]:
        own = [max(float(crop @ row) for crop in moved) + by_patches[n] for n, row in enumerate(candidates)]
        mixed = []
        for n, row in enumerate(candidates):
            near = sorted((m for m in range(12) if m != n), key=lambda m: -float(row @ candidates[m]))
            weights = {m: kind.NEIGHBOUR_WEIGHT * max(float(row @ candidates[m]), 0) for m in near[: kind.NEIGHBOURS]}
            mixed.append((own[n] + sum(w * own[m] for m, w in weights.items())) / (1 + sum(weights.values())))
        return mixed

    wanted = scored(list(crops))
    for _ in range(kind.ROUNDS):
        best = sorted(range(12), key=lambda n: -wanted[n])[: kind.EXPANDED_BY]
        most = max(wanted[n] for n in best)
        towards = sum(max(wanted[n], 0) / most * candidates[n] for n in best)
        moved = [crop + towards for crop in crops]
        wanted = scored([crop / np.linalg.norm(crop) for crop in moved])
    np.testing.assert_allclose(kind_scores(crops, candidates, by_patches), wanted, atol=1e-5)


def test_what_lies_in_several_small_steps_comes_before_what_is_as_near_and_alone() -> None:
    angles = np.radians([*range(10, 100, 10), -90])  # a chain of views, and one that is as far as the chain's end
    candidates = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    scores = kind_scores(np.array([[1, 0]], np.float32), candidates, np.zeros(10))
    assert scores[8] > scores[9] + 0.1


@pytest.mark.parametrize("count", [1, 2])
def test_few_candidates_have_few_neighbours(count: int) -> None:
    rows = unit(np.random.default_rng(1), count, 4)
    assert np.isfinite(kind_scores(rows[:1], rows, np.zeros(count))).all()


def test_a_joined_cosine_is_the_weighted_mean_of_all() -> None:
    rng = np.random.default_rng(2)
    stored, whitened, colours = unit(rng, 2, 6), unit(rng, 2, 9), unit(rng, 2, 4)
    rows = joined([stored, whitened, colours], [3, 6, 1])
    assert rows.dtype == np.float32 and rows.shape == (2, 19)
    wanted = 0.3 * stored[0] @ stored[1] + 0.6 * whitened[0] @ whitened[1] + 0.1 * colours[0] @ colours[1]
    assert float(rows[0] @ rows[1]) == pytest.approx(float(wanted), abs=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(joined([stored], [0.3]), stored, atol=1e-7)


# ---- colours ----


def test_colour_histograms_against_the_slow_loop() -> None:
    rng = np.random.default_rng(5)
    colours = [rng.integers(-128, 128, (count, 2)).astype(np.int8) for count in (5, 3, 0, 5)]
    cells = range(-MOST, MOST + 1, STEP)

    def near(value: int) -> np.ndarray:
        weights = np.exp([-0.5 * ((min(max(value, -MOST), MOST) - cell) / SPREAD) ** 2 for cell in cells])
        return np.asarray(weights / weights.sum())

    found = colour_histograms(colours)
    assert found.shape == (4, len(cells) ** 2) and found.dtype == np.float32
    for row, one in zip(found, colours, strict=True):
        shares = sum((np.outer(near(int(a)), near(int(b))) for a, b in one), np.zeros((len(cells),) * 2))
        np.testing.assert_allclose(row, np.sqrt(shares / max(len(one), 1)).ravel(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found[[0, 1, 3]], axis=1), 1, atol=1e-6)


def test_what_all_candidates_have_makes_none_alike() -> None:
    grey, red, blue = (np.array([colour], np.int8) for colour in ((0, 0), (50, 30), (20, -50)))
    rows = colour_histograms([np.concatenate([grey] * 9 + [one]) for one in (red, red, blue)])
    assert rows[0] @ rows[2] > 0.85
    centred = about_mean(rows, rows.mean(0))
    assert centred[0] @ centred[1] > 0.99 and centred[0] @ centred[2] < -0.9
    assert not about_mean(rows[:1], rows[0]).any(), "all alike: nothing to tell"


def crop_of(tokens: np.ndarray, colours: np.ndarray | None) -> CropFeatures:
    return CropFeatures(np.ones(1, np.float32), tokens, (1, len(tokens)), colours=colours)


def test_a_crop_is_told_by_patches_that_are_unlike_each_other_and_not_plain() -> None:
    tokens = np.zeros((40, 16), np.float32)
    tokens[:10] = np.eye(16)[:10]  # ten things, and a wall of twenty patches alike; the rest is plain
    tokens[10:30] = np.eye(16)[12]
    colours = np.arange(80).reshape(40, 2).astype(np.int8)
    chosen = colours_of_crop(crop_of(tokens, colours), 11)
    assert chosen is not None and len(chosen) == 11
    np.testing.assert_array_equal(chosen[:10], colours[:10])
    assert 10 <= chosen[10][0] // 2 < 30, "the wall once"
    every = colours_of_crop(crop_of(tokens, colours), 64)
    np.testing.assert_array_equal(every, colours[:30])
    plain = colours_of_crop(crop_of(np.zeros_like(tokens), colours), 11)
    np.testing.assert_array_equal(plain, colours)
    assert colours_of_crop(crop_of(tokens, None), 11) is None


@pytest.mark.parametrize("count", [1, 7, 39, 40])
def test_a_query_chooses_its_patches_as_an_index_does(count: int) -> None:
    tokens = unit(np.random.default_rng(7), 40, 16)
    colours = np.arange(80).reshape(40, 2).astype(np.int8)
    chosen = colours_of_crop(crop_of(tokens, colours), count)
    np.testing.assert_array_equal(chosen, colours[select_patches(torch.from_numpy(tokens)[None], count)[0].numpy()])


def test_matches_stay_before_all_others_in_their_order() -> None:
    assert matches_first([False, True, False, True, False], np.array([0.1, 0.2, 0.9, 0.1, 0.5])) == [1, 3, 2, 4, 0]


def test_a_probable_match_rises_among_its_like_and_an_unsure_one_does_not_lead() -> None:
    scores = np.array([0.9, 0.3, 0.5, -np.inf])
    assert kind_and_match(scores, np.array([0.0, 0.95, 0.0, 1.0])) == [0, 1, 2, 3]
    assert kind_and_match(scores, np.array([0.0, 0.55, 0.0, 1.0])) == [0, 2, 1, 3]


# ---- what is kept of an image ----


def some_patches() -> PatchTokens:
    cells = np.stack(np.divmod(np.arange(6), 3), 1).astype(np.uint8)
    return PatchTokens(unit(np.random.default_rng(3), 6, 16), cells, (2, 3))


def test_parts_come_back_beside_the_patches() -> None:
    parts = unit(np.random.default_rng(4), 2, 4, 48)
    packed = [pack_patches(some_patches(), 2, one) for one in parts]
    alone = pack_patches(some_patches(), 2)
    assert len(packed[0]) == len(alone) + 3 + 4 * 48
    back = unpack_parts(packed)
    assert back is not None and back.shape == (2, 4, 48)
    np.testing.assert_allclose(np.linalg.norm(back, axis=2), 1, atol=1e-6)
    assert (back * parts).sum(2).min() > 0.9999
    np.testing.assert_array_equal(unpack_patches(packed).tokens[:6], unpack_patches([alone]).tokens)
    assert unpack_parts([packed[0], alone]) is None and unpack_parts([]) is None and unpack_parts([b""]) is None


def test_the_first_parts_and_colours_come_back_alone() -> None:
    parts = unit(np.random.default_rng(4), 2, 4, 48)
    colours = np.random.default_rng(6).integers(-127, 128, (2, 6, 2)).astype(np.int8)
    packed = [
        pack_patches(replace(some_patches(), colours=of_image), 2, one)
        for of_image, one in zip(colours, parts, strict=True)
    ]
    every, first = unpack_parts(packed), unpack_parts(packed, most=1)
    assert every is not None and first is not None
    np.testing.assert_array_equal(first, every[:, :1])
    back = unpack_colours(packed)
    assert back is not None
    np.testing.assert_array_equal(np.stack(back), colours)
    assert unpack_colours([packed[0], pack_patches(some_patches(), 2, parts[0])]) is None
    assert unpack_colours([]) is None and unpack_colours([b""]) is None
    with pytest.raises(SeenitError, match="rebuild the index"):
        unpack_colours([packed[0][:-1]])


def test_damaged_parts_are_told() -> None:
    good = pack_patches(some_patches(), 2, unit(np.random.default_rng(4), 4, 48))
    others = pack_patches(some_patches(), 2, unit(np.random.default_rng(4), 3, 48))
    for bad in (good[:-1], good + b"x", good[:7], good[:6] + b"\x00" + good[7:], good[:7] + b"\xff\xff" + good[9:]):
        for read in (unpack_parts, unpack_patches):
            with pytest.raises(SeenitError, match="rebuild the index"):
                read([bad])
    with pytest.raises(SeenitError, match="several kinds"):
        unpack_parts([good, others])


CONFIG = DescriptorConfig(cls_depths=(1.0,), mean_depths=(0.5,), global_dim=8, token_dim=8)


def pooled(parts: torch.Tensor) -> PooledFeatures:
    count = len(parts)
    tokens = torch.randn(count, 4, 24, generator=torch.Generator().manual_seed(9)).half()
    return PooledFeatures(torch.nn.functional.normalize(parts, dim=-1), tokens, torch.zeros(count, 4, 2).byte())


def test_kind_keeps_what_tells_few_kinds_apart_and_leaves_out_what_differs_between_views() -> None:
    chance = torch.Generator().manual_seed(0)
    buildings = torch.randn(3, 1, 24, generator=chance).repeat_interleave(20, 0)  # of 20 photos each
    noise = torch.zeros(24)
    noise[0] = 4
    photos = 0.3 * torch.randn(60, 2, 24, generator=chance) + buildings
    photos = photos + noise * torch.randn(60, 1, 1, generator=chance)
    views = [
        pooled(photos[n] + noise * torch.randn(5, 1, 1, generator=chance) + 0.02 * torch.randn(5, 2, 24))
        for n in range(0, 60, 5)
    ]
    whitening = fit_whitening([pooled(photos)], CONFIG, None, views)
    vectors = kind_vectors(pooled(photos).parts, whitening)
    assert vectors is not None and vectors.shape == (60, 24)
    np.testing.assert_array_equal(kind_vectors(pooled(photos).parts[:, :1], whitening), vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    def share_of_own(rows: np.ndarray) -> float:
        similar = rows @ rows.T - 2 * np.eye(60)
        nearest = np.argsort(-similar, 1)[:, :19] // 20
        return float((nearest == (np.arange(60) // 20)[:, None]).mean())

    assert share_of_own(vectors) > 0.95
    assert share_of_own(vectors) > share_of_own(pooled(photos).parts[:, 0].numpy()) + 0.1
    again = load_whitening(save_whitening(whitening))
    assert again.id == whitening.id
    np.testing.assert_array_equal(kind_vectors(pooled(photos).parts, again), vectors)
    plain = fit_whitening([pooled(photos)], CONFIG)
    assert plain.kind_projection is None and kind_vectors(pooled(photos).parts, plain) is None
    with pytest.raises(SeenitError, match="do not fit together"):
        load_whitening(save_whitening(replace(whitening, kind_projection=torch.zeros(1, 24, 24))))


# ---- searches ----

RESOLUTION = 56


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(9):
        draw_photo(folder / f"{n}.png", n)
    return folder


def indexed(folder: Path, backbone: Path) -> Path:
    sync_folder(folder, options=SyncOptions(resolution=RESOLUTION, workers=1), backbone=str(backbone))
    return folder / ".seenit"


def never(found: Ranked, n: int) -> bool:
    return False


def ordered_by(index: Any, is_match: Callable[[Ranked, int], bool]) -> KindOrder:
    """An order in which hits are matches for sure or not at all."""
    return KindOrder(index, is_match, is_match)


@pytest.mark.slow
def test_what_is_no_match_is_ordered_by_kind_where_there_is_a_match(many: Path, tiny_backbone: Path) -> None:
    with Searcher.open(indexed(many, tiny_backbone)) as searcher:
        (asked,) = searcher.encode([many / "0.png"], include_self=True)
        ranked = searcher._ranked([asked], SearchOptions())[0]
        first, second = ranked.hits[0], ranked.hits[1]
        assert first.score > second.score

        def order(match_score: float, like_kind: bool = False) -> Ranked:
            by_score = ordered_by(searcher.index, lambda found, n: found.hits[n].score >= match_score)
            return by_score.ordered([asked], [ranked], Filter(), like_kind=like_kind)[0]

        assert order(2.0) is ranked, "nothing is a match"
        assert order(first.score) is ranked, "the query's own image says nothing of the others"
        with_a_match = order(second.score)
        assert [hit.id for hit in with_a_match.hits[:2]] == [first.id, second.id]
        assert sorted(with_a_match.hits, key=lambda hit: hit.id) == sorted(ranked.hits, key=lambda hit: hit.id)
        by_kind = order(2.0, like_kind=True)
        assert with_a_match.hits[2:] == [hit for hit in by_kind.hits if hit.id not in {first.id, second.id}]
        last = by_kind.hits[-1].id
        sure = ordered_by(searcher.index, lambda found, n: found.hits[n].id == last)
        with_it = sure.ordered([asked], [ranked], Filter(), like_kind=True)[0]
        assert [hit.id for hit in with_it.hits].index(last) < len(ranked.hits) - 1, "a match rises among its like"
        for n, hit in enumerate(with_a_match.hits):
            assert with_a_match.match(n) is not None
            place = [other.id for other in ranked.hits].index(hit.id)
            assert with_a_match.consistency(n) == ranked.consistency(place)


@pytest.mark.slow
def test_more_candidates_are_taken_in_and_filters_hold(many: Path, tiny_backbone: Path) -> None:
    (many / "sub").mkdir()
    for n in range(20, 24):
        draw_photo(many / "sub" / f"{n}.png", n)
    with Searcher.open(indexed(many, tiny_backbone)) as searcher:
        (asked,) = searcher.encode([many / "0.png"])
        few = searcher._ranked([asked], SearchOptions())[0].ordered([0, 1])
        order = ordered_by(searcher.index, never)
        grown = order.ordered([asked], [few], Filter(), like_kind=True)[0]
        assert len({hit.id for hit in grown.hits}) == len(grown.hits) == searcher.store.count() == 13
        of_sub = searcher.index.with_keys(Filter(under=(str(many / "sub"),)))
        assert len(order.ordered([asked], [few], of_sub, like_kind=True)[0].hits) == 2 + 4
        for n, hit in enumerate(grown.hits):
            assert grown.match(n) is not None and (hit in few.hits or hit.score <= few.hits[-1].score)
        match = few.hits[1].id  # the first is the query's own image
        behind = ordered_by(searcher.index, lambda found, n: found.hits[n].id == match)
        taken_in = behind.ordered([asked], [few], Filter(), like_kind=False)[0]
        assert taken_in.hits[0].id == match and len(taken_in.hits) == 13
        assert order.ordered([asked], [few], Filter(), like_kind=False)[0] is few, "nothing is a match"
        plain = Ranked(few.hits)
        assert len(order.ordered([asked], [plain], Filter(), like_kind=True)[0].hits) == 13


@pytest.mark.slow
def test_like_kind_answers_alike_from_both_stores_and_for_every_query(
    many: Path, tiny_backbone: Path, peer: QdrantPeer
) -> None:
    index = indexed(many, tiny_backbone)
    options = SearchOptions(top=5, like_kind=True)
    copied = f"{peer.url}/kinds"
    copy_index(index, copied)
    with Searcher.open(index) as embedded, Searcher.open(copied) as served:
        found = embedded.search(many / "3.png", options)
        assert len(found) == 5 and [one.rank for one in found] == [1, 2, 3, 4, 5]
        assert [one.id for one in served.search(many / "3.png", options)] == [one.id for one in found]
        vector = embedded.embed([many / "3.png"])[0]
        assert len(embedded.search(vector, options)) == 5
        assert len(embedded.search(many / "3.png", replace(options, rerank=False))) == 5


@pytest.mark.slow
def test_an_index_without_parts_is_ordered_by_its_vectors(
    many: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: replace(config, part_bits=0, colour_bits=0) for name, config in DESCRIPTOR_CONFIGS.items()}
    monkeypatch.setattr(config_module, "DESCRIPTOR_CONFIGS", before)
    with Searcher.open(indexed(many, tiny_backbone)) as searcher:
        stored = searcher.store.patches([record.id for record in searcher.store.scroll()])
        assert unpack_parts(list(stored.values())) is None
        assert len(searcher.search(many / "3.png", SearchOptions(top=5, like_kind=True))) == 5


def test_a_query_without_candidates_stays_empty() -> None:
    crop = CropFeatures(np.ones(2, np.float32), np.empty((0, 0), np.float32), (0, 0))
    order = ordered_by(SimpleNamespace(store=None), never)
    assert order.ordered([EncodedQuery((crop,))], [Ranked([])], Filter(), like_kind=True)[0].hits == []
    hits = [Hit("a", 0.1)]
    assert order.ordered([EncodedQuery((crop,))], [Ranked(hits)], Filter(), like_kind=False)[0].hits is hits


class Colourful:
    """A store of images that differ in nothing but colour."""

    def __init__(self, colours: list[np.ndarray]) -> None:
        self.vector = np.eye(4, dtype=np.float32)[0]
        packed = [pack_patches(replace(some_patches(), colours=one), 2) for one in colours]
        self.records = {str(n): StoredFeatures(self.vector, data) for n, data in enumerate(packed)}

    def features(self, ids: list[str]) -> dict[str, StoredFeatures]:
        return {id: self.records[id] for id in ids if id in self.records}

    def search(self, vectors: np.ndarray, limit: int, where: Filter) -> list[list[Hit]]:
        return [[Hit(id, 1.0) for id in self.records][:limit] for _ in vectors]


def test_of_what_is_alike_otherwise_that_of_the_same_colours_comes_first() -> None:
    red, blue = (np.tile(np.array(colour, np.int8), (6, 1)) for colour in ((50, 30), (20, -50)))
    store = Colourful([blue, red] * 8)
    index = SimpleNamespace(store=store, whitening=SimpleNamespace(config=DescriptorConfig(), kind_projection=None))
    order = ordered_by(index, never)

    def answers(colours: np.ndarray | None) -> list[str]:
        asked = EncodedQuery((replace(crop_of(some_patches().tokens, colours), vector=store.vector),))
        ranked = Ranked([Hit(id, 1.0) for id in store.records])
        return [hit.id for hit in order.ordered([asked], [ranked], Filter(), like_kind=True)[0].hits]

    assert sorted(map(int, answers(red)[:8])) == list(range(1, 16, 2))
    assert sorted(map(int, answers(blue)[:8])) == list(range(0, 16, 2))
    assert answers(None) == [str(n) for n in range(16)], "a query without colours leaves equals as they were"
