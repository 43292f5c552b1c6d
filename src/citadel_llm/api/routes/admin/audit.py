"""`/admin/v1/audit`: what was done, by whom."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.routes.admin.asking import REFUSALS, asked
from citadel_llm.api.routes.admin.paging import Aware, packed, unpacked, utc, uuid_or_none
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.database import audit
from citadel_llm.integration.database.audit import Cursor, Filter
from citadel_llm.utils.cost import Price, cost_of, prices_of

__all__ = ["router"]

_TIMES = "such as 2026-01-31T08:00:00Z"
_TEXT = Query(max_length=256)


class AuditRow(BaseModel):
    """One thing that was done."""

    at: str = Field(description="When its answer was complete")
    id: str
    chain: str = Field(description="Whose writing it is; with `position`, the row's place there")
    position: int
    kind: Literal["request", "admin", "security"]
    action: str
    request_id: str
    user_id: str | None
    user_name: str | None
    key_id: str | None
    key_name: str | None
    model: str | None
    served_by: str | None = Field(description="The engine; none where the cache answered, or nobody")
    outcome: Literal["ok", "refused", "error", "cancelled", "lost"]
    status: int | None
    error_code: str | None
    streamed: bool | None
    cached: bool | None
    prompt_tokens: int | None
    completion_tokens: int | None
    first_token_ms: float | None
    latency_ms: float | None
    cost: float | None = Field(description="Of a request, at the present prices; none where there are none")
    client_address: str | None
    content_policy: Literal["none", "hash", "full"]
    content: dict[str, Any] | None
    detail: dict[str, Any] | None


class AuditPage(BaseModel):
    """Rows, the newest first."""

    object: Literal["list"]
    data: list[AuditRow]
    next: str | None = Field(description="The `cursor` of the next page; none where there is nothing more")


def router(state: GatewayState) -> APIRouter:
    """The endpoint; it needs `audit.read`."""
    routes = APIRouter(prefix="/admin/v1/audit", tags=["administration"])
    guard = Guard(state)
    prices = prices_of(state.config)

    @routes.get(
        "",
        response_model=AuditPage,
        summary="What was done, the newest first",
        operation_id="listAudit",
        responses=REFUSALS,
        dependencies=[Depends(guard("audit.read"))],
        openapi_extra={"security": [{"bearer": []}]},
    )
    async def list_audit(
        request_id: Annotated[str | None, _TEXT] = None,
        user: Annotated[str | None, Query(max_length=256, description="A user's name or id")] = None,
        model: Annotated[str | None, _TEXT] = None,
        kind: Literal["request", "admin", "security"] | None = None,
        outcome: Literal["ok", "refused", "error", "cancelled", "lost"] | None = None,
        since: Annotated[datetime | None, Query(description=f"From then on, {_TIMES}")] = None,
        until: Annotated[datetime | None, Query(description=f"Before then, {_TIMES}")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        cursor: Annotated[str | None, Query(max_length=256, description="`next` of the page before")] = None,
    ) -> JSONResponse:
        user_id = None if user is None else uuid_or_none(user)
        wanted = Filter(
            request_id=request_id,
            user_id=user_id,
            user_name=user if user_id is None else None,
            model=model,
            kind=kind,
            outcome=outcome,
            since=utc(since),
            until=utc(until),
        )
        after: Cursor | None = None
        if cursor is not None:
            at, identity = unpacked(cursor, tuple[Aware, UUID])
            after = Cursor(at, str(identity))
        async with asked(state) as connection:
            rows = await audit.find(connection, wanted, after, limit + 1)
        more = len(rows) > limit
        rows = rows[:limit]
        following = packed((rows[-1]["at"], rows[-1]["id"])) if more else None
        return JSONResponse(
            {
                "object": "list",
                "data": [_shown(row, prices) for row in rows],
                "next": following,
            }
        )

    return routes


def _shown(row: dict[str, Any], prices: Mapping[str, Price]) -> dict[str, Any]:
    row["at"] = row["at"].isoformat()
    for name in ("id", "user_id", "key_id", "client_address"):
        if row[name] is not None:
            row[name] = str(row[name])
    row["cost"] = _cost(row, prices)
    return row


def _cost(row: dict[str, Any], prices: Mapping[str, Price]) -> float | None:
    price = prices.get(row["model"])
    if row["kind"] != "request" or price is None:
        return None
    if row["cached"]:
        return 0.0
    return round(cost_of(price, row["prompt_tokens"] or 0, row["completion_tokens"] or 0), 9)
