"""Conditions on records as the embedded engine's filter."""

from typing import Any

import qdrant_edge as edge

from .payload import as_rfc3339, camera_words, geo_circle, reaches_a_pole, to_engine
from .store import Where


def edge_filter(where: Where) -> edge.Filter | None:
    """The engine's filter of the same meaning; None where every record is meant."""
    if not where:
        return None
    must: list[Any] = []
    must_not: list[Any] = []
    if where.under:
        must.append(edge.FieldCondition("folders", match=edge.MatchAny([to_engine(key) for key in where.under])))
    if where.after is not None or where.before is not None:
        moments = edge.RangeDateTime(
            gte=None if where.after is None else as_rfc3339(where.after),
            lt=None if where.before is None else as_rfc3339(where.before),
        )
        must.append(edge.FieldCondition("taken_at", range=moments))
    for word in camera_words(where.camera or ""):
        must.append(edge.FieldCondition("camera_words", match=edge.MatchValue(word)))
    if where.near is not None:
        latitude, longitude, radius_m = geo_circle(*where.near)
        circle = edge.GeoRadius(edge.GeoPoint(lon=longitude, lat=latitude), radius_m)
        inside = edge.FieldCondition("location", geo_radius=circle)
        if reaches_a_pole(latitude, radius_m):  # see there
            must_not.append(edge.Filter(must_not=[inside]))
        else:
            must.append(inside)
    for tag in where.tags:
        must.append(edge.FieldCondition("tags", match=edge.MatchValue(to_engine(tag))))
    if where.not_fit is not None:
        must_not.append(edge.FieldCondition("fit", match=edge.MatchValue(where.not_fit)))
    if where.not_ids:
        must_not.append(edge.HasIdCondition(set(where.not_ids)))
    return edge.Filter(must=must or None, must_not=must_not or None)
