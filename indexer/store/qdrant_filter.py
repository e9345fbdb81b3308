"""Conditions on records as a Qdrant server's filter."""

from typing import Any

from qdrant_client import models

from ..images.metadata import REAL_DATES
from .attributes import conditions_of, term
from .payload import as_rfc3339, camera_words, geo_circle, reaches_a_pole, to_engine
from .protocol import Filter


def qdrant_filter(where: Filter) -> models.Filter | None:
    """The server's filter of the same meaning; None where every record is meant."""
    if not where:
        return None
    must: list[Any] = []
    must_not: list[Any] = []
    if where.under:
        folders = models.MatchAny(any=[to_engine(key) for key in where.under])
        must.append(models.FieldCondition(key="folders", match=folders))
    if where.has_dates:
        moments = {
            "gte": None if where.after is None else as_rfc3339(where.after),
            "lt": None if where.before is None else as_rfc3339(where.before),
        }
        must.append(models.FieldCondition(key="taken_at", range=models.DatetimeRange.model_validate(moments)))
        if not where.file_dates:
            must.append(models.FieldCondition(key="date_source", match=models.MatchAny(any=list(REAL_DATES))))
    for word in camera_words(where.camera or ""):
        must.append(models.FieldCondition(key="camera_words", match=models.MatchValue(value=word)))
    if where.near is not None:
        latitude, longitude, radius_m = geo_circle(*where.near)
        circle = models.GeoRadius(center=models.GeoPoint(lat=latitude, lon=longitude), radius=radius_m)
        inside = models.FieldCondition(key="location", geo_radius=circle)
        if reaches_a_pole(latitude, radius_m):  # see there
            must_not.append(models.Filter(must_not=[inside]))
        else:
            must.append(inside)
    for tag in where.tags:
        must.append(models.FieldCondition(key="tags", match=models.MatchValue(value=to_engine(tag))))
    for keyword in where.keywords:
        match = models.MatchValue(value=to_engine(keyword.casefold()))
        must.append(models.FieldCondition(key="keyword_words", match=match))
    for name, value in conditions_of(where.attributes):
        match = models.MatchValue(value=term(name, value))
        must.append(models.FieldCondition(key="attribute_terms", match=match))
    if where.rating is not None:
        must.append(models.FieldCondition(key="rating", range=models.Range(gte=where.rating)))
    if where.not_whitening_id is not None:
        must_not.append(
            models.FieldCondition(key="whitening_id", match=models.MatchValue(value=where.not_whitening_id))
        )
    if where.not_ids:
        must_not.append(models.HasIdCondition(has_id=list(where.not_ids)))
    return models.Filter(must=must or None, must_not=must_not or None)
