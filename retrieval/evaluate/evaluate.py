"""Evaluates retrieval the way a user meets it: index a test set's gallery, ask every query, hold the answers against
the known ones.

The same queries are asked in several variants side by side, from the global descriptor alone to everything that a
search can do, so that each step's gain or loss shows.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from indexer.backbone.backbone import Backbone
from indexer.errors import ImageError, SeenitError
from indexer.images.decode import decode_file
from indexer.messages import Say, say_nothing
from indexer.printable import printable
from indexer.progress_bar import progress_bar

from ..options import SearchOptions
from ..query.query import Region
from ..results import Result
from .gallery_index import Gallery, is_made, open_gallery
from .ground_truth import JudgedQuery, Task, make_task, read_distractors, read_ground_truth_csv, read_tasks
from .metrics import RECALL_AT, MatchQuality, Quality, RankedAnswer, evaluate_ranking, match_quality

__all__ = [
    "VARIANTS",
    "JudgedQuery",
    "Quality",
    "RetrievalScores",
    "Task",
    "Variant",
    "evaluate_ranking",
    "evaluate_retrieval",
    "make_task",
    "read_ground_truth_csv",
    "scores_table",
]

QUERIES_AT_ONCE = 32
DEEP_PRECISION_AT = (10, 100, 1000)  # those beyond a task's depth are left out


@dataclass(frozen=True)
class Variant:
    """A way to search: a name for the table and what is asked; `top` and `exact` are the evaluation's."""

    name: str
    options: SearchOptions


VARIANTS = (
    Variant("global", SearchOptions(rerank=False)),
    Variant("+ patches", SearchOptions()),
    Variant("+ expansion", SearchOptions(expand=3)),
    Variant("like kind", SearchOptions(like_kind=True)),
)


@dataclass(frozen=True)
class RetrievalScores:
    """One task's scores in one variant."""

    task: str
    variant: str
    backbone: str
    resolution: int
    num_gallery: int
    quality: Quality
    matches: MatchQuality

    def as_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; null where there was nothing to measure."""
        return _plain(asdict(self))

    def table(self) -> str:
        return scores_table([self])


def evaluate_retrieval(
    sources: str | Path | Sequence[str | Path],
    *,
    distractors: str | Path | None = None,
    index: str | Path | None = None,
    backbone: Backbone | str | Path = "auto",
    resolution: int | None = None,
    variants: Sequence[Variant] = VARIANTS,
    exact: bool = False,
    depth: int | None = None,
    progress: bool = False,
    say: Say = say_nothing,
) -> tuple[RetrievalScores, ...]:
    """Scores of every task of the test sets in every variant, a task's variants one after the other.

    sources      test sets as `ground_truth.read_tasks` takes them
    distractors  a manifest or a folder of images to be added to every gallery
    index        where the gallery's index is or is to be made, for one test set: one that is there must hold exactly
                 the gallery's images, by content, wherever they lay when they were indexed; default: a temporary
                 index for each test set
    backbone     a name, a path or a loaded one; `auto` with an index that is there: the one that made it
    resolution   pixels, for a new index; default 224
    exact        compare with every image instead of walking the graph, and rerank them all
    depth        answers of a ranking that count, the others are taken as not found; default: the task's own
    progress     progress bars on stderr
    say          gets one line for the user now and then

    A query that cannot be read is reported and left out. Raises SeenitError in one line for everything else.
    """
    sources = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if index is not None and len(sources) > 1:
        raise SeenitError(f"an index holds one gallery, and {len(sources)} test sets were named; name one, or no index")
    added = read_distractors(distractors) if distractors is not None else ()
    tasks_of_all = [read_tasks(source, added) for source in sources]  # mistakes show before the work begins
    if not isinstance(backbone, Backbone) and not (index is not None and is_made(index) and backbone == "auto"):
        backbone = Backbone.load(backbone, say=say)
    scores: list[RetrievalScores] = []
    for tasks in tasks_of_all:
        with open_gallery(tasks[0].gallery, index, backbone, resolution, progress, say) as gallery:
            scores += _scores(tasks, gallery, variants, exact, depth, progress, say)
    return tuple(scores)


def scores_table(scores: Sequence[RetrievalScores]) -> str:
    """All scores as one table in Markdown; what was measured nowhere has no column."""
    columns = {
        "set": [printable(one.task) for one in scores],
        "search": [one.variant for one in scores],
        "queries": [str(one.quality.num_queries) for one in scores],
        "gallery": [str(one.num_gallery) for one in scores],
        **{f"recall@{k}": [_cell(one.quality.recall[k]) for one in scores] for k in RECALL_AT},
        "mAP": [_cell(one.quality.mean_average_precision) for one in scores],
        "mAP@10": [_cell(one.quality.mean_average_precision_at[10]) for one in scores],
        "match precision": [_cell(one.matches.precision) for one in scores],
        "match recall": [_cell(one.matches.recall) for one in scores],
        "false alarms": [_cell(one.matches.false_alarms) for one in scores],
        "no-match AUC": [_cell(one.matches.no_match_auc) for one in scores],
    }
    columns = {head: cells for head, cells in columns.items() if set(cells) != {"-"}}
    widths = {head: max(len(head), *map(len, cells)) for head, cells in columns.items()}
    lines = [list(columns), ["-" * width for width in widths.values()], *zip(*columns.values(), strict=True)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths.values(), strict=True)) + " |"
        for line in lines
    )


# ---- asking ----


def _scores(
    tasks: Sequence[Task],
    gallery: Gallery,
    variants: Sequence[Variant],
    exact: bool,
    depth: int | None,
    progress: bool,
    say: Say,
) -> list[RetrievalScores]:
    """Each task in each variant; a query that several tasks share is asked once."""
    regions = _readable({query.path: query.region for task in tasks for query in task.queries}, say)
    top = depth or tasks[0].depth
    rankings = _ask(gallery, regions, top, variants, exact, progress)
    manifest = gallery.searcher.manifest
    scores = []
    for task in tasks:
        queries = [query for query in task.queries if query.path in regions]
        for name, of_variant in rankings.items():
            places = {path: [answer.path for answer in answers] for path, answers in of_variant.items()}
            ks = [k for k in DEEP_PRECISION_AT if k <= max(top, 10)]
            scores.append(
                RetrievalScores(
                    task=task.name,
                    variant=name,
                    backbone=manifest.backbone,
                    resolution=manifest.resolution,
                    num_gallery=len(task.gallery),
                    quality=evaluate_ranking(places, queries, precision_ks=ks),
                    matches=match_quality(of_variant, queries),
                )
            )
    return scores


def _readable(regions: dict[Path, Region | None], say: Say) -> dict[Path, Region | None]:
    """The queries that can be decoded; the others are reported."""
    readable = {}
    for path, region in regions.items():
        try:
            decode_file(path, target_px=64)
            readable[path] = region
        except ImageError as error:
            say(f"left out a query: {error}")
    if not readable:
        raise SeenitError(f"none of the {len(regions)} queries can be read; give images that can")
    return readable


def _ask(
    gallery: Gallery,
    regions: dict[Path, Region | None],
    top: int,
    variants: Sequence[Variant],
    exact: bool,
    progress: bool,
) -> dict[str, dict[Path, list[RankedAnswer]]]:
    """The first `top` answers to each query in each variant; junk among them is still in."""
    paths, searcher = list(regions), gallery.searcher
    rankings: dict[str, dict[Path, list[RankedAnswer]]] = {variant.name: {} for variant in variants}
    with progress_bar(len(paths), "searching", "queries", progress) as bar:
        for start in range(0, len(paths), QUERIES_AT_ONCE):
            group = paths[start : start + QUERIES_AT_ONCE]
            queries = searcher.encode(group, [regions[path] for path in group], include_self=True)
            for variant in variants:
                found = searcher.search_batch(queries, replace(variant.options, top=top, exact=exact))
                for path, results in zip(group, found, strict=True):
                    rankings[variant.name][path] = [answer for one in results for answer in _answers(one, gallery)]
            bar.update(len(group))
    return rankings


def _answers(result: Result, gallery: Gallery) -> list[RankedAnswer]:
    """A result as the gallery's images that it stands for: all those with the same bytes."""
    evidence = result.evidence
    return [
        RankedAnswer(
            path,
            result.score,
            probability=evidence.probability if evidence else None,
            is_match=bool(evidence and evidence.is_match),
        )
        for path in gallery.paths[result.id]
    ]


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
