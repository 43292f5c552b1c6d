"""Queries and prefetches, as the engine takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import qdrant_edge as edge
from qdrant_client import models

from qdrant import filters
from qdrant.errors import NotDone
from qdrant.points import point_id, vector, with_payload

LIMIT = 10
type Stored = Callable[[Any, str], Any]  # the vector of a point that is there, by its id and the vector's name


def made(asked: models.QueryRequest, stored: Stored) -> edge.QueryRequest:
    """The engine's form of a whole request."""
    if asked.lookup_from:
        raise NotDone("`lookup_from`")
    query, own = _query(asked.query, asked.using, stored)
    prefetches = _prefetches(asked.prefetch, stored)
    return edge.QueryRequest(
        limit=LIMIT if asked.limit is None else asked.limit,
        offset=asked.offset or 0,
        query=query,
        prefetches=prefetches,
        filter=filters.without(filters.made(asked.filter), own),
        params=_params(asked.params),
        score_threshold=asked.score_threshold,
        with_payload=with_payload(asked.with_payload, False),
        with_vector=asked.with_vector if asked.with_vector is not None else False,
    )


def order(asked: Any) -> edge.OrderBy | None:
    """By which field an answer is sorted."""
    if asked is None or isinstance(asked, str):
        return edge.OrderBy(asked) if asked else None
    start = asked.start_from
    direction = {None: None, "asc": edge.Direction.Asc, "desc": edge.Direction.Desc}[
        asked.direction.value if asked.direction else None
    ]
    return edge.OrderBy(asked.key, direction, start.isoformat() if hasattr(start, "isoformat") else start)


def _prefetches(asked: Any, stored: Stored) -> list[edge.Prefetch]:
    return [_prefetch(one, stored) for one in (asked if isinstance(asked, list) else [asked] if asked else [])]


def _prefetch(asked: models.Prefetch, stored: Stored) -> edge.Prefetch:
    if asked.lookup_from:
        raise NotDone("`lookup_from`")
    query, own = _query(asked.query, asked.using, stored)
    return edge.Prefetch(
        limit=LIMIT if asked.limit is None else asked.limit,
        query=query,
        prefetches=_prefetches(asked.prefetch, stored),
        params=_params(asked.params),
        filter=filters.without(filters.made(asked.filter), own),
        score_threshold=asked.score_threshold,
    )


def _query(asked: Any, using: str | None, stored: Stored) -> tuple[Any, list[Any]]:
    """The query, and the ids that it was made from, which are not among its answers."""
    match asked:
        case None:
            return None, []
        case models.NearestQuery():
            return _nearest(asked, using, stored)
        case models.FusionQuery():
            return (edge.Fusion.Rrf(2) if asked.fusion is models.Fusion.RRF else edge.Fusion.Dbsf()), []
        case models.RrfQuery():
            return edge.Fusion.Rrf(asked.rrf.k or 2, asked.rrf.weights), []
        case models.OrderByQuery():
            return order(asked.order_by), []
        case models.SampleQuery():
            return edge.Sample.Random, []
        case list() | int() | str() | UUID() | models.SparseVector() | models.Document():
            return _nearest(models.NearestQuery.model_construct(nearest=asked, mmr=None), using, stored)
    raise NotDone(f"a query of type {type(asked).__name__}")


def _nearest(asked: models.NearestQuery, using: str | None, stored: Stored) -> tuple[Any, list[Any]]:
    own = []
    if isinstance(asked.nearest, int | str | UUID):
        own = [point_id(asked.nearest)]
        target = stored(own[0], using or "")
    else:
        target = vector(asked.nearest, query=True)
    if asked.mmr is not None:
        diversity = 0.5 if asked.mmr.diversity is None else asked.mmr.diversity
        return edge.Mmr(target, 1 - diversity, asked.mmr.candidates_limit or LIMIT, using), own
    return edge.Query.Nearest(target, using), own


def _params(asked: models.SearchParams | None) -> edge.SearchParams | None:
    if asked is None:
        return None
    if asked.acorn or asked.idf:
        raise NotDone("`acorn` and `idf` of a search")
    quantization = asked.quantization
    return edge.SearchParams(
        hnsw_ef=asked.hnsw_ef,
        exact=bool(asked.exact),
        indexed_only=bool(asked.indexed_only),
        quantization=edge.QuantizationSearchParams(
            bool(quantization.ignore), quantization.rescore, quantization.oversampling
        )
        if quantization
        else None,
    )
