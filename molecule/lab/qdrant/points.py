"""Points, their ids and vectors: from a request to the engine, and from the engine to an answer."""

from __future__ import annotations

import functools
from typing import Any
from uuid import UUID

import qdrant_edge as edge
from qdrant_client import models

from qdrant.errors import NotDone, Refused

BM25 = "qdrant/bm25"  # the one model that Qdrant itself embeds with


def point_id(given: Any) -> int | UUID:
    """An id, as the engine takes it. Raises Refused for a text that is no UUID."""
    if isinstance(given, int):
        if given < 0:
            raise Refused(f"Format error: {given} is not a valid point ID, it must be an unsigned integer or a UUID")
        return given
    try:
        return given if isinstance(given, UUID) else UUID(str(given))
    except ValueError:
        raise Refused(
            f"Format error: {given} is not a valid point ID, valid values are an unsigned integer or a UUID"
        ) from None


def shown_id(found: Any) -> int | str:
    """An id, as JSON has it."""
    return found if isinstance(found, int) else str(found)


@functools.lru_cache(maxsize=64)
def _bm25(options: tuple[tuple[str, Any], ...]) -> edge.Bm25:
    return edge.Bm25(edge.Bm25Config(**dict(options)))


def embedded(document: models.Document, *, query: bool) -> edge.SparseVector:
    """A text as BM25's sparse vector. Raises NotDone for any other model."""
    if document.model.lower() != BM25:
        raise NotDone(f"inference by `{document.model}`; `{BM25}` is done")
    options = document.options if isinstance(document.options, dict) else dict(document.options or {})
    given = tuple(sorted((name, value) for name, value in options.items() if value is not None))
    try:
        model = _bm25(given)
    except TypeError:
        raise NotDone(f"these options of `{BM25}`") from None
    return model.embed_query(document.text) if query else model.embed_document(document.text)


def vector(given: Any, *, query: bool = False) -> Any:
    """One vector: dense, several, sparse or a text."""
    if isinstance(given, models.SparseVector):
        return edge.SparseVector(given.indices, given.values)
    if isinstance(given, models.Document):
        return embedded(given, query=query)
    if isinstance(given, list):
        return given
    raise NotDone(f"a vector of type {type(given).__name__}")


def vectors(given: Any) -> Any:
    """All vectors of a point, by name where it has names."""
    if isinstance(given, dict):
        return {name: vector(one) for name, one in given.items()}
    return vector(given)


def inserted(asked: models.PointsBatch | models.PointsList) -> list[edge.Point]:
    """The points of an upsert, written as a list or in columns."""
    if isinstance(asked, models.PointsList):
        return [edge.Point(point_id(one.id), vectors(one.vector), one.payload or {}) for one in asked.points]
    batch = asked.batch
    count = len(batch.ids)
    payloads = batch.payloads or [None] * count
    if isinstance(batch.vectors, dict):
        columns = {name: [vector(one) for one in column] for name, column in batch.vectors.items()}
        lengths = {len(column) for column in columns.values()}
        rows: list[Any] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=False)]
    else:
        rows = [vectors(one) for one in batch.vectors]
        lengths = {len(rows)}
    if lengths - {count} or len(payloads) != count:
        raise Refused("Wrong input: number of ids, vectors and payloads in a batch must be the same")
    return [
        edge.Point(point_id(one), row, payload or {})
        for one, row, payload in zip(batch.ids, rows, payloads, strict=True)
    ]


def moved(asked: models.UpdateVectors) -> list[edge.PointVectors]:
    """The vectors of an update of vectors."""
    return [edge.PointVectors(point_id(one.id), vectors(one.vector)) for one in asked.points]


def with_payload(asked: Any, default: bool) -> Any:
    """Which fields of the payload an answer has."""
    match asked:
        case None:
            return default
        case models.PayloadSelectorInclude():
            return edge.PayloadSelector.Include(asked.include)
        case models.PayloadSelectorExclude():
            return edge.PayloadSelector.Exclude(asked.exclude)
    return asked


def _shown_vector(found: Any) -> Any:
    if isinstance(found, edge.SparseVector):
        return models.SparseVector.model_construct(indices=found.indices, values=found.values)
    if isinstance(found, dict):
        if set(found) == {""}:
            return _shown_vector(found[""])
        return {name: _shown_vector(one) for name, one in found.items()}
    return found


def _shown(found: Any, payload: Any, **more: Any) -> dict[str, Any]:
    fields = {"id": shown_id(found.id), **more}
    if payload is not False:
        fields["payload"] = found.payload or {}
    if found.vector is not None:
        fields["vector"] = _shown_vector(found.vector)
    if found.order_value is not None:
        fields["order_value"] = found.order_value
    return fields


def scored(found: Any, payload: Any) -> models.ScoredPoint:
    """A point of a search's answer."""
    return models.ScoredPoint.model_construct(**_shown(found, payload, version=found.version, score=found.score))


def record(found: Any, payload: Any) -> models.Record:
    """A point that was read."""
    return models.Record.model_construct(**_shown(found, payload))
