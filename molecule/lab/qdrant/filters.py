"""Filters, as the engine takes them."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import numpy
import qdrant_edge as edge
from qdrant_client import models

from qdrant.errors import NotDone
from qdrant.points import point_id


def made(asked: models.Filter | None) -> edge.Filter | None:
    """The engine's form of a filter."""
    if asked is None:
        return None
    least = asked.min_should
    return edge.Filter(
        must=_all(asked.must),
        should=_all(asked.should),
        must_not=_all(asked.must_not),
        min_should=edge.MinShould([_condition(c) for c in least.conditions], least.min_count) if least else None,
    )


def without(asked: edge.Filter | None, ids: list[Any]) -> edge.Filter | None:
    """The filter, and none of these points."""
    if not ids:
        return asked
    return edge.Filter(must=[asked] if asked is not None else None, must_not=[edge.HasIdCondition(set(ids))])


def _all(given: Any) -> list[Any] | None:
    if given is None:
        return None
    return [_condition(one) for one in (given if isinstance(given, list) else [given])]


def _condition(one: Any) -> Any:
    match one:
        case models.FieldCondition():
            return _field(one)
        case models.Filter():
            return made(one)
        case models.HasIdCondition():
            return edge.HasIdCondition({point_id(entry) for entry in one.has_id})
        case models.IsEmptyCondition():
            return edge.IsEmptyCondition(one.is_empty.key)
        case models.IsNullCondition():
            return edge.IsNullCondition(one.is_null.key)
        case models.HasVectorCondition():
            return edge.HasVectorCondition(one.has_vector)
        case models.NestedCondition():
            return edge.NestedCondition(one.nested.key, made(one.nested.filter))
    raise NotDone(f"a condition of type {type(one).__name__}")


def _field(one: models.FieldCondition) -> edge.FieldCondition:
    count = one.values_count
    return edge.FieldCondition(
        key=one.key,
        match=_match(one.match),
        range=_range(one.range),
        geo_bounding_box=edge.GeoBoundingBox(
            _geo(one.geo_bounding_box.top_left), _geo(one.geo_bounding_box.bottom_right)
        )
        if one.geo_bounding_box
        else None,
        geo_radius=edge.GeoRadius(_geo(one.geo_radius.center), one.geo_radius.radius) if one.geo_radius else None,
        geo_polygon=_polygon(one.geo_polygon),
        values_count=edge.ValuesCount(lt=count.lt, gt=count.gt, lte=count.lte, gte=count.gte) if count else None,
        is_empty=one.is_empty,
        is_null=one.is_null,
    )


def _match(one: Any) -> Any:
    match one:
        case None:
            return None
        case models.MatchValue():
            # A plain True would be taken for the number 1, which numpy's is not.
            return edge.MatchValue(numpy.bool_(one.value) if isinstance(one.value, bool) else one.value)
        case models.MatchAny():
            return edge.MatchAny(one.any)
        case models.MatchExcept():
            return edge.MatchExcept(one.except_)
        case models.MatchText():
            return edge.MatchText(one.text)
        case models.MatchTextAny():
            return edge.MatchTextAny(one.text_any)
        case models.MatchPhrase():
            return edge.MatchPhrase(one.phrase)
    raise NotDone(f"a match of type {type(one).__name__}")


def _range(one: Any) -> Any:
    if one is None:
        return None
    bounds = dict(one)
    if isinstance(one, models.DatetimeRange):
        return edge.RangeDateTime(**{name: _moment(value) for name, value in bounds.items()})
    return edge.RangeFloat(**bounds)


def _moment(value: datetime | date | None) -> str | None:
    return value.isoformat() if value is not None else None


def _geo(point: models.GeoPoint) -> edge.GeoPoint:
    return edge.GeoPoint(lon=point.lon, lat=point.lat)


def _polygon(one: models.GeoPolygon | None) -> edge.GeoPolygon | None:
    if one is None:
        return None
    return edge.GeoPolygon(
        [_geo(point) for point in one.exterior.points],
        [[_geo(point) for point in line.points] for line in one.interiors or []],
    )
