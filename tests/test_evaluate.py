"""Recall and average precision against hand-counted cases and a slow twin; manifests against small files."""

import math
import random
from pathlib import Path

import pytest

from indexer.errors import SeenitError
from retrieval.evaluate import (
    Query,
    average_precision,
    correct_ranks,
    evaluate_ranking,
    is_neighbour,
    make_task,
    read_manifest,
    recall_at,
)


def query(name: str, correct: str, junk: str = "") -> Query:
    return Query(Path(name), frozenset(map(Path, correct)), frozenset(map(Path, junk)))


def paths(names: str) -> list[Path]:
    return [Path(name) for name in names]


def test_counted_by_hand() -> None:
    # ranking x A y B with A and B correct: precision rises 0 -> 1/2 at A, 1/3 -> 1/2 at B
    ranks = correct_ranks(paths("xAyB"), query("q", "AB"))
    assert ranks == [1, 3]
    assert average_precision(ranks, 2) == pytest.approx((0 + 1 / 2) / 2 / 2 + (1 / 3 + 1 / 2) / 2 / 2)
    assert recall_at(ranks, 1) == 0 and recall_at(ranks, 2) == 1


def test_a_perfect_ranking_scores_one_and_a_miss_counts_as_never_found() -> None:
    assert average_precision([0, 1, 2], 3) == pytest.approx(1)
    assert average_precision([0], 2) == pytest.approx(1 / 2)
    assert average_precision([], 2) == 0


def test_junk_moves_nothing() -> None:
    asked = query("q", "AB", junk="jk")
    with_junk = evaluate_ranking({Path("q"): paths("jAkxB")}, [asked])
    without = evaluate_ranking({Path("q"): paths("AxB")}, [asked])
    assert with_junk == without
    assert with_junk.recall[1] == 1


def slow_average_precision(ranking: list[Path], asked: Query) -> float:
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


def test_average_precision_equals_its_slow_twin() -> None:
    chance = random.Random(0)
    for _ in range(50):
        ranking = paths("abcdefghijklmnop")
        chance.shuffle(ranking)
        asked = query("q", "".join(chance.sample("abcdefgh", 3)), "".join(chance.sample("ijklmnop", 4)))
        ranks = correct_ranks(ranking, asked)
        assert average_precision(ranks, 3) == pytest.approx(slow_average_precision(ranking, asked))


def test_means_leave_out_queries_without_an_answer() -> None:
    queries = [query("p", "A"), query("q", "B"), query("r", "")]
    quality = evaluate_ranking({Path("p"): paths("Ax"), Path("q"): paths("xB")}, queries, ks=(1, 2))
    assert quality.recall == {1: 0.5, 2: 1.0}
    assert quality.mean_average_precision == pytest.approx((1 + 0.25) / 2)
    assert (quality.num_queries, quality.num_unanswerable) == (2, 1)
    assert math.isnan(evaluate_ranking({}, [query("r", "")]).mean_average_precision)


def test_a_missing_ranking_is_an_error() -> None:
    with pytest.raises(SeenitError, match="no ranking for q"):
        evaluate_ranking({}, [query("q", "A")])


def write_manifest(folder: Path, rows: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "manifest.csv").write_text("path,role,instance,note\n" + rows, encoding="utf-8")
    return folder / "manifest.csv"


def test_task_of_a_manifest(tmp_path: Path) -> None:
    rows = "g/1.jpg,gallery,1,\ng/2.jpg,gallery,2,\nq.jpg,query,1 2,two in one\n"
    rows += "t.jpg,clean_twin,1,\nn.jpg,query,none,\n"
    other = write_manifest(tmp_path / "others", "d.jpg,distractor,none,\n")
    task = make_task(read_manifest(write_manifest(tmp_path / "set", rows)), read_manifest(other))
    one, two = tmp_path / "set/g/1.jpg", tmp_path / "set/g/2.jpg"
    assert task.gallery == (one, two, tmp_path / "others/d.jpg")
    both, none = task.queries
    assert both.correct == {one, two} and both.junk == frozenset()
    assert none.correct == frozenset()


def test_leave_one_out_and_the_instance_junk(tmp_path: Path) -> None:
    rows = "a.jpg,both,louvre,\nb.jpg,both,louvre,\nj.jpg,both,junk,\nw.jpg,query,louvre,web\n"
    task = make_task(read_manifest(write_manifest(tmp_path / "set", rows)))
    a, b, j, w = (tmp_path / "set" / f"{name}.jpg" for name in "abjw")
    assert task.queries == (
        Query(a, frozenset({b}), frozenset({a, j})),
        Query(b, frozenset({a}), frozenset({b, j})),
        Query(w, frozenset({a, b}), frozenset({j})),
    )


def test_neighbouring_landmarks_are_junk_and_other_numbers_are_not(tmp_path: Path) -> None:
    rows = "".join(f"{n}.jpg,gallery,landmarks/{n:03},\n" for n in range(1, 7)) + "q.jpg,query,landmarks/004,\n"
    (asked,) = make_task(read_manifest(write_manifest(tmp_path / "set", rows))).queries
    assert {path.stem for path in asked.correct} == {"4"}
    assert {path.stem for path in asked.junk} == {"2", "3", "5", "6"}
    assert is_neighbour("landmarks/0000", "landmarks/002")
    assert not is_neighbour("dvd_covers/001", "dvd_covers/002") and not is_neighbour("1", "2")


@pytest.mark.parametrize(
    ("content", "says"),
    [("path,role\na,b\n", "no column instance"), ("path,role,instance\na.jpg,gallery\n", "line 2"), (None, "manifest")],
)
def test_a_broken_manifest_is_one_line(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "manifest.csv"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(SeenitError, match=says) as error:
        read_manifest(file)
    assert "\n" not in str(error.value)
