"""Measures of rankings against hand-counted cases and slow twins; the evaluation as a whole on a few drawn photos."""

import json
import math
import random
import shutil
from pathlib import Path

import pytest
import pytrec_eval
from conftest import draw_photo, save_tiny
from PIL import Image
from texture_scenes import texture_pairs

from indexer import Backbone, SeenitError, sync_folder
from indexer.sync.options import SyncOptions
from retrieval.evaluate.evaluate import VARIANTS, Variant, evaluate_retrieval, scores_table
from retrieval.evaluate.ground_truth import JudgedQuery, read_tasks
from retrieval.evaluate.metrics import (
    RankedAnswer,
    average_precision,
    average_precision_at,
    correct_ranks,
    evaluate_ranking,
    match_quality,
    no_match_auc,
    recall_at,
)
from retrieval.options import SearchOptions


def query(name: str, correct: str, junk: str = "") -> JudgedQuery:
    return JudgedQuery(Path(name), frozenset(map(Path, correct)), frozenset(map(Path, junk)))


def paths(names: str) -> list[Path]:
    return [Path(name) for name in names]


def answers(names: str, *probabilities: float | None, threshold: float = 0.5) -> list[RankedAnswer]:
    """Answers in that order with these probabilities; matches from the threshold on."""
    return [
        RankedAnswer(Path(name), 1 - 0.1 * n, probability, bool(probability and probability >= threshold))
        for n, (name, probability) in enumerate(zip(names, probabilities, strict=True))
    ]


# ---- places ----


def test_counted_by_hand() -> None:
    # ranking x A y B with A and B correct: precision rises 0 -> 1/2 at A, 1/3 -> 1/2 at B
    ranks = correct_ranks(paths("xAyB"), query("q", "AB"))
    assert ranks == [1, 3]
    assert average_precision(ranks, 2) == pytest.approx((0 + 1 / 2) / 2 / 2 + (1 / 3 + 1 / 2) / 2 / 2)
    assert recall_at(ranks, 1) == 0 and recall_at(ranks, 2) == 1
    assert average_precision_at(ranks, 2, 3) == pytest.approx(1 / 2 / 2)  # B is beyond the third place
    assert average_precision_at(ranks, 2, 10) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert average_precision_at([0], 7, 1) == 1  # no more than one could stand among the first


def test_a_perfect_ranking_scores_one_and_a_miss_counts_as_never_found() -> None:
    assert average_precision([0, 1, 2], 3) == pytest.approx(1)
    assert average_precision([0], 2) == pytest.approx(1 / 2)
    assert average_precision([], 2) == 0
    assert average_precision_at([0, 1, 2], 3, 10) == pytest.approx(1)


def test_junk_moves_nothing() -> None:
    asked = query("q", "AB", junk="jk")
    with_junk = evaluate_ranking({Path("q"): paths("jAkxB")}, [asked])
    without = evaluate_ranking({Path("q"): paths("AxB")}, [asked])
    assert with_junk == without
    assert with_junk.recall[1] == 1


def test_measures_are_those_of_trec_eval() -> None:
    """Where both define a measure: "any correct answer among k", and mAP@k with no more than k correct answers."""
    chance = random.Random(5)
    ranking, qrels, queries = {}, {}, []
    for n in range(40):
        shown = [f"{n}-{i}" for i in range(30)]
        correct = frozenset(Path(name) for name in chance.sample(shown, chance.randint(1, 9)))
        unseen = frozenset(Path(f"{n}-never{i}") for i in range(chance.randint(0, 3)))
        queries.append(JudgedQuery(Path(f"q{n}"), correct | unseen, frozenset()))
        qrels[f"q{n}"] = {str(path): 1 for path in correct | unseen}
        ranking[f"q{n}"] = chance.sample(shown, 30)
    run = {asked: {name: float(-rank) for rank, name in enumerate(names)} for asked, names in ranking.items()}
    measured = pytrec_eval.RelevanceEvaluator(qrels, {"map_cut.20", "map_cut.30", "success.1,5,10"}).evaluate(run)
    theirs = {key: sum(one[key] for one in measured.values()) / len(measured) for key in measured["q0"]}
    rankings = {Path(asked): [Path(name) for name in names] for asked, names in ranking.items()}
    ours = evaluate_ranking(rankings, queries, ks=(1, 5, 10), precision_ks=(20, 30))
    for k in (1, 5, 10):
        assert ours.recall[k] == pytest.approx(theirs[f"success_{k}"])
    for k in (20, 30):
        assert ours.mean_average_precision_at[k] == pytest.approx(theirs[f"map_cut_{k}"])
    assert 0.1 < theirs["success_5"] < 0.9  # neither is measured on nothing


def slow_average_precision(ranking: list[Path], asked: JudgedQuery) -> float:
    """Walks down the ranking and adds a trapezoid wherever recall rises."""
    area, found, seen, recall, precision = 0.0, 0, 0, 0.0, 1.0
    for path in ranking:
        if path in asked.junk:
            continue
        seen += 1
        found += path in asked.correct
        if path in asked.correct:
            area += (found / len(asked.correct) - recall) * (precision + found / seen) / 2
        recall, precision = found / len(asked.correct), found / seen
    return area


def slow_average_precision_at(ranking: list[Path], asked: JudgedQuery, k: int) -> float:
    """The precision at each of the first k places that holds a correct answer."""
    kept = [path for path in ranking if path not in asked.junk][:k]
    precisions = [
        sum(path in asked.correct for path in kept[: n + 1]) / (n + 1)
        for n in range(len(kept))
        if kept[n] in asked.correct
    ]
    return sum(precisions) / min(k, len(asked.correct))


def test_average_precisions_equal_their_slow_twins() -> None:
    chance = random.Random(0)
    for _ in range(50):
        ranking = paths("abcdefghijklmnop")
        chance.shuffle(ranking)
        asked = query("q", "".join(chance.sample("abcdefgh", 3)), "".join(chance.sample("ijklmnop", 4)))
        ranks = correct_ranks(ranking, asked)
        assert average_precision(ranks, 3) == pytest.approx(slow_average_precision(ranking, asked))
        for k in (1, 2, 5, 12):
            assert average_precision_at(ranks, 3, k) == pytest.approx(slow_average_precision_at(ranking, asked, k))


def test_means_leave_out_queries_without_an_answer() -> None:
    queries = [query("p", "A"), query("q", "B"), query("r", "")]
    quality = evaluate_ranking({Path("p"): paths("Ax"), Path("q"): paths("xB")}, queries, ks=(1, 2))
    assert quality.recall == {1: 0.5, 2: 1.0}
    assert quality.mean_average_precision == pytest.approx((1 + 0.25) / 2)
    assert quality.mean_average_precision_at[10] == pytest.approx((1 + 0.5) / 2)
    assert (quality.num_queries, quality.num_unanswerable) == (2, 1)
    assert math.isnan(evaluate_ranking({}, [query("r", "")]).mean_average_precision)


def test_a_missing_ranking_is_an_error() -> None:
    with pytest.raises(SeenitError, match="no ranking for q"):
        evaluate_ranking({}, [query("q", "A")])
    with pytest.raises(SeenitError, match="no ranking for q"):
        match_quality({}, [query("q", "A")])


# ---- matches ----


def test_matches_counted_by_hand() -> None:
    queries = [query("p", "AB", junk="j"), query("q", "C"), query("r", "")]
    rankings = {
        Path("p"): answers("jAxB", 0.99, 0.9, 0.6, 0.2),  # junk does not count; A right, x wrong, B no match
        Path("q"): answers("yC", 0.4, 0.3),  # nothing is a match
        Path("r"): answers("z", 0.7),  # a match, and nothing is right
    }
    quality = match_quality(rankings, queries)
    assert quality.precision == pytest.approx(1 / 3)
    assert quality.recall == pytest.approx(1 / 2)
    assert quality.false_alarms == pytest.approx(2 / 3)  # x for p, z for r
    # tops with the thing: .9, .4; without: x .6, y .4, z .7
    assert quality.no_match_auc == pytest.approx((3 + 0 + 1 / 2) / 6)


def slow_auc(rankings: dict[Path, list[RankedAnswer]], queries: list[JudgedQuery]) -> float:
    present, absent = [], []
    for asked in queries:
        trusts = [(answer.probability, answer.path) for answer in rankings[asked.path] if answer.path not in asked.junk]
        if asked.correct:
            present.append(trusts[0][0] if trusts else -math.inf)
        wrong = [trust for trust, path in trusts if path not in asked.correct]
        absent.append(wrong[0] if wrong else -math.inf)
    wins = [(p > a) + (p == a) / 2 for p in present for a in absent]  # type: ignore[operator]
    return sum(wins) / len(wins)


def test_auc_equals_its_slow_twin() -> None:
    chance = random.Random(1)
    queries, rankings = [], {}
    for n in range(40):
        names = "".join(chance.sample("abcdefgh", chance.randint(0, 8)))
        queries.append(query(str(n), "".join(chance.sample("abcd", n % 3)), "".join(chance.sample("efgh", 2))))
        rankings[Path(str(n))] = answers(names, *(round(chance.random(), 1) for _ in names))
    assert no_match_auc(rankings, queries) == pytest.approx(slow_auc(rankings, queries))
    assert 0.3 < no_match_auc(rankings, queries) < 0.9


def test_without_calibration_scores_serve_and_nothing_is_a_match() -> None:
    queries = [query("p", "A"), query("q", "B")]
    rankings = {Path("p"): answers("Ax", None, None), Path("q"): answers("By", None, None)}
    quality = match_quality(rankings, queries)
    assert quality.no_match_auc == 1
    assert math.isnan(quality.precision) and math.isnan(quality.recall) and math.isnan(quality.false_alarms)
    assert math.isnan(no_match_auc({Path("r"): answers("x", 0.5)}, [query("r", "")]))


# ---- the whole way ----


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    """Six photos, a poorer copy of each to ask with, a query whose thing is not there, and one that is broken."""
    rows = ["path,role,instance,note"]
    for n in range(6):
        photo = draw_photo(tmp_path / "set" / f"g{n}.png", n)
        with Image.open(photo) as image:
            image.save(photo.with_name(f"q{n}.jpg"), quality=85)
        rows += [f"g{n}.png,gallery,{n},", f"q{n}.jpg,query,{n},"]
    draw_photo(tmp_path / "set" / "nothing.png", 50)
    (tmp_path / "set" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    rows += ["nothing.png,query,none,", "broken.png,query,3,"]
    (tmp_path / "set" / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    for n in range(4):
        draw_photo(tmp_path / "others" / f"d{n}.png", 20 + n)
    return tmp_path / "set" / "manifest.csv"


@pytest.mark.slow
def test_a_set_is_indexed_searched_and_scored(test_set: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    said: list[str] = []
    scores = evaluate_retrieval(
        test_set,
        distractors=tmp_path / "others",
        backbone=str(tiny_backbone),
        resolution=56,
        variants=(Variant("plain", SearchOptions(rerank=False)), Variant("reranked", SearchOptions())),
        say=said.append,
    )
    assert [(one.task, one.variant) for one in scores] == [("set", "plain"), ("set", "reranked")]
    for one in scores:
        assert (one.num_gallery, one.quality.num_queries, one.quality.num_unanswerable) == (10, 6, 1)
        assert one.resolution == 56
        assert one.quality.recall[1] > 0.8 and one.quality.mean_average_precision > 0.8
        assert one.matches.no_match_auc > 0.8
    assert any("broken.png" in line for line in said)
    table = scores_table(scores).splitlines()
    assert len(table) == 4 and len({len(line) for line in table}) == 1
    assert f"{scores[1].quality.mean_average_precision:.3f}" in table[3]
    read = json.loads(json.dumps(scores[0].as_json(), allow_nan=False))
    assert read["quality"]["recall"]["1"] == scores[0].quality.recall[1]


@pytest.mark.slow
def test_an_index_is_made_once_and_then_used(test_set: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    index = tmp_path / "kept"
    first = evaluate_retrieval(test_set, index=index, backbone=str(tiny_backbone), resolution=56, variants=VARIANTS[:1])
    made = (index / "index.sqlite").read_bytes()
    again = evaluate_retrieval(test_set, index=index, variants=VARIANTS[:1])  # `auto`: by the backbone that made it
    assert [one.as_json() for one in again] == [one.as_json() for one in first]
    assert (index / "index.sqlite").read_bytes() == made
    with pytest.raises(SeenitError, match="resolution 56, not 112"):
        evaluate_retrieval(test_set, index=index, resolution=112)
    other = save_tiny(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(SeenitError, match="tiny1"):
        evaluate_retrieval(test_set, index=index, backbone=Backbone.load(other))


@pytest.mark.slow
def test_an_index_of_other_images_is_refused(test_set: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    photos = tmp_path / "mine"
    photos.mkdir()
    for file in test_set.parent.glob("g[0-4].png"):
        shutil.copy(file, photos / f"renamed_{file.name}")
    sync_folder(photos, tmp_path / "index", options=SyncOptions(resolution=56, workers=1), backbone=str(tiny_backbone))
    with pytest.raises(SeenitError, match=r"0 other images are in it, .*g5.png is not") as error:
        evaluate_retrieval(test_set, index=tmp_path / "index")
    assert "\n" not in str(error.value)
    shutil.copy(test_set.parent / "g5.png", photos)
    sync_folder(photos, tmp_path / "index", options=SyncOptions(workers=1))
    assert evaluate_retrieval(test_set, index=tmp_path / "index", variants=VARIANTS[:1])[0].num_gallery == 6
    shutil.copy(test_set.parent / "nothing.png", photos)
    sync_folder(photos, tmp_path / "index", options=SyncOptions(workers=1))
    with pytest.raises(SeenitError, match="1 other images are in it"):
        evaluate_retrieval(test_set, index=tmp_path / "index")


def test_one_index_serves_one_set(test_set: Path, tmp_path: Path) -> None:
    with pytest.raises(SeenitError, match="one gallery, and 2 test sets"):
        evaluate_retrieval([test_set, test_set], index=tmp_path / "index")


@pytest.mark.slow
def test_pairs_of_textures_are_a_test_set(tmp_path: Path) -> None:
    pairs = texture_pairs(tmp_path / "a", 1, controls=1)
    assert [(pair.texture, pair.same) for pair in pairs] == [("sky", False), ("sky", True)]
    (task,) = read_tasks(tmp_path / "a" / "manifest.csv")
    assert task.gallery == tuple(pair.second for pair in pairs)
    assert [asked.correct for asked in task.queries] == [frozenset(), frozenset({pairs[1].second})]
    again = texture_pairs(tmp_path / "b", 1, controls=1)
    assert [pair.first.read_bytes() for pair in again] == [pair.first.read_bytes() for pair in pairs]
    assert len({path.read_bytes() for pair in pairs for path in (pair.first, pair.second)}) == 4
