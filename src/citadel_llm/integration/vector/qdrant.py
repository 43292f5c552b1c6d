"""Qdrant by REST or gRPC, through the official client. Import it only where the section `vector` is turned on."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from citadel_llm.integration.vector.collections import DENSE
from citadel_llm.integration.vector.errors import VectorRefused
from citadel_llm.integration.vector.points import Filter, Hit, Page, PointId
from citadel_llm.integration.vector.transport import Broken, Denied
from citadel_llm.utils.config import Vector

__all__ = ["QdrantTransport"]

_KEEPALIVE_S = 60.0
# gRPC waits up to two minutes before it connects anew, as it comes: too long to see that Qdrant is back.
_CHANNEL = {
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
    "grpc.max_receive_message_length": 64 << 20,
    "grpc.max_send_message_length": 64 << 20,
}
_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.UNIMPLEMENTED: 501,
}


class QdrantTransport:
    """Implements `Transport`."""

    def __init__(self, config: Vector, key: str) -> None:
        self._config = config
        parts = urlsplit(config.url)
        with warnings.catch_warnings():
            # The site decides whether its network needs TLS; the library would tell the log on each start.
            warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
            self._client = AsyncQdrantClient(
                url=config.url,
                port=parts.port or (443 if parts.scheme == "https" else 80),
                grpc_port=config.grpc_port or parts.port or 6334,
                prefer_grpc=config.protocol == "grpc",
                grpc_options=dict(_CHANNEL),
                api_key=key,
                timeout=int(config.write_timeout_s) + 1,  # the guard is stricter; this is for what it left behind
                check_compatibility=False,
                cloud_inference=True,  # words go to Qdrant as they are
                limits=httpx.Limits(
                    max_connections=config.connections,
                    max_keepalive_connections=config.connections,
                    keepalive_expiry=_KEEPALIVE_S,
                ),
            )

    async def ping(self) -> str:
        async with _told():
            return str((await self._client.info()).version)

    async def query(self, collection: str, body: dict[str, Any]) -> list[Hit]:
        async with _told():
            asked = models.QueryRequest.model_validate(body)
            found = await self._client.query_points(
                collection,
                query=asked.query,
                using=asked.using,
                prefetch=asked.prefetch,
                query_filter=asked.filter,
                search_params=asked.params,
                limit=asked.limit or 10,
                with_payload=asked.with_payload if asked.with_payload is not None else True,
                with_vectors=asked.with_vector if asked.with_vector is not None else False,
                score_threshold=asked.score_threshold,
            )
        return [_hit(one, one.score) for one in found.points]

    async def scroll(self, collection: str, allowed: Filter | None, limit: int, offset: PointId | None) -> Page:
        async with _told():
            found, following = await self._client.scroll(
                collection, scroll_filter=_filter(allowed), limit=limit, offset=offset, with_payload=True
            )
        return Page(points=[_hit(one) for one in found], following=None if following is None else _id(following))

    async def retrieve(self, collection: str, ids: list[PointId], with_vectors: bool) -> list[Hit]:
        async with _told():
            found = await self._client.retrieve(
                collection, list(ids), with_payload=True, with_vectors=[DENSE] if with_vectors else False
            )
        return [_hit(one) for one in found]

    async def count(self, collection: str, allowed: Filter | None) -> int:
        async with _told():
            return (await self._client.count(collection, count_filter=_filter(allowed), exact=True)).count

    async def upsert(self, collection: str, points: list[dict[str, Any]], own: Filter) -> None:
        async with _told():
            made = [models.PointStruct.model_validate(point) for point in points]
            await self._client.upsert(collection, made, wait=True, update_filter=_filter(own))

    async def delete(self, collection: str, allowed: Filter) -> None:
        async with _told():
            await self._client.delete(
                collection, models.FilterSelector(filter=models.Filter.model_validate(allowed)), wait=True
            )

    async def set_payload(self, collection: str, payload: dict[str, Any], allowed: Filter) -> None:
        async with _told():
            await self._client.set_payload(collection, payload, points=models.Filter.model_validate(allowed), wait=True)

    async def collections(self) -> list[str]:
        async with _told():
            return [one.name for one in (await self._client.get_collections()).collections]

    async def aliases(self) -> dict[str, str]:
        async with _told():
            found = (await self._client.get_aliases()).aliases
        return {one.alias_name: one.collection_name for one in found}

    async def point_alias(self, alias: str, collection: str) -> None:
        changes: list[Any] = []
        if alias in await self.aliases():
            changes.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        new = models.CreateAlias(collection_name=collection, alias_name=alias)
        changes.append(models.CreateAliasOperation(create_alias=new))
        async with _told():
            await self._client.update_collection_aliases(changes)

    async def close(self) -> None:
        await self._client.close()


@asynccontextmanager
async def _told() -> AsyncIterator[None]:
    """The library's errors as the transport's."""
    try:
        yield
    except UnexpectedResponse as error:
        status = error.status_code or 0
        text = bytes(error.content)[:500].decode(errors="replace")
        if status in (401, 403):
            raise Denied("Qdrant refuses the API key") from error
        if status >= 500 and status != 501:
            raise Broken(f"Qdrant answered {status}: {text}") from error
        raise VectorRefused(status, text) from error
    except (ResponseHandlingException, httpx.HTTPError, ResourceExhaustedResponse) as error:
        raise Broken(f"{type(getattr(error, 'source', error)).__name__}: {error}") from error
    except ValueError as error:  # before anything was sent: a filter, as a rule, that is none
        raise VectorRefused(400, f"Expected a request as Qdrant's REST API takes it: {error}") from error
    except grpc.RpcError as error:
        code, text = error.code(), error.details() or ""
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise Denied("Qdrant refuses the API key") from error
        if code in _CODES:
            raise VectorRefused(_CODES[code], text) from error
        raise Broken(f"{code.name}: {text}") from error


def _filter(allowed: Filter | None) -> models.Filter | None:
    return None if allowed is None else models.Filter.model_validate(allowed)


def _id(found: Any) -> PointId:
    return found if isinstance(found, int) else str(found)


def _hit(found: Any, score: float | None = None) -> Hit:
    vector = found.vector.get(DENSE) if isinstance(found.vector, dict) else found.vector
    return Hit(id=_id(found.id), score=score, payload=found.payload or {}, vector=vector)
