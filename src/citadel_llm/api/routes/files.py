"""`/v1/files`: OpenAI's files API. Each file is its user's own: by every other one it is not found."""

import errno
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from citadel_llm.api.errors import ApiError
from citadel_llm.api.files.access import After, Limit, Order, listed, page_of, reachable, service_of
from citadel_llm.api.files.build import FileService
from citadel_llm.api.files.upload import Upload, receive
from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.routes.schemas_files import Deleted, FileObject, FilePage, errors
from citadel_llm.api.sessions.items import new_id
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database.files import File, QuotaExceeded

__all__ = ["router"]

_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_SECONDS = (3600, 2_592_000)
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "properties": {
                    "file": {"type": "string", "format": "binary"},
                    "purpose": {"enum": list(_PURPOSES)},
                    "expires_after[anchor]": {"enum": ["created_at"]},
                    "expires_after[seconds]": {"type": "integer", "minimum": _SECONDS[0], "maximum": _SECONDS[1]},
                },
            }
        }
    },
}


def shown(file: File) -> dict[str, Any]:
    """As callers see it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def missing(id: str) -> ApiError:
    """The 404."""
    return ApiError(404, "file_not_found", f"There is no file `{id[:64]}` of yours.", param="file_id")


def router(state: GatewayState) -> APIRouter:  # noqa: PLR0915 — a family of endpoints
    """The endpoints of this family."""
    routes = APIRouter(prefix="/v1/files", tags=["files"])
    Caller = Annotated[Principal, Depends(Guard(state)("files"))]

    async def find(caller: Principal, id: str) -> tuple[FileService, File]:
        service, user_id = service_of(state, caller)
        with reachable(state):
            found = None if "\0" in id else await service.files.get(user_id, id)
        if found is None:
            raise missing(id)
        return service, found

    @routes.post(
        "",
        summary="Upload a file",
        response_model=FileObject,
        responses=errors(413),
        openapi_extra={"requestBody": _BODY},
    )
    async def upload_file(request: Request, caller: Caller) -> Response:
        service, user_id = service_of(state, caller)
        with reachable(state):  # before anything is read
            await service.files.get(user_id, "")
        limit = service.section.max_file_bytes
        length = request.headers.get("content-length")
        try:
            async with service.content.incoming(limit) as incoming:
                upload = await receive(
                    request.headers.get("content-type", ""),
                    int(length) if length else None,
                    request.stream(),
                    incoming,
                    limit,
                )
                filename, purpose, ttl_s = _said(upload)
                digest = await incoming.sealed()
                new = File(
                    new_id("file")[:45].replace("_", "-"), user_id, filename, purpose, incoming.size_bytes, digest
                )
                section = service.section
                most = (section.user_files, section.user_bytes, section.total_bytes)
                with reachable(state):
                    made = await service.files.add(
                        new, lambda: service.content.place(incoming, digest), ttl_s=ttl_s, most=most
                    )
        except QuotaExceeded as failure:
            raise ApiError(400, "quota_exceeded", str(failure), param="file") from None
        except OSError as failure:
            if failure.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ApiError(507, "no_space", "This server's disk has no room for the file.") from None
            raise
        service.counters.uploaded(made.size_bytes)
        request.scope["citadel.audit"] = {"file": made.id, "bytes": made.size_bytes}
        return JSONResponse(shown(made))

    @routes.get("", summary="List one's own files", response_model=FilePage, responses=errors())
    async def list_files(
        caller: Caller,
        purpose: Annotated[str, Query(max_length=32)] = "",
        limit: Limit = 10_000,
        order: Order = "desc",
        after: After = "",
    ) -> Response:
        service, user_id = service_of(state, caller)
        page = page_of(limit, order, after, "", most=10_000)
        with reachable(state):
            found = await service.files.page(user_id, page, purpose.replace("\0", "?"))
        return JSONResponse(listed([shown(file) for file in found], limit))

    @routes.get("/{file_id}", summary="Show a file", response_model=FileObject, responses=errors(404))
    async def get_file(file_id: str, caller: Caller) -> Response:
        return JSONResponse(shown((await find(caller, file_id))[1]))

    @routes.get(
        "/{file_id}/content",
        summary="Read a file's content",
        response_class=StreamingResponse,
        responses={
            200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
            **errors(404),
        },
    )
    async def get_file_content(file_id: str, caller: Caller) -> Response:
        service, file = await find(caller, file_id)
        pieces = service.content.read(file.digest)
        try:
            first = await anext(pieces, b"")
        except FileNotFoundError:
            raise ApiError(500, "content_missing", "The file's content is not on this server.") from None

        async def content() -> AsyncIterator[bytes]:
            yield first
            async for piece in pieces:
                yield piece

        # Never shown as a page of ours by a browser, whatever is in it.
        headers = {
            "content-length": str(file.size_bytes),
            "content-disposition": "attachment",
            "x-content-type-options": "nosniff",
        }
        return StreamingResponse(content(), media_type="application/octet-stream", headers=headers)

    @routes.delete(
        "/{file_id}", summary="Delete a file, in every store too", response_model=Deleted, responses=errors(404)
    )
    async def delete_file(file_id: str, request: Request, caller: Caller) -> Response:
        service, file = await find(caller, file_id)
        with reachable(state):
            digest = await service.files.delete(file.user_id, file.id)
            if digest is None:
                raise missing(file_id)
            await service.worker.release(digest)
        service.worker.wake()
        request.scope["citadel.audit"] = {"file": file.id}
        return JSONResponse({"id": file.id, "object": "file", "deleted": True})

    return routes


def _said(upload: Upload) -> tuple[str, str, float | None]:
    """Filename, purpose and seconds to live. Raises ApiError 400."""
    filename = (upload.filename or "").replace("\0", "").rsplit("/", 1)[-1].rsplit("\\", 1)[-1]
    if not filename or len(filename) > 512:
        raise ApiError(400, "invalid_request", "file: expected a filename of 1 to 512 characters", param="file")
    purpose = upload.fields.get("purpose", "")
    if purpose not in _PURPOSES:
        raise ApiError(400, "invalid_request", f"purpose: expected one of {', '.join(_PURPOSES)}", param="purpose")
    seconds = upload.fields.get("expires_after[seconds]")
    if seconds is None:
        return filename, purpose, None
    if upload.fields.get("expires_after[anchor]") != "created_at" or not (
        seconds.isascii() and seconds.isdigit() and len(seconds) < 9 and _SECONDS[0] <= int(seconds) <= _SECONDS[1]
    ):
        raise ApiError(
            400,
            "invalid_request",
            f"expires_after: expected `created_at` and {_SECONDS[0]} to {_SECONDS[1]} seconds",
            param="expires_after",
        )
    return filename, purpose, float(seconds)
