"""Asking an index, through the Python API, on a real store and a tiny random backbone."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_photo, save_tiny
from PIL import Image
from qdrant_peer import QdrantPeer

from indexer import Backbone, Filter, SeenitError, sync_folder
from indexer.errors import ImageError
from indexer.index.copy import copy_index
from indexer.index.tags import change_tags
from indexer.sync.options import SyncOptions
from retrieval import Result, Searcher
from retrieval.options import SearchOptions
from retrieval.query.encoder import read_query
from retrieval.query.query import MultiQuery
from retrieval.search import reranked_of


@pytest.fixture
def index(photos: Path, tiny_backbone: Path) -> Path:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Canon", "Canon EOS 5D"
    exif.get_ifd(0x8769)[0x9003] = "2021:06:15 12:00:00"
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 30.0), 3: "E", 4: (2.0, 17.0, 40.0)})
    draw_photo(photos / "tower.jpg", 33, exif=exif)
    sync_folder(photos, options=SyncOptions(resolution=56, workers=1), backbone=str(tiny_backbone))
    return photos / ".seenit"


def names(results: list[Result]) -> list[str]:
    return [Path(result.path).name for result in results]


@pytest.mark.slow
def test_every_kind_of_query_gives_the_same_answer(index: Path, photos: Path) -> None:
    file = photos / "a" / "0.jpg"
    image = Image.open(file)
    image.load()
    with Searcher.open(index) as searcher:
        by_path = searcher.search(file, SearchOptions(include_self=True))
        assert names(by_path)[0] == "0.jpg" and by_path[0].score > by_path[1].score + 0.1
        assert [result.rank for result in by_path] == list(range(1, 10))
        assert len({result.id for result in by_path}) == 9
        for query in (str(file), image, np.asarray(image)):
            results = searcher.search(query, SearchOptions(include_self=True))
            assert names(results) == names(by_path)
            np.testing.assert_allclose([r.score for r in results], [r.score for r in by_path], atol=0.02)
        by_vector = searcher.search(searcher.embed([file])[0], SearchOptions(include_self=True))  # the whole image only
        assert names(by_vector)[0] == "0.jpg" and by_vector[0].score == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_batches_equal_single_queries(index: Path, photos: Path) -> None:
    files = sorted((photos / "a").glob("*.jpg")) + sorted((photos / "b").glob("*.jpg"))
    with Searcher.open(index) as searcher:
        single = [names(searcher.search(file, SearchOptions(top=3))) for file in files]
        assert [names(results) for results in searcher.search_batch(files, SearchOptions(top=3))] == single
        prepared = searcher.encode(files)
        assert [names(results) for results in searcher.search_batch(prepared, SearchOptions(top=3))] == single
        assert names(searcher.search(prepared[0], SearchOptions(top=3))) == single[0]  # and again
        streamed = dict(searcher.search_files(files, SearchOptions(top=3)))
        assert [names(streamed[str(file)]) for file in files] == single  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_query_file_is_left_out_but_its_copies_are_not(index: Path, photos: Path, tmp_path: Path) -> None:
    file = photos / "a" / "0.jpg"
    with Searcher.open(index) as searcher:
        assert "0.jpg" not in names(searcher.search(file))
        outside = shutil.copy(file, tmp_path / "query.jpg")
        assert searcher.search(outside)[0].path == str(file)
    shutil.copy(file, photos / "copy.jpg")
    sync_folder(photos, options=SyncOptions(workers=1))
    with Searcher.open(index) as searcher:
        first = searcher.search(file)[0]
        assert first.path == str(photos / "copy.jpg") and first.copies == ()
        both = searcher.search(file, SearchOptions(include_self=True))[0]
        assert {both.path, *both.copies} == {str(file), str(photos / "copy.jpg")}


@pytest.mark.slow
def test_filters(index: Path, photos: Path) -> None:
    change_tags(index, [photos / "b"], lambda tags: tags | {"blue"})
    year = datetime(2021, 1, 1, tzinfo=UTC)
    next_year = datetime(2022, 1, 1, tzinfo=UTC)
    with Searcher.open(index) as searcher:

        def found(where: Filter) -> set[str]:
            return set(names(searcher.search(photos / "a" / "0.jpg", SearchOptions(where=where, include_self=True))))

        blue = {f"{n}.jpg" for n in (4, 5, 6, 7)}
        for folder in ("b", str(photos / "b"), photos / "b", ("b",), (photos / "b", "b")):  # paths, as a user has them
            assert found(Filter(under=folder)) == blue  # type: ignore[arg-type]
        assert found(Filter(tags="blue")) == found(Filter(tags=("blue",))) == blue  # type: ignore[arg-type]
        for folder in ("nowhere", "0/b", photos.parent):
            with pytest.raises(SeenitError, match=r"no folder .* in the index at .*; it mirrors"):
                found(Filter(under=(str(folder),)))
        assert found(Filter(after=year, before=next_year)) == {"tower.jpg"}
        assert "tower.jpg" not in found(Filter(after=next_year))
        assert found(Filter(camera="eos canon")) == {"tower.jpg"} and found(Filter(camera="nikon")) == set()
        assert found(Filter(near=(48.86, 2.29, 1.0))) == {"tower.jpg"} and found(Filter(near=(0, 0, 1.0))) == set()
        assert found(Filter(tags=("blue", "red"))) == set()


@pytest.mark.slow
def test_a_region_searches_for_what_is_inside_it(index: Path, photos: Path, tmp_path: Path) -> None:
    inner = Image.open(photos / "a" / "1.jpg")
    scene = Image.new("RGB", (400, 300), "grey")
    scene.paste(inner, (200, 100))
    scene.save(tmp_path / "scene.png")
    with Searcher.open(index) as searcher:
        for region in ((200, 100, *inner.size), (0.5, 1 / 3, inner.width / 400, inner.height / 300)):
            best = searcher.search(tmp_path / "scene.png", region=region)[0]
            assert Path(best.path).name == "1.jpg" and best.score > 0.85
            box = best.evidence.query_box if best.evidence else None  # in the whole image, within the region
            assert box and np.allclose(box, (0.5, 1 / 3, inner.width / 400, inner.height / 300), atol=0.12)
            heat = searcher.explain(tmp_path / "scene.png", photos / "a" / "1.jpg", region=region).query_similarity
            rows, cols = heat.shape
            hot = heat[round(rows / 3) + 1 : round(rows / 3 + rows * inner.height / 300) - 1, cols // 2 + 1 : -1]
            assert heat[: rows // 3, : cols // 2].max() == 0 < 0.5 < np.median(hot)
        with pytest.raises(SeenitError, match="leaves nothing"):
            searcher.search(tmp_path / "scene.png", region=(500, 500, 10, 10))


def test_cut_is_clipped_to_the_image() -> None:
    pixels = np.arange(40 * 20 * 3, dtype=np.uint8).reshape(40, 20, 3)
    assert read_query(pixels, (-5, 5, 20, 100), 56).pixels.shape == (35, 15, 3)
    assert read_query(pixels, (0, 0, 1, 1), 56).pixels.shape == pixels.shape
    assert read_query(pixels[:4, :4], (0, 0, 1, 1), 56).pixels.shape == (4, 4, 3)  # all of a small image
    with pytest.raises(SeenitError, match="5 x 35 pixels, which is too little"):
        read_query(pixels, (-5, 5, 10, 100), 56)


@pytest.mark.slow
def test_bad_queries(index: Path, tmp_path: Path) -> None:
    (tmp_path / "note.jpg").write_text("hello")
    with Searcher.open(index) as searcher:
        with pytest.raises(ImageError, match=r"note.jpg: not an image"):
            searcher.search(tmp_path / "note.jpg")
        with pytest.raises(ImageError, match="no such file"):
            searcher.search(tmp_path / "missing.jpg")
        with pytest.raises(SeenitError, match="a query is"):
            searcher.search(np.zeros((4, 4, 3)))
        with pytest.raises(SeenitError, match="finite"):
            searcher.search(np.full(searcher.dim, np.nan, np.float32))
        with pytest.raises(SeenitError, match=f"{searcher.dim}"):
            searcher.search(np.ones(3, np.float32))
        answers = dict(searcher.search_files([tmp_path / "note.jpg", tmp_path / "missing.jpg"]))
        assert all(isinstance(answer, ImageError) for answer in answers.values())
        assert searcher.search_batch([]) == []


@pytest.mark.slow
def test_no_index_and_another_backbone(index: Path, tmp_path: Path) -> None:
    with pytest.raises(SeenitError, match=r"no index at .*seenit index"):
        Searcher.open(tmp_path / "nothing")
    other = Backbone.load(str(save_tiny(tmp_path / "other.safetensors", seed=1)))
    with Searcher.open(index) as searcher, pytest.raises(SeenitError, match="made by backbone"):
        searcher.use(other)


@pytest.mark.slow
def test_reranking_keeps_the_same_images_and_fuses_their_scores(index: Path, photos: Path) -> None:
    with Searcher.open(index) as searcher:
        plain = searcher.search(photos / "a" / "0.jpg", SearchOptions(rerank=False))
        reranked = searcher.search(photos / "a" / "0.jpg", SearchOptions(rerank=True))
        assert {result.id for result in plain} == {result.id for result in reranked}
        assert [result.score for result in reranked] == sorted((r.score for r in reranked), reverse=True)
        assert [result.score for result in reranked] != [result.score for result in plain]


@pytest.mark.slow
def test_a_result_says_where_the_thing_is_and_which_patches_agree(index: Path, photos: Path) -> None:
    with Searcher.open(index) as searcher:
        itself, *others = searcher.search(photos / "a" / "0.jpg", SearchOptions(include_self=True))
        evidence = itself.evidence
        assert evidence is not None and evidence.probability is None  # nothing was calibrated
        assert evidence.num_inliers > max(result.evidence.num_inliers for result in others if result.evidence)
        np.testing.assert_allclose(evidence.pairs[:, :2], evidence.pairs[:, 2:4], atol=0.15)  # onto itself
        assert evidence.transform is not None
        np.testing.assert_allclose(evidence.transform, np.eye(2, 3), atol=0.25)
        assert evidence.box is not None and evidence.box[2] * evidence.box[3] > 0.3
        assert searcher.search(photos / "a" / "0.jpg", SearchOptions(rerank=False))[0].evidence is None
        explained = searcher.explain(photos / "a" / "0.jpg", photos / "a" / "0.jpg")
        assert explained.evidence.num_inliers == evidence.num_inliers and explained.query_similarity.min() > 0.99


@pytest.mark.slow
def test_several_images_are_one_query(index: Path, photos: Path) -> None:
    first, second, third = (photos / "a" / f"{n}.jpg" for n in range(3))
    with Searcher.open(index) as searcher:
        both = searcher.search(MultiQuery((first, second)), SearchOptions(include_self=True))
        assert set(names(both)[:2]) == {"0.jpg", "1.jpg"}
        alone = {r.path: r.score for r in searcher.search(first, SearchOptions(include_self=True))}
        liked = {
            r.path: r.score
            for r in searcher.search(MultiQuery((first,), likes=(third,)), SearchOptions(include_self=True))
        }
        disliked = {r.path: r.score for r in searcher.search(MultiQuery((first,), dislikes=(third,)))}
        assert liked[str(third)] > alone[str(third)] > disliked[str(third)]
        assert str(first) not in disliked and str(third) in disliked  # what was disliked is not hidden
        assert not {str(first), str(third)} & {r.path for r in searcher.search(MultiQuery((first,), likes=(third,)))}


@pytest.mark.slow
def test_expansion_and_augmentation_mix_neighbours_in(index: Path, photos: Path) -> None:
    query = photos / "a" / "0.jpg"
    with Searcher.open(index) as searcher:
        vectors = {record.id: np.asarray(record.global_vector) for record in searcher.store.scroll(vectors=True)}
        (view,) = searcher.embed([query])
        plain = searcher.search(view, SearchOptions(rerank=False))
        best = np.stack([vectors[result.id] for result in plain[:2]])
        moved = view + np.maximum(best @ view, 0) ** 3 @ best
        moved /= np.linalg.norm(moved)
        for result in searcher.search(view, SearchOptions(rerank=False, expand=2)):
            assert result.score == pytest.approx(float(moved @ vectors[result.id]), abs=0.01)
        everything = np.stack(list(vectors.values()))
        for result in searcher.search(view, SearchOptions(rerank=False, augment=2)):
            cosines = everything @ vectors[result.id]
            near = np.argsort(-cosines)[:3]
            mixed = np.maximum(cosines[near], 0) ** 3 @ everything[near]
            assert result.score == pytest.approx(float(mixed / np.linalg.norm(mixed) @ view), abs=0.01)


@pytest.mark.slow
def test_tags_of_images_outside_of_the_index(index: Path, tmp_path: Path) -> None:
    with pytest.raises(SeenitError, match="not in the index"):
        change_tags(index, [tmp_path / "elsewhere.jpg"], lambda tags: tags | {"x"})


@pytest.mark.slow
def test_a_server_gives_the_same_answers_as_the_embedded_store(index: Path, photos: Path, tiny_backbone: Path) -> None:
    query = photos / "a" / "0.jpg"
    with QdrantPeer() as peer:
        url = f"{peer.url}/photos"
        first = sync_folder(photos, url, options=SyncOptions(resolution=56, workers=1), backbone=str(tiny_backbone))
        assert (first.images, first.embedded) == (9, 9)
        again = sync_folder(photos, url, options=SyncOptions(workers=1))
        assert (again.changes.unchanged, again.embedded) == (9, 0)
        assert change_tags(url, [photos / "b"], lambda tags: tags | {"blue"}) == 4
        with Searcher.open(index) as here, Searcher.open(url) as there:
            expected, found = (
                here.search(query, SearchOptions(rerank=True)),
                there.search(query, SearchOptions(rerank=True)),
            )
            assert [result.path for result in found] == [result.path for result in expected]
            np.testing.assert_allclose([r.score for r in found], [r.score for r in expected], atol=0.01)
            assert len(there.search(query, SearchOptions(where=Filter(tags=("blue",))))) == 4
        (photos / "a" / "1.jpg").rename(photos / "b" / "renamed.jpg")
        (photos / "a" / "2.jpg").unlink()
        last = sync_folder(photos, url, options=SyncOptions(workers=1))
        assert (last.changes.renamed, last.changes.removed, last.embedded) == (1, 1, 0)
        assert copy_index(url, photos.parent / "copied") == 8
    with Searcher.open(photos.parent / "copied") as copied:
        assert "renamed.jpg" in names(copied.search(query))


@pytest.mark.parametrize(("count", "wanted"), [(0, 100), (1000, 100), (2000, 126), (8000, 200), (10_000_000, 200)])
def test_more_candidates_are_compared_in_a_larger_index(count: int, wanted: int) -> None:
    assert reranked_of(count) == wanted
