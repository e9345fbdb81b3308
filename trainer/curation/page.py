"""What a curation did, as one HTML page that needs nothing else: clusters, copies, and what else was left out and why.

File names are foreign text: everything is escaped, and the page's own policy forbids scripts and requests.
"""

import base64
import html
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from indexer.images.decode import DEFAULT_LIMITS

from ..data.sources import ImageRef, decoded_place
from .embed import Images
from .outcome import Curated, CurationSummary, Fate
from .whole_files import step_file

THUMBNAIL_PX = 150  # longer side
GROUPS = 12  # of copies that are shown
IN_A_GROUP = 6
CLUSTERS = 16
IN_A_CLUSTER = 8
EXAMPLES = 12  # of each other reason
UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def write_curation_page(path: str | Path, curated: Curated, summary: CurationSummary) -> None:
    """Write the page to `path`, whole or not at all; an image that is gone becomes a placeholder that says why."""
    with step_file(path) as file:
        for piece in _pieces(curated, summary):
            file.write(piece.encode("utf-8"))


def _pieces(curated: Curated, summary: CurationSummary) -> Iterator[str]:
    yield HEAD.format(title=f"Curated: {_shown(Path(summary.out).name)}", style=STYLE)
    yield _steps(summary)
    yield "<h2>Kinds of images</h2>\n" + _effective(summary)
    yield from _clusters(curated)
    yield "<h2>Copies</h2>\n<p>The first of each row was kept, the numbers are similarities to it.</p>\n"
    yield from _copies(curated)
    if summary.leaks:
        yield "<h2>Near the evaluation set</h2>\n<p>Behind each removed image the one that it is near to.</p>\n"
        yield from _leaks(curated)
    for fate in (Fate.UNLIKE, Fate.ENOUGH):
        rows = np.flatnonzero(curated.fate == fate)
        if len(rows):
            yield f"<h2>Left out: {fate.in_words}</h2>\n"
            yield _row([_figure(curated.inputs.pool, row) for row in _spread(rows, EXAMPLES)])
    yield f"<footer><p>{_shown(summary.out)}; every image's fate: {_shown(summary.work)}/fates.csv</p></footer>"
    yield "</body></html>\n"


def _steps(summary: CurationSummary) -> str:
    rows = [
        ("in the pool", summary.pool, f"{summary.unreadable:,} more could not be read" if summary.unreadable else ""),
        ("without copies and leaks", summary.left, f"{summary.copies:,} copies, {summary.leaks:,} near the evaluation"),
    ]
    if summary.like:
        rows.append(("like the curated images", summary.retrieved, f"{summary.like:,} curated images"))
    rows.append(("in the list", summary.written, f"{summary.gone:,} chosen ones were gone" if summary.gone else ""))
    cells = "".join(
        f'<tr><td>{name}</td><td class="number">{count:,}</td>'
        f'<td><span class="bar" style="width:{200 * count / max(summary.pool, 1):.0f}px"></span></td>'
        f"<td>{note}</td></tr>\n"
        for name, count, note in rows
    )
    cut = f", {summary.groups_cut:,} of them cut for their size" if summary.groups_cut else ""
    groups = f"{summary.groups:,} groups of copies, the largest of {summary.largest_group:,}{cut}."
    return f"<table>{cells}</table>\n<p>{groups} Graph recall {summary.graph_recall:.3f}.</p>\n"


def _effective(summary: CurationSummary) -> str:
    """How even the clusters are: by the entropy, as many equal clusters would be."""
    levels = zip(summary.clusters, summary.effective_before, summary.effective_after, strict=True)
    cells = "".join(
        f'<tr><td class="number">{count:,}</td><td class="number">{before:,.1f}</td>'
        f'<td class="number">{after:,.1f}</td></tr>\n'
        for count, before, after in levels
    )
    return f"<table><tr><th>clusters</th><th>worth before</th><th>worth in the list</th></tr>\n{cells}</table>\n"


def _clusters(curated: Curated) -> Iterator[str]:
    """The kinds at the top of the hierarchy, from the largest to the smallest, with images that were chosen."""
    before = np.bincount(curated.cluster[curated.cluster >= 0])
    after = np.bincount(curated.cluster[curated.kept], minlength=len(before))
    order = np.argsort(-before, kind="stable")
    order = order[before[order] > 0]
    scale = 240 / max(before.max(initial=1), 1)
    for number in _spread(order, CLUSTERS):
        members = np.flatnonzero((curated.cluster == number) & (curated.fate == Fate.KEPT))
        bars = "".join(
            f'<span class="bar {kind}" style="width:{max(1.0, scale * count):.0f}px"></span> {count:,} {words}<br>'
            for kind, count, words in (("", before[number], "in the pool"), ("after", after[number], "in the list"))
        )
        yield f'<div class="cluster"><p>{bars}</p>'
        yield _row([_figure(curated.inputs.pool, row) for row in _spread(members, IN_A_CLUSTER)]) + "</div>\n"


def _copies(curated: Curated) -> Iterator[str]:
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
        yield _row([_figure(curated.inputs.pool, keeper, "kept"), *figures], more)


def _leaks(curated: Curated) -> Iterator[str]:
    assert curated.inputs.avoid is not None
    rows = np.flatnonzero(curated.fate == Fate.LEAK)
    for row in _spread(rows[np.argsort(-curated.likeness[rows], kind="stable")], EXAMPLES):
        likeness = f"{curated.likeness[row]:.2f}"
        near = _figure(curated.inputs.avoid, int(curated.because_of[row]), "evaluation")
        yield _row([_figure(curated.inputs.pool, row, likeness), near])


def _figure(images: Images, row: int, caption: str = "") -> str:
    place = images.places[row]
    name = _shown(place.member or Path(place.path).name)
    return (
        f'<figure title="{_shown(place.name)}">{_thumbnail(place)}<figcaption>{caption or name}</figcaption></figure>'
    )


def _thumbnail(place: ImageRef) -> str:
    image = decoded_place(place.name, place, THUMBNAIL_PX, DEFAULT_LIMITS)
    reason = getattr(image, "reason", None)
    if reason is not None:
        return f'<p class="missing">{_shown(reason)}</p>'
    small = Image.fromarray(image.pixels)  # type: ignore[union-attr]
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    small.save(packed, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}">'


def _row(figures: Sequence[str], more: str = "") -> str:
    return f'<div class="row">{"".join(figures)}{f"<p>{more}</p>" if more else ""}</div>\n'


def _spread(rows: np.ndarray, count: int) -> list[int]:
    """Of many, so many from the first to the last."""
    if len(rows) <= count:
        return rows.tolist()
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)].tolist()


def _shown(text: str) -> str:
    """Foreign text made safe for HTML; what cannot be shown, or turns the reading direction, is replaced."""
    return html.escape(UNSHOWABLE.sub("\ufffd", text), quote=True)


HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>
<h1>{title}</h1>
"""

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem 1rem .15rem 0; text-align: left; font-weight: normal; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: inline-block; height: .7em; background: #8a94a3; border-radius: 2px; }
.bar.after { background: #17697a; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; align-items: flex-end; margin: .4rem 0 1rem; }
.cluster { border-top: 1px solid #8885; padding-top: .5rem; } .cluster p { margin: 0; font-size: .85rem; }
figure { margin: 0; max-width: 150px; } img { display: block; max-width: 100%; border-radius: 4px; }
figcaption { font-size: .75rem; opacity: .75; overflow-wrap: anywhere; }
.missing { width: 110px; font-size: .75rem; border: 1px dashed #888; padding: .5rem; overflow-wrap: anywhere; }
footer { margin-top: 2rem; font-size: .8rem; opacity: .75; }
"""
