"""`/metrics`: what the metrics server scrapes."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from citadel_llm.api.state import GatewayState

__all__ = ["router"]


def router(state: GatewayState) -> APIRouter:
    """The endpoint; it needs no key."""
    routes = APIRouter(tags=["health"])

    # A plain function, so that FastAPI runs it on a thread: it reads the instances' files.
    @routes.get("/metrics", summary="Metrics of all instances, for Prometheus", response_class=PlainTextResponse)
    def metrics() -> Response:
        text, content_type = state.metrics.exposition()
        return Response(text, headers={"content-type": content_type})

    return routes
