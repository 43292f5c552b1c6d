"""GraphQL, for reading alone. Qdrant itself has none: this is what a gateway before it may offer (schema.graphql)."""

from __future__ import annotations

import asyncio
from typing import Any

import strawberry
from pydantic import TypeAdapter, ValidationError
from qdrant_client import models
from starlette.routing import Route
from strawberry.asgi import GraphQL
from strawberry.scalars import JSON
from strawberry.schema.config import StrawberryConfig
from strawberry.types import Info

from qdrant.errors import Refused
from qdrant.store import Store

_QUERY = TypeAdapter(models.QueryRequest)
_FILTER = TypeAdapter(models.Filter)


def _checked(adapter: TypeAdapter[Any], given: Any) -> Any:
    try:
        return adapter.validate_python(given)
    except ValidationError as error:
        raise Refused(f"Format error: {error.errors(include_url=False, include_input=False)[0]['msg']}") from error


@strawberry.type
class Point:
    """A point; `score` is given by searches alone."""

    id: strawberry.ID
    score: float | None
    payload: JSON | None


@strawberry.type
class Page:
    """Points, and the id that the next page begins with."""

    points: list[Point]
    next: strawberry.ID | None


@strawberry.type
class Collection:
    """A collection and how full it is."""

    name: str
    status: str
    points: int
    indexed_vectors: int
    aliases: list[str]
    config: JSON


def _store(info: Info) -> Store:
    store: Store = info.context["store"]
    return store


def _point(found: Any) -> Point:
    return Point(
        id=strawberry.ID(str(found.id)), score=getattr(found, "score", None), payload=getattr(found, "payload", None)
    )


def _ids(given: list[Any]) -> list[Any]:
    return [int(one) if str(one).isdigit() else str(one) for one in given]


def _described(store: Store, name: str) -> Collection:
    found = store.get(name)
    info = found.info()
    return Collection(
        name=found.folder.name,
        status=info.status.value,
        points=info.points_count,
        indexed_vectors=info.indexed_vectors_count,
        aliases=[one.alias_name for one in store.aliases(found.folder.name)],
        config=info.config.model_dump(mode="json", exclude_none=True),
    )


@strawberry.type
class Query:
    """Everything that may be asked."""

    @strawberry.field
    async def collections(self, info: Info) -> list[Collection]:
        """All collections."""
        store = _store(info)
        return await asyncio.to_thread(lambda: [_described(store, name) for name in store.names()])

    @strawberry.field
    async def collection(self, info: Info, name: str) -> Collection:
        """One collection, by its name or an alias."""
        return await asyncio.to_thread(_described, _store(info), name)

    @strawberry.field
    async def search(self, info: Info, collection: str, request: JSON) -> list[Point]:
        """The best points. `request` is the body of REST's `points/query`."""
        asked = _checked(_QUERY, request)
        found = await asyncio.to_thread(_store(info).get(collection).query, asked)
        return [_point(one) for one in found]

    @strawberry.field
    async def scroll(
        self,
        info: Info,
        collection: str,
        limit: int = 10,
        offset: strawberry.ID | None = None,
        filter: JSON | None = None,
    ) -> Page:
        """A page of points by id."""
        asked = models.ScrollRequest(
            limit=limit,
            offset=_ids([offset])[0] if offset is not None else None,
            filter=_checked(_FILTER, filter) if filter is not None else None,
            with_payload=True,
        )
        found, following = await asyncio.to_thread(_store(info).get(collection).scroll, asked)
        return Page(
            points=[_point(one) for one in found], next=None if following is None else strawberry.ID(str(following))
        )

    @strawberry.field
    async def points(self, info: Info, collection: str, ids: list[strawberry.ID]) -> list[Point]:
        """The points of these ids."""
        asked = models.PointRequest(ids=_ids(list(ids)), with_payload=True)
        return [_point(one) for one in await asyncio.to_thread(_store(info).get(collection).retrieve, asked)]

    @strawberry.field
    async def count(self, info: Info, collection: str, filter: JSON | None = None) -> int:
        """How many points a filter lets through."""
        asked = models.CountRequest(filter=_checked(_FILTER, filter) if filter is not None else None, exact=True)
        return await asyncio.to_thread(_store(info).get(collection).count, asked)


schema = strawberry.Schema(Query, config=StrawberryConfig(auto_camel_case=True))


class _Endpoint(GraphQL[Any, Any]):
    def __init__(self, store: Store) -> None:
        super().__init__(schema, graphql_ide=None)
        self._store = store

    async def get_context(self, request: Any, response: Any) -> Any:
        return {"request": request, "response": response, "store": self._store}


def route(store: Store) -> Route:
    """`/graphql`."""
    return Route("/graphql", _Endpoint(store))
