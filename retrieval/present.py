"""Results in the forms that people and programs read: a table, a line of JSON, an entry of the results page."""

import json
from collections.abc import Sequence

from indexer.errors import PictureError
from indexer.images import decode_file

from .page import PageQuery, PageResult
from .search import Region, Result, box_in_pixels

NOTHING = "nothing in the index meets these conditions"


def table(query: str, results: Sequence[Result], *, heading: bool) -> str:
    """Rank, score and path, a line each; with a heading the query's path above and an empty line below."""
    lines = [query] if heading else []
    lines.append("rank  score  path" if results else NOTHING)
    lines += [f"{result.rank:>4}  {result.score:5.3f}  {result.path}" for result in results]
    return "\n".join(lines) + ("\n" if heading else "")


def json_line(query: str, answer: Sequence[Result] | PictureError) -> str:
    """One query's answer as one line: its results, or why it could not be read."""
    if isinstance(answer, PictureError):
        return json.dumps({"query": query, "error": str(answer)})
    return json.dumps({"query": query, "results": [_values(result) for result in answer]})


def page_query(query: str, results: Sequence[Result], region: Region | None) -> PageQuery:
    """The same for the page and the sheet."""
    return PageQuery(
        path=query,
        region=_fractions(region, query) if region else None,
        results=[PageResult(result.path, result.rank, result.score, _caption(result)) for result in results],
        note="" if results else NOTHING,
    )


def _values(result: Result) -> dict[str, object]:
    taken_at = result.metadata.taken_at
    values: dict[str, object] = {
        "rank": result.rank,
        "path": result.path,
        "score": result.score,
        "id": result.id,
        "width": result.metadata.width,
        "height": result.metadata.height,
        "taken_at": taken_at.isoformat() if taken_at else None,
    }
    return values | ({"copies": list(result.copies)} if result.copies else {})


def _caption(result: Result) -> tuple[str, ...]:
    metadata = result.metadata
    copies = len(result.copies)
    lines = (
        f"{metadata.width} x {metadata.height}",
        f"{metadata.taken_at:%Y-%m-%d}" if metadata.taken_at else "",
        metadata.camera or "",
        " ".join(f"#{tag}" for tag in result.tags),
        f"{copies} more {'copy' if copies == 1 else 'copies'}" if copies else "",
    )
    return tuple(line for line in lines if line)


def _fractions(region: Region, path: str) -> tuple[float, float, float, float]:
    """The region as fractions of the picture."""
    picture = decode_file(path, target_px=64)
    x, y, w, h = box_in_pixels(region, picture.width, picture.height)
    return x / picture.width, y / picture.height, w / picture.width, h / picture.height
