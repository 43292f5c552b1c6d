"""How Qdrant is spoken to: one small protocol, and a transport for each of its languages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from citadel_llm.integration.vector.errors import VectorError, VectorUnavailable
from citadel_llm.integration.vector.points import Filter, Hit, Page, PointId
from citadel_llm.utils.config import Vector

__all__ = ["Broken", "Denied", "Transport", "load_key", "make_transport"]


class Broken(VectorError):
    """Nobody answered, or not in a way that says anything of the request: it may be sent again."""


class Denied(VectorError):
    """The API key is not the one that Qdrant has."""


class Transport(Protocol):
    """Calls to Qdrant, each made once. Bodies and filters are of the REST API's form.

    Raises Broken, Denied, VectorRefused or VectorReadOnly; whoever calls sees to the time.
    """

    async def ping(self) -> str:
        """Qdrant's version."""

    async def query(self, collection: str, body: dict[str, Any]) -> list[Hit]:
        """The points that a query finds."""

    async def scroll(self, collection: str, allowed: Filter | None, limit: int, offset: PointId | None) -> Page:
        """A page of points, by id."""

    async def retrieve(self, collection: str, ids: list[PointId], with_vectors: bool) -> list[Hit]:
        """The points of these ids, as far as there are any."""

    async def count(self, collection: str, allowed: Filter | None) -> int:
        """How many points there are, exactly."""

    async def upsert(self, collection: str, points: list[dict[str, Any]], own: Filter) -> None:
        """Write points, new or in the place of those of the same id that pass `own`; done when it returns."""

    async def delete(self, collection: str, allowed: Filter) -> None:
        """Delete what the filter lets through; done when it returns."""

    async def set_payload(self, collection: str, payload: dict[str, Any], allowed: Filter) -> None:
        """Set fields of the payload of what the filter lets through."""

    async def collections(self) -> list[str]:
        """The names of all collections."""

    async def aliases(self) -> dict[str, str]:
        """The collection that each alias leads to."""

    async def point_alias(self, alias: str, collection: str) -> None:
        """Let the alias lead to the collection, in one step, wherever it led before."""

    async def close(self) -> None:
        """Close what is open."""


def load_key(path: Path) -> str:
    """The API key of `{"api_key": …}`. Raises VectorUnavailable, which names the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["api_key"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VectorUnavailable(f"{path}: expected a JSON object with `api_key`, readable by this user") from error
    return str(found)


def make_transport(config: Vector) -> Callable[[str], Transport]:
    """What makes a transport from an API key. Imports the client library: takes a second, so not on the event loop."""
    if config.protocol == "graphql":
        from citadel_llm.integration.vector.graphql import GraphqlTransport  # noqa: PLC0415

        return lambda key: GraphqlTransport(config, key)
    # numpy and gRPC come with it: only who turned the section on shall carry them.
    from citadel_llm.integration.vector.qdrant import QdrantTransport  # noqa: PLC0415

    return lambda key: QdrantTransport(config, key)
