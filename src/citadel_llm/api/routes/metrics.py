"""`/metrics`: what the metrics server scrapes."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse, Response

from citadel_llm.api.identity.guard import public
from citadel_llm.api.state import GatewayState

__all__ = ["router"]


def router(state: GatewayState) -> APIRouter:
    """The endpoint; it needs no key."""
    routes = APIRouter(tags=["health"], dependencies=[Depends(public)])

    @routes.get("/metrics", summary="Metrics of all instances, for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        state.publish()
        # On a thread, for it reads the instances' files.
        text, content_type = await run_in_threadpool(state.metrics.exposition)
        return Response(text, headers={"content-type": content_type})

    return routes
