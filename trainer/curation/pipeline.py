"""The whole way from a pool to a list: embed, deduplicate, retrieve, balance; and what became of every image.

Each step goes on where an interrupted run left it, from the files in the work folder; the list itself appears whole at
the end. An image that is not in the list has one reason for it, the first that applied.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from indexer.errors import SeenitError
from indexer.messages import Say, say_nothing
from indexer.progress_bar import progress_bar

from .balance import Tree, build_tree, draw, effective
from .cells import Cells
from .choices import Choices
from .deduplicate import Copies, find_copies, near_any, whole_groups
from .embeddings import Embeddings
from .inputs import Inputs, read_inputs
from .kinds import vectors_of_kinds
from .outcome import Curated, CurationSummary, Fate, can_be_listed, write_fates, write_list
from .retrieve import Retrieved, retrieve_clusters, retrieve_left
from .spread import Spread


def curate(
    pool: Sequence[str | Path],
    out: str | Path,
    *,
    like: Sequence[str | Path] = (),
    avoid: Sequence[str | Path] = (),
    choices: Choices | None = None,
    backbone: str | Path | None = None,
    work: str | Path | None = None,
    html: str | Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    progress: bool = False,
    say: Say = say_nothing,
) -> CurationSummary:
    """Choose images of a pool for training, and write their paths to a list that `train` reads.

    pool, like, avoid  folders, lists of paths, tar shards (see `sources.open_source`), or indexes, whose vectors serve
    choices            None: the values of the papers
    out                the list, one path a line, written whole at the end. Chosen images that lie in tar files are
                       copied to a folder beside it
    like               images chosen by hand; without them everything that is left after deduplication goes on
    avoid              images that models will be judged on
    work               for what is computed on the way; None: OUT.work. Running again goes on from there
    html               write a page of what was chosen and removed
    workers            processes that decode, and that search the graph; None: one per core, and this one
    ray                a Ray cluster that searches the graph and assigns clusters, see `indexer.cluster.session`; the
                       work folder has to be at the same path on all its machines. The list is the same

    Raises SeenitError in one line: nothing there, nothing readable, another backbone's index, no space, nothing left.
    """
    started = time.perf_counter()
    choices = choices or Choices()
    out, work = Path(out), Path(f"{out}.work" if work is None else work)
    _check_out(out)
    inputs = read_inputs(
        pool, like, avoid, work / "vectors", backbone=backbone, workers=workers, progress=progress, say=say
    )
    with _spread_over(ray, workers) as spread:
        curated, tree, retrieved = choose_images(
            inputs, work.absolute(), choices, workers=workers or 1, spread=spread, progress=progress, say=say
        )
    paths = write_list(out, curated)
    write_fates(work / "fates.csv", curated)
    tree_rows = np.isin(curated.fate, (Fate.KEPT, Fate.UNLIKE, Fate.ENOUGH, Fate.GONE))
    before, after = _counts(curated, tree, np.flatnonzero(tree_rows))
    sizes = curated.copies.sizes()
    summary = CurationSummary(
        out=str(out),
        pool=len(inputs.pool),
        unreadable=len(inputs.pool.broken),
        copies=int((curated.fate == Fate.COPY).sum()),
        equal=curated.copies.num_equal,
        groups=len(sizes),
        largest_group=int(sizes[0]) if len(sizes) else 0,
        groups_cut=curated.copies.num_cut,
        leaks=int((curated.fate == Fate.LEAK).sum()),
        left=int(tree_rows.sum()),
        like=len(inputs.like) if inputs.like else 0,
        retrieved=retrieved,
        written=len(paths),
        gone=int((curated.fate == Fate.GONE).sum()),
        clusters=tuple(len(counts) for counts in before),
        effective_before=tuple(round(effective(counts), 1) for counts in before),
        effective_after=tuple(round(effective(counts), 1) for counts in after),
        graph_recall=round(curated.copies.plan.recall, 4),
        work=str(work),
        seconds=round(time.perf_counter() - started, 1),
    )
    if html is not None:
        from .page import write_curation_page

        write_curation_page(html, curated, summary)
    return summary


def choose_images(
    inputs: Inputs,
    work: Path,
    choices: Choices,
    *,
    workers: int = 1,
    spread: Spread | None = None,
    progress: bool = False,
    say: Say = say_nothing,
) -> tuple[Curated, Tree, int]:
    """All steps on vectors: what becomes of every image, the hierarchy of those left, and how many were retrieved."""
    vectors, count = inputs.pool.embeddings, len(inputs.pool)
    fate, because_of = np.full(count, Fate.KEPT, np.int8), np.full(count, -1)
    likeness = np.full(count, np.nan, np.float32)
    with _bar("copies", progress) as bar:
        copies = find_copies(
            vectors,
            work,
            above=choices.copy,
            k=choices.neighbours,
            largest=choices.largest,
            pixels=inputs.pool.pixels,
            recall=choices.recall,
            workers=workers,
            spread=spread,
            progress=bar,
        )
    removed = copies.kept_for != np.arange(count)
    fate[removed], because_of[removed] = Fate.COPY, copies.kept_for[removed]
    if inputs.avoid is not None:
        similarity, which = near_any(vectors, inputs.avoid.embeddings)
        leaks = whole_groups(copies.kept_for, similarity > choices.leak)
        fate[leaks], because_of[leaks], likeness[leaks] = Fate.LEAK, which[leaks], similarity[leaks]
    left = np.flatnonzero(fate == Fate.KEPT)
    if not len(left):
        raise SeenitError(
            f"none of {count:,} images is left after deduplication; give a higher --copy or --leak, or more images"
        )
    say(f"{len(left):,} of {count:,} images left after deduplication")

    kinds = vectors_of_kinds(vectors, inputs.whitening, work / "kinds")
    if inputs.like is not None:
        retrieved = _retrieve(inputs, kinds, copies, left, work, choices)
        if not len(retrieved.rows):
            raise SeenitError(
                f"no cluster holds {choices.least_curated} curated images; give fewer --clusters or --mode nearest"
            )
        fate[left] = Fate.UNLIKE
        fate[retrieved.rows], because_of[retrieved.rows] = Fate.KEPT, retrieved.because_of
        say(f"{len(retrieved.rows):,} of them are like the {len(inputs.like):,} curated images")
    num_retrieved = int((fate == Fate.KEPT).sum())

    with _bar("clusters", progress) as bar:
        options = {"resamplings": choices.resamplings, "seed": choices.seed}
        tree = build_tree(kinds, choices.levels, rows=left, spread=spread, progress=bar, **options)
    if choices.size is not None:
        if choices.size > num_retrieved:
            say(f"--size {choices.size:,} is more than the {num_retrieved:,} images left; all are taken")
        drawn = left[draw(tree, choices.size, allowed=fate[left] == Fate.KEPT, seed=choices.seed)]
        fate[fate == Fate.KEPT] = Fate.ENOUGH
        fate[drawn] = Fate.KEPT
    gone = [row for row in np.flatnonzero(fate == Fate.KEPT) if not can_be_listed(inputs.pool.places[row])]
    fate[gone] = Fate.GONE
    if gone:
        say(f"left out {len(gone):,} chosen images that are gone, such as {inputs.pool.places[gone[0]].name}")
    cluster = np.full(count, -1)
    cluster[left] = tree.top
    cluster = np.where(fate == Fate.COPY, cluster[copies.kept_for], cluster)
    return Curated(inputs, fate, because_of, likeness, cluster, copies), tree, num_retrieved


@contextmanager
def _spread_over(ray: str | None, workers: int | None) -> Iterator[Spread | None]:
    if ray is None:
        yield None
        return
    from indexer.cluster.session import open_cluster

    with open_cluster(ray, workers) as cluster:
        yield cluster


def _retrieve(
    inputs: Inputs, kinds: Embeddings, copies: Copies, left: np.ndarray, work: Path, choices: Choices
) -> Retrieved:
    assert inputs.like is not None
    if choices.mode == "nearest":
        cells = Cells.open(work / "cells")  # those that copies were looked for in
        return retrieve_left(
            cells, copies.alike, left, inputs.like.embeddings, count=choices.nearest, recall=choices.recall
        )
    return retrieve_clusters(
        kinds,
        vectors_of_kinds(inputs.like.embeddings, inputs.whitening, work / "kinds_like"),
        left,
        num_clusters=choices.clusters,
        per_cluster=choices.per_cluster,
        least_curated=choices.least_curated,
        most=choices.most,
        seed=choices.seed,
    )


def _counts(curated: Curated, tree: Tree, left: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images in each cluster at each level: of the pool with its copies, and of the list."""
    position = np.full(len(curated.fate), -1)
    position[left] = np.arange(len(left))
    inside = position[curated.copies.kept_for] >= 0
    inside &= curated.fate != Fate.LEAK
    members, kept = position[curated.copies.kept_for[inside]], position[curated.kept]
    before, after = [], []
    for number in range(1, len(tree.parents) + 1):
        cluster = tree.level(number)
        total = len(tree.parents[number]) if number < len(tree.parents) else tree.num_top
        before.append(np.bincount(cluster[members], minlength=total))
        after.append(np.bincount(cluster[kept], minlength=total))
    return before, after


def _check_out(out: Path) -> None:
    """Before hours of work rather than after."""
    if out.is_dir():
        raise SeenitError(f"--out {out} is a folder; name a file, such as {out / 'list.txt'}")
    folder = out.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise SeenitError(f"cannot write to {folder}; make it, or name another place by --out")


class _bar:
    """A progress bar that is told how much of how much is done."""

    def __init__(self, title: str, shown: bool) -> None:
        self._bar = progress_bar(None, title, "done", shown)

    def __enter__(self) -> Callable[[int, int], object]:
        return self._set

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _set(self, done: int, total: int) -> None:
        self._bar.total, self._bar.n = total, done
        self._bar.refresh()


def as_dict(summary: CurationSummary) -> dict[str, object]:
    """For JSON."""
    return asdict(summary)


def describe_selection(summary: CurationSummary) -> str:
    """A few lines for the terminal."""
    unreadable = f" ({summary.unreadable:,} more cannot be read)" if summary.unreadable else ""
    cut = f"; {summary.groups_cut:,} were larger and were cut" if summary.groups_cut else ""
    lines = [
        f"pool        {summary.pool:>11,}{unreadable}",
        f"copies      {-summary.copies:>11,}  in {summary.groups:,} groups of up to {summary.largest_group:,}{cut}",
    ]
    if summary.leaks:
        lines.append(f"leaks       {-summary.leaks:>11,}  near the evaluation set")
    if summary.like:
        lines.append(f"retrieved   {summary.retrieved:>11,}  of {summary.left:,}, for {summary.like:,} curated images")
    if summary.gone:
        lines.append(f"gone        {-summary.gone:>11,}  since they were embedded")
    lines.append(f"in the list {summary.written:>11,}  {summary.out}")
    for count, before, after in zip(summary.clusters, summary.effective_before, summary.effective_after, strict=True):
        lines.append(f"{count:,} clusters: as even as {before:,.1f} equal ones before, {after:,.1f} in the list")
    return "\n".join(lines)
