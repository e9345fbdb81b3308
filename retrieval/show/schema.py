"""The JSON of a search and of an explanation: one description for the command line, Python and the server.

Every object names its schema and the schema's version, `seenit.search/1`; a version is raised when a field changes its
meaning or goes away, and not when one is added. Places are fractions of the upright image. A file's name may be any
bytes, which Python shows as lone surrogates; `dumps` writes them as JSON's escapes, so that nothing is lost.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainValidator

from ..rerank.evidence import Evidence
from ..results import Explained, Result, note_on


def _text(value: object) -> str:
    """Any text; pydantic's own check refuses the lone surrogates that stand for a file name's bytes."""
    if not isinstance(value, str):
        raise ValueError("a text is wanted")
    return value


Text = Annotated[str, PlainValidator(_text, json_schema_input_type=str)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
JsonBox: TypeAlias = tuple[Fraction, Fraction, Fraction, Fraction]  # x, y, width, height
Turn = Literal[0, 90, 180, 270]
VerdictWord = Literal["same", "perhaps", "no match"]


class Answer(BaseModel):
    """What all objects share: fields are known by name, and none is left out where it is null."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, serialize_by_alias=True)


class ErrorDetail(Answer):
    where: Text = Field(description="the field at fault, as `filters.near`")
    message: Text


class ErrorAnswer(Answer):
    """Why there is no answer."""

    schema_: Literal["seenit.error/1"] = Field("seenit.error/1", alias="schema")
    query: Text | None = Field(None, description="of several queries the one that failed")
    error: Text = Field(description="one line: what, where, and the next step")
    details: tuple[ErrorDetail, ...] = ()


class FoundImage(Answer):
    """One image of the index that answers a query."""

    rank: int = Field(ge=1)
    id: str = Field(description="hash of the image's bytes, as a UUID")
    path: Text = Field(description="absolute")
    score: float = Field(description="-1 to 1, higher is more similar")
    verdict: VerdictWord | None = Field(None, description="null where patches were not compared or nothing calibrated")
    match: bool | None = Field(None, description="whether the probability reaches the threshold of a match")
    probability: Fraction | None = Field(None, description="that it shows the same thing")
    num_inliers: int | None = Field(None, description="null where patches were not compared")
    box: JsonBox | None = Field(None, description="of the thing in this image")
    query_box: JsonBox | None = Field(None, description="of the part of the query that was found")
    turn: Turn | None = Field(None, description="quarter turn, clockwise, in which the query was found")
    width: int = Field(description="pixels of the upright image")
    height: int
    format: str
    taken_at: str | None = Field(None, description="ISO 8601, UTC")
    date_source: str | None = Field(
        None, description="of taken_at: exif, xmp, table, name or file (its name, its time)"
    )
    camera: Text | None = None
    copies: tuple[Text, ...] = Field((), description="other files with the same bytes")
    tags: tuple[Text, ...] = ()
    attributes: dict[str, Any] = Field({}, description="what was given with an added image")
    keywords: tuple[Text, ...] = Field((), description="of the image's own metadata or its sidecar")
    rating: int | None = Field(None, description="stars, 1 to 5; 0: none given; -1: rejected")
    title: Text | None = None
    caption: Text | None = None


class AskedImage(Answer):
    """An image of a query."""

    name: Text
    id: str | None = Field(None, description="hash of its bytes; null for a vector")
    indexed: bool = Field(False, description="whether the index holds it")
    width: int | None = None
    height: int | None = None


class Asked(Answer):
    """What a server was asked."""

    images: tuple[AskedImage, ...]
    like: tuple[AskedImage, ...] = ()
    unlike: tuple[AskedImage, ...] = Field((), alias="not")
    region: JsonBox | None = None
    filters: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)


class SearchAnswer(Answer):
    """The results of one query, best first."""

    schema_: Literal["seenit.search/1"] = Field("seenit.search/1", alias="schema")
    query: Text = Field(description="path, name or id of the first image")
    note: Text | None = Field(None, description="a note on the results as a whole")
    asked: Asked | None = Field(None, description="what was asked; null on the command line")
    results: tuple[FoundImage, ...] = ()
    seconds: float | None = Field(None, description="that the server took")


class BatchAnswer(Answer):
    schema_: Literal["seenit.batch/1"] = Field("seenit.batch/1", alias="schema")
    answers: tuple[SearchAnswer | ErrorAnswer, ...]


class Explanation(Answer):
    """Why two images are a match or none."""

    schema_: Literal["seenit.explain/1"] = Field("seenit.explain/1", alias="schema")
    query: Text
    image: Text
    verdict: VerdictWord | None = None
    match: bool | None = None
    probability: Fraction | None = None
    num_inliers: int
    reason: str = Field(description="`97 % probable, 34 inliers`")
    box: JsonBox | None = None
    query_box: JsonBox | None = None
    turn: Turn = Field(0, description="quarter turn, clockwise, in which the query was found")
    transform: tuple[tuple[float, float, float], tuple[float, float, float]] | None = Field(
        None, description="affine, from fractions of the query to those of the image"
    )
    pairs: tuple[tuple[float, float, float, float, float], ...] = Field(
        (), description="x, y in the query, x, y in the image, cosine; best first"
    )
    query_similarity: tuple[tuple[float, ...], ...] | None = Field(
        None, description="rows of patches of the query: the best cosine of each in the image"
    )
    image_similarity: tuple[tuple[float, ...], ...] | None = Field(None, description="likewise of the image's patches")


PUBLISHED: tuple[type[Answer], ...] = (SearchAnswer, BatchAnswer, Explanation, ErrorAnswer)


def search_answer(
    query: str, results: Sequence[Result], *, asked: Asked | None = None, seconds: float | None = None
) -> SearchAnswer:
    """Results as their JSON."""
    return SearchAnswer(
        query=query,
        note=note_on(results) or None,
        asked=asked,
        results=tuple(map(found_image, results)),
        seconds=seconds,
    )


def explanation(query: str, image: str, found: Explained, *, similarity: bool = False) -> Explanation:
    """Two images held against each other, as JSON; with `similarity` the maps as well."""
    evidence = found.evidence
    return Explanation(
        query=query,
        image=image,
        verdict=evidence.verdict,
        match=_match(evidence),
        probability=evidence.probability,
        num_inliers=evidence.num_inliers,
        reason=evidence.reason,
        box=_box(evidence.box),
        query_box=_box(evidence.query_box),
        turn=evidence.turn,
        transform=None if evidence.transform is None else evidence.transform.tolist(),
        pairs=evidence.pairs.tolist(),
        query_similarity=_rows(found.query_similarity) if similarity else None,
        image_similarity=_rows(found.image_similarity) if similarity else None,
    )


def dumps(answer: BaseModel) -> str:
    """One line of ASCII."""
    return json.dumps(answer.model_dump(by_alias=True), allow_nan=False)


def schema_name(model: type[Answer]) -> str:
    """`seenit.search/1`"""
    return str(model.model_fields["schema_"].default)


def json_schemas(models: Sequence[type[Answer]] = PUBLISHED) -> dict[str, dict[str, Any]]:
    """The JSON Schemas by the name that objects carry."""
    return {schema_name(model): model.model_json_schema(mode="serialization") for model in models}


def found_image(result: Result) -> FoundImage:
    """One result as JSON has it."""
    metadata, evidence = result.metadata, result.evidence
    return FoundImage(
        rank=result.rank,
        id=result.id,
        path=result.path,
        score=result.score,
        verdict=evidence.verdict if evidence else None,
        match=_match(evidence) if evidence else None,
        probability=evidence.probability if evidence else None,
        num_inliers=evidence.num_inliers if evidence else None,
        box=_box(evidence.box) if evidence else None,
        query_box=_box(evidence.query_box) if evidence else None,
        turn=evidence.turn if evidence else None,
        width=metadata.width,
        height=metadata.height,
        format=metadata.format,
        taken_at=metadata.taken_at.isoformat() if metadata.taken_at else None,
        date_source=metadata.date_source if metadata.taken_at else None,
        camera=metadata.camera,
        copies=result.copies,
        tags=result.tags,
        attributes=dict(result.attributes),
        keywords=metadata.keywords,
        rating=metadata.rating,
        title=metadata.title,
        caption=metadata.caption,
    )


def _match(evidence: Evidence) -> bool | None:
    """Whether it is a match; None where nothing is calibrated."""
    return evidence.is_match if evidence.probability is not None else None


def _box(box: Sequence[float] | None) -> JsonBox | None:
    """A box of float32 as short decimals within the image."""
    if box is None:
        return None
    x, y, width, height = (round(min(max(float(value), 0.0), 1.0), 5) for value in box)
    return x, y, width, height


def _rows(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(value), 4) for value in row) for row in values)
