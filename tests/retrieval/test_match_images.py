from pathlib import Path

import numpy as np
import pytest
from conftest import draw_photo
from PIL import Image

from indexer.backbone.backbone import Backbone
from indexer.descriptor.embedder import Embedder
from indexer.descriptor.features import CropFeatures
from indexer.descriptor.patch_codec import PatchTokens, pack_patches
from indexer.errors import ImageError, SeenitError
from indexer.store.protocol import Hit
from retrieval import EncodedQuery, MultiQuery, QueryEncoder, match_images, rerank_candidates
from retrieval.rerank.neighbours import ALPHA, augment_vector, expand_query
from retrieval.rerank.ranking import rank_by_patches


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_an_image_matches_itself_and_no_other(tmp_path: Path, tiny_backbone: Path) -> None:
    one, other = draw_photo(tmp_path / "one.png", 1), draw_photo(tmp_path / "other.png", 2)
    backbone = Backbone.load(tiny_backbone)
    same, different = match_images(one, one, backbone, resolution=56), match_images(one, other, backbone, resolution=56)
    assert same.cosine == pytest.approx(1, abs=1e-3) and same.score > different.score
    assert same.evidence.num_inliers > different.evidence.num_inliers
    assert same.evidence.probability is None and same.evidence.box is not None
    assert match_images(Image.open(one), np.asarray(Image.open(one)), backbone, resolution=56).score == pytest.approx(
        same.score, abs=1e-3
    )


def test_the_region_of_a_match_is_where_the_query_is_looked_at(tmp_path: Path, tiny_backbone: Path) -> None:
    photo = draw_photo(tmp_path / "one.png", 1)
    found = match_images(photo, photo, str(tiny_backbone), region=(0.25, 0.25, 0.5, 0.5), resolution=56)
    box = found.evidence.query_box
    assert box is not None and min(box[:2]) >= 0.24 and max(box[0] + box[2], box[1] + box[3]) <= 0.76


def test_a_file_that_is_no_image_is_one_line(tmp_path: Path, tiny_backbone: Path) -> None:
    (tmp_path / "note.jpg").write_text("not an image")
    with pytest.raises(ImageError, match=r"note\.jpg"):
        match_images(tmp_path / "note.jpg", draw_photo(tmp_path / "one.png", 1), str(tiny_backbone))


def test_candidates_are_reranked_without_an_index(tmp_path: Path, tiny_backbone: Path) -> None:
    embedder = Embedder(Backbone.load(tiny_backbone), 56)
    images = [np.asarray(Image.open(draw_photo(tmp_path / f"{n}.png", n))) for n in range(6)]
    whitening = embedder.fit_whitening([embedder.pooled_of(image) for image in images])
    encoder = QueryEncoder(lambda: (embedder, whitening), 56, whitening.global_dim)
    candidates = [embedder.indexed(image, whitening) for image in images]
    queries = encoder.encode(images)
    for number, query in enumerate(queries):
        ranked = rerank_candidates(query, candidates)
        assert ranked[0].number == number and sorted(one.number for one in ranked) == list(range(6))
        assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    assert rerank_candidates(queries[0], []) == []
    (against,) = encoder.encode([MultiQuery((images[0],), dislikes=(images[0],))])
    assert rerank_candidates(against, candidates)[0].score < rerank_candidates(queries[0], candidates)[0].score
    with pytest.raises(SeenitError, match="length 3"):
        encoder.encode([np.ones(3, np.float32)])


def test_expansion_and_augmentation_are_the_formulas() -> None:
    rng = np.random.default_rng(0)
    vector, neighbours = unit(rng, 8), unit(rng, 3, 8)
    query = EncodedQuery((CropFeatures(vector, np.empty((0, 0), np.float32), (0, 0)),))
    mixed: np.ndarray = vector.astype(np.float64)
    for neighbour in neighbours:
        mixed = mixed + max(float(neighbour @ vector), 0.0) ** ALPHA * neighbour
    mixed /= np.linalg.norm(mixed)
    np.testing.assert_allclose(expand_query(query, neighbours).views[0].vector, mixed, atol=1e-5)
    assert expand_query(query, neighbours[:0]) is query
    with_itself = np.concatenate([vector[None], neighbours])
    np.testing.assert_allclose(augment_vector(vector, with_itself), mixed, atol=1e-5)


def test_a_glance_finds_what_is_worth_a_comparison() -> None:
    """Sixty candidates by a cosine that says nothing; six show the query's thing."""
    rng = np.random.default_rng(0)
    cells = np.stack(np.divmod(np.arange(64), 8), 1).astype(np.uint8)

    thing = unit(rng, 64, 64)
    of_all = [thing if n % 10 == 7 else unit(rng, 64, 64) for n in range(60)]
    packed = {str(n): pack_patches(PatchTokens(one, cells, (8, 8)), 2) for n, one in enumerate(of_all)}
    hits = [Hit(str(n), 0.5 - n / 1000) for n in range(60)] + [Hit("without patches", 0.1)]
    query = EncodedQuery((CropFeatures(np.zeros(4, np.float32), thing, (8, 8)),))
    thorough, quick = rank_by_patches(packed, query, hits), rank_by_patches(packed, query, hits, deep=10)
    assert quick.hits[:6] == thorough.hits[:6] and {int(hit.id) % 10 for hit in quick.hits[:6]} == {7}
    assert sorted(hit.id for hit in quick.hits) == sorted(hit.id for hit in hits)
    scores = [hit.score for hit in quick.hits]
    assert scores == sorted(scores, reverse=True)
    assert quick.consistency(0) == thorough.consistency(0) > 0.5 and quick.consistency(60) == 0
    told = quick.match(30)
    assert told is not None and not len(told.pairs)
