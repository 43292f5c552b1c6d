"""`/admin/v1/budgets`: how much a key, a user, a model or everyone may use in a day and in a month, in UTC."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, model_validator

from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.routes.admin.store import Body, Cursor, Limit, Store, not_found, page, read_cursor, responses
from citadel_llm.api.routes.admin.subjects import Bound, ScopePath, SubjectPath, subject_of
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database.budgets import budgets_page, drop_budget, find_budget, put_budget

__all__ = ["router"]

type Period = Literal["day", "month"]


class Budget(Body):
    """Both: what is not named has no bound."""

    max_requests: Bound = None
    max_tokens: Bound = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.max_requests is None and self.max_tokens is None:
            raise ValueError("expected at least one of max_requests, max_tokens")
        return self


class BudgetObject(BaseModel):
    """What is set for a subject and a period."""

    object: Literal["budget"] = "budget"
    scope: str
    subject: str
    period: str
    max_requests: int | None
    max_tokens: int | None
    updated_at: int


class BudgetList(BaseModel):
    """A page of them."""

    object: Literal["list"] = "list"
    data: list[BudgetObject]
    next: str | None


class BudgetDeleted(BaseModel):
    """It is gone."""

    object: Literal["budget"] = "budget"
    scope: str
    subject: str
    period: str
    deleted: Literal[True] = True


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"object": "budget", **{name: row[name] for name in BudgetObject.model_fields if name != "object"}}


def router(state: GatewayState) -> APIRouter:
    """The endpoints of this family."""
    routes = APIRouter(prefix="/admin/v1/budgets", tags=["admin"])
    guard, store = Guard(state), Store(state)
    reader = Annotated[Principal, Depends(guard("limits.read"))]
    writer = Annotated[Principal, Depends(guard("limits.write"))]

    @routes.get("", response_model=BudgetList, summary="List what is set", responses=responses())
    async def list_budgets(caller: reader, limit: Limit = 50, cursor: Cursor = None) -> JSONResponse:
        after = read_cursor(cursor, str, str, str) or ("", "", "")
        async with store.reading() as connection:
            rows = await budgets_page(connection, (after[0], after[1], after[2]), limit + 1)
        shown, following = page(rows, limit, ["scope", "subject", "period"])
        return JSONResponse({"object": "list", "data": [_shown(row) for row in shown], "next": following})

    @routes.get(
        "/{scope}/{subject:path}/{period}",
        response_model=BudgetObject,
        summary="Show what is set",
        responses=responses(404),
    )
    async def get_budget(scope: ScopePath, subject: SubjectPath, period: Period, caller: reader) -> JSONResponse:
        async with store.reading() as connection:
            found = await find_budget(connection, scope, await subject_of(connection, state, scope, subject), period)
        if found is None:
            raise not_found("budget", f"{scope}/{subject}/{period}")
        return JSONResponse(_shown(found))

    @routes.put(
        "/{scope}/{subject:path}/{period}", response_model=BudgetObject, summary="Set it", responses=responses(404)
    )
    async def set_budget(
        scope: ScopePath, subject: SubjectPath, period: Period, body: Budget, request: Request, caller: writer
    ) -> JSONResponse:
        bounds = body.model_dump()
        request.scope["citadel.audit"] = {"scope": scope, "subject": subject, "period": period, **bounds}
        async with store.changing() as connection:
            name = await subject_of(connection, state, scope, subject)
            await put_budget(connection, scope, name, period, bounds)
            found = await find_budget(connection, scope, name, period)
        assert found is not None  # noqa: S101 — it was just set
        return JSONResponse(_shown(found))

    @routes.delete(
        "/{scope}/{subject:path}/{period}", response_model=BudgetDeleted, summary="Set none", responses=responses(404)
    )
    async def delete_budget(
        scope: ScopePath, subject: SubjectPath, period: Period, request: Request, caller: writer
    ) -> JSONResponse:
        request.scope["citadel.audit"] = {"scope": scope, "subject": subject, "period": period}
        async with store.changing() as connection:
            name = await subject_of(connection, state, scope, subject)
            if not await drop_budget(connection, scope, name, period):
                raise not_found("budget", f"{scope}/{subject}/{period}")
        return JSONResponse({"object": "budget", "scope": scope, "subject": name, "period": period, "deleted": True})

    return routes
