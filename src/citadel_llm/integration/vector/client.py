"""The client: what the gateway asks of Qdrant, by tenant.

    client = build_vector(config.vector, metrics.vector, changed)
    await client.upsert("citadel_minilm", points, tenant="user-1")
    hits = await client.search("citadel_minilm", tenant="user-1", vector=vector, text="how to reset", limit=5)

Each call names a tenant, whose points it sees and touches, and no others; None is everybody, for upkeep alone. Every
call raises VectorUnavailable within a second where Qdrant is away, VectorRefused where it says no.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import batched
from typing import Any

from citadel_llm.integration.vector.guard import Guard
from citadel_llm.integration.vector.metrics import Operation, VectorMetrics
from citadel_llm.integration.vector.points import Filter, Hit, Page, Point, PointId
from citadel_llm.integration.vector.requests import TENANT, Fusion, by_tenant, point_body, search_body
from citadel_llm.integration.vector.results import Results
from citadel_llm.integration.vector.transport import Transport
from citadel_llm.utils.config import Vector

__all__ = ["VectorClient"]


class VectorClient:
    """Made by `build_vector`. Collections are named by their aliases."""

    def __init__(self, config: Vector, guard: Guard, metrics: VectorMetrics) -> None:
        self._config = config
        self._guard = guard
        self._metrics = metrics
        self._results = Results(config.cache_entries, config.cache_ttl_s, time.monotonic)

    def alias(self, model: str) -> str:
        """The name of a model's collection."""
        return f"{self._config.prefix}_{model}"

    @property
    def state(self) -> dict[str, Any]:
        """For the health page: `up` (None before the first call), `breaker`, `error`."""
        guard = self._guard
        return {"up": guard.up, "breaker": guard.breaker.name.lower(), "error": guard.reason or None}

    async def ping(self) -> str:
        """Qdrant's version, asked now. Where it answers, calls are let through again at once."""
        return await self._guard.ping()

    async def prepare(self) -> None:
        """Load the client library, which takes a second, and see whether Qdrant answers; it need not."""
        await self._guard.prepare()

    async def close(self) -> None:
        """Close what is open."""
        await self._guard.close()

    # -- reading ----------------------------------------------------------------------------

    async def search(
        self,
        collection: str,
        *,
        tenant: str | None,
        vector: Iterable[float] | None = None,
        text: str | None = None,
        allowed: Filter | None = None,
        limit: int = 10,
        score_threshold: float | None = None,
        fusion: Fusion = "rrf",
        exact: bool = False,
        with_vectors: bool = False,
        fresh: bool = False,
    ) -> list[Hit]:
        """The best points by meaning (`vector`), by words (`text`), or by both, joined by `fusion`.

        `exact` looks at every vector instead of the index; `fresh` does not take what was found a moment ago. Scores
        are cosines by meaning, BM25's by words, and the fusion's own for both.
        """
        body = search_body(
            vector=vector,
            text=text,
            allowed=by_tenant(tenant, allowed),
            limit=limit,
            score_threshold=score_threshold,
            fusion=fusion,
            ef=self._config.search_ef,
            exact=exact,
            with_vectors=with_vectors,
        )
        results = self._results
        if fresh or not results.enabled:
            return await self._guard.read("search", lambda transport: transport.query(collection, body))
        key = results.key(collection, body)
        if (kept := results.get(key)) is not None:
            self._metrics.looked_up("hit")
            return kept
        self._metrics.looked_up("miss")
        generation = results.generation(collection)
        found = await self._guard.read("search", lambda transport: transport.query(collection, body))
        results.put(key, found, generation)
        return found

    async def scroll(
        self,
        collection: str,
        *,
        tenant: str | None,
        allowed: Filter | None = None,
        limit: int = 100,
        offset: PointId | None = None,
    ) -> Page:
        """A page of points by id, without scores."""
        wanted = by_tenant(tenant, allowed)
        return await self._guard.read("scroll", lambda transport: transport.scroll(collection, wanted, limit, offset))

    async def each(
        self, collection: str, *, tenant: str | None, allowed: Filter | None = None, page: int = 256
    ) -> AsyncIterator[Hit]:
        """All points, a page at a time."""
        offset: PointId | None = None
        while True:
            found = await self.scroll(collection, tenant=tenant, allowed=allowed, limit=page, offset=offset)
            for hit in found.points:
                yield hit
            offset = found.following
            if offset is None:
                return

    async def retrieve(
        self, collection: str, ids: Sequence[PointId], *, tenant: str | None, with_vectors: bool = False
    ) -> list[Hit]:
        """The tenant's points of these ids, as far as there are any."""
        found = await self._guard.read(
            "retrieve", lambda transport: transport.retrieve(collection, list(ids), with_vectors)
        )
        return [hit for hit in found if tenant is None or hit.payload.get(TENANT) == tenant]

    async def count(self, collection: str, *, tenant: str | None, allowed: Filter | None = None) -> int:
        """How many points there are, exactly."""
        wanted = by_tenant(tenant, allowed)
        return await self._guard.read("count", lambda transport: transport.count(collection, wanted))

    # -- writing ----------------------------------------------------------------------------

    async def upsert(self, collection: str, points: Iterable[Point], *, tenant: str) -> int:
        """Write points as the tenant's, in batches, each done when the next one goes; how many there were.

        Make the ids from something of the tenant's own: where another tenant has a point of that id, that one stays as
        it is, and this one is not written.
        """
        count = 0
        own: Filter = by_tenant(tenant, None) or {}
        for batch in batched(points, self._config.batch):
            bodies = [point_body(point, tenant) for point in batch]
            await self._write(
                collection, "upsert", lambda transport, made=bodies: transport.upsert(collection, made, own)
            )
            count += len(bodies)
        return count

    async def delete(
        self,
        collection: str,
        *,
        tenant: str | None,
        ids: Sequence[PointId] | None = None,
        allowed: Filter | None = None,
    ) -> None:
        """Delete the tenant's points of these ids, or those that the filter lets through; all of them for neither."""
        wanted = by_tenant(tenant, _chosen(ids, allowed)) or {}
        await self._write(collection, "delete", lambda transport: transport.delete(collection, wanted))

    async def set_payload(
        self,
        collection: str,
        payload: dict[str, Any],
        *,
        tenant: str | None,
        ids: Sequence[PointId] | None = None,
        allowed: Filter | None = None,
    ) -> None:
        """Set fields of the payload of the tenant's points; `tenant` is not one of those that can be set."""
        if TENANT in payload:
            raise ValueError(f"`{TENANT}` of a payload is not for callers to set")
        wanted = by_tenant(tenant, _chosen(ids, allowed)) or {}
        await self._write(
            collection, "set_payload", lambda transport: transport.set_payload(collection, payload, wanted)
        )

    async def _write(self, collection: str, operation: Operation, call: Any) -> None:
        # Before, so that nobody is given what is being changed; and after, since a search may have run beside it.
        self._results.forget(collection)
        try:
            await self._guard.write(operation, call)
        finally:
            self._results.forget(collection)

    # -- upkeep -----------------------------------------------------------------------------

    async def collections(self) -> list[str]:
        """The names of all collections."""
        return await self._guard.read("admin", lambda transport: transport.collections())

    async def aliases(self) -> dict[str, str]:
        """The collection that each alias leads to."""
        return await self._guard.read("admin", lambda transport: transport.aliases())

    async def point_alias(self, alias: str, collection: str) -> None:
        """Let an alias lead to another collection, in one step: callers see the old one or the new one, whole."""

        async def call(transport: Transport) -> None:
            await transport.point_alias(alias, collection)

        try:
            await self._guard.write("admin", call)
        finally:
            self._results.forget()


def _chosen(ids: Sequence[PointId] | None, allowed: Filter | None) -> Filter | None:
    if ids is None:
        return allowed
    own: dict[str, Any] = {"has_id": list(ids)}
    return {"must": [own] if allowed is None else [own, allowed]}
