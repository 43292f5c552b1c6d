"""`/health`, `/health/live`, `/health/ready`: for people, for the service manager, for balancers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from citadel_llm.api.routes.schemas import Health, Live, Ready
from citadel_llm.api.state import GatewayState
from citadel_llm.api.upstream.engine import Engine, State
from citadel_llm.api.upstream.model import ServedModel

__all__ = ["router"]


def router(state: GatewayState) -> APIRouter:
    """The endpoints of this family; none needs a key."""
    routes = APIRouter(prefix="/health", tags=["health"])

    def verdict() -> str:
        up = [model.state is State.UP for model in state.models.values()]
        return "ok" if all(up) else "degraded" if any(up) else "down"

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
        good = verdict() != "down" and not state.draining
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
        status = verdict()
        return JSONResponse(
            {
                "status": status,
                "instance": state.instance,
                "version": state.version,
                "draining": state.draining,
                "models": {name: _show_model(model) for name, model in state.models.items()},
            },
            status_code=503 if status == "down" else 200,
        )

    return routes


def _show_model(model: ServedModel) -> dict[str, Any]:
    return {
        "state": model.state,
        "in_flight": model.in_flight,
        "queued": model.admission.waiting,
        "engines": [_show_engine(engine) for engine in model.engines],
    }


def _show_engine(engine: Engine) -> dict[str, Any]:
    return {
        "address": engine.url,
        "state": engine.state,
        "reachable": engine.reachable,
        "draining": engine.draining,
        "latency_ms": None if engine.latency_s is None else round(engine.latency_s * 1e3, 2),
        "in_flight": engine.in_flight,
        "waiting": engine.waiting,
        "breaker": engine.breaker.state.name.lower(),
        "ejected": bool(engine.outlier.until),
        "last_error": engine.last_error,
    }
