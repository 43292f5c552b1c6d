"""`/admin/v1/alerts`: which of the product's alerts are firing, as Alertmanager has them.

It is asked at most once in `console.alerts_s`, however many look, and of what it says only so much is passed on.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse
from msgspec import Meta
from pydantic import BaseModel

from citadel_llm.api.errors import ApiError
from citadel_llm.api.fresh import Fresh
from citadel_llm.api.identity.guard import Guard
from citadel_llm.api.routes.schemas import refused
from citadel_llm.api.state import GatewayState
from citadel_llm.api.upstream.connection import BadResponse, ConnectionLost, connect
from citadel_llm.utils.config import Upstream

__all__ = ["MATCHERS", "router"]

# The labels that src/citadel_monitoring gives the product's alerts; the heartbeat always fires, and is no news.
MATCHERS = ('product="citadel"', 'kind!="heartbeat"')
_QUERY = "&".join(["active=true", "silenced=true", "inhibited=false", *(f"filter={quote(one)}" for one in MATCHERS)])
_MOST = 100
_TEXT = 600  # characters
_ANSWER_BYTES = 2 << 20


class AlertRow(BaseModel):
    """One that fires."""

    name: str
    severity: str
    kind: str
    model: str
    server: str
    since: str
    silenced: bool
    summary: str
    description: str


class AlertList(BaseModel):
    """Those that fire now."""

    object: Literal["list"]
    data: list[AlertRow]
    more: int


class _Status(msgspec.Struct):
    state: str = ""


class _Alert(msgspec.Struct):
    labels: dict[str, str]
    annotations: dict[str, str]
    startsAt: Annotated[str, Meta(max_length=64)]
    status: _Status


_decoder = msgspec.json.Decoder(list[_Alert])


def router(state: GatewayState) -> APIRouter:
    """The endpoint; it needs `operate` or `usage.read`: those who look after the whole."""
    routes = APIRouter(prefix="/admin/v1/alerts", tags=["administration"])
    config = state.config.console
    place = config.alertmanager

    async def read() -> list[_Alert]:
        assert place is not None  # noqa: S101 — refused before
        async with asyncio.timeout(config.timeout_s):
            return await _firing(place)

    firing = Fresh(config.alerts_s, read)

    @routes.get(
        "",
        summary="The alerts that fire now",
        response_model=AlertList,
        responses={
            401: refused(),
            403: refused(),
            501: refused("This gateway was told of no Alertmanager"),
            503: refused("Alertmanager does not answer; see Retry-After"),
        },
        dependencies=[Depends(Guard(state)("operate", "usage.read"))],
        openapi_extra={"security": [{"bearer": []}]},
    )
    async def list_alerts() -> JSONResponse:
        if place is None:
            raise ApiError(501, "no_alertmanager", "This gateway was told of no Alertmanager, which would know.")
        try:
            found = await firing.get()
        except (TimeoutError, OSError, BadResponse, ConnectionLost, ValueError) as failure:
            raise ApiError(
                503,
                "alertmanager_unavailable",
                "Alertmanager does not answer at the moment. Try again later.",
                retry_after_s=state.config.limits.retry_after_s,
            ) from failure
        data = [_shown(alert) for alert in found[:_MOST]]
        return JSONResponse({"object": "list", "data": data, "more": max(0, len(found) - _MOST)})

    return routes


async def _firing(place: Upstream) -> list[_Alert]:
    connection = await connect(asyncio.get_running_loop(), place.host, place.port)
    try:
        host = f"[{place.host}]" if ":" in place.host else place.host
        request = f"GET /api/v2/alerts?{_QUERY} HTTP/1.1\r\nhost: {host}:{place.port}\r\nconnection: close\r\n\r\n"
        connection.send(request.encode("ascii"), b"")
        status, _ = await connection.head()
        body, whole = await connection.read_whole(_ANSWER_BYTES)
    finally:
        connection.close()
    if status != 200 or not whole or len(body) > _ANSWER_BYTES:
        raise ValueError(f"Alertmanager answered {status}, {'whole' if whole else 'too much'}")
    return sorted(_decoder.decode(body), key=lambda alert: alert.startsAt, reverse=True)


def _shown(alert: _Alert) -> dict[str, Any]:
    labels, words = alert.labels, alert.annotations
    return {
        "name": labels.get("alertname", "")[:_TEXT],
        **{name: labels.get(name, "")[:_TEXT] for name in ("severity", "kind", "model", "server")},
        "since": alert.startsAt,
        "silenced": alert.status.state == "suppressed",
        **{name: words.get(name, "")[:_TEXT] for name in ("summary", "description")},
    }
