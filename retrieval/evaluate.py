"""How good a ranking is: recall at k and mean average precision, with junk taken out as the revisited Oxford and
Paris protocol does (Radenovic et al., CVPR 2018).

A junk picture is neither right nor wrong: it is removed before ranks are counted, so that it moves nothing. The same
removal serves leave-one-out, where the query is itself in the gallery.
"""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import SeenitError

JUNK = "junk"  # the instance of a picture that every query ignores
NONE = "none"  # the instance of a picture that shows nothing in the gallery
COLUMNS = ("path", "role", "instance")
GALLERY_ROLES = ("gallery", "both", "distractor")
QUERY_ROLES = ("query", "both")


@dataclass(frozen=True)
class Picture:
    """One row of a manifest. `instances` is what the picture shows, () for `none`."""

    path: Path
    role: str
    instances: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Query:
    """A picture to search with, the answers that are right, and those that do not count."""

    path: Path
    correct: frozenset[Path]
    junk: frozenset[Path]


@dataclass(frozen=True)
class Task:
    """A gallery to index and the queries to ask of it."""

    gallery: tuple[Path, ...]
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class Quality:
    """Means over the queries that have a correct answer; NaN where there is none."""

    recall: dict[int, float]  # k -> share of queries with a correct answer among the first k, in [0, 1]
    mean_average_precision: float  # in [0, 1]
    num_queries: int
    num_unanswerable: int  # queries whose instance is not in the gallery, left out above


def read_manifest(path: str | Path) -> list[Picture]:
    """The rows of a set's `manifest.csv`; pictures' paths are joined to the manifest's folder.

    Columns `path, role, instance, note`; several instances are separated by spaces.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise SeenitError(f"{path} has no column {', '.join(missing)}; a manifest has {', '.join(COLUMNS)}")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SeenitError(f"cannot read the manifest {path}: {error}; name a set's manifest.csv") from error
    pictures = []
    for line, row in enumerate(rows, start=2):
        if not all(row[name] for name in COLUMNS):
            raise SeenitError(f"{path} line {line} lacks one of {', '.join(COLUMNS)}; fill it in or remove the line")
        instances = () if row["instance"] == NONE else tuple(row["instance"].split())
        pictures.append(Picture(path.parent / row["path"], row["role"], instances, row.get("note") or ""))
    return pictures


def make_task(pictures: Sequence[Picture], distractors: Sequence[Picture] = ()) -> Task:
    """The retrieval task of a set: each query with the gallery pictures that are right for it and those that are junk.

    Junk are: the query itself (role `both`), pictures of the instance `junk`, and neighbours (see `is_neighbour`).
    A picture of the instance `junk` asks nothing.
    """
    gallery = [picture for picture in (*pictures, *distractors) if picture.role in GALLERY_ROLES]
    queries = []
    for asked in pictures:
        if asked.role not in QUERY_ROLES or JUNK in asked.instances:
            continue
        correct, junk = set(), set()
        for picture in gallery:
            if picture.path == asked.path or JUNK in picture.instances:
                junk.add(picture.path)
            elif set(picture.instances) & set(asked.instances):
                correct.add(picture.path)
            elif any(is_neighbour(a, b) for a in picture.instances for b in asked.instances):
                junk.add(picture.path)
        queries.append(Query(asked.path, frozenset(correct), frozenset(junk)))
    return Task(tuple(picture.path for picture in gallery), tuple(queries))


def is_neighbour(a: str, b: str) -> bool:
    """Whether two instances may show the same corner: `landmarks/012` and `landmarks/014`, numbers within 2."""
    numbers = [re.fullmatch(r"landmarks/(\d+)", instance) for instance in (a, b)]
    if not (numbers[0] and numbers[1]):
        return False
    return abs(int(numbers[0][1]) - int(numbers[1][1])) <= 2


def correct_ranks(ranking: Sequence[Path], query: Query) -> list[int]:
    """The ranks, counted from 0 and without junk, at which the query's correct answers stand; ascending."""
    kept = [path for path in ranking if path not in query.junk]
    return [rank for rank, path in enumerate(kept) if path in query.correct]


def recall_at(ranks: Sequence[int], k: int) -> float:
    """1.0 where a correct answer stands among the first k, else 0.0."""
    return float(any(rank < k for rank in ranks))


def average_precision(ranks: Sequence[int], num_correct: int) -> float:
    """Area under the precision-recall curve by trapezoids, as the Oxford and Paris benchmarks compute it.

    ranks        ranks of the correct answers that were found, from 0, ascending, without junk
    num_correct  how many there are; those not found count as never found
    """
    area = 0.0
    for found, rank in enumerate(ranks):
        before = found / rank if rank else 1.0  # precision just above this answer
        after = (found + 1) / (rank + 1)
        area += (before + after) / 2 / num_correct
    return area


def evaluate_ranking(
    rankings: Mapping[Path, Sequence[Path]], queries: Sequence[Query], ks: Sequence[int] = (1, 10)
) -> Quality:
    """The quality of one set's rankings.

    rankings  query's path -> gallery pictures, best first, each once; may be cut off after some length, and what was
              cut off counts as not found (ask for some more than the largest k, for junk is taken out first)
    """
    asked = [query for query in queries if query.correct]
    missing = [query.path for query in asked if query.path not in rankings]
    if missing:
        raise SeenitError(f"no ranking for {missing[0]} and {len(missing) - 1} other queries; search with them all")
    ranks = [correct_ranks(rankings[query.path], query) for query in asked]
    return Quality(
        recall={k: _mean([recall_at(found, k) for found in ranks]) for k in ks},
        mean_average_precision=_mean(
            [average_precision(found, len(query.correct)) for found, query in zip(ranks, asked, strict=True)]
        ),
        num_queries=len(asked),
        num_unanswerable=len(queries) - len(asked),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
