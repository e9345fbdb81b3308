"""Results in the forms that people and programs read: a table, a line of JSON, an entry of the results page."""

from collections.abc import Sequence

from indexer.errors import ImageError
from indexer.images.decode import decode_file
from indexer.printable import quoted

from ..query.query import Region, box_in_pixels
from ..rerank.evidence import percent
from ..results import Explained, Result, note_on
from .results_page import PageQuery, PageResult


def results_table(query: str, results: Sequence[Result], *, heading: bool) -> str:
    """A result a line: rank, score and path, between them the verdict, the match probability and the number of inliers.

    With a heading the query's path stands above, an empty line below. Where no result is a match, a line says so.
    """
    lines = [quoted(query)] if heading else []
    if note := note_on(results):
        lines.append(note)
    proven = any(result.evidence for result in results)
    if results:
        lines.append(f"rank  score  {f'{EVIDENCE_TITLES}  ' if proven else ''}path")
    lines += [
        f"{result.rank:>4}  {result.score:5.3f}  {f'{_proof(result)}  ' if proven else ''}{quoted(result.path)}"
        for result in results
    ]
    return "\n".join(lines) + ("\n" if heading else "")


def json_line(query: str, answer: Sequence[Result] | ImageError) -> str:
    """One query's answer as one line, see `schema`: its results, or why it could not be read."""
    from .schema import ErrorAnswer, dumps, search_answer

    if isinstance(answer, ImageError):
        return dumps(ErrorAnswer(query=query, error=str(answer)))
    return dumps(search_answer(query, answer))


def explained_json(query: str, image: str, found: Explained) -> str:
    """What `seenit explain` found, as one line; see `schema`."""
    from .schema import dumps, explanation

    return dumps(explanation(query, image, found))


def page_query(query: str, results: Sequence[Result], region: Region | None) -> PageQuery:
    """The same for the page and the sheet."""
    return PageQuery(
        path=query,
        region=_fractions(region, query) if region else None,
        results=[_page_result(result) for result in results],
        note=note_on(results),
    )


EVIDENCE_TITLES = "verdict    prob.  inliers"


def _proof(result: Result) -> str:
    """The columns under EVIDENCE_TITLES; dashes where nothing was compared or nothing is calibrated."""
    evidence = result.evidence
    verdict = (evidence.verdict if evidence else None) or "-"
    probability = percent(evidence.probability) if evidence and evidence.probability is not None else "-"
    return f"{verdict:<8}  {probability:>6}  {evidence.num_inliers if evidence else '-':>7}"


def _page_result(result: Result) -> PageResult:
    """The box is drawn unless it is no match."""
    evidence = result.evidence
    if evidence is None:
        return PageResult(result.path, result.rank, result.score, _caption(result))
    return PageResult(
        result.path,
        result.rank,
        result.score,
        _caption(result),
        box=None if evidence.verdict == "no match" else evidence.box,
        verdict=evidence.verdict,
        reason=evidence.reason,
        probability=evidence.probability,
    )


def _caption(result: Result) -> tuple[str, ...]:
    metadata = result.metadata
    copies = len(result.copies)
    lines = (
        metadata.title or "",
        (metadata.caption or "")[:200],
        f"{metadata.width} x {metadata.height}",
        metadata.date_in_words,
        metadata.camera or "",
        " ".join(f"#{tag}" for tag in result.tags),
        f"{copies} more {'copy' if copies == 1 else 'copies'}" if copies else "",
    )
    return tuple(line for line in lines if line)


def _fractions(region: Region, path: str) -> tuple[float, float, float, float]:
    """The region as fractions of the image."""
    image = decode_file(path, target_px=64)
    x, y, w, h = box_in_pixels(region, image.width, image.height)
    return x / image.width, y / image.height, w / image.width, h / image.height
