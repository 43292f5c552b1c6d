"""`/health`, `/health/live`, `/health/ready`: for people, for the service manager, for balancers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

from citadel_llm.api.identity.guard import public
from citadel_llm.api.routes.schemas import Health, Live, Ready
from citadel_llm.api.state import GatewayState
from citadel_llm.api.upstream.engine import Engine, State
from citadel_llm.api.upstream.model import ServedModel

__all__ = ["dependencies", "router", "show_engine", "verdict"]


def verdict(state: GatewayState) -> str:
    """The whole in one word: `ok`, `degraded` where a model cannot be asked, `down` where none can."""
    up = [model.state is State.UP for model in state.models.values()]
    return "ok" if all(up) else "degraded" if any(up) else "down"


def dependencies(state: GatewayState) -> dict[str, str]:
    """`up` or `down`, of what is configured."""
    found = {"cache": state.cache.redis if state.cache is not None else None, "database": state.database}
    return {name: "up" if peer.up else "down" for name, peer in found.items() if peer is not None}


def router(state: GatewayState) -> APIRouter:
    """The endpoints of this family; none needs a key."""
    routes = APIRouter(prefix="/health", tags=["health"], dependencies=[Depends(public)])

    @routes.get("/live", response_model=Live, summary="This instance answers")
    async def live() -> JSONResponse:
        return JSONResponse({"status": "ok", "instance": state.instance, "version": state.version})

    @routes.get(
        "/ready",
        response_model=Ready,
        summary="At least one model can be asked",
        responses={503: {"model": Ready, "description": "No model can be asked, or this instance is about to stop"}},
    )
    async def ready() -> JSONResponse:
        good = verdict(state) != "down" and not state.draining
        retry = {"retry-after": str(state.config.limits.retry_after_s)}
        return JSONResponse(
            {"status": "ready" if good else "not ready", "instance": state.instance},
            status_code=200 if good else 503,
            headers=None if good else retry,
        )

    @routes.get(
        "",
        response_model=Health,
        summary="Every model and every engine",
        responses={503: {"model": Health, "description": "No model can be asked"}},
    )
    async def health() -> JSONResponse:
        status = verdict(state)
        return JSONResponse(
            {
                "status": status,
                "instance": state.instance,
                "version": state.version,
                "draining": state.draining,
                "dependencies": dependencies(state),
                "audit": None if state.audit is None else state.audit.state,
                "models": {name: _show_model(model) for name, model in state.models.items()},
                "vector": None if state.vector is None else state.vector.state,
            },
            status_code=503 if status == "down" else 200,
        )

    return routes


def _show_model(model: ServedModel) -> dict[str, Any]:
    return {
        "state": model.state,
        "in_flight": model.in_flight,
        "queued": model.admission.waiting,
        "engines": [show_engine(engine) for engine in model.engines],
    }


def show_engine(engine: Engine) -> dict[str, Any]:
    """One engine as this instance sees it."""
    return {
        "address": engine.url,
        "state": engine.state,
        "reachable": engine.reachable,
        "draining": engine.draining,
        "drained": engine.drained,
        "latency_ms": None if engine.latency_s is None else round(engine.latency_s * 1e3, 2),
        "in_flight": engine.in_flight,
        "waiting": engine.waiting,
        "breaker": engine.breaker.state.name.lower(),
        "ejected": bool(engine.outlier.until),
        "last_error": engine.last_error,
    }
