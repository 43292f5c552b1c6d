"""Qdrant by GraphQL, where a gateway before it offers nothing else: reading alone.

Qdrant itself has no GraphQL. The schema is that of the lab's host (docs/lab-qdrant.md); a gateway with another one
needs other documents, which are all here.
"""

from __future__ import annotations

from typing import Any, NoReturn

import httpx

from citadel_llm.integration.vector.errors import VectorReadOnly, VectorRefused
from citadel_llm.integration.vector.points import Filter, Hit, Page, PointId
from citadel_llm.integration.vector.transport import Broken, Denied
from citadel_llm.utils.config import Vector

__all__ = ["GraphqlTransport"]

_PATH = "/graphql"
_PING = "{ __typename }"
_SEARCH = """query ($collection: String!, $request: JSON!) {
  search(collection: $collection, request: $request) { id score payload }
}"""
_SCROLL = """query ($collection: String!, $limit: Int!, $offset: ID, $filter: JSON) {
  scroll(collection: $collection, limit: $limit, offset: $offset, filter: $filter) { points { id payload } next }
}"""
_POINTS = """query ($collection: String!, $ids: [ID!]!) {
  points(collection: $collection, ids: $ids) { id payload }
}"""
_COUNT = "query ($collection: String!, $filter: JSON) { count(collection: $collection, filter: $filter) }"
_COLLECTIONS = "{ collections { name aliases } }"


class GraphqlTransport:
    """Implements `Transport`; everything that writes raises VectorReadOnly, and vectors are not read."""

    def __init__(self, config: Vector, key: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=config.url,
            headers={"api-key": key},
            timeout=config.write_timeout_s,
            limits=httpx.Limits(max_connections=config.connections, max_keepalive_connections=config.connections),
        )

    async def ping(self) -> str:
        await self._ask(_PING)
        return ""

    async def query(self, collection: str, body: dict[str, Any]) -> list[Hit]:
        data = await self._ask(_SEARCH, collection=collection, request={**body, "with_vector": False})
        return [_hit(one) for one in data["search"]]

    async def scroll(self, collection: str, allowed: Filter | None, limit: int, offset: PointId | None) -> Page:
        where = None if offset is None else str(offset)
        page = (await self._ask(_SCROLL, collection=collection, limit=limit, offset=where, filter=allowed))["scroll"]
        following = page["next"]
        return Page(
            points=[_hit(one) for one in page["points"]], following=None if following is None else _id(following)
        )

    async def retrieve(self, collection: str, ids: list[PointId], with_vectors: bool) -> list[Hit]:
        if with_vectors:
            raise VectorReadOnly("GraphQL gives no vectors")
        data = await self._ask(_POINTS, collection=collection, ids=[str(one) for one in ids])
        return [_hit(one) for one in data["points"]]

    async def count(self, collection: str, allowed: Filter | None) -> int:
        return int((await self._ask(_COUNT, collection=collection, filter=allowed))["count"])

    async def collections(self) -> list[str]:
        return [one["name"] for one in (await self._ask(_COLLECTIONS))["collections"]]

    async def aliases(self) -> dict[str, str]:
        found = (await self._ask(_COLLECTIONS))["collections"]
        return {alias: one["name"] for one in found for alias in one["aliases"]}

    async def upsert(self, collection: str, points: list[dict[str, Any]], own: Filter) -> None:
        _refuse()

    async def delete(self, collection: str, allowed: Filter) -> None:
        _refuse()

    async def set_payload(self, collection: str, payload: dict[str, Any], allowed: Filter) -> None:
        _refuse()

    async def point_alias(self, alias: str, collection: str) -> None:
        _refuse()

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, query: str, **variables: Any) -> dict[str, Any]:
        try:
            answer = await self._client.post(_PATH, json={"query": query, "variables": variables})
        except httpx.HTTPError as error:
            raise Broken(f"{type(error).__name__}: {error}") from error
        if answer.status_code in (401, 403):
            raise Denied("Qdrant refuses the API key")
        if answer.status_code >= 500:
            raise Broken(f"Qdrant's gateway answered {answer.status_code}")
        try:
            said = answer.json()
        except ValueError as error:
            raise Broken(f"{_PATH} does not answer in JSON") from error
        if errors := said.get("errors"):
            message = str(errors[0].get("message", ""))
            raise VectorRefused(404 if "Not found" in message else 400, message)
        data: dict[str, Any] = said["data"]
        return data


def _refuse() -> NoReturn:
    raise VectorReadOnly("GraphQL only reads here: set `vector.protocol` to `rest` or `grpc` to write")


def _id(found: str) -> PointId:
    return int(found) if found.isdigit() else found


def _hit(found: dict[str, Any]) -> Hit:
    return Hit(id=_id(found["id"]), score=found.get("score"), payload=found.get("payload") or {})
