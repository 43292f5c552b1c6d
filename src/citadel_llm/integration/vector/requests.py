"""Requests to Qdrant in the form of its REST API, which every transport takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from citadel_llm.integration.vector.collections import BM25, DENSE
from citadel_llm.integration.vector.points import Filter, Point

__all__ = ["Fusion", "by_tenant", "point_body", "search_body"]

type Fusion = Literal["rrf", "dbsf"]

TENANT = "tenant"
_INFERENCE = "Qdrant/bm25"  # Qdrant's own: words are weighed there, not here
# Of quantized vectors twice as many are taken as are wanted, and sorted by the whole ones.
_QUANTIZED = {"rescore": True, "oversampling": 2.0}
_CANDIDATES, _LEAST = 4, 40  # of each of two searches that are joined: so many times what is wanted, and at least


def by_tenant(tenant: str | None, given: Filter | None) -> Filter | None:
    """What is the tenant's and passes the filter; None as `tenant` is everybody's, for upkeep alone."""
    if tenant is None:
        return given
    own: dict[str, Any] = {"key": TENANT, "match": {"value": tenant}}
    return {"must": [own] if given is None else [own, given]}


def point_body(point: Point, tenant: str) -> dict[str, Any]:
    """A point as it is written; the payload's own `tenant` is never the caller's."""
    vector: dict[str, Any] = {DENSE: point.vector}
    if point.text is not None:
        vector[BM25] = {"text": point.text, "model": _INFERENCE}
    return {"id": point.id, "vector": vector, "payload": {**point.payload, TENANT: tenant}}


def search_body(
    *,
    vector: Iterable[float] | None,
    text: str | None,
    allowed: Filter | None,
    limit: int,
    score_threshold: float | None,
    fusion: Fusion,
    ef: int,
    exact: bool,
    with_vectors: bool,
) -> dict[str, Any]:
    """A search by meaning, by words, or by both, joined. Raises ValueError where there is neither."""
    params: dict[str, Any] = {"exact": True} if exact else {"hnsw_ef": ef, "quantization": _QUANTIZED}
    parts: list[dict[str, Any]] = []
    if vector is not None:
        parts.append({"query": [float(number) for number in vector], "using": DENSE, "params": params})
    if text is not None:
        parts.append({"query": {"text": text, "model": _INFERENCE}, "using": BM25})
    if not parts:
        raise ValueError("Expected a vector, a text, or both")
    body: dict[str, Any] = {"limit": limit, "with_payload": True, "with_vector": [DENSE] if with_vectors else False}
    if len(parts) == 1:
        body |= parts[0]
        if allowed is not None:
            body["filter"] = allowed
    else:
        # The filter belongs to each part: after the joining it would leave fewer than are wanted.
        each = {"limit": max(_LEAST, _CANDIDATES * limit)} | ({} if allowed is None else {"filter": allowed})
        body["prefetch"] = [{**part, **each} for part in parts]
        body["query"] = {"fusion": fusion}
    if score_threshold is not None:
        body["score_threshold"] = score_threshold
    return body
