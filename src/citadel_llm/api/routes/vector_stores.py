"""`/v1/vector_stores`: OpenAI's vector stores API. Each store is its user's own: by every other one it is not found."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from msgspec import UNSET

from citadel_llm.api.errors import ApiError
from citadel_llm.api.files.access import After, Before, Limit, Order, listed, page_of, reachable, service_of
from citadel_llm.api.files.bodies import ChangeStore, NewStore, RankingOptions, SearchStore, new_file
from citadel_llm.api.files.build import FileService
from citadel_llm.api.files.filters import filter_of
from citadel_llm.api.files.search import missing_store
from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.routes.files import missing
from citadel_llm.api.routes.schemas_files import Deleted, SearchPage, StoreObject, StorePage, errors
from citadel_llm.api.sessions.items import new_id
from citadel_llm.api.sessions.owner import checked_metadata, read
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database.vector_stores import Counts, Store

__all__ = ["body_of", "counts_of", "find_store", "router"]


def counts_of(counts: Counts) -> dict[str, int]:
    """As callers see them."""
    return {**counts._asdict(), "total": counts.total}


def shown(store: Store) -> dict[str, Any]:
    """As callers see it."""
    status = "expired" if store.expired else "in_progress" if store.in_progress else "completed"
    expires = None if store.expires_days is None else {"anchor": "last_active_at", "days": store.expires_days}
    return {
        "id": store.id,
        "object": "vector_store",
        "created_at": store.created_at,
        "name": store.name,
        "description": store.description,
        "usage_bytes": store.usage_bytes,
        "file_counts": counts_of(store.counts),
        "status": status,
        "expires_after": expires,
        "expires_at": store.expires_at,
        "last_active_at": store.last_active_at,
        "metadata": store.metadata,
        "model": store.model,
    }


def body_of(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """An endpoint's `openapi_extra`."""
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    return {"requestBody": {"required": bool(required), "content": {"application/json": {"schema": schema}}}}


async def find_store(state: GatewayState, caller: Principal, id: str) -> tuple[FileService, Store]:
    """The caller's store of that id. Raises ApiError."""
    service, user_id = service_of(state, caller)
    with reachable(state):
        found = None if "\0" in id else await service.stores.get(user_id, id)
    if found is None:
        raise missing_store(id)
    return service, found


_METADATA = {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 16}
_EXPIRES = {
    "type": "object",
    "properties": {"anchor": {"enum": ["last_active_at"]}, "days": {"type": "integer", "minimum": 1, "maximum": 365}},
    "required": ["anchor", "days"],
}
_STORE_BODY = {"name": {"type": "string", "maxLength": 512}, "metadata": _METADATA, "expires_after": _EXPIRES}


def router(state: GatewayState) -> APIRouter:  # noqa: PLR0915 — a family of endpoints
    """The endpoints of this family."""
    routes = APIRouter(prefix="/v1/vector_stores", tags=["vector stores"])
    Caller = Annotated[Principal, Depends(Guard(state)("files"))]
    body_bytes = state.config.limits.body_bytes

    @routes.post(
        "",
        summary="Make a vector store",
        response_model=StoreObject,
        responses=errors(404, 413),
        openapi_extra=body_of({
            **_STORE_BODY, "description": {"type": "string"},
            "file_ids": {"type": "array", "items": {"type": "string"}},
            "chunking_strategy": {"type": "object"},
        }),
    )  # fmt: skip
    async def create_vector_store(request: Request, caller: Caller) -> Response:
        service, user_id = service_of(state, caller)
        given = await read(request, NewStore, body_bytes)
        ids = list(dict.fromkeys(given.file_ids or []))
        files = [new_file(id, None, given.chunking_strategy, service.section) for id in ids]
        with reachable(state):
            known = await service.files.many(user_id, ids) if ids else {}
            for id in ids:
                if id not in known:
                    raise missing(id)
            made = await service.stores.create(
                user_id,
                new_id("vs"),
                most=service.section.user_stores,
                files=files,
                name=_text(given.name),
                description=_text(given.description),
                metadata=checked_metadata(given.metadata or {}),
                model=service.embedder,
                expires_days=given.expires_after.days if given.expires_after else None,
            )
        if made is None:
            most = service.section.user_stores
            raise ApiError(400, "quota_exceeded", f"A user may have {most} vector stores here; delete some first.")
        service.worker.wake()
        request.scope["citadel.audit"] = {"vector_store": made.id}
        return JSONResponse(shown(made))

    @routes.get("", summary="List one's own vector stores", response_model=StorePage, responses=errors())
    async def list_vector_stores(
        caller: Caller, limit: Limit = 20, order: Order = "desc", after: After = "", before: Before = ""
    ) -> Response:
        service, user_id = service_of(state, caller)
        page = page_of(limit, order, after, before)
        with reachable(state):
            found = await service.stores.page(user_id, page)
        return JSONResponse(listed([shown(store) for store in found], limit))

    @routes.get("/{vector_store_id}", summary="Show a vector store", response_model=StoreObject, responses=errors(404))
    async def get_vector_store(vector_store_id: str, caller: Caller) -> Response:
        return JSONResponse(shown((await find_store(state, caller, vector_store_id))[1]))

    @routes.post(
        "/{vector_store_id}",
        summary="Change a vector store's name, metadata or expiry",
        response_model=StoreObject,
        responses=errors(404, 413),
        openapi_extra=body_of(_STORE_BODY),
    )
    async def update_vector_store(vector_store_id: str, request: Request, caller: Caller) -> Response:
        service, store = await find_store(state, caller, vector_store_id)
        given = await read(request, ChangeStore, body_bytes)
        if given.name is not UNSET:
            store = store._replace(name=_text(given.name))
        if given.metadata is not UNSET:
            store = store._replace(metadata=checked_metadata(given.metadata or {}))
        if given.expires_after is not UNSET:
            store = store._replace(expires_days=given.expires_after.days if given.expires_after else None)
        with reachable(state):
            await service.stores.update(store)
        return JSONResponse(shown((await find_store(state, caller, vector_store_id))[1]))

    @routes.delete(
        "/{vector_store_id}",
        summary="Delete a vector store, not the files",
        response_model=Deleted,
        responses=errors(404),
    )
    async def delete_vector_store(vector_store_id: str, request: Request, caller: Caller) -> Response:
        service, store = await find_store(state, caller, vector_store_id)
        with reachable(state):
            if not await service.stores.delete(store.user_id, store.id):
                raise missing_store(vector_store_id)
        service.worker.wake()
        request.scope["citadel.audit"] = {"vector_store": store.id}
        return JSONResponse({"id": store.id, "object": "vector_store.deleted", "deleted": True})

    @routes.post(
        "/{vector_store_id}/search",
        summary="Search a vector store",
        response_model=SearchPage,
        responses=errors(404, 413),
        openapi_extra=body_of(
            {
                "query": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
                "filters": {"type": "object"},
                "max_num_results": {"type": "integer", "minimum": 1, "maximum": 50, "default": 10},
                "ranking_options": {"type": "object"},
                "rewrite_query": {"type": "boolean"},
            },
            "query",
        ),
    )
    async def search_vector_store(vector_store_id: str, request: Request, caller: Caller) -> Response:
        service, user_id = service_of(state, caller)
        given = await read(request, SearchStore, body_bytes)
        queries = [given.query] if isinstance(given.query, str) else given.query
        allowed = filter_of(given.filters)
        if "\0" in vector_store_id:
            raise missing_store(vector_store_id)
        with reachable(state):
            found = await service.searcher.search(
                user_id,
                [vector_store_id],
                queries,
                caller=caller.caller,
                limit=given.max_num_results,
                allowed=allowed,
                ranking=(given.ranking_options or RankingOptions()).ranking,
                fresh=True,
            )
        service.counters.searched("/v1/vector_stores")
        data = [
            {
                "file_id": one.file_id,
                "filename": one.filename,
                "score": one.score,
                "attributes": one.attributes,
                "content": [{"type": "text", "text": one.text}],
            }
            for one in found
        ]
        page = {"object": "vector_store.search_results.page", "search_query": queries, "data": data}
        return JSONResponse({**page, "has_more": False, "next_page": None})

    return routes


def _text(given: str | None) -> str:
    return (given or "").replace("\0", "")
