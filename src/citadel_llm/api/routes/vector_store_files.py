"""`/v1/vector_stores/ID/files` and `/file_batches`: what is in a vector store, and what is being put into it."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from citadel_llm.api.errors import ApiError
from citadel_llm.api.files.access import After, Before, Limit, Order, listed, page_of, reachable
from citadel_llm.api.files.bodies import AddFile, Attributes, NewBatch, new_file
from citadel_llm.api.files.build import FileService
from citadel_llm.api.files.filters import checked_attributes, payload_of
from citadel_llm.api.files.search import vector_unavailable
from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.routes.files import missing
from citadel_llm.api.routes.schemas_files import (
    BatchObject,
    ContentPage,
    Deleted,
    StoreFileObject,
    StoreFilePage,
    errors,
)
from citadel_llm.api.routes.vector_stores import body_of, counts_of, find_store
from citadel_llm.api.sessions.items import new_id
from citadel_llm.api.sessions.owner import read
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database.vector_stores import Batch, NewFile, Store, StoreFile
from citadel_llm.integration.vector.errors import VectorError
from citadel_llm.integration.vector.points import Filter

__all__ = ["router"]

type Status = Literal["in_progress", "completed", "failed", "cancelled"]
_ADD = {
    "file_id": {"type": "string"},
    "attributes": {"type": "object", "maxProperties": 16},
    "chunking_strategy": {"type": "object"},
}


def shown(file: StoreFile) -> dict[str, Any]:
    """As callers see it."""
    error = None if file.status != "failed" else {"code": file.error_code, "message": file.error_message}
    sizes = {"max_chunk_size_tokens": file.max_tokens, "chunk_overlap_tokens": file.overlap_tokens}
    return {
        "id": file.file_id,
        "object": "vector_store.file",
        "created_at": file.created_at,
        "vector_store_id": file.store_id,
        "status": file.status,
        "usage_bytes": file.usage_bytes,
        "last_error": error,
        "attributes": file.attributes,
        "chunking_strategy": {"type": "static", "static": sizes},
        "chunks": file.chunks_done,
    }


def shown_batch(batch: Batch) -> dict[str, Any]:
    """As callers see it."""
    if batch.in_progress:
        status = "in_progress"
    elif batch.cancelled:
        status = "cancelled"
    else:
        status = "failed" if batch.failed and not batch.completed else "completed"
    return {
        "id": batch.id,
        "object": "vector_store.files_batch",
        "created_at": batch.created_at,
        "vector_store_id": batch.store_id,
        "status": status,
        "file_counts": counts_of(batch.counts),
    }


def router(state: GatewayState) -> APIRouter:  # noqa: PLR0915 — a family of endpoints
    """The endpoints of this family."""
    routes = APIRouter(prefix="/v1/vector_stores/{vector_store_id}", tags=["vector stores"])
    Caller = Annotated[Principal, Depends(Guard(state)("files"))]
    body_bytes = state.config.limits.body_bytes

    def not_there(id: str) -> ApiError:
        return ApiError(404, "file_not_found", f"There is no file `{id[:64]}` in this store.", param="file_id")

    async def find(caller: Principal, store_id: str, id: str) -> tuple[FileService, Store, StoreFile]:
        service, store = await find_store(state, caller, store_id)
        with reachable(state):
            found = None if "\0" in id else await service.stores.file(store.user_id, store.id, id)
        if found is None:
            raise not_there(id)
        return service, store, found

    async def add(
        service: FileService, store: Store, files: list[NewFile], batch: str | None = None
    ) -> list[StoreFile]:
        if store.expired:
            raise ApiError(400, "vector_store_expired", "The vector store has expired: nothing can be put into it.")
        if store.counts.total + len(files) > service.section.store_files:
            raise ApiError(400, "quota_exceeded", f"A store may have {service.section.store_files} files here.")
        with reachable(state):
            known = await service.files.many(store.user_id, [file.file_id for file in files])
            for file in files:
                if file.file_id not in known:
                    raise missing(file.file_id)
            added = await service.stores.add(store.user_id, store.id, files, batch)
        service.worker.wake()
        return added

    @routes.post(
        "/files",
        summary="Put a file into a store",
        response_model=StoreFileObject,
        responses=errors(404, 413),
        openapi_extra=body_of(_ADD, "file_id"),
    )
    async def add_file(vector_store_id: str, request: Request, caller: Caller) -> Response:
        service, store = await find_store(state, caller, vector_store_id)
        given = await read(request, AddFile, body_bytes)
        file = new_file(given.file_id, given.attributes, given.chunking_strategy, service.section)
        added = await add(service, store, [file])
        if not added:
            raise missing(given.file_id)
        return JSONResponse(shown(added[0]))

    @routes.get("/files", summary="List a store's files", response_model=StoreFilePage, responses=errors(404))
    async def list_files(
        vector_store_id: str,
        caller: Caller,
        filter: Status | None = None,
        limit: Limit = 20,
        order: Order = "desc",
        after: After = "",
        before: Before = "",
    ) -> Response:
        service, store = await find_store(state, caller, vector_store_id)
        page = page_of(limit, order, after, before)
        with reachable(state):
            found = await service.stores.files(store.user_id, store.id, page, status=filter or "")
        return JSONResponse(listed([shown(file) for file in found], limit))

    @routes.get(
        "/files/{file_id}", summary="Show a store's file", response_model=StoreFileObject, responses=errors(404)
    )
    async def get_file(vector_store_id: str, file_id: str, caller: Caller) -> Response:
        return JSONResponse(shown((await find(caller, vector_store_id, file_id))[2]))

    @routes.post(
        "/files/{file_id}",
        summary="Give a store's file other attributes",
        response_model=StoreFileObject,
        responses=errors(404, 413),
        openapi_extra=body_of({"attributes": _ADD["attributes"]}, "attributes"),
    )
    async def update_file(vector_store_id: str, file_id: str, request: Request, caller: Caller) -> Response:
        service, store, file = await find(caller, vector_store_id, file_id)
        attributes = checked_attributes((await read(request, Attributes, body_bytes)).attributes)
        if file.status == "completed":
            try:
                await service.vector.set_payload(
                    service.vector.alias(store.model),
                    {"attributes": payload_of(attributes)},
                    tenant=store.user_id,
                    allowed=_points_of(file),
                )
            except VectorError as failure:
                raise vector_unavailable(failure) from None
        with reachable(state):
            found = await service.stores.set_attributes(store.user_id, store.id, file.file_id, attributes)
        if found is None:
            raise not_there(file_id)
        return JSONResponse(shown(found))

    @routes.get(
        "/files/{file_id}/content", summary="Read a store's file", response_model=ContentPage, responses=errors(404)
    )
    async def get_file_content(vector_store_id: str, file_id: str, caller: Caller) -> Response:
        service, store, file = await find(caller, vector_store_id, file_id)
        found: list[tuple[int, str]] = []
        if file.status == "completed":
            try:
                alias = service.vector.alias(store.model)
                async for hit in service.vector.each(alias, tenant=store.user_id, allowed=_points_of(file)):
                    found.append((hit.payload["chunk"], hit.payload["text"]))
            except VectorError as failure:
                raise vector_unavailable(failure) from None
        data = [{"type": "text", "text": text} for _, text in sorted(found)]
        page = {"object": "vector_store.file_content.page", "data": data}
        return JSONResponse({**page, "has_more": False, "next_page": None})

    @routes.delete(
        "/files/{file_id}", summary="Take a file out of a store", response_model=Deleted, responses=errors(404)
    )
    async def delete_file(vector_store_id: str, file_id: str, caller: Caller) -> Response:
        service, store, file = await find(caller, vector_store_id, file_id)
        with reachable(state):
            if not await service.stores.take_out(store.user_id, store.id, file.file_id):
                raise not_there(file_id)
        service.worker.wake()
        return JSONResponse({"id": file.file_id, "object": "vector_store.file.deleted", "deleted": True})

    @routes.post(
        "/file_batches",
        summary="Put many files into a store",
        response_model=BatchObject,
        responses=errors(404, 413),
        openapi_extra=body_of({
            "file_ids": {"type": "array", "items": {"type": "string"}, "maxItems": 2000},
            "files": {"type": "array", "items": {"type": "object"}, "maxItems": 2000},
            "attributes": _ADD["attributes"], "chunking_strategy": {"type": "object"},
        }),
    )  # fmt: skip
    async def create_file_batch(vector_store_id: str, request: Request, caller: Caller) -> Response:
        service, store = await find_store(state, caller, vector_store_id)
        given = await read(request, NewBatch, body_bytes)
        if (given.file_ids is None) == (given.files is None):
            raise ApiError(400, "invalid_request", "Give `file_ids` or `files`, and not both.", param="file_ids")
        section = service.section
        files = [new_file(one.file_id, one.attributes, one.chunking_strategy, section) for one in given.files or []]
        files += [new_file(id, given.attributes, given.chunking_strategy, section) for id in given.file_ids or []]
        if not files:
            raise ApiError(400, "invalid_request", "file_ids: expected at least one", param="file_ids")
        batch = new_id("vsfb")
        await add(service, store, files, batch)
        return await shown_now(service, store, batch)

    async def shown_now(service: FileService, store: Store, id: str, *, cancel: bool = False) -> Response:
        with reachable(state):
            call = service.stores.cancel if cancel else service.stores.batch
            found = None if "\0" in id else await call(store.user_id, store.id, id)
        if found is None:
            raise ApiError(404, "batch_not_found", f"There is no batch `{id[:64]}` in this store.", param="batch_id")
        return JSONResponse(shown_batch(found))

    @routes.get("/file_batches/{batch_id}", summary="Show a batch", response_model=BatchObject, responses=errors(404))
    async def get_file_batch(vector_store_id: str, batch_id: str, caller: Caller) -> Response:
        service, store = await find_store(state, caller, vector_store_id)
        return await shown_now(service, store, batch_id)

    @routes.post(
        "/file_batches/{batch_id}/cancel",
        summary="Put in no more of a batch",
        response_model=BatchObject,
        responses=errors(404),
    )
    async def cancel_file_batch(vector_store_id: str, batch_id: str, caller: Caller) -> Response:
        service, store = await find_store(state, caller, vector_store_id)
        answer = await shown_now(service, store, batch_id, cancel=True)
        service.worker.wake()
        return answer

    @routes.get(
        "/file_batches/{batch_id}/files",
        summary="List a batch's files",
        response_model=StoreFilePage,
        responses=errors(404),
    )
    async def list_batch_files(
        vector_store_id: str,
        batch_id: str,
        caller: Caller,
        filter: Status | None = None,
        limit: Limit = 20,
        order: Order = "desc",
        after: After = "",
        before: Before = "",
    ) -> Response:
        service, store = await find_store(state, caller, vector_store_id)
        await shown_now(service, store, batch_id)
        page = page_of(limit, order, after, before)
        with reachable(state):
            found = await service.stores.files(store.user_id, store.id, page, status=filter or "", batch=batch_id)
        return JSONResponse(listed([shown(file) for file in found], limit))

    return routes


def _points_of(file: StoreFile) -> Filter:
    return {
        "must": [
            {"key": "store_id", "match": {"value": file.store_id}},
            {"key": "file_id", "match": {"value": file.file_id}},
        ]
    }
