"""`/admin/v1/usage`: how much was used, by user, key and model; everybody's, or the caller's own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.routes.admin.asking import REFUSALS, asked
from citadel_llm.api.routes.admin.paging import Aware, packed, unpacked, utc, uuid_or_none
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database import usage
from citadel_llm.integration.database.usage import NOBODY, Cursor, Filter, Period

__all__ = ["router"]

_DEFAULT = "by default a day of hours, a month of days, a year of months"
_Period = Annotated[Period, Query(description="What is summed up; UTC")]
_Since = Annotated[datetime | None, Query(description=f"From then on; {_DEFAULT}")]
_Until = Annotated[datetime | None, Query(description="Before then")]
_Model = Annotated[str | None, Query(max_length=256)]
_Limit = Annotated[int, Query(ge=1, le=1000)]
_After = Annotated[str | None, Query(max_length=512, description="`next` of the page before")]


class UsageRow(BaseModel):
    """What one key, or one user's password, used of one model in one period."""

    period_start: str
    user_id: str | None = Field(description="None for a key of the gateway's file")
    user_name: str | None
    key_id: str | None
    key_name: str | None
    model: str
    requests: int
    failed_requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_requests: int
    mean_latency_ms: float
    cost: float | None = Field(description="At the prices of the time, in `currency`; none where the site has none")


class UsagePage(BaseModel):
    """Sums, the newest first."""

    object: Literal["list"]
    period: Period
    currency: str | None = Field(description="Of `cost`, such as EUR")
    data: list[UsageRow]
    next: str | None = Field(description="The `cursor` of the next page; none where there is nothing more")


def router(state: GatewayState) -> APIRouter:
    """The endpoints of this family."""
    routes = APIRouter(prefix="/admin/v1/usage", tags=["administration"])
    guard = Guard(state)
    currency = None if state.config.cost is None else state.config.cost.currency
    documented: dict[str, Any] = {
        "response_model": UsagePage,
        "responses": REFUSALS,
        "openapi_extra": {"security": [{"bearer": []}]},
    }

    async def page(
        period: Period,
        since: datetime | None,
        until: datetime | None,
        model: str | None,
        limit: int,
        cursor: str | None,
        **whose: str | None,
    ) -> JSONResponse:
        begin = utc(since) or usage.first_of(period, datetime.now(UTC))
        wanted = Filter(period, begin, utc(until), model=model, **whose)
        after: Cursor | None = None
        if cursor is not None:
            start, user_id, key_id, name = unpacked(cursor, tuple[Aware, UUID, UUID, str])
            after = Cursor(start, str(user_id), str(key_id), name.replace("\x00", ""))
        async with asked(state) as connection:
            rows = await usage.find(connection, wanted, after, limit + 1)
        last = rows[limit - 1] if len(rows) > limit else None
        following = None
        if last is not None:
            following = packed((last["period_start"], last["user_id"], last["key_id"], last["model"]))
        data = [_shown(row, currency) for row in rows[:limit]]
        return JSONResponse({"object": "list", "period": period, "currency": currency, "data": data, "next": following})

    everybodys = [Depends(guard("usage.read"))]
    own = [Depends(guard("own-keys"))]

    @routes.get("", summary="Everybody's usage", operation_id="listUsage", dependencies=everybodys, **documented)
    async def list_usage(
        period: _Period = "day",
        user: Annotated[str | None, Query(max_length=256, description="A user's name or id")] = None,
        model: _Model = None,
        since: _Since = None,
        until: _Until = None,
        limit: _Limit = 100,
        cursor: _After = None,
    ) -> JSONResponse:
        user_id = None if user is None else uuid_or_none(user)
        name = user if user_id is None else None
        return await page(period, since, until, model, limit, cursor, user=name, user_id=user_id)

    @routes.get("/me", summary="The caller's own usage", operation_id="listOwnUsage", dependencies=own, **documented)
    async def list_own_usage(
        request: Request,
        period: _Period = "day",
        model: _Model = None,
        since: _Since = None,
        until: _Until = None,
        limit: _Limit = 100,
        cursor: _After = None,
    ) -> JSONResponse:
        caller: Principal = request.scope["citadel.principal"]
        if not caller.user_id:
            raise ApiError(
                404, "no_usage", "This key is of the gateway's file: its usage is not kept apart from others'."
            )
        return await page(period, since, until, model, limit, cursor, user_id=caller.user_id)

    return routes


def _shown(row: dict[str, Any], currency: str | None) -> dict[str, Any]:
    row["period_start"] = row["period_start"].isoformat()
    for name in ("user_id", "key_id"):
        text = str(row[name])
        row[name] = None if text == NOBODY else text
    row["mean_latency_ms"] = round(row.pop("latency_ms_sum") / max(1, row["requests"]), 3)
    row["cost"] = None if currency is None else round(row["cost"], 9)
    return row
