"""What a score is worth, learnt from the index's own images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_photo

from indexer import sync_folder
from indexer.index.calibration import CALIBRATION_BLOB, FORMAT, Calibration, calibration_json, parse_calibration
from indexer.index.index import Index
from indexer.store.protocol import Hit
from indexer.sync.options import SyncOptions
from retrieval import Searcher, build_index
from retrieval.calibrate import (
    BACKGROUND,
    CONSISTENCY_SLOPE,
    OFFSET,
    SLOPE,
    background_score,
    calibrate,
    stored_view,
)
from retrieval.evaluate.ground_truth import read_tasks
from retrieval.options import SearchOptions
from retrieval.query.query import EncodedQuery
from retrieval.rerank.ranking import rank_by_patches
from retrieval.results import note_on
from retrieval.scenes import draw_scenes


@pytest.fixture
def index(photos: Path, tiny_backbone: Path) -> Path:
    sync_folder(photos, options=SyncOptions(resolution=112, workers=1), backbone=str(tiny_backbone))
    return photos / ".seenit"


@pytest.mark.slow
def test_an_index_learns_how_probable_a_match_is(index: Path, photos: Path, tmp_path: Path) -> None:
    with Searcher.open(index) as searcher:
        assert searcher.calibration is None
        unsure = searcher.search(photos / "a" / "0.jpg", SearchOptions(include_self=True))[0].evidence
        assert unsure is not None and unsure.verdict is None and not unsure.is_match
    learnt = calibrate(index)
    assert learnt is not None and learnt.images == 8
    with Searcher.open(index) as searcher:
        assert searcher.calibration == learnt
        itself, *others = searcher.search(photos / "a" / "0.jpg", SearchOptions(include_self=True))
        assert itself.evidence is not None and itself.evidence.probability is not None
        for other in others:
            assert other.evidence is not None and other.evidence.probability is not None
            assert other.evidence.probability <= itself.evidence.probability
        unknown = searcher.search(draw_photo(tmp_path / "unknown.png", 99))[0].evidence
        assert unknown is not None and unknown.probability < itself.evidence.probability  # type: ignore[operator]


@pytest.mark.slow
def test_the_curve_begins_where_unrelated_images_score(index: Path) -> None:
    learnt = calibrate(index)
    with Searcher.open(index) as searcher:
        background = background_score(searcher.store)
        assert learnt is not None and background == pytest.approx(learnt.background)
        records = list(searcher.store.scroll(vectors=True))
        scores = []
        for one in records:  # the slow way: each image against each of the others
            assert one.global_vector is not None and one.patches is not None
            query = EncodedQuery((stored_view(one.global_vector, one.patches),))
            for other in records:
                assert other.global_vector is not None and other.patches is not None
                if other.id != one.id:
                    hit = Hit(other.id, float(one.global_vector @ other.global_vector))
                    scores.append(rank_by_patches({other.id: other.patches}, query, [hit]).hits[0].score)
        assert np.median(scores) == pytest.approx(background, abs=1e-4)
        assert background_score(searcher.store, stop=lambda: True) is None
    even = -learnt.offset / learnt.slope - learnt.background  # how far above the background odds are even
    assert (learnt.slope, learnt.consistency_slope) == (SLOPE, CONSISTENCY_SLOPE)
    assert even == pytest.approx(-OFFSET / SLOPE - BACKGROUND)


@pytest.mark.slow
def test_learning_takes_neither_backbone_nor_files(index: Path, photos: Path) -> None:
    for path in photos.rglob("*.png"):
        path.unlink()
    (photos / "a" / "0.jpg").unlink()
    assert calibrate(index) is not None
    assert calibrate(index, stop=lambda: True) is not None  # what is learnt already is only read


@pytest.mark.slow
def test_learning_is_stopped_between_images(index: Path) -> None:
    assert calibrate(index, stop=lambda: True) is None
    with Index.open(index) as opened:
        assert opened.calibration is None


@pytest.mark.long
def test_it_is_learnt_anew_only_when_it_no_longer_holds(index: Path, photos: Path) -> None:
    learnt = calibrate(index)
    assert learnt is not None
    marked = replace(learnt, offset=learnt.offset + 1)
    with Index.open(index, write=True) as opened:
        opened.store.write_blob(CALIBRATION_BLOB, calibration_json(marked))
    assert calibrate(index) == marked
    for n in range(60):
        draw_photo(photos / "c" / f"{n}.jpg", 100 + n)
    sync_folder(photos)  # 68 images: more than eight times as many, and the statistics are fitted anew
    again = calibrate(index)
    assert again is not None and again.images == 68 and again.whitening_id != learnt.whitening_id


@pytest.mark.slow
def test_small_and_damaged(index: Path, tmp_path: Path, tiny_backbone: Path) -> None:
    few = tmp_path / "few"
    draw_photo(few / "1.png", 1)
    sync_folder(few, options=SyncOptions(resolution=56, workers=1), backbone=str(tiny_backbone))
    assert calibrate(few / ".seenit") is None
    good = {"format": FORMAT, **vars(Calibration(9.0, -4.0, 9.0, -4.0, "fit", 8, 0.1, 0.3, 7.0))}
    for bad in (
        b"",
        b"[]",
        b"{",
        b"{}",
        *(
            json.dumps(good | change).encode()
            for change in (
                {"format": FORMAT + 1},
                {"slope": float("nan")},
                {"slope": "9"},
                {"background": float("inf")},
                {"colour_slope": float("nan")},
                {"whitening_id": "another"},
                {"more": 1},
            )
        ),
    ):
        assert parse_calibration(bad, "fit") is None
        with Index.open(index, write=True) as opened:
            opened.store.write_blob(CALIBRATION_BLOB, bad)
            assert opened.refresh() is False and opened.calibration is None
    assert parse_calibration(None, "fit") is None
    assert parse_calibration(json.dumps(good).encode(), "fit") is not None


def test_the_lower_probability_counts() -> None:
    curve = Calibration(10.0, -5.0, 10.0, -5.0, "fit", 100, 0.1, 0.5, 1.7)
    assert curve.probability(0.5, 0.5) == pytest.approx(0.5)
    assert curve.probability(0.9, 0.1) == curve.probability(0.1, 0.9) < 0.05 < 0.95 < curve.probability(0.9, 0.9)


def test_colours_speak_against_a_match_without_limit_and_for_it_a_little() -> None:
    curve = Calibration(10.0, -5.0, 10.0, -5.0, "fit", 100, 0.1, 0.5, 1.7)
    unknown = curve.probability(0.5, 0.9)
    assert curve.probability(0.5, 0.9, 1.7) == unknown == pytest.approx(0.5)
    assert curve.probability(0.5, 0.9, 3.7) == pytest.approx(1 / (1 + np.e))
    assert curve.probability(0.5, 0.9, 21.7) == pytest.approx(1 / (1 + np.exp(10)))
    alike = curve.probability(0.5, 0.9, 0.0)
    assert alike == curve.probability(0.5, 0.9, 1.0) == pytest.approx(1 / (1 + np.exp(-0.1)))
    assert curve.probability(0.9, 0.1, 0.0) == curve.probability(0.9, 0.1), "colours do not take back what stands out"


def test_no_colours_make_a_match_more_probable_than_it_can_be() -> None:
    curve = Calibration(10.0, -5.0, 10.0, -5.0, "fit", 100, 0.1, 0.5, 1.7)
    for score, consistency in ((0.5, 0.9), (0.9, 0.1), (0.1, 0.1)):
        most = curve.most_probable(score, consistency)
        assert most == curve.probability(score, consistency, 0.0), "equal colours speak for it as much as any can"
        assert all(curve.probability(score, consistency, one) <= most for one in (None, 0.5, 1.7, 9.0))


@pytest.mark.long
def test_the_demo_shows_its_right_answers_as_matches(tmp_path: Path) -> None:
    """With the shipped backbone, as whoever tries seenit meets it."""
    demo = draw_scenes(tmp_path / "demo", instances=8, views=4, distractors=12)
    built = build_index(demo / "photos", backbone="seenit_vits14")
    assert built.calibration is not None
    (task,) = read_tasks(demo / "manifest.csv")
    with Searcher.open(demo / "photos" / ".seenit") as searcher:
        answers = searcher.search_batch([query.path for query in task.queries], SearchOptions(top=6))
    firsts = [results[0] for results in answers]
    found = [Path(one.path) in query.correct for one, query in zip(firsts, task.queries, strict=True)]
    assert np.mean(found) >= 0.75
    believed = [one.evidence is not None and one.evidence.is_match for one in firsts]
    right = [one for one, is_right in zip(believed, found, strict=True) if is_right]
    assert np.mean(right) >= 0.75, "who looks at right results reads that they are"
    assert sum(bool(note_on(results)) for results in answers) <= len(answers) / 4
