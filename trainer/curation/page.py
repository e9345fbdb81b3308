"""What a curation did, as one HTML page: clusters, copies, and what else was left out and why."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from indexer.images.decode import DEFAULT_LIMITS
from indexer.pages.render import data_uri, write_page

from ..data.sources import decoded_place
from .embed import Images
from .outcome import Curated, CurationSummary, Fate

THUMBNAIL_PX = 150  # longer side
GROUPS = 12  # of copies that are shown
IN_A_GROUP = 6
CLUSTERS = 16
IN_A_CLUSTER = 8
EXAMPLES = 12  # of each other reason
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class _Figure:
    """A thumbnail as the address of itself, or why there is none."""

    title: str
    caption: str
    uri: str = ""
    missing: str = ""


def write_curation_page(path: str | Path, curated: Curated, summary: CurationSummary) -> None:
    """Write the page to `path`, whole or not at all; an image that is gone becomes a placeholder that says why."""
    cut = f", {summary.groups_cut:,} of them cut for their size" if summary.groups_cut else ""
    write_page(
        path,
        TEMPLATES,
        "curation.html",
        title=f"Curated: {Path(summary.out).name}",
        made_by=[f"{summary.out}; every image's fate: {summary.work}/fates.csv"],
        steps=_steps(summary),
        groups=f"{summary.groups:,} groups of copies, the largest of {summary.largest_group:,}{cut}."
        f" Graph recall {summary.graph_recall:.3f}.",
        levels=list(zip(summary.clusters, summary.effective_before, summary.effective_after, strict=True)),
        clusters=_clusters(curated),
        copies=_copies(curated),
        leaks=_leaks(curated) if summary.leaks else None,
        left_out=_left_out(curated),
    )


def _steps(summary: CurationSummary) -> list[dict[str, object]]:
    rows = [
        ("in the pool", summary.pool, f"{summary.unreadable:,} more could not be read" if summary.unreadable else ""),
        ("without copies and leaks", summary.left, f"{summary.copies:,} copies, {summary.leaks:,} near the evaluation"),
    ]
    if summary.like:
        rows.append(("like the curated images", summary.retrieved, f"{summary.like:,} curated images"))
    rows.append(("in the list", summary.written, f"{summary.gone:,} chosen ones were gone" if summary.gone else ""))
    longest = max(summary.pool, 1)
    return [
        {"name": name, "count": count, "note": note, "width": round(200 * count / longest)}
        for name, count, note in rows
    ]


def _clusters(curated: Curated) -> Iterator[dict[str, object]]:
    """The kinds at the top of the hierarchy, from the largest to the smallest, with images that were chosen."""
    before = np.bincount(curated.cluster[curated.cluster >= 0])
    after = np.bincount(curated.cluster[curated.kept], minlength=len(before))
    order = np.argsort(-before, kind="stable")
    order = order[before[order] > 0]
    scale = 240 / max(before.max(initial=1), 1)
    for number in _spread(order, CLUSTERS):
        members = np.flatnonzero((curated.cluster == number) & (curated.fate == Fate.KEPT))
        bars = [
            {"kind": kind, "count": int(count), "words": words, "width": round(max(1.0, scale * count))}
            for kind, count, words in (("", before[number], "in the pool"), ("after", after[number], "in the list"))
        ]
        figures = [_figure(curated.inputs.pool, row) for row in _spread(members, IN_A_CLUSTER)]
        yield {"bars": bars, "figures": figures}


def _copies(curated: Curated) -> Iterator[dict[str, object]]:
    """Groups from the largest to the smallest, evenly spread; a group's least similar members are shown first."""
    kept_for, vectors = curated.copies.kept_for, curated.inputs.pool.embeddings
    sizes = np.bincount(kept_for)
    groups = np.argsort(-sizes, kind="stable")[: int((sizes > 1).sum())]
    for keeper in _spread(groups, GROUPS):
        others = np.flatnonzero(kept_for == keeper)
        others = others[others != keeper]
        likeness = vectors.rows(others).astype(np.float32) @ vectors.rows([keeper])[0].astype(np.float32)
        order = np.argsort(likeness, kind="stable")[:IN_A_GROUP]
        figures = [
            _figure(curated.inputs.pool, row, f"{value:.2f}")
            for row, value in zip(others[order], likeness[order], strict=True)
        ]
        more = f"and {len(others) - len(figures):,} more" if len(others) > len(figures) else ""
        yield {"figures": [_figure(curated.inputs.pool, keeper, "kept"), *figures], "more": more}


def _leaks(curated: Curated) -> Iterator[list[_Figure]]:
    assert curated.inputs.avoid is not None
    rows = np.flatnonzero(curated.fate == Fate.LEAK)
    for row in _spread(rows[np.argsort(-curated.likeness[rows], kind="stable")], EXAMPLES):
        likeness = f"{curated.likeness[row]:.2f}"
        near = _figure(curated.inputs.avoid, int(curated.because_of[row]), "evaluation")
        yield [_figure(curated.inputs.pool, row, likeness), near]


def _left_out(curated: Curated) -> Iterator[tuple[str, list[_Figure]]]:
    for fate in (Fate.UNLIKE, Fate.ENOUGH):
        rows = np.flatnonzero(curated.fate == fate)
        if len(rows):
            yield fate.in_words, [_figure(curated.inputs.pool, row) for row in _spread(rows, EXAMPLES)]


def _figure(images: Images, row: int, caption: str = "") -> _Figure:
    place = images.places[row]
    caption = caption or place.member or Path(place.path).name
    image = decoded_place(place.name, place, THUMBNAIL_PX, DEFAULT_LIMITS)
    reason = getattr(image, "reason", None)
    if reason is not None:
        return _Figure(place.name, caption, missing=reason)
    small = Image.fromarray(image.pixels)  # type: ignore[union-attr]
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    return _Figure(place.name, caption, data_uri(small, quality=80))


def _spread(rows: np.ndarray, count: int) -> list[int]:
    """Of many, so many from the first to the last."""
    if len(rows) <= count:
        return rows.tolist()
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)].tolist()
