"""`/admin/v1/limits`: how much a key, a user, a model or everyone may use in each minute, and at once."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, model_validator

from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.limits.bounds import Bounds
from citadel_llm.api.routes.admin.store import Body, Cursor, Limit, Store, not_found, page, read_cursor, responses
from citadel_llm.api.routes.admin.subjects import Bound, ScopePath, SubjectPath, subject_of
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database.limits import drop_limits, find_limits, limits_page, put_limits

__all__ = ["router"]

_FIELDS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")


class Limits(Body):
    """All three: what is not named has no bound of its own, and for a key the server's default holds."""

    requests_per_minute: Bound = None
    tokens_per_minute: Bound = None
    concurrent_requests: Annotated[int | None, Field(ge=0, le=2**31 - 1)] = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if all(getattr(self, name) is None for name in _FIELDS):
            raise ValueError(f"expected at least one of {', '.join(_FIELDS)}")
        return self


class LimitsObject(BaseModel):
    """What is set for a subject."""

    object: Literal["limits"] = "limits"
    scope: str
    subject: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None
    updated_at: int


class LimitsList(BaseModel):
    """A page of them."""

    object: Literal["list"] = "list"
    data: list[LimitsObject]
    next: str | None


class LimitsDeleted(BaseModel):
    """They are gone."""

    object: Literal["limits"] = "limits"
    scope: str
    subject: str
    deleted: Literal[True] = True


class Numbers(BaseModel):
    """By what is bounded."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None
    requests_per_day: int | None
    tokens_per_day: int | None
    requests_per_month: int | None
    tokens_per_month: int | None


class UsedNow(BaseModel):
    """What a subject uses at the moment, on the host that answers."""

    object: Literal["limits.now"] = "limits.now"
    scope: str
    subject: str
    used: Numbers = Field(description="Counted only where something is bounded")
    bounds: Numbers = Field(description="What is set for it; a key without has the server's defaults")


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"object": "limits", **{name: row[name] for name in LimitsObject.model_fields if name != "object"}}


def router(state: GatewayState) -> APIRouter:
    """The endpoints of this family."""
    routes = APIRouter(prefix="/admin/v1/limits", tags=["admin"])
    guard, store = Guard(state), Store(state)
    reader = Annotated[Principal, Depends(guard("limits.read"))]
    writer = Annotated[Principal, Depends(guard("limits.write"))]

    @routes.get("", response_model=LimitsList, summary="List what is set", responses=responses())
    async def list_limits(caller: reader, limit: Limit = 50, cursor: Cursor = None) -> JSONResponse:
        after = read_cursor(cursor, str, str) or ("", "")
        async with store.reading() as connection:
            rows = await limits_page(connection, (after[0], after[1]), limit + 1)
        shown, following = page(rows, limit, ["scope", "subject"])
        return JSONResponse({"object": "list", "data": [_shown(row) for row in shown], "next": following})

    @routes.get(
        "/{scope}/{subject:path}/now",
        response_model=UsedNow,
        summary="Show what a subject uses at the moment",
        responses=responses(404),
    )
    async def used_now(scope: ScopePath, subject: SubjectPath, caller: reader) -> JSONResponse:
        async with store.reading() as connection:
            name = await subject_of(connection, state, scope, subject)
        bounds = state.bounds.get((scope, name), Bounds())
        return JSONResponse(
            {
                "object": "limits.now",
                "scope": scope,
                "subject": name,
                "used": state.limiter.now(scope, name),
                "bounds": {field: getattr(bounds, field) for field in Numbers.model_fields},
            }
        )

    @routes.get(
        "/{scope}/{subject:path}", response_model=LimitsObject, summary="Show what is set", responses=responses(404)
    )
    async def get_limits(scope: ScopePath, subject: SubjectPath, caller: reader) -> JSONResponse:
        async with store.reading() as connection:
            found = await find_limits(connection, scope, await subject_of(connection, state, scope, subject))
        if found is None:
            raise not_found("limits", f"{scope}/{subject}")
        return JSONResponse(_shown(found))

    @routes.put(
        "/{scope}/{subject:path}", response_model=LimitsObject, summary="Set all of them", responses=responses(404)
    )
    async def set_limits(
        scope: ScopePath, subject: SubjectPath, body: Limits, request: Request, caller: writer
    ) -> JSONResponse:
        bounds = body.model_dump()
        request.scope["citadel.audit"] = {"scope": scope, "subject": subject, **bounds}
        async with store.changing() as connection:
            name = await subject_of(connection, state, scope, subject)
            await put_limits(connection, scope, name, bounds)
            found = await find_limits(connection, scope, name)
        assert found is not None  # noqa: S101 — it was just set
        return JSONResponse(_shown(found))

    @routes.delete(
        "/{scope}/{subject:path}", response_model=LimitsDeleted, summary="Set none of its own", responses=responses(404)
    )
    async def delete_limits(scope: ScopePath, subject: SubjectPath, request: Request, caller: writer) -> JSONResponse:
        request.scope["citadel.audit"] = {"scope": scope, "subject": subject}
        async with store.changing() as connection:
            name = await subject_of(connection, state, scope, subject)
            if not await drop_limits(connection, scope, name):
                raise not_found("limits", f"{scope}/{subject}")
        return JSONResponse({"object": "limits", "scope": scope, "subject": name, "deleted": True})

    return routes
